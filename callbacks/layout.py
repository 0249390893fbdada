"""How TensorBoard lays the runs side by side: charts that teacher and students share, and HParams columns."""

import os
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.tensorboard.summary import hparams

from aeic_lightning.errors import UserError
from callbacks.base import tensorboard

# Category -> chart -> tags, which TensorBoard reads as regular expressions matched from the start of a tag.
CHARTS = {
    "rate": {
        "bpp": ["val/bpp$", "test/bpp$"],
        "bpp_estimate": ["train/bpp_estimate$", "val/bpp_estimate$", "test/bpp_estimate$"],
    },
    "distortion": {
        "PSNR (dB)": ["val/psnr$", "test/psnr$"],
        "MS-SSIM": ["val/ms_ssim$", "test/ms_ssim$"],
    },
    "perception": {
        "LPIPS": ["val/lpips", "test/lpips"],
        "DISTS": ["val/dists", "test/dists"],
        "FID on patches": ["val/fid(?!_patches)", "test/fid(?!_patches)"],
        "KID on patches": ["val/kid", "test/kid"],
    },
    "accuracy": {
        "top-1": ["train/top1$", "val/top1$", "test/top1$"],
        "top-5": ["val/top5$", "test/top5$"],
    },
    "losses": {
        "total": ["train/loss$", "val/loss$"],
        "terms": ["train/(?!loss$|bpp|top1$|distill/)"],
    },
    "distillation": {
        "encoder side": ["train/distill/encoder/.*"],
        "decoder side": ["train/distill/decoder/.*"],
    },
}
SHARED = {"arm": "-"}  # columns of every run, with what stands there for a run that says nothing
FIGURES = ("bpp", "bpp_estimate", "psnr", "ms_ssim", "lpips_lite0", "dists_lite0", "fid_lite0", "kid_lite0")


class ComparisonLayout(Callback):
    """Writes the custom-scalars layout and the HParams columns, both once a run and into the run's own event files.

    Columns are `pl_module.hparam_columns()`, a flat dict of numbers, words and booleans that is known before `fit`
    (role, depth, widths, lambda, beta1, beta2 and the run's labels), and the seed. TensorBoard fills the metric columns
    with the last value of each tag, so they show the final figures of fit and test. It takes the columns of the first
    run that it finds for all, so every run has those of `SHARED`; labels beside them should be given to all runs.

    Args:
        figures: names of the metric columns; each stands for `val/<name>` and `test/<name>`.
    """

    def __init__(self, figures: Sequence[str] = FIGURES) -> None:
        self.tags = [f"{stage}/{name}" for stage in ("val", "test") for name in figures]
        self.written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # In `setup`, because TensorBoard keeps the first columns that a run declares, and right after it Lightning
        # may declare its own (one called hp_metric, for ever -1).
        writer = tensorboard(trainer)
        if writer is None or self.written:
            return
        columns = dict(getattr(pl_module, "hparam_columns", dict)())
        seed = os.environ.get("PL_GLOBAL_SEED")  # what seed_everything leaves
        columns = SHARED | ({"seed": int(seed)} if seed else {}) | columns
        for name, value in columns.items():
            if not isinstance(value, int | float | str):
                raise UserError(f"hparam_columns: {name} is {value!r}; give a number, a word or a boolean")
        experiment, start, self.end = hparams(columns, dict.fromkeys(self.tags))
        files = writer._get_file_writer()
        files.add_summary(experiment)
        files.add_summary(start)
        layout = {c: {chart: ["Multiline", tags] for chart, tags in charts.items()} for c, charts in CHARTS.items()}
        writer.add_custom_scalars(layout)
        self.written = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if writer := tensorboard(trainer):
            writer._get_file_writer().add_summary(self.end)
            writer.flush()

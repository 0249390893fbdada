"""How TensorBoard lays the runs side by side: charts that teacher and students share, and HParams columns."""

import os
from collections.abc import Sequence

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from torch.utils.tensorboard.summary import hparams

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.table import METRICS
from aeic_lightning.study.run_description import run_labels
from callbacks.base import OnEvaluation, tensorboard

# Category -> chart -> tags, which TensorBoard reads as regular expressions matched from the start of a tag.
# All curves of a run have one colour, so training and validation of a quantity have charts of their own.
CHARTS = {
    "rate": {
        "bpp": ["val/bpp$", "test/bpp$"],
        "bpp_estimate": ["val/bpp_estimate$", "test/bpp_estimate$"],
        "bpp_estimate, training": ["train/bpp_estimate$"],
    },
    "distortion": {
        METRICS["psnr"].title: ["val/psnr$", "test/psnr$"],
        METRICS["ms_ssim"].title: ["val/ms_ssim$", "test/ms_ssim$"],
    },
    "perception": {
        METRICS["lpips"].title: ["val/lpips", "test/lpips"],
        METRICS["dists"].title: ["val/dists", "test/dists"],
        "FID on patches": ["val/fid(?!_patches)", "test/fid(?!_patches)"],
        "KID on patches": ["val/kid", "test/kid"],
    },
    "accuracy": {
        METRICS["top1"].title: ["val/top1$", "test/top1$"],
        METRICS["top5"].title: ["val/top5$", "test/top5$"],
        f"{METRICS['top1'].title}, training": ["train/top1$"],
    },
    "losses": {
        "total, training": ["train/loss$"],
        "total": ["val/loss$"],
        "terms, training": [r"train/(?!loss$|bpp|top1$|distill/|.*(learning_rate|gradient_norm)$)"],
    },
    "optimization": {
        "learning rate": ["train/(discriminator_)?learning_rate$"],
        "gradient norm": ["train/(discriminator_)?gradient_norm$"],
    },
    "distillation": {
        "encoder side": ["train/distill/encoder/.*"],
        "decoder side": ["train/distill/decoder/.*"],
    },
}
# TensorBoard sorts the columns by name, shows the first five and hides the others: these come before "setting/...".
FIRST = ("arm", "depth", "lambda", "role", "seed")
SHARED = {"arm": "-", "beta1": 0.0, "beta2": 0.0}  # columns of every run, with the values of a run that has none


class ComparisonLayout(Callback):
    """Writes the custom-scalars layout and the HParams columns, both once a run and into the run's own event files.

    Columns are the run's labels, the same that name it in tables and reports (`study.run_description`), and what
    `pl_module.hparam_columns()` adds, where a system has that method: a flat dict of numbers, words and booleans that
    is known before `fit`. TensorBoard fills the metric columns
    with the last value of each tag, so they show the final metrics of fit and test. It takes the columns of the first
    run that it finds for all, so every run has those of `SHARED`; labels beside them should be given to all runs.

    Args:
        metrics: names of the metric columns; each stands for `val/<name>` and `test/<name>`. Default: what the
            callbacks of the run measure (`OnEvaluation.measured`).
    """

    def __init__(self, metrics: Sequence[str] | None = None) -> None:
        self.metrics = metrics
        self.written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # In `setup`, because TensorBoard keeps the first columns that a run declares, and right after it Lightning
        # may declare its own (one called hp_metric, for ever -1).
        writer = tensorboard(trainer)
        if writer is None or self.written:
            return
        own = dict(getattr(pl_module, "hparam_columns", dict)())
        seed = os.environ.get("PL_GLOBAL_SEED")  # what seed_everything leaves
        seed = int(seed) if seed else None
        columns = SHARED | ({} if seed is None else {"seed": seed}) | own | _labels(trainer, seed)
        for name, value in columns.items():
            if not isinstance(value, int | float | str):
                raise UserError(f"hparam_columns: {name} is {value!r}; give a number, a word or a boolean")
        columns = {name if name in FIRST else f"setting/{name}": value for name, value in columns.items()}
        metrics = measured(trainer, pl_module) if self.metrics is None else self.metrics
        tags = [f"{stage}/{name}" for stage in ("val", "test") for name in metrics]
        experiment, start, self.end = hparams(columns, dict.fromkeys(tags))
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


def measured(trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """Names of the metrics that a run's callbacks measure. There is no `bpp` without files, and with the files of some
    images alone it is `bpp_share`."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    names = [name for c in callbacks if isinstance(c, OnEvaluation) for name in c.measured]
    written = getattr(pl_module, "write_streams", True)
    if written is not True and "bpp" in names:
        names = [name for name in names if name != "bpp"] + (["bpp_share", "bpp_estimate_share"] if written else [])
    return list(dict.fromkeys(names))


def _labels(trainer: Trainer, seed: int | None) -> dict[str, int | float | str]:
    """The labels of a run from its config, as they will be read from its folder; none where there is no config."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    record = next((c for c in callbacks if isinstance(c, SaveConfigCallback)), None)
    if record is None:
        return {}
    return run_labels(yaml.safe_load(record.parser.dump(record.config, skip_validation=True)), seed)

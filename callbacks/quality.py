"""Per-image quality and rate of every validation and test, on 8-bit reconstructions."""

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.quality import DESCRIBED, ImageQuality
from aeic_lightning.study.results import summary_rows, write_json
from callbacks.base import EvaluatedImage, OnEvaluation, gather, generator_step
from callbacks.distribution import PatchFID


class QualityMetrics(OnEvaluation):
    """Rate, PSNR (dB), MS-SSIM, LPIPS and DISTS, the mean over images logged as `val/...` and `test/...`.

    `bpp` is 8 times the bytes of the image's file over its pixels, and missing where the step returns no `bytes`;
    `bpp_estimate` is the likelihood that training minimises. Where some images have a file and others not, there is no
    `bpp`: those that have one give `bpp_share`, and their estimates `bpp_estimate_share`.

    Writes `metrics_val.json` (`metrics_test.json`) into the run folder after each validation (test):

        {"step": generator updates,
         "metrics": {"psnr": {"mean": 21.3, "images": 24}, ...},          means over images
         "set_metrics": {"fid_lite0": {"value": 40.2, "patches": 512}},   of the whole set, from PatchFID
         "images": [{"name", "height", "width", "crc32", "bits_estimate", "bpp_estimate", "bytes", "bpp", ...}, ...],
         "metric_info": {"lpips_lite0": {"backbone", "weights", "version", "options"}, ...},
         "versions": {"torch", "torchmetrics", "lpips", "timm"}}

    `crc32` is of the original's 8-bit pixels: two runs compared by name should agree in it. A metric that is not
    finite (the PSNR of equal images) is null in the file. MS-SSIM is left out of images below 176 pixels a side, and
    "images" says over how many a mean was taken. Over several processes each image counts once.

    Args:
        backbone: the network behind LPIPS and DISTS; their names carry it.
        ms_ssim: whether to compute MS-SSIM.
        lpips: backbones of LPIPS instead of `backbone`; each gives a metric of its own; [] for none.
        dists: the same for DISTS (which has no "alex").
        same_class: whether to compare the classes that a held-out classifier gives (`same_class_lite2`).
        metrics: metrics of your own, as {class_path: my_metric.MyMetric, higher: false}; see CONTRIBUTING.
    """

    def __init__(
        self,
        backbone: str = "lite0",
        ms_ssim: bool = True,
        lpips: Sequence[str] | None = None,
        dists: Sequence[str] | None = None,
        same_class: bool = False,
        metrics: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.options = {
            "ms_ssim": ms_ssim,
            "lpips": [backbone] if lpips is None else list(lpips),
            "dists": [backbone] if dists is None else list(dists),
            "same_class": same_class,
            "metrics": list(metrics),
        }
        self.rows: list[dict] = []  # one an image, of the last validation or test
        self.means: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        _ = self.quality  # or missing weights would be found after hours

    @cached_property
    def quality(self) -> ImageQuality:
        """The networks of the metrics. Built when a run is set up."""
        return ImageQuality(**self.options)

    @property
    def measured(self) -> list[str]:
        ms_ssim = ["ms_ssim"] if self.options["ms_ssim"] else []
        return [
            "bpp",
            "bpp_estimate",
            "psnr",
            *ms_ssim,
            *(network.name for network in self.quality.networks),
            *self.quality.own_built,
        ]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows, self.means = [], {}
        self.quality.to(pl_module.device)

    def see(self, trainer: Trainer, pl_module: LightningModule, image: EvaluatedImage) -> None:
        self.rows.append(self.quality.row(image.name, image.x, image.x_hat, image.bits, image.bytes))

    def conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = with_shares(each_image_once(gather(trainer, self.rows)))
        self.means = {name: metric["mean"] for name, metric in summary_rows(self.rows, DESCRIBED).items()}
        for name, mean in self.means.items():
            # Every rank holds the same mean already; sync_dist only keeps Lightning from warning.
            pl_module.log(f"{self.stage}/{name}", mean, sync_dist=True)

    def publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        patches = [c for c in trainer.callbacks if isinstance(c, PatchFID)]  # pyright: ignore[reportAttributeAccessIssue]
        record = {
            "step": generator_step(trainer, pl_module),
            "metrics": summary_rows(self.rows, DESCRIBED),
            "set_metrics": {name: metric for c in patches for name, metric in c.metrics.items()},
            "images": self.rows,
            "metric_info": self._metric_info(patches),
            "versions": {package: version(package) for package in ("torch", "torchmetrics", "lpips", "timm")},
        }
        write_json(self.folder / f"metrics_{self.stage}.json", record)

    def _metric_info(self, patches: Sequence[PatchFID]) -> dict[str, dict]:
        info = dict(self.quality.info)
        info |= {f"{name}_share": info[name] for name in ("bpp", "bpp_estimate")}
        for callback in patches:
            info |= callback.patches.info
        measured = {*self.means, *(name for callback in patches for name in callback.metrics)}
        return {name: entry for name, entry in info.items() if name in measured}


def with_shares(rows: list[dict]) -> list[dict]:
    """The rows as they are if all images have a file or none; else those that have one with `_share` in their rates."""
    if len({"bpp" in row for row in rows}) < 2:
        return rows

    def renamed(row: dict) -> dict:
        if "bpp" not in row:
            return row
        shared = {"bpp_share": row["bpp"], "bpp_estimate_share": row["bpp_estimate"]}
        return {name: value for name, value in row.items() if name != "bpp"} | shared

    return [renamed(row) for row in rows]


def each_image_once(ranks: Sequence[Sequence[dict]]) -> list[dict]:
    """Rows of all processes, sorted by name. A distributed sampler repeats images to even out the processes.

    Raises UserError if two different images go by one name.
    """
    rows: dict[str, dict] = {}
    for row in (row for rank in ranks for row in rank):
        known = rows.setdefault(row["name"], row)
        if known["crc32"] != row["crc32"]:
            raise UserError(f"two images are called {row['name']!r}: give each image of the set a name of its own")
    return [rows[name] for name in sorted(rows)]

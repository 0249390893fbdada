"""Per-image quality and rate of every validation and test, on 8-bit reconstructions."""

import json
import math
import zlib
from collections.abc import Sequence
from importlib.metadata import version

from lightning.pytorch import LightningModule, Trainer

from aeic_lightning import UserError
from aeic_lightning.evaluation.images import bits_per_pixel, from_uint8, ms_ssim, ms_ssim_fits, psnr, write_whole
from aeic_lightning.losses.dists import DISTS
from aeic_lightning.losses.lpips import LPIPS
from callbacks.base import OnEvaluation, Pair, gather, generator_step, own_random_state
from callbacks.distribution import PatchFID


class QualityMetrics(OnEvaluation):
    """Rate, PSNR (dB), MS-SSIM, LPIPS and DISTS, the mean over images logged as `val/...` and `test/...`.

    `bpp` is 8 times the bytes of the image's file over its pixels, and missing where the step returns no `bytes`;
    `bpp_estimate` is the likelihood that training minimises.

    Writes `metrics_val.json` (`metrics_test.json`) into the run folder after each validation (test):

        {"step": generator updates,
         "metrics": {"psnr": {"mean": 21.3, "images": 24}, ...},          means over images
         "set_metrics": {"fid_lite0": {"value": 40.2, "patches": 512}},   of the whole set, from PatchFID
         "images": [{"name", "height", "width", "crc32", "bits_estimate", "bpp_estimate", "bytes", "bpp", ...}, ...],
         "backbones": {"lpips_lite0": "lite0", ...},
         "versions": {"torch", "torchmetrics", "lpips", "timm"}}

    `crc32` is of the original's 8-bit pixels: two runs compared by name should agree in it. A figure that is not
    finite (the PSNR of equal images) is null in the file. MS-SSIM is left out of images below 176 pixels a side, and
    "images" says over how many a mean was taken. Over several processes each image counts once.

    Args:
        backbone: the network behind LPIPS and DISTS; their names carry it.
        ms_ssim: whether to compute MS-SSIM.
        lpips: backbones of LPIPS instead of `backbone`; each gives a figure of its own; [] for none.
        dists: the same for DISTS (which has no "alex").
    """

    def __init__(
        self,
        backbone: str = "lite0",
        ms_ssim: bool = True,
        lpips: Sequence[str] | None = None,
        dists: Sequence[str] | None = None,
    ) -> None:
        self.ms_ssim = ms_ssim
        self.lpips = [backbone] if lpips is None else list(lpips)
        self.dists = [backbone] if dists is None else list(dists)
        self.backbones: dict[str, str] = {}
        self.rows: list[dict] = []  # one an image, of the last validation or test
        self.means: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not self.backbones:
            # Building a network may draw initial weights, even when a file then overwrites them.
            with own_random_state():
                built = [(LPIPS(b), b) for b in self.lpips] + [(DISTS(b), b) for b in self.dists]
            self.networks = [network for network, _ in built]
            self.backbones = {network.name: backbone for network, backbone in built}

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows, self.means = [], {}
        for network in self.networks:
            network.to(pl_module.device)

    def see(self, trainer: Trainer, pl_module: LightningModule, pair: Pair) -> None:
        height, width = pair.x.shape[-2:]
        x8, x8_hat = pair.x[None], pair.x_hat[None]
        row = {
            "name": pair.name,
            "height": height,
            "width": width,
            "crc32": zlib.crc32(pair.x.cpu().numpy()),
            "bits_estimate": pair.bits,
            "bpp_estimate": bits_per_pixel(pair.bits, height, width),
            "psnr": psnr(x8_hat, x8).item(),
        }
        if pair.bytes is not None:
            row |= {"bytes": pair.bytes, "bpp": bits_per_pixel(8 * pair.bytes, height, width)}
        if self.ms_ssim and ms_ssim_fits(height, width):
            row["ms_ssim"] = ms_ssim(x8_hat, x8).item()
        x, x_hat = from_uint8(x8), from_uint8(x8_hat)
        for network in self.networks:
            row[network.name] = network(x_hat, x).item()
        self.rows.append(row)

    def conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = each_image_once(gather(trainer, self.rows))
        self.means = {name: math.fsum(column) / len(column) for name, column in self._columns().items()}
        for name, mean in self.means.items():
            # Every rank holds the same mean already; sync_dist only keeps Lightning from warning.
            pl_module.log(f"{self.stage}/{name}", mean, sync_dist=True)

    def publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        columns = self._columns()
        record = {
            "step": generator_step(trainer, pl_module),
            "metrics": {name: {"mean": mean, "images": len(columns[name])} for name, mean in self.means.items()},
            "set_metrics": {k: v for c in trainer.callbacks if isinstance(c, PatchFID) for k, v in c.figures.items()},
            "images": self.rows,
            "backbones": self.backbones,
            "versions": {package: version(package) for package in ("torch", "torchmetrics", "lpips", "timm")},
        }
        text = json.dumps(_finite_or_null(record), indent=1, allow_nan=False)
        write_whole(self.folder / f"metrics_{self.stage}.json", text + "\n")

    def _columns(self) -> dict[str, list[float]]:
        described = ("name", "height", "width", "crc32", "bytes", "bits_estimate")
        names = dict.fromkeys(key for row in self.rows for key in row if key not in described)
        return {name: [row[name] for row in self.rows if name in row] for name in names}


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


def _finite_or_null(value):
    if isinstance(value, dict):
        return {key: _finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

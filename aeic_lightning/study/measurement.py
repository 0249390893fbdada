"""The metrics of one set of images, taken from pairs of pictures: those of training, whatever made the pictures."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from aeic_lightning import __version__
from aeic_lightning.errors import UserError
from aeic_lightning.files import SAMPLE_PHOTOS, find_images, image_names, require_images
from aeic_lightning.metrics.patches import Features, PatchDistances
from aeic_lightning.metrics.quality import DESCRIBED, ImageQuality
from aeic_lightning.models.backbone_files import require_backbone
from aeic_lightning.provenance import command_line, git_state, user_repository
from aeic_lightning.study.results import summary_rows
from datamodules.base import ImageFiles
from datamodules.crops import centre_crop
from datamodules.sample_photos import SamplePhotos

BACKBONES = ("lite0", "lite2", "alex", "vgg", "inception")
BY_NAME = ("hed",)
"""Backbones that are used only where they are asked for."""
PACKAGES = ("torch", "torchmetrics", "timm", "lpips", "numpy", "pillow")


@dataclass(frozen=True)
class Sample:
    """One image, coded and decoded."""

    name: str
    x: Tensor  # (3, H, W) uint8, the original
    x_hat: Tensor  # (3, H, W) uint8, what the receiver gets
    bytes: int | None = None  # of the file; None if there is none
    bits_estimate: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)  # more columns of the row: times, settings

    def on(self, device: torch.device) -> "Sample":
        """The same with its pictures on a device."""
        return replace(self, x=self.x.to(device), x_hat=self.x_hat.to(device))


class Measurement:
    """Collects the metrics of one set of images.

    Args:
        quality: of each image.
        patches: FID and KID, one a backbone.
        notes: for the result.
    """

    def __init__(self, quality: ImageQuality, patches: Sequence[PatchDistances], notes: Sequence[str] = ()) -> None:
        self.quality = quality
        self.patches = list(patches)
        self.notes = list(notes)

    def to(self, device: torch.device) -> "Measurement":
        """Where the networks compute."""
        self.quality.to(device)
        for patches in self.patches:
            patches.network.to(device)
        return self

    def one(self, sample: Sample) -> tuple[dict[str, Any], list[Features]]:
        """The row of an image, and its features for each of `patches`."""
        row = self.quality.row(sample.name, sample.x, sample.x_hat, sample.bits_estimate, sample.bytes)
        return row | sample.columns, [patches.of_pair(sample.x, sample.x_hat) for patches in self.patches]

    def of(self, samples: Iterable[Sample], see: Callable[[Sample, dict], None] = lambda sample, row: None) -> dict:
        """The fields of a Result that follow from the samples: images, metrics, set_metrics, metric_info, notes.

        `see` is told of each sample and its row. A refused FID or KID has the value None, and says why.
        """

        def measured() -> Iterator[tuple[str, dict[str, Any], list[Features]]]:
            for sample in samples:
                row, features = self.one(sample)
                see(sample, row)
                yield sample.name, row, features

        return self.fields(measured())

    def fields(
        self,
        measured: Iterable[tuple[str, dict[str, Any], list[Features]]],
        machine: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The same from the name, row and features (`one`) of each image; times are of `machine`, by default this."""
        rows: list[dict[str, Any]] = []
        features: list[dict[str, Features]] = [{} for _ in self.patches]
        for name, row, seen in measured:
            rows.append(row)
            for by_name, own in zip(features, seen, strict=True):
                by_name[name] = own
        if not rows:
            raise UserError("there is no image to evaluate")
        info = dict(self.quality.info)
        set_metrics: dict[str, dict[str, Any]] = {}
        for patches, seen in zip(self.patches, features, strict=True):
            values, count, reason = patches.metrics(seen)
            refused = {name: {"value": None, "patches": count, "refused": reason} for name in patches.names}
            set_metrics |= refused | values
            info |= patches.info
        metrics = summary_rows(rows, (*DESCRIBED, *SETTINGS))
        for name in TIMES:
            info[name] = {
                "backbone": None,
                "version": f"torch {torch.__version__}",
                "options": dict(machine or this_machine()),
            }
        return {
            "images": sorted(rows, key=lambda row: row["name"]),
            "metrics": metrics,
            "set_metrics": set_metrics,
            "metric_info": {name: entry for name, entry in info.items() if name in metrics or name in set_metrics},
            "notes": list(self.notes),
            "command": command_line(),
            "versions": versions(),
            "git": git_state(),
            "user_repository": user_repository(),
        }


TIMES = ("encode_seconds", "decode_seconds")
SETTINGS = ("quality", "bytes_target", "over_target")
"""Columns of a row that say how an anchor was made."""


def measurement(
    backbones: Sequence[str] | None = None,
    patch_size: int = 256,
    min_patches: int = 400,
    min_images: int = 50,
    ms_ssim: bool = True,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> Measurement:
    """PSNR, MS-SSIM, and all metrics of these backbones: lite0 (LPIPS, DISTS, FID, KID), lite2 (LPIPS, DISTS, FID, KID,
    agreement of classes), alex (LPIPS), vgg (LPIPS, DISTS), inception (FID, KID), hed (LPIPS, DISTS); and `metrics` by
    class path (`metrics.table.read_metrics`).

    By default every backbone but hed whose weights are available; a note lists the others. Raises UserError for a
    backbone that was asked for and is missing.
    """
    known = (*BACKBONES, *BY_NAME)
    unknown = [name for name in backbones or () if name not in known]
    if unknown:
        raise UserError(f"no backbone {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [name for name in BACKBONES if _at_hand(name)] if backbones is None else list(backbones)
    quality = ImageQuality(
        ms_ssim,
        lpips=[name for name in chosen if name != "inception"],
        dists=[name for name in chosen if name in ("lite0", "lite2", "vgg", "hed")],
        same_class="lite2" in chosen,
        metrics=metrics,
    )
    with_patches: list[Any] = [b for b in chosen if b in ("lite0", "lite2", "inception")]
    patches = [PatchDistances(b, patch_size, min_patches, min_images) for b in with_patches]
    missing = [name for name in BACKBONES if name not in chosen]
    notes = [f"without metrics on {', '.join(missing)}: their weights are not here"] if backbones is None else []
    return Measurement(quality, patches, notes if missing else ())


def _at_hand(backbone: Any) -> bool:
    if backbone == "lite0":
        return True
    try:
        require_backbone(backbone)
    except UserError:
        return False
    return True


# ---------------------------------------------------------------------- images


class Images:
    """Named images, decoded one at a time.

    Args:
        files: where they lie.
        max_size: (height, width) of which at most the centre is taken; None keeps the full size.
    """

    def __init__(self, files: ImageFiles, max_size: tuple[int, int] | None = None) -> None:
        self.files = files
        self.max_size = max_size
        self.names = files.names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and uint8 (3, H, W)."""
        for index, name in enumerate(self.names):
            image = self.files.read(index)
            if self.max_size:
                image = centre_crop(image, *self.max_size)
            yield name, torch.from_numpy(image).permute(2, 0, 1).contiguous()


def open_images(source: str, max_size: tuple[int, int] | None = None) -> Images:
    """The images in a folder and below it, or `sample-photos`: the three validation photographs that need no folder.

    Raises UserError if there are none.
    """
    if source == SAMPLE_PHOTOS:
        photos = SamplePhotos()
        photos.setup()
        return Images(cast(ImageFiles, photos.val_images), max_size)
    require_images(source)
    root = Path(source).expanduser()
    paths = find_images(root)
    if not paths:
        raise UserError(f"no image in {source} or below it")
    return Images(ImageFiles(paths, image_names(root, paths)), max_size)


# ---------------------------------------------------------------------- with what


def versions() -> dict[str, str]:
    """Of this package and of those that metrics depend on."""
    ours = {"aeic_lightning": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in PACKAGES}


def this_machine() -> dict[str, Any]:
    """What times depend on."""
    return {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}

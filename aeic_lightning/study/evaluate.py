"""Figures of a codec on a set of images, from the files that it writes and the pictures that they decode to.

sources of (original, reconstruction, bytes)            figures, the same as those of training
  checkpoint: real streams, written and read back  ─┐
  files: two folders, joined by name               ─┼─> Measurement (ImageQuality, PatchDistances) ─> Result
  anchors: JPEG and others (`evaluation.anchors`)  ─┘
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from aeic_lightning import __version__
from aeic_lightning.bitstream.stream import Bitstream, reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model, read_checkpoint
from aeic_lightning.errors import UserError
from aeic_lightning.files import file_name
from aeic_lightning.images import from_uint8, save_png
from aeic_lightning.metrics.patches import Features, PatchDistances
from aeic_lightning.metrics.quality import DESCRIBED, ImageQuality
from aeic_lightning.models.backbones import find_weights, full_precision
from aeic_lightning.provenance import command_line
from aeic_lightning.study.results import (
    Label,
    Result,
    encoder_costs,
    run_labels,
    summary_rows,
    with_part_in_training,
)
from datamodules.base import ImageFiles
from datamodules.crops import centre_crop
from datamodules.image_folder import find_images, image_names
from datamodules.sample_photos import SamplePhotos

SAMPLE_PHOTOS = "sample-photos"
BACKBONES = ("lite0", "alex", "vgg", "inception")
PACKAGES = ("torch", "torchmetrics", "timm", "lpips", "numpy", "pillow")


@dataclass(frozen=True)
class Sample:
    """One image, coded and decoded."""

    name: str
    x: Tensor  # (3, H, W) uint8, the original
    x_hat: Tensor  # (3, H, W) uint8, what the receiver gets
    bytes: int | None = None  # of the file; None if there is none
    bits_estimate: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)  # more columns of the row: times, settings


class Measurement:
    """Collects the figures of one set of images.

    Args:
        quality: of each image.
        patches: FID and KID, one a backbone.
        notes: for the result.
    """

    def __init__(self, quality: ImageQuality, patches: Sequence[PatchDistances], notes: Sequence[str] = ()) -> None:
        self.quality = quality
        self.patches = list(patches)
        self.notes = list(notes)

    def of(self, samples: Iterable[Sample], see: Callable[[Sample, dict], None] = lambda sample, row: None) -> dict:
        """The fields of a Result that follow from the samples: images, metrics, set_metrics, metric_info, notes.

        `see` is told of each sample and its row. A refused FID or KID has the value None, and says why.
        """
        rows: list[dict[str, Any]] = []
        features: list[dict[str, Features]] = [{} for _ in self.patches]
        for sample in samples:
            row = self.quality.row(sample.name, sample.x, sample.x_hat, sample.bits_estimate, sample.bytes)
            rows.append(row | sample.figures)
            for patches, seen in zip(self.patches, features, strict=True):
                seen[sample.name] = patches.of_pair(sample.x, sample.x_hat)
            see(sample, rows[-1])
        if not rows:
            raise UserError("there is no image to evaluate")
        info = dict(self.quality.info)
        set_metrics: dict[str, dict[str, Any]] = {}
        for patches, seen in zip(self.patches, features, strict=True):
            figures, count, reason = patches.figures(seen)
            refused = {name: {"value": None, "patches": count, "refused": reason} for name in patches.names}
            set_metrics |= refused | figures
            info |= patches.info
        metrics = summary_rows(rows, (*DESCRIBED, *SETTINGS))
        for name in TIMES:
            info[name] = {"backbone": None, "version": f"torch {torch.__version__}", "options": machine()}
        return {
            "images": sorted(rows, key=lambda row: row["name"]),
            "metrics": metrics,
            "set_metrics": set_metrics,
            "metric_info": {name: entry for name, entry in info.items() if name in metrics or name in set_metrics},
            "notes": list(self.notes),
            "command": command_line(),
            "versions": versions(),
        }


TIMES = ("encode_seconds", "decode_seconds")
SETTINGS = ("quality", "bytes_target", "over_target")
"""Columns of a row that say how an anchor was made."""


def measurement(
    backbones: Sequence[str] | None = None, patch_size: int = 256, min_patches: int = 400, ms_ssim: bool = True
) -> Measurement:
    """PSNR, MS-SSIM, and all figures of these backbones: lite0 (LPIPS, DISTS, FID, KID), alex (LPIPS), vgg (LPIPS,
    DISTS), inception (FID, KID).

    By default every backbone whose weights are at hand; a note says which are not. Raises UserError for a backbone that
    was asked for and is missing.
    """
    unknown = [name for name in backbones or () if name not in BACKBONES]
    if unknown:
        raise UserError(f"no backbone {unknown[0]!r}; there are {', '.join(BACKBONES)}")
    chosen = [name for name in BACKBONES if _at_hand(name)] if backbones is None else list(backbones)
    quality = ImageQuality(
        ms_ssim,
        lpips=[name for name in chosen if name != "inception"],
        dists=[name for name in chosen if name in ("lite0", "vgg")],
    )
    patches = [PatchDistances(b, patch_size, min_patches) for b in chosen if b in ("lite0", "inception")]
    missing = [name for name in BACKBONES if name not in chosen]
    notes = [f"without figures on {', '.join(missing)}: their weights are not at hand"] if backbones is None else []
    return Measurement(quality, patches, notes if missing else ())


def _at_hand(backbone: str) -> bool:
    if backbone == "lite0":
        return True
    try:
        find_weights(backbone)
    except UserError:
        return False
    return backbone != "inception" or find_spec("torch_fidelity") is not None


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
        return Images(photos.val_images, max_size)
    root = Path(source).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {source}; give a folder of images, or {SAMPLE_PHOTOS}")
    paths = find_images(root)
    if not paths:
        raise UserError(f"no image in {source} or below it")
    return Images(ImageFiles(paths, image_names(root, paths)), max_size)


# ---------------------------------------------------------------------- what is evaluated


class Checkpoint:
    """A trained model that writes its streams and reads them back, as `compress` and `decompress` do.

    Args:
        path: of the checkpoint.
        device: where the receiver's networks run; the sender and the coder are on the CPU, as always.
    """

    def __init__(self, path: str | Path, device: torch.device) -> None:
        self.path = Path(path)
        self.device = device
        checkpoint = read_checkpoint(path)
        self.step = checkpoint.get("global_step")
        self.sizes = checkpoint["model_config"]
        self.receiver = load_model(path).to(self.device)
        # A model of its own, since the coder must stay on the CPU.
        self.sender = load_model(path, receiver=False) if self.device.type != "cpu" else self.receiver
        self.bitstream = Bitstream(self.sender)

    def samples(self, images: Images) -> Iterator[Sample]:
        """Each image, by way of its file."""
        self._code("warm-up", torch.zeros(3, 64, 64, dtype=torch.uint8))  # the first call of a network is slower
        for name, x in images:
            yield self._code(name, x)

    @torch.inference_mode()
    def _code(self, name: str, x: Tensor) -> Sample:
        try:
            image = from_uint8(x)[None]
            began = time.perf_counter()
            data = self.bitstream.encode(image)
            encoded = time.perf_counter()
            x_hat = reconstruct(self.receiver, self.bitstream.decode(data))
            decoded = time.perf_counter()
            with full_precision(image):
                bits_estimate = float(self.sender.estimate_bits(image))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        times = {"encode_seconds": encoded - began, "decode_seconds": decoded - encoded}
        return Sample(name, x, x_hat, len(data), bits_estimate, times)

    def describe(self) -> dict[str, Any]:
        """Name, labels, costs and step, from the run folder that the checkpoint lies in, else from the checkpoint."""
        run = self.path.resolve().parent.parent
        config = _run_config(run)
        if config is not None:
            seed = config.get("seed_everything")
            labels = run_labels(config, seed if isinstance(seed, int) and not isinstance(seed, bool) else None)
            return {"name": run.name, "labels": labels, "costs": encoder_costs(config), "step": self.step}
        bare = {"model": {"class_path": "", "init_args": self.sizes}}
        labels = {name: value for name, value in run_labels(bare, None).items() if name != "role"}
        return {"name": self.path.stem, "labels": labels, "costs": encoder_costs(bare), "step": self.step}

    @property
    def config(self) -> dict[str, Any] | None:
        """Of the run that made the checkpoint, if it lies in its folder."""
        return _run_config(self.path.resolve().parent.parent)


def _run_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text())
        config["model"]["class_path"], config["model"]["init_args"]["loss"]  # another tool's file has neither
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    return config


def torch_device(name: str) -> torch.device:
    """The device of that name. Raises UserError where there is none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name!r} here ({str(error).splitlines()[0]}); cpu is always there") from error
    return device


def file_samples(originals: Images, reconstructions: Images, streams: Path | None) -> Iterator[Sample]:
    """Originals and reconstructions joined by name, with the sizes of the files in the folder `streams`.

    Raises UserError before anything is measured where the names are not the same on all sides, and for a pair whose
    sizes differ.
    """
    _check_names("reconstruction", originals.names, reconstructions.names)
    files: dict[str, int] = {}
    if streams is not None:
        if not streams.is_dir():
            raise UserError(f"there is no folder {streams} of compressed files")
        found = sorted(p for p in streams.rglob("*") if p.is_file() and not p.name.startswith("."))
        files = dict(zip(image_names(streams, found), (p.stat().st_size for p in found), strict=True))
        _check_names("compressed file", originals.names, list(files))
    order = {name: index for index, name in enumerate(reconstructions.names)}
    for name, x in originals:
        x_hat = torch.from_numpy(reconstructions.files.read(order[name])).permute(2, 0, 1).contiguous()
        if x.shape != x_hat.shape:
            sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (x, x_hat)]
            raise UserError(f"{name}: the original is {sizes[0]}, its reconstruction {sizes[1]}")
        yield Sample(name, x, x_hat, files.get(name))


def _check_names(what: str, originals: Sequence[str], others: Sequence[str]) -> None:
    for side, lacking, word in (
        (set(originals) - set(others), f"no {what}", "original"),
        (set(others) - set(originals), "no original", what),
    ):
        if side:
            raise UserError(
                f"{len(originals)} originals and {len(others)} {what}s: {len(side)} {word}(s) with {lacking}, such as "
                f"{min(side)!r}; pairs are joined by name (the path in the folder without its suffix)"
            )


# ---------------------------------------------------------------------- results


def evaluate_checkpoint(
    path: str | Path,
    images: Images,
    measure: Measurement,
    *,
    name: str | None = None,
    labels: dict[str, Label] | None = None,
    device: str = "cpu",
    pictures: Path | None = None,
    quiet: bool = False,
) -> Result:
    """Evaluate a checkpoint by way of the files that it writes.

    Args:
        path: the checkpoint.
        images: what to code.
        measure: the figures.
        name, labels: instead of, and beside, those of the run that the checkpoint lies in.
        device: of the receiver's networks.
        pictures: folder for the reconstructions and originals as PNG.
        quiet: print nothing.
    """
    place = torch_device(device)
    measure.quality.to(place)
    for patches in measure.patches:
        patches.network.to(place)
    checkpoint = Checkpoint(path, place)
    progress = Progress(len(images), pictures, quiet)
    fields = measure.of(_on(checkpoint.device, checkpoint.samples(images)), progress.see)
    if checkpoint.config:
        fields["metric_info"] = with_part_in_training(fields["metric_info"], checkpoint.config)
    described = checkpoint.describe()
    described["labels"] |= labels or {}
    described["name"] = name or described["name"]
    return Result(kind="checkpoint", git=git(), pictures=progress.written, **described, **fields)


def evaluate_files(
    originals: Images,
    reconstructions: Images,
    measure: Measurement,
    *,
    name: str,
    labels: dict[str, Label] | None = None,
    streams: Path | None = None,
    pictures: Path | None = None,
    quiet: bool = False,
) -> Result:
    """Evaluate pictures that some codec left in a folder; see `file_samples` and `evaluate_checkpoint`."""
    progress = Progress(len(originals), pictures, quiet)
    fields = measure.of(file_samples(originals, reconstructions, streams), progress.see)
    if streams is None:
        fields["notes"].append("without rate: no compressed files were given")
    return Result(kind="files", name=name, labels=labels or {}, git=git(), pictures=progress.written, **fields)


class Progress:
    """A line an image, and its pictures if they are wanted."""

    def __init__(self, count: int, pictures: Path | None = None, quiet: bool = False, prefix: str = "") -> None:
        self.count = count
        self.folder = pictures
        self.quiet = quiet
        self.prefix = prefix
        self.seen = 0
        self.written: dict[str, Path] = {}

    def see(self, sample: Sample, row: dict[str, Any]) -> None:
        """One more image was measured."""
        self.seen += 1
        if self.folder:
            path = self.folder / f"{file_name(sample.name)}.png"
            save_png(path, sample.x_hat)
            save_png(path.with_name(f"{path.stem}_original.png"), sample.x)
            self.written[sample.name] = path
        if not self.quiet:
            rate = f"{row['bytes']} bytes  {row['bpp']:.5f} bpp  " if "bpp" in row else ""
            times = "  ".join(f"{name.split('_')[0]} {row[name]:.2f} s" for name in TIMES if name in row)
            size = f"{row['width']}x{row['height']}"
            line = f"{self.prefix}[{self.seen}/{self.count}] {sample.name}  {size}  {rate}{row['psnr']:.2f} dB  {times}"
            print(line.rstrip(), flush=True)


def summary(result: Result) -> str:
    """The means as a table in Markdown, with backbone and part in training of each figure."""
    lines = ["| figure | mean | images | backbone | in training |", "|---|---|---|---|---|"]
    for name, figure in result.metrics.items():
        info = result.metric_info.get(name, {})
        mean = "infinite" if figure["mean"] in (None, float("inf")) else f"{figure['mean']:.5g}"
        lines.append(f"| {name} | {mean} | {figure['images']} | {_words(info)} |")
    for name, figure in result.set_metrics.items():
        info = result.metric_info.get(name, {})
        value = "refused" if figure["value"] is None else f"{figure['value']:.5g}"
        lines.append(f"| {name} | {value} | {figure['patches']} patches | {_words(info)} |")
    remarks = dict.fromkeys([f["refused"] for f in result.set_metrics.values() if "refused" in f])
    return "\n".join(
        [*lines, "", *(f"- FID and KID refused: {remark}" for remark in remarks), *(f"- {n}" for n in result.notes)]
    )


def _words(info: dict[str, Any]) -> str:
    return f"{info.get('backbone') or '-'} | {info.get('in_training', '-')}"


def _on(device: torch.device, samples: Iterable[Sample]) -> Iterator[Sample]:
    for s in samples:
        yield Sample(s.name, s.x.to(device), s.x_hat.to(device), s.bytes, s.bits_estimate, s.figures)


def versions() -> dict[str, str]:
    """Of this package and of those that figures depend on."""
    ours = {"aeic_lightning": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """What times depend on."""
    return {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}


def git() -> dict[str, Any] | None:
    from aeic_lightning.provenance import git_state

    return git_state()

"""Metrics of a codec on a set of images, from the files that it writes and the pictures that they decode to.

sources of (original, reconstruction, bytes)            metrics, the same as those of training
  checkpoint: real streams, written and read back  ─┐
  files: two folders, joined by name               ─┼─> Measurement (ImageQuality, PatchDistances) ─> Result
  anchors: JPEG and others (`study.anchors`)       ─┘
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor

from aeic_lightning.bitstream.stream import reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model, read_checkpoint
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.files import file_name, image_names, locate
from aeic_lightning.images import from_uint8, save_png
from aeic_lightning.models.codec.context import bits
from aeic_lightning.run_folder import read_record
from aeic_lightning.study.measurement import TIMES, Images, Measurement, Sample, this_machine
from aeic_lightning.study.results import Label, Result, experiment_of, with_part_in_training
from aeic_lightning.study.run_description import encoder_costs, run_labels, seen_in_training

# ---------------------------------------------------------------------- what is evaluated


class Checkpoint:
    """A trained model that writes its streams and reads them back, as `compress` and `decompress` do.

    Args:
        path: of the checkpoint.
        device: name of that of the receiver's networks; the sender and the coder are on the CPU, as always.
        realism: of the pictures, as `decompress` takes it.

    Raises UserError where there is no such device, for a checkpoint that cannot be read, and for a realism that the
    model does not have.
    """

    def __init__(self, path: str | Path, device: str = "cpu", realism: float | None = None) -> None:
        self.path = locate(path)
        self.device = torch_device(device)
        checkpoint = read_checkpoint(path)
        self.realism = realism or None
        # Weights apart from a run bring along what they were trained on.
        self.objective = checkpoint.get("realistic_objective" if realism else "objective")
        self.step = checkpoint.get("global_step")
        self.sizes = checkpoint["model_config"]
        model = load_model(path)
        self.receiver = model.at_realism(realism).for_decoding().to(self.device)
        # A model of its own, since the coder must stay on the CPU.
        sender = load_model(path, receiver=False) if self.device.type != "cpu" else model
        self.bitstream = Codec(sender).bitstream
        self.bitstream.watch = self._count
        self._bits = 0.0  # likelihood estimate of what the file that is written holds of y
        self._warm = False

    def samples(self, images: Images, point: "RatePoint") -> Iterator[Sample]:
        """Each image, by way of its file."""
        self.warm_up(point)
        for name, x in images:
            yield self.code(name, x, point)

    def warm_up(self, point: "RatePoint") -> None:
        """Code a small image once: the first call of a network is slower."""
        if not self._warm:
            self.code("warm-up", torch.zeros(3, 64, 64, dtype=torch.uint8), RatePoint(level=point.level))
            self._warm = True

    def _count(self, residual: Tensor, scale: Tensor, coded: Tensor) -> None:
        likelihood = self.bitstream.shared.conditional.likelihood(residual, torch.zeros_like(scale), scale)
        self._bits += float(bits(torch.where(coded, likelihood, 1.0)).sum())

    @torch.inference_mode()
    def code(self, name: str, x: Tensor, point: "RatePoint") -> Sample:
        """One image, uint8 (3, H, W), by way of its file."""
        columns: dict[str, Any] = {}
        try:
            image = from_uint8(x)[None]
            level = point.level
            if point.bpp is not None:
                level, columns["over_target"] = self._level_within(image, point.bpp)
            self._bits = 0.0
            began = time.perf_counter()
            file = self.bitstream.encode_fully(image, level)
            encoded = time.perf_counter()
            latents = self.bitstream.decode(file.data)
            x_hat = reconstruct(self.receiver, latents)
            decoded = time.perf_counter()
            bits_estimate = self._bits + float(bits(self.bitstream.model.prior.likelihood(file.z_hat)))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if latents.level is not None:
            columns["level"] = latents.level
        columns |= {"encode_seconds": encoded - began, "decode_seconds": decoded - encoded}
        return Sample(name, x, x_hat, len(file.data), bits_estimate, columns)

    def _level_within(self, image: Tensor, bpp: float) -> tuple[float | None, bool]:
        """The level of the best file within `bpp`, and whether even the smallest file is larger."""
        try:
            return self.bitstream.encode_at(image, bpp=bpp).level, False
        except UserError:  # no file is so small
            return (0.0 if self.bitstream.levels else None), True

    @cached_property
    def description(self) -> dict[str, Any]:
        """Name, labels, costs, step and settings, from the run folder of the checkpoint, else from the checkpoint."""
        run = self.path.resolve().parent.parent
        config = None if self.path.is_dir() else run_config(run)
        if config is not None:
            said = experiment_of(run, read_record(run) or {"seed": config.get("seed_everything")})
            own = {name: said[name] for name in ("labels", "costs", "settings")}
            return {"name": run.name, "step": self.step} | own
        bare = {"model": {"class_path": "", "init_args": self.sizes}}
        labels = {name: value for name, value in run_labels(bare, None).items() if name != "role"}
        return {"name": self.path.stem, "labels": labels, "costs": encoder_costs(bare), "step": self.step}

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """Of the run that made the checkpoint, if it is in its folder; of weights at least the objective."""
        if self.path.is_dir():
            return {"model": {"init_args": {"objective": self.objective}}} if self.objective else None
        return run_config(self.path.resolve().parent.parent)


@dataclass(frozen=True)
class RatePoint:
    """At which rate a model of many rates is evaluated.

    Args:
        level: a rate level; None for the middle one.
        bpp: instead, the best file of each image within this many bits per pixel; where there is none, the smallest.
    """

    level: float | None = None
    bpp: float | None = None

    @property
    def labels(self) -> dict[str, Label]:
        """What tells its result from those at other rates."""
        given = {"level": self.level, "target": self.bpp}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def words(self) -> str:
        """For the name of a result; empty where nothing was asked for."""
        return (
            "" if not self.labels else f" at {self.bpp:g} bpp" if self.bpp is not None else f" at level {self.level:g}"
        )


def run_config(folder: Path) -> dict[str, Any] | None:
    """`config.yaml` of a run folder; None where there is none, or it is another tool's."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text())
        known = {"objective", "loss"} & set(config["model"]["init_args"])  # `loss` in runs of before
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    return config if known and "class_path" in config["model"] else None  # another tool's file has neither


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

    Raises UserError before anything is measured where the names are not the same on all sides, and for an image whose
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


class Processes(Protocol):
    """Processes that measure images side by side: `study.evaluation_workers`."""

    count: int
    threads: int

    def measure(self, images: Images, point: RatePoint, pictures: bool, see: Any) -> Any:
        """The name, row and features of each image."""


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    images: Images,
    measure: Measurement,
    *,
    point: RatePoint = RatePoint(),
    name: str | None = None,
    labels: dict[str, Label] | None = None,
    pictures: Path | None = None,
    quiet: bool = False,
    workers: "Processes | None" = None,
) -> Result:
    """Evaluate a checkpoint by way of the files that it writes.

    Args:
        checkpoint: the model, opened once for all rates and sets of images.
        images: what to code.
        measure: the metrics.
        point: the rate, for a model of many rates.
        name, labels: instead of, and beside, those of the checkpoint's run.
        pictures: folder for the reconstructions and originals as PNG.
        quiet: print nothing.
        workers: processes that code and measure the images instead of this one, with the same checkpoint and metrics.
    """
    progress = Progress(len(images), pictures, quiet)
    if workers:
        spread = this_machine() | {"threads": workers.threads, "processes": workers.count}
        fields = measure.fields(workers.measure(images, point, pictures is not None, progress.see), spread)
    else:
        measure.to(checkpoint.device)
        samples = (sample.on(checkpoint.device) for sample in checkpoint.samples(images, point))
        fields = measure.of(samples, progress.see)
    if checkpoint.config:
        fields["metric_info"] = with_part_in_training(fields["metric_info"], seen_in_training(checkpoint.config))
    described = dict(checkpoint.description)
    painted = {} if checkpoint.realism is None else {"realism": checkpoint.realism}
    described["labels"] = described["labels"] | painted | point.labels | (labels or {})
    described["name"] = (name or described["name"]) + point.words
    return Result(kind="checkpoint", pictures=progress.written, **described, **fields)


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
    return Result(kind="files", name=name, labels=labels or {}, pictures=progress.written, **fields)


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
    """The means as a table in Markdown, with backbone and part in training of each metric."""
    lines = ["| metric | mean | images | backbone | in training |", "|---|---|---|---|---|"]
    for name, metric in result.metrics.items():
        info = result.metric_info.get(name, {})
        mean = "infinite" if metric["mean"] in (None, float("inf")) else f"{metric['mean']:.5g}"
        lines.append(f"| {name} | {mean} | {metric['images']} | {_words(info)} |")
    for name, metric in result.set_metrics.items():
        info = result.metric_info.get(name, {})
        value = "refused" if metric["value"] is None else f"{metric['value']:.5g}"
        lines.append(f"| {name} | {value} | {metric['patches']} patches | {_words(info)} |")
    remarks = dict.fromkeys([f["refused"] for f in result.set_metrics.values() if "refused" in f])
    return "\n".join(
        [*lines, "", *(f"- FID and KID refused: {remark}" for remark in remarks), *(f"- {n}" for n in result.notes)]
    )


def _words(info: dict[str, Any]) -> str:
    return f"{info.get('backbone') or '-'} | {info.get('in_training', '-')}"

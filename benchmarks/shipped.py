"""Models of this package beside their rivals at equal bytes: `python -m benchmarks.shipped`.

    python -m benchmarks.shipped --images photos/test/kodak -o results/kodak --minutes 60
    python -m benchmarks.shipped --images photos/test/mixed -o results/mixed --apart wallpapers

For every rate, each model codes each image within this rate. Each rival then gets the bytes of the first
model's file of that image: JPEG, WebP, AVIF and JPEG XL, and AVIF and others at 1/2, 1/3 and 1/4 of the size, enlarged
with Lanczos or a trained network. All metrics are of the pictures that the files decode to.

Images are measured one by one, in an order whose every beginning is spread over the set, and kept in `--work`. A run
that was stopped goes on there, and a codec or rate that is added later is measured alone. Written are, of all images
with every codec and rate: `results.json` and `.csv` (one row per image), `table.md`, `crops.png` and `curves.svg`.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.metrics.patches import Features, PatchDistances
from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.models.backbone_files import require_backbone
from aeic_lightning.provenance import command_line
from aeic_lightning.study.anchors import Anchor, decoded, find_file, library, open_search, over_target_notes
from aeic_lightning.study.evaluate import Checkpoint, RatePoint
from aeic_lightning.study.measurement import Images, Measurement, Sample, open_images
from aeic_lightning.study.paper_points import IMAGES, published
from aeic_lightning.study.results import Label, Result, with_part_in_training, write_results
from aeic_lightning.study.run_description import seen_in_training
from benchmarks.shipped_curves import curves
from benchmarks.shipped_page import crops, page
from benchmarks.shipped_store import Measured, Store, centre, digest, spread

RATES = (0.03, 0.06, 0.12, 0.25)
CODECS = ("jpeg", "webp", "jxl", "avif", "avif/2", "avif/3", "avif/4", "webp/2", "jxl/2")
MIN_PATCHES, MIN_IMAGES = 64, 8
"""Below which there is no FID or KID. Both are then of few patches: to be compared within one table only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the tables and the picture. 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shipped", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="a folder of photographs")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where measured images are kept, so that a stopped "
                        "run goes on (default: build/shipped/NAME, NAME: that of the results' folder)")  # fmt: skip
    parser.add_argument("--models", nargs="+", default=["small-student", "small-teacher"], metavar="MODEL",
                        help="shipped models by name, folders of weights or checkpoints; the rivals match the "
                        "first; with @1 (0 to 1) after it, at this realism")  # fmt: skip
    parser.add_argument("--bpp", nargs="+", type=float, default=list(RATES), metavar="R", help="bits per pixel")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), metavar="NAME",
                        help=f"rivals, as `anchors --codecs` takes them (default: {' '.join(CODECS)})")  # fmt: skip
    parser.add_argument("--backbones", nargs="+", default=["lite0", "lite2", "hed"], metavar="NAME",
                        help="networks of LPIPS and DISTS: lite0, lite2, hed, alex, vgg (default: three)")  # fmt: skip
    parser.add_argument("--apart", nargs="+", default=[], metavar="FOLDER", help="folders below --images that get a "
                        "table of their own, apart from the others")  # fmt: skip
    parser.add_argument("--published", choices=list(IMAGES), help="what the images are, for the points that others "
                        "published of them, in the curves")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="measure the first N images of the spread order alone")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no further image after M minutes (0: write "
                        "the tables of what was measured)")  # fmt: skip
    parser.add_argument("--crop-bpp", type=float, metavar="R", help="the rate of the picture (default: the second)")
    parser.add_argument("--shrink", type=int, metavar="N", help="reduce larger images to N pixels on the longer side")
    args = parser.parse_args(arguments)
    try:
        measure(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> None:
    """The whole benchmark."""
    images = open_images(args.images)
    anchors = [Anchor.parse(name) for name in args.codecs]
    models = {Path(model).name: opened(model) for model in args.models}
    figures = measurement(args.backbones)
    info = {name: entry for name, entry in figures.quality.info.items() if "bpp" not in name}
    settings = {
        "models": {name: digest(model.path) for name, model in models.items()},
        "metrics": info | figures.patches[0].info,
        "shrink": args.shrink,
    }
    work = args.work or Path("build/shipped") / args.out.resolve().name
    store = Store(work, settings)
    names = spread(images.names)[: args.limit]
    benchmark = Benchmark(models, anchors, args.bpp, figures)
    began, complete = time.monotonic(), []
    for number, name in enumerate(names, 1):
        known = store.read(name)
        if benchmark.missing(known) and (args.minutes is None or time.monotonic() - began < 60 * args.minutes):
            print(f"[{number}/{len(names)}] {name}", flush=True)
            benchmark.image(known, read(images, name, args.shrink))
            store.write(known)
        if not benchmark.missing(known):
            complete.append(known)
    if not complete:
        raise UserError(f"no image of {args.images} was measured whole yet; give more --minutes")
    write(args, benchmark, complete, len(images))


def opened(model: str) -> Checkpoint:
    """A model by name or path, perhaps with @ and a realism after it."""
    path, at, realism = model.rpartition("@")
    try:
        return Checkpoint(path, realism=float(realism)) if at else Checkpoint(model)
    except ValueError as error:
        raise UserError(f"{model}: after the @ comes a realism from 0 to 1") from error


def write(args: argparse.Namespace, benchmark: "Benchmark", complete: list[Measured], count: int) -> None:
    """The results, the tables and the picture."""
    apart = {folder: [m for m in complete if m.name.startswith(f"{folder}/")] for folder in args.apart}
    if empty := [folder for folder, found in apart.items() if not found]:
        raise UserError(f"--apart {empty[0]}: no image in that folder below {args.images} was measured")
    rest = [m for m in complete if not any(m in found for found in apart.values())]
    groups = {"all others" if apart else "": rest} | apart
    sections = {group: benchmark.results(found) for group, found in groups.items() if found}
    everything = [
        result for group, by_rate in sections.items() for found in by_rate.values() for result in grouped(group, found)
    ]
    write_results(args.out / "results.json", everything)
    order = sorted(m.name for m in complete)
    subset = (
        "" if len(order) == count else f" of {count} (the first {len(order)} of the spread order: {', '.join(order)})"
    )
    head = f"{len(order)} images{subset}. Command: `{command_line()}`"
    write_whole(args.out / "table.md", text := page(head, sections, len(benchmark.models)))
    rate = args.crop_bpp or args.bpp[min(1, len(args.bpp) - 1)]
    found = next(iter(sections.values()))[rate]
    sheet = crops(rate, complete, [(result.labels["codec"], result) for result in found])
    write_whole(args.out / "crops.png", png(sheet))
    others = published(dataset=args.published) if args.published else []
    write_whole(args.out / "curves.svg", curves(next(iter(sections.values())), others))
    print(f"\n{text}")


def grouped(group: str, found: list[Result]) -> list[Result]:
    """The results, with the folder that they are of as a label."""
    if not group:
        return found
    return [replace(r, name=f"{r.name}, {group}", labels=r.labels | {"images": group}) for r in found]


def png(image: Image.Image) -> bytes:
    """The file of a picture."""
    image.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return buffer.getvalue()


def measurement(backbones: Sequence[Any]) -> Measurement:
    """PSNR, MS-SSIM, SSIMULACRA2; LPIPS and DISTS of these networks; agreement of classes, FID and KID on Lite2;
    the share of text that can still be read, on the images that have some."""
    for name in backbones:
        require_backbone(name)
    quality = ImageQuality(
        lpips=backbones,
        dists=[name for name in backbones if name != "alex"],
        same_class=True,
        metrics=[
            {"class_path": "aeic_lightning.metrics.ssimulacra2.SSIMULACRA2", "higher": True},
            {"class_path": "aeic_lightning.metrics.text.TextLegibility", "higher": True, "digits": 2},
        ],
    )
    return Measurement(quality, [PatchDistances("lite2", min_patches=MIN_PATCHES, min_images=MIN_IMAGES)])


def read(images: Images, name: str, side: int | None) -> torch.Tensor:
    """An image, uint8 (3, H, W), with at most `side` pixels on the longer side (Lanczos)."""
    image = Image.fromarray(images.files.read(images.names.index(name)))
    if side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class Benchmark:
    """Models and rivals at several rates, on one image after another.

    Args:
        models: by name; the bytes of the first one's files are the rivals' targets.
        anchors: the rivals.
        rates: bits per pixel.
        figures: the metrics.
    """

    def __init__(
        self, models: dict[str, Checkpoint], anchors: Sequence[Anchor], rates: Sequence[float], figures: Measurement
    ) -> None:
        self.models = models
        self.anchors = {anchor.name: anchor for anchor in anchors}
        self.rates = list(rates)
        self.figures = figures
        self.codecs = [*models, *self.anchors]
        self.warm = False

    def missing(self, measured: Measured) -> list[tuple[float, str]]:
        """What is not measured yet of an image."""
        return [(r, codec) for codec in self.codecs for r in self.rates if not measured.has(r, codec)]

    def image(self, measured: Measured, x: torch.Tensor) -> None:
        """Measure what is missing of the image `x`, uint8 (3, H, W)."""
        measured.arrays["crop"] = centre(x.permute(1, 2, 0).numpy())
        if not self.warm:  # the first call of a network is slower
            for model in self.models.values():
                model.code("warm-up", torch.zeros(3, 64, 64, dtype=torch.uint8), RatePoint(level=0.0))
            self.warm = True
        coded: dict[str, Callable[[float], Sample]] = {
            name: lambda rate, model=model: model.code(measured.name, x, RatePoint(bpp=rate))
            for name, model in self.models.items()
        }
        ours = next(iter(self.models))
        for name, anchor in self.anchors.items():
            if any(codec == name for _, codec in self.missing(measured)):
                search = open_search(anchor, x)
                coded[name] = lambda rate, anchor=anchor, search=search: decoded(
                    anchor, measured.name, x, find_file(search, measured.row(rate, ours)["bytes"])
                )
        last: tuple[Sample, dict[str, Any], Features] | None = None
        for rate, codec in self.missing(measured):  # models first, and a codec's rates one after another
            sample = coded[codec](rate)
            if last and last[0].bytes == sample.bytes and torch.equal(last[0].x_hat, sample.x_hat):  # its smallest file
                _, row, features = last
            else:
                row = self.figures.quality.row(sample.name, x, sample.x_hat, sample.bits_estimate, sample.bytes)
                features = self.figures.patches[0].of_pair(x, sample.x_hat)
            last = sample, row, features
            crop = centre(sample.x_hat.permute(1, 2, 0).numpy())
            columns = {"bytes_target": int(rate * x[0].numel() / 8)} | sample.columns
            measured.add(rate, codec, row | columns, features, crop)
            print(f"  {measured.key(rate, codec)}: {sample.bytes} bytes, {row['psnr']:.2f} dB", flush=True)

    def results(self, measured: Sequence[Measured]) -> dict[float, list[Result]]:
        """Of all of these images: a result for every rate and codec, models first."""
        return {rate: [self._result(rate, codec, measured) for codec in self.codecs] for rate in self.rates}

    def _result(self, rate: float, codec: str, measured: Sequence[Measured]) -> Result:
        rows = [m.row(rate, codec) for m in measured]
        fields = self.figures.fields(
            (row["name"], row, [m.features(rate, codec)]) for m, row in zip(measured, rows, strict=True)
        )
        name = f"{codec} at {rate:g} bpp"
        if codec in self.models:
            model = self.models[codec]
            fields["notes"] += over_target_notes(name, rows)
            if model.config:
                fields["metric_info"] = with_part_in_training(fields["metric_info"], seen_in_training(model.config))
            described: dict[str, Any] = model.description | {"name": name}
            described["labels"] = described["labels"] | {"codec": codec, "target": rate}
            return Result(kind="checkpoint", **described, **fields)
        anchor, ours = self.anchors[codec], next(iter(self.models))
        name = f"{codec} at {ours} at {rate:g} bpp"
        fields["notes"] += [f"{codec}: {anchor.described}; the largest file within the target"]
        fields["notes"] += over_target_notes(name, rows)
        fields["versions"] |= library(anchor.codec)
        labels: dict[str, Label] = {"codec": codec, "target": f"{ours} at {rate:g} bpp"}
        return Result(name=name, kind="anchor", labels=labels, **fields)


if __name__ == "__main__":
    sys.exit(main())

"""Models of this package beside JPEG, WebP, AVIF and JPEG XL at equal bytes: `python -m benchmarks.shipped`.

    python -m benchmarks.shipped --images photos/test/kodak -o results/kodak

For every rate, each model codes each image within so many bits per pixel. Each conventional codec then gets the bytes
of the first model's file of that image. All figures are of the pictures that the files decode to. Written are
`results.json` and `.csv` (one row per image), `table.md` (means with 95 % intervals over images, and paired
differences), and `crops.png`.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import bootstrap

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.image_files import find_images, image_names
from aeic_lightning.images import read_image
from aeic_lightning.metrics.table import Metric, in_order
from aeic_lightning.provenance import command_line
from aeic_lightning.study.anchors import CODECS, anchors, like_target
from aeic_lightning.study.evaluate import Checkpoint, RatePoint, evaluate_checkpoint
from aeic_lightning.study.measurement import measurement, open_images
from aeic_lightning.study.results import Result, write_results

RATES = (0.03, 0.06, 0.12, 0.25)
TIMES = ("encode_seconds", "decode_seconds")
CROP = 192
"""Pixels a side of a crop in the picture."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the tables and the picture. 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shipped", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="a folder of photographs")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--models", nargs="+", default=["small-student", "small-teacher"], metavar="MODEL",
                        help="shipped models by name, folders of weights or checkpoints; the anchors match the "
                        "first")  # fmt: skip
    parser.add_argument("--bpp", nargs="+", type=float, default=list(RATES), metavar="R", help="bits per pixel")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), metavar="NAME",
                        help=f"conventional codecs, of {', '.join(CODECS)} (default: all)")  # fmt: skip
    parser.add_argument("--crop-bpp", type=float, metavar="R", help="the rate of the picture (default: the second)")
    parser.add_argument("--shrink", type=int, metavar="N", help="reduce larger images to N pixels on the longer side")
    args = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as work:
            measure(args, Path(work))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace, work: Path) -> None:
    """The whole benchmark; `work` is a folder for pictures that nobody keeps."""
    images = open_images(str(shrunken(args.images, args.shrink, work / "images")) if args.shrink else args.images)
    figures = measurement(["lite0", "lite2"])
    models = {Path(model).name: Checkpoint(model) for model in args.models}
    by_rate: dict[float, list[Result]] = {
        rate: [
            evaluate_checkpoint(model, images, figures, point=RatePoint(bpp=rate), name=name,
                                pictures=work / f"{name} at {rate:g}")
            for name, model in models.items()
        ]
        for rate in args.bpp
    }  # fmt: skip
    targets = [like_target(found[0]) for found in by_rate.values()]
    others = iter(anchors(args.codecs, targets, images, figures, work / "anchors"))
    for _, found in itertools.product(args.codecs, by_rate.values()):  # codec by codec, each at every target
        found.append(next(others))
    write_results(args.out / "results.json", [replace(r, pictures={}) for found in by_rate.values() for r in found])
    text = page(by_rate, len(args.models))
    write_whole(args.out / "table.md", text)
    chosen = args.crop_bpp or args.bpp[min(1, len(args.bpp) - 1)]
    crops(by_rate[chosen]).save(args.out / "crops.png", optimize=True)
    print(f"\n{text}")


def shrunken(source: str, side: int, folder: Path) -> Path:
    """The images of `source` with at most `side` pixels on the longer side (Lanczos), as PNG in `folder`."""
    paths = find_images(Path(source))
    folder.mkdir()
    for name, path in zip(image_names(Path(source), paths), paths, strict=True):
        image = Image.fromarray(read_image(path))
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(folder / f"{name.replace('/', '__')}.png")
    return folder


# ---------------------------------------------------------------------- the tables


def page(by_rate: dict[float, list[Result]], models: int) -> str:
    """Both tables as Markdown. The first `models` results of each rate are of models, the others of anchors."""
    first = next(iter(by_rate.values()))[0]
    notes = dict.fromkeys(note for found in by_rate.values() for result in found for note in result.notes)
    metrics = measured(by_rate)
    info = {name: part for name in metrics if (part := first.metric_info.get(name, {}).get("in_training"))}
    ours = _called(first)
    lines = [
        f"{len(first.images)} images; means with 95 % intervals (bootstrap over images). bpp is bytes of files over "
        f"pixels; {ours} and the conventional codecs have the same bytes for each image, where a codec can make "
        "files so small. Times are seconds per image.",
        "",
        f"Command: `{command_line()}`",
        "",
        *table(by_rate),
        "",
        f"Difference to {ours} at equal bytes, image by image (other codec - {ours}); bold where the "
        f"interval excludes 0 in favour of {ours}:",
        "",
        *differences(by_rate, models),
        "",
        *(f"- {name} ({metrics[name].full}): {part} of {ours}" for name, part in info.items()),
        *(f"- {note}" for note in notes),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def measured(by_rate: dict[float, list[Result]]) -> dict[str, Metric]:
    """Every metric of quality that the images of any result have, in the order of tables."""
    results = (result for found in by_rate.values() for result in found)
    return {metric.name: metric for metric in in_order([name for result in results for name in result.metrics])}


def table(by_rate: dict[float, list[Result]]) -> list[str]:
    """A row per codec and rate: mean and half the width of its interval."""
    columns = ["bpp", *measured(by_rate), *TIMES]
    lines = ["| at most | codec | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for rate, found in by_rate.items():
        for result in found:
            cells = [_cell(name, column(result, name)) for name in columns]
            lines.append(f"| {rate:g} | {_called(result)} | " + " | ".join(cells) + " |")
    return lines


def differences(by_rate: dict[float, list[Result]], models: int) -> list[str]:
    """A row per rate and conventional codec: the mean of paired differences to the first model, with its interval."""
    metrics = measured(by_rate)
    lines = ["| at most | codec | bytes | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 3) + "|"]
    for rate, found in by_rate.items():
        ours = found[0]
        for other in found[models:]:
            cells = []
            for name, metric in metrics.items():
                values = column(other, name) - column(ours, name)
                if np.isnan(values).any():
                    cells.append("-")
                    continue
                low, high = interval(values)
                better = high < 0 if metric.higher else low > 0
                text = f"{values.mean():+.{_digits(name)}f} ({low:+.{_digits(name)}f} to {high:+.{_digits(name)}f})"
                cells.append(f"**{text}**" if better else text)
            ratio = (column(other, "bytes") / column(ours, "bytes")).mean()
            lines.append(f"| {rate:g} | {_called(other)} | {ratio:.2f}x | " + " | ".join(cells) + " |")
    return lines


def column(result: Result, name: str) -> np.ndarray:
    """A figure of every image, in the order of their names; NaN where it has none, as MS-SSIM of a small image."""
    return np.array([row.get(name, np.nan) for row in sorted(result.images, key=lambda row: row["name"])], dtype=float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean by bootstrap over the values (percentiles of 9,999 draws, seed 0)."""
    if len(values) < 2 or np.ptp(values) == 0:
        return values.mean(), values.mean()
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def _cell(name: str, values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "-"
    low, high = interval(values)
    return f"{values.mean():.{_digits(name)}f} ± {(high - low) / 2:.{_digits(name)}f}"


def _digits(name: str) -> int:
    return {"psnr": 2, "bpp": 4, **dict.fromkeys(TIMES, 2)}.get(name, 3)


def _called(result: Result) -> str:
    titles = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL"}
    return titles.get(str(result.labels.get("codec")), result.name.split(" at ")[0])


# ---------------------------------------------------------------------- the picture


def crops(found: Sequence[Result], count: int = 6) -> Image.Image:
    """Centre crops of `count` images, evenly spread over the set: the original, then each codec with its bytes.

    The images are chosen by their place in the order of names, not by how they look.
    """
    names = sorted(found[0].pictures)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]
    head, foot = 28, 22
    sheet = Image.new("RGB", ((len(found) + 1) * (CROP + 4), head + len(chosen) * (CROP + foot)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, title in enumerate(["original", *map(_called, found)]):
        draw.text((place * (CROP + 4) + 4, 5), title, "black", font)
    for line, name in enumerate(chosen):
        top = head + line * (CROP + foot)
        sizes = [next(row["bytes"] for row in result.images if row["name"] == name) for result in found]
        paths = [found[0].original(name), *(result.pictures[name] for result in found)]
        for place, (path, size) in enumerate(zip(paths, [name, *(f"{size:,} bytes" for size in sizes)], strict=True)):
            sheet.paste(_centre(Image.open(path)), (place * (CROP + 4), top))
            draw.text((place * (CROP + 4) + 4, top + CROP + 1), str(size), "#444444", font)
    return sheet


def _centre(image: Image.Image) -> Image.Image:
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    return image.crop((left, top, left + CROP, top + CROP))


if __name__ == "__main__":
    sys.exit(main())

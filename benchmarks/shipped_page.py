"""The tables and the picture of `python -m benchmarks.shipped`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import bootstrap

from aeic_lightning.metrics.table import Metric, in_order
from aeic_lightning.study.results import Result
from benchmarks.shipped_store import CROP, Measured

TIMES = ("encode_seconds", "decode_seconds")
TITLES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL"}
UPSCALERS = {"realesrgan": "Real-ESRGAN", "span": "SPAN"}
PICK = "ssimulacra2"
"""By which the rival is named that a user would pick."""

ByRate = dict[float, list[Result]]


def page(head: str, sections: dict[str, ByRate], models: int) -> str:
    """Markdown: every group of images has its tables. The first `models` results of a rate are of models."""
    lines = [head, "", *_explanation(next(iter(next(iter(sections.values())).values()))[:models])]
    for group, by_rate in sections.items():
        images = len(next(iter(by_rate.values()))[0].images)
        lines += ["", f"## {group[:1].upper()}{group[1:]} ({images} images)"] if group else []
        lines += ["", *table(by_rate), "", *best(by_rate, models), "", *differences(by_rate, models), ""]
        notes = dict.fromkeys(note for found in by_rate.values() for result in found for note in result.notes)
        lines += [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


def metrics_of(by_rate: ByRate) -> dict[str, Metric]:
    """Every metric of quality that any of these results has, those on networks of the loss last."""
    first = next(iter(by_rate.values()))[0]
    results = [result for found in by_rate.values() for result in found]
    found = in_order([name for result in results for name in [*result.metrics, *result.set_metrics]])
    trained = [m for m in found if "in the loss" in first.metric_info.get(m.name, {}).get("in_training", "")]
    late = [m for m in trained if m.name != "psnr"]
    return {m.name: m for m in [*(m for m in found if m not in late), *late]}


def _explanation(models: Sequence[Result]) -> list[str]:
    first = models[0]
    ours, trained = called(first), _in_training(first)
    others = {called(model): [name for name in _in_training(model) if name not in trained] for model in models[1:]}
    also = "".join(f" Of {name} also: {', '.join(more)}." for name, more in others.items() if more)
    return [
        "Means with 95 % intervals (bootstrap over images). bpp: bytes of files over pixels; the rivals have the bytes "
        f"of the file that {ours} makes of each image, where they can make files so small. AVIF 1/2: the picture at "
        "half of its sides, enlarged with Lanczos or with the network that is named. over: images whose smallest file "
        "is larger than the target. Times: seconds per image, on one thread.",
        "",
        f"In the loss of {ours}, or on its network: {', '.join(trained) or 'nothing'}.{also} Held out: all others. "
        "`hed` is a VGG16 that was trained on for edges after ImageNet, with equal weights for all channels: another "
        "family than EfficientNet, and not the published LPIPS or DISTS. FID and KID (here x 1000) are of few patches: "
        "compare them within this table alone."
        + (f" text_legibility is of the {text} images that have text." if (text := _with_text(first)) else ""),
    ]


def _in_training(result: Result) -> list[str]:
    """Metrics that are terms of the model's loss, or on a network of it."""
    parts = {name: info.get("in_training") for name, info in result.metric_info.items() if info.get("in_training")}
    return sorted(name for name, part in parts.items() if part != "held out")


def _with_text(result: Result) -> int:
    return len(present(column(result, "text_legibility")))


def table(by_rate: ByRate) -> list[str]:
    """A row per codec and rate: mean and half the width of its interval."""
    metrics = metrics_of(by_rate)
    columns = ["bpp", *metrics, *TIMES]
    lines = ["| at most | codec | over | " + " | ".join(columns) + " |", "|---" * (len(columns) + 3) + "|"]
    for rate, found in by_rate.items():
        for result in found:
            cells = [_cell(result, name) for name in columns]
            over = sum(bool(row.get("over_target")) for row in result.images)
            lines.append(f"| {rate:g} | {called(result)} | {over or ''} | " + " | ".join(cells) + " |")
    return lines


def takes_part(ours: Result, rival: Result) -> bool:
    """Whether a rival's files are together no larger than ours."""
    return column(rival, "bytes").sum() <= column(ours, "bytes").sum()


def best(by_rate: ByRate, models: int) -> list[str]:
    """A row per rate: the best rival by each metric, and the one with the best SSIMULACRA2, which a user would pick."""
    metrics = metrics_of(by_rate)
    ours = called(next(iter(by_rate.values()))[0])
    lines = [
        f"The best rival by each metric, of those whose files are together no larger than those of {ours}; bold where "
        f"{ours} is better. A user would pick the one with the highest SSIMULACRA2, which of these metrics follows "
        "people's ratings of compressed pictures most closely.",
        "",
        "| at most | a user would pick | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for rate, found in by_rate.items():
        rivals = [result for result in found[models:] if takes_part(found[0], result)]
        pick = _best(rivals, metrics[PICK]) if PICK in metrics else None
        cells = []
        for metric in metrics.values():
            rival = _best(rivals, metric)
            if rival is None:
                cells.append("-")
                continue
            value, mine = value_of(rival, metric.name), value_of(found[0], metric.name)
            text = f"{called(rival)} {_number(metric.name, value)}"
            cells.append(f"**{text}**" if (mine > value if metric.higher else mine < value) else text)
        lines.append(f"| {rate:g} | {called(pick) if pick else '-'} | " + " | ".join(cells) + " |")
    return lines


def _best(rivals: Sequence[Result], metric: Metric) -> Result | None:
    known = [rival for rival in rivals if not np.isnan(value_of(rival, metric.name))]
    if not known:
        return None
    return (max if metric.higher else min)(known, key=lambda rival: value_of(rival, metric.name))


def differences(by_rate: ByRate, models: int) -> list[str]:
    """A row per rate and rival: the mean of paired differences to the first model, with its interval."""
    metrics = metrics_of(by_rate)
    ours = called(next(iter(by_rate.values()))[0])
    lines = [
        f"Difference to {ours} at equal bytes, image by image (rival - {ours}); bold where the interval excludes 0 in "
        f"favour of {ours}. FID and KID have no interval:",
        "",
        "| at most | codec | bytes | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 3) + "|",
    ]
    for rate, found in by_rate.items():
        for other in found[models:]:
            cells = [_difference(found[0], other, metric) for metric in metrics.values()]
            ratio = (column(other, "bytes") / column(found[0], "bytes")).mean()
            lines.append(f"| {rate:g} | {called(other)} | {ratio:.2f}x | " + " | ".join(cells) + " |")
    return lines


def _difference(ours: Result, other: Result, metric: Metric) -> str:
    name = metric.name
    mean, bounds = difference(ours, other, name)
    if np.isnan(mean) or bounds is None:
        return "-" if np.isnan(mean) else _signed(name, mean)
    low, high = bounds
    text = f"{_signed(name, mean)} ({_signed(name, low)} to {_signed(name, high)})"
    return f"**{text}**" if (high < 0 if metric.higher else low > 0) else text


def difference(ours: Result, other: Result, name: str) -> tuple[float, tuple[float, float] | None]:
    """The mean of other - ours over the images, NaN where there is none, and its interval: none for a whole set."""
    if name in ours.set_metrics:
        return value_of(other, name) - value_of(ours, name), None
    values = present(column(other, name) - column(ours, name))
    return (float(values.mean()), interval(values)) if len(values) else (np.nan, None)


def column(result: Result, name: str) -> np.ndarray:
    """A metric of every image, in the order of their names; NaN where it has none, as MS-SSIM of a small image."""
    return np.array([row.get(name, np.nan) for row in sorted(result.images, key=lambda row: row["name"])], dtype=float)


def present(values: np.ndarray) -> np.ndarray:
    """Those of the images that have the metric: the same ones for every codec, since that depends on the original."""
    return values[~np.isnan(values)]


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean by bootstrap over the values (percentiles of 9,999 draws, seed 0)."""
    if len(values) < 2 or np.ptp(values) == 0:
        return values.mean(), values.mean()
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def value_of(result: Result, name: str) -> float:
    """A metric of a result: the mean over its images, or that of the whole set; NaN where there is none."""
    if name in result.set_metrics:
        value: Any = result.set_metrics[name]["value"]
        return np.nan if value is None else float(value)
    values = present(column(result, name))
    return float(values.mean()) if len(values) else np.nan


def _cell(result: Result, name: str) -> str:
    mean = value_of(result, name)
    if np.isnan(mean) or name in result.set_metrics:
        return "-" if np.isnan(mean) else _number(name, mean)
    low, high = interval(present(column(result, name)))
    return f"{_number(name, mean)} ± {_number(name, (high - low) / 2)}"


def _number(name: str, value: float) -> str:
    digits = {
        "psnr": 2,
        "bpp": 4,
        "ssimulacra2": 1,
        "same_class_lite2": 2,
        "text_legibility": 2,
        "fid_lite2": 1,
        "kid_lite2": 1,
    }
    return f"{value * _factor(name):.{digits.get(name, 2 if name in TIMES else 3)}f}"


def _signed(name: str, value: float) -> str:
    return ("+" if value >= 0 else "") + _number(name, value)


def _factor(name: str) -> float:
    return 1000.0 if name.startswith("kid") else 1.0


def called(result: Result) -> str:
    """What a reader knows a codec by: `AVIF 1/4, SPAN`."""
    codec = str(result.labels["codec"])
    whole, _, upscaler = codec.partition("+")
    name, _, scale = whole.partition("/")
    if result.kind != "anchor":
        return codec
    return TITLES.get(name, name) + (f" 1/{scale}" if scale else "") + (f", {UPSCALERS[upscaler]}" if upscaler else "")


# ---------------------------------------------------------------------- the picture


def crops(
    rate: float, measured: Sequence[Measured], found: Sequence[tuple[Any, Result]], count: int = 6
) -> Image.Image:
    """Centre crops of `count` images, evenly spread over the set: the original, then each codec with its bytes.

    The images are chosen by their place in the order of names, not by how they look.
    """
    ordered = sorted(measured, key=lambda m: m.name)
    chosen = [ordered[i] for i in np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)]
    head, foot = 28, 22
    sheet = Image.new("RGB", ((len(found) + 1) * (CROP + 4), head + len(chosen) * (CROP + foot)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, title in enumerate(["original", *(called(result) for _, result in found)]):
        draw.text((place * (CROP + 4) + 4, 5), title, "black", font)
    for line, m in enumerate(chosen):
        top = head + line * (CROP + foot)
        name = m.name
        while draw.textlength(name, font) > CROP:
            name = name[:-1]
        cells = [(m.crop(), name)]
        cells += [(m.crop(rate, codec), f"{m.row(rate, codec)['bytes']:,} bytes") for codec, _ in found]
        for place, (crop, words) in enumerate(cells):
            sheet.paste(Image.fromarray(crop), (place * (CROP + 4), top))
            draw.text((place * (CROP + 4) + 4, top + CROP + 1), words, "#444444", font)
    return sheet

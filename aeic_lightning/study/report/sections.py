"""The parts of the page that have plots: one for each set of images, distillation by tap, and published curves."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.table import KINDS, Metric, find_metric
from aeic_lightning.study.claims import Claim
from aeic_lightning.study.paper_points import DISTILLATION
from aeic_lightning.study.report import plots
from aeic_lightning.study.report.plots import Style
from aeic_lightning.study.results import RATES, Result, agree, sample
from aeic_lightning.study.study import Curve, ImageSet, Study, default_reference, image_sets, matching

# ---------------------------------------------------------------------- from run folders

TAP_PREFIX = "train/distill/"
MOST_POINTS = 200


def tap_losses(folder: Path) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Loss of each distilled tap from a run's TensorBoard events: side -> tap -> (steps, losses), thinned if long.

    A step that was logged twice, before and after a resume, has the later loss.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for tag in sorted(events.Tags()["scalars"], key=_tap_order):
        side, _, tap = tag.removeprefix(TAP_PREFIX).partition("/")
        if not tag.startswith(TAP_PREFIX) or side not in ("encoder", "decoder"):
            continue
        by_step = {event.step: event.value for event in sorted(events.Scalars(tag), key=lambda e: e.wall_time)}
        steps = sorted(by_step)
        every = -(-len(steps) // MOST_POINTS)
        steps = sorted({*steps[::every], steps[-1]})
        found.setdefault(side, {})[tap] = (steps, [float(f"{by_step[step]:.5g}") for step in steps])
    return found


def _tap_order(tag: str) -> tuple:
    order = ("y", "z", "phi", "y_hat", "l_T", "l_res", "l_0")
    tap = tag.rsplit("/", 1)[-1]
    return (order.index(tap) if tap in order else len(order), tap)


class Pictures:
    """Pictures as data URIs within a budget of bytes, each file once.

    All are embedded in one way, the first that fits: the PNG files as they are, JPEG at falling quality, then JPEG at
    half the size, and so on. `described` says which.
    """

    WAYS = (("PNG", 0, 1), ("JPEG", 95, 1), ("JPEG", 90, 1), ("JPEG", 80, 1), ("JPEG", 80, 2), ("JPEG", 75, 4))

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._places: dict[bytes, int] = {}
        self.described = ""

    def __len__(self) -> int:
        return len(self._places)

    def add(self, path: Path) -> int:
        """Take a picture; returns its place in what `embed` gives. Equal files share one."""
        try:
            content = path.read_bytes()
            Image.open(io.BytesIO(content)).verify()
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{path} is no readable picture: {error}; "
                "validate the run again, or leave pictures out with --max-images 0"
            ) from error
        if content not in self._places:
            self._places[content] = len(self._places)
        return self._places[content]

    def embed(self) -> list[str] | None:
        """Data URIs in the order in which the pictures were taken; None where they do not fit in any way."""
        encoded: list[bytes] = []
        for kind, quality, shrink in self.WAYS:
            encoded, spent = [], 0
            for content in self._places:
                encoded.append(content if kind == "PNG" else _jpeg(content, quality, shrink))
                spent += len(encoded[-1])
                if spent * 4 / 3 > self.budget:
                    break
            else:
                break
        else:
            return None
        self.described = "as the PNG files that the runs wrote"
        if kind == "JPEG":
            size = "" if shrink == 1 else f" and shrunk to 1/{shrink} of their width and height"
            self.described = (
                f"recompressed for this page as JPEG, quality {quality}{size}; metrics are of the originals"
            )
        head = f"data:image/{kind.lower()};base64,"
        return [head + base64.b64encode(content).decode() for content in encoded]


def _jpeg(content: bytes, quality: int, shrink: int) -> bytes:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if shrink > 1:
        image = image.resize((max(1, image.width // shrink), max(1, image.height // shrink)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


# ---------------------------------------------------------------------- of one set of images


def image_section(
    number: int,
    images: ImageSet,
    study: Study,
    references: Sequence[str],
    drawn: dict[str, Any],
    compare: dict[str, Any] | None,
    resamples: int,
) -> dict[str, Any]:
    """Everything about one set of images, as the template wants it; plots are added to `drawn`.

    `compare` is the set's `comparison`, which is made before all else: what is wrong with a picture is found at once.
    """
    key = f"set{number}"
    looks = plots.styles(images.curves)
    curves = images.curves
    shown = []
    for metric in sorted((m for m in images.metrics if m.kind in KINDS), key=lambda m: KINDS.index(m.kind)):
        if any(c.points(metric.name) for c in curves):
            name = f"{key}-{metric.name}"
            drawn[name] = plots.rate_curves(curves, metric, looks)
            shown.append({"id": name, "metric": metric, "caption": caption(curves, metric)})
    chosen = [c for word in references for c in matching(word, curves)] if references else default_reference(curves)
    rates = [_bd_rates(f"{key}-bd{i}", study, c, images, looks, drawn, resamples) for i, c in enumerate(chosen)]
    legend = [{"name": c.name, "look": looks[c.name]} for c in curves if any(c.points(m.name) for m in images.metrics)]
    return {
        "key": key,
        "letter": chr(ord("A") + number % 26),
        "title": images.title,
        "plots": shown,
        "legend": legend,
        "no_rate": [c.name for c in curves if c.rate is None],
        "bd": rates,
        "cost": _costs(key, images, curves, looks, rates, drawn),
        "table": [_numbers(result, curve, images.metrics) for curve in curves for result in curve.results],
        "columns": images.metrics,
        "not_measured": _not_measured(images.results),
        "compare": compare,
    }


def _numbers(result: Result, curve: Curve, metrics: Sequence[Metric]) -> dict[str, Any]:
    """The row of a result in the table of numbers: rates, then metrics; a dash for what was not measured."""
    rates = [f"{value:.4f}" if _known(value := result.value(rate)) else "–" for rate in RATES]
    values = [m.text(value) if _known(value := result.value(m.name)) else "–" for m in metrics]
    return {"name": result.name, "curve": curve.name, "cells": rates + values}


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _not_measured(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Why metrics of the whole set have no value in any result: the reason, and the metrics."""
    values = {name for r in results for name in r.set_metrics if r.value(name) is not None}
    reasons: dict[str, dict[str, None]] = {}
    for name, entry in ((n, e) for r in results for n, e in r.set_metrics.items()):
        if name not in values:
            reasons.setdefault(entry.get("refused") or "no reason was recorded", {})[name] = None
    return [(reason, list(names)) for reason, names in reasons.items()]


def caption(curves: Sequence[Curve], metric: Metric) -> str:
    """What the values of a plot were taken over."""
    shown = [c for c in curves if c.points(metric.name)]
    samples = sorted({sample(r, metric.name) for c in shown for r in c.results})
    counts = sorted({c.seeds for c in shown if any("seed" in r.labels for r in c.results)})
    seeds = f", {' to '.join(map(str, sorted({counts[0], counts[-1]})))} seed{'s' * (counts[-1] > 1)}" if counts else ""
    better = "higher" if metric.higher else "lower"
    return f"{metric.full}; {better} is better. Over {', '.join(samples)}{seeds}."


def _bd_rates(
    key: str,
    study: Study,
    reference: Curve,
    images: ImageSet,
    looks: dict[str, Style],
    drawn: dict[str, Any],
    resamples: int,
) -> dict[str, Any]:
    """BD-rates of all curves against one, by metric; what was refused is listed with the reason."""
    by_metric, variants = [], {}
    for metric in images.metrics:
        tests = [c for c in images.curves if c is not reference and c.points(metric.name)]
        if not tests or not reference.points(metric.name):
            continue
        rows = list(zip(tests, study.rates(reference, tests, [metric.name], resamples=resamples), strict=True))
        by_metric.append({"metric": metric, "curves": rows})
        # A conventional codec, many times the rate, would leave no room to tell the others apart.
        found = [(curve.name, rate) for curve, rate in rows if rate.percent is not None and curve.kind != "anchor"]
        if found:
            variants[metric.full] = plots.forest(found, looks)
    if variants:
        drawn[key] = {"variants": variants}
    remarks: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for entry in by_metric:
        for curve, rate in entry["curves"]:
            where = f"{curve.name} ({entry['metric'].title})"
            for note in rate.notes:
                remarks.setdefault(note, []).append(where)
            if rate.reason:
                refused.setdefault(rate.reason, []).append(where)
    return {
        "key": key,
        "reference": reference,
        "metrics": by_metric,
        "variants": list(variants),
        "matrix": _matrix(by_metric),
        "over": _intervals_over(by_metric),
        "remarks": list(remarks.items()),
        "refused": list(refused.items()),
    }


def _matrix(by_metric: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The BD-rates that there are: the metrics, and a row a curve with its rate for each; None where it is refused."""
    found = [entry for entry in by_metric if any(rate.percent is not None for _, rate in entry["curves"])]
    rows: dict[str, list[Any]] = {}
    for place, entry in enumerate(found):
        for curve, rate in entry["curves"]:
            if rate.percent is not None:
                rows.setdefault(curve.name, [None] * len(found))[place] = rate
    return {"metrics": [entry["metric"] for entry in found], "rows": list(rows.items())}


def _intervals_over(by_metric: Sequence[dict[str, Any]]) -> str:
    """What the bootstraps drew anew, in words: metrics of a whole set cannot be drawn by image."""
    found: dict[str, list[str]] = {}
    for entry in by_metric:
        for over in dict.fromkeys(rate.interval_over for _, rate in entry["curves"] if rate.interval_over):
            found.setdefault(over, []).append(entry["metric"].title)
    if len(found) < 2:
        return "".join(found)
    return ", ".join(f"{over} ({', '.join(titles)})" for over, titles in found.items())


def _costs(
    key: str,
    images: ImageSet,
    curves: Sequence[Curve],
    looks: dict[str, Style],
    rates: Sequence[dict[str, Any]],
    drawn: dict[str, Any],
) -> dict[str, Any] | None:
    """Encoder cost against quality: at each setting of the rate as measured, and as BD-rate where there is one."""
    known = [c for c in curves if plots.macs(c, "encode") is not None]
    if not known:
        return None
    views: dict[str, tuple[str, list[plots.Point], Metric | None]] = {}
    for table in rates:
        reference = table["reference"]
        for entry in table["metrics"]:
            points = [
                plots.Point(curve, rate.percent, plots.bd_hover(curve.name, rate), rate.interval)
                for curve, rate in entry["curves"]
                if rate.percent is not None and curve in known
            ]
            if points and reference in known:
                points.append(plots.Point(reference, 0.0, "<br>".join(plots.wrapped(f"{reference.name}: 0"))))
            if points:
                title = f"BD-rate (%), {entry['metric'].full}"
                views[f"{title}, against {reference.name}"] = (title, points, None)
    settings = sorted({r.labels["lambda"] for c in known for r in c.results if "lambda" in r.labels}, key=float)
    for metric in images.metrics:
        for setting in settings:
            points = [
                plots.Point(curve, y, plots.hover(curve, metric, x, y, results))
                for curve in known
                for x, y, results in curve.points(metric.name)
                if results[0].labels.get("lambda") == setting
            ]
            if points:
                views[f"{metric.full}, at lambda {setting:g}"] = (metric.full, points, metric)
    if not views:
        return None
    # What compares most comes first: BD-rates, then settings that most curves have.
    views = dict(sorted(views.items(), key=lambda view: (not view[1][0].startswith("BD"), -len(view[1][1]))))
    for part in ("g_a", "encode"):
        made = {view: plots.cost(part, title, points, looks, of) for view, (title, points, of) in views.items()}
        drawn[f"{key}-cost-{part}"] = {"variants": made}
    return {"variants": list(views), "plots": [f"{key}-cost-g_a", f"{key}-cost-encode"]}


def comparison(
    images: ImageSet, pictures: Pictures, max_images: int, claim: Claim | None = None
) -> dict[str, Any] | None:
    """Pictures of the set: for each image the original and the reconstructions, as places in the list of pictures.

    `start` are the two views that are shown first: what a claim compares, at the rates that are nearest to each other;
    else the original and the first reconstruction.
    """
    shown = []
    captioned = _captioned(images.curves)
    for name in images.names:
        original = next((path for r in images.results if (path := r.original(name))), None)
        views = [
            {"label": label, "picture": pictures.add(r.pictures[name]), "said": _of_image(r, name, images.metrics)}
            for label, r in captioned
            if len(shown) < max_images and name in r.pictures
        ]
        if original and views:
            views.insert(0, {"label": "original", "picture": pictures.add(original), "said": ""})
            start = _telling([r for _, r in captioned if name in r.pictures], name, claim)
            shown.append({"name": name, "views": views, "start": [place + 1 for place in start] if start else [0, 1]})
    available = sum(any(name in r.pictures for r in images.results) for name in images.names)
    return {"images": shown, "available": available} if shown else None


LOW_RATES = (0.03, 0.06)
"""Bits per pixel at which pictures are looked at first: the regime of the paper."""
NEAR = 1.25
"""Largest ratio of two files' sizes at which their pictures are shown beside each other as of equal rate."""


def _telling(results: Sequence[Result], name: str, claim: Claim | None) -> tuple[int, int] | None:
    """Places of the two results whose pictures of an image tell most.

    They are a teacher's between 0.03 and 0.06 bpp and the best student's of about the same rate, by the claim's metric.
    Where there is no such pair, they are of the claim's reference and test, those whose files are most alike in size,
    smallest rates first.
    """
    if claim is None:
        return None
    rates: dict[int, float] = {}
    metrics: dict[int, float] = {}
    for place, result in enumerate(results):
        row = next(row for row in result.images if row["name"] == name)
        if rate := row.get("bpp", row.get("bpp_estimate")):
            rates[place] = rate
            if (value := row.get(claim.metric)) is not None:
                metrics[place] = value
    metric = find_metric(claim.metric)
    teachers = [place for place in metrics if "teacher" in (results[place].labels.get(key) for key in ("role", "arm"))]
    low = [place for place in teachers if LOW_RATES[0] <= rates[place] <= LOW_RATES[1]]
    for teacher in low:
        near = [p for p in metrics if p not in teachers and 1 / NEAR < rates[p] / rates[teacher] < NEAR]
        if near and metric:
            return teacher, (max if metric.higher else min)(near, key=metrics.__getitem__)
    references, tests = (
        [place for place in rates if agree(results[place].labels, labels)] for labels in (claim.reference, claim.test)
    )
    pairs = [(reference, test) for reference in references for test in tests]
    return min(pairs, key=lambda p: (abs(math.log(rates[p[0]] / rates[p[1]])), rates[p[0]]), default=None)


def _captioned(curves: Sequence[Curve]) -> list[tuple[str, Result]]:
    """One result for each setting of each curve: of several seeds the first, since pictures fill the page."""
    labelled = []
    for curve in curves:
        settings: dict[tuple, Result] = {}
        for r in curve.results:
            settings.setdefault(tuple((k, str(v)) for k, v in sorted(r.labels.items()) if k != "seed"), r)
        for r in settings.values():
            rest = [f"{k} {v}" for k, v in r.labels.items() if k not in curve.labels]
            labelled.append((", ".join([curve.name, *rest]) if curve.kind != "anchor" else r.name, r))
    return labelled


def _of_image(result: Result, name: str, metrics: Sequence[Metric]) -> str:
    row = next(row for row in result.images if row["name"] == name)
    said = [f"{row[rate]:.4f} {rate}" for rate in ("bpp", "bpp_estimate") if row.get(rate) is not None]
    said += [f"{m.name} {m.text(row[m.name])}" for m in metrics if row.get(m.name) is not None]
    return " · ".join(said)


# ---------------------------------------------------------------------- of all results


def taps(results: Sequence[Result], drawn: dict[str, Any]) -> dict[str, Any] | None:
    """Loss of each tap: a view a run with all its taps, and a view a tap with all runs."""
    runs = {r.name: losses for r in results if r.folder and (losses := tap_losses(r.folder))}
    if not runs:
        return None
    sides = [side for side in ("encoder", "decoder") if any(side in losses for losses in runs.values())]
    views: dict[str, dict[str, Any]] = {side: {} for side in sides}
    for side in sides:
        every_tap = dict.fromkeys(tap for losses in runs.values() for tap in losses.get(side, {}))
        for run, losses in runs.items():
            views[side][f"run {run}"] = plots.taps(losses.get(side, {}), side)
        for tap in every_tap:
            lines = {run: losses[side][tap] for run, losses in runs.items() if tap in losses.get(side, {})}
            views[side][f"tap {tap}"] = plots.taps(lines, side)
    for side in sides:
        drawn[f"taps-{side}"] = {"variants": views[side]}
    names = list(dict.fromkeys(name for side in sides for name in views[side]))
    return {"plots": [(side, f"taps-{side}") for side in sides], "variants": names}


def paper(published: Sequence[Result], drawn: dict[str, Any]) -> dict[str, Any] | None:
    """The publication's curves, on plots of their own: other images, other backbones."""
    if not published:
        return None
    data: dict[str, list[Result]] = {}
    for result in published:
        data.setdefault(str(result.labels.get("dataset", "published")), []).append(result)
    shown = []
    for number, (name, members) in enumerate(data.items()):
        (images,) = image_sets(members)
        looks = plots.styles(images.curves)
        shown_plots = []
        for metric in images.metrics:
            key = f"paper{number}-{metric.name}"
            drawn[key] = plots.with_legend(plots.rate_curves(images.curves, metric, looks), rows=1)
            shown_plots.append({"id": key, "metric": metric, "caption": caption(images.curves, metric)})
        by_codec = {c.labels.get("codec"): c for c in images.curves}
        rates = []
        for test, reference in (("AEIC-SE", "AEIC-ME"), ("AEIC-SE", "StableCodec"), ("AEIC-ME", "StableCodec")):
            if {test, reference} <= set(by_codec):
                names = [m.name for m in images.metrics]
                rows = Study().rates(by_codec[reference], [by_codec[test]], names, resamples=0)
                found = [(m, row) for m, row in zip(images.metrics, rows, strict=True) if row.percent is not None]
                rates.append({"test": test, "reference": reference, "rows": found})
        shown.append({"name": name, "plots": shown_plots, "rates": rates})
    return {
        "data": shown,
        "notes": list(dict.fromkeys(note for r in published for note in r.notes)),
        "ablation": [
            (arm, [(find_metric(name), value) for name, value in row.items()]) for arm, row in DISTILLATION.items()
        ],
    }

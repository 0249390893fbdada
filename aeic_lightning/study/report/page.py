"""The report: one HTML file of any runs and result files, with everything in it."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from aeic_lightning import __version__
from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.study.bd_rate import BDRate, bd_rate
from aeic_lightning.study.paper_points import DISTILLATION
from aeic_lightning.study.paper_points import published as paper_points
from aeic_lightning.study.report import figures
from aeic_lightning.study.report.curves import Curve, ImageSet, Metric, find_metric, image_sets, sample
from aeic_lightning.study.report.records import Pictures, config_differences, read, tap_losses
from aeic_lightning.study.results import Result

PICTURE_BUDGET = 8_000_000  # bytes of base64; the page's script takes about five million more
HEADINGS = {"distortion": "Rate and distortion", "perception": "Rate and perception", "accuracy": "Rate and accuracy"}

# The legend's marks, as plotly draws them.
DASH_ARRAYS = {
    "solid": "none", "dash": "6 4", "dot": "2 3", "dashdot": "6 3 2 3", "longdash": "10 4", "longdashdot": "10 3 2 3",
}  # fmt: skip
SYMBOL_PATHS = {
    "circle": "M4.5 0A4.5 4.5 0 1 1 -4.5 0A4.5 4.5 0 1 1 4.5 0Z",
    "square": "M-4 -4H4V4H-4Z",
    "diamond": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "triangle-up": "M0 -5L5 4H-5Z",
    "triangle-down": "M0 5L5 -4H-5Z",
    "star": "M0 -5.5L1.4 -1.8L5.4 -1.7L2.2 0.8L3.3 4.6L0 2.4L-3.3 4.6L-2.2 0.8L-5.4 -1.7L-1.4 -1.8Z",
    "x": "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
    "cross": "M-1.5 -5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
}


def write_report(
    paths: Sequence[Path],
    out: Path,
    references: Sequence[str] = (),
    *,
    title: str = "Rate, distortion and perception",
    max_images: int = 6,
    resamples: int = 1000,
    command: str = "",
) -> str:
    """Write the page and return a line that says what is in it.

    Args:
        paths: run folders and result files.
        out: the page, written whole.
        references: what BD-rates are against: `role=teacher`, several labels joined by commas, or the name of a run or
            a curve. Default: the teacher, else the first anchor.
        title: of the page.
        max_images: largest number of images a set that are embedded, with every run's reconstruction.
        resamples: of the BD-rate's bootstrap.
        command: that made the page, for its record.

    Raises UserError for what cannot be read, for a reference that nothing matches, and for pictures that do not fit.
    """
    results = read(paths)
    if not results:
        raise UserError("no results: name run folders or result files")
    published = [r for r in results if r.kind == "published"]
    if not published and any(r.costs for r in results):
        published = paper_points()  # for reference, beside what has an AEIC encoder
    sets = image_sets([r for r in results if r.kind != "published"])
    unmatched = [word for word in references if not any(matching(word, s.curves) for s in sets)]
    if unmatched:
        known = ", ".join(repr(c.name) for s in sets for c in s.curves)
        raise UserError(f"--reference {unmatched[0]}: no curve is called so or has that label; there are {known}")
    pictures = Pictures(PICTURE_BUDGET)
    drawn: dict[str, Any] = {}  # id of a plot -> its figure, or its variants by name
    sections = [_section(i, s, references, drawn, pictures, max_images, resamples) for i, s in enumerate(sets)]
    keys, configs = config_differences(results)
    context = {
        "title": title,
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "version": __version__,
        "command": command,
        "sections": sections,
        "taps": _taps(results, drawn),
        "paper": _paper(published, drawn),
        "keys": keys,
        "configs": configs,
        "results": [_origin(r) for r in results],
        "metrics": _metric_rows(results),
        "counts": _counts(results),
        "comparisons": {s["key"]: s["compare"]["images"] for s in sections if s["compare"]},
        "uris": pictures.embed(),
        "pictures_described": pictures.described,
    }
    page = render(context | {"figures": drawn})
    write_whole(out, page)
    plots = sum(len(d.get("variants", [1])) for d in drawn.values())
    return f"{len(results)} results, {plots} plots, {len(pictures)} pictures, {len(page.encode()) / 1e6:.1f} MB"


def render(context: dict[str, Any]) -> str:
    """Fill the template: everything that is not its own text is escaped."""
    environment = Environment(
        loader=PackageLoader("aeic_lightning.study.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = Path(__file__).parent
    parts = {name: (folder / file).read_text() for name, file in (("style", "style.css"), ("script", "page.js"))}
    # Inside of a script element nothing but its end tag is special.
    plotly = get_plotlyjs().replace("</script", r"<\/script")
    environment.filters |= {"finite": finite, "breakable": breakable}
    environment.globals |= {"dash_arrays": DASH_ARRAYS, "symbol_paths": SYMBOL_PATHS}
    return environment.get_template("page.html").render(context | parts | {"plotly": plotly})


def matching(word: str, curves: Sequence[Curve]) -> list[Curve]:
    """Curves that a `--reference` names: by labels, by their own name, or by that of one of their runs."""
    if "=" in word:
        wanted = dict(part.split("=", 1) for part in word.split(",") if "=" in part)
        found = [c for c in curves if all(str(c.labels.get(k)) == v for k, v in wanted.items())]
        if found:
            return found
    return [c for c in curves if word == c.name or word in (r.name for r in c.results)]


def default_reference(curves: Sequence[Curve]) -> list[Curve]:
    """The teacher with the most rates, or else the first anchor that has several."""
    for kind in ("teacher", "anchor"):
        found = [c for c in curves if kind in (c.labels.get("role"), c.kind) and len(c.settings) > 1]
        if found:
            return [max(found, key=lambda c: len(c.settings))]
    return []


def _section(
    number: int,
    images: ImageSet,
    references: Sequence[str],
    drawn: dict[str, Any],
    pictures: Pictures,
    max_images: int,
    resamples: int,
) -> dict[str, Any]:
    """Everything about one set of images."""
    key = f"set{number}"
    looks = figures.styles(images.curves)
    curves = images.curves
    groups = []
    for kind, heading in HEADINGS.items():
        plots = []
        for metric in images.metrics:
            if metric.kind == kind and any(c.points(metric.name) for c in curves):
                name = f"{key}-{metric.name}"
                drawn[name] = figures.rate_curves(curves, metric, looks)
                plots.append({"id": name, "metric": metric, "caption": _caption(curves, metric)})
        if plots:
            groups.append({"heading": heading, "plots": plots})
    chosen = [c for word in references for c in matching(word, curves)] if references else default_reference(curves)
    rates = [_bd_rates(f"{key}-bd{i}", c, images, curves, looks, drawn, resamples) for i, c in enumerate(chosen)]
    legend = [{"name": c.name, "look": looks[c.name]} for c in curves if any(c.points(m.name) for m in images.metrics)]
    return {
        "key": key,
        "letter": chr(ord("A") + number % 26),
        "title": images.title,
        "groups": groups,
        "legend": legend,
        "no_rate": [c.name for c in curves if c.rate is None],
        "bd": rates,
        "cost": _costs(key, images, curves, looks, rates, drawn),
        "table": _numbers(images, curves),
        "columns": images.metrics,
        "compare": _comparison(images, curves, pictures, max_images),
    }


def _caption(curves: Sequence[Curve], metric: Metric) -> str:
    """What a plot's figures were taken over."""
    shown = [c for c in curves if c.points(metric.name)]
    samples = sorted({sample(r, metric.name) for c in shown for r in c.results})
    counts = sorted({c.seeds for c in shown if any("seed" in r.labels for r in c.results)})
    seeds = f", {' to '.join(map(str, sorted({counts[0], counts[-1]})))} seed{'s' * (counts[-1] > 1)}" if counts else ""
    better = "higher" if metric.higher else "lower"
    return f"{metric.full}; {better} is better. Over {', '.join(samples)}{seeds}."


def _bd_rates(
    key: str,
    reference: Curve,
    images: ImageSet,
    curves: Sequence[Curve],
    looks: dict[str, figures.Style],
    drawn: dict[str, Any],
    resamples: int,
) -> dict[str, Any]:
    """BD-rates of all curves against one, by metric; what was refused is listed with the reason."""
    by_metric, variants = [], {}
    for metric in images.metrics:
        tests = [c for c in curves if c is not reference and c.points(metric.name)]
        if metric.kind == "accuracy" or not tests or not reference.points(metric.name):
            continue
        rows = [(curve, _bd_rate(reference, curve, metric, resamples)) for curve in tests]
        by_metric.append({"metric": metric, "curves": rows})
        # A conventional codec, many times the rate, would leave no room to tell the others apart.
        found = [(curve.name, rate) for curve, rate in rows if rate.percent is not None and curve.kind != "anchor"]
        if found:
            variants[metric.full] = figures.forest(found, looks)
    if variants:
        drawn[key] = {"variants": variants}
    remarks: dict[str, list[str]] = {}
    for entry in by_metric:
        for curve, rate in entry["curves"]:
            for note in rate.notes:
                remarks.setdefault(note, []).append(f"{curve.name} ({entry['metric'].title})")
    return {
        "key": key,
        "reference": reference,
        "metrics": by_metric,
        "variants": list(variants),
        "over": _intervals_over(by_metric),
        "remarks": list(remarks.items()),
    }


def _intervals_over(by_metric: Sequence[dict[str, Any]]) -> str:
    """What the bootstraps drew anew, in words: figures of a whole set cannot be drawn by image."""
    found: dict[str, list[str]] = {}
    for entry in by_metric:
        for over in dict.fromkeys(rate.interval_over for _, rate in entry["curves"] if rate.interval_over):
            found.setdefault(over, []).append(entry["metric"].title)
    if len(found) < 2:
        return "".join(found)
    return ", ".join(f"{over} ({', '.join(titles)})" for over, titles in found.items())


def _bd_rate(reference: Curve, test: Curve, metric: Metric, resamples: int) -> BDRate:
    names = (reference.name, test.name)
    try:
        return bd_rate(reference.results, test.results, metric.name, resamples=resamples, names=names)
    except UserError as error:
        return BDRate(*names, metric.name, reason=str(error))


def _costs(
    key: str,
    images: ImageSet,
    curves: Sequence[Curve],
    looks: dict[str, figures.Style],
    rates: Sequence[dict[str, Any]],
    drawn: dict[str, Any],
) -> dict[str, Any] | None:
    """Encoder cost against quality: at each setting of the rate as measured, and as BD-rate where there is one."""
    known = [c for c in curves if figures.macs(c, "encode") is not None]
    if not known:
        return None
    views: dict[str, tuple[str, list[figures.Point]]] = {}
    for table in rates:
        reference = table["reference"]
        for entry in table["metrics"]:
            points = [
                figures.Point(curve, rate.percent, figures.bd_hover(curve.name, rate), rate.interval)
                for curve, rate in entry["curves"]
                if rate.percent is not None and curve in known
            ]
            if points and reference in known:
                points.append(figures.Point(reference, 0.0, "<br>".join(figures.wrapped(f"{reference.name}: 0"))))
            if points:
                title = f"BD-rate (%), {entry['metric'].full}"
                views[f"{title}, against {reference.name}"] = (title, points)
    settings = sorted({r.labels["lambda"] for c in known for r in c.results if "lambda" in r.labels}, key=float)
    for metric in images.metrics:
        for setting in settings:
            points = [
                figures.Point(curve, y, figures.hover(curve, metric, x, y, results))
                for curve in known
                for x, y, results in curve.points(metric.name)
                if results[0].labels.get("lambda") == setting
            ]
            if points:
                views[f"{metric.full}, at lambda {setting:g}"] = (metric.full, points)
    if not views:
        return None
    # What compares most comes first: BD-rates, then settings that most curves have.
    views = dict(sorted(views.items(), key=lambda view: (not view[1][0].startswith("BD"), -len(view[1][1]))))
    for part in ("g_a", "encode"):
        made = {view: figures.cost(part, title, points, looks) for view, (title, points) in views.items()}
        drawn[f"{key}-cost-{part}"] = {"variants": made}
    return {"variants": list(views), "plots": [f"{key}-cost-g_a", f"{key}-cost-encode"]}


def _numbers(images: ImageSet, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The figures behind the curves, one row a result."""
    return [
        {
            "curve": curve.name,
            "name": r.name,
            "bpp": r.figure("bpp"),
            "bpp_estimate": r.figure("bpp_estimate"),
            "values": [(r.figure(m.name), m.digits) for m in images.metrics],
        }
        for curve in curves
        for r in curve.results
    ]


def _comparison(
    images: ImageSet, curves: Sequence[Curve], pictures: Pictures, max_images: int
) -> dict[str, Any] | None:
    """Pictures of the set: for each image the original and the reconstructions, as places in the list of pictures."""
    shown = []
    for name in images.names:
        original = next((path for r in images.results if (path := r.original(name))), None)
        views = [
            {"label": label, "picture": pictures.add(r.pictures[name]), "said": _of_image(r, name, images.metrics)}
            for label, r in _labelled(curves)
            if len(shown) < max_images and name in r.pictures
        ]
        if original and views:
            views.insert(0, {"label": "original", "picture": pictures.add(original), "said": ""})
            shown.append({"name": name, "views": views})
    available = sum(any(name in r.pictures for r in images.results) for name in images.names)
    return {"images": shown, "available": available} if shown else None


def _labelled(curves: Sequence[Curve]) -> list[tuple[str, Result]]:
    labelled = []
    for curve in curves:
        for r in curve.results:
            rest = [f"{k} {v}" for k, v in r.labels.items() if k not in curve.labels]
            labelled.append((", ".join([curve.name, *rest]) if curve.kind != "anchor" else r.name, r))
    return labelled


def _of_image(result: Result, name: str, metrics: Sequence[Metric]) -> str:
    row = next(row for row in result.images if row["name"] == name)
    said = [f"{row[rate]:.4f} {rate}" for rate in ("bpp", "bpp_estimate") if row.get(rate) is not None]
    said += [f"{m.name} {row[m.name]:.{m.digits}f}" for m in metrics if row.get(m.name) is not None]
    return " · ".join(said)


def _taps(results: Sequence[Result], drawn: dict[str, Any]) -> dict[str, Any] | None:
    """Loss of each tap: a view a run with all its taps, and a view a tap with all runs."""
    runs = {r.name: losses for r in results if r.folder and (losses := tap_losses(r.folder))}
    if not runs:
        return None
    sides = [side for side in ("encoder", "decoder") if any(side in losses for losses in runs.values())]
    views: dict[str, dict[str, Any]] = {side: {} for side in sides}
    for side in sides:
        every_tap = dict.fromkeys(tap for losses in runs.values() for tap in losses.get(side, {}))
        for run, losses in runs.items():
            views[side][f"run {run}"] = figures.taps(losses.get(side, {}), side)
        for tap in every_tap:
            lines = {run: losses[side][tap] for run, losses in runs.items() if tap in losses.get(side, {})}
            views[side][f"tap {tap}"] = figures.taps(lines, side)
    for side in sides:
        drawn[f"taps-{side}"] = {"variants": views[side]}
    names = list(dict.fromkeys(name for side in sides for name in views[side]))
    return {"plots": [(side, f"taps-{side}") for side in sides], "variants": names}


def _paper(published: Sequence[Result], drawn: dict[str, Any]) -> dict[str, Any] | None:
    """The publication's curves, on plots of their own: other images, other backbones."""
    if not published:
        return None
    data: dict[str, list[Result]] = {}
    for result in published:
        data.setdefault(str(result.labels.get("dataset", "published")), []).append(result)
    shown = []
    for number, (name, members) in enumerate(data.items()):
        (images,) = image_sets(members)
        looks = figures.styles(images.curves)
        plots = []
        for metric in images.metrics:
            key = f"paper{number}-{metric.name}"
            drawn[key] = figures.with_legend(figures.rate_curves(images.curves, metric, looks), rows=1)
            plots.append({"id": key, "metric": metric, "caption": _caption(images.curves, metric)})
        by_codec = {c.labels.get("codec"): c for c in images.curves}
        rates = []
        if {"AEIC-ME", "AEIC-SE"} <= set(by_codec):
            pair = by_codec["AEIC-ME"], by_codec["AEIC-SE"]
            rates = [(m, rate) for m in images.metrics if (rate := _bd_rate(*pair, m, 0)).percent is not None]
        shown.append({"name": name, "plots": plots, "rates": rates})
    return {
        "data": shown,
        "notes": list(dict.fromkeys(note for r in published for note in r.notes)),
        "ablation": [
            (arm, [(find_metric(name), value) for name, value in row.items()]) for arm, row in DISTILLATION.items()
        ],
    }


def _origin(result: Result) -> dict[str, Any]:
    git = result.git or {}
    return {
        "name": result.name,
        "kind": result.kind,
        "labels": ", ".join(f"{k} {v}" for k, v in result.labels.items()),
        "step": result.step,
        "images": len(result.images),
        "commit": (git.get("commit") or "")[:10] + (" + changes" if git.get("changed") else ""),
        "command": result.command,
        "versions": ", ".join(f"{k} {v}" for k, v in result.versions.items()),
        "notes": " ".join(result.notes),
    }


def _metric_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """Backbone, versions, options and sample of every figure, one row for each way in which it was taken."""
    rows: dict[tuple, dict[str, str]] = {}
    for result in results:
        if result.kind == "published":
            continue
        for name in (*result.metrics, *result.set_metrics):
            info = result.metric_info.get(name, {})
            version, options = info.get("version") or {}, info.get("options") or {}
            row = {
                "name": name,
                "backbone": str(info.get("backbone") or "-"),
                "version": ", ".join(f"{k} {v}" for k, v in version.items())
                if isinstance(version, dict)
                else str(version),
                "options": ", ".join(f"{k} {v}" for k, v in options.items() if v is not None) or "-",
                "sample": sample(result, name),
            }
            rows.setdefault(tuple(row.values()), row)
    return sorted(rows.values(), key=lambda row: row["name"])


def _counts(results: Sequence[Result]) -> dict[str, Any]:
    runs = [r for r in results if r.kind in ("run", "checkpoint")]
    seeds = sorted({str(r.labels["seed"]) for r in runs if "seed" in r.labels})
    own = [r for r in results if r.kind != "published"]
    return {
        "results": len(own),
        "runs": len(runs),
        "anchors": sum(r.kind == "anchor" for r in results),
        "seeds": seeds,
        "measured": sum(r.figure("bpp") is not None for r in own),
        "estimated": sum(r.figure("bpp") is None and r.figure("bpp_estimate") is not None for r in own),
    }


def finite(number: float | None, digits: int) -> str:
    """A number for a table cell; a dash for what was not measured."""
    return "–" if number is None or not math.isfinite(number) else f"{number:.{digits}f}"


def breakable(key: str) -> Markup:
    """A dotted key that may be broken after its dots."""
    return Markup(".<wbr>").join(key.split("."))

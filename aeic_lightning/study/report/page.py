"""The report: one HTML file of any runs and result files, with everything in it."""

import base64
import gzip
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from aeic_lightning import __version__
from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.study.claims import Answer, Claim
from aeic_lightning.study.paper_points import published as paper_points
from aeic_lightning.study.report.candidates import candidates
from aeic_lightning.study.report.gains import gains
from aeic_lightning.study.report.sections import Pictures, comparison, image_section, paper, taps
from aeic_lightning.study.report.templates import templates
from aeic_lightning.study.results import Result, sample
from aeic_lightning.study.study import ImageSet, Study, matching

PICTURE_BUDGET = 1_600_000  # bytes of base64; plotly takes about two million more, and a page has four in all

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
    study: Study | Sequence[Path],
    out: Path,
    references: Sequence[str] = (),
    *,
    title: str = "Rate, distortion and perception",
    answered: Sequence[tuple[str, Sequence[Answer]]] = (),
    headline: int = 1,
    max_images: int = 6,
    resamples: int = 1000,
    command: str = "",
    arms: Mapping[str, str] | None = None,
    images: Mapping[frozenset[str], str] | None = None,
    root: Path | None = None,
) -> str:
    """Write the page and return a line that says what is in it.

    Args:
        study: what is shown, or the run folders and result files that hold it.
        out: the page, written whole.
        references: what BD-rates are against: `role=teacher`, several labels joined by commas, or the name of a run or
            a curve. Default: the teacher, else the first anchor.
        title: of the page; the question, for a study that has one.
        answered: what the page says first (`answers_by_set`).
        headline: how many of the claims that have an answer are said in full above the first plot; a table has all.
        max_images: largest number of images a set that are embedded, with every run's reconstruction; fewer where that
            many do not fit.
        resamples: of the BD-rate's bootstrap.
        command: that made the page, for its record.
        arms: what each arm is, in words, by its label.
        images: what each set of images is, in words, by the names of its images.
        root: of a sweep that has left candidates out, which the page shows.

    Raises UserError for what cannot be read and for a reference that nothing matches.
    """
    study = study if isinstance(study, Study) else Study.read(study)
    results = study.results
    if not results:
        raise UserError("no results: name run folders or result files")
    published = study.published
    if not published and any(r.costs for r in results):
        published = paper_points()  # for reference, beside what has an AEIC encoder
    sets = study.sets
    unmatched = [word for word in references if not any(matching(word, s.curves) for s in sets)]
    if unmatched:
        known = ", ".join(repr(c.name) for s in sets for c in s.curves)
        raise UserError(f"--reference {unmatched[0]}: no curve is called so or has that label; there are {known}")
    # Before the plots and intervals, which take long.
    told = answered[0][1][0].claim if answered and answered[0][1] else None
    compared, pictures, uris = _compared(sets, max_images, told)
    drawn: dict[str, Any] = {}  # id -> plot, or its variants by name
    sections = [image_section(i, s, study, references, drawn, compared[i], resamples) for i, s in enumerate(sets)]
    for section, image_set in zip(sections, sets, strict=True):
        section["about"] = (images or {}).get(frozenset(image_set.names))
    known = {str(result.labels.get("arm")) for result in results}
    ladder = _gains(sets, study, answered, drawn, resamples)
    first = None if ladder else _first_plot(answered, sections, drawn)
    keys, configs = config_differences(results)
    context = {
        "title": title,
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "version": __version__,
        "command": command,
        "arms": [(arm, says) for arm, says in (arms or {}).items() if arm in known],
        "sections": sections,
        "claims": _claims(answered, sections),
        "first_plot": first,
        "candidates": candidates(root, drawn) if root else [],
        "gains": ladder,
        "headline": headline,
        "taps": taps(results, drawn),
        "paper": paper(published, drawn),
        "keys": keys,
        "configs": configs,
        "results": [_origin(r) for r in results],
        "metrics": _metric_rows(results),
        "counts": _counts(results),
        "comparisons": {s["key"]: s["compare"]["images"] for s in sections if s["compare"]},
        "uris": uris,
        "pictures_described": pictures.described,
    }
    page = render(context | {"plots": drawn})
    write_whole(out, page)
    plots = sum(len(d.get("variants", [1])) for d in drawn.values())
    return f"{len(results)} results, {plots} plots, {len(pictures)} pictures, {len(page.encode()) / 1e6:.1f} MB"


def _compared(
    sets: Sequence[ImageSet], max_images: int, claim: Claim | None
) -> tuple[list[dict[str, Any] | None], Pictures, list[str]]:
    """Comparisons of each set, of as many images as fit; their pictures, and the data URIs of these."""
    while True:
        pictures = Pictures(PICTURE_BUDGET)
        compared = [comparison(s, pictures, max_images, claim) for s in sets]
        if (uris := pictures.embed()) is not None:
            return compared, pictures, uris
        max_images -= 1


def _first_plot(
    answered: Sequence[tuple[str, Sequence[Answer]]], sections: Sequence[dict[str, Any]], drawn: dict[str, Any]
) -> dict | None:
    """The plot beside the answer: the metric of the first claim, on the first set of images that has it.

    It stands there instead of among the plots of its set, unless it is the only one.
    """
    wanted = answered[0][1][0].claim.metric if answered else None
    for section in sections:
        for shown in section["plots"]:
            if shown["metric"].name == wanted:
                plot = drawn[shown["id"]]
                if len(section["plots"]) > 1:
                    section["plots"] = [other for other in section["plots"] if other is not shown]
                    del drawn[shown["id"]]
                drawn["answer"] = plot | {"layout": plot["layout"] | {"height": 330}}
                return shown | {"id": "answer", "legend": section["legend"]}
    return None


def _gains(
    sets: Sequence[ImageSet],
    study: Study,
    answered: Sequence[tuple[str, Sequence[Answer]]],
    drawn: dict[str, Any],
    resamples: int,
) -> dict[str, Any] | None:
    """Gain against updates, by the first claim's metric or else the first, on the first set that has a ladder."""
    wanted = answered[0][1][0].claim.metric if answered else None
    for images in sets:
        metric = next((m for m in images.metrics if wanted in (m.name, None)), None)
        if found := gains("gains", images, study, metric, drawn, resamples):
            return found | {"images": images.title}
    return None


def _claims(answered: Sequence[tuple[str, Sequence[Answer]]], sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every claim with what each set of images says of it, as (letter, answer); None where it says nothing."""
    letters = {section["title"]: section["letter"] for section in sections}
    by_letter = [(letters[title], {a.claim.says: a for a in found}) for title, found in answered]
    says = dict.fromkeys(said for _, found in by_letter for said in found)
    rows = [(said, [(letter, found.get(said)) for letter, found in by_letter]) for said in says]
    told = [row for row in rows if any(a and a.verdict != "not answered" for _, a in row[1])]
    return {"sets": [(letters[title], title) for title, _ in answered], "rows": rows, "told": told or rows}


def _origin(result: Result) -> dict[str, Any]:
    own = result.user_repository or {}
    return {
        "name": result.name,
        "kind": result.kind,
        "labels": ", ".join(f"{k} {v}" for k, v in result.labels.items()),
        "step": result.step,
        "images": len(result.images),
        "commit": _commit(result.git or {}),
        "repository": f"{own['name']} {_commit(own)}" if own.get("name") else "",
        "command": result.command,
        "versions": ", ".join(f"{k} {v}" for k, v in result.versions.items()),
        "notes": " ".join(result.notes),
    }


def _metric_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """Backbone, versions, options and sample of every metric, one row for each way in which it was taken."""
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
        "models": len({_model(r) for r in runs}),
        "anchors": sum(r.kind == "anchor" for r in results),
        "seeds": seeds,
        "measured": sum(r.value("bpp") is not None for r in own),
        "estimated": sum(r.value("bpp") is None and r.value("bpp_estimate") is not None for r in own),
    }


def _model(result: Result) -> str:
    """The name of what was measured, without the rate that `evaluate` adds to it."""
    at_rate = result.kind == "checkpoint" and ("level" in result.labels or "target" in result.labels)
    return result.name.rsplit(" at ", 1)[0] if at_rate else result.name


def _commit(git: dict[str, Any]) -> str:
    return (git.get("commit") or "")[:10] + (" + changes" if git.get("changed") else "")


def config_differences(results: Sequence[Result]) -> tuple[list[str], list[tuple[str, list[str | None]]]]:
    """Settings in which runs differ: the keys, and (run, its values) in the same order; None where it has no such key.

    A run's own folder is written as RUN, so that paths into it do not count as differences.
    """
    flat: list[tuple[str, dict[str, str]]] = []
    for result in results:
        file = result.folder / "config.yaml" if result.folder else None
        if file is None or not file.is_file():
            continue
        try:
            config = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
            own = str(config.get("trainer", {}).get("default_root_dir") or result.folder)
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is no config of a run: {' '.join(str(error).split())}") from error
        flat.append((result.name, {k: v.replace(own, "RUN") for k, v in flatten(config).items()}))
    keys = dict.fromkeys(key for _, config in flat for key in config)
    differing = [key for key in keys if len({config.get(key) for _, config in flat}) > 1]
    return differing, [(name, [config.get(key) for key in differing]) for name, config in flat]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b` -> text. A list is one setting, except one of classes."""
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{prefix}{key}.").items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        if all(isinstance(item, dict) and "class_path" in item for item in value):
            items = [(item["class_path"].rsplit(".", 1)[-1], item) for item in value]
            return {k: v for name, item in items for k, v in flatten(item, f"{prefix}{name}.").items()}
        if all(isinstance(item, dict) and {"tap", "side"} <= set(item) for item in value):
            return {prefix[:-1]: _matched_taps(value)}
    return {prefix[:-1]: "null" if value is None else str(value)}


def _matched_taps(matches: list[dict[str, Any]]) -> str:
    """Matched taps by side: `encoder: y, z; decoder: l_0`, with what of a match is not its default."""
    sides: dict[str, list[str]] = {}
    for match in matches:
        theirs = match.get("teacher_tap")
        weight = match.get("weight", 1.0)
        text = match["tap"] + (f" to {theirs}" if theirs else "") + (f" x {weight}" if weight != 1 else "")
        sides.setdefault(match["side"], []).append(text)
    return "; ".join(f"{side}: {', '.join(taps)}" for side, taps in sides.items())


def render(context: dict[str, Any]) -> str:
    """Fill the template: everything that is not its own text is escaped."""
    environment = templates("aeic_lightning.study.report")
    folder = Path(__file__).parent
    parts = {name: (folder / file).read_text() for name, file in (("style", "style.css"), ("script", "page.js"))}
    environment.filters |= {"breakable": breakable, "finite": finite, "packed": packed}
    environment.globals |= {"dash_arrays": DASH_ARRAYS, "symbol_paths": SYMBOL_PATHS}
    return environment.get_template("page.html").render(context | parts | {"plotly": get_plotlyjs()})


def finite(number: float | None, digits: int) -> str:
    """A number for a table cell; a dash for what was not measured."""
    return "–" if number is None or not math.isfinite(number) else f"{number:.{digits}f}"


def packed(given: Any) -> str:
    """A text, or what JSON writes of anything else, as gzip in base64: the page's script unpacks it."""
    text = given if isinstance(given, str) else json.dumps(given, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def breakable(key: str) -> Markup:
    """A dotted key that may be broken after its dots."""
    return Markup(".<wbr>").join(key.split("."))

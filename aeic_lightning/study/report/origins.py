"""The parts of the page that are about all results: distillation by tap, published curves, and the origin of values."""

from collections.abc import Sequence
from typing import Any

from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.paper_points import DISTILLATION
from aeic_lightning.study.report import plots
from aeic_lightning.study.report.records import tap_losses
from aeic_lightning.study.report.sections import caption
from aeic_lightning.study.results import Result, sample
from aeic_lightning.study.study import Study, image_sets


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


def origin(result: Result) -> dict[str, Any]:
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


def metric_rows(results: Sequence[Result]) -> list[dict[str, str]]:
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


def counts(results: Sequence[Result]) -> dict[str, Any]:
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

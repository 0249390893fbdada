"""The page's part about a ladder of budgets: what an arm gains over training alone, against the updates of both."""

import html
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.table import Metric
from aeic_lightning.study.bd_rate import BDRate, bd_quality
from aeic_lightning.study.report import plots
from aeic_lightning.study.study import Curve, ImageSet, Study, label_text

ALONE = "none"
"""The arm that the others are compared with, at the same rung."""


def gains(
    key: str, images: ImageSet, study: Study, metric: Metric | None, drawn: dict[str, Any], resamples: int
) -> dict[str, Any] | None:
    """A plot of BD-rate over updates, a line an arm, and its table; None where no two rungs have an arm `none`.

    A rung passes the gate where a curve shares half of its range of quality with the teacher's, so that there is a
    BD-rate against it.

    Args:
        key: id of the plot.
        images: curves of one set of images; those of a ladder have the label `rung`.
        metric: that is held equal.
        drawn: plots of the page by id.
    """
    ladder: dict[int, list[Curve]] = {}
    for curve in images.curves:
        rung = curve.labels.get("rung")
        if isinstance(rung, int):
            ladder.setdefault(rung, []).append(curve)
    alone = {rung: [c for c in curves if c.labels.get("arm") == ALONE] for rung, curves in ladder.items()}
    rungs = sorted(rung for rung, curves in alone.items() if len(curves) == 1)
    if metric is None or len(rungs) < 2:
        return None
    teachers = [c for c in images.curves if c.labels.get("role") == "teacher" or c.labels.get("arm") == "teacher"]
    against = teachers[0] if len(teachers) == 1 else None
    rows = []
    references = {rung: alone[rung][0] for rung in rungs}
    for rung, reference in references.items():
        for curve in ladder[rung]:
            gain = None if curve is reference else study.rates(reference, [curve], [metric.name], resamples=resamples)
            extra = study.rates(against, [curve], [metric.name], resamples=resamples) if against else None
            rows.append({
                "rung": rung, "arm": arm_of(curve), "gain": gain and gain[0], "teacher": extra and extra[0],
                "worth": worth(curve, references, metric) if gain else None,
            })  # fmt: skip
    passing = sorted({row["rung"] for row in rows if row["teacher"] and row["teacher"].percent is not None})
    drawn[key] = _plot(rows, metric)
    return {"id": key, "metric": metric, "rows": rows, "teacher": against, "passing": passing}


def worth(curve: Curve, references: Mapping[int, Curve], metric: Metric) -> str | None:
    """After how many updates arm `none` has the curve's quality at equal bits, in words.

    Between two rungs the difference in quality is interpolated over the logarithm of the updates. None where the curve
    and `none` share too few rates.

    Args:
        curve: of another arm.
        references: the curves of `none` by their rungs, lowest first.
        metric: the quality.
    """
    ahead = []
    for rung, reference in references.items():
        with suppress(UserError):
            found = bd_quality(reference.results, curve.results, metric.name, resamples=0)
            ahead.append((rung, found.difference if metric.higher else -found.difference))
    for (low, before), (high, after) in pairwise(ahead):
        if before >= 0 > after:
            return f"{low * (high / low) ** (before / (before - after)):,.0f}"
    if ahead and ahead[-1][1] >= 0:
        return f"more than {ahead[-1][0]:,}"
    return f"fewer than {ahead[0][0]:,}" if ahead else None


def arm_of(curve: Curve) -> str:
    """What tells the curve from others of its rung."""
    arm = curve.labels.get("arm")
    return curve.name if arm is None else label_text("arm", arm)


def _plot(rows: Sequence[dict[str, Any]], metric: Metric) -> plots.Plot:
    figure = go.Figure()
    for place, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        found: list[tuple[int, BDRate]] = [
            (row["rung"], row["gain"])
            for row in rows
            if row["arm"] == arm and row["gain"] and row["gain"].percent is not None
        ]
        if not found:
            continue
        percents = [rate.percent or 0.0 for _, rate in found]
        bars = [rate.interval or (percent, percent) for (_, rate), percent in zip(found, percents, strict=True)]
        colour = plots.COLOURS[place % len(plots.COLOURS)]
        figure.add_scatter(
            x=[rung for rung, _ in found], y=percents, mode="lines+markers", name=html.escape(arm),
            line={"color": colour, "width": 1.8}, marker={"color": colour, "size": 9},
            error_y={"type": "data", "symmetric": False, "thickness": 1.4, "width": 4,
                     "array": [max(0.0, high - p) for p, (_, high) in zip(percents, bars, strict=True)],
                     "arrayminus": [max(0.0, p - low) for p, (low, _) in zip(percents, bars, strict=True)]},
            hovertext=[plots.bd_hover(f"{arm}, {rung:,} updates", rate) for rung, rate in found],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": plots.GREY, "width": 1})
    title = f"bits at equal {metric.full} against {label_text('arm', ALONE)} (%)"
    plot = plots.finished(figure, "updates at a constant rate, then the branch", title, log_x=True)
    rungs = sorted({row["rung"] for row in rows})
    plot["layout"]["xaxis"] |= {"tickvals": rungs, "ticktext": [f"{rung:,}" for rung in rungs]}
    return plots.with_legend(plot)

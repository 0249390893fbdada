"""The page's plots, as plotly takes them in JSON. Every text that comes from a file is escaped: plotly reads HTML."""

import html
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import plotly.graph_objects as go

from aeic_lightning.metrics.table import Metric
from aeic_lightning.study.bd_rate import BDRate
from aeic_lightning.study.results import Result, sample
from aeic_lightning.study.study import Curve, label_text

# The first six are Okabe and Ito's, which readers with any colour vision tell apart; black is kept for references.
COLOURS = (
    *("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#7A5C3E", "#6A51A3", "#8C8A00", "#A0005A"),
)
INK, GREY, GRID = "#1c1f23", "#6b7280", "#e5e7eb"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "x", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
RATE_TITLES = {"bpp": "bpp (bytes of the file)", "bpp_estimate": "bpp_estimate (likelihood)"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

Plot = dict[str, Any]
Style = dict[str, str]


def styles(curves: Sequence[Curve]) -> dict[str, Style]:
    """Colour says the arm, symbol and dash the encoder; references are black, anchors grey. By the curve's name."""
    anchors = [c for c in curves if c.kind == "anchor"]
    rest = [c for c in curves if c.kind != "anchor"]
    teachers = [c for c in rest if c.labels.get("role") == "teacher"]
    others = [c for c in rest if c not in teachers]
    chosen: dict[str, Style] = {}
    for group, colour in ((teachers, INK), (anchors, GREY)):
        for i, curve in enumerate(group):
            chosen[curve.name] = {"colour": colour, "symbol": SYMBOLS[-1 - i % 8], "dash": DASHES[i % 6]}
    arms = list(dict.fromkeys(c.labels.get("arm") for c in others))
    encoders = sorted({str(c.encoder) for c in others})
    looks = [(c.labels.get("arm"), str(c.encoder)) for c in others]
    for i, (curve, (arm, encoder)) in enumerate(zip(others, looks, strict=True)):
        # Where arm and encoder do not tell the curves apart, each has a colour of its own.
        colour = arms.index(arm) if len(set(looks)) == len(looks) else i
        kind = encoders.index(encoder)
        chosen[curve.name] = {
            "colour": COLOURS[colour % len(COLOURS)],
            "symbol": SYMBOLS[kind % 6],
            "dash": DASHES[kind % 6],
        }
    return chosen


def rate_curves(curves: Sequence[Curve], metric: Metric, looks: dict[str, Style]) -> Plot:
    """One metric over the rate: a line through the settings' means, small marks for single seeds."""
    figure = go.Figure()
    rates = {curve.rate for curve in curves if curve.rate and curve.points(metric.name)}
    for curve in curves:
        points = curve.points(metric.name)
        if not points:
            continue
        look = looks[curve.name]
        estimate = " (likelihood)" if len(rates) > 1 and curve.rate == "bpp_estimate" else ""
        figure.add_scatter(
            x=[x for x, _, _ in points], y=[y for _, y, _ in points], mode="lines+markers",
            name=html.escape(curve.name) + estimate, legendgroup=html.escape(curve.name),
            line={"color": look["colour"], "dash": look["dash"], "width": 1.8},
            marker={"color": look["colour"], "symbol": look["symbol"], "size": 8,
                    "line": {"color": "#fff", "width": 1}},
            text=[hover(curve, metric, x, y, results) for x, y, results in points],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        rate = cast(str, curve.rate)  # or there would be no points
        single: list[tuple[Any, Any]] = [(r, setting) for _, _, setting in points for r in setting if len(setting) > 1]
        if single:
            figure.add_scatter(
                x=[r.value(rate) for r, _ in single], y=[r.value(metric.name) for r, _ in single],
                mode="markers", legendgroup=html.escape(curve.name), name=html.escape(curve.name), showlegend=False,
                marker={"color": look["colour"], "symbol": look["symbol"], "size": 5, "opacity": 0.4},
                text=[hover(curve, metric, r.value(rate), r.value(metric.name), [r]) for r, _ in single],
                hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
    title = RATE_TITLES[min(rates)] if len(rates) == 1 else "bpp of files, or estimated where the name says so"
    made = finished(figure, title, metric.full, log_x=True)
    made["layout"]["height"] = 270
    return _of_metric(made, metric)


def _of_metric(plot: Plot, metric: Metric | None) -> Plot:
    """The plot with the vertical axis of a metric: of accuracies that are all equal it would go from -100 to 100 %."""
    if metric and metric.kind == "accuracy":
        plot["layout"]["yaxis"] |= {"tickformat": ".0%", "minallowed": -0.03, "maxallowed": 1.03}
    return plot


def hover(curve: Curve, metric: Metric, rate: float, value: float, results: Sequence[Result]) -> str:
    """What a point says: its curve, its values, what they were taken over, and the run and command."""
    first = results[0]
    setting = [f"{k} {v}" for k, v in first.labels.items() if k not in curve.labels and k != "seed"]
    seeds = sorted({str(r.labels["seed"]) for r in results if "seed" in r.labels})
    lines = [
        f"<b>{html.escape(', '.join([curve.name, *setting]))}</b>",
        f"{rate:.4f} {curve.rate}, {html.escape(metric.title)} {metric.text(value)}",
        sample(first, metric.name)
        + (f", mean of seeds {html.escape(', '.join(seeds))}" if len(results) > 1 else "")
        + (f", seed {html.escape(seeds[0])}" if len(results) == 1 and seeds else ""),
    ]
    lines += wrapped("run: " + ", ".join(r.name for r in results))
    lines += wrapped(first.command) if first.command else []
    return "<br>".join(lines)


def wrapped(text: str, width: int = 56, lines: int = 5) -> list[str]:
    """Escaped lines of at most `width` characters; a long text ends in an ellipsis."""
    found = textwrap.wrap(text, width) or [""]
    found = [*found[: lines - 1], found[lines - 1] + " ..."] if len(found) > lines else found
    return [html.escape(line) for line in found]


def bd_hover(name: str, rate: BDRate) -> str:
    """What the point of a BD-rate says."""
    interval = f", 95 % interval {rate.interval[0]:+.1f} to {rate.interval[1]:+.1f}" if rate.interval else ""
    return (
        f"<b>{'<br>'.join(wrapped(name))}</b><br>BD-rate {rate.percent:+.1f} %{interval}<br>overlap {rate.overlap:.0%}"
    )


def forest(rows: Sequence[tuple[str, BDRate]], looks: dict[str, Style]) -> Plot:
    """BD-rates of one metric, one line per curve, with their intervals. rows: (name of the curve, its BD-rate)."""
    figure = go.Figure()
    for name, rate in reversed(rows):
        percent = cast(float, rate.percent)  # rows that are refused are not drawn
        low, high = rate.interval or (percent, percent)
        colour = looks[name]["colour"]
        figure.add_scatter(
            x=[rate.percent], y=[html.escape(name)], mode="markers", name=html.escape(name),
            marker={"color": colour, "symbol": looks[name]["symbol"], "size": 10},
            error_x={"type": "data", "symmetric": False, "array": [max(0, high - percent)],
                     "arrayminus": [max(0, percent - low)], "color": colour, "thickness": 1.6, "width": 5},
            text=[bd_hover(name, rate)],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": GREY, "width": 1})
    made = finished(figure, "BD-rate (%); left of 0 is fewer bits than the reference", "")
    made["layout"]["height"] = 110 + 30 * len(rows)
    made["layout"]["yaxis"] |= {"type": "category", "automargin": True, "showgrid": False}
    return made


@dataclass(frozen=True)
class Point:
    """A curve's value for the plots over encoder cost: its value, its interval, and what its hover says."""

    curve: Curve
    value: float
    text: str
    interval: tuple[float, float] | None = None


def cost(part: str, title: str, points: Sequence[Point], looks: dict[str, Style], metric: Metric | None = None) -> Plot:
    """Quality over what the encoder costs: a line for each arm, through its encoders.

    Args:
        part: `g_a` or `encode`.
        title: of the vertical axis.
        points: of curves whose cost is known.
        looks: see `styles`.
        metric: whose values the points are; None for BD-rates.
    """
    figure = go.Figure()
    arms: dict[str, list[Point]] = {}
    for point in points:
        labels = point.curve.labels
        key = next((k for k in ("arm", "role") if k in labels), None)
        arms.setdefault(label_text(key, labels[key]) if key else point.curve.name, []).append(point)
    for name, members in arms.items():
        placed = sorted(members, key=lambda point: macs(point.curve, part) or 0)
        own = [looks[point.curve.name] for point in placed]
        bars = [point.interval or (point.value, point.value) for point in placed]
        figure.add_scatter(
            x=[macs(point.curve, part) for point in placed], y=[point.value for point in placed],
            mode="lines+markers+text", name=html.escape(name), line={"color": own[0]["colour"], "width": 1.8},
            marker={"color": [look["colour"] for look in own], "size": 9, "symbol": [look["symbol"] for look in own]},
            error_y={"type": "data", "symmetric": False, "thickness": 1.2, "width": 4,
                     "array": [max(0.0, high - p.value) for p, (_, high) in zip(placed, bars, strict=True)],
                     "arrayminus": [max(0.0, p.value - low) for p, (low, _) in zip(placed, bars, strict=True)]},
            hovertext=[point.text for point in placed], hovertemplate="%{hovertext}<extra></extra>",
            text=["" if p.curve.encoder is None else html.escape(f"  {p.curve.encoder}") for p in placed],
            textposition="top right", textfont={"size": 11, "color": GREY},
        )  # fmt: skip
    words = {"g_a": "g_a, MACs per pixel", "encode": "all that the sender runs, MACs per pixel"}[part]
    made = finished(figure, words, title, log_x=True)
    return with_legend(_of_metric(made, metric), rows=2)


def macs(curve: Curve, part: str) -> float | None:
    """Encoder cost of a curve, MACs per pixel."""
    costs = next((r.costs for r in curve.results if r.costs), None)
    return costs["encoder_macs_per_pixel"][part] if costs else None


def taps(lines: dict[str, tuple[list[int], list[float]]], side: str) -> Plot:
    """Distillation losses over steps on a logarithmic axis, one line each. lines: name -> (steps, losses)."""
    figure = go.Figure()
    for i, (name, (steps, losses)) in enumerate(lines.items()):
        figure.add_scatter(
            x=steps, y=losses, mode="lines", name=html.escape(name),
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i // len(COLOURS) % 6], "width": 1.6},
            hovertemplate=f"<b>{html.escape(name)}</b><br>step %{{x}}, loss %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    return with_legend(finished(figure, "generator step", f"distillation loss, {side} side", log_y=True))


def with_legend(plot: Plot, rows: int = 4) -> Plot:
    """The same with its own legend under it, in room for this many rows, so that neighbours stay aligned."""
    plot["layout"] |= {"showlegend": True, "height": 330 + 20 * rows}
    plot["layout"]["margin"] |= {"b": 52 + 20 * rows}
    plot["layout"]["xaxis"] |= {"automargin": False}
    return plot


def finished(figure: go.Figure, x: str, y: str, log_x: bool = False, log_y: bool = False) -> Plot:
    axis = {
        "gridcolor": GRID, "linecolor": GREY, "zeroline": False, "ticks": "outside", "tickcolor": GREY, "ticklen": 4,
        "title": {"font": {"size": 12}, "standoff": 8}, "automargin": True,
    }  # fmt: skip
    figure.update_layout(
        template="none", height=330, margin={"l": 56, "r": 12, "t": 14, "b": 48}, showlegend=False,
        font={"family": FONT, "size": 12, "color": INK}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"bgcolor": "#fff", "bordercolor": GREY, "align": "left", "font": {"size": 11.5, "color": INK}},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "font": {"size": 11}},
        xaxis=axis, yaxis=axis, hovermode="closest",
    )  # fmt: skip
    figure.update_xaxes(title_text=x, type="log" if log_x else "linear", showline=True)
    figure.update_yaxes(title_text="<br>".join(wrapped(y, 36)), type="log" if log_y else "linear")
    traces: Any = figure.data
    if log_x:
        xs = [x for trace in traces for x in trace.x if x and x > 0]
        figure.update_xaxes(**_log_ticks(xs))
    if log_y:
        ys = [y for trace in traces for y in trace.y if y and y > 0]
        narrow = bool(ys) and max(ys) < 1e5 * min(ys)
        figure.update_yaxes({"exponentformat": "none", "dtick": 1} if narrow else {"exponentformat": "power"})
    if not any(_drawable(y, log_y) for trace in traces for y in trace.y):
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(
            text="nothing to show here", showarrow=False, xref="paper", yref="paper", x=0.5, y=0.5, font={"color": GREY}
        )
    return json.loads(str(figure.to_json(engine="json")))


def _drawable(y: Any, log: bool) -> bool:
    return isinstance(y, str) or (y is not None and math.isfinite(y) and (y > 0 or not log))


def _log_ticks(xs: Sequence[float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten: plotly's own are too many or too few on a narrow range."""
    if not xs:
        return {}
    low, high = math.log10(min(xs)), math.log10(max(xs))
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low > 0.7 else (1, 1.5, 2, 3, 5, 7)
    if high - low > 2.5:
        steps = (1,)
    values = [float(f"{step * 10.0**power:.12g}") for power in powers for step in steps]
    return {"tickvals": values, "ticktext": [f"{v:,.0f}" if v >= 1000 else f"{v:g}" for v in values]}

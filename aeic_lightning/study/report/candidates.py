"""The page's part about candidates: bits at equal quality over the sender's cost, and how far rankings agree."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study import halving, search
from aeic_lightning.study.ranking import agreement, by_entry
from aeic_lightning.study.report import plots

COLOURS = ("#8a9099", "#3b6fb6", "#1a1a1a")  # of the rungs below, of the highest rung, of the front


def candidates(root: Path, drawn: dict[str, Any]) -> list[dict[str, Any]]:
    """For each entry of the sweep whose candidates were thinned out: what its section shows; plots go to `drawn`.

    Args:
        root: of the sweep, with `halving.json` and perhaps `candidates.json`.
        drawn: plots of the page by id.
    """
    if not (root / halving.FILE).is_file():
        return []
    configs, beyond = _drawn(root / search.FILE)
    found = by_entry(root / halving.FILE).values()
    return [_section(place, rungs, configs, beyond, drawn) for place, rungs in enumerate(found)]


def _drawn(file: Path) -> tuple[dict[str, str], int]:
    """What each candidate is, in words, and how many were beyond the budget."""
    if not file.is_file():
        return {}, 0
    record = json.loads(file.read_text())
    words = {
        entry["candidate"]: ", ".join(f"{axis} {value}" for axis, value in entry["point"].items())
        for entry in record["candidates"]
    }
    return words, len(record["over_budget"])


def _section(
    place: int, rungs: Sequence[dict[str, Any]], configs: dict[str, str], beyond: int, drawn: dict[str, Any]
) -> dict[str, Any]:
    reached: dict[str, dict[str, Any]] = {}
    for rung in rungs:
        reached |= {
            name: {"name": name, "config": configs.get(name, name), "rung": rung["rung"]} | figures
            for name, figures in rung["candidates"].items()
        }
    rows = sorted(reached.values(), key=lambda row: (-row["rung"], row["value"] is None, row["value"]))
    drawn[f"candidates-{place}"] = _plot(rows, rungs)
    return {
        "id": f"candidates-{place}",
        "entry": rungs[0]["entry"],
        "metric": find_metric(rungs[0]["metric"]),
        "rows": rows,
        "beyond": beyond,
        "agreement": agreement(rungs).words,
    }


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, bits) that no other one beats in both, from the cheapest on."""
    found: list[tuple[float, float]] = []
    for cost, bits in sorted(points):
        if not found or bits < found[-1][1]:
            found.append((cost, bits))
    return found


def _plot(rows: Sequence[dict[str, Any]], rungs: Sequence[dict[str, Any]]) -> plots.Plot:
    """Every candidate at the highest rung that it has reached, and the front of those at the last one."""
    figure, last = go.Figure(), rungs[-1]["rung"]
    shown = [row for row in rows if row["percent"] is not None and row["macs_per_pixel"] is not None]
    best = front([(row["macs_per_pixel"], row["percent"]) for row in shown if row["rung"] == last])
    figure.add_scatter(
        x=[cost for cost, _ in best], y=[bits for _, bits in best], mode="lines", name="front",
        line={"color": COLOURS[2], "width": 1.4, "shape": "hv"}, hoverinfo="skip",
    )  # fmt: skip
    for rung in sorted({row["rung"] for row in shown}):
        own = [row for row in shown if row["rung"] == rung]
        figure.add_scatter(
            x=[row["macs_per_pixel"] for row in own], y=[row["percent"] for row in own], mode="markers+text",
            name=f"after {rung:,} updates", text=[html.escape(row["name"]) for row in own], textposition="top right",
            textfont={"size": 11}, marker={"size": 9, "color": COLOURS[rung == last]},
            hovertext=["<br>".join(plots.wrapped(_hover(row))) for row in own],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    metric = find_metric(rungs[0]["metric"])
    title = f"bits at equal {metric.full if metric else rungs[0]['metric']} (%)"
    return plots.with_legend(plots.finished(figure, "all that the sender runs, MACs per pixel", title), rows=1)


def _hover(row: dict[str, Any]) -> str:
    return f"{row['name']}: {row['config']}; {row['percent']:+.1f} % of bits"

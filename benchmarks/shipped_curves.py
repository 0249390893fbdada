"""The figure of `python -m benchmarks.shipped`: quality over rate, with the points that others published."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.results import Result
from benchmarks.shipped_page import ByRate, called, value_of

PANELS = ("psnr", "ms_ssim")
"""Metrics that publications have as well, and that depend on no network."""


def curves(by_rate: ByRate, published: Sequence[Result]) -> bytes:
    """A panel for each of `PANELS`, as SVG: a line for each codec of the table and, dashed, for each published one.

    Rates of published points are the likelihood estimates of their authors.
    """
    with rc_context({"svg.hashsalt": "aeic_lightning", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, metric in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            for place, of_codec in enumerate(zip(*by_rate.values(), strict=True)):
                rates, values = ([value_of(result, name) for result in of_codec] for name in ("bpp", metric))
                order = np.argsort(rates, kind="stable")
                ours = of_codec[0].kind != "anchor"
                axes.plot(np.array(rates)[order], np.array(values)[order], "o-" if ours else "s-", color=f"C{place}",
                          linewidth=2.5 if ours else 1, markersize=4, label=called(of_codec[0]))  # fmt: skip
            for place, codec in enumerate(dict.fromkeys(str(result.labels["codec"]) for result in published)):
                points = [result.metrics for result in published if result.labels["codec"] == codec]
                if all(metric in point for point in points):
                    rates, values = ([p[name]["mean"] for p in points] for name in ("bpp_estimate", metric))
                    axes.plot(rates, values, "^--", color=("black", "gray", "silver")[place], linewidth=1, markersize=4,
                              label=f"{codec}, as published")  # fmt: skip
            found = find_metric(metric)
            axes.set(xscale="log", xlabel="bits per pixel", ylabel=found.full if found else metric)
            axes.grid(alpha=0.3, which="both")
        figure.axes[0].legend(fontsize=7, ncols=2)
        figure.savefig(buffer := io.BytesIO(), format="svg", metadata={"Date": None})
    return buffer.getvalue()

"""Curves that TensorBoard does not draw by itself: rate against distortion, and one line per distillation tap."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.images import save_png
from aeic_lightning.metrics.table import find_metric
from callbacks.base import generator_step, log_picture, run_folder
from callbacks.quality import QualityMetrics

# Inches of one panel at 100 pixels per inch, and a font. TensorBoard shows a picture about 400 pixels wide, so
# plots are hardly wider, and panels stand below each other.
WIDTH, HEIGHT, SMALL = 5.0, 3.8, 9


class RateDistortionPicture(Callback):
    """Each image of the last validation as a point (bpp, metric), and the path that the means have taken.

    One panel per metric, below each other, to the loggers (`plots/rate_distortion`) and to
    `<run folder>/rate_distortion.png`. Reads what QualityMetrics measured, which must be among the callbacks. The path
    survives a resume. Where no streams are written the rate is `bpp_estimate`, and the axis says so.

    Args:
        metrics: names of per-image metrics, as in `metrics_val.json`.
    """

    def __init__(self, metrics: Sequence[str] = ("psnr", "lpips_lite0")) -> None:
        if not metrics:
            raise UserError("RateDistortionPicture: name at least one metric in `metrics`")
        self.metrics = list(metrics)
        self.path: list[dict[str, float]] = []  # {"step", rates, metric: mean ...}, one a validation

    def state_dict(self) -> dict:
        return {"path": self.path}

    def load_state_dict(self, state_dict: dict) -> None:
        self.path = list(state_dict["path"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer)
        measuring = [callback for callback in trainer.callbacks if isinstance(callback, QualityMetrics)]  # pyright: ignore[reportAttributeAccessIssue]
        if len(measuring) != 1:
            raise UserError(f"RateDistortionPicture needs one QualityMetrics among the callbacks, not {len(measuring)}")
        self.quality = measuring[0]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        means = self.quality.means
        unknown = [name for name in self.metrics if name not in means]
        if unknown:
            raise UserError(f"RateDistortionPicture: no metric {unknown[0]!r} was measured; there are {sorted(means)}")
        step = generator_step(trainer, pl_module)
        names = [name for name in ("bpp", "bpp_estimate", *self.metrics) if name in means]
        self.path.append({"step": step} | {name: means[name] for name in names})
        if trainer.is_global_zero:
            figure = self._draw()
            publish(trainer, "plots/rate_distortion", figure, self.folder / "rate_distortion.png", step)

    def _draw(self) -> Figure:
        figure = Figure(figsize=(WIDTH, HEIGHT * len(self.metrics)), layout="constrained")
        panels = figure.subplots(len(self.metrics), 1, squeeze=False)[:, 0]
        rate = "bpp" if all("bpp" in point for point in self.path) else "bpp_estimate"
        rates = [point[rate] for point in self.path]
        for axes, name in zip(panels, self.metrics, strict=True):
            rows = [row for row in self.quality.rows if name in row]
            axes.scatter([row[rate] for row in rows], [row[name] for row in rows], s=12, alpha=0.5, label="images")
            means = [point[name] for point in self.path]
            axes.plot(rates, means, ".-", color="tab:gray", linewidth=1, label="means of the validations")
            axes.plot(rates[-1], means[-1], "D", color="tab:red", label=f"mean at step {self.path[-1]['step']}")
            axes.set(xlabel=rate, ylabel=metric.full if (metric := find_metric(name)) else name)
            axes.grid(alpha=0.3)
        panels[0].legend(fontsize=SMALL)
        return figure


class TapCurves(Callback):
    """The distillation loss of each tap over generator steps, on a logarithmic axis, one panel per side.

    Reads `train/distill/<side>/<tap>`, side encoder or decoder, from what the system logs in its training step. Drawn
    after each validation and at the end of the fit, to the loggers (`plots/taps`) and `<run folder>/taps.png`; the
    same numbers go to `<run folder>/taps.csv` with columns step, encoder/y, ... The curves survive a resume.

    Args:
        every_n_steps: generator steps between two points.
    """

    def __init__(self, every_n_steps: int = 25) -> None:
        if every_n_steps < 1:
            raise UserError(f"TapCurves: every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.points: list[dict[str, float]] = []  # {"step", "<side>/<tap>": loss ...}
        self._drawn = 0  # points of the last picture

    def state_dict(self) -> dict:
        return {"points": self.points, "drawn": self._drawn}

    def load_state_dict(self, state_dict: dict) -> None:
        self.points = list(state_dict["points"])
        self._drawn = state_dict.get("drawn", 0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        step = generator_step(trainer, pl_module)
        # An accumulated batch leaves the step where it was.
        if step % self.every_n_steps or (self.points and step == self.points[-1]["step"]) or step == 0:
            return
        prefix = "train/distill/"
        logged = {tag.removeprefix(prefix): v for tag, v in trainer.callback_metrics.items() if tag.startswith(prefix)}
        taps = {tag: float(v) for tag, v in logged.items() if tag.split("/")[0] in ("encoder", "decoder")}
        if taps:
            self.points.append({"step": step} | taps)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._publish(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._publish(trainer, pl_module)

    def _publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self.points) == self._drawn or not trainer.is_global_zero:
            return
        self._drawn = len(self.points)
        taps = list(dict.fromkeys(tap for point in self.points for tap in point if tap != "step"))
        text = io.StringIO()
        table = csv.DictWriter(text, ["step", *taps], lineterminator="\n")
        table.writeheader()
        table.writerows(self.points)
        write_whole(self.folder / "taps.csv", text.getvalue())
        publish(trainer, "plots/taps", self._draw(taps), self.folder / "taps.png", generator_step(trainer, pl_module))

    def _draw(self, taps: Sequence[str]) -> Figure:
        sides = [side for side in ("encoder", "decoder") if any(tap.startswith(f"{side}/") for tap in taps)]
        figure = Figure(figsize=(WIDTH, HEIGHT * len(sides)), layout="constrained")
        for axes, side in zip(figure.subplots(len(sides), 1, squeeze=False)[:, 0], sides, strict=True):
            for tap in taps:
                if tap.startswith(f"{side}/"):
                    points = [(p["step"], p.get(tap, math.nan)) for p in self.points]
                    axes.plot(*zip(*points, strict=True), ".-", linewidth=1, label=tap.removeprefix(f"{side}/"))
            axes.set(yscale="log", xlabel="generator step", ylabel="distillation loss", title=side)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=SMALL, ncols=2)
        return figure


def publish(trainer: Trainer, tag: str, figure: Figure, path: Path, step: int) -> None:
    """Draw a figure once, for the loggers and as a PNG. By Agg directly: pyplot would keep state for the process."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)
    save_png(path, picture)
    log_picture(trainer, tag, picture, step)

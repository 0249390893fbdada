"""Progress: lines in a log, and a bar on a terminal."""

import os
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from aeic_lightning.errors import UserError
from aeic_lightning.output import clock
from callbacks.base import generator_step

FEW = 5  # steps after the first, whose speed tells how long the run will take


class PlainProgress(ProgressBar):
    """Progress on standard error.

    In a log: one line every n generator steps, every n evaluated images, and after each validation.

        step 125/2000  loss 3.214  bpp_estimate 0.0341  4.1 steps/s  ETA 0:07:37

    The first line says how many steps are trained on what, and another after a few steps how long they will take:

        student: 2000 steps on the CPU, 2 threads, seed 1
        the 1994 steps left take about 0:07:37, validations not counted

    On a terminal, a bar shows the steps of training, below the lines of the validations.

    The callback replaces Lightning's bar when it is listed (leave `enable_progress_bar` at its default).
    The speed is the mean since this process began to train, validations included, so the ETA counts them too.

    Args:
        every_n_steps: steps, or evaluated images, between two lines.
    """

    _bar: Progress | None = None

    def __init__(self, every_n_steps: int = 25) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise UserError(f"PlainProgress: every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.enabled = True

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:  # Lightning calls it on all ranks but the first
        self.enabled = False

    def print(self, *args, **kwargs) -> None:
        if self.enabled and self._bar is not None:
            self._bar.console.print(*args, markup=False, highlight=False, soft_wrap=True)
        elif self.enabled:
            print(*args, **{"file": sys.stderr, "flush": True} | kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step = self.last_step = generator_step(trainer, pl_module)
        self.began = time.monotonic()
        last = max_steps(trainer, pl_module)
        seed = os.environ.get("PL_GLOBAL_SEED")  # what seed_everything leaves
        self.print(
            f"{Path(trainer.default_root_dir).name}: {'no limit of' if last is None else last} steps"
            f" on {_in_words(trainer.strategy.root_device)}" + (f", seed {seed}" if seed else "")
        )
        if self.enabled and sys.stderr.isatty():
            columns = TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")
            self._bar = Progress(*columns, console=Console(file=getattr(sys.stderr, "terminal", sys.stderr)))
            self._bar.add_task("", total=last, completed=self.first_step, said="")
            self._bar.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        step = generator_step(trainer, pl_module)
        if step == self.last_step:  # an accumulated batch, or a step of the discriminator alone
            return
        self.last_step = step
        last = max_steps(trainer, pl_module)
        self._forecast(step, last)
        if self._bar is None and step % self.every_n_steps and step != last:
            return
        speed = (step - self.first_step) / max(time.monotonic() - self.began, 1e-9)
        parts = []
        for tag in ("loss", "bpp_estimate"):
            value = trainer.callback_metrics.get(f"train/{tag}")
            if value is not None:
                parts.append(f"{tag} {float(value):.4g}")
        parts.append(f"{speed:.2g} steps/s")
        if last:
            parts.append(f"ETA {clock((last - step) / speed)}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, said="  ".join(parts))
        else:
            self.print("  ".join([f"step {step}" + (f"/{last}" if last else ""), *parts]))

    def _forecast(self, step: int, last: int | None) -> None:
        """How long the run will take, once; without its first step, which takes along what is made once."""
        done = step - self.first_step
        if done == 1:
            self._after_first = time.monotonic()
        elif done == 1 + FEW and last and last > step and self._bar is None:
            left = (last - step) * (time.monotonic() - self._after_first) / FEW
            self.print(f"the {last - step} steps left take about {clock(left)}, validations not counted")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if not trainer.sanity_checking:
            self._evaluated("validation", batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._evaluated("test", batch_idx, trainer.num_test_batches[dataloader_idx])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._metrics("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metrics("test", trainer, pl_module)

    def _evaluated(self, what: str, batch_idx: int, of: int | float) -> None:
        if self._bar is None and (batch_idx + 1) % self.every_n_steps == 0:
            self.print(f"{what} {batch_idx + 1}/{of}")

    def _metrics(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{stage}/")}
        line = "  ".join(f"{tag} {value:.4g}" for tag, value in metrics.items())
        self.print(f"step {generator_step(trainer, pl_module)}: {line or 'nothing logged'}")


def _in_words(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"the CPU, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else str(device)


def max_steps(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """Generator steps that the run will take; None if nothing says so."""
    limit = getattr(pl_module, "max_generator_steps", None)
    if limit is None and trainer.max_steps > 0:
        limit = trainer.max_steps
    return None if limit is None else int(limit)

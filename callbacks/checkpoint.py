"""When checkpoints are written, and what Ctrl-C does."""

import os
import signal
import sys
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from aeic_lightning import UserError
from callbacks.base import generator_step


class LastCheckpoint(Checkpoint):
    """Keeps `<default_root_dir>/checkpoints/last.ckpt`, from which `fit --ckpt_path last` goes on.

    It is written every `every_n_steps` generator steps, at the end, and on Ctrl-C, always between two steps, so that
    the state is whole; and beside first, then renamed, so that a kill while it is written leaves the one before. A
    second Ctrl-C stops at once, without a checkpoint.

    Args:
        every_n_steps: generator steps between two writes.
        keep_every_n_steps: also keep `step_XXXXXXX.ckpt` so often; 0 for never.
    """

    def __init__(self, every_n_steps: int = 500, keep_every_n_steps: int = 0) -> None:
        if every_n_steps < 1 or keep_every_n_steps < 0:
            raise UserError("LastCheckpoint: every_n_steps starts at 1, keep_every_n_steps at 0")
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self._saved = -1
        self._stopping = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = generator_step(trainer, pl_module)
        self._previous = signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number, frame) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._stopping = True
        print("\nfinishing this step and saving; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        step = generator_step(trainer, pl_module)
        if getattr(pl_module, "mid_step", False):
            return  # an accumulated batch: its gradients are not in a checkpoint
        if self._stopping:
            self._save(trainer, step)
            print(f"saved {self.folder / 'last.ckpt'} at step {step}; go on with --ckpt_path last", file=sys.stderr)
            raise KeyboardInterrupt
        if step == self._saved:
            return
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._save(trainer, step)
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0:
            self._write(trainer, f"step_{step:07d}.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGINT, self._previous)
        if self._saved != generator_step(trainer, pl_module) and not getattr(pl_module, "mid_step", False):
            self._save(trainer, generator_step(trainer, pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_previous"):
            signal.signal(signal.SIGINT, self._previous)

    def _save(self, trainer: Trainer, step: int) -> None:
        self._write(trainer, "last.ckpt")
        self._saved = step

    def _write(self, trainer: Trainer, name: str) -> None:
        beside = self.folder / f"{name}.part"
        trainer.save_checkpoint(beside)  # every rank takes part
        if trainer.is_global_zero:
            os.replace(beside, self.folder / name)

"""When checkpoints are written, and what a signal to stop does."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.tensorboard import SummaryWriter

from aeic_lightning.errors import RunError, UserError
from callbacks.base import generator_step, tensorboard

SIGUSR1 = getattr(signal, "SIGUSR1", None)  # Windows has none


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all: beside first, flushed to the disk, then renamed.

    Lightning's own collects it in memory, writes it to the folder for temporary files, which may be a smaller disk, and
    copies it from there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises RunError when the file cannot be written; what lay there before is intact."""
        path = Path(path)
        beside = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:
            beside.unlink(missing_ok=True)
            # torch makes a RuntimeError of a write that stopped half way.
            reason = error if isinstance(error, OSError) else error.__context__
            number = getattr(reason, "errno", errno.ENOSPC)
            text = getattr(reason, "strerror", "it could not be finished")
            room = ", after making space on that disk" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
            kept = f"the one before is intact; go on from it by --ckpt_path {path}" if path.is_file() else "none yet"
            raise RunError(f"cannot write the checkpoint {path}: {text}; {kept}{room}") from error


class LastCheckpoint(Checkpoint):
    """Keeps `<default_root_dir>/checkpoints/last.ckpt`, from which `fit --ckpt_path last` goes on.

    It is written every `every_n_steps` generator steps, at the end, and on a signal to stop: always between two steps,
    when all of the step before is done, its validation and its log included. A run that is killed and resumed is then
    the uninterrupted one, bit for bit on a CPU. A kill while it is written leaves the one before.

    Signals: Ctrl-C and SIGTERM finish the step (and the validation, if one is running), save and stop; a second one
    stops at once, without a checkpoint. If no step and no image of a validation ends within `patience` seconds of a
    signal, something hangs: this is reported, and the process ends without a checkpoint. In a SLURM job SIGUSR1
    (`--signal=USR1@300`) does what the others do, and puts the job back into the queue. Over several processes it is
    enough that one gets the signal.

    On a resume, TensorBoard's files are cut back to what they were when the checkpoint was written, so that no point of
    a curve comes twice.

    Args:
        every_n_steps: generator steps between two writes.
        keep_every_n_steps: also keep `step_XXXXXXX.ckpt` at each multiple of this number; 0 for none.
        patience: seconds that a step, an image of a validation or a checkpoint may take after a signal.
    """

    def __init__(self, every_n_steps: int = 500, keep_every_n_steps: int = 0, patience: float = 180) -> None:
        if every_n_steps < 1 or keep_every_n_steps < 0:
            raise UserError("LastCheckpoint: every_n_steps starts at 1, keep_every_n_steps at 0")
        if not patience > 0:
            raise UserError(f"LastCheckpoint: patience is {patience}; it is a number of seconds above 0")
        self.patience = patience
        self._progress = time.monotonic()
        self._over = threading.Event()
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self._saved = -1
        self._signal = 0
        self._previous: dict[int, Any] = {}
        self._batches_that_stepped: int | None = None

    # ------------------------------------------------------------------ when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            # Lightning's own handler saves in the middle of a step, and hangs where one process gets the signal later.
            environment.auto_requeue = False
        if stage == "fit" and not trainer.ckpt_path and not (self.folder / "last.ckpt").is_file():
            _cut_back(trainer, {})  # curves of a run that ended before its first checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = generator_step(trainer, pl_module)
        self._over.clear()
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if SIGUSR1 is not None and "SLURM_JOB_ID" in os.environ:
                numbers.append(SIGUSR1)
            self._previous = {number: signal.signal(number, self._stop) for number in numbers}

    def _stop(self, number: int, frame: Any) -> None:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if number != SIGUSR1:  # SLURM may repeat it
            signal.signal(number, default)
        if not self._signal:
            self._progress = time.monotonic()
            threading.Thread(target=self._end_what_hangs, args=(number,), daemon=True, name="patience").start()
        self._signal = self._signal or number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"\n{name}: finishing this step and saving; a second one stops at once", file=sys.stderr, flush=True)

    def _end_what_hangs(self, number: int) -> None:
        while (left := self._progress + self.patience - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        last = self.folder / "last.ckpt"
        kept = f"go on from {last}, which is of an earlier step" if last.is_file() else "there is no checkpoint yet"
        print(
            f"error: no step has ended in {self.patience:g} seconds since the signal: it hangs, as where a file of the "
            f"data cannot be read; stopped without saving; {kept}", file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(128 + number)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._progress = time.monotonic()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._progress = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        loop = trainer.fit_loop.epoch_loop
        if self._batches_that_stepped is not None:
            # Lightning, on a resume, counts the last step before the checkpoint twice, and logs at other steps then.
            loop._batches_that_stepped, self._batches_that_stepped = self._batches_that_stepped, None
        if getattr(pl_module, "mid_step", False):
            return  # an accumulated batch: its gradients are not in a checkpoint
        step = generator_step(trainer, pl_module)
        number = self._signal
        if trainer.world_size > 1:
            number = int(trainer.strategy.reduce(torch.tensor(float(number)), reduce_op="max"))
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0 and step != self._saved:
            trainer.save_checkpoint(self.folder / f"step_{step:07d}.ckpt", weights_only=False)
        if number:
            self._save(trainer, step)
            self._leave(trainer, step, number)
        if step % self.every_n_steps == 0 and step != self._saved:
            self._save(trainer, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_signals()
        if self._saved != generator_step(trainer, pl_module) and not getattr(pl_module, "mid_step", False):
            self._save(trainer, generator_step(trainer, pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_signals()

    def _restore_signals(self) -> None:
        self._over.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save(self, trainer: Trainer, step: int) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)  # every rank takes part
        self._saved = step

    def _leave(self, trainer: Trainer, step: int, number: int) -> None:
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero:
            print(f"saved {last} at step {step}; go on with --ckpt_path last", file=sys.stderr, flush=True)
            if number == SIGUSR1:
                requeue()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    # ------------------------------------------------------------------ what

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if progress["total"]["ready"] > progress["total"]["completed"]:
            # The batch that is about to start is counted already, and on a resume Lightning rolls back only half of the
            # counts: validations would come a batch early from then on.
            for count in (progress["total"], progress["current"]):
                count["ready"] = count["completed"]
            progress["is_last_batch"] = False
        checkpoint["last_checkpoint"] = {
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "curves": _lengths(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint.get("last_checkpoint")
        if trainer.state.fn != "fit" or ours is None:
            return
        self._batches_that_stepped = ours["batches_that_stepped"]
        if Path(str(trainer.ckpt_path)).resolve().is_relative_to(Path(trainer.default_root_dir).resolve()):
            _cut_back(trainer, ours["curves"])


def _event_files(writer: SummaryWriter) -> list[Path]:
    # Not `trainer.log_dir`, which all processes must ask for together.
    return sorted(Path(writer.log_dir).glob("events.out.tfevents.*"))


def _lengths(trainer: Trainer) -> dict[str, int]:
    """The length in bytes of each of TensorBoard's files, when all points so far have reached them."""
    writer = tensorboard(trainer)
    if writer is None:
        return {}
    writer.flush()
    return {path.name: path.stat().st_size for path in _event_files(writer)}


def _cut_back(trainer: Trainer, lengths: dict[str, int]) -> None:
    """Cut TensorBoard's files, apart from the one that this process writes, to these lengths; 0 removes one."""
    writer = tensorboard(trainer)
    if writer is None:
        return
    own = Path(writer._get_file_writer().event_writer._file_name).name
    for path in _event_files(writer):
        length = lengths.get(path.name, 0)
        if path.name == own:
            continue
        if not length:
            path.unlink()
        elif path.stat().st_size > length:
            os.truncate(path, length)


def requeue() -> None:
    """Put this SLURM job (or this task of a job array) back into the queue."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    if not re.fullmatch(r"[0-9_]+", job):
        raise RunError(f"{job!r} is no number of a SLURM job; the checkpoint is saved, submit the job again")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        said = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        said = str(error)
    if said:
        raise RunError(f"scontrol requeue {job}: {said}; the checkpoint is saved, submit the job again")
    print(f"job {job} is back in the queue", file=sys.stderr, flush=True)

"""What an update costs, for the estimate of a sweep (`sweep --eta`)."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aeic_lightning.files import write_whole
from callbacks.base import generator_step

FILE = "step_times.json"


class StepTimes(Callback):
    """Writes `step_times.json` into the run folder: the seconds of an update, and the device.

    On a CPU they are processor seconds of this process, all threads together, which other processes of the machine
    do not change; on a GPU they are seconds.

    Args:
        leave_out: first updates that do not count, since they fill caches. The run needs more than these.
    """

    def __init__(self, leave_out: int = 2) -> None:
        self.leave_out = leave_out
        self.times: dict[int, float] = {}  # by updates done

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        on_gpu = pl_module.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        now = time.monotonic() if on_gpu else time.process_time()
        self.times.setdefault(generator_step(trainer, pl_module), now)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (first, began), *_, (last, ended) = [item for item in self.times.items() if item[0] >= self.leave_out]
        record = {"seconds": (ended - began) / (last - first), "device": pl_module.device.type}
        write_whole(Path(trainer.default_root_dir) / FILE, json.dumps(record) + "\n")

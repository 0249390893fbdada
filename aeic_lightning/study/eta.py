"""What a sweep will take: a few timed updates of each distinct experiment, times the updates that are left.

Each is timed by a `fit` of its own, as the sweep would start it, in a temporary folder. Validations, evaluations and
the report come on top.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aeic_lightning.config import as_override
from aeic_lightning.errors import UserError
from aeic_lightning.output import clock
from aeic_lightning.study.experiment import OVERRIDDEN, experiment_settings
from aeic_lightning.study.halving import expected_share
from aeic_lightning.study.sweep_file import Run, Sweep, steps_of

LEFT_OUT, TIMED = 2, 4  # updates
STEP_TIMES = "callbacks.step_times.StepTimes"
LENGTHS = (*OVERRIDDEN, "optimization.decay_steps", "optimization.schedule", "optimization.final_learning_rate")
"""Settings that say how many updates there are and how large, not what one costs."""


@dataclass
class Group:
    """Runs whose updates cost the same.

    Attributes:
        seconds: of one update; None where it could not be timed, and `why` says so.
        device: that it was timed on.
    """

    runs: list[Run] = field(default_factory=list)
    seconds: float | None = None
    device: str = ""
    why: str = ""


def estimate(sweep: Sweep, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Time each distinct experiment of the runs that are not done, print what the sweep will take, and return it.

    Args:
        sweep: the sweep.
        settings: the resolved config of each run, by name.
    """
    groups = _groups(sweep, settings)
    for group in groups:
        _time(group)
        first, more = group.runs[0].name, f" and {len(group.runs) - 1} more" * (len(group.runs) > 1)
        cost = f"{group.seconds:.3g} s" if group.seconds is not None else f"not timed ({group.why})"
        print(f"an update of {first}{more}: {cost}", flush=True)
    record = _sum(sweep, settings, [group for group in groups if group.seconds is not None])
    print(_words(record, len([group for group in groups if group.seconds is None])))
    return record


def _groups(sweep: Sweep, settings: dict[str, dict[str, Any]]) -> list[Group]:
    groups: dict[frozenset, Group] = {}
    for run in sweep.runs:
        if not run.done:
            own = experiment_settings(settings[run.name])
            key = frozenset((name, value) for name, value in own.items() if name not in LENGTHS)
            groups.setdefault(key, Group()).runs.append(run)
    return list(groups.values())


def _time(group: Group) -> None:
    """Fill in the seconds of an update of the group's first run, or why there are none."""
    run = group.runs[0]
    with TemporaryDirectory() as folder:
        chosen = {
            "trainer.default_root_dir": folder,
            "trainer.max_steps": LEFT_OUT + TIMED,
            "trainer.limit_val_batches": 0,
            "trainer.logger": False,
            "trainer.enable_checkpointing": False,
            "trainer.enable_progress_bar": False,
            "trainer.callbacks": [{"class_path": STEP_TIMES, "init_args": {"leave_out": LEFT_OUT}}],
        }
        words = [f"--{override}" for override in [*run.overrides, *(as_override(*item) for item in chosen.items())]]
        code, said = _fit(["fit", "--config", str(run.config), *words], run.threads)
        if code:
            group.why = (said.strip().splitlines() or ["it was killed"])[-1].removeprefix("error: ")
            return
        record = json.loads((Path(folder) / "step_times.json").read_text())
        group.seconds, group.device = record["seconds"], record["device"]


def _fit(words: list[str], threads: int) -> tuple[int, str]:
    """Exit code of a command, and what it said of errors."""
    done = subprocess.run(
        [sys.executable, "-m", "aeic_lightning", *words], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    return done.returncode, done.stderr


def _sum(sweep: Sweep, settings: dict[str, dict[str, Any]], groups: list[Group]) -> dict[str, Any]:
    """Updates and hours that are left, and those if each rung were a run from the beginning.

    Of what halving will leave out, the share that is to be expected counts.
    """
    updates = alone = seconds = alone_seconds = 0.0
    shares = expected_share(sweep)
    for group in groups:
        for run in group.runs:
            own = steps_of(settings[run.name], run.begins) * shares.get(run.name, 1.0)
            whole = 0 if run.trunk else own + run.begins * shares.get(run.name, 1.0)
            updates, alone = updates + own, alone + whole
            seconds += own * (group.seconds or 0.0)
            alone_seconds += whole * (group.seconds or 0.0)
    on_gpu = any(group.device == "cuda" for group in groups)
    if on_gpu and any(group.device != "cuda" for group in groups):
        raise UserError("some runs of the sweep are on a GPU and some on a CPU; estimate them by sweeps of their own")
    processes = sweep.workers * (1 if on_gpu else max(run.threads for run in sweep.runs))
    return {
        "updates": round(updates),
        "hours": seconds / 3600,
        "of": "GPU" if on_gpu else "core",
        "seconds": seconds / processes,
        "halving": sweep.halves,
        "rungs_alone": {"updates": round(alone), "hours": alone_seconds / 3600}
        if any(r.trunk for r in sweep.runs)
        else None,
    }


def _words(record: dict[str, Any], untimed: int) -> str:
    unit = f"{record['of']} hours"
    said = [
        f"to do: {record['updates']:,} updates, {record['hours']:.2g} {unit} of training, "
        f"{clock(record['seconds'])} with this many workers; validations and evaluations come on top"
    ]
    if alone := record["rungs_alone"]:
        said.append(
            f"the rungs share their trunks; a run for each rung would be {alone['updates']:,} updates, "
            f"{alone['hours']:.2g} {unit}"
        )
    if record["halving"]:
        said.append("of what halving will leave out, as much is counted as is to be expected")
    if untimed:
        said.append(f"without {untimed} experiment{'s' * (untimed > 1)} that could not be timed")
    return "\n".join(said)

"""Where the runs of a sweep are executed: as processes of this machine, or through submitit on a SLURM cluster.

On this machine each run is one process in a session of its own, so that a signal reaches it once, from the sweep. It
shares no terminal with the sweep, and nothing stands between them: submitit's own local executor has two helper
processes a run, which outlive the sweep.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import time
from collections import Counter, deque
from typing import IO, Any, Protocol

from filelock import FileLock, Timeout

from aeic_lightning.errors import UserError
from aeic_lightning.output import PARENT
from aeic_lightning.run_folder import is_free
from aeic_lightning.study.sweep_file import LOG, RECORD, Run, Sweep

LOCK = ".lock"  # file in a run's folder, locked by the sweep or the cluster's job that has started the run
POLL = 0.5  # seconds between two looks at a run's folder that is not free

# ---------------------------------------------------------------------- one run


def start(
    run: Run, command: list[str], log: IO, gpus: list[str] | None = None, new_session: bool = False
) -> subprocess.Popen:
    """Start one of a run's commands. It ends if this process ends.

    Args:
        run: what to run.
        command: of `run.commands`.
        log: open file for all that the run prints.
        gpus: ids of the GPUs that it may use; None leaves the environment as it is.
        new_session: keep signals of this terminal and process group away from it.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.threads), "PYTHONUNBUFFERED": "1"}
    environment[PARENT] = str(os.getpid())
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=new_session,
    )  # fmt: skip


def conclude(run: Run, code: int, start_of_log: int) -> str | None:
    """Mark a run that ended well as done; else return the end of its log."""
    if code == 0:
        (run.folder / RECORD).touch()
        return None
    with (run.folder / LOG).open(errors="replace") as log:
        log.seek(start_of_log)
        return "".join(deque(log, maxlen=15)) or f"it ended with code {code} and printed nothing"


class Started(Protocol):
    """A run that was started: a LocalRun, or a job of submitit."""

    def done(self) -> bool: ...

    def result(self) -> str | None: ...


class LocalRun:
    """A run as a process of this machine.

    It first waits until the run's folder is free: what another sweep has left may still be saving its checkpoint there.
    """

    def __init__(self, run: Run, gpus: list[str] | None = None) -> None:
        self.run = run
        self.gpus = gpus
        self.process: subprocess.Popen | None = None
        self.left: list[list[str]] = []  # commands
        self.stopped = False
        self.lock = FileLock(run.folder / LOCK)
        run.folder.mkdir(parents=True, exist_ok=True)

    def done(self) -> bool:
        """Whether it has ended; starts it when its folder is free."""
        if self.process is None and not self.stopped:
            self._start_if_free()
        elif self.left and not self.stopped and self.process is not None and self.process.poll() == 0:
            self._start_next()
        return self.stopped if self.process is None else self.process.poll() is not None

    def _start_if_free(self) -> None:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return
        if self.run.done:
            self.stopped = True
        elif is_free(self.run.folder):
            log = self.run.folder / LOG
            self.start_of_log = log.stat().st_size if log.is_file() else 0
            self.left = self.run.commands
            self._start_next()
            return
        self.lock.release()

    def _start_next(self) -> None:
        with (self.run.folder / LOG).open("a") as log:
            self.process = start(self.run, self.left.pop(0), log, self.gpus, new_session=True)

    def result(self) -> str | None:
        """None if it is done, else why not."""
        if self.process is None:
            return None if self.run.done else "not started"
        code = self.process.wait()
        error = "stopped" if self.left and code == 0 else conclude(self.run, code, self.start_of_log)
        self.lock.release()
        return error

    def stop(self) -> None:
        """Have the run save a checkpoint and end, as after Ctrl-C.

        By SIGTERM: a sweep in the background of a script hands SIGINT down as ignored, so that a run which is still
        importing would not notice it.
        """
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """End it and all of its own processes at once."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(self.process.pid, signal.SIGKILL)  # it leads the group of its session
                else:  # Windows
                    self.process.kill()


class ClusterRun:
    """What a node of a cluster executes: one run, to its end. submitit pickles it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self) -> str | None:
        """None if the run is done, else the end of its log."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        # A sweep that was killed may have left this run in the queue, so another job may be at it.
        with FileLock(self.run.folder / LOCK).acquire(poll_interval=POLL):
            while not self.run.done and not is_free(self.run.folder):
                time.sleep(POLL)
            if self.run.done:
                return None
            code = 0
            with (self.run.folder / LOG).open("a") as log:
                start_of_log = log.tell()
                for command in self.run.commands:
                    code = code or start(self.run, command, log).wait()
            return conclude(self.run, code, start_of_log)

    def checkpoint(self) -> Any:
        """For submitit, when the cluster takes the node away: the same run again, which goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


# ---------------------------------------------------------------------- where runs go


class Gpus:
    """The GPUs of this machine: each run gets those that the fewest others use, so a worker has one for itself.

    Args:
        ids: as in CUDA_VISIBLE_DEVICES; none on a machine without GPUs.
    """

    def __init__(self, ids: list[str]) -> None:
        self.users = Counter(dict.fromkeys(ids, 0))

    def take(self, count: int) -> list[str] | None:
        """The ids of `count` GPUs; None where there are none at all. Raises UserError where there are too few."""
        if not self.users:
            return None
        if count > len(self.users):
            raise UserError(f"gpus is {count}, but this machine has {len(self.users)}; lower it")
        taken = sorted(self.users, key=lambda gpu: self.users[gpu])[:count]
        self.users.update(taken)
        return taken

    def give_back(self, taken: list[str] | None) -> None:
        """Let others have them."""
        self.users.subtract(taken or [])


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


class LocalExecutor:
    """Starts runs as processes of this machine."""

    def __init__(self, sweep: Sweep) -> None:
        self.gpus = Gpus(visible_gpus())
        for run in sweep.runs:
            self.gpus.give_back(self.gpus.take(run.gpus))  # too many are refused before anything runs
        self.running: list[LocalRun] = []

    def submit(self, run: Run) -> LocalRun:
        """Start a run as soon as its folder is free."""
        self.running.append(LocalRun(run, self.gpus.take(run.gpus)))
        return self.running[-1]

    def release(self, started: LocalRun) -> None:
        """Take note that a run has ended."""
        self.running.remove(started)
        self.gpus.give_back(started.gpus)

    def stop(self) -> None:
        """End all runs with their checkpoints."""
        for started in self.running:
            started.stop()

    def kill(self) -> None:
        """End all runs at once."""
        for started in self.running:
            started.kill()


class ClusterExecutor:
    """Submits runs to SLURM."""

    def __init__(self, sweep: Sweep) -> None:
        import submitit

        logging.getLogger("submitit").setLevel(logging.ERROR)
        try:
            self.executor = submitit.AutoExecutor(folder=sweep.root / ".jobs" / "%j", cluster=sweep.cluster)
            # submitit's own limit is five minutes.
            defaults = {"timeout_min": 14 * 24 * 60, "stderr_to_stdout": True}
            self.executor.update_parameters(**(defaults | sweep.executor))
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise UserError(f"cluster {sweep.cluster}: {' '.join(str(error).split())}") from error
        self.jobs: list[Any] = []

    def submit(self, run: Run) -> Any:
        """Put a run into the queue."""
        self.executor.update_parameters(name=re.sub(r"\W+", "_", run.name), cpus_per_task=run.threads)
        self.jobs.append(self.executor.submit(ClusterRun(run)))
        return self.jobs[-1]

    def release(self, started: Any) -> None:
        """Take note that a job has ended."""
        self.jobs.remove(started)

    def stop(self) -> None:
        """Take all jobs off the cluster."""
        for job in self.jobs:
            with contextlib.suppress(Exception):
                job.cancel()
        self.jobs = []

    kill = stop

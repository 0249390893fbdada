"""Sweeps: experiments in the order of their needs, each in a process of its own, started again only where missing.

A sweep file:

    vars: {root: runs/mine}
    root: ${vars.root}
    workers: 2                                                       # runs at a time; they share the cores
    runs:
      - {name: teacher, config: teacher.yaml}                        # relative to the sweep file
      - {name: student, config: student.yaml, needs: [teacher], set: {vars.depth: 1}}
    compare: {runs: [teacher, student], out: results/mine}           # by: accuracy, for classifying runs

Every run gets `vars.root` and `vars.name`, so that its folder is root/name, and its own `set` on top.
"""

import os
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aeic_lightning import UserError
from aeic_lightning.config import load_config

RECORD = "finished"  # file in a run folder that says the run is complete


@dataclass(frozen=True)
class Run:
    """One experiment of a sweep."""

    name: str
    config: Path
    folder: Path
    needs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return (self.folder / RECORD).is_file()

    @property
    def command(self) -> list[str]:
        """What to run: a new run, or the rest of an interrupted one."""
        words = [sys.executable, "-m", "aeic_lightning", "fit", "--config", str(self.config)]
        words += [f"--{name}={value}" for name, value in self.settings.items()]
        if (self.folder / "checkpoints" / "last.ckpt").is_file():
            words += ["--ckpt_path", "last"]
        return words


@dataclass(frozen=True)
class Sweep:
    """All runs, and what is compared in the end."""

    runs: list[Run]
    compare: list[str]
    out: Path
    root: Path
    workers: int = 1
    by: str = "quality"


def read_sweep(file: Path, overrides: list[str]) -> Sweep:
    """Read and check a sweep file. Raises UserError for runs that cannot be put in an order."""
    root = load_config([file], [*overrides])
    raw = root.get("runs")
    if not raw:
        raise UserError(f"{file} lists no runs; see experiments/tiny/demo.yaml")
    folder = Path(root.get("root", "runs"))
    runs, known = [], set()
    for entry in raw:
        unknown = set(entry) - {"name", "config", "needs", "set"}
        if unknown or not {"name", "config"} <= set(entry):
            raise UserError(f"{file}: a run has name, config, needs and set; got {', '.join(map(str, entry))}")
        name, needs = entry["name"], entry.get("needs") or []
        if name in known:
            raise UserError(f"{file}: two runs are called {name}; rename one")
        missing = [need for need in needs if need not in known]
        if missing:
            raise UserError(f"{file}: {name} needs {missing[0]}, which must be listed before it")
        known.add(name)
        settings = {"vars.root": str(folder), "vars.name": name} | (entry.get("set") or {})
        runs.append(Run(name, file.parent / entry["config"], folder / name, needs, settings))
    compare = root.get("compare") or {}
    for name in compare.get("runs") or []:
        if name not in known:
            raise UserError(f"{file}: compare names {name}, which is no run of the sweep")
    by = compare.get("by", "quality")
    if by not in ("quality", "accuracy"):
        raise UserError(f"{file}: compare by {by}; it is by quality or by accuracy")
    workers = root.get("workers", 1)
    if not isinstance(workers, int) or workers < 1:
        raise UserError(f"{file}: workers is {workers}; it is the number of runs at a time, at least 1")
    return Sweep(runs, compare.get("runs") or [], Path(compare.get("out") or folder), folder, workers, by)


def run_sweep(sweep: Sweep, dry_run: bool = False) -> int:
    """Run what is missing, compare, and report the gaps; returns the exit code."""
    if dry_run:
        for run in sweep.runs:
            print(f"{'done   ' if run.done else 'missing'} {run.name}: {' '.join(run.command)}")
        return 0
    began = time.monotonic()
    failed = _run_missing(sweep)
    if failed:
        print(f"{len(failed)} of {len(sweep.runs)} runs are missing: {', '.join(failed)}; start again to fill the gaps")
        return 1
    if sweep.compare:
        folders = [sweep.root / name for name in sweep.compare]
        if sweep.by == "accuracy":
            from aeic_lightning.analysis.comparison import compare_accuracy

            compare_accuracy(folders, sweep.out)
        else:
            from aeic_lightning.evaluation.comparison import compare_runs

            compare_runs(folders, sweep.out)
    print(f"all {len(sweep.runs)} runs done in {time.monotonic() - began:.0f} s")
    print(f"curves: {sys.executable} -m tensorboard.main --logdir {sweep.root}")
    return 0


def _run_missing(sweep: Sweep) -> dict[str, str]:
    """Run all that is not done, up to `workers` at a time; returns why runs failed, by name."""
    failed: dict[str, str] = {}
    running: dict[Future, Run] = {}
    began = time.monotonic()
    waiting = [run for run in sweep.runs if not run.done]
    for run in sweep.runs:
        if run.done:
            print(f"{run.name}: done before", flush=True)
    with ThreadPoolExecutor(sweep.workers) as pool:
        while waiting or running:
            for run in list(waiting):
                blocked = [need for need in run.needs if need in failed]
                if blocked:
                    waiting.remove(run)
                    failed[run.name] = f"not started, since {blocked[0]} failed"
                    print(f"{run.name}: {failed[run.name]}", flush=True)
            unfinished = {run.name for run in (*waiting, *running.values())}
            ready = [run for run in waiting if not unfinished.intersection(run.needs)]
            ready = ready[: sweep.workers - len(running)]
            threads = max(1, (os.cpu_count() or 1) // max(1, len(running) + len(ready)))
            for run in ready:
                waiting.remove(run)
                print(f"{run.name}: {run.config}  ({time.monotonic() - began:.0f} s so far)", flush=True)
                running[pool.submit(_execute, run, threads)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                if error := future.result():
                    failed[run.name] = error
                    print(f"{run.name}: failed; its log is {run.folder / 'log.txt'}\n{error}", flush=True)
    return failed


def _execute(run: Run, threads: int) -> str | None:
    """Run one experiment, showing its output and keeping it in log.txt; the end of the log if it fails."""
    run.folder.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=15)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with (run.folder / "log.txt").open("a") as log:
        # Ctrl-C reaches the run too, which then saves its checkpoint and ends.
        process = subprocess.Popen(
            run.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for line in process.stdout:
            print(f"  {run.name}: {line}", end="", flush=True)
            log.write(line)
            tail.append(line)
    if process.wait() == 0:
        (run.folder / RECORD).touch()
        return None
    return "".join(tail)

"""Running a sweep: up to `workers` runs at a time, each after those it needs, then the comparison.

Ctrl-C, SIGTERM and SIGHUP end the runs of this machine as Ctrl-C ends a `fit`: they save a checkpoint, and the sweep
waits for that. A second signal kills them. If the sweep itself is killed, its runs notice, save and end. Runs on a
cluster are taken off its queue by a signal, and stay in it when the sweep is killed.

Whatever was stopped goes on from its last checkpoint when the sweep is started again. The number of threads of a run
stays the same, and so do the results.
"""

import contextlib
import json
import shlex
import signal
import sys
import time
from dataclasses import replace
from typing import Any, cast

from aeic_lightning.config import flat
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import write_whole
from aeic_lightning.output import clock
from aeic_lightning.own_classes import SOURCES, own_sources, source_digests
from aeic_lightning.run_folder import only_process, read_record
from aeic_lightning.study.executors import ClusterExecutor, LocalExecutor, Started
from aeic_lightning.study.halving import Rounds
from aeic_lightning.study.sweep_file import LOG, SETTINGS, Run, Sweep, steps_of

SWEEP = ".sweep"  # .sweep.lock in the root of a sweep is locked while it runs, and .sweep.json names its process
REFUSED = (
    "a sweep is running in {folder} already: {holder}; wait for it, stop it, or give this one another root "
    "(--vars.root=DIR)"
)
# Windows has no SIGHUP.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
POLL = 0.2  # seconds


def checked_settings(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """The resolved config of each run by name. Raises UserError for what would stop the sweep later."""
    settings = {run.name: run.resolved() for run in sweep.runs}
    for run in sweep.runs:
        check_unchanged(run, settings[run.name])
    if sweep.report.get("claims"):
        from aeic_lightning.study.views import check_claims

        check_claims(sweep, settings)
    return settings


def run_sweep(sweep: Sweep, dry_run: bool = False) -> int:
    """Run what is missing, then compare and report; returns the exit code."""
    settings = checked_settings(sweep)
    rounds = Rounds(sweep)
    if sweep.halves:
        require("halving", "optuna")
    if dry_run:
        rounds.settle({run.name for run in sweep.runs if run.done})
        for run in sweep.runs:
            state = "done   " if run.done else "left out" if run.name in rounds.out else "missing"
            print(f"{state} {run.name}: {shlex.join(run.command)}")
        print(f"{sum(run.done for run in sweep.runs)} of {len(sweep.runs)} runs done")
        _check_runs(sweep, settings)
        return 0
    _check_runs(sweep, settings)
    if sweep.report:  # which is made at the end
        require("the sweep's report", "bjontegaard", "jinja2", "plotly")
    if sweep.cluster != "local":
        require(f"cluster {sweep.cluster}", "submitit")
    began = time.monotonic()
    with only_process(sweep.root, SWEEP, REFUSED):
        failed = _run_missing(sweep, settings, rounds)
        if failed:
            print(f"{len(failed)} of {len(sweep.runs)} runs are missing:")
            for name, why in failed.items():
                print(f"  {name}: {why.strip().splitlines()[-1] if why.strip() else 'it was killed'}")
            print("start the sweep again to fill the gaps")
            return 1
        from aeic_lightning.study.views import finish

        finish(replace(sweep, runs=[run for run in sweep.runs if run.name not in rounds.out]))
    print(f"all {len(sweep.runs) - len(rounds.out)} runs done in {time.monotonic() - began:.0f} s")
    print(f"curves: {sys.executable} -m tensorboard.main --logdir {sweep.root}")
    return 0


def _check_runs(sweep: Sweep, settings: dict[str, dict[str, Any]]) -> None:
    """Raise UserError for a run that its `fit` would refuse after hours of the others."""
    missing = [settings[run.name].get("model") or {} for run in sweep.runs if not run.done]
    if any(model.get("class_path") for model in missing):  # torch takes seconds
        from aeic_lightning.study.binding import bind_runs

        bind_runs(sweep.runs, settings)


def check_unchanged(run: Run, settings: dict[str, Any]) -> None:
    """Raise UserError for a run that has trained with other settings: it would be taken for what it is not.

    A run without a checkpoint begins anew, so its settings may be corrected. A study may have been moved elsewhere.
    """
    record = run.folder / SETTINGS
    if not record.is_file() or not run.has_trained:
        return
    before, now = _moved(flat(json.loads(record.read_text())), run), flat(json.loads(json.dumps(settings)))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{run.folder} was begun with {key} = {before.get(key)}, the sweep now says {now.get(key)}; "
                "remove the folder, or give the sweep another root (--vars.root=DIR)"
            )


def _moved(before: dict[str, Any], run: Run) -> dict[str, Any]:
    """The settings with the folder of all runs where it lies now."""
    folder = str(before.get("trainer.default_root_dir"))
    if not folder.endswith(f"/{run.name}"):
        return before
    was, lies = folder.removesuffix(run.name), str(run.folder).removesuffix(run.name)
    return {
        key: lies + value.removeprefix(was) if isinstance(value, str) and value.startswith(was) else value
        for key, value in before.items()
    }


# ---------------------------------------------------------------------- the sweep


class Signals:
    """Counts the signals to stop, instead of being ended by them. One that is ignored (nohup) stays ignored."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: Any) -> None:
        self.received.append(number)

    def __exit__(self, *reason: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _run_missing(sweep: Sweep, settings: dict[str, Any], rounds: Rounds) -> dict[str, str]:
    """Run all that is not done, up to `workers` at a time; returns why runs failed, by name.

    Whatever ends it, signals and errors, ends the local runs first.
    """
    for run in sweep.runs:
        if run.done:
            print(f"{run.name}: done before", flush=True)
    if all(run.done for run in sweep.runs):  # counting GPUs would take torch, and torch seconds
        _warn_of_edits(sweep, settings, set())
        return {}
    failed: dict[str, str] = {}
    running: dict[str, tuple[Run, Started, Tail]] = {}
    executor = LocalExecutor(sweep) if sweep.cluster == "local" else ClusterExecutor(sweep)
    with Signals() as signals:
        try:
            _loop(sweep, settings, executor, signals, running, failed, rounds)
        finally:
            _end(sweep, executor, signals, running)
    if signals.received:
        if signals.received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signals.received[0])
    return failed


def _loop(
    sweep: Sweep,
    settings: dict[str, Any],
    executor: LocalExecutor | ClusterExecutor,
    signals: Signals,
    running: dict[str, tuple[Run, Started, "Tail"]],
    failed: dict[str, str],
    rounds: Rounds,
) -> None:
    began, trained = time.monotonic(), 0
    waiting = [run for run in sweep.runs if not run.done]
    warned: set[str] = set()
    _warn_of_edits(sweep, settings, warned)
    while (waiting or running) and not signals.received:
        for run in list(waiting):
            blocked = [need for need in run.needs if need in failed]
            if blocked:
                waiting.remove(run)
                failed[run.name] = f"not started, since {blocked[0]} failed"
                print(f"{run.name}: {failed[run.name]}", flush=True)
        unfinished = {*running, *(run.name for run in waiting)}
        for said in rounds.settle({run.name for run in sweep.runs} - unfinished):
            print(said, flush=True)
        waiting = [run for run in waiting if run.name not in rounds.out]
        ready = [run for run in waiting if not unfinished.intersection(run.needs) and not rounds.waits(run)]
        for run in ready[: sweep.workers - len(running)]:
            waiting.remove(run)
            number = f"{len(sweep.runs) - len(waiting) - len(running)}/{len(sweep.runs)}"
            print(f"{run.name}: {run.config}  (run {number}, {time.monotonic() - began:.0f} s so far)", flush=True)
            write_whole(run.folder / SETTINGS, json.dumps(settings[run.name], indent=1) + "\n")
            tail = Tail(run)
            running[run.name] = run, executor.submit(run), tail
        time.sleep(POLL)
        for name, (run, started, tail) in list(running.items()):
            over = started.done()
            tail.show()
            if over:
                del running[name]
                executor.release(cast(Any, started))
                left = [*waiting, *(run for run, _, _ in running.values())]
                if error := _outcome(run, started):
                    failed[name] = error
                    print(f"{name}: failed; its log is {run.folder / LOG}\n{error}", flush=True)
                else:
                    trained += steps_of(settings[name], run.begins)
                    _warn_of_edits(sweep, settings, warned)
                    print(f"{name}: done{_eta(settings, left, trained, time.monotonic() - began)}", flush=True)
    if not signals.received:
        rounds.settle({run.name for run in sweep.runs})  # the last rung, of which nothing depends


def _warn_of_edits(sweep: Sweep, settings: dict[str, Any], warned: set[str]) -> None:
    """Say where a class of the user's own is not the same in all runs: as they recorded it, or as it is now.

    `warned` holds what has been said.
    """
    begun = {run.name: sources_of(run) for run in sweep.runs if run.has_trained}
    if not any(begun.values()):
        return
    first: dict[str, tuple[str, str]] = {}
    for run in sorted(sweep.runs, key=lambda run: run.name not in begun):
        known = begun.get(run.name)
        for module, digest in (source_digests(own_sources(settings[run.name])) if known is None else known).items():
            name, theirs = first.setdefault(module, (run.name, digest))
            if theirs != digest and module not in warned:
                warned.add(module)
                _say(
                    f"warning: {module} was edited between the runs {name} and {run.name}, which are different "
                    f"experiments; each folder has its source ({SOURCES}/). Undo the edit, or remove a folder to "
                    "train it again"
                )


def sources_of(run: Run) -> dict[str, str]:
    """Digests of the user's own modules that a run was begun with, by name."""
    return (read_record(run.folder) or {}).get("sources") or {}


def _eta(settings: dict[str, Any], runs: list[Run], trained: int, seconds: float) -> str:
    """How long the other runs will take at the speed so far, workers included; nothing after the last one."""
    left = sum(steps_of(settings[run.name], run.begins) for run in runs)
    return f"  ({len(runs)} runs left, ETA {clock(seconds / trained * left)})" if runs else ""


def _outcome(run: Run, started: Started) -> str | None:
    """None for a run that is done, else the reason."""
    try:
        error = started.result()
    except Exception as exception:  # submitit's own, for a job that was killed or never began
        error = f"{type(exception).__name__}: {str(exception).strip().splitlines()[-1]}"
    if run.done:
        return None
    return error or "it was killed"


def _end(
    sweep: Sweep,
    executor: LocalExecutor | ClusterExecutor,
    signals: Signals,
    running: dict[str, tuple[Run, Started, "Tail"]],
) -> None:
    """End what is still running, with its checkpoint; at once after a second signal."""
    if not running:
        return
    executor.stop()
    _say(f"stopping: {', '.join(running)} save their checkpoints and end; a second signal ends them at once")
    killed = False
    while sweep.cluster == "local" and not all(started.done() for _, started, _ in running.values()):
        if len(signals.received) > 1 and not killed:
            executor.kill()
            killed = True
        time.sleep(POLL)
        for _, _, tail in running.values():
            with contextlib.suppress(OSError):
                tail.show()
    for _, started, tail in running.values():
        started.result() if sweep.cluster == "local" else None  # one that ended well in the meantime is done
        with contextlib.suppress(OSError):
            tail.show()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(text, file=sys.stderr, flush=True)


class Tail:
    """Shows what is added to a run's log."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.path = run.folder / LOG
        self.position = self.path.stat().st_size if self.path.is_file() else 0

    def show(self) -> None:
        """Print the whole lines that are new."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as log:
            log.seek(self.position)
            lines = log.read().split(b"\n")
        self.position += sum(len(line) + 1 for line in lines[:-1])
        for line in lines[:-1]:
            print(f"  {self.run.name}: {line.decode(errors='replace')}", flush=True)

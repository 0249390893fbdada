"""Sweeps: a grid of experiments, each after those it needs, through submitit on this machine or on a SLURM cluster.

A sweep file:

    vars: {root: runs/mine}
    root: ${vars.root}
    cluster: local                  # or slurm
    workers: 2                      # runs at a time
    threads: 1                      # CPU threads of a run; by default the cores shared out among the workers
    set: {data.init_args.batch_size: 4}                              # settings of every run
    executor: {slurm_partition: gpu, gpus_per_node: 1, timeout_min: 720}     # what submitit's AutoExecutor takes
    runs:
      - {name: teacher, config: teacher.yaml}                        # relative to the sweep file
      - name: depth={depth}_arm={arm}_lambda={lambda}                # one run for each point of the grid
        grid: {depth: [1, 2], arm: [none, enc], lambda: [1, 2]}
        config: student_{arm}.yaml
        needs: [teacher]
        set: {vars.depth: "{depth}", vars.lambda: "{lambda}"}        # settings, as on the command line
    compare: {runs: [teacher, "depth={depth}..."], out: results/mine}     # by: accuracy, for classifying runs
    report:
      {out: results/mine, title: ..., select: {stage: 2}, metrics: [psnr], files: [anchors.json],
       against: [{reference: {arm: teacher}}, {reference: {arm: none}, within: [depth]}]}

An axis of a grid is a list of values, or a mapping from a value's name to settings: `arm: {short: {vars.steps: 50}}`.
`{axis}` in name, config, needs, set and labels stands for its value. Every run gets `vars.root` and `vars.name`, so
that its folder is root/name, then its own settings, then its point of the grid and `labels` as
`model.init_args.labels`, by which TensorBoard and the report tell runs apart.

`report` writes, of the runs whose labels are as in `select`: results.json and .csv, a table of BD-rates (bd_rate.json
and .md), and index.html, which also shows the result `files`. Each entry of `against` compares all other curves with
the curves that have the labels of `reference`, or only those that agree with it in the labels `within`.

A run is done when its folder holds the file `finished`. Whatever is killed, the sweep included, goes on from its last
checkpoint when the sweep is started again; the number of threads stays the same, and so do the results.
"""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from aeic_lightning.config import load_config
from aeic_lightning.errors import UserError
from aeic_lightning.provenance import command_line

LABELS = "model.init_args.labels."
RECORD = "finished"  # file in a run folder that says the run is complete
SETTINGS = "sweep.json"  # file in a run folder with the resolved config that the sweep started it with
LOG = "log.txt"  # file in a run folder with all that the run has said
COMPARISONS = {
    "quality": "aeic_lightning.study.comparison.compare_runs",
    "accuracy": "aeic_lightning.classification.comparison.compare_accuracy",
}
"""What ends a sweep with a table of its runs, by the word after `by`; imported by name when it is wanted."""
REPORT_KEYS = {"out", "title", "select", "against", "metrics", "files"}
ENTRY_KEYS = {"name", "config", "needs", "set", "grid", "labels", "threads"}
SWEEP_KEYS = {"root", "runs", "set", "cluster", "workers", "threads", "executor", "compare", "report"}


@dataclass(frozen=True)
class Run:
    """One experiment of a sweep: a point of a grid."""

    name: str
    config: Path
    folder: Path
    needs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 1

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

    def resolved(self) -> dict[str, Any]:
        """Its whole config. Raises UserError where it has no sense."""
        return load_config([self.config], [f"{name}={value}" for name, value in self.settings.items()])


@dataclass(frozen=True)
class Sweep:
    """All runs, in an order in which they can be done, and what is made of them in the end."""

    runs: list[Run]
    root: Path
    cluster: str = "local"
    workers: int = 1
    executor: dict[str, Any] = field(default_factory=dict)
    compare: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------- reading


def read_sweep(file: Path, overrides: list[str]) -> Sweep:
    """Read and check a sweep file. Raises UserError for runs that cannot be put in an order."""
    raw = load_config([file], [*overrides])
    _only(raw, SWEEP_KEYS, f"{file}: a sweep")
    if not raw.get("runs"):
        raise UserError(f"{file} lists no runs; see experiments/sweeps/demo.yaml")
    workers = _count(raw, "workers", 1, file)
    threads = _count(raw, "threads", max(1, (os.cpu_count() or 1) // workers), file)
    folder = Path(raw.get("root", "runs"))
    runs: list[Run] = []
    for entry in raw["runs"]:
        _only(entry, ENTRY_KEYS, f"{file}: a run", needed=("name", "config"))
        for point, chosen in _points(entry, file):
            name = _fill(entry["name"], point, file)
            if name in {run.name for run in runs}:
                raise UserError(f"{file}: two runs are called {name}; name each axis of its grid in the name")
            if "/" in name or name.startswith("."):
                raise UserError(f"{file}: a run is called {name}; its name is a folder's, without slashes")
            needs = [_fill(need, point, file) for need in entry.get("needs") or []]
            missing = [need for need in needs if need not in {run.name for run in runs}]
            if missing:
                raise UserError(f"{file}: {name} needs {missing[0]}, which must be listed before it")
            labels = point | {k: _fill(v, point, file) for k, v in (entry.get("labels") or {}).items()}
            settings = {"vars.root": str(folder), "vars.name": name} | _flat(raw.get("set") or {})
            settings |= {key: _fill(value, point, file) for key, value in chosen.items()}
            settings |= {LABELS + axis: value for axis, value in labels.items()}
            config = file.parent / _fill(entry["config"], point, file)
            runs.append(Run(name, config, folder / name, needs, settings, _count(entry, "threads", threads, file)))
    sweep = Sweep(
        runs, folder, raw.get("cluster", "local"), workers, raw.get("executor") or {}, raw.get("compare") or {},
        raw.get("report") or {},
    )  # fmt: skip
    _check_ends(sweep, file)
    return sweep


def _points(entry: dict[str, Any], file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each point of an entry's grid, and the settings that hold there."""
    grid = entry.get("grid") or {}
    for axis, values in grid.items():
        if not isinstance(values, list | dict) or not values:
            raise UserError(f"{file}: grid axis {axis} is {values!r}; it is a list of values")
    for point in itertools.product(*(list(values) for values in grid.values())):
        named = dict(zip(grid, point, strict=True))
        settings = dict(entry.get("set") or {})
        for axis, value in named.items():
            if isinstance(grid[axis], dict):
                settings |= grid[axis][value] or {}
        yield named, settings


def _fill(template: Any, point: dict[str, Any], file: Path) -> Any:
    """Put the point's values in the place of {axis}."""
    if not isinstance(template, str):
        return template

    def value(match: re.Match) -> str:
        if match[1] not in point:
            raise UserError(f"{file}: {template!r} names {match[0]}, but the grid has {', '.join(point) or 'no axes'}")
        return str(point[match[1]])

    return re.sub(r"\{(\w+)\}", value, template)


def _only(entry: Any, known: set[str], what: str, needed: tuple[str, ...] = ()) -> None:
    if not isinstance(entry, dict) or set(entry) - known or not set(needed) <= set(entry):
        got = ", ".join(map(str, entry)) if isinstance(entry, dict) else repr(entry)
        raise UserError(f"{what} has {', '.join(sorted(known))}; got {got}")


def _count(entry: dict[str, Any], name: str, default: int, file: Path) -> int:
    value = entry.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{file}: {name} is {value}; it is a whole number from 1 on")
    return value


def _labelled(runs: list[Run], labels: dict[str, Any]) -> list[Run]:
    """The runs that have all these labels."""
    return [run for run in runs if _agree(run.settings, {LABELS + label: value for label, value in labels.items()})]


def _check_ends(sweep: Sweep, file: Path) -> None:
    if sweep.cluster not in ("local", "slurm"):
        raise UserError(f"{file}: cluster is {sweep.cluster}; it is local or slurm")
    names = {run.name for run in sweep.runs}
    for name in sweep.compare.get("runs") or []:
        if name not in names:
            raise UserError(f"{file}: compare names {name}, which is no run of the sweep")
    if sweep.report:
        _only(sweep.report, REPORT_KEYS, f"{file}: report", needed=("out", "against"))
        wanted = [sweep.report.get("select") or {}]
        for entry in sweep.report["against"]:
            _only(entry, {"reference", "within"}, f"{file}: report: an entry of against", needed=("reference",))
            wanted.append(wanted[0] | entry["reference"])
        for labels in wanted:
            if not _labelled(sweep.runs, labels):
                raise UserError(f"{file}: report: no run has the labels {labels}")
    by = sweep.compare.get("by", "quality")
    if by not in COMPARISONS:
        raise UserError(f"{file}: compare by {by}; it is by {' or by '.join(COMPARISONS)}")


# ---------------------------------------------------------------------- running


def run_sweep(sweep: Sweep, dry_run: bool = False) -> int:
    """Run what is missing, compare, and report the gaps; returns the exit code."""
    settings = {run.name: run.resolved() for run in sweep.runs}
    for run in sweep.runs:
        _check_unchanged(run, settings[run.name])
    if dry_run:
        for run in sweep.runs:
            print(f"{'done   ' if run.done else 'missing'} {run.name}: {shlex.join(run.command)}")
        print(f"{sum(run.done for run in sweep.runs)} of {len(sweep.runs)} runs done")
        return 0
    began = time.monotonic()
    failed = _run_missing(sweep, settings)
    if failed:
        print(f"{len(failed)} of {len(sweep.runs)} runs are missing:")
        for name, why in failed.items():
            print(f"  {name}: {why.strip().splitlines()[-1] if why.strip() else 'it was killed'}")
        print("start the sweep again to fill the gaps")
        return 1
    _finish(sweep)
    print(f"all {len(sweep.runs)} runs done in {time.monotonic() - began:.0f} s")
    print(f"curves: {sys.executable} -m tensorboard.main --logdir {sweep.root}")
    return 0


def _check_unchanged(run: Run, settings: dict[str, Any]) -> None:
    """Raise UserError for a run whose folder was begun with other settings: it would be taken for what it is not."""
    record = run.folder / SETTINGS
    if not record.is_file():
        return
    before, now = _flat(json.loads(record.read_text())), _flat(json.loads(json.dumps(settings)))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{run.folder} was begun with {key} = {before.get(key)}, the sweep now says {now.get(key)}; "
                "remove the folder, or give the sweep another root (--vars.root=DIR)"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and (value or not prefix):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: value}


class Job:
    """What a worker executes, on this machine or on a node: one run, to its end. submitit pickles it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self) -> str | None:
        """The end of the log if the run failed."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        with (self.run.folder / ".lock").open("w") as lock, (self.run.folder / LOG).open("a") as log:
            # A sweep that was killed may have left this run going. The child holds the lock too.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.run.done:
                return None
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.run.threads), "PYTHONUNBUFFERED": "1"}
            start = log.tell()
            process = subprocess.Popen(
                self.run.command, stdout=log, stderr=log, env=environment, pass_fds=[lock.fileno()]
            )
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.wait()  # Ctrl-C reached the run as well, which saves its checkpoint and ends
                raise
            if code == 0:
                (self.run.folder / RECORD).touch()
                return None
        with (self.run.folder / LOG).open() as log:
            log.seek(start)
            return "".join(deque(log, maxlen=15)) or f"it ended with code {code} and said nothing"

    def checkpoint(self) -> Any:
        """For submitit, when a cluster takes the node away: the same run again, which goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run_missing(sweep: Sweep, settings: dict[str, Any]) -> dict[str, str]:
    """Run all that is not done, up to `workers` at a time; returns why runs failed, by name."""
    from aeic_lightning.files import write_whole

    failed: dict[str, str] = {}
    running: dict[str, tuple[Run, Any, Tail]] = {}
    began = time.monotonic()
    waiting = [run for run in sweep.runs if not run.done]
    for run in sweep.runs:
        if run.done:
            print(f"{run.name}: done before", flush=True)
    executor = _executor(sweep)
    try:
        while waiting or running:
            for run in list(waiting):
                blocked = [need for need in run.needs if need in failed]
                if blocked:
                    waiting.remove(run)
                    failed[run.name] = f"not started, since {blocked[0]} failed"
                    print(f"{run.name}: {failed[run.name]}", flush=True)
            unfinished = {*running, *(run.name for run in waiting)}
            ready = [run for run in waiting if not unfinished.intersection(run.needs)]
            for run in ready[: sweep.workers - len(running)]:
                waiting.remove(run)
                left = f"{len(sweep.runs) - len(waiting) - len(running)}/{len(sweep.runs)}"
                print(f"{run.name}: {run.config}  (run {left}, {time.monotonic() - began:.0f} s so far)", flush=True)
                write_whole(run.folder / SETTINGS, json.dumps(settings[run.name], indent=1) + "\n")
                tail = Tail(run)
                executor.update_parameters(name=re.sub(r"\W+", "_", run.name), cpus_per_task=run.threads)
                running[run.name] = run, executor.submit(Job(run)), tail
            time.sleep(0.2)
            for name, (run, job, tail) in list(running.items()):
                over = job.done()
                tail.show()
                if over:
                    del running[name]
                    if error := _outcome(run, job):
                        failed[name] = error
                        print(f"{name}: failed; its log is {run.folder / LOG}\n{error}", flush=True)
    except KeyboardInterrupt:
        _interrupt(sweep, running)
        raise
    return failed


def _executor(sweep: Sweep) -> Any:
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)
    try:
        executor = submitit.AutoExecutor(folder=sweep.root / ".jobs" / "%j", cluster=sweep.cluster)
        # submitit's own limit is five minutes.
        executor.update_parameters(**({"timeout_min": 14 * 24 * 60, "stderr_to_stdout": True} | sweep.executor))
    except (RuntimeError, ValueError, NameError, AssertionError) as error:
        raise UserError(f"cluster {sweep.cluster}: {' '.join(str(error).split())}") from error
    return executor


def _outcome(run: Run, job: Any) -> str | None:
    """None for a run that is done, else the reason."""
    try:
        error = job.result()
    except Exception as exception:  # submitit's own, for a job that was killed or never began
        error = f"{type(exception).__name__}: {str(exception).strip().splitlines()[-1]}"
    if run.done:
        return None
    return error or "it was killed"


def _interrupt(sweep: Sweep, running: dict[str, tuple[Run, Any, Any]]) -> None:
    """After Ctrl-C: local runs have got it too and save; those on a cluster are taken off its queue."""
    for _, job, tail in running.values():
        if sweep.cluster == "slurm":
            with contextlib.suppress(Exception):
                job.cancel()
        while sweep.cluster == "local" and not job.done():
            time.sleep(0.2)
            tail.show()
        tail.show()


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


# ---------------------------------------------------------------------- in the end


def _finish(sweep: Sweep) -> None:
    if sweep.report:
        _report(sweep)
    if names := sweep.compare.get("runs"):
        folders, out = [sweep.root / name for name in names], Path(sweep.compare.get("out") or sweep.root)
        module, function = COMPARISONS[sweep.compare.get("by", "quality")].rsplit(".", 1)
        getattr(import_module(module), function)(folders, out)


def _report(sweep: Sweep) -> None:
    from aeic_lightning.files import write_whole
    from aeic_lightning.study.bd_rate import bd_rates, common_metrics, markdown_table, to_records
    from aeic_lightning.study.report.page import write_report
    from aeic_lightning.study.results import (
        RATE_LABELS,
        curves,
        distinct_names,
        read_results,
        write_json,
        write_results,
    )

    wanted, out = sweep.report, Path(sweep.report["out"])
    select = wanted.get("select") or {}
    runs = _labelled(sweep.runs, select)
    results = read_results(run.folder for run in runs)
    write_results(out / "results.json", results)
    # The sweep's own labels tell curves apart: the others (widths, beta1, ...) follow from them.
    given = dict.fromkeys(key.removeprefix(LABELS) for run in runs for key in run.settings if key.startswith(LABELS))
    every = curves(results, [label for label in given if label not in ("seed", *RATE_LABELS, *select)])
    names_of = dict(zip(map(id, every), distinct_names(every), strict=True))
    rows = []
    for entry in wanted["against"]:
        for reference in (c for c in every if _agree(c.labels, entry["reference"])):
            within = {label: reference.labels.get(label) for label in entry.get("within") or []}
            tests = [c for c in every if c is not reference and _agree(c.labels, within)]
            names = [names_of[id(curve)] for curve in (reference, *tests)]
            rows += bd_rates(reference, tests, wanted.get("metrics") or common_metrics(results), names)
    write_json(out / "bd_rate.json", {"format": "aeic_lightning bd-rate 1", "rows": to_records(rows)})
    write_whole(out / "bd_rate.md", markdown_table(rows) + "\n")
    print(markdown_table(rows))
    words = [",".join(f"{label}={value}" for label, value in e["reference"].items()) for e in wanted["against"]]
    said = write_report(
        [*(run.folder for run in runs), *map(Path, wanted.get("files") or [])], out / "index.html", words,
        title=wanted.get("title", "Rate, distortion and perception"), command=command_line(),
    )  # fmt: skip
    print(f"written: {out}/results.json, results.csv, bd_rate.json, bd_rate.md, index.html ({said})")


def _agree(labels: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(str(labels.get(label)) == str(value) for label, value in wanted.items())

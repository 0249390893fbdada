"""Sweep files: a grid of experiments, each after those it needs. `study.runner` runs them.

A sweep file:

    vars: {root: runs/mine}
    root: ${vars.root}
    cluster: local                  # or slurm
    workers: 2                      # runs at a time
    threads: 1                      # CPU threads of a run; by default the cores are divided among the workers
    gpus: 1                         # GPUs of a run on this machine, if it has any (default 1)
    set: {data.init_args.batch_size: 4}     # settings of every run; vars only of runs whose files refer to them
    executor: {slurm_partition: gpu, gpus_per_node: 1, timeout_min: 720}     # for slurm: arguments of submitit
    runs:
      - {name: teacher, config: teacher.yaml}                        # relative to the sweep file
      - name: depth={depth}_arm={arm}_lambda={lambda}                # one run for each point of the grid
        grid: {depth: [1, 2], arm: [none, enc], lambda: [1, 2]}
        config: student_{arm}.yaml
        needs: [teacher]
        set: {vars.depth: "{depth}", vars.lambda: "{lambda}"}        # settings, as on the command line
    compare: {runs: [teacher, "depth={depth}..."], out: results/mine}     # by: accuracy, for classifying runs
                                                                          # models: shipped ones, bpp: 0.06
    report:
      {out: results/mine, title: ..., select: {stage: 2}, metrics: [psnr], files: [anchors.json],
       against: [{reference: {arm: teacher}}, {reference: {arm: none}, within: [depth]}]}

An axis of a grid is a list of values, or a mapping from a value's name to settings: `arm: {short: {vars.steps: 50}}`.
`exceptions: [{when: {arm: enc, depth: [1, 2]}, set: {...}}]` beside `grid` holds settings of those points alone that
have all these values (a list: any of them). They come after `set` and the axes' own; the later of two exceptions wins.
`{axis}` in name, config, needs, set and labels stands for its value. Every run gets `vars.root` and `vars.name`, so
that its folder is root/name, then its own settings, then its point of the grid and `labels` as
`model.init_args.labels`, by which TensorBoard and the report tell runs apart.

`rungs: [1000, 4000, 16000]` beside `name` makes of each point of the grid a ladder: a trunk at a constant learning rate
up to the last rung, in pieces that go on from each other, and from the end of each piece a branch, on which the rate
falls to zero over `decay` (default 0.25) times the rung's updates. A branch is a run NAME_rung=1000 with the label
`rung`; a piece NAME_trunk=1000 is trained once, and is in no table. The lowest rung of all points comes first.

`halving: {factor: 4, metric: lpips_lite2, reference: {arm: teacher}}` beside `rungs` carries the best quarter of the
points to the next rung, all seeds of a point together (`study.halving`).

`search: {candidates: 12, seed: 0, budget: {macs_per_pixel: 1000}}` beside `grid` draws that number of its points,
within a budget of the sender's cost, instead of taking all of them (`study.search`).

A run gets each value with the type that it has in the file: null, 7 and "007" arrive as null, 7 and "007". `"{axis}"`
alone is the axis's value with its type; `{axis}` inside a longer text is the value as YAML writes it.

`report` writes, of the runs whose labels are as in `select` (a list of values: any of them): results.json and .csv, a
table of BD-rates (bd_rate.json and .md), and index.html, which also shows the result `files`. Each entry of `against`
compares all other curves with the curves that have the labels of `reference`, or only those that agree with it in the
labels `within`. With `evaluate`, the metrics are not those of the runs' last validation: each run's checkpoint is
evaluated at several rate levels, on sets of images of its own (`study.sweep_evaluation`). `claims` are what the page
answers first, and answer.md (`study.claims`): each is about two curves, and one that matches none or several stops the
sweep before its first run. With `optional_claims: true`, claims about runs that are not there are left unanswered. A
claim is decided with `min_images` and `min_seeds` or more. The page says the first `headline` of them in full, 1 by
default. `max_images` is how many images of a set the page shows, 6 by default. `earlier` are result files of runs whose
folders are gone or elsewhere, as a results.json of before: they count like the sweep's own runs, and what is measured
anew replaces them.

A run is done when its folder holds the file `finished`.
"""

import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aeic_lightning.config import as_override, find_experiment, flat, load_config, locate, used_vars
from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.files import require_images, require_model
from aeic_lightning.metrics.table import read_metrics
from aeic_lightning.run_folder import run_folder
from aeic_lightning.study.results import OF_CONFIGS, agree, read_results

LABELS = "model.init_args.labels."
OPTIMIZATION = "model.init_args.optimization."
DECAY = 0.25  # of a branch, as a share of the updates of its rung
RECORD = "finished"  # file in a run folder that says the run is complete
SETTINGS = "sweep.json"  # file in a run folder with the resolved config that the sweep started it with
LOG = "log.txt"  # file in a run folder with all that the run has said
COMPARISONS = {
    "quality": "aeic_lightning.study.views.compare_runs",
    "accuracy": "aeic_lightning.classification.comparison.compare_accuracy",
}
"""What ends a sweep with a table of its runs, by the word after `by`; imported by name when it is wanted."""
REPORT_KEYS = {
    *("out", "title", "arms", "images", "select", "against", "metrics", "files", "evaluate", "max_images"),
    *("claims", "optional_claims", "headline", "min_images", "min_seeds", "earlier"),
}
COMPARE_KEYS = {"runs", "out", "by", "models", "bpp"}
CLAIM_KEYS = {"says", "test", "reference", "metric"}
EVALUATE_KEYS = {"levels", "images", "max_size", "models", "labels", "backbones", "metrics"}
ENTRY_KEYS = {
    *("name", "config", "needs", "set", "grid", "exceptions", "labels", "threads", "gpus"),
    *("rungs", "decay", "halving", "search"),
}
SEARCH_KEYS = {"candidates", "seed", "budget", "weight_bits"}
HALVING_KEYS = {"factor", "metric", "reference"}
SWEEP_KEYS = {"root", "runs", "set", "cluster", "workers", "threads", "gpus", "executor", "compare", "report"}


@dataclass(frozen=True)
class Halving:
    """How the points of an entry are thinned out from rung to rung.

    Attributes:
        entry: name of the entry.
        factor: one in `factor` goes on.
        metric: that candidates are ranked by, at equal bits.
        reference: labels of the results that they are compared with.
    """

    entry: str
    factor: int
    metric: str
    reference: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One experiment of a sweep: a point of a grid, or a piece of the ladder of one.

    Attributes:
        start: checkpoint that it goes on from, where it is no run from the beginning.
        begins: updates that the checkpoint has.
        rung: of a piece of a ladder; None for other runs.
        trunk: whether it is there for others to go on from, and no result.
        halving: that decides whether it is run.
        candidate: what `halving` decides about: the point of the grid without the seed, in words.
        after: command that follows the training, as a part of the run.
    """

    name: str
    config: Path
    folder: Path
    needs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    gpus: int = 1
    start: Path | None = None
    begins: int = 0
    rung: int | None = None
    trunk: bool = False
    halving: Halving | None = None
    candidate: str = ""
    after: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Path:
        """What it has trained so far."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return (self.folder / RECORD).is_file()

    @property
    def command(self) -> list[str]:
        """What to run: a new run, or the rest of an interrupted one."""
        words = [sys.executable, "-m", "aeic_lightning", "fit", "--config", str(self.config)]
        words += [f"--{override}" for override in self.overrides]
        if self.checkpoint.is_file():
            words += ["--ckpt_path", "last"]
        elif self.start:
            words += ["--ckpt_path", str(self.start)]
        return words

    @property
    def commands(self) -> list[list[str]]:
        """All that makes the run, one after the other."""
        return [self.command, *([list(self.after)] if self.after else [])]

    @property
    def overrides(self) -> list[str]:
        """Its settings as `load_config` reads them, each value with its type."""
        return [as_override(name, value) for name, value in self.settings.items()]

    @property
    def has_trained(self) -> bool:
        """Whether there is something to go on from: a checkpoint, or the finished run."""
        return self.done or any((self.folder / "checkpoints").glob("*.ckpt"))

    def resolved(self) -> dict[str, Any]:
        """Its whole config. Raises UserError where it cannot be resolved."""
        return load_config([self.config], self.overrides)


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

    @property
    def halves(self) -> bool:
        """Whether some of its runs are left out by what others find (`study.halving`)."""
        return any(run.halving for run in self.runs)


# ---------------------------------------------------------------------- reading


def read_sweep(file: Path, overrides: list[str]) -> Sweep:
    """Read and check a sweep file. Raises UserError for runs that cannot be put in an order."""
    file = find_experiment(file)
    raw = load_config([file], [*overrides])
    _only(raw, SWEEP_KEYS, f"{file}: a sweep")
    if not raw.get("runs"):
        raise UserError(f"{file} lists no runs; see experiments/sweeps/demo.yaml")
    workers = _count(raw, "workers", 1, file)
    threads = _count(raw, "threads", max(1, (os.cpu_count() or 1) // workers), file)
    gpus = _count(raw, "gpus", 1, file)
    folder = run_folder(raw.get("root", "runs"))
    runs: list[Run] = []
    shared = flat(raw.get("set") or {})
    for entry in raw["runs"]:
        _only(entry, ENTRY_KEYS, f"{file}: a run", needed=("name", "config"))
        rungs, decay = _rungs(entry, file)
        halving = _halving(entry, file)
        ladders: list[list[list[Run]]] = []

        def settled(point: dict[str, Any], chosen: dict, entry: dict = entry) -> tuple[Path, dict[str, Any]]:
            name = as_text(_fill(entry["name"], point, file))
            labels = point | {k: _fill(v, point, file) for k, v in (entry.get("labels") or {}).items()}
            settings = {"vars.root": str(folder), "vars.name": name} | shared
            settings |= {key: _fill(value, point, file) for key, value in flat(chosen).items()}
            settings |= {LABELS + axis: as_label(value) for axis, value in labels.items()}
            config = file.parent / as_text(_fill(entry["config"], point, file))
            return config, _without_unused(settings, shared, config)

        for point, chosen in _searched(entry, folder, settled, file) if "search" in entry else _points(entry, file):
            name = as_text(_fill(entry["name"], point, file))
            if "/" in name or name.startswith("."):
                raise UserError(f"{file}: a run is called {name}; its name is a folder's, without slashes")
            needs = [as_text(_fill(need, point, file)) for need in entry.get("needs") or []]
            listed = {run.name for run in itertools.chain(runs, *itertools.chain(*ladders))}
            missing = [need for need in needs if need not in listed]
            if missing:
                raise UserError(f"{file}: {name} needs {missing[0]}, which must be listed before it")
            config, settings = settled(point, chosen)
            counts = {key: _count(entry, key, own, file) for key, own in (("threads", threads), ("gpus", gpus))}
            run = Run(name, config, folder / name, needs, settings, counts["threads"], counts["gpus"])
            if halving:
                words = ", ".join(f"{axis}={as_text(value)}" for axis, value in point.items() if axis != "seed")
                run = replace(run, halving=halving, candidate=point.get("candidate", words) or name)
            ladders.append(_ladder(run, rungs, decay) if rungs else [[run]])
        # The same rung of all ladders first: a sweep that is cut short has compared all of them there.
        for run in itertools.chain(*itertools.chain(*zip(*ladders, strict=True))):
            if run.name in {other.name for other in runs}:
                raise UserError(f"{file}: two runs are called {run.name}; name each axis of its grid in the name")
            runs.append(replace(run, after=_evaluation(run, file, overrides)) if halving and not run.trunk else run)
    for key in shared:
        if key.startswith("vars.") and not any(key in run.settings for run in runs):
            raise UserError(f"{file}: set: {key} is set, but no run's experiment refers to it; correct its name")
    sweep = Sweep(
        runs, folder, raw.get("cluster", "local"), workers, raw.get("executor") or {}, raw.get("compare") or {},
        raw.get("report") or {},
    )  # fmt: skip
    _check_ends(sweep, file)
    return sweep


def _rungs(entry: dict[str, Any], file: Path) -> tuple[list[int], float]:
    """The rungs of an entry, none where it has none, and the share of a rung's updates in which its branch decays."""
    rungs, decay = entry.get("rungs") or [], entry.get("decay", DECAY)
    whole = isinstance(rungs, list) and all(type(rung) is int and rung > 0 for rung in rungs)
    if not whole or sorted(set(rungs)) != rungs:
        raise UserError(
            f"{file}: {entry['name']}: rungs are numbers of updates that rise, as [1000, 4000], not {rungs}"
        )
    if not isinstance(decay, int | float) or isinstance(decay, bool) or decay <= 0:
        raise UserError(f"{file}: {entry['name']}: decay is a share of a rung's updates, as 0.25, not {decay}")
    if "decay" in entry and not rungs:
        raise UserError(f"{file}: {entry['name']}: decay is of branches; say rungs, or leave it out")
    return rungs, decay


def _halving(entry: dict[str, Any], file: Path) -> Halving | None:
    if "halving" not in entry:
        return None
    where = f"{file}: {entry['name']}: halving"
    _only(entry["halving"], HALVING_KEYS, where, needed=tuple(sorted(HALVING_KEYS)))
    factor, reference = entry["halving"]["factor"], entry["halving"]["reference"]
    if not entry.get("rungs"):
        raise UserError(f"{where} is from rung to rung; say rungs, or leave it out")
    if type(factor) is not int or factor < 1:
        raise UserError(f"{where}: factor is a whole number, as 4 (one of four goes on; 1: all do), not {factor!r}")
    if not isinstance(reference, dict):
        raise UserError(f"{where}: reference is a mapping of labels, as {{arm: teacher}}, not {reference!r}")
    return Halving(entry["name"], factor, entry["halving"]["metric"], reference)


def _evaluation(run: Run, file: Path, overrides: list[str]) -> tuple[str, ...]:
    """The command that evaluates a run on the validation images, by which halving decides."""
    words = [sys.executable, "-m", "aeic_lightning", "sweep", "--config", str(file)]
    return (*words, *(f"--{override}" for override in overrides), "--evaluate", run.name)


def _ladder(run: Run, rungs: list[int], decay: float) -> list[list[Run]]:
    """At each rung the piece of a run's trunk that ends there, and the branch from its end."""
    found: list[list[Run]] = []
    before = None
    for rung in rungs:
        # A trunk is no result, so that nothing looks at its images.
        chosen = {"trainer.max_steps": rung, "trainer.limit_val_batches": 0}
        trunk = replace(_piece(run, f"trunk={rung}", rung, before, chosen), trunk=True)
        falls = max(1, round(decay * rung))
        chosen = {"trainer.max_steps": rung + falls, f"{OPTIMIZATION}decay_steps": falls, f"{LABELS}rung": rung}
        found.append([trunk, _piece(run, f"rung={rung}", rung, trunk, chosen)])
        before = trunk
    return found


def _piece(run: Run, word: str, rung: int, after: Run | None, chosen: dict[str, Any]) -> Run:
    name = f"{run.name}_{word}"
    constant = {f"{OPTIMIZATION}schedule": "constant", f"{OPTIMIZATION}final_learning_rate": 0.0}
    settings = run.settings | constant | {"vars.name": name} | chosen
    piece = replace(run, name=name, folder=run.folder.with_name(name), settings=settings, rung=rung)
    if after is None:
        return piece
    return replace(piece, needs=[*run.needs, after.name], start=after.checkpoint, begins=after.rung or 0)


def _without_unused(settings: dict[str, Any], shared: dict[str, Any], config: Path) -> dict[str, Any]:
    """The settings without those shared `vars` that this run's experiment has no use for; others of the sweep have."""
    config = find_experiment(config)
    names = [key for key in shared if key.startswith("vars.")]
    if not names or not locate(config):
        return settings
    used = used_vars(config, [as_override(key, value) for key, value in settings.items()])
    return {key: value for key, value in settings.items() if key not in names or key.removeprefix("vars.") in used}


def _points(entry: dict[str, Any], file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each point of an entry's grid, and the settings that hold there."""
    grid = _grid(entry, file)
    exceptions, used = _exceptions(entry, grid, file), set()
    for point in itertools.product(*(list(values) for values in grid.values())):
        named = dict(zip(grid, point, strict=True))
        used |= {number for number, (when, _) in enumerate(exceptions) if _holds(when, named)}
        yield named, _chosen(entry, named, exceptions)
    for number, (when, _) in enumerate(exceptions):
        if number not in used:
            raise UserError(f"{file}: {entry['name']}: no run of the grid is as the exception's when, {when}")


def _grid(entry: dict[str, Any], file: Path) -> dict[str, Any]:
    grid = entry.get("grid") or {}
    for axis, values in grid.items():
        if not isinstance(values, list | dict) or not values:
            raise UserError(f"{file}: grid axis {axis} is {values!r}; it is a list of values")
    return grid


def _holds(when: dict[str, list], named: dict[str, Any]) -> bool:
    return all(any(agree(named, {axis: value}) for value in values) for axis, values in when.items())


def _chosen(entry: dict[str, Any], named: dict[str, Any], exceptions: list[tuple[dict, dict]]) -> dict[str, Any]:
    """The settings of a point of the grid; flat, so that a mapping does not take away what is set beside it."""
    grid, settings = entry.get("grid") or {}, flat(entry.get("set") or {})
    for axis, value in named.items():
        if isinstance(grid.get(axis), dict):
            settings |= flat(grid[axis][value] or {})
    for when, chosen in exceptions:
        settings |= chosen if _holds(when, named) else {}
    return settings


def _searched(
    entry: dict[str, Any], root: Path, settled: Callable[..., tuple[Path, dict[str, Any]]], file: Path
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The points that a search has drawn, each with all its seeds, and the settings that hold there."""
    from aeic_lightning.study.search import BUDGET, Search, draw

    where, wanted = f"{file}: {entry['name']}: search", entry["search"]
    _only(wanted, SEARCH_KEYS, where, needed=("candidates",))
    _only(wanted.get("budget") or {}, BUDGET, f"{where}: budget")
    search = Search(**wanted | {"candidates": _count(wanted, "candidates", 1, file)})
    grid = _grid(entry, file)
    exceptions = _exceptions(entry, grid, file)

    def config(point: dict[str, Any]) -> dict[str, Any]:
        point = {"candidate": "c00", **point, **({"seed": next(iter(grid["seed"]))} if "seed" in grid else {})}
        path, settings = settled(point, _chosen(entry, point, exceptions))
        return load_config([path], [as_override(name, value) for name, value in settings.items()])

    def cost(point: dict[str, Any]) -> dict[str, float]:
        from aeic_lightning.study.run_description import encoder_costs

        try:
            costs = encoder_costs(config(point))
        except UserError as error:
            raise UserError(f"{where}: {point}: {error}") from error
        if costs is None:
            raise UserError(f"{where}: {entry['config']} has no encoder whose cost can be counted")
        macs, parameters = costs["encoder_macs_per_pixel"], costs["encoder_parameters"]
        return {"macs_per_pixel": macs["encode"], "parameters": parameters["encode"]}

    axes = {axis: list(values) for axis, values in grid.items()}
    first = {axis: values[0] for axis, values in axes.items() if axis != "seed"}
    depends = [config(first)["model"], entry.get("set"), grid, entry.get("exceptions")]
    for drawn in draw(axes, search, cost, root, depends):
        for seed in axes.get("seed", [None]):
            point = drawn if seed is None else drawn | {"seed": seed}
            yield point, _chosen(entry, point, exceptions)


def _exceptions(entry: dict[str, Any], grid: dict[str, Any], file: Path) -> list[tuple[dict[str, list], dict]]:
    """What each exception of an entry asks for, the values of each axis listed, and what it sets."""
    found = []
    if not isinstance(listed := entry.get("exceptions") or [], list):
        raise UserError(f"{file}: {entry['name']}: exceptions is a list of {{when: ..., set: ...}}, not {listed!r}")
    for exception in listed:
        where = f"{file}: {entry['name']}: an exception"
        _only(exception, {"when", "set"}, where, needed=("when", "set"))
        for key, value in exception.items():
            if not isinstance(value, dict) or not value:
                raise UserError(f"{where}: {key} is a mapping with at least one entry, not {value!r}")
        for axis in exception["when"]:
            if axis not in grid:
                raise UserError(f"{where}: when names {axis!r}, but the grid has {', '.join(grid) or 'no axes'}")
        when = {axis: value if isinstance(value, list) else [value] for axis, value in exception["when"].items()}
        found.append((when, flat(exception["set"])))
    return found


def _fill(template: Any, point: dict[str, Any], file: Path) -> Any:
    """Put the point's values in the place of {axis}; a template that is nothing else takes the value's type too."""
    if isinstance(template, list):
        return [_fill(item, point, file) for item in template]
    if isinstance(template, dict):
        return {key: _fill(item, point, file) for key, item in template.items()}
    if not isinstance(template, str):
        return template

    def value(match: re.Match) -> Any:
        if match[1] not in point:
            raise UserError(f"{file}: {template!r} names {match[0]}, but the grid has {', '.join(point) or 'no axes'}")
        return point[match[1]]

    if whole := re.fullmatch(r"\{(\w+)\}", template):
        return value(whole)
    return re.sub(r"\{(\w+)\}", lambda match: as_text(value(match)), template)


def as_text(value: Any) -> str:
    """A value inside of a longer text: a text as it is, anything else as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_label(value: Any) -> int | float | str:
    """A value as a label, which is a number or a word: null, true and lists become words."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else as_text(value)


def _only(entry: Any, known: set[str], what: str, needed: tuple[str, ...] = ()) -> None:
    listed = ", ".join(sorted(known))
    if not isinstance(entry, dict):
        raise UserError(f"{what} is a mapping of {listed}; got {entry!r}")
    if extra := [str(key) for key in entry if key not in known]:
        raise UserError(f"{what} has no {extra[0]!r}{did_you_mean(extra[0], known) or f'; it has {listed}'}")
    if missing := [key for key in needed if key not in entry]:
        raise UserError(f"{what} lacks {', '.join(missing)}; it needs {', '.join(needed)}")


def _count(entry: dict[str, Any], name: str, default: int, file: Path) -> int:
    value = entry.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{file}: {name} is {value}; it is a whole number from 1 on")
    return value


def labelled(runs: list[Run], labels: dict[str, Any]) -> list[Run]:
    """The runs that have all these labels, without trunks; a list of values stands for any of them."""

    def has(run: Run, label: str, value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        return any(agree(run.settings, {LABELS + label: as_label(one)}) for one in values)

    return [run for run in runs if not run.trunk and all(has(run, label, value) for label, value in labels.items())]


def steps_of(config: dict[str, Any], begins: int = 0) -> int:
    """Steps of a run, by which the rest of a sweep is estimated, but for those of the checkpoint that it begins at; 1
    where the config has no limit."""
    steps = (config.get("trainer") or {}).get("max_steps")
    return steps - begins if isinstance(steps, int) and steps > 0 else 1


def _check_ends(sweep: Sweep, file: Path) -> None:
    if sweep.cluster not in ("local", "slurm"):
        raise UserError(f"{file}: cluster is {sweep.cluster}; it is local or slurm")
    names = {run.name for run in sweep.runs if not run.trunk}
    if sweep.compare:
        _only(sweep.compare, COMPARE_KEYS, f"{file}: compare", needed=("runs",))
    for name in sweep.compare.get("runs") or []:
        if name not in names:
            raise UserError(f"{file}: compare names {name}, which is no run of the sweep")
    if sweep.report:
        _only(sweep.report, REPORT_KEYS, f"{file}: report", needed=("out", "against"))
        _check_evaluate(sweep.report.get("evaluate") or {}, file)
        select = sweep.report.get("select") or {}
        wanted = [select]
        for entry in sweep.report["against"]:
            _only(entry, {"reference", "within"}, f"{file}: report: an entry of against", needed=("reference",))
            wanted.append(select | entry["reference"])
        for key in ("files", "earlier"):
            paths = sweep.report.get(key) or []
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise UserError(f"{file}: report: {key} is a list of result files, not {paths!r}")
        ours = (sweep.report.get("evaluate") or {}).get("labels") or {}
        earlier = [result.labels for result in read_results(sweep.report.get("earlier") or [])]

        def is_there(labels: dict[str, Any]) -> bool:
            def sure(names: Container[str]) -> dict[str, Any]:
                return {name: value for name, value in labels.items() if name in names or name not in OF_CONFIGS}

            named = [{key.removeprefix(LABELS) for key in run.settings} for run in sweep.runs]
            runs = any(labelled([run], sure(names)) for run, names in zip(sweep.runs, named, strict=True))
            return runs or agree(ours, sure(ours)) or any(agree(known, labels) for known in earlier)

        for labels in wanted:
            if not is_there(labels) or not labelled(sweep.runs, select):
                raise UserError(f"{file}: report: no run has the labels {labels}")
        for halving in {run.halving.entry: run.halving for run in sweep.runs if run.halving}.values():
            if not is_there(halving.reference):
                raise UserError(f"{file}: halving: reference: no run has the labels {halving.reference}")
        count = sweep.report.get("max_images", 0)
        if type(count) is not int or count < 0:
            raise UserError(f"{file}: report: max_images is a number of images, not {count!r}")
        for key in ("headline", "min_images", "min_seeds"):
            least = sweep.report.get(key, 1)
            if type(least) is not int or least < 1:
                raise UserError(f"{file}: report: {key} is a whole number from 1 on, not {least!r}")
        for key in ("arms", "images"):
            words = sweep.report.get(key) or {}
            if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
                raise UserError(f"{file}: report: {key} says in words what each is, {{NAME: WORDS}}, not {words!r}")
        for entry in sweep.report.get("claims") or []:
            _only(entry, CLAIM_KEYS, f"{file}: report: an entry of claims", needed=tuple(sorted(CLAIM_KEYS)))
    if sweep.halves:
        evaluate = sweep.report.get("evaluate") or {}
        if not evaluate.get("levels") or None not in (evaluate.get("images") or {"validation": None}).values():
            raise UserError(
                f"{file}: halving needs report.evaluate with levels and, of images, `validation: null`; other images "
                "are for the result, and nothing is chosen on them"
            )
    for model in sweep.compare.get("models") or []:
        require_model(model, f"{file}: compare.models")
    by = sweep.compare.get("by", "quality")
    if by not in COMPARISONS:
        raise UserError(f"{file}: compare by {by}; it is by {' or by '.join(COMPARISONS)}")
    for key in ("models", "bpp"):
        if by != "quality" and key in sweep.compare:
            raise UserError(f"{file}: compare.{key} is for a comparison by quality, not by {by}; leave it out")
    bpp = sweep.compare.get("bpp", 1.0)
    if isinstance(bpp, bool) or not isinstance(bpp, int | float) or not bpp > 0:
        raise UserError(f"{file}: compare.bpp is bits per pixel, above 0, not {bpp!r}")


def _check_evaluate(wanted: dict[str, Any], file: Path) -> None:
    _only(wanted, EVALUATE_KEYS, f"{file}: report: evaluate")
    read_metrics(wanted.get("metrics"))
    size = wanted.get("max_size")
    if size is not None and not (isinstance(size, list) and [type(n) for n in size] == [int, int] and min(size) > 0):
        raise UserError(f"{file}: report: evaluate.max_size is [HEIGHT, WIDTH], as in [256, 256], not {size!r}")
    for model in wanted.get("models") or []:
        require_model(model, f"{file}: report: evaluate.models")
    for name, folder in (wanted.get("images") or {}).items():
        if folder:
            try:
                require_images(folder)
            except UserError as error:
                raise UserError(f"{file}: report: evaluate.images.{name}: {error}") from error

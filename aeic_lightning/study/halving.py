"""Successive halving over the rungs of a sweep: which points of a grid are carried to the next rung.

    - name: "{width}_seed={seed}"
      grid: {width: [16, 24, 32, 48], seed: [0, 1]}
      rungs: [200, 800]
      halving: {factor: 4, metric: lpips_lite2, reference: {arm: teacher}}

A candidate is a point of the grid, with all its seeds. Each branch is evaluated on the validation images as part of its
run (`report.evaluate`), and a candidate's value is what its metric differs by from the reference's at equal bits. Where
all candidates at a rung have ended, one of `factor` goes on; the others' later runs are left out. A candidate that
failed, or whose rates are not the reference's, does not go on. With `factor: 1` all others do: how far the ranking at a
low rung can be trusted is then seen on all candidates (`study.ranking`).

Optuna's `SuccessiveHalvingPruner` decides ("A System for Massively Parallel Hyperparameter Tuning", Li et al. 2020).
It judges a trial by those that reached the rung before; here each candidate is asked about when all others have been
there, so that the answer depends neither on the order in which runs end nor on interruptions.
"""

import contextlib
import json
import math
from collections.abc import Container, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.output import finite_or_null
from aeic_lightning.study.results import Result, agree, read_results
from aeic_lightning.study.sweep_evaluation import model_folder, validation_set
from aeic_lightning.study.sweep_file import Halving, Run, Sweep

FILE = "halving.json"  # in the root of a sweep: what was decided, for readers
NONE = "none has rates to compare with the reference's; begin at a higher rung"
OVERLAP = 0.25  # of the rates of candidate and reference, least


class Rounds:
    """The decisions of a sweep, made as its runs end.

    Attributes:
        out: runs that are left out, with the reason.
        decided: by entry and rung, the value of each candidate, and which stay.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.out: dict[str, str] = {}
        self.decided: dict[tuple[str, int], dict[str, Any]] = {}
        self._ladders: dict[str, dict[int, list[Run]]] = {}
        self._undecided: set[str] = set()
        for run in sweep.runs:
            if run.halving and run.rung:
                rungs = self._ladders.setdefault(run.halving.entry, {})
                rungs.setdefault(run.rung, []).append(run)
                if run.rung != min(rungs):
                    self._undecided.add(run.name)

    def waits(self, run: Run) -> bool:
        """Whether a rung below has to be decided before this run."""
        return run.name in self._undecided

    def settle(self, ended: Container[str]) -> list[str]:
        """Decide each rung whose runs have all ended, done or failed; returns what to say of new decisions."""
        said = []
        for entry, rungs in self._ladders.items():
            ascending = sorted(rungs)
            for rung, later in zip_longest(ascending, ascending[1:], fillvalue=0):  # 0 after the last one
                place = entry, rung
                if place in self.decided:
                    continue
                runs = [run for run in rungs[rung] if run.name not in self.out]
                if not runs or not all(run.name in ended for run in runs):
                    break
                halving = cast(Halving, runs[0].halving)
                found = self._measured(halving, [run for run in runs if not run.trunk])
                if not later:
                    self.decided[place] = {"metric": halving.metric, "candidates": found, "stay": None}
                    self._write()
                    break
                values = {candidate: figures["value"] for candidate, figures in found.items()}
                stay = staying(values, halving.factor)
                self.decided[place] = {"metric": halving.metric, "candidates": found, "stay": stay}
                self._undecided -= {run.name for run in rungs[later]}
                for run in (run for above in rungs if above > rung for run in rungs[above]):
                    if run.candidate not in stay:
                        self.out[run.name] = f"{run.candidate} did not stay at rung {rung}"
                said.append(f"rung {rung}: {len(stay)} of {len(values)} stay: {'; '.join(stay) or NONE}")
                self._write()
        return said

    def _measured(self, halving: Halving, branches: list[Run]) -> dict[str, dict[str, Any]]:
        """What is known of each candidate: `value` by which it is ranked, `percent` of bits at equal quality, costs."""
        reference = read_results(file for file in self._models() if file.is_file())  # not, where all have failed
        own: dict[str, list[Result]] = {}
        for run in branches:
            results = own.setdefault(run.candidate, [])
            results += read_results([self._file(run)]) if run.done else []
        reference += [result for results in own.values() for result in results]
        reference = [result for result in reference if agree(result.labels, halving.reference)]
        failed = {run.candidate for run in branches if not run.done}
        return {
            candidate: compared(candidate, reference, [] if candidate in failed else results, halving.metric)
            for candidate, results in own.items()
        }

    def _file(self, run: Run) -> Path:
        return run.folder / "evaluated" / f"{validation_set(self.sweep)}.json"

    def _models(self) -> list[Path]:
        models = self.sweep.report["evaluate"].get("models") or []
        return [model_folder(self.sweep.root, model) / f"{validation_set(self.sweep)}.json" for model in models]

    def _write(self) -> None:
        record = [
            {"entry": entry, "rung": rung, **decision} for (entry, rung), decision in sorted(self.decided.items())
        ]
        write_whole(self.sweep.root / FILE, json.dumps(finite_or_null(record), indent=1) + "\n")


def compared(name: str, reference: list[Result], own: list[Result], metric: str) -> dict[str, Any]:
    """A candidate's results against the reference's.

    Returns `value`, what the metric differs by at equal bits, less being better, NaN where it cannot be told;
    `percent`, the bits at equal quality, None where the curves share too little; macs_per_pixel and parameters of the
    sender.
    """
    from aeic_lightning.metrics.table import find_metric
    from aeic_lightning.study.bd_rate import bd_quality, bd_rate

    if (known := find_metric(metric)) is None:
        raise UserError(f"halving: there is no metric {metric!r}")
    figures: dict[str, Any] = {"value": math.nan, "percent": None, "macs_per_pixel": None, "parameters": None}
    if not own:
        return figures
    if costs := own[0].costs:
        figures["macs_per_pixel"] = costs["encoder_macs_per_pixel"]["encode"]
        figures["parameters"] = costs["encoder_parameters"]["encode"]
    try:
        difference = bd_quality(reference, own, metric, min_overlap=OVERLAP, resamples=0).difference
        figures["value"] = -difference if known.higher else difference
    except UserError as error:
        print(f"{name} cannot be ranked: {error}", flush=True)
    with contextlib.suppress(UserError):  # which the table says
        figures["percent"] = bd_rate(reference, own, metric, resamples=0).percent
    return figures


def staying(values: Mapping[str, float], factor: int) -> list[str]:
    """The candidates that Optuna's pruner promotes, of these values at one rung; less is better, NaN does not stay."""
    if factor == 1:
        return [candidate for candidate, value in values.items() if not math.isnan(value)]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stay = []
    for candidate in values:
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
        study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
        pruned = True
        for name in [*(other for other in values if other != candidate), candidate]:
            trial = study.ask()
            trial.report(values[name], 1)
            pruned = trial.should_prune()
        if not pruned:
            stay.append(candidate)
    return stay


def expected_share(sweep: Sweep) -> dict[str, float]:
    """How probable it is that a run of a halving entry is run, by its name, when nothing is known of the candidates."""
    shares = {}
    for entry in {run.halving.entry: run.halving for run in sweep.runs if run.halving}.values():
        own = [run for run in sweep.runs if run.halving == entry]
        count = left = len({run.candidate for run in own})
        for rung in sorted({run.rung or 0 for run in own}):
            shares |= {run.name: left / count for run in own if run.rung == rung}
            left = max(1, left // entry.factor)
    return shares

"""Successive halving over the rungs of a sweep: which points of a grid are carried to the next rung.

    - name: "{width}_seed={seed}"
      grid: {width: [16, 24, 32, 48], seed: [0, 1]}
      rungs: [200, 800]
      halving: {factor: 4, metric: lpips_lite2, reference: {arm: teacher}}

A candidate is a point of the grid, with all its seeds. Each branch is evaluated on the validation images as part of its
run (`report.evaluate`), and a candidate's value is what its metric differs by from the reference's at equal bits. Where
all candidates at a rung have ended, one of `factor` goes on; the others' later runs are left out. A candidate that
failed, or whose rates are not the reference's, does not go on.

Optuna's `SuccessiveHalvingPruner` decides ("A System for Massively Parallel Hyperparameter Tuning", Li et al. 2020).
It judges a trial by those that reached the rung before; here each candidate is asked about when all others have been
there, so that the answer depends neither on the order in which runs end nor on interruptions.
"""

import json
import math
from collections.abc import Container, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.output import finite_or_null
from aeic_lightning.study.results import agree
from aeic_lightning.study.sweep_evaluation import validation_set
from aeic_lightning.study.sweep_file import Halving, Run, Sweep

FILE = "halving.json"  # in the root of a sweep: what was decided, for readers
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
            for rung, later in pairwise(sorted(rungs)):
                place = entry, rung
                if place in self.decided:
                    continue
                runs = [run for run in rungs[rung] if run.name not in self.out]
                if not runs or not all(run.name in ended for run in runs):
                    break
                halving = cast(Halving, runs[0].halving)
                values = self._values(halving, [run for run in runs if not run.trunk])
                stay = staying(values, halving.factor)
                self.decided[place] = {"values": values, "stay": stay}
                self._undecided -= {run.name for run in rungs[later]}
                for run in (run for above in rungs if above > rung for run in rungs[above]):
                    if run.candidate not in stay:
                        self.out[run.name] = f"{run.candidate} did not stay at rung {rung}"
                said.append(f"rung {rung}: {len(stay)} of {len(values)} stay: {'; '.join(stay) or 'none'}")
                self._write()
        return said

    def _values(self, halving: Halving, branches: list[Run]) -> dict[str, float]:
        """What each candidate's metric differs by from the reference's at equal bits; less is better."""
        from aeic_lightning.metrics.table import find_metric
        from aeic_lightning.study.bd_rate import bd_quality
        from aeic_lightning.study.results import read_results

        metric = find_metric(halving.metric)
        if metric is None:
            raise UserError(f"halving: there is no metric {halving.metric!r}")
        found = {
            candidate: [file for run in branches if run.candidate == candidate if (file := self._file(run)).is_file()]
            for candidate in dict.fromkeys(run.candidate for run in branches)
        }
        results = {candidate: read_results(files) for candidate, files in found.items()}
        others = read_results(self._models())
        reference = [r for own in [*results.values(), others] for r in own if agree(r.labels, halving.reference)]
        values = {}
        for candidate, own in results.items():
            values[candidate] = math.nan
            if own and all(run.done for run in branches if run.candidate == candidate):
                try:
                    quality = bd_quality(reference, own, metric.name, min_overlap=OVERLAP, resamples=0)
                except UserError as error:
                    print(f"{candidate} cannot be ranked: {error}", flush=True)
                else:
                    values[candidate] = -quality.difference if metric.higher else quality.difference
        return values

    def _file(self, run: Run) -> Path:
        return run.folder / "evaluated" / f"{validation_set(self.sweep)}.json"

    def _models(self) -> list[Path]:
        out = Path(self.sweep.report["out"]) / "models"
        names = [Path(model).name for model in self.sweep.report["evaluate"].get("models") or []]
        return [out / name / f"{validation_set(self.sweep)}.json" for name in names]

    def _write(self) -> None:
        record = [
            {"entry": entry, "rung": rung, **decision} for (entry, rung), decision in sorted(self.decided.items())
        ]
        write_whole(self.sweep.root / FILE, json.dumps(finite_or_null(record), indent=1) + "\n")


def staying(values: Mapping[str, float], factor: int) -> list[str]:
    """The candidates that Optuna's pruner promotes, of these values at one rung; less is better, NaN does not stay."""
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

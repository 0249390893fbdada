"""How far a ranking of candidates after few updates agrees with that after many: Kendall's tau, with an interval.

Over the candidates that were carried to the end. Where halving has carried only the best, their values lie closer
together than those of all, and tau is smaller than it would be over all.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """Of the rankings at two rungs.

    Attributes:
        low, high: the rungs.
        carried: candidates with a value at both.
        started: candidates at the lowest.
        tau: Kendall's tau-b, from -1 to 1; None for fewer than two candidates.
        interval: 95 %, percentiles of a bootstrap over the candidates; None for fewer than four.
    """

    low: int
    high: int
    carried: int
    started: int
    tau: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def words(self) -> str:
        """In a sentence."""
        of = f"{self.carried} of {self.started} candidates were carried to the end"
        if self.low == self.high:
            return f"No candidate was carried beyond {self.low:,} updates."
        if self.tau is None:
            return f"The rankings at {self.low:,} and {self.high:,} updates cannot be compared: {of}."
        sure = f" ({self.interval[0]:.2f} to {self.interval[1]:.2f})" if self.interval else ""
        if self.carried < self.started:
            of += ", the best at each rung, whose values lie closer than those of all"
        rungs = f"at {self.low:,} updates against {self.high:,}"
        return f"Kendall's tau of the ranking {rungs}: {self.tau:.2f}{sure}; {of}."


def by_entry(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The rungs of each entry in `halving.json`, from the lowest up."""
    found: dict[str, list[dict[str, Any]]] = {}
    for rung in json.loads(file.read_text()):
        found.setdefault(rung["entry"], []).append(rung)
    return found


def agreements(file: Path) -> dict[str, Agreement]:
    """Of each entry in `halving.json`."""
    return {entry: agreement(rungs) for entry, rungs in by_entry(file).items()}


def agreement(rungs: Sequence[Mapping[str, Any]]) -> Agreement:
    """Of the lowest and the highest rung, as `halving.json` has them (`study.halving`)."""
    low, high = rungs[0], rungs[-1]
    values = [
        {name: own["value"] for name, own in rung["candidates"].items() if _is_number(own["value"])}
        for rung in (low, high)
    ]
    both = [name for name in values[0] if name in values[1]]
    first, last = (np.array([own[name] for name in both]) for own in values)
    found = Agreement(low["rung"], high["rung"], len(both), len(low["candidates"]))
    if low is high or len(both) < 2:
        return found
    tau = _tau(first, last)
    if len(both) < 4 or tau is None:
        return Agreement(found.low, found.high, found.carried, found.started, tau)
    draws = np.random.default_rng(0).integers(len(both), size=(RESAMPLES, len(both)))
    taus = [one for draw in draws if (one := _tau(first[draw], last[draw])) is not None]
    low_end, high_end = (float(end) for end in np.percentile(taus, (2.5, 97.5)))
    return Agreement(found.low, found.high, found.carried, found.started, tau, (low_end, high_end))


def _tau(first: np.ndarray, last: np.ndarray) -> float | None:
    from scipy.stats import kendalltau

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where all values are the same
        tau = float(cast(Any, kendalltau(first, last)).statistic)
    return None if math.isnan(tau) else tau


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

"""The candidates of a search: points drawn from a grid, those within a budget of the sender's cost.

    - name: "{candidate}"
      grid: {width: [16, 24, 32], kernel: [3, 5], context: {none: {...}, four: {...}}}
      search: {candidates: 12, seed: 0, budget: {macs_per_pixel: 1000, weight_bytes: 400000}}

Each candidate is called c01, c02, ... (`{candidate}`, and the label of that name). An axis `seed` is not drawn from:
each candidate has all its values. Costs are those of everything that the sender runs, as `complexity` counts them. What
was drawn is kept in `candidates.json` in the sweep's root, those beyond the budget too, which are not run.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole

FILE = "candidates.json"
TRIES = 50  # draws for each candidate, before the budget is called too small
BUDGET = {"macs_per_pixel", "weight_bytes"}


@dataclass(frozen=True)
class Search:
    """How candidates are drawn.

    Attributes:
        candidates: how many.
        seed: of the draws.
        budget: most of `macs_per_pixel` and `weight_bytes`; what is not named is not bounded.
        weight_bits: of a weight in the sender's file.
    """

    candidates: int
    seed: int = 0
    budget: dict[str, float] = field(default_factory=dict)
    weight_bits: int = 8


def draw(
    axes: dict[str, list[Any]], search: Search, cost: Callable[[dict[str, Any]], dict[str, float]], root: Path, key: Any
) -> list[dict[str, Any]]:
    """The candidates as points of the grid, with `candidate`, in the order of their draw.

    Args:
        axes: the values of each.
        search: how many, and within what.
        cost: of a point: macs_per_pixel and parameters.
        root: of the sweep, where they are read from if they were drawn before.
        key: all that they depend on beside `axes` and `search`; others are drawn when it changes.

    Raises UserError where the grid has too few within the budget.
    """
    axes = {axis: values for axis, values in axes.items() if axis != "seed"}
    digest = hashlib.sha256(json.dumps([axes, vars(search), key], sort_keys=True).encode()).hexdigest()
    record = _read(root / FILE, digest) or _drawn(axes, search, cost) | {"key": digest}
    if not (root / FILE).is_file() or json.loads((root / FILE).read_text()) != record:
        write_whole(root / FILE, json.dumps(record, indent=1) + "\n")
    if len(record["candidates"]) < search.candidates:
        raise UserError(
            f"search: {len(record['candidates'])} of {search.candidates} candidates are within the budget "
            f"{search.budget}, {len(record['over_budget'])} were beyond it; widen the budget or the grid"
        )
    return [{"candidate": entry["candidate"]} | entry["point"] for entry in record["candidates"]]


def _read(file: Path, digest: str) -> dict[str, Any] | None:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("key") == digest else None


def _drawn(
    axes: dict[str, list[Any]], search: Search, cost: Callable[[dict[str, Any]], dict[str, float]]
) -> dict[str, Any]:
    dice, seen = random.Random(search.seed), set()
    within: list[dict[str, Any]] = []
    beyond: list[dict[str, Any]] = []
    there_are = math.prod(map(len, axes.values()))
    for _ in range(TRIES * search.candidates):
        if len(within) == search.candidates or len(seen) == there_are:
            break
        places = tuple(dice.randrange(len(values)) for values in axes.values())
        if places in seen:
            continue
        seen.add(places)
        point = {axis: values[place] for (axis, values), place in zip(axes.items(), places, strict=True)}
        costs = cost(point)
        costs["weight_bytes"] = math.ceil(costs["parameters"] * search.weight_bits / 8)
        if all(costs[name] <= most for name, most in search.budget.items()):
            within.append({"candidate": f"c{len(within) + 1:02d}", "point": point} | costs)
        else:
            beyond.append({"point": point} | costs)
    return {"candidates": within, "over_budget": beyond}

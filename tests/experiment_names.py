"""Names of the shipped experiments: files, and variants within them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aeic_lightning.config import variants

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def names(folder: str) -> set[str]:
    """What `experiments/FOLDER/NAME.yaml` may name: `teacher` and `teacher_stage1` of `tiny`."""
    inside = EXPERIMENTS / folder
    found = {path.stem: variants(path) for path in inside.glob("*.yaml")}
    together = inside.with_suffix(".yaml")
    return {f"{stem}_{name}" for stem, those in found.items() for name in those} | found.keys() | (
        variants(together).keys() if together.is_file() else set()
    )  # fmt: skip


def all_experiments() -> list[str]:
    """`tiny/teacher_stage1` and so on, without sweeps."""
    folders = {path.name if path.is_dir() else path.stem for path in EXPERIMENTS.iterdir()} - {"sweeps"}
    return sorted(f"{folder}/{name}" for folder in folders for name in names(folder))


def all_but_few_slow(names: Sequence[str], *few: str) -> list[Any]:
    """Names as parameters of a test, marked `slow` but for `few`, which `make test` runs for all of them."""
    assert set(few) <= set(names)
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]

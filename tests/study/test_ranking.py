"""Kendall's tau of the rankings at two rungs."""

from itertools import combinations

import numpy as np
import pytest

from aeic_lightning.study.ranking import agreement


def rungs(*values: dict) -> list[dict]:
    return [
        {"rung": 10**place, "candidates": {name: {"value": value} for name, value in own.items()}}
        for place, own in enumerate(values, start=1)
    ]


def test_tau_is_the_share_of_pairs_in_order_less_that_of_the_others():
    random = np.random.default_rng(5)
    low = {f"c{i}": float(value) for i, value in enumerate(random.normal(size=12))}
    high = {name: value + float(random.normal()) for name, value in low.items()}
    found = agreement(rungs(low, high))
    signs = [np.sign(low[a] - low[b]) * np.sign(high[a] - high[b]) for a, b in combinations(low, 2)]
    assert found.tau == pytest.approx(np.mean(signs))
    assert found.interval is not None
    assert found.interval[0] < found.tau < found.interval[1] <= 1
    assert (found.low, found.high, found.carried, found.started) == (10, 100, 12, 12)
    assert "12 of 12 candidates were carried to the end." in found.words


def test_only_who_has_a_value_at_both_counts():
    low = {"a": 0.1, "b": 0.2, "c": 0.3, "d": None, "e": 0.4}
    found = agreement(rungs(low, {"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.0}))
    assert found.tau == pytest.approx(1 / 3)
    assert found.interval is None, "three candidates are too few"
    assert (found.carried, found.started) == (3, 5)
    assert "3 of 5 candidates were carried to the end, the best at each rung" in found.words
    assert agreement(rungs(low, {"a": 0.1})).tau is None
    assert "cannot be compared: 1 of 5" in agreement(rungs(low, {"a": 0.1})).words
    assert agreement(rungs(low)).words == "No candidate was carried beyond 10 updates."

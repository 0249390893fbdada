import time

from aeic_lightning.timing import compare, quickest


def busy(seconds, calls):
    def work():
        calls.append(seconds)
        time.sleep(seconds)

    return work


def test_the_quickest_is_first_and_the_hopeless_is_left_alone():
    slow, quick = [], []
    assert quickest({"slow": busy(0.05, slow), "quick": busy(0.001, quick)}, runs=6) == ["quick", "slow"]
    assert len(quick) == 7
    assert len(slow) == 2


def test_alternatives_run_in_turn():
    calls = []
    timed = compare({"a": busy(0.01, calls), "b": busy(0.02, calls)}, repeats=3)
    assert calls == [0.01, 0.02] * 4  # the first turn does not count
    assert timed["a"].ratio == timed["a"].processor_ratio == 1
    assert timed["b"].ratio > 1
    assert timed["b"].runs == 3

import time

from aeic_lightning.timing import compare, least_times, quickest


def busy(seconds, calls):
    def work():
        calls.append(seconds)
        time.sleep(seconds)

    return work


class Clock:
    """Stands still but for what the candidates take."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def takes(self, name, *seconds):
        """A candidate whose runs take these seconds in turn, the last of them from then on."""
        left = list(seconds)

        def work():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work


def test_candidates_run_in_turn_and_the_hopeless_is_left_alone():
    clock = Clock()
    times = least_times({"slow": clock.takes("slow", 50.0), "quick": clock.takes("quick", 1.0)}, 6, clock)
    assert times == {"slow": 50.0, "quick": 1.0}
    assert clock.calls == ["slow", "quick"] * 3 + ["quick"] * 4  # one run that does not count, and two that do


def test_a_slow_run_drops_no_candidate():
    clock = Clock()
    late = clock.takes("late", 90.0, 90.0, 1.0)  # the first does not count, the second was disturbed
    assert quickest({"late": late, "steady": clock.takes("steady", 2.0)}, 5, clock) == "late"
    assert clock.calls == ["late", "steady"] * 6


def test_the_first_run_does_not_count():
    clock = Clock()
    work = {"first": clock.takes("first", 0.1, 3.0), "other": clock.takes("other", 9.0, 2.0)}
    assert quickest(work, 3, clock) == "other"


def test_time_in_which_a_candidate_does_not_compute_is_not_counted():
    def computes():
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass

    waits = busy(0.03, [])  # as another process makes it wait
    assert quickest({"computes": computes, "waits": waits}, 3) == "waits"


def test_alternatives_run_in_turn():
    calls = []
    timed = compare({"a": busy(0.01, calls), "b": busy(0.02, calls)}, repeats=3)
    assert calls == [0.01, 0.02] * 4  # the first turn does not count
    assert timed["a"].ratio == timed["a"].processor_ratio == 1
    assert timed["b"].ratio > 1
    assert timed["b"].runs == 3

import os
import time

import pytest
import torch

from aeic_lightning import timing
from aeic_lightning.timing import compare, least_times, quickest, remembered


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


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks one question; `ask.measured` counts how often that took a measurement."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def ask(answer="a", question="a or b"):
        def measure():
            ask.measured += 1
            return answer

        return remembered(question, ("a", "b"), measure)

    ask.measured = 0
    return ask


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_choice_is_kept_for_the_next_process(ask, tmp_path):
    assert ask("b") == ask("a") == "b"
    assert ask.measured == 1
    (file,) = files(tmp_path)
    assert file.parent == tmp_path / "aeic_lightning/choices"
    assert ask("a", "another question") == "a"
    assert len(files(tmp_path)) == ask.measured == 2


@pytest.mark.parametrize("condition", ["threads", "version", "processor", "limit"])
def test_a_choice_holds_under_its_conditions_alone(ask, condition, monkeypatch):
    assert ask("b") == "b"
    if condition == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    elif condition == "version":
        monkeypatch.setattr(torch, "__version__", "9.9")
    elif condition == "processor":
        own = timing.processor()
        monkeypatch.setattr(timing, "processor", lambda: own | {"instructions": ["none"]})
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert ask("a") == "a"
    assert ask.measured == 2


@pytest.mark.parametrize("content", ["", "{", "[]", None, "another answer", "old"])
def test_a_broken_or_old_choice_is_made_anew(ask, tmp_path, content):
    ask("b")
    (file,) = files(tmp_path)
    good = file.read_text()
    if content == "old":
        os.utime(file, (0, time.time() - 31 * 24 * 3600))
    elif content is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_text(good.replace('"b"', '"c"') if content == "another answer" else content)
    assert ask("a") == "a"
    assert content is None or ask("b") == "a"
    assert ask.measured == 2
    assert all(path.name == file.name for path in files(tmp_path)), "nothing half-written is left"


def test_a_cache_that_cannot_be_written_is_none(ask, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [ask("b"), ask("a")] == ["b", "a"]


def test_a_relative_cache_folder_counts_as_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert timing.choices_folder() == tmp_path / ".cache/aeic_lightning/choices"

"""The estimate of a sweep, from a few updates of each distinct experiment."""

import json

import pytest

from aeic_lightning.cli import main
from aeic_lightning.study import eta
from aeic_lightning.study.runner import checked_settings
from tests.study.test_rungs import ladder


def test_one_experiment_is_timed_for_all_rungs_and_seeds(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(eta, "_fit", lambda words, threads: (timed.append(threads) or main(words), ""))
    timed = []
    sweep = ladder(tmp_path, rungs="rungs: [100, 400]", grid="seed: [0, 1]")
    record = eta.estimate(sweep, checked_settings(sweep))
    assert timed == [1], "once, on one thread"
    # Trunks of 400, branches of 25 and 100; alone they would be 125 and 500.
    assert record["updates"] == 2 * (400 + 25 + 100)
    assert record["rungs_alone"]["updates"] == 2 * (125 + 500)
    assert record["hours"] > 0
    assert record["rungs_alone"]["hours"] / record["hours"] == pytest.approx(1250 / 1050)
    said = capfd.readouterr().out
    assert "an update of a_seed=0_trunk=100 and 7 more: " in said
    assert "1,050 updates" in said
    assert "a run for each rung would be 1,250 updates" in said
    assert not (tmp_path / "runs").exists(), "nothing is trained"


def test_hours_are_updates_times_seconds_and_what_is_done_costs_nothing(tmp_path, monkeypatch):
    def fit(words, threads):
        folder = next(word.split("=", 1)[1] for word in words if word.startswith("--trainer.default_root_dir="))
        (tmp_path / folder / "step_times.json").write_text(json.dumps({"seconds": 7.2, "device": "cpu"}))
        return 0, ""

    monkeypatch.setattr(eta, "_fit", fit)
    sweep = ladder(tmp_path, rungs="rungs: [100, 400]")
    for done in sweep.runs[:2]:
        done.folder.mkdir(parents=True)
        (done.folder / "finished").touch()
    record = eta.estimate(sweep, checked_settings(sweep))
    assert record == {
        "updates": 400, "hours": 0.8, "of": "core", "seconds": 2880.0, "halving": False,
        "rungs_alone": {"updates": 500, "hours": 1.0},
    }  # fmt: skip


def test_what_cannot_be_timed_is_said_with_the_reason(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(eta, "_fit", lambda *_: (2, "warning: ...\nerror: no teacher\n"))
    sweep = ladder(tmp_path)
    assert eta.estimate(sweep, checked_settings(sweep))["updates"] == 0
    said = capfd.readouterr().out
    assert "an update of a_seed=0_trunk=2 and 3 more: not timed (no teacher)" in said
    assert "without 1 experiment that could not be timed" in said

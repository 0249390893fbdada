"""`benchmarks.law`: a law that is known is found again, and figures without a law are not predicted."""

import json

import numpy as np
import pytest

from aeic_lightning.errors import UserError
from aeic_lightning.study.results import Result, write_results
from benchmarks import law

SIZES = {"small": 1500.0, "medium": 3300.0, "large": 17000.0}
TEACHERS = {"400": 1.2, "1600": 1.0, "shipped": 0.85}
RUNGS = (100, 200, 400, 800)
LEVELS = (0.03, 0.08, 0.2)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(law, "DRAWS", 20)


def quality(macs: float, updates: int, teacher: float) -> float:
    """LPIPS at 0.1 bpp, by a law of the fourth form."""
    return 0.1 + 0.9 * teacher + 0.05 * (macs / 1000) ** -0.5 + 0.3 * (updates / 100) ** -0.8


def results(noise: float = 0.0) -> list[Result]:
    """36 runs and their teachers, each at levels whose LPIPS is on a line over the logarithm of the bits."""
    generator = np.random.default_rng(0)

    def levels(name, at_a_tenth, labels, costs=None):
        found = []
        for place, bpp in enumerate(LEVELS):
            means = {"bpp": bpp, law.METRIC: at_a_tenth - 0.1 * np.log(bpp / 0.1)}
            metrics = {metric: {"mean": mean, "images": 2} for metric, mean in means.items()}
            found.append(Result(name, "checkpoint", {**labels, "level": float(place)}, metrics, costs=costs))
        return found

    found = []
    for teacher, best in TEACHERS.items():
        labels = {"arm": "teacher"} | ({} if teacher == "shipped" else {"rung": int(teacher)})
        found += levels(f"teacher {teacher}", best, labels)
        for size, macs in SIZES.items():
            for rung in RUNGS:
                value = quality(macs, rung, best) + noise * generator.standard_normal()
                costs = {"encoder_macs_per_pixel": {"encode": macs}}
                taught = teacher if teacher == "shipped" else int(teacher)
                found += levels(f"{size} {rung}", value, {"arm": size, "teacher": taught, "rung": rung}, costs)
    return found


def test_a_known_law_is_found_and_predicts_the_runs_set_aside(tmp_path, monkeypatch, capsys):
    write_results(tmp_path / "results.json", results())
    monkeypatch.setattr("sys.argv", ["law", str(tmp_path / "results.json"), "-o", str(tmp_path / "law.json")])
    law.main()
    found = json.loads((tmp_path / "law.json").read_text())
    assert found["best"] == "c + d T + a M^-α + b U^-β"
    values = {row["name"]: row["value"] for row in found["parameters"]}
    assert values["d"] == pytest.approx(0.9, abs=0.02)
    assert values["β"] == pytest.approx(0.8, abs=0.05)
    assert [len(found["set_aside"]), len(found["fitted"])] == [6, 30]
    assert found["worst"] < 0.001
    assert found["within_aim"]
    said = capsys.readouterr().out
    assert "30 runs fitted, 6 set aside" in said
    assert "within 0.01" in said


def test_what_has_no_law_is_not_predicted():
    runs, out = law.runs_of(results(noise=0.1), 0.1)
    assert not out
    assert len(runs) == 36
    assert not law.law(runs)["within_aim"]


def test_the_runs_set_aside_do_not_depend_on_their_order():
    runs, _ = law.runs_of(results(), 0.1)
    aside = law.set_aside(runs)[1]
    assert law.set_aside(runs[::-1])[1] == aside[::-1]
    without = [run for run in runs if run not in aside][:3]
    left = [run for run in runs if run not in without]
    assert law.set_aside(left, [run.name for run in without])[1] == aside, "nor on which others have no quality"


def test_a_model_whose_rates_do_not_reach_is_named():
    with pytest.raises(UserError, match=r"0\.3 bpp is not between its levels, 0\.030 to 0\.200"):
        law.quality_at(results()[:3], 0.3)
    runs, out = law.runs_of(results(), 0.3)
    assert not runs
    assert len(out) == 36

"""Gain against updates: rates that are a known share of others at every quality."""

import re
from dataclasses import replace

import numpy as np
import pytest

from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.claims import Claim, Needs, answers_by_set
from aeic_lightning.study.report.gains import gains
from aeic_lightning.study.report.page import write_report
from aeic_lightning.study.study import Study
from tests.study.made_curves import curve

RATES = np.array([[0.02], [0.04], [0.08], [0.16]]) * np.array([1.0, 1.1, 0.9])
QUALITIES = np.array([[20.0], [21.0], [22.0], [23.0]]) + np.array([0.0, 0.1, -0.1])
SHARES = {"none": {100: 1.0, 400: 1.0}, "enc": {100: 0.8, 400: 0.95}, "dec": {100: 1.1, 400: 1.0}}


def ladder(quality_of_teacher: float = 0.0) -> list:
    results = [
        replace(result, labels=result.labels | {"arm": arm, "rung": rung})
        for arm, rungs in SHARES.items()
        for rung, share in rungs.items()
        for result in curve(RATES * share, QUALITIES + 3 * (rung == 400), f"{arm} {rung}")
    ]
    teacher = curve(RATES / 2, QUALITIES + quality_of_teacher, "teacher")
    return results + [replace(r, labels=r.labels | {"arm": "teacher"}) for r in teacher]


def section(results: list, drawn: dict | None = None):
    (images,) = Study(results).sets
    return gains("gains", images, Study(results), find_metric("psnr"), {} if drawn is None else drawn, resamples=20)


def test_every_arm_is_compared_with_training_alone_at_its_own_rung():
    drawn = {}
    found = section(ladder(), drawn)
    gain = {(row["arm"], row["rung"]): row["gain"] and row["gain"].percent for row in found["rows"]}
    for arm, rungs in SHARES.items():
        for rung, share in rungs.items():
            expected = None if arm == "none" else pytest.approx(100 * (share - 1), abs=1e-6)
            assert gain[f"arm {arm}", rung] == expected
    lines = {trace["name"]: (trace["x"], trace["y"]) for trace in drawn["gains"]["data"]}
    assert lines.keys() == {"arm enc", "arm dec"}
    assert lines["arm enc"][0] == [100, 400]
    assert lines["arm enc"][1] == pytest.approx([-20, -5])
    assert drawn["gains"]["layout"]["xaxis"]["tickvals"] == [100, 400]


def test_a_rung_passes_where_curves_share_half_of_their_range_with_the_teachers():
    """At 400 updates all qualities are 3 dB higher: there the curves hardly meet."""
    assert section(ladder())["passing"] == [100]
    assert section(ladder(quality_of_teacher=3.0))["passing"] == [400]
    assert section(ladder(quality_of_teacher=30.0))["passing"] == []
    extra = {(row["arm"], row["rung"]): row["teacher"].percent for row in section(ladder())["rows"]}
    assert extra["arm none", 100] == pytest.approx(100)
    assert extra["arm enc", 100] == pytest.approx(60)


def test_an_arm_is_worth_the_updates_that_none_needs_for_its_quality():
    """`none` gains 2 dB from 100 to 400 updates, so that 1 dB is worth their geometric mean."""
    steps = {("none", 100): 0.0, ("none", 400): 2.0, ("half", 100): 1.0, ("half", 400): 2.5, ("worse", 100): -1.0}
    results = [
        replace(r, labels=r.labels | {"arm": arm, "rung": rung})
        for (arm, rung), more in steps.items()
        for r in curve(RATES, QUALITIES + more, f"{arm} {rung}")
    ]
    found = {(row["arm"], row["rung"]): row["worth"] for row in section(results)["rows"]}
    assert found == {
        ("arm none", 100): None,
        ("arm none", 400): None,
        ("arm half", 100): "200",
        ("arm half", 400): "more than 400",
        ("arm worse", 100): "fewer than 100",
    }


def test_without_a_ladder_or_an_arm_none_there_is_nothing():
    one = [r for r in ladder() if r.labels.get("rung") != 400]
    assert section(one) is None
    assert section([r for r in ladder() if r.labels["arm"] != "none"]) is None


def test_the_page_shows_it(tmp_path):
    write_report(Study(ladder()), tmp_path / "index.html", resamples=20)
    text = " ".join((tmp_path / "index.html").read_text().split())
    assert "<h2>Gain against updates</h2>" in text
    assert "<td>-20.0</td>" in text
    assert text.index('id="gains"') < text.index("<nav "), "the plot stands above all else"
    assert "after 100 updates." in text


def test_the_headline_holds_as_many_claims_as_were_asked_for(tmp_path):
    said = [
        Claim(f"{arm} saves bits", {"arm": arm, "rung": 100}, {"arm": "none", "rung": 100}) for arm in ("enc", "dec")
    ]
    unknown = Claim("nothing is known of it", {"arm": "enc", "rung": 7}, {"arm": "none"})
    answered = answers_by_set(
        Study(ladder()), [unknown, *said, replace(said[0], says="once more")], 20, Needs(images=1)
    )
    for headline in (1, 2, 3, 4):  # of four claims one has no answer: it stands in the table alone
        write_report(Study(ladder()), tmp_path / "index.html", resamples=20, answered=answered, headline=headline)
        text = (tmp_path / "index.html").read_text()
        leads = re.findall(r'<p class="lead">(.*?):', text)
        assert leads == ["Enc saves bits", "Dec saves bits", "Once more"][:headline]
        assert '<table class="claims">' in text

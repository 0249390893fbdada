"""A study computes each BD-rate once, for whichever of its views asks first."""

import pytest

from aeic_lightning.study import study as module
from aeic_lightning.study.bd_rate import bd_rate
from aeic_lightning.study.claims import Claim, Needs, answers_by_set
from aeic_lightning.study.report.page import write_report
from aeic_lightning.study.study import Study
from tests.study.made_study import made_study, measure


@pytest.fixture
def computed(monkeypatch):
    """The comparisons that were computed, in order."""
    asked = []

    def counted(reference, test, metric, *, names, **options):
        asked.append((*names, metric))
        return bd_rate(reference, test, metric, names=names, **options)

    monkeypatch.setattr(module, "bd_rate", counted)
    return asked


def test_tables_claims_and_page_share_their_bootstraps(computed, tmp_path):
    anchors = [measure("jpeg", None, None, rate, 0, 4.0, name=f"jpeg {rate}", codec="jpeg") for rate in (0.5, 1.0, 2.0)]
    study = Study([*made_study(), *made_study()])
    assert len(study.results) == len(made_study())
    (images,) = study.sets
    reference, *tests = images.curves
    rows = study.rates(reference, tests, ["psnr", "lpips_lite0"], equal_bits=True, resamples=20)
    assert len(computed) == 8
    expected = bd_rate(reference.results, tests[1].results, "psnr", resamples=20, names=(reference.name, tests[1].name))
    assert rows[2] == expected
    claim = Claim("It saves bits", {"depth": 1, "arm": "enc"}, {"role": "teacher"}, "psnr")
    answers_by_set(study, [claim], 20, Needs(2, 2))
    assert len(computed) == 8
    write_report(study.with_more(anchors), tmp_path / "r.html", resamples=20, max_images=0)
    new = [row for row in computed[8:] if row[0] == reference.name]  # not those of published points
    assert new
    assert not {row for row in new if "jpeg" not in row[1] and "fid" not in row[2]}, "but for what is new on the page"
    study.rates(reference, tests[:1], ["psnr"], resamples=30)
    assert computed[-1] == (reference.name, tests[0].name, "psnr"), "another bootstrap"


def test_the_difference_at_equal_bits_is_added_where_it_is_asked_for():
    """Curves of qualities that do not meet: refused, with what they differ by at equal bits."""
    far = [measure("student", 1, "far", rate, 0, 0.0) for rate in (0.5, 1.0, 2.0)]
    for result in far:
        for row in result.images:
            row["psnr"] += 20
        result.metrics["psnr"]["mean"] += 20
    study = Study([*made_study(), *far])
    (images,) = study.sets
    by_name = {c.labels.get("arm"): c for c in images.curves if c.labels.get("depth") == 1}
    pair = by_name["none"], [by_name["far"]]
    (plain,) = study.rates(*pair, ["psnr"], resamples=20)
    (full,) = study.rates(*pair, ["psnr"], resamples=20, equal_bits=True)
    assert plain.reason
    assert plain.equal_bits is None
    assert full.equal_bits is not None
    assert full.equal_bits.difference > 15

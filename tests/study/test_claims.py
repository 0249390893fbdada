"""A claim holds where the interval says so, and in no other case."""

import pytest
import yaml

from aeic_lightning.errors import UserError
from aeic_lightning.study import claims
from aeic_lightning.study.bd_rate import BDQuality, BDRate
from aeic_lightning.study.claims import Claim, answers
from aeic_lightning.study.sweep_file import read_sweep


class FakeCurve:
    """All that `answers` asks a curve for itself."""

    def __init__(self, **labels):
        self.labels = labels


@pytest.mark.parametrize(
    ("percent", "interval", "verdict"),
    [
        (-4.0, (-6.0, -1.0), "holds"),
        (-4.0, (-6.0, 0.5), "not shown"),
        (-4.0, None, "not shown"),
        (3.0, (1.0, 5.0), "does not hold"),
        (3.0, (-1.0, 5.0), "not shown"),
        (None, None, "not shown"),
    ],
)
def test_verdict(monkeypatch, percent, interval, verdict):
    rate = BDRate("none", "enc", "psnr", percent, interval, images=24, seeds=(3, 3), reason=None if percent else "why")
    monkeypatch.setattr(claims, "bd_rates", lambda *_, **__: [rate])
    curves = [FakeCurve(arm="none"), FakeCurve(arm="enc")]
    (answer,) = answers([Claim("It saves bits", {"arm": "enc"}, {"arm": "none"}, "psnr")], curves)
    assert answer.verdict == verdict
    assert ("24 images, 3 seeds" in answer.reason) == (interval is not None)


@pytest.mark.parametrize(
    ("metric", "difference", "interval", "verdict", "figures"),
    [
        ("lpips", -0.08, (-0.09, -0.07), "holds", "LPIPS -0.0800 at equal bits (95 % interval -0.0900 to -0.0700; "),
        ("lpips", 0.08, (0.07, 0.09), "does not hold", "LPIPS +0.0800 at equal bits"),
        ("psnr", 0.5, (0.4, 0.6), "holds", "PSNR (dB) +0.50 at equal bits (95 % interval +0.40 to +0.60; "),
        ("psnr", -0.5, (-0.6, -0.4), "does not hold", "PSNR (dB) -0.50 at equal bits"),
        ("psnr", 0.5, (-0.1, 0.6), "not shown", "PSNR (dB) +0.50 at equal bits"),
        ("psnr", 0.5, None, "not shown", "PSNR (dB) +0.50 at equal bits, without an interval."),
        ("top1", 0.015, (0.01, 0.02), "holds", "+1.5 points at equal bits (95 % interval +1.0 points to +2.0 points; "),
    ],
)
def test_verdict_at_equal_bits(monkeypatch, metric, difference, interval, verdict, figures):
    """Where there is no BD-rate, better at the same bits is fewer bits for the same quality."""
    found = BDQuality(difference, interval, 0.8, 24, (3, 3))
    reason = "the curves share 40% of their range in psnr (1 to 2 and 2 to 3), less than asked for"
    rate = BDRate("none", "enc", metric, reason=reason, equal_bits=found)
    monkeypatch.setattr(claims, "bd_rates", lambda *_, **__: [rate])
    curves = [FakeCurve(arm="none"), FakeCurve(arm="enc")]
    (answer,) = answers([Claim("It saves bits", {"arm": "enc"}, {"arm": "none"}, metric)], curves)
    assert answer.verdict == verdict
    assert figures in answer.reason
    assert answer.reason.endswith(" No BD-rate: the curves share 40% of their range in psnr.")


def test_a_claim_about_several_curves_is_left_out():
    curves = [FakeCurve(arm="none", depth=1), FakeCurve(arm="none", depth=2), FakeCurve(arm="enc")]
    assert answers([Claim("It saves bits", {"arm": "enc"}, {"arm": "none"}, "psnr")], curves) == []


def test_a_claim_about_an_arm_that_is_not_run_is_left_out(tmp_path, capsys):
    claim = {"says": "b saves bits", "test": {"arm": "b"}, "reference": {"arm": "a"}, "metric": "psnr"}
    sweep = {
        "vars": {"arms": ["a", "b"]},
        "root": str(tmp_path),
        "runs": [{"name": "{arm}", "grid": {"arm": "${vars.arms}"}, "config": "e.yaml", "labels": {"arm": "{arm}"}}],
        "report": {"out": "out", "against": [{"reference": {"arm": "a"}}], "claims": [claim]},
    }
    (tmp_path / "e.yaml").write_text("model: {init_args: {}}")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert read_sweep(tmp_path / "sweep.yaml", []).report["claims"] == [claim]
    assert capsys.readouterr().err == ""
    assert read_sweep(tmp_path / "sweep.yaml", ["vars.arms=[a]"]).report["claims"] == []
    assert capsys.readouterr().err == "claim left out, since no run has {'arm': 'b'}: \"b saves bits\"\n"
    sweep["report"]["claims"] = [claim | {"test": {"arm": "b", "depth": 2}}]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert read_sweep(tmp_path / "sweep.yaml", []).report["claims"], "the depth is said by the config of a run"
    with pytest.raises(UserError, match="max_images is a number of images, not -1"):
        read_sweep(tmp_path / "sweep.yaml", ["report.max_images=-1"])


def test_a_label_that_some_runs_name_and_others_leave_to_their_configs(tmp_path, capsys):
    depths = {"test": {"arm": "a", "depth": 2}, "reference": {"arm": "a", "depth": 1}, "metric": "psnr"}
    sweep = {
        "root": str(tmp_path),
        "runs": [
            {"name": "{arm}", "grid": {"arm": ["a"]}, "config": "e.yaml"},
            {"name": "{arm}_{depth}", "grid": {"arm": ["a"], "depth": [2]}, "config": "e.yaml"},
        ],
        "report": {
            "out": "out",
            "against": [{"reference": {"arm": "a"}}],
            "claims": [
                {"says": "depth saves bits"} | depths,
                {"says": "b saves bits"} | depths | {"test": {"arm": "b"}},
            ],
        },
    }
    (tmp_path / "e.yaml").write_text("model: {init_args: {}}")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert [claim["says"] for claim in read_sweep(tmp_path / "sweep.yaml", []).report["claims"]] == ["depth saves bits"]
    assert "b saves bits" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"report: no run has the labels \{'armm': 'a'}"):
        read_sweep(tmp_path / "sweep.yaml", ["report.against=[{reference: {armm: a}}]"])
    with pytest.raises(UserError, match=r"report: no run has the labels \{'depth': 3}"):
        read_sweep(tmp_path / "sweep.yaml", ["report.select={depth: 3}"])
    assert read_sweep(tmp_path / "sweep.yaml", ["report.against=[{reference: {arm: a, depth: 1}}]"])

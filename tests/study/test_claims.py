"""A claim holds where the interval says so, and in no other case."""

from pathlib import Path

import pytest
import yaml

from aeic_lightning.errors import UserError
from aeic_lightning.study.bd_rate import BDQuality, BDRate
from aeic_lightning.study.claims import MIN_IMAGES, MIN_SEEDS, Claim, Needs, answers, answers_by_set, markdown
from aeic_lightning.study.results import Result, write_results
from aeic_lightning.study.runner import run_sweep
from aeic_lightning.study.study import Curve, ImageSet, Study
from aeic_lightning.study.sweep_file import read_sweep
from aeic_lightning.study.views import check_claims, with_earlier

SWEEPS = Path(__file__).parents[2] / "experiments/sweeps"


def FakeCurve(seeds=(0, 1, 2), **labels) -> Curve:
    """All that `answers` asks a curve for itself: its labels, and the seeds of its results."""
    results = [Result(f"{labels} {seed}", "run", labels | {"seed": seed}, {}) for seed in seeds]
    return Curve(str(labels), labels, [results or [Result("shipped", "checkpoint", labels, {})]], "bpp")


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
    asked = []
    monkeypatch.setattr(Study, "rates", lambda *_, **given: asked.append(given) or [rate])
    curves = [FakeCurve(arm="none"), FakeCurve(arm="enc")]
    (answer,) = answers(Study(), [Claim("It saves bits", {"arm": "enc"}, {"arm": "none"}, "psnr")], curves, resamples=7)
    assert asked == [{"equal_bits": True, "resamples": 7}]
    assert answer.verdict == verdict
    assert ("24 images, 3 seeds" in answer.reason) == (interval is not None)


@pytest.mark.parametrize(
    ("rate", "least"),
    [
        (BDRate("none", "enc", "psnr", 3.0, (-1.0, 5.0), images=24), "3.0 %"),
        (BDRate("none", "enc", "psnr", 3.0, (1.0, 5.0), images=24), None),
        (
            BDRate(
                "none", "enc", "psnr", None, None, reason="why", equal_bits=BDQuality(0.1, (-0.1, 0.3), 0.4, 24, (3, 3))
            ),
            "0.20",
        ),
    ],
)
def test_what_is_not_shown_says_which_effect_would_have_been(monkeypatch, rate, least):
    """Half of the interval: an effect as large would have left 0 outside."""
    monkeypatch.setattr(Study, "rates", lambda *_, **__: [rate])
    curves = [FakeCurve(arm="none"), FakeCurve(arm="enc")]
    (answer,) = answers(Study(), [Claim("It", {"arm": "enc"}, {"arm": "none"}, "psnr")], curves)
    assert ("smallest effect" in answer.reason) == (least is not None)
    assert f" is about {least}." in answer.reason or least is None


@pytest.mark.parametrize(
    ("images", "seeds", "needs", "verdict"),
    [
        (MIN_IMAGES, MIN_SEEDS, Needs(), "holds"),
        (MIN_IMAGES - 1, MIN_SEEDS, Needs(), "not decided: 9 images"),
        (MIN_IMAGES, 1, Needs(), "not decided: one seed"),
        (2, 1, Needs(), "not decided: 2 images and one seed"),
        (2, 1, Needs(2, 1), "holds"),
        (None, 2, Needs(), "not decided: no images"),
        (MIN_IMAGES, 0, Needs(), "not decided: one seed"),  # a reference that was not trained for the study counts not
    ],
)
def test_a_claim_needs_images_and_seeds(monkeypatch, images, seeds, needs, verdict):
    """The side with fewer seeds decides; a curve without seeds, such as a shipped model, has none to count."""
    rate = BDRate("none", "enc", "psnr", -4.0, (-6.0, -1.0), images=images)
    monkeypatch.setattr(Study, "rates", lambda *_, **__: [rate])
    test = FakeCurve(range(seeds), arm="enc")
    others = [FakeCurve(range(3), arm="none"), FakeCurve((), arm="none")]
    for reference in others if seeds else others[1:]:
        (answer,) = answers(Study(), [Claim("It", {"arm": "enc"}, {"arm": "none"})], [reference, test], needs=needs)
        assert answer.verdict == verdict


def test_a_sign_that_depends_on_the_interpolator_is_not_shown(monkeypatch):
    curves = [FakeCurve(arm="none"), FakeCurve(arm="enc")]

    def verdict(akima: float) -> str:
        rate = BDRate("none", "enc", "psnr", -4.0, (-6.0, -1.0), images=24, by_interpolator={"akima": akima})
        monkeypatch.setattr(Study, "rates", lambda *_, **__: [rate])
        (answer,) = answers(Study(), [Claim("It", {"arm": "enc"}, {"arm": "none"})], curves)
        return f"{answer.verdict}: {answer.reason}"

    assert verdict(-3.0).startswith("holds")
    assert verdict(2.0).startswith("not shown")
    assert verdict(2.0).endswith("Akima it is +2.0 %: the sign depends on the interpolator.")


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
    monkeypatch.setattr(Study, "rates", lambda *_, **__: [rate])
    curves = [FakeCurve(arm="none"), FakeCurve(arm="enc")]
    (answer,) = answers(Study(), [Claim("It saves bits", {"arm": "enc"}, {"arm": "none"}, metric)], curves)
    assert answer.verdict == verdict
    assert figures in answer.reason
    assert answer.reason.endswith(" No BD-rate: the curves share 40% of their range in psnr.")


def test_a_claim_about_several_curves_or_none_is_not_answered():
    """And it says so on the page, beside those that are."""
    curves = [FakeCurve(arm="none", depth=1), FakeCurve(arm="none", depth=2), FakeCurve(arm="enc")]
    asked = [Claim("It saves bits", {"arm": "enc"}, {"arm": "none"}), Claim("It", {"arm": "dec"}, {"arm": "enc"})]
    several, none = answers(Study(), asked, curves)
    assert (several.verdict, none.verdict) == ("not answered", "not answered")
    assert several.reason.startswith("2 curves have arm=none (")
    assert none.reason == "No curve has arm=dec."
    study = Study()
    study.sets = [ImageSet("cats", [], curves, []), ImageSet("dogs", [], curves, [])]
    sets = answers_by_set(study, asked)
    assert [title for title, _ in sets] == ["cats"]
    assert "- It: **not answered**. No curve has arm=dec." in markdown("Study", sets)


def sweep_of(tmp_path, runs, claims, overrides=(), **report):
    """A sweep of configs that say no more than `labels` and a temperature."""
    text = "model: {class_path: a.StudentSystem, init_args: {temperature: '${vars.t}', codec: {depths: [1, 1]}}}"
    (tmp_path / "e.yaml").write_text(f"vars: {{t: 1}}\nseed_everything: 0\n{text}\n")
    asked = [{"says": says, "test": test, "reference": other, "metric": "psnr"} for says, test, other in claims]
    content = {"root": str(tmp_path), "runs": runs} | ({"vars": {"arms": ["a", "b"]}} if runs[0] is ARMS[0] else {})
    content |= {"report": {"out": "out", "against": [{"reference": {"arm": "a"}}], "claims": asked} | report}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return read_sweep(tmp_path / "sweep.yaml", list(overrides))


ARMS = [{"name": "{arm}", "grid": {"arm": "${vars.arms}"}, "config": "e.yaml", "labels": {"arm": "{arm}"}}]
CLAIM = ("b saves bits", {"arm": "b"}, {"arm": "a"})


def test_a_claim_that_no_run_answers_stops_the_sweep_before_its_first_run(tmp_path, capsys):
    assert run_sweep(sweep_of(tmp_path, ARMS, [CLAIM]), dry_run=True) == 0
    with pytest.raises(UserError, match=r'"b saves bits": no curve has arm=b; .*optional_claims: true'):
        run_sweep(sweep_of(tmp_path, ARMS, [CLAIM], ["vars.arms=[a]"]), dry_run=True)
    assert run_sweep(sweep_of(tmp_path, ARMS, [CLAIM], ["vars.arms=[a]"], optional_claims=True), dry_run=True) == 0
    with pytest.raises(UserError, match="max_images is a number of images, not -1"):
        sweep_of(tmp_path, ARMS, [CLAIM], ["report.max_images=-1"])
    with pytest.raises(UserError, match="min_seeds is a whole number from 1 on, not 0"):
        sweep_of(tmp_path, ARMS, [CLAIM], ["report.min_seeds=0"])
    with pytest.raises(UserError, match="headline is a whole number from 1 on, not 'two'"):
        sweep_of(tmp_path, ARMS, [CLAIM], ["report.headline=two"])


def test_a_claim_about_several_curves_stops_the_sweep(tmp_path):
    """Also where the curves differ in a setting that no label says, and however optional the claims are."""
    runs = [ARMS[0], {"name": "hot", "config": "e.yaml", "labels": {"arm": "b"}, "set": {"vars.t": 2}}]
    with pytest.raises(UserError, match=r"2 curves have arm=b \(.*temperature 1; .*temperature 2\): name one by"):
        run_sweep(sweep_of(tmp_path, runs, [CLAIM], optional_claims=True), dry_run=True)


def test_labels_of_configs_answer_claims(tmp_path):
    """A label that some runs name and others leave to their configs."""
    runs = [
        {"name": "{arm}", "grid": {"arm": ["a"]}, "config": "e.yaml"},
        {"name": "{arm}_{depth}", "grid": {"arm": ["a"], "depth": [2]}, "config": "e.yaml"},
    ]
    deep = ("depth saves bits", {"arm": "a", "depth": 2}, {"arm": "a", "depth": 1})
    assert run_sweep(sweep_of(tmp_path, runs, [deep]), dry_run=True) == 0
    with pytest.raises(UserError, match="no curve has arm=a, depth=3"):
        run_sweep(sweep_of(tmp_path, runs, [(deep[0], {"arm": "a", "depth": 3}, deep[2])]), dry_run=True)
    with pytest.raises(UserError, match=r"report: no run has the labels \{'armm': 'a'}"):
        sweep_of(tmp_path, runs, [deep], ["report.against=[{reference: {armm: a}}]"])
    with pytest.raises(UserError, match=r"report: no run has the labels \{'depth': 3}"):
        sweep_of(tmp_path, runs, [deep], ["report.select={depth: 3}"])
    sweep_of(tmp_path, runs, [deep], ["report.against=[{reference: {arm: a, depth: 1}}]"])


@pytest.mark.parametrize("name", ["distillation", "distillation_encoders", "ladder"])
def test_the_claims_of_the_shipped_studies_are_about_their_runs(name):
    """Each of two curves, of whose runs no other setting differs than seed, paths and rate."""
    sweep = read_sweep(SWEEPS / f"{name}.yaml", ["report.evaluate.images.kodak=null"])
    sweep.report["optional_claims"] = False
    check_claims(sweep, {run.name: run.resolved() for run in sweep.runs})


def test_results_of_runs_that_are_gone_count_like_runs(tmp_path):
    """Labels, claims and curves; what is measured anew replaces them, and only pictures that are there are shown."""

    def result(arm: str, seed: int, value: float, **fields) -> Result:
        labels, images = {"arm": arm, "depth": 1, "seed": seed}, [{"name": "a", "height": 8, "width": 8, "crc32": 1}]
        psnr = {"psnr": {"mean": value, "images": 1}}
        settings = {"a.default": "1", "temperature": "1"}
        return Result(f"{arm}_{seed}", "run", labels, psnr, images=images, settings=settings, **fields)

    (tmp_path / "there.png").write_bytes(b"picture")
    pictures = {"a": tmp_path / "there.png", "b": tmp_path / "gone.png"}
    before = [result("b", 0, 20.0, pictures=pictures), result("a", 0, 19.0)]
    write_results(tmp_path / "before.json", before)
    anew = [result("a", 0, 21.0), result("a", 1, 22.0)]
    found = {r.name: r for r in with_earlier(anew, [str(tmp_path / "before.json")])}
    assert {name: r.value("psnr") for name, r in found.items()} == {"a_0": 21.0, "a_1": 22.0, "b_0": 20.0}
    assert found["b_0"].pictures == {"a": tmp_path / "there.png"}
    runs = [{"name": "{arm}_0", "grid": {"arm": ["a"]}, "config": "e.yaml", "labels": {"arm": "{arm}"}}]
    earlier = {"earlier": [str(tmp_path / "before.json")], "against": [{"reference": {"arm": "b"}}]}
    assert run_sweep(sweep_of(tmp_path, runs, [CLAIM], **earlier), dry_run=True) == 0
    with pytest.raises(UserError, match=r"report: no run has the labels \{'arm': 'c'}"):
        sweep_of(tmp_path, runs, [CLAIM], **(earlier | {"against": [{"reference": {"arm": "c"}}]}))
    with pytest.raises(UserError, match="no run folder and no result file"):
        sweep_of(tmp_path, runs, [CLAIM], earlier=[str(tmp_path / "nothing.json")])
    with pytest.raises(UserError, match=r"report: earlier is a list of result files, not 'before\.json'"):
        sweep_of(tmp_path, runs, [CLAIM], earlier="before.json")

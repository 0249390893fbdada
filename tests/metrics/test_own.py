"""A metric of the user's own: computed by the callback's and `evaluate`'s code, known to tables, claims and page."""

import sys
from dataclasses import replace

import pytest
import torch
from importable import importable
from torch import nn

from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.metrics import table
from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.metrics.table import read_metrics
from aeic_lightning.study.claims import Claim, Needs, answers_by_set
from aeic_lightning.study.report.page import write_report
from aeic_lightning.study.results import common_metrics, read_results, summary_rows, write_results
from aeic_lightning.study.study import Study, group
from tests.study.made_study import made_study

CODE = "class ColourDrift:\n    def __call__(self, x_hat, x):\n        return (x_hat - x).mean().abs()\n"
ENTRY = {"class_path": "drift_of_colour.ColourDrift", "higher": False, "title": "colour drift", "digits": 5}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_own", {})
    (tmp_path / "drift_of_colour.py").write_text(CODE)
    with importable(tmp_path):
        yield tmp_path
    sys.modules.pop("drift_of_colour", None)


class Mean(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x_hat, x):
        return self.scale * (x_hat - x).mean((1, 2, 3))


class Whole:
    def __call__(self, x_hat, x):
        return x_hat - x


def test_it_is_computed_of_the_8_bit_images():
    mean = {"class_path": f"{__name__}.Mean", "init_args": {"scale": 2.0}, "higher": True, "name": "bias"}
    quality = ImageQuality(ms_ssim=False, lpips=[], dists=[], metrics=[ENTRY, mean])
    x, x_hat = torch.randint(0, 255, (2, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    row = quality.to("cpu").row("a", x, x_hat)
    difference = (from_uint8(x_hat) - from_uint8(x)).mean().item()
    assert row["colour_drift"] == pytest.approx(abs(difference))
    assert row["bias"] == pytest.approx(2 * difference)
    assert quality.info["colour_drift"]["metric"] == {
        "title": "colour drift", "higher": False, "kind": "perception", "digits": 5,
    }  # fmt: skip
    assert quality.info["bias"]["options"] == {"scale": 2.0}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"class_path": "a.B"}, "where higher says whether higher values are better"),
        ("a.B", "write {class_path: my_package.MyMetric, higher: true}"),
        (ENTRY | {"hihger": True}, "no 'hihger'; did you mean higher"),
        (ENTRY | {"name": "psnr"}, "'psnr' is the name of a shipped metric"),
        (ENTRY | {"kind": "taste"}, "of kind 'taste'; there are distortion, perception, accuracy"),
        (ENTRY | {"class_path": "drift_of_colour.Gone"}, "metrics: module drift_of_colour has no Gone"),
        (ENTRY | {"init_args": {"sigma": 1}}, "correct init_args"),
    ],
)
def test_what_is_no_metric_is_one_line(entry, said):
    with pytest.raises(UserError) as refused:
        ImageQuality(ms_ssim=False, lpips=[], dists=[], metrics=[entry])
    assert said in str(refused.value)


def test_one_number_an_image_and_one_meaning_a_name():
    whole = {"class_path": f"{__name__}.Whole", "higher": True}
    x = torch.zeros(3, 4, 5, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"metric whole gives \(1, 3, 4, 5\) for one image; it must give one number"):
        ImageQuality(ms_ssim=False, lpips=[], dists=[], metrics=[whole]).row("a", x, x)
    with pytest.raises(UserError, match="metric 'whole': higher is better in one place"):
        read_metrics([whole | {"higher": False}])


def test_tables_claims_bd_rates_and_page_know_it_from_the_file_alone(tmp_path, monkeypatch):
    (own,) = read_metrics([ENTRY])
    made = []
    for r in made_study():
        rows = [row | {"colour_drift": 30 - row["psnr"]} for row in r.images]
        made.append(
            replace(r, images=rows, metrics=summary_rows(rows, ("bytes",)), metric_info={"colour_drift": own.info})
        )
    write_results(tmp_path / "r.json", made)
    monkeypatch.setattr(table, "_own", {})  # a process of its own
    results = read_results([tmp_path / "r.json"])
    assert "colour_drift" in common_metrics(results)
    curves = {c.name: c for c in group(results)}
    psnr, drift = Study().rates(
        curves["teacher · depth 2"], [curves["depth 1 · arm none"]], ["psnr", "colour_drift"], resamples=0
    )
    assert drift.percent == pytest.approx(psnr.percent)
    assert drift.notes == [], "falling with the rate is getting better"
    claim = Claim("It drifts less", {"depth": 1, "arm": "enc"}, {"depth": 1, "arm": "none"}, "colour_drift")
    (_, (answer,)), *_ = answered = answers_by_set(Study(results), [claim], resamples=50, needs=Needs(2, 2))
    assert answer.verdict == "holds"
    assert "% bits at equal colour drift" in answer.reason
    write_report([tmp_path / "r.json"], tmp_path / "r.html", answered=answered, resamples=0, max_images=0)
    page = (tmp_path / "r.html").read_text()
    assert "colour_drift ↓" in page
    assert "colour drift; lower is better" in page


def test_the_command_takes_it(tmp_path):
    from PIL import Image

    for folder, value in (("originals", 100), ("decoded", 110)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (16, 16), (value,) * 3).save(tmp_path / folder / "a.png")
    words = ["evaluate", "--images", str(tmp_path / "originals"), "--reconstructions", str(tmp_path / "decoded")]
    words += ["--backbones", "lite0", "-o", str(tmp_path / "r.json")]
    assert main([*words, "--metrics", "[{class_path: drift_of_colour.ColourDrift, higher: false}]"]) == 0
    (result,) = read_results([tmp_path / "r.json"])
    assert result.value("colour_drift") == pytest.approx(10 * 2 / 255, rel=1e-5)
    assert main([*words, "--force", "--metrics", "drift"]) == 2

"""`evaluate` of a model of many rates: a result for each level, or for each rate that files must keep."""

import json

import pytest

from aeic_lightning import Codec
from aeic_lightning.cli import main
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model
from aeic_lightning.study.results import read_results
from aeic_lightning.study.study import group


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sizes = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
    widths = {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1]}
    folder = tmp_path_factory.mktemp("models") / "dial"
    codec = CodecConfig([8, 8, 16, 16, 32], [1] * 5, **sizes, **widths, rate_levels=[8.0, 2.0, 0.5])
    Codec(random_model(codec)).save_pretrained(folder)
    return str(folder)


def evaluate(model, out, *words):
    options = ["--images", "sample-photos", "--max-size", "96", "96", "--backbones", "lite0", "-o", str(out), "--force"]
    return main(["evaluate", "--checkpoint", model, *options, *words])


def test_each_level_is_a_result_of_one_curve(model, tmp_path):
    assert evaluate(model, tmp_path / "levels.json", "--levels", "0", "1", "2") == 0
    results = read_results([tmp_path / "levels.json"])
    rates = [result.value("bpp") for result in results]
    assert [result.labels["level"] for result in results] == [0, 1, 2]
    assert rates == sorted(rates)
    low, middle, high = (result.value("bpp_estimate") for result in results)
    assert low < middle < high, "estimated at the level of the file, too"
    assert len(group(results)) == 1
    for result in results:
        for row in result.images:
            assert row["bpp"] == pytest.approx(8 * row["bytes"] / (96 * 96))
            assert row["bits_estimate" if "bits_estimate" in row else "bpp_estimate"] > 0


@pytest.mark.parametrize("rate", ["0", "-1"])
def test_a_rate_that_no_file_has_is_refused(model, tmp_path, rate, capsys):
    assert evaluate(model, tmp_path / "rates.json", "--bpp", "0.1", rate) == 2
    assert "a rate is above 0" in capsys.readouterr().err


def test_files_keep_a_rate_and_those_that_cannot_are_marked(model, tmp_path):
    assert evaluate(model, tmp_path / "levels.json", "--levels", "0", "2") == 0
    low, high = read_results([tmp_path / "levels.json"])
    target = (max(r["bpp"] for r in low.images) + min(r["bpp"] for r in high.images)) / 2
    assert evaluate(model, tmp_path / "rates.json", "--bpp", str(target), "0.0001") == 0
    fits, too_low = json.loads((tmp_path / "rates.json").read_text())["results"]
    assert all(row["bpp"] <= target and not row["over_target"] for row in fits["images"])
    assert all(row["over_target"] and row["level"] == 0 for row in too_low["images"])

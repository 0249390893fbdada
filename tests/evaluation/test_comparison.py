"""Runs side by side: the figures are those of the runs, and only like is compared with like."""

import json

import pytest
import torch
import yaml
from PIL import Image

from aeic_lightning import UserError
from aeic_lightning.evaluation.comparison import compare_runs
from aeic_lightning.evaluation.complexity import codec_costs
from aeic_lightning.model import AEIC


@pytest.fixture
def make_run(tmp_path, codec_config, decoder_config):
    """A run folder as `fit` leaves it, with figures of our choosing."""

    def make(name: str, psnr: float, crc32: int = 7):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "reconstructions").mkdir()
        model = AEIC(codec_config, decoder_config)
        state = {f"model.{key}": value for key, value in model.state_dict().items()}
        torch.save({"state_dict": state, "model_config": model.config}, folder / "checkpoints" / "last.ckpt")
        image = {"name": "cat", "height": 8, "width": 16, "crc32": crc32, "bpp_estimate": 0.1, "psnr": psnr}
        figures = {"step": 5, "images": [image]}
        figures["metrics"] = {k: {"mean": image[k], "images": 1} for k in ("bpp_estimate", "psnr")}
        (folder / "metrics_val.json").write_text(json.dumps(figures))
        (folder / "run.json").write_text(json.dumps({"command": "fit ...", "git": None, "seed": 0}))
        config = {"class_path": "aeic_lightning.systems.TeacherSystem",
                  "init_args": {"codec": {"depths": [2, 2, 2, 2, 2]}, "loss": {"rate": 1.0}}}  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": config}))
        for file in ("cat", "cat_original"):
            Image.new("RGB", (16, 8)).save(folder / "reconstructions" / f"{file}.png")
        return folder

    return make


def test_the_table_holds_what_the_runs_measured(make_run, tmp_path, codec_config, decoder_config, capfd):
    rows = compare_runs([make_run("teacher", 21.5), make_run("student", 20.25)], tmp_path / "out")
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert table in capfd.readouterr().out
    assert "| teacher | 2 | 0.1000 | 21.50 |" in table
    assert "| student | 2 | 0.1000 | 20.25 |" in table
    assert "bpp_estimate is a likelihood" in table
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == rows
    costs = codec_costs(AEIC(codec_config, decoder_config))
    assert rows[0]["encoder_parameters"]["encode"] == costs["encode"].parameters
    assert Image.open(tmp_path / "out" / "comparison.png").width > 3 * 16


def test_runs_on_different_images_are_refused(make_run, tmp_path):
    with pytest.raises(UserError, match="validated on different images"):
        compare_runs([make_run("a", 20.0), make_run("b", 20.0, crc32=8)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics_val\.json; it is no finished run"):
        compare_runs([tmp_path], tmp_path / "out")

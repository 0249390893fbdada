"""Runs side by side: the figures are those of the runs, and only like is compared with like."""

import zlib

import numpy as np
import pytest
from PIL import Image
from tables import plain

from aeic_lightning.cli import main
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.study.complexity import codec_costs
from aeic_lightning.study.results import read_results
from aeic_lightning.study.views import compare_runs


def test_the_table_holds_what_the_runs_measured(make_run, tmp_path, codec_config, decoder_config, capfd):
    rows = compare_runs([make_run("teacher", 21.5), make_run("student", 20.25)], tmp_path / "out")
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert plain(table) in plain(capfd.readouterr().out)
    assert "| teacher | teacher | 0.1000 | 21.50 |" in table
    assert "| student | student | 0.1000 | 20.25 |" in table
    assert "bpp_estimate a likelihood" in table
    assert [row.images for row in read_results([tmp_path / "out" / "comparison.json"])] == [row.images for row in rows]
    costs = codec_costs(AEIC(codec_config, decoder_config))
    assert rows[0].costs["encoder_parameters"]["encode"] == costs["encode"].parameters
    assert Image.open(tmp_path / "out" / "comparison.png").width > 3 * 16


def test_a_run_and_a_shipped_model_are_compared_by_files_of_one_rate(make_run, tmp_path, codec_config, capfd):
    black = np.zeros((64, 96, 3), np.uint8)
    row = {
        "name": "cat",
        "height": 64,
        "width": 96,
        "crc32": zlib.crc32(black.tobytes()),
        "bpp_estimate": 9.0,
        "psnr": 1.0,
    }
    run = make_run("student", images=[row])
    (run / "checkpoints").mkdir()
    save(random_model(codec_config), run / "checkpoints" / "last.ckpt")
    assert main(["compare", "small-teacher", str(run), "-o", str(tmp_path / "out"), "--bpp", "0.2"]) == 0
    teacher, student = read_results([tmp_path / "out" / "comparison.json"])
    stream = Codec.from_pretrained("small-teacher").compress(black, bpp=0.2)
    assert teacher.images[0]["bytes"] == len(stream)
    assert teacher.metrics.keys() - {"level"} == student.metrics.keys(), "the same columns"
    assert teacher.labels["target"] == student.labels["target"] == 0.2
    assert student.images[0]["bpp"] != 9.0, "a file, not the last validation"
    assert "student" in capfd.readouterr().out
    assert Image.open(tmp_path / "out" / "comparison.png").width > 3 * 96


def test_models_alone_have_no_images_to_be_compared_on(tmp_path, capfd):
    assert main(["compare", "small-teacher", "small-student", "-o", str(tmp_path / "out")]) == 2
    assert "give a run too" in capfd.readouterr().err


def test_runs_on_different_images_are_refused(make_run, tmp_path):
    with pytest.raises(UserError, match="validated on different images"):
        compare_runs([make_run("a", 20.0), make_run("b", 20.0, crc32=8)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics_val\.json; it is no finished run"):
        compare_runs([tmp_path], tmp_path / "out")


def test_a_run_without_pictures_is_refused(make_run, tmp_path):
    folder = make_run("a")
    (folder / "reconstructions" / "cat.png").unlink()
    with pytest.raises(UserError, match="a has no picture of cat"):
        compare_runs([folder], tmp_path / "out")

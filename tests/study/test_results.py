"""Results read from runs and files: what was measured comes back, and what is not a result is refused."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest

from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.study.complexity import codec_costs
from aeic_lightning.study.results import (
    FORMAT,
    Result,
    check_same_images,
    read_result,
    read_results,
    summary_rows,
    write_results,
)
from aeic_lightning.study.run_description import run_labels
from aeic_lightning.study.study import group, group_apart


def image(name, **figures):
    return {"name": name, "height": 8, "width": 16, "crc32": 7} | figures


def result(name, **labels):
    rate = labels.get("lambda", 1.0)
    return Result(name, "run", labels, {"bpp": {"mean": 1 / rate, "images": 1}}, images=[image("cat", bpp=1 / rate)])


def test_a_run_folder(make_run, codec_config, decoder_config):
    rows = [image("a/cat", bpp=0.2, psnr=20.0), image("dog", bpp=0.1, psnr=24.0)]
    folder = make_run("s", images=rows, role="Distillation", rate=2.0, seed=3, settings={"beta1": 0.5, "beta2": 0.0})
    run = read_result(folder)
    assert (run.name, run.kind, run.step, run.command, run.folder) == ("s", "run", 5, "fit s", folder)
    assert run.labels == {
        "role": "distillation", "depth": 1, "widths": "8-8-16-16-32", "lambda": 2.0, "beta1": 0.5, "beta2": 0.0,
        "seed": 3,
    }  # fmt: skip
    assert run.images == rows
    assert run.value("psnr") == 22.0
    assert run.value("fid") is None
    costs = codec_costs(AEIC(codec_config, decoder_config))
    assert run.costs == {
        "encoder_macs_per_pixel": {part: costs[part].macs_per_pixel for part in ("g_a", "encode")},
        "encoder_parameters": {part: costs[part].parameters for part in ("g_a", "encode")},
    }
    assert run.pictures == {
        "a/cat": folder / "reconstructions" / "a__cat.png",
        "dog": folder / "reconstructions" / "dog.png",
    }
    assert run.original("a/cat") == folder / "reconstructions" / "a__cat_original.png"
    assert run.original("horse") is None


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"rate": 2.0, "mse": 1.0, "lpips": 0.5, "semantic": 0.0, "lpips_backbone": "lite0"}},
        {"objective": {"rate": {"weight": 2.0}, "mse": 1.0, "lpips": {"weight": 0.5}, "semantic": None, "L_enc": 0.1}},
    ],
)
def test_the_terms_of_the_loss_are_a_label(settings):
    labels = run_labels({"model": {"class_path": "a.TeacherSystem", "init_args": settings}}, None)
    assert labels["loss"] == "mse 1, lpips 0.5"


def test_terms_of_another_form_are_another_loss():
    terms = {"edge_dists": {"weight": 1.0, "form": "released"}, "adversarial": {"init_args": {"form": "released"}}}
    labels = run_labels({"model": {"class_path": "a.TeacherSystem", "init_args": {"objective": terms}}}, None)
    assert labels["loss"] == "edge_dists 1 (released), adversarial 1 (released)"


def test_labels_of_the_experimenter_win(make_run):
    run = read_result(make_run(labels={"arm": "L_enc", "depth": "mine"}))
    assert run.labels["arm"] == "L_enc"
    assert run.labels["depth"] == "mine"


def test_written_and_read_again(make_run, tmp_path):
    run = read_result(make_run("run"))
    odd = replace(
        run, name="odd", metrics={"psnr": {"mean": math.inf, "images": 1}}, images=[image("cat", psnr=math.inf)]
    )
    paths = write_results(tmp_path / "deep" / "two.json", [run, odd])
    assert paths == [tmp_path / "deep" / "two.json", tmp_path / "deep" / "two.csv"]
    again, odd_again = read_results(paths[:1])
    assert again == run
    assert odd_again.value("psnr") is None
    assert odd_again.images[0]["psnr"] is None
    # The same folder elsewhere: paths are relative to the file.
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "_moved"))
    assert read_results([moved / "deep" / "two.json"])[0].original("cat").is_file()
    moved.rename(tmp_path)


def test_csv_has_a_row_an_image(make_run, tmp_path):
    rows = [image("cat", bpp=0.25, psnr=20.0), image("dog", bpp=0.125)]
    _, table = write_results(tmp_path / "r.json", [read_result(make_run("run", images=rows, seed=3))])
    read = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(row["result"], row["label_seed"], row["name"]) for row in read] == [
        ("run", "3", "cat"),
        ("run", "3", "dog"),
    ]
    assert [(row["bpp"], row["psnr"]) for row in read] == [("0.25", "20.0"), ("0.125", "")]
    assert set(json.loads(read[0]["metric_info"])) == {"bpp", "psnr"}


def test_what_is_no_result_is_refused(make_run, tmp_path):
    with pytest.raises(UserError, match=r"has no metrics_val\.json; it is no finished run"):
        read_result(tmp_path)
    with pytest.raises(UserError, match=r"gone\.json: no run folder and no result file"):
        read_result(tmp_path / "gone.json")
    other = tmp_path / "other.json"
    other.write_text("[1, 2]")
    with pytest.raises(UserError, match="is no result file"):
        read_result(other)
    other.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_result(other)
    other.write_text(json.dumps({"format": FORMAT, "results": [{"name": "half"}]}))
    with pytest.raises(UserError, match="is damaged"):
        read_result(other)
    other.write_text(json.dumps({"format": FORMAT, "results": []}))
    with pytest.raises(UserError, match="holds 0 results"):
        read_result(other)
    folder = make_run()
    (folder / "config.yaml").write_text("model: {}")
    with pytest.raises(UserError, match="damaged records"):
        read_result(folder)
    with pytest.raises(UserError, match=r"name a \.json file"):
        write_results(tmp_path / "r.csv", [])


def test_curves_differ_in_more_than_the_rate():
    points = [
        result(f"{role} {depth} {rate} {seed}", **{"role": role, "depth": depth, "lambda": rate, "seed": seed})
        for role, depth in (("student", 1), ("teacher", 2))
        for rate in (1.0, 4.0, 2.0)
        for seed in (0, 1)
    ]
    found = group(points)
    assert [curve.name for curve in found] == ["teacher · depth 2", "student · depth 1"]
    assert [r.labels["lambda"] for r in found[0].results] == [
        4.0,
        4.0,
        2.0,
        2.0,
        1.0,
        1.0,
    ]  # rising bpp
    assert [curve.name for curve in group(points, by=["depth"])] == ["depth 1", "depth 2"]
    # The same labels on two sides are two curves with two names.
    (ours,), (theirs,) = group_apart([points[:6], points[:6]])
    assert (len(ours.results), len(theirs.results)) == (6, 6)
    assert ours.name != theirs.name


def test_stages_with_other_losses_are_no_curve():
    """Their rates differ as those of a curve would; the names are those of the runs, without what varies."""
    points = [
        result(f"t_{stage}_lambda={rate}", **{"role": "teacher", "lambda": rate, "loss": loss})
        for stage, loss in (("stage1", "mse 1"), ("stage2", "mse 1, adversarial 0.1"))
        for rate in (1.0, 2.0, 4.0)
    ]
    assert [(c.name, len(c.results)) for c in group(points)] == [("t_stage1", 3), ("t_stage2", 3)]


def test_only_the_same_images_can_be_compared():
    a, b = result("a"), replace(result("b"), images=[image("cat", psnr=1.0)])
    check_same_images([a, b, replace(a, images=[])])
    with pytest.raises(UserError, match="b and a were validated on different images"):
        check_same_images([a, replace(b, images=[image("cat") | {"crc32": 8}])])


def test_means_are_over_the_images_that_have_a_figure():
    rows = [image("a", bytes=10, psnr=20.0), image("b", bytes=11, psnr=22.0, ms_ssim=0.5)]
    assert summary_rows(rows, described=("bytes",)) == {
        "psnr": {"mean": 21.0, "images": 2},
        "ms_ssim": {"mean": 0.5, "images": 1},
    }

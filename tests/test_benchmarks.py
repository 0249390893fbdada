"""`python -m benchmarks` at tiny sizes: that it measures and writes, not how fast."""

import json
import math

import numpy as np
import skimage.data
import torch
from PIL import Image
from small_release import save_base, small_unet, small_vae

from aeic_lightning.metrics.table import find_metric
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model, save
from benchmarks import batch, merged, shipped
from benchmarks.__main__ import main
from benchmarks.cuda import Clock, measure, write
from tests.systems.sharded_run import CODEC, decoder


def test_the_page_and_the_figures(tmp_path):
    out, figures = tmp_path / "performance.md", tmp_path / "figures.json"
    words = ["--model", "tiny", "--sizes", "64x96,70x33", "--repeats", "1", "--threads", "2", "--no-cuda"]
    threads = torch.get_num_threads()
    assert main([*words, "-o", str(out), "--json", str(figures)]) == 0
    assert torch.get_num_threads() == threads
    report = json.loads(figures.read_text())
    assert [size["size"] for size in report["sizes"]] == ["64x96", "70x33"]
    for size in report["sizes"]:
        assert size["plain"]["2"]["encode"]["plain float32"]["ratio"] == 1
        assert set(size["threads"]) == {"1 threads", "2 threads"}
        assert 0 < size["bound"]["1"]["seconds"] < size["plain"]["1"]["latents"]["compress"]["seconds"] * 2
        assert size["bound"]["1"]["gmac"] > 0.5 * size["bound"]["1"]["plain_gmac"]
        assert next(iter(size["others"]["encode"])) == "compress"
    page = out.read_text()
    for heading in ("## Encoding against plain PyTorch modules", "## Threads", "## Beside other codecs"):
        assert heading in page
    assert "| 64x96 | 2 | whole encode |" in page


def test_what_a_gpu_measures_runs_on_the_processor():
    import io

    report = measure((64, 64), 1, small=True, device="cpu")
    halves = report["frames"]["tiny"]
    assert set(halves) == {"encode", "decode"}
    assert halves["encode"]["float32"]["ratio"] == 1
    out = io.StringIO()
    write(out, report | {"stages": {"se_stage2, one base": {"steps_per_second": 1.25, "peak_memory_gib": 20.0}}})
    assert "| tiny | decode | bfloat16 |" in out.getvalue()
    assert "| se_stage2, one base | 1.25 | 20.0 |" in out.getvalue()


def test_a_clock_leaves_out_the_first_steps():
    clock = Clock(skip=2)
    assert math.isnan(clock.speed)
    for _ in range(5):
        clock.tick()
    assert clock.speed > 0
    assert clock.count == 5


def test_models_beside_other_codecs(tmp_path, capsys):
    sizes = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
    sizes |= {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1], "rate_levels": [8.0, 2.0, 0.5]}
    save(random_model(CodecConfig([8, 8, 16, 16, 32], [1] * 5, **sizes)), tmp_path / "mine.ckpt")
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "photos" / f"{name}.png")
    words = ["--images", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--shrink", "96"]
    assert shipped.main([*words, "--models", str(tmp_path / "mine.ckpt"), "--bpp", "1", "2"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [result["labels"].get("codec") for result in results] == [None, "jpeg", "webp", "avif", "jxl"] * 2
    for ours, *others in (results[:5], results[5:]):
        for row, *theirs in zip(ours["images"], *(other["images"] for other in others), strict=True):
            assert max(row["height"], row["width"]) == 96
            assert all(other["bytes"] <= row["bytes"] or other["over_target"] for other in theirs)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 1 | JPEG XL |" in table
    columns = [set(line.split(" | ")) for line in table.splitlines() if line.startswith("| at most | codec |")]
    assert len(columns) == 2
    measured = {name for name in results[0]["images"][0] if find_metric(name)}
    assert {"psnr", "same_class_lite2"} <= measured
    assert all(measured <= {name.strip(" |") for name in names} for names in columns), "no table leaves one out"
    assert Image.open(tmp_path / "out" / "crops.png").width == 6 * (shipped.CROP + 4)


def test_several_images_a_pass(capsys):
    assert batch.main(["--sizes", "64", "--count", "2", "--repeats", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1:3] for row in rows] == [[" 64x64 ", " encode "], [" 64x64 ", " decode latents "]]
    assert all(float(row.split("|")[6]) > 0 for row in rows)


def test_adapters_apart_and_merged(tmp_path, capsys):
    assert merged.main(["--checkpoint", "small-student"]) == 2
    assert "small-student has no adapters" in capsys.readouterr().err
    torch.manual_seed(0)
    save_base(tmp_path, small_unet([8, 16], [1, 2]), small_vae())
    model = AEIC(CODEC, decoder(tmp_path))
    model.decoder.load_base()
    for name, p in model.decoder.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.1)
    save(model, tmp_path / "model.ckpt")
    assert merged.main(["--checkpoint", str(tmp_path / "model.ckpt"), "--sizes", "64x96", "--repeats", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[1] == " 64x96 "
    assert int(row[6]) <= 2


def test_an_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = shipped.interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert abs(low - (values.mean() - half)) < 0.03
    assert abs(high - (values.mean() + half)) < 0.03
    assert shipped.interval(np.array([2.0, 2.0])) == (2.0, 2.0)

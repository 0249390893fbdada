"""`python -m benchmarks` at tiny sizes: that it measures and writes, not how fast."""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from small_release import save_base, small_unet, small_vae

from aeic_lightning.codec import Codec
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.study.results import Result, write_results
from benchmarks import batch, denoiser, effort, instructions, merged, paired, precision, shipped, shipped_page, steps
from benchmarks.__main__ import main, with_section
from benchmarks.cuda import SMALL, Clock, measure, write
from benchmarks.shipped_store import CROP, spread
from tests.systems.sharded_run import CODEC, decoder


def test_the_page_and_the_figures(tmp_path):
    out, figures = tmp_path / "performance.md", tmp_path / "figures.json"
    words = ["--model", "tiny", "--sizes", "64x96", "--repeats", "1", "--threads", "2", "--no-cuda"]
    threads = torch.get_num_threads()
    assert main([*words, "-o", str(out), "--figures", str(figures)]) == 0
    assert torch.get_num_threads() == threads
    report = json.loads(figures.read_text())
    assert [size["size"] for size in report["sizes"]] == ["64x96"]
    for size in report["sizes"]:
        assert size["plain"]["2"]["encode"]["plain float32"]["ratio"] == 1
        assert set(size["threads"]) == {"1 threads", "2 threads"}
        assert 0 < size["bound"]["1"]["seconds"] < size["plain"]["1"]["latents"]["compress"]["seconds"] * 2
        assert size["bound"]["1"]["gmac"] > 0.5 * size["bound"]["1"]["plain_gmac"]
        assert next(iter(size["others"]["encode"])) == "compress"
    page = out.read_text()
    for heading in ("### Encoding against plain PyTorch modules", "### Threads", "### Beside other codecs"):
        assert heading in page
    assert "| 64x96 | 2 | whole encode |" in page


def test_the_page_keeps_the_tables_of_other_processors():
    page = with_section(with_section("# Performance\n\nWords.\n", "## A\n\n### Threads\n\n1\n"), "## B\n\n2\n")
    assert page == "# Performance\n\nWords.\n\n## A\n\n### Threads\n\n1\n\n## B\n\n2\n"
    again = with_section(page, "## A\n\n3\n")
    assert again == "# Performance\n\nWords.\n\n## A\n\n3\n\n## B\n\n2\n"


def test_what_a_gpu_measures_runs_on_the_processor():
    import io

    report = measure((64, 64), 1, small=True, device="cpu")
    halves = report["frames"]["tiny"]
    assert set(halves) == {"encode", "decode"}
    assert halves["encode"]["float32"]["ratio"] == 1
    out = io.StringIO()
    assert SMALL.parent.is_dir()
    report["steps"] = {"graph, 32 crops": {"steps_per_second": 9.44, "crops_per_second": 302.1, "memory_gib": 5.7}}
    write(out, report | {"stages": {"se_stage2, one base": {"steps_per_second": 1.25, "peak_memory_gib": 20.0}}})
    assert "| tiny | decode | bfloat16 |" in out.getvalue()
    assert "| graph, 32 crops | 9.4 | 302.1 | 5.7 |" in out.getvalue()
    assert "| se_stage2, one base | 1.25 | 20.0 |" in out.getvalue()


def test_steps_of_an_experiment_in_each_form():
    """Every form but the graph, which a processor has none of; a compiled block gives the loss of a plain one."""
    tiny = Path("experiments/tiny/teacher_stage1.yaml")
    forms = {"float32": {}, "bfloat16": {"bfloat16": True}, "compiled": {"backend": "eager"}}
    losses = {name: float(steps.ExperimentStep(tiny, 2, 128, **form)()) for name, form in forms.items()}
    assert losses["compiled"] == pytest.approx(losses["float32"], rel=1e-5)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]
    found = steps.measure(tiny, 2, 128, "cpu", steps=1)
    assert found["crops_per_second"] == 2 * found["steps_per_second"] > 0


def test_the_table_has_every_form_and_a_processor_no_graph(capsys, monkeypatch):
    asked, started = [], []
    monkeypatch.setattr(steps, "measure", lambda *args, **form: asked.append((args[1:3], form)) or {"speed": 1.0})
    monkeypatch.setattr(
        steps, "side_by_side", lambda command, count: started.append((command, count)) or {"speed": 2.0}
    )
    found = steps.table(Path("a.yaml"), 128, "cpu", (2, 4))
    assert not any(form["graph"] for _, form in asked)
    assert ((4, 128), {"graph": False, "bfloat16": True}) in asked
    assert found["graph, bfloat16, compiled, 2 crops"] == {"speed": 1.0}
    assert [count for _, count in started] == list(steps.PROCESSES)
    assert "graph, bfloat16, 2 crops, 2 processes" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["steps", *started[0][0][3:]])
    steps.main()
    assert json.loads(capsys.readouterr().out) == {"speed": 1.0}
    assert asked[-1] == ((2, 128), {"graph": False, "bfloat16": True})


def test_processes_side_by_side_are_added_up():
    command = [sys.executable, "-S", "-c", "print('words'); print('{\"steps_per_second\": 1.5}')"]
    assert steps.side_by_side(command, 2) == {"steps_per_second": 3.0}


def test_a_clock_leaves_out_the_first_steps():
    clock = Clock(skip=2)
    assert math.isnan(clock.speed)
    for _ in range(5):
        clock.tick()
    assert clock.speed > 0
    assert clock.count == 5


def test_models_beside_their_rivals_go_on_where_they_stopped(tmp_path, capsys, monkeypatch):
    sizes: dict = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
    sizes |= {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1], "rate_levels": [8.0, 2.0, 0.5]}
    save(random_model(CodecConfig([8, 8, 16, 16, 32], [1] * 5, **sizes)), tmp_path / "mine.ckpt")
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "photos" / f"{name}.png")
    words = ["--images", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    words += ["--models", str(tmp_path / "mine.ckpt"), "--shrink", "96", "--backbones", "lite2", "--codecs"]

    def results(*more):
        assert shipped.main([*words, *more]) == 0
        return json.loads((tmp_path / "out" / "results.json").read_text())["results"]

    few = results("jpeg", "--bpp", "1", "--limit", "1")
    assert [len(result["images"]) for result in few] == [1, 1]
    kept = {path: path.read_bytes() for path in (tmp_path / "work").glob("astronaut.*")}
    code = shipped.Checkpoint.code
    coded = []
    monkeypatch.setattr(shipped.Checkpoint, "code", lambda *args: coded.append(args[1:]) or code(*args))
    codecs = ["jpeg", "webp/2", "jxl"]
    found = results(*codecs, "--bpp", "1", "2")
    assert kept, "an image that was measured"
    again = [(name, point.bpp) for name, _, point in coded if name != "warm-up"]
    assert again == [("astronaut", 2), ("chelsea", 1), ("chelsea", 2)], "what was measured before is not again"
    assert found[0]["images"][0] == few[0]["images"][0]
    assert [result["labels"]["codec"] for result in found] == ["mine.ckpt", *codecs] * 2
    for ours, *others in (found[:4], found[4:]):
        for row, *theirs in zip(ours["images"], *(other["images"] for other in others), strict=True):
            assert max(row["height"], row["width"]) == 96
            assert all(other["bytes"] <= row["bytes"] or other["over_target"] for other in theirs)
    over = [row["name"] for row in found[1]["images"] if row["over_target"]]
    notes = [note for note in found[1]["notes"] if "cannot be as small" in note]
    assert [note.endswith(", ".join(over)) for note in notes] == [True] * bool(over)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 1 | JPEG XL |" in table
    assert "| 2 | WebP 1/2 |" in table
    columns = [set(line.split(" | ")) for line in table.splitlines() if line.startswith("| at most |")]
    assert len(columns) == 3
    measured = {name for name in found[0]["images"][0] if find_metric(name)}
    assert {"psnr", "ssimulacra2", "lpips_lite2", "same_class_lite2"} <= measured
    assert all(measured <= {name.strip(" |") for name in names} for names in columns), "no table leaves one out"
    assert Image.open(tmp_path / "out" / "crops.png").width == 5 * (CROP + 4)
    assert "AEIC-SE, as published" not in (tmp_path / "out" / "curves.svg").read_text()
    results(*codecs, "--bpp", "1", "2", "--published", "Kodak")
    drawn = (tmp_path / "out" / "curves.svg").read_text()
    assert all(f">{name}<" in drawn for name in ("mine.ckpt", "WebP 1/2", "AEIC-SE, as published"))
    coded.clear()
    mine, yours = tmp_path / "mine.ckpt", tmp_path / "yours.ckpt"
    yours.write_bytes(mine.read_bytes())
    two = ["jpeg", "--bpp", "1", "--limit", "1", "--models", str(mine), str(yours)]
    both = results(*two)
    assert [row["labels"]["codec"] for row in both] == ["mine.ckpt", "yours.ckpt", "jpeg"]
    assert [name for name, *_ in coded if name != "warm-up"] == ["astronaut"], "a model that is added is measured alone"
    yours.write_bytes(yours.read_bytes() + b"changed")
    assert shipped.main([*words, *two]) == 2
    assert "holds rows of other models" in capsys.readouterr().err
    assert shipped.main([*words, "jpeg", "--bpp", "1", "--shrink", "64"]) == 2
    assert "holds rows of other shrink: remove it, or give another folder with --work" in capsys.readouterr().err


def outcome(codec, bytes, **metrics):
    """A result of two images."""
    rows = [{"name": name, "bytes": bytes} | {k: v[i] for k, v in metrics.items()} for i, name in enumerate("ab")]
    kind = "checkpoint" if codec == "ours" else "anchor"
    means = {name: {"mean": sum(values) / 2, "images": 2} for name, values in metrics.items()}
    return Result(name=codec, kind=kind, labels={"codec": codec}, metrics=means, images=rows)


def test_the_best_rival_by_each_metric_is_named():
    found = [
        outcome("ours", 1000, psnr=[24, 26], ssimulacra2=[-10, 10], lpips_lite2=[0.8, 0.6]),
        outcome("avif", 1001, psnr=[40, 40], ssimulacra2=[90, 90], lpips_lite2=[0.1, 0.1]),
        outcome("avif/2", 990, psnr=[25, 27], ssimulacra2=[-20, 0], lpips_lite2=[0.9, 0.9]),
        outcome("avif/4+span", 1000, psnr=[20, 20], ssimulacra2=[-4, 2], lpips_lite2=[0.8, 0.8]),
    ]
    lines = shipped_page.best({0.06: found}, 1)
    # AVIF at full size has a byte too many. In bold: where ours is better.
    assert lines[-1] == (
        "| 0.06 | AVIF 1/4, SPAN | AVIF 1/2 26.00 | **AVIF 1/4, SPAN -1.0** | **AVIF 1/4, SPAN 0.800** |"
    )


def test_every_beginning_of_the_order_is_spread():
    names = [f"{number:02}" for number in range(16)]
    order = spread(names)
    assert sorted(order) == names
    assert sorted(order[:4]) == ["00", "04", "08", "12"]
    assert sorted(spread(names[:11])) == names[:11]


def test_groups_have_tables_of_their_own(tmp_path):
    by_rate = {0.06: [outcome(codec, 1000, psnr=[24, 26]) for codec in ("ours", "avif/3")]}
    text = shipped_page.page("2 images", {"all others": by_rate, "wallpapers": by_rate}, 1)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## All others (2 images)",
        "## Wallpapers (2 images)",
    ]


def test_a_metric_that_some_images_have_is_of_those():
    values = {"ms_ssim": [math.nan, 0.5], "text_legibility": [math.nan, 0.5]}
    found = [outcome("ours", 1000, **values), outcome("avif/2", 1000, **values | {"ms_ssim": [math.nan, 0.25]})]
    text = shipped_page.page("2 images", {"": {0.06: found}}, 1)
    assert "text_legibility is of the 1 images that have text" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| 0.06 |")]
    assert [row[4] for row in rows[:2]] == ["0.500 ± 0.000", "0.250 ± 0.000"]
    assert "| 0.06 | AVIF 1/2 | 1.00x | **-0.250 (-0.250 to -0.250)** |" in text


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
    low, high = shipped_page.interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert abs(low - (values.mean() - half)) < 0.03
    assert abs(high - (values.mean() + half)) < 0.03
    assert shipped_page.interval(np.array([2.0, 2.0])) == (2.0, 2.0)


def test_results_less_one_of_them_image_by_image(tmp_path, capsys, monkeypatch):
    """Of images in another order; by their names the second is 0.1 and 0.3 better, and has 40 more in FID."""
    for name, values, fid in (("first", {"a": 0.5, "b": 0.9}, 160.0), ("second", {"b": 0.6, "a": 0.4}, 200.0)):
        images = [{"name": image, "crc32": 1, "bytes": 10, "lpips_lite2": value} for image, value in values.items()]
        means = {"lpips_lite2": {"mean": 0.6, "images": 2}}
        result = Result(name, "checkpoint", {}, means, {"fid_lite2": {"value": fid}}, images)
        write_results(tmp_path / f"{name}.json", [result])
    files = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    monkeypatch.setattr("sys.argv", ["paired", *files])
    paired.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [
        "| second | bytes | +0.0000 | +0.0000 to +0.0000 |",
        "| second | lpips_lite2 | -0.2000 | -0.3000 to -0.1000 |",
        "| second | fid_lite2 | +40 | |",
    ]
    monkeypatch.setattr("sys.argv", ["paired", *files, "--reference", "third"])
    with pytest.raises(SystemExit, match="no result is called third"):
        paired.main()


def test_bits_at_equal_quality(tmp_path, capsys):
    plain = [{"bpp": 0.1, "psnr": 20.0, "lpips_lite2": 0.9}, {"bpp": 0.4, "psnr": 22.0, "lpips_lite2": 0.5}]
    assert math.isclose(effort.equal_rate(plain, "psnr", 21.0) or 0, 0.2)
    assert math.isclose(effort.equal_rate(plain, "lpips_lite2", 0.7) or 0, 0.2)
    assert effort.equal_rate(plain, "psnr", 22.1) is None
    assert effort.equal_rate(plain, "lpips_lite2", 0.95) is None
    assert effort.change(0.15, 0.2) == "-25 %"
    sizes: dict = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
    sizes |= {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1], "rate_levels": [2.0, 0.5]}
    model = random_model(CodecConfig([8, 8, 16, 16, 32], [1] * 5, **sizes))
    Codec(model, objective={"rate": 1.0, "mse": 2.0}).save_pretrained(tmp_path / "mine")
    Image.fromarray(skimage.data.astronaut()[:80, :70]).save(tmp_path / "photo.png")
    words = [str(tmp_path / "photo.png"), "--model", str(tmp_path / "mine"), "--side", "64", "--levels", "0.5"]
    threads = torch.get_num_threads()
    assert effort.main([*words, "--effort", "1", "--step", "1", "--figures", str(tmp_path / "rows.json")]) == 0
    torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["level"], row["effort"]) for row in rows] == [(0, 0), (1, 0), (0.5, 0), (0.5, 1)]
    assert "| 0.5 | 1 |" in capsys.readouterr().out


def test_two_precisions_are_trained_alike(capsys):
    precision.train(steps=2, seeds=[1], crop=64)
    exact, low = map(json.loads, capsys.readouterr().out.splitlines())
    assert (exact["form"], low["form"]) == ("float32", "bfloat16")
    assert exact["loss"] == pytest.approx(low["loss"], rel=0.02)
    assert exact != low | {"form": "float32"}


def test_a_new_denoiser_leaves_the_pictures_of_l_res_alone(tmp_path, capsys):
    model = random_model(CODEC)
    photo = skimage.data.astronaut()[:128, :160]
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")
    Codec(model).save_pretrained(tmp_path / "model", dtype="float32")
    words = [str(tmp_path / "model"), "--fresh", str(tmp_path / "fresh")]
    assert denoiser.main(words) == 0
    fresh = Codec.from_pretrained(tmp_path / "fresh").model.eval()
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        old, new = model.eval()(x), fresh(x)
        assert torch.equal(new.codec.y_hat, old.codec.y_hat)
        assert not torch.equal(new.x_hat, old.x_hat)
        alone = model.decoder.vae(old.codec.l_res).clamp(-1, 1)[..., :128, :160]
        torch.testing.assert_close(new.x_hat, alone, atol=1e-4, rtol=0)
    capsys.readouterr()
    assert denoiser.main([str(tmp_path / "fresh"), "--images", str(tmp_path / "photos")]) == 0
    head, _, with_it, without = capsys.readouterr().out.splitlines()[:4]
    assert head.startswith("| painted | bpp_estimate | psnr |")
    assert with_it.split("|")[2:] == without.split("|")[2:], "it gives nothing yet"
    assert denoiser.main([str(tmp_path / "fresh")]) == 2


def test_instructions_of_one_photograph_are_what_two_more_add(tmp_path, monkeypatch, capsys):
    """A tool in Valgrind's place counts 5 million to start and 8,000 for each time that it is told to code."""
    tool = tmp_path / "valgrind"
    tool.write_text('#!/bin/sh\nfor last; do :; done\necho "==1== I   refs:  $((5000000 + 8000 * last))" >&2\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    Image.fromarray(skimage.data.astronaut()[:40, :50]).save(tmp_path / "photo.png")
    monkeypatch.setattr("sys.argv", ["instructions", str(tmp_path / "photo.png"), "--senders", "webp"])
    instructions.main()
    sender, found, seconds, held = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert (sender, found) == ("webp", "4")
    assert -1 < float(seconds) < 1  # of a picture of 40 rows: less than the start of Python varies
    assert 5 < float(held) < 200

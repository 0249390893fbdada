"""`python -m benchmarks` at tiny sizes: that it measures and writes, not how fast."""

import json
import math

import torch

from benchmarks.__main__ import main
from benchmarks.cuda import Clock, measure, write


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

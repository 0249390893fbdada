"""What commands import: heavy libraries only where they are needed, and nothing before a missing file is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"lightning", "transformers", "diffusers", "peft", "torchvision", "timm", "torchmetrics", "datasets", "sklearn"}
RUN = """
import json, sys
from aeic_lightning.cli import main
codes = {main(words) for words in json.loads(sys.argv[1])}
print(json.dumps([max(codes), sorted({name.split(".")[0] for name in sys.modules})]))
"""


def modules_after(folder, *commands):
    """Highest exit code, top-level modules and errors of a process that ran these commands."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, set(names), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "photo.png", "--checkpoint", "none.ckpt", "-o", "out"],
        ["compress", "none.png", "-o", "out"],
        ["decompress", "photo.png", "--checkpoint", "none.ckpt", "-o", "out"],
        ["evaluate", "--checkpoint", "none.ckpt", "--images", ".", "-o", "result.json"],
        ["evaluate", "--checkpoint", "none.ckpt", "--images", "nowhere", "-o", "result.json"],
        ["classify", "photo.png", "--checkpoint", "none.ckpt"],
        ["verify", "photo.png", "--checkpoint", "none.ckpt"],
        ["export", "--checkpoint", "none.ckpt", "-o", "out"],
        ["bench", "--checkpoint", "none.ckpt"],
        ["fit", "--config", "none.yaml"],
        ["plan", "--config", "none.yaml"],
    ],
    ids=" ".join,
)
def test_a_missing_file_is_found_without_torch(arguments, tmp_path):
    (tmp_path / "photo.png").touch()
    code, modules, said = modules_after(tmp_path, arguments)
    assert code == 2
    assert any(name in said for name in ("none.ckpt", "none.png", "none.yaml", "nowhere"))
    assert not modules & (HEAVY | {"torch", "scipy", "skimage"})


def test_a_sweep_reads_its_file_without_torch(tmp_path):
    """It starts processes and waits; its runs import what they need."""
    (tmp_path / "a.yaml").write_text("max_steps: 1")
    (tmp_path / "sweep.yaml").write_text(
        "root: runs\nruns: [{name: a, config: a.yaml, labels: {role: teacher}}]\n"
        "report: {out: out, against: [{reference: {role: teacher}}]}\n"
    )
    code, modules, said = modules_after(tmp_path, ["sweep", "--config", "sweep.yaml", "--dry-run"])
    assert code == 0, said
    assert not modules & (HEAVY | {"torch", "scipy", "skimage"})


def test_a_finished_sweep_is_reported_without_torch(tmp_path):
    """Page and comparison of 24 runs that say what they are, by the way that `benchmarks.ways` counts."""
    program = "import sys, pathlib, benchmarks.ways as w; w.studying(pathlib.Path(sys.argv[1])); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report/index.html").is_file()
    assert (tmp_path / "comparison/comparison.md").is_file()
    assert "plotly" in done.stdout.split()
    assert not set(done.stdout.split()) & (HEAVY | {"torch"})


def test_coding_and_counting_import_no_training_library(tmp_path):
    """`complexity` of an experiment whose files change the system's class."""
    from PIL import Image

    from aeic_lightning.models.random_model import CODECS, random_model, save

    save(random_model(CODECS["tiny"]), tmp_path / "model.ckpt")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    model = ["--checkpoint", "model.ckpt", "-o", "out"]
    commands = ["compress photo.png", "decompress out/photo.aeic"]
    code, modules, said = modules_after(
        tmp_path, *([*command.split(), *model] for command in commands),
        ["complexity", "--config", "tiny/student_enc.yaml"],
    )  # fmt: skip
    assert code == 0, said
    assert (tmp_path / "out/photo.aeic").is_file()
    assert (tmp_path / "out/photo.png").is_file()
    assert "torch" in modules
    assert not modules & HEAVY

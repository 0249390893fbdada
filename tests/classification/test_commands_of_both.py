"""Every command that takes a model or an experiment, given one with classes: it works, or says in one line why not."""

import json
import shutil
from pathlib import Path

import pytest

from aeic_lightning.cli import main
from tests.bitstream.forked_worker import fork_workers

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "data" / "classification.ckpt"
EXPERIMENTS = ROOT / "experiments" / "classification"
PHOTO = ROOT / "tests" / "golden" / "data" / "original.png"

EVALUATE = ["--checkpoint", CHECKPOINT, "--images", "{photos}", "--backbones", "lite0", "-o", "{out}/figures.json"]
WORKS = {
    "verify": ["{photos}", "--checkpoint", CHECKPOINT, "--settings", "1 thread"],
    "bench": [
        "--checkpoint",
        CHECKPOINT,
        "--sizes",
        "64x48",
        "--repeats",
        "1",
        "--threads",
        "1",
        "-o",
        "{out}/times.json",
    ],
    "plan": ["--config", EXPERIMENTS / "step1.yaml"],
    "fit --dry-run": ["--config", EXPERIMENTS / "step1.yaml", "--dry-run"],
}
REFUSES = {
    "export": (["--checkpoint", CHECKPOINT, "-o", "{out}/halves"], "compress-and-classify"),
    "complexity": (["--config", EXPERIMENTS / "step1.yaml"], "no codec section"),
    "bench": (["--checkpoint", CHECKPOINT, "--encode-only"], "is no AEIC"),
}


@pytest.fixture
def words(tmp_path):
    """words(command, arguments): what `main` takes, with a folder of one photograph and one for results."""
    (tmp_path / "photos").mkdir()
    shutil.copy(PHOTO, tmp_path / "photos")

    def make(command, arguments):
        given = [str(word).format(photos=tmp_path / "photos", out=tmp_path) for word in arguments]
        return [command.split()[0], *given]

    return make


def test_it_is_evaluated_and_its_results_make_a_page(words, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(words("evaluate", EVALUATE)) == 0, capfd.readouterr().err
    assert main(["report", str(tmp_path / "figures.json"), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert json.loads((tmp_path / "figures.json").read_text())["results"][0]["name"] in page


@pytest.mark.parametrize("command", WORKS)
def test_it_works(command, words, monkeypatch, capfd, tmp_path, forked):
    monkeypatch.chdir(ROOT)
    fork_workers(forked, monkeypatch)
    assert main(words(command, WORKS[command])) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    if command in ("plan", "fit --dry-run"):
        assert "transformer" in out
        assert "nothing is missing" in out
    if command == "bench":
        parts = json.loads((tmp_path / "times.json").read_text())["sizes"][0]["parts"]
        assert set(parts) == {"encode", "decode latents", "picture", "classes"}


@pytest.mark.parametrize("command", REFUSES)
def test_it_says_why_not(command, words, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    arguments, reason = REFUSES[command]
    assert main(words(command, arguments)) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line]
    assert line.startswith("error: ")
    assert reason in line


def test_the_plan_names_what_a_step_starts_from_and_its_teacher(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(ROOT)
    arguments = ["plan", "--config", str(EXPERIMENTS / "step2_q1.yaml"), f"--vars.root={tmp_path}"]
    assert main(arguments) == 2
    assert "init_from: no file" in capfd.readouterr().out
    arguments = ["plan", "--config", str(EXPERIMENTS / "step1_logits.yaml"), f"--vars.root={tmp_path}"]
    assert main(arguments) == 2
    assert "teacher.checkpoint: no file" in capfd.readouterr().out
    arguments = ["plan", "--config", str(EXPERIMENTS / "head_frozen.yaml"), f"--vars.root={tmp_path}"]
    assert main(arguments) == 2
    assert "neither it nor its head is counted" in capfd.readouterr().out

"""Every experiment file runs for two steps, with its own classes and sizes, on crops of 128 pixels."""

from pathlib import Path

import pytest
import torch

from aeic_lightning.cli import main

ROOT = Path(__file__).parent.parent
TINY = ROOT / "experiments" / "tiny"
ORDER = ["teacher_stage1", "teacher_stage2", "student_none", "student_enc", "student_enc_dec",
         "student_stage1", "student_stage2", "student_stage3"]  # fmt: skip
NO_RUN = {"base", "sizes", "demo"}


def test_every_tiny_file_is_known_here():
    assert {path.stem for path in TINY.glob("*.yaml")} == set(ORDER) | NO_RUN


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.mark.parametrize("name", ORDER)
def test_two_steps(root, name, monkeypatch):
    """In order, since students need the teachers' checkpoints; the last validation writes every record."""
    monkeypatch.chdir(ROOT)
    words = ["fit", "--config", str(TINY / f"{name}.yaml"), f"--vars.root={root}", "--vars.steps=2",
             "--vars.val_every=2", "--data.init_args.batch_size=2", "--data.init_args.crop_size=128",
             "--data.init_args.val_max_size=[128,192]"]  # fmt: skip
    assert main(words) == 0
    folder = root / name
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    for file in ("config.yaml", "run.json", "metrics_val.json", "rate_distortion.png", "reconstructions/chelsea.png"):
        assert (folder / file).is_file(), file

"""A plain install, as others have it: from a wheel, in an environment of its own, used from a folder elsewhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

ROOT = Path(__file__).parents[1]
OWN_CALLBACK = """
from lightning.pytorch import Callback


class Mine(Callback):
    def on_fit_start(self, trainer, pl_module):
        print("my own callback is there", flush=True)
"""


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory) -> Path:
    """`bin` of an environment with the wheel, and with this environment's libraries behind it."""
    base = tmp_path_factory.mktemp("install")
    source = base / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("results/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", base, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base / "env"], check=True)
    (wheel,) = base.glob("*.whl")
    python = base / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (site,) = (base / "env").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A working folder with packages of one's own, named as the project's are, and with files named as libraries."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("callbacks", "datamodules"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(OWN_CALLBACK)
    (tmp_path / "callbacks" / "mine.py").write_text(OWN_CALLBACK)
    (tmp_path / "callbacks" / "base.py").write_text("raise ImportError('this one has no business here')\n")
    (tmp_path / "single_file.py").write_text(OWN_CALLBACK)
    for name in ("lightning.py", "torch.py", "timm.py"):
        (tmp_path / name).write_text("raise ImportError('not the library')\n")
    return tmp_path


def said(*words: str | Path) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def test_commands_and_shipped_experiments_work_by_name_anywhere(bin_folder, elsewhere):
    command = bin_folder / "aeic-lightning"
    assert "usage:" in said(command, "--help")
    own = elsewhere / "experiments" / "tiny"
    own.mkdir(parents=True)
    shown = said(command, "fit", "--config", "experiments/tiny/teacher_stage1.yaml", "--vars.steps=7",
                 "--print_config=sources")  # fmt: skip
    assert "max_steps: 7" in shown
    assert "student_enc_dec" in said(command, "sweep", "--config", "sweeps/demo.yaml", "--dry-run")
    (own / "teacher_stage1.yaml").write_text("trainer: {max_steps: 3}\n")
    shown = said(command, "fit", "--config", "experiments/tiny/teacher_stage1.yaml", "--print_config=sources")
    assert shown.startswith("trainer:\n  max_steps: 3"), "a file of the working folder comes first"


def test_own_classes_work_beside_the_projects(bin_folder, elsewhere):
    classes = ("callbacks.mine.Mine", "callbacks.Mine", "datamodules.Mine", "single_file.Mine")
    callbacks = ", ".join(f"{{class_path: {path}}}" for path in classes)
    words = ["fit", "--config", "tiny/teacher_stage1.yaml", "--vars.steps=1", "--data.init_args.batch_size=1",
             "--model.init_args.objective.lpips=0", "--model.init_args.objective.semantic=0",
             "--model.init_args.write_streams=false", "--data.init_args.val_max_size=[64,64]",
             f"--trainer.callbacks=[{{class_path: callbacks.checkpoint.LastCheckpoint}}, {callbacks}]"]  # fmt: skip
    shown = said(bin_folder / "python", "-m", "aeic_lightning", *words)
    assert shown.count("my own callback is there") == len(classes)
    assert (elsewhere / "runs" / "tiny" / "teacher_stage1" / "checkpoints" / "last.ckpt").is_file()


def test_a_photo_becomes_small_and_comes_back(bin_folder, elsewhere):
    """The README's first commands: the model is in the wheel, and the receiver finds it from the stream."""
    photo = skimage.data.astronaut()
    Image.fromarray(photo).save(elsewhere / "photo.png")
    command = bin_folder / "aeic-lightning"
    said(command, "compress", "photo.png", "-o", "streams", "--bpp", "0.1")
    assert (elsewhere / "streams" / "photo.aeic").stat().st_size <= 0.1 * 512 * 512 / 8
    said(command, "decompress", "streams/photo.aeic", "-o", "pictures")
    picture = np.asarray(Image.open(elsewhere / "pictures" / "photo.png"))
    assert picture.shape == photo.shape
    error = np.square(picture.astype(float) - photo).mean()
    assert 10 * np.log10(255**2 / error) > 20

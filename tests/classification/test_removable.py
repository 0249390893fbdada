"""AEIC without the package of compress-and-classify, which may be deleted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aeic_lightning.images import read_image

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "data"
BELOW = ("models", "bitstream", "checkpoints", "systems", "study", "metrics", "losses", "config")


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> Path:
    """A copy of the package that lacks `classification/`."""
    folder = tmp_path_factory.mktemp("without")
    ignored = shutil.ignore_patterns("classification", "__pycache__")
    shutil.copytree(ROOT / "aeic_lightning", folder / "aeic_lightning", ignore=ignored)
    return folder


# An editable installation finds what a copy lacks in the checkout.
ALONE = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"


def run(folder: Path, code: str, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALONE + code, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_image(path)).int()


COMMANDS = """
import json
from aeic_lightning.cli import main
for words in json.loads(sys.argv[1]):
    print("exit code", main(words), file=sys.stderr)
"""


def test_all_else_is_imported_and_the_missing_kind_is_refused_in_one_line(without):
    aeic, other = (["--checkpoint", str(GOLDEN / f"{name}.ckpt"), "-o"] for name in ("aeic", "classification"))
    commands = [
        ["compress", str(GOLDEN / "original.png"), *aeic, "streams"],
        ["decompress", str(GOLDEN / "aeic.aeic"), "streams", *aeic, "pictures"],
        ["decompress", str(GOLDEN / "classification.aeic"), *other, "refused"],
    ]
    paths = [path for part in BELOW for path in sorted((without / "aeic_lightning" / part).rglob("*.py"))]
    names = [".".join(path.relative_to(without).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert len(names) > 40
    done = run(without, COMMANDS + "".join(f"import {name}\n" for name in names), json.dumps(commands))
    assert done.returncode == 0, done.stderr
    first, second, error, third = done.stderr.splitlines()[:4]
    assert (first, second, third) == ("exit code 0", "exit code 0", "exit code 2")
    assert "compress-and-classify model; aeic_lightning.classification, which reads it, is not installed" in error
    expected = pixels(GOLDEN / "aeic.png")
    assert (pixels(without / "pictures" / "aeic.png") - expected).abs().max() <= 1
    assert pixels(without / "pictures" / "original.png").shape == expected.shape

"""A plain install, without any optional package: what works, and what the commands say that need one more."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from aeic_lightning.extras import PACKAGES
from aeic_lightning.models.random_model import CODECS, random_model, save

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Imported only by commands that have asked for the package before.
ASKED_BEFORE = {
    "aeic_lightning/study/report/candidates.py": {"plotly"},
    "aeic_lightning/study/report/gains.py": {"plotly"},
    "aeic_lightning/study/report/page.py": {"plotly"},
    "aeic_lightning/study/report/plots.py": {"plotly"},
    "aeic_lightning/bitstream/export.py": {"onnx", "onnxruntime", "onnxscript"},
    "aeic_lightning/study/report/templates.py": {"jinja2"},
    "aeic_lightning/serve/app.py": {"fastapi"},
}

# Hides the optional packages, as if they were not installed, and runs the commands in one process.
RUN = """
import contextlib, io, json, sys
from importlib.machinery import PathFinder
from importlib.metadata import DistributionFinder
modules, packages, commands = json.loads(sys.argv[1])

class Rest(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in modules else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context=DistributionFinder.Context()):
        return [d for d in super().find_distributions(context) if d.name.replace("_", "-") not in packages]

sys.meta_path[:] = [Rest if finder is PathFinder else finder for finder in sys.meta_path]
from aeic_lightning.cli import main
answers = []
for command in commands:
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = exec(command[1]) if command[0] == "python" else main(command)
    answers.append([code, said.getvalue()])
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([answers, loaded]))
"""

SWEEP = """
root: runs
runs: [{name: a, config: a.yaml, labels: {role: teacher}}]
report: {out: out, against: [{reference: {role: teacher}}]}
"""
HALVING = """
root: runs
runs:
- {name: b, config: a.yaml, labels: {arm: t}, rungs: [1], halving: {factor: 2, metric: psnr, reference: {arm: t}}}
report: {out: out, against: [{reference: {arm: t}}], evaluate: {levels: [0]}}
"""
CODEC = """
from PIL import Image
from aeic_lightning import Codec
codec, image = Codec.from_pretrained("model.ckpt"), Image.open("photos/photo.png")
assert codec.decompress(codec.compress(image)).size == image.size
"""
TINY = ["fit", "--config", "tiny/teacher_stage1.yaml", "--vars.steps=1"]
OTHER = [*TINY, "--vars.name=other"]
PAPER = ["--config", "paper/se_stage2.yaml", "--vars.lambda=8"]
HUGGING_FACE = "--data={class_path: datamodules.HuggingFaceImages, init_args: {path: parquet}}"
INCEPTION = "--trainer.callbacks=[{class_path: callbacks.distribution.PatchFID, init_args: {backbone: inception}}]"

# (extra, what the message names, the command)
NEEDY = [
    ("report", "report needs bjontegaard, jinja2, plotly", ["report", "result.json", "-o", "page.html"]),
    ("report", "bd-rate needs bjontegaard", ["bd-rate", "paper:AEIC-ME:Kodak", "--test", "paper:AEIC-SE:Kodak"]),
    ("report", "JPEG XL needs pillow-jxl-plugin",
     ["anchors", "--bpp", "1", "--images", "photos", "--codecs", "jxl", "--backbones", "lite0", "-o", "a.json"]),
    ("report", "the sweep's report needs bjontegaard, jinja2, plotly", ["sweep", "--config", "sweep.yaml"]),
    ("sweep", "cluster slurm needs submitit", ["sweep", "--config", "sweep.yaml", "--report=null", "--cluster=slurm"]),
    ("search", "halving needs optuna", ["sweep", "--config", "halving.yaml"]),
    ("hf", "a Hugging Face data set needs datasets", [*OTHER, HUGGING_FACE]),
    ("paper", "LoRA needs peft", ["plan", *PAPER]),
    ("paper", "LoRA needs peft", ["complexity", *PAPER]),
    ("paper", "CLIP needs transformers", [*OTHER, "--model.init_args.objective.semantic={weight: 1, backbone: clip}"]),
    ("paper", "FID on Inception needs torch-fidelity", [*OTHER, INCEPTION]),
    ("rivals", "the backbone hed needs h5py",
     ["anchors", "--bpp", "1", "--images", "photos", "--codecs", "webp", "--backbones", "hed", "-o", "a.json"]),
    ("serve", "serve needs fastapi, uvicorn", ["serve"]),
    ("export", "export needs onnx, onnxruntime, onnxscript", ["export", "--checkpoint", "model.ckpt", "-o", "onnx"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    save(random_model(CODECS["tiny"]), folder / "model.ckpt")
    (folder / "photos").mkdir()
    y, x = np.mgrid[:64, :64].astype(np.uint8)
    Image.fromarray(np.stack([2 * x, 2 * y, x + y], axis=-1)).save(folder / "photos" / "photo.png")
    (folder / "a.yaml").write_text("max_steps: 1")
    (folder / "sweep.yaml").write_text(SWEEP)
    (folder / "halving.yaml").write_text(HALVING)
    (folder / "result.json").write_text("{}")
    return folder


TRAIN = {module: package for module, (package, extra) in PACKAGES.items() if extra == "train"}
OTHERS = {module: package for module, (package, extra) in PACKAGES.items() if extra != "train"}
MADE = ["--checkpoint", "model.ckpt", "-o", "out"]
SMALL = ["--data.init_args.batch_size=1", "--data.init_args.val_max_size=[64,64]", "--vars.val_every=1"]
CODING = [["compress", "photos", *MADE], ["decompress", "out", *MADE], ["python", CODEC]]
MEASURE = ["--checkpoint", "model.ckpt", "--images", "photos", "-o", "measured.json"]
TRAINING = [["fit", *TINY[1:]], ["plan", *TINY[1:]], ["evaluate", *MEASURE]]


def answers_without(modules, packages, commands, folder) -> tuple[list[tuple[int | None, str]], set[str]]:
    """Exit codes and errors of all commands, and what was imported: of one process that lacks these packages."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([list(modules), list(packages), commands])],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers, loaded = json.loads(done.stdout.splitlines()[-1])
    return [(code, said) for code, said in answers], set(loaded)


def test_a_plain_install_is_a_codec_and_names_the_extra_of_all_else(folder):
    packages = [package for package, _ in PACKAGES.values()]
    answers, loaded = answers_without(PACKAGES, packages, CODING + TRAINING, folder)
    assert [code for code, _ in answers] == [0, 0, None, 2, 2, 2], answers
    assert Image.open(folder / "out" / "photo.png").size == (64, 64)
    assert not loaded & set(PACKAGES)
    assert answers[3][1] == (f"error: fit needs {', '.join(TRAIN.values())}: pip install 'aeic-lightning[train]'\n")
    for _, said in answers[4:]:
        assert said.startswith("error: this needs ")
        assert said.endswith(": pip install 'aeic-lightning[train]'\n")


@pytest.fixture(scope="module")
def plain(folder) -> tuple[list[tuple[int | None, str]], set[str]]:
    """Of all commands, the training first, where nothing but the packages to train is installed."""
    commands = [[*TINY, *SMALL]] + [command for _, _, command in NEEDY]
    return answers_without(OTHERS, OTHERS.values(), commands, folder)


def test_training_needs_no_other_extra(plain, folder):
    answers, loaded = plain
    assert answers[0][0] == 0, answers
    assert (folder / "runs/tiny/teacher_stage1/checkpoints/last.ckpt").is_file()
    assert not loaded & set(OTHERS)


def test_a_command_that_lacks_a_package_names_the_command_that_installs_it(plain):
    answers = plain[0][1:]
    for (extra, words, command), (code, said) in zip(NEEDY, answers, strict=True):
        assert said == f"error: {words}: pip install 'aeic-lightning[{extra}]'\n", command
        assert code == 2, command
    assert {extra for extra, _, _ in NEEDY} == {extra for _, extra in PACKAGES.values()} - {"train"}


def test_the_extras_are_those_of_the_project():
    by_extra = {extra: {Requirement(text).name for text in EXTRAS[extra]} - {"aeic-lightning"} for extra in EXTRAS}
    for module, (package, extra) in PACKAGES.items():
        assert package in by_extra[extra], module
    for extra in {extra for _, extra in PACKAGES.values()}:
        assert by_extra[extra] == {package for package, of in PACKAGES.values() if of == extra}
    (everything,) = (Requirement(text).extras for text in EXTRAS["dev"] if text.startswith("aeic-lightning"))
    assert everything == set(EXTRAS) - {"dev"}


def test_optional_packages_are_imported_where_they_were_asked_for():
    """But for those to train, for which commands ask before they import what trains."""
    for top in ("aeic_lightning", "callbacks", "datamodules"):
        for path in (ROOT / top).rglob("*.py"):
            names = set()
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.partition(".")[0])
            assert names & set(OTHERS) == ASKED_BEFORE.get(str(path.relative_to(ROOT)), set()), path

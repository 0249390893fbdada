"""Every file of experiments/distillation runs for two steps; its terms and taps are logged."""

from pathlib import Path

import pytest
import torch

from aeic_lightning.checkpoints.checkpoint import from_dict
from aeic_lightning.cli import main
from aeic_lightning.config import load_config
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.models.random_model import save
from tests.experiment_names import all_but_few_slow, names

ROOT = Path(__file__).parent.parent
FILES = ROOT / "experiments" / "distillation"
TAPS = {"cosine": "y.cosine", "attention": "y.attention", "relational": "y.relational", "self": "y", "online": "y"}


def test_every_file_is_known_here():
    assert names("distillation") == set(TAPS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """With a tiny teacher of random weights in its place."""
    root = tmp_path_factory.mktemp("distillation")
    settings = load_config([ROOT / "experiments" / "tiny" / "teacher_stage1.yaml"], [])["model"]["init_args"]
    model = AEIC(from_dict(CodecConfig, settings["codec"]), from_dict(DecoderConfig, settings["decoder"]))
    path = root / "teacher_stage2" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    save(model, path)
    return root


@pytest.mark.parametrize("name", all_but_few_slow(list(TAPS), "online"))
def test_two_steps(root, name, monkeypatch):
    """The other terms are trained by losses/test_howto.py."""
    monkeypatch.chdir(ROOT)
    words = ["fit", "--config", str(FILES / f"{name}.yaml"), f"--vars.root={root}", "--vars.steps=2",
             "--vars.val_every=2", "--data.init_args.batch_size=2", "--data.init_args.crop_size=128",
             "--data.init_args.val_max_size=[128,192]"]  # fmt: skip
    assert main([*words, "--dry-run"]) == 0
    assert main([*words, "--trainer.callbacks.6.init_args.every_n_steps=1"]) == 0
    assert torch.load(root / name / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert f"encoder/{TAPS[name]}" in (root / name / "taps.csv").read_text().splitlines()[0]

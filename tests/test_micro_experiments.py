"""The files of experiments/micro: sizes within their budget, two steps of training, and the sender in C of one."""

import itertools
import subprocess
from pathlib import Path

import pytest
import skimage.data
import torch
import yaml
from PIL import Image

from aeic_lightning.checkpoints.checkpoint import read_checkpoint
from aeic_lightning.cli import main
from aeic_lightning.config import load_config
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.integer import MicroEncoder
from aeic_lightning.study.complexity import codec_costs, experiment_configs
from tests.experiment_names import all_but_few_slow, names

ROOT = Path(__file__).parent.parent
FILES = ROOT / "experiments" / "micro"
ARMS = ["integer_none", "integer_enc", "integer_latents", "float_none", "float_enc", "float_latents"]


def test_every_file_is_known_here():
    assert names("micro") == {*ARMS, "base", "distilled", "latents", "student"}


def test_the_sender_is_within_its_budget():
    with torch.device("meta"):
        model = AEIC(*experiment_configs(load_config([FILES / "integer_enc.yaml"], []), "it"))
    encode = codec_costs(model)["encode"]
    assert encode.macs_per_pixel <= 1000
    assert encode.parameters <= 400_000


def test_every_shape_and_block_of_the_search_is_an_encoder():
    """A sweep draws few of them, and is refused for the first that cannot be built."""
    grid = yaml.safe_load((ROOT / "experiments" / "sweeps" / "senders.yaml").read_text())["runs"][0]["grid"]
    key = "model.init_args.codec.encoder.init_args"
    for shape, block in itertools.product(grid["shape"].values(), grid["block"].values()):
        with torch.device("meta"):
            assert MicroEncoder(**shape[key] | block[key])(torch.empty(1, 3, 64, 64)).shape[2:] == (2, 2)


@pytest.mark.parametrize("name", all_but_few_slow(["student", "float_latents", "float_enc"], "float_latents"))
def test_two_steps(name, tmp_path, monkeypatch):
    """Of the arms with distillation, which hold the others; the receiver stays that of a shipped model."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, photo)()[:200, :200]).save(photos / f"{photo}.png")
    monkeypatch.chdir(ROOT)
    words = ["fit", "--config", f"experiments/micro/{name}.yaml", f"--vars.root={tmp_path}", "--vars.steps=2",
             "--vars.val_every=2", f"--vars.data={photos}", "--data.init_args.val_count=1",
             "--data.init_args.batch_size=2", "--data.init_args.val_max_size=[128,128]"]  # fmt: skip
    if name == "student":  # which starts from the other
        assert main([*words[:2], "experiments/micro/integer_latents.yaml", *words[3:]]) == 0
    assert main(words) == 0
    checkpoint = tmp_path / name / "checkpoints" / "last.ckpt"
    ours, theirs = (read_checkpoint(path)["state_dict"] for path in (checkpoint, "small-student"))
    for tensor in ("codec.g_s.0.branch2.weight", "codec.gains.log_gain"):
        assert torch.equal(ours[f"model.{tensor}"], theirs[f"model.{tensor}"].float())
    status = main(["export", "--c", "--checkpoint", str(checkpoint), "-o", str(tmp_path / "c")])
    assert status == (2 if name.startswith("float") else 0)
    if status == 0:
        subprocess.run(["make", "-C", tmp_path / "c", "check", "CFLAGS=-O1"], check=True, capture_output=True)

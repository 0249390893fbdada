"""Folders of weights that take parts from a shipped model."""

import json

import pytest
import torch
from skimage import data as photos

from aeic_lightning.checkpoints.weights import read_weights
from aeic_lightning.cli import main
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The shipped student with another g_a: stored whole, and without what it shares."""
    codec = Codec.from_pretrained("small-student")
    with torch.no_grad():
        next(codec.model.get_submodule("codec.g_a").parameters()).mul_(0.5)
    whole, shared = (tmp_path_factory.mktemp(name) for name in ("whole", "shared"))
    codec.write(whole, "whole")
    codec.write(shared, "shared", shares="small-student")
    return whole, shared


def test_the_same_model_in_fewer_bytes(folders):
    whole, shared = map(read_weights, folders)
    assert whole["state_dict"].keys() == shared["state_dict"].keys()
    assert all(tensor.equal(shared["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
    kept = sum(t.numel() for n, t in whole["state_dict"].items() if n.startswith("model.codec.g_a."))
    assert 2 * kept < sizes[1] < 2 * kept + 20_000 < sizes[0]
    one, other = map(Codec.from_pretrained, folders)
    stream = one.compress(photos.chelsea()[:64, :96], level=1.0)
    assert stream == other.compress(photos.chelsea()[:64, :96], level=1.0)
    assert (one.decompress_array(stream) == other.decompress_array(stream)).all()


def test_other_weights_of_that_name_are_refused(folders, tmp_path):
    config = json.loads((folders[1] / "config.json").read_text())
    config["shares"]["sha256"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folders[1] / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="small-student, whose weights are other ones"):
        read_weights(tmp_path)


def test_without_a_shared_part_it_says_so(folders, tmp_path):
    codec = Codec.from_pretrained(folders[0])
    with torch.no_grad():
        for parameter in codec.model.parameters():
            parameter.mul_(0.5)
        for buffer in codec.model.buffers():
            buffer.zero_()
    with pytest.raises(UserError, match="no part of the model equals that of small-student"):
        codec.write(tmp_path, "other", shares="small-student")
    with pytest.raises(UserError, match="no shipped model 'larger'"):
        codec.write(tmp_path, "other", shares="larger")


def test_the_command(folders, tmp_path, capsys):
    words = ["export", "--checkpoint", str(folders[0]), "-o", str(tmp_path / "out"), "--shares", "small-student"]
    assert main(words) == 2
    assert "--shares goes with --weights" in capsys.readouterr().err
    assert main([*words, "--weights"]) == 0
    assert read_weights(tmp_path / "out")["shares"]["model"] == "small-student"

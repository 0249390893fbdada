"""Two sets of decoder weights over one codec: one stream, pictures between the faithful and the realistic one."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aeic_lightning import Codec
from aeic_lightning.bitstream import export
from aeic_lightning.bitstream.receive import Receiver
from aeic_lightning.bitstream.stream import reconstruct
from aeic_lightning.checkpoints.checkpoint import add_realistic, load_aeic
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.models.random_model import save
from aeic_lightning.study.evaluate import Checkpoint
from aeic_lightning.systems.start import StartFrom, take_over
from tests.bitstream.small import LEVELS, small

NOISE = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models():
    """The faithful one, and one whose decoder has moved."""
    faithful = small(LEVELS)
    realistic = copy.deepcopy(faithful)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in realistic.decoder.parameters():
            parameter.add_(0.2 * parameter.std().nan_to_num(0.1) * torch.randn(parameter.shape, generator=generator))
    return faithful, realistic


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """Both in one folder of weights, from two checkpoints."""
    root = tmp_path_factory.mktemp("realism")
    for name, model in zip(("faithful", "realistic"), models, strict=True):
        save(model, root / f"{name}.ckpt")
    words = ["export", "--weights", "--checkpoint", str(root / "faithful.ckpt")]
    assert main([*words, "-o", str(root / "faithful")]) == 0
    assert main([*words, "--realistic", str(root / "realistic.ckpt"), "-o", str(root / "both")]) == 0
    return root


def test_one_stream_gives_both_pictures_and_those_between(folder, models):
    codec = Codec.from_pretrained(folder / "both", float32=True)
    data = codec.compress(NOISE)
    latents = codec.bitstream.decode(data)
    found = {r: codec.decompress_array(data, realism=r).astype(int) for r in (None, 0.0, 0.5, 1.0)}
    for share, model in ((0.0, models[0]), (1.0, models[1])):
        half = copy.deepcopy(model)
        for parameter in half.parameters():  # as stored
            parameter.data = parameter.data.half().float()
        expected = reconstruct(half, latents).permute(1, 2, 0).numpy().astype(int)
        assert abs(found[share] - expected).max() <= 1
    assert (found[None] == found[0.0]).all()
    assert abs(found[1.0] - found[0.0]).mean() > 1
    # Half of the way between the weights, computed tensor by tensor.
    between = copy.deepcopy(codec.model)
    for ours, theirs in zip(between.decoder.parameters(), between.realistic.parameters(), strict=True):
        ours.data = (ours.data + theirs.data) / 2
    expected = reconstruct(between, latents).permute(1, 2, 0).numpy().astype(int)
    assert abs(found[0.5] - expected).max() <= 1
    assert (np.asarray(codec.decompress_batch([data], realism=1.0)[0]) == found[1.0]).all()
    assert (np.asarray(codec.decompress(data)) == found[0.0]).all(), "the model itself stays faithful"


def test_what_equals_the_first_decoder_is_held_once(models, tmp_path):
    model = copy.deepcopy(models[0])
    model.realistic = copy.deepcopy(model.decoder)
    with torch.no_grad():
        for parameter in model.realistic.vae.parameters():
            parameter.add_(1 / 64)
    objectives = {"mse": 8.0}, {"mse": 2.0, "adversarial": {"weight": 0.1, "backbone": "hed"}}
    Codec(model, objective=objectives[0], realistic_objective=objectives[1]).save_pretrained(tmp_path / "both")
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert config["parameters"] == sum(p.numel() for p in models[0].parameters()), "of the first alone"
    held = load_file(tmp_path / "both" / "model.safetensors")
    assert {n.split(".")[1] for n in held if n.startswith("realistic.")} == {"vae"}
    found = Codec.from_pretrained(tmp_path / "both").model
    for name, tensor in model.realistic.state_dict().items():
        assert found.realistic.state_dict()[name].equal(tensor.half().float()), name
    assert tuple(Checkpoint(tmp_path / "both", realism=r).objective for r in (None, 1.0)) == objectives


def test_the_sender_needs_not_know_and_streams_name_both(folder, models):
    both = Codec.from_pretrained(folder / "both", float32=True)
    stored = json.loads((folder / "both" / "config.json").read_text())
    faithful = Codec.from_pretrained(folder / "faithful")
    assert stored["fingerprint"] == both.fingerprint == faithful.fingerprint, "a model that is given one reads on"
    assert faithful.compress(NOISE) == both.compress(NOISE)
    (folder / "noise.png").unlink(missing_ok=True)
    Image.fromarray(NOISE).save(folder / "noise.png")
    words = ["--checkpoint", str(folder / "both"), "-o", str(folder / "out"), "--force"]
    assert main(["compress", str(folder / "noise.png"), *words]) == 0
    assert (folder / "out" / "noise.aeic").read_bytes() == both.compress(NOISE)
    assert main(["decompress", str(folder / "out" / "noise.aeic"), *words, "--float32", "--realism", "1"]) == 0
    picture = np.asarray(Image.open(folder / "out" / "noise.png")).astype(int)
    assert abs(picture - both.decompress_array(both.compress(NOISE), realism=1.0)).max() <= 1
    both.save_pretrained(folder / "again")
    assert Codec.from_pretrained(folder / "again").fingerprint == both.fingerprint


def test_the_graph_of_a_receiver_is_of_the_realism_that_was_ordered(folder, monkeypatch, tmp_path):
    """Up to the writing of graphs, which takes a minute: the slow test below has that."""
    seen = {}

    class Enough(Exception):
        pass

    def spied(module, *_):
        seen[type(module).__name__] = module
        if len(seen) == 4:
            raise Enough

    monkeypatch.setattr(export, "_export", spied)
    codec = Codec.from_pretrained(folder / "both", float32=True)
    with pytest.raises(Enough):
        export.export(codec.bitstream, tmp_path, 0.5)
    latents = codec.bitstream.decode(codec.compress(NOISE))
    with torch.no_grad():
        x_hat = seen["Synthesis"](latents.y_hat, torch.tensor([latents.level]))[0, :, :60, :70]
    picture = ((x_hat.permute(1, 2, 0).numpy() + 1) * 127.5).round()
    assert abs(picture - codec.decompress_array(codec.compress(NOISE), realism=0.5)).max() <= 1


@pytest.mark.slow
def test_an_exported_receiver_paints_as_ordered(folder):
    words = ["export", "--checkpoint", str(folder / "both"), "--realism", "0.5", "-o", str(folder / "onnx")]
    assert main(words) == 0
    codec = Codec.from_pretrained(folder / "both", float32=True)
    data = codec.compress(NOISE)
    receiver = Receiver(folder / "onnx" / "receive")
    picture = receiver.picture(receiver.decode(data)).astype(int)
    assert abs(picture - codec.decompress_array(data, realism=0.5)).max() <= 1


@pytest.mark.parametrize("realism", [-0.1, 1.5, float("nan")])
def test_what_is_out_of_range_is_refused(folder, realism):
    codec = Codec.from_pretrained(folder / "both", float32=True)
    with pytest.raises(UserError, match=r"from 0 \(faithful\) to 1"):
        codec.decompress(codec.compress(NOISE), realism=realism)


def test_a_model_of_one_decoder_says_that_it_has_no_other(models, folder, capsys):
    codec = Codec(models[0])
    data = codec.compress(NOISE)
    assert (codec.decompress_array(data, realism=0) == codec.decompress_array(data)).all()
    with pytest.raises(UserError, match="no realistic weights"):
        codec.decompress(data, realism=0.5)
    (folder / "one.aeic").write_bytes(data)
    words = ["decompress", str(folder / "one.aeic"), "--checkpoint", str(folder / "faithful.ckpt")]
    assert main([*words, "-o", str(folder / "none"), "--realism", "0.5"]) == 2
    assert "no realistic weights" in capsys.readouterr().err


def test_weights_that_paint_from_other_features_are_refused(models, folder, tmp_path):
    moved = copy.deepcopy(models[1])
    name, tensor = next(iter(moved.codec.g_s.named_parameters()))
    tensor.data.flatten()[0] += 1e-3
    save(moved, tmp_path / "moved.ckpt")
    with pytest.raises(UserError, match=rf"codec\.g_s\.{name} .*paints from other features"):
        add_realistic(copy.deepcopy(models[0]), tmp_path / "moved.ckpt")
    sender = copy.deepcopy(models[0])  # another g_a over the same receiver, as micro-student over small-student
    next(sender.codec.g_a.parameters()).data.add_(1.0)
    add_realistic(sender, folder / "realistic.ckpt")


def test_a_second_decoder_may_be_replaced(folder):
    both = load_aeic(folder / "both")
    add_realistic(both, folder / "faithful")
    assert all(map(torch.equal, both.realistic.parameters(), both.decoder.parameters()))


def test_training_starts_from_the_faithful_decoder(models, folder):
    from aeic_lightning.checkpoints.checkpoint import read_checkpoint, with_prefix

    fresh = small(LEVELS)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    path = str(folder / "both")
    take_over(fresh, with_prefix(read_checkpoint(path), "model."), StartFrom.of(path, "init_from"), "init_from")
    expected = models[0].state_dict()
    for name, tensor in fresh.state_dict().items():
        assert "quantiles" in name or torch.equal(tensor, expected[name].half().float()), name


@pytest.mark.parametrize("workers", ["1", "2"])
def test_evaluate_measures_the_picture_of_the_realism_that_was_ordered(folder, tmp_path, workers):
    (tmp_path / "images").mkdir()
    for name, picture in (("a", NOISE), ("b", NOISE[::-1])):
        Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png")
    words = ["evaluate", "--checkpoint", str(folder / "both"), "--images", str(tmp_path / "images")]
    words += ["--backbones", "hed", "--workers", workers]
    assert main([*words, "--realism", "1", "-o", str(tmp_path / "one.json")]) == 0
    result = json.loads((tmp_path / "one.json").read_text())["results"][0]
    assert result["labels"]["realism"] == 1
    codec = Codec.from_pretrained(folder / "both")
    found = codec.decompress_array(codec.compress(NOISE), realism=1.0).astype(float)
    psnr = 10 * np.log10(255**2 / ((found - NOISE) ** 2).mean())
    assert result["images"][0]["psnr"] == pytest.approx(psnr, abs=0.05)


def test_evaluate_refuses_a_realism_that_the_model_does_not_have(folder, tmp_path, capsys):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    words = ["evaluate", "--images", str(tmp_path), "-o", str(tmp_path / "one.json"), "--realism", "1"]
    assert main([*words, "--checkpoint", str(folder / "faithful")]) == 2
    assert "no realistic weights" in capsys.readouterr().err
    assert main([*words, "--reconstructions", str(tmp_path)]) == 2
    assert "--realism goes with --checkpoint" in capsys.readouterr().err

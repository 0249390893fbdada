"""`effort`: latents refined at the sender for the receiver's picture, in streams as any other."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning.bitstream import refine
from aeic_lightning.bitstream.refine import Refinement
from aeic_lightning.bitstream.stream import Bitstream, reconstruct
from aeic_lightning.classification.model import ClassificationModel
from aeic_lightning.cli import main
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.models.random_model import random_model
from tests.bitstream.conftest import MINIATURE
from tests.bitstream.small import LEVELS

OBJECTIVE = {"rate": {"weight": 0.5, "warmup_steps": 9}, "mse": 4.0, "L_enc": 1.0, "lpips": 0}
"""Of these, rate and MSE are what a sender can go by."""


@pytest.fixture(scope="module")
def codec(model_of_levels):
    return Codec(model_of_levels, objective=OBJECTIVE)


def loss(codec, x, data: bytes) -> float:
    """0.5 w bpp + 4 MSE, by what the ordinary receiver makes of a file; the picture is not rounded."""
    decoded = codec.bitstream.decode(data)
    with torch.no_grad():
        x_hat = codec.model.reconstruct(decoded.y_hat, decoded.level)[..., : x.shape[2], : x.shape[3]]
    weight = 1.0
    if decoded.level is not None:  # between two levels the logarithms of their weights are interpolated
        weight = np.exp(np.interp(decoded.level, range(len(LEVELS)), np.log(LEVELS)))
    return 0.5 * weight * 8 * len(data) / x[0, 0].numel() + 4 * (x_hat - x).square().mean().item()


@pytest.mark.parametrize("level", [0.0, 0.7, 2.0])
def test_the_loss_falls_and_the_ordinary_receiver_reads_the_stream(codec, picture, level):
    x = picture(70, 150)
    plain = codec.bitstream.encode_at(x, level=level)
    refined = codec.encoder(12).encode_at(x, level=level)
    decoded = Bitstream(codec.model).decode(refined.data)
    assert torch.equal(decoded.y_hat, refined.y_hat)
    assert decoded.level == plain.level
    assert reconstruct(codec.model, decoded).shape == (3, 70, 150)
    assert loss(codec, x, refined.data) < 0.995 * loss(codec, x, plain.data)
    assert codec.encoder(12).encode_at(x, level=level).data == refined.data


def test_what_became_no_better_is_sent_as_it_was(codec, picture, monkeypatch):
    x, encoder = picture(64, 64), codec.encoder(2)
    monkeypatch.setattr(encoder, "_descend", lambda x, y, z, level: (y + 40, z))
    assert encoder.encode_at(x, level=1.0).data == codec.bitstream.encode(x, 1.0)


def test_a_large_image_is_refined_in_pieces(codec, picture, monkeypatch):
    """Each piece with its own pixels: what one piece gives at once, pieces give one after the other."""
    monkeypatch.setattr(refine, "WINDOW", 128)
    x, seen = picture(200, 300), []
    encoder = codec.encoder(3)
    descend = encoder._descend

    def spied(piece, y, z, level):
        seen.append((tuple(piece.shape[2:]), tuple(y.shape[2:]), tuple(z.shape[2:])))
        return descend(piece, y, z, level)

    monkeypatch.setattr(encoder, "_descend", spied)
    refined = encoder.encode_at(x, level=1.0)
    sizes = {128: (4, 1), 72: (4, 1), 44: (2, 1)}  # pixels -> positions of y, padding included, and of z
    expected = [((h, w), *zip(sizes[h], sizes[w], strict=True)) for h in (128, 72) for w in (128, 128, 44)]
    assert seen == expected
    assert loss(codec, x, refined.data) < loss(codec, x, codec.bitstream.encode(x, 1.0))


def test_a_size_is_kept_and_the_picture_within_is_no_worse(codec, picture):
    x = picture(64, 128)
    most = len(codec.bitstream.encode(x, 1.0)) + 3
    plain = codec.bitstream.encode_at(x, max_bytes=most)
    encoder = codec.encoder(3)
    refined = encoder.encode_at(x, max_bytes=most)
    assert len(refined.data) <= most
    assert encoder.distance(x, refined) < encoder.distance(x, plain)
    assert encoder.encode_at(x, bpp=8 * most / x[0, 0].numel()).data == refined.data
    with pytest.raises(UserError, match="too few"):
        encoder.encode_at(x, max_bytes=9)
    with pytest.raises(UserError, match="one of"):
        encoder.encode_at(x, max_bytes=99, level=1.0)


def test_a_model_of_one_rate(model, picture):
    codec, x = Codec(model, objective=OBJECTIVE), picture(64, 64)
    plain = codec.bitstream.encode(x)
    assert loss(codec, x, codec.encoder(8).encode_at(x).data) < loss(codec, x, plain)
    assert len(codec.encoder(1).encode_at(x, max_bytes=len(plain)).data) <= len(plain)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (None, "not known what this model was trained on"),
        ({"mse": 2.0}, "without it"),
        ({"rate": {"target": 0.1}, "mse": 2.0}, "to a target"),
        ({"rate": 0.5, "L_enc": 1.0}, "objective"),
    ],
)
def test_what_weighs_nothing_is_refused(model, objective, message):
    with pytest.raises(UserError, match=message):
        Codec(model, objective=objective).compress(Image.new("RGB", (64, 64)), effort=1)


def test_a_negative_effort_and_a_classifier_are_refused(codec):
    with pytest.raises(UserError, match="effort is -1"):
        codec.compress(Image.new("RGB", (64, 64)), effort=-1)
    with pytest.raises(UserError, match="makes a picture"):
        Refinement(SimpleNamespace(model=torch.nn.Module.__new__(ClassificationModel)), OBJECTIVE, 1)


def test_the_command_gives_the_bytes_of_the_object(tmp_path, capsys):
    """From a folder of weights, which names the objective; a photograph of one pixel too."""
    model = Codec(random_model(MINIATURE), objective={"rate": 0.5, "mse": 4.0, "lpips": 1.0, "edge_dists": 0.5})
    model.save_pretrained(tmp_path / "mine", dtype="float32")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "red.png")
    words = ["compress", str(tmp_path / "noise.png"), str(tmp_path / "red.png"), "-o", str(tmp_path / "out")]
    assert main([*words, "--checkpoint", str(tmp_path / "mine"), "--effort", "2"]) == 0
    expected = model.compress_batch([noise], effort=2)
    assert [(tmp_path / "out" / "noise.aeic").read_bytes()] == expected == [model.compress(noise, effort=2)]
    assert expected != [model.compress(noise)]
    assert main([*words, "--force", "--effort", "-2"]) == 2
    assert "--effort is -2" in capsys.readouterr().err

"""Streams, checkpoints and pictures of both systems that were written before the packages moved.

They were made at commit e62965d from small models with random weights. Whatever the code is called now, it must read
them, decode the same latents and draw the same pictures.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from aeic_lightning.bitstream.stream import Bitstream, reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.images import from_uint8, read_image

DATA = Path(__file__).parent / "data"
RECORD = json.loads((DATA / "golden.json").read_text())


def pixels(name: str) -> torch.Tensor:
    return torch.from_numpy(read_image(DATA / name)).permute(2, 0, 1)


def digest(latents) -> str:
    return hashlib.sha256(b"".join(part.astype("<i4").tobytes() for part in latents.integers())).hexdigest()


@pytest.mark.parametrize("system", ["aeic", "classification"])
def test_a_stream_decodes_to_the_latents_and_the_picture_that_it_had(system):
    model = load_model(DATA / f"{system}.ckpt")
    decoded = Bitstream(model).decode((DATA / f"{system}.aeic").read_bytes())
    assert digest(decoded) == RECORD[system]["latents"]
    picture, before = reconstruct(model, decoded), pixels(f"{system}.png")
    assert picture.shape == before.shape
    # Floating point: another processor may round single levels the other way.
    assert (picture.int() - before.int()).abs().max() <= 1


@pytest.mark.parametrize("system", ["aeic", "classification"])
def test_the_same_photo_gives_the_same_latents(system):
    model = load_model(DATA / f"{system}.ckpt")
    encoded = Bitstream(model).encode(from_uint8(pixels("original.png"))[None])
    assert abs(len(encoded) - RECORD[system]["bytes"]) <= 2  # g_a is floating point


def test_the_classes_of_a_stream_are_those_that_it_had():
    classifier = load_classifier(DATA / "classification.ckpt")
    logits = classifier.logits(classifier.codec.bitstream.decode((DATA / "classification.aeic").read_bytes()))
    assert logits.tolist() == pytest.approx(RECORD["classification"]["logits"], abs=1e-5)

"""Streams of a model of many rates: the level is one byte of the file, outside of the exact arithmetic."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning.bitstream import send
from aeic_lightning.bitstream.stream import Bitstream, dial_level, dial_position, reconstruct
from aeic_lightning.bitstream.wire import Stream, bytes_within, pack
from aeic_lightning.cli.commands import bench
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from tests.bitstream.small import small

HEADER = 11  # bytes before the level, for sides of at most 128


@pytest.fixture(scope="module")
def model(model_of_levels) -> AEIC:
    return model_of_levels


@pytest.fixture(scope="module")
def bitstream(levelled) -> Bitstream:
    return levelled


def picture() -> torch.Tensor:
    return torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def test_bytes_within_a_rate():
    assert bytes_within(0.5, 100, 16) == 100
    assert bytes_within(0.01, 1, 1) == 0
    with pytest.raises(UserError, match="above 0"):
        bytes_within(0.0, 64, 64)


def test_every_position_of_the_dial_is_a_level_and_its_byte():
    assert [dial_position(dial_level(byte, 5), 5) for byte in range(256)] == list(range(256))
    assert (dial_level(0, 5), dial_level(255, 5)) == (0.0, 4.0)
    assert dial_position(None, 5) == 128
    assert dial_position(None, 0) is None
    with pytest.raises(UserError, match="outside of 0 to 4"):
        dial_position(4.01, 5)
    with pytest.raises(UserError, match="one rate"):
        dial_position(1.0, 0)


@pytest.mark.parametrize("level", [0.0, 0.73, 1.0, 2.0, None])
def test_a_stream_brings_back_its_latents_and_its_level(model, bitstream, level):
    encoded = bitstream.encode_fully(picture(), level)
    decoded = bitstream.decode(encoded.data)
    assert torch.equal(decoded.y_hat, encoded.y_hat)
    assert decoded.level == encoded.level == pytest.approx(1.0 if level is None else level, abs=1 / 255)
    with torch.no_grad():
        expected = model.reconstruct(decoded.y_hat, decoded.level)[0, :, :70, :90]
    found = reconstruct(model, decoded)
    assert (found.float() - ((expected.clamp(-1, 1) + 1) * 127.5).round()).abs().max() <= 1


def test_files_grow_with_the_level(bitstream):
    sizes = [len(bitstream.encode(picture(), level)) for level in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1.2 * sizes[0]


def test_the_level_costs_one_byte_and_a_file_of_one_rate_has_none(model):
    plain = Bitstream(small(None))
    data = plain.encode(picture())
    assert plain.decode(data).level is None
    files = [pack(Stream(70, 90, b"abc", b"", level), bytes(32)) for level in (None, 3)]
    assert [len(file) for file in files] == [HEADER, HEADER + 1]


def test_a_damaged_level_is_an_error(bitstream):
    data = bytearray(bitstream.encode(picture(), 1.0))
    data[HEADER] ^= 1
    with pytest.raises(UserError, match="check value"):
        bitstream.decode(bytes(data))


def test_a_level_that_the_model_lacks_is_an_error(bitstream):
    with pytest.raises(UserError, match="outside of 0 to 2"):
        bitstream.encode(picture(), 3.0)


def test_bench_times_every_part_of_a_model_of_many_rates(model, bitstream):
    parts = bench.decode(1, model, bitstream, picture())
    assert set(parts) == {"decode latents", "g_s", "denoiser", "VAE decoder"}


@pytest.mark.parametrize("level", [None, 0.0, 0.3, 0.55, 1.0, 1.5, 1.999, 3.0])
def test_send_py_turns_a_level_into_the_position_of_compress(level, tmp_path):
    """0.3 of 0 to 3 is 25.5 of 255; 1.5, the middle one, 127.5: both are between two positions."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    sender = SimpleNamespace(levels=4, encode=lambda pixels, dial=None: [dial])
    args = SimpleNamespace(bpp=None, bytes=None, level=level)
    assert send._send(sender, tmp_path / "a.png", args)[1] == [dial_position(level, 4)]


def test_send_py_checks_golden_streams_at_the_middle_position(tmp_path):
    """128 of 255, as `compress` without a level."""
    case = {"name": "a", "y_shape": [1, 2, 1, 1], "z_shape": [1, 1, 1, 1], "height": 8, "width": 8}
    (tmp_path / "golden.json").write_text(json.dumps({"cases": [case]}))
    np.save(tmp_path / "a.sender.npy", np.zeros(3, np.float32))
    (tmp_path / "a.aeic").write_bytes(bytes([dial_position(None, 3)]))
    coded = SimpleNamespace(levels=3, encode_latents=lambda y, z, height, width, dial: bytes([dial]))
    send.check(coded, tmp_path)

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aeic_lightning import torch_settings
from aeic_lightning.bitstream import wire
from aeic_lightning.bitstream.exact import exact_mode
from aeic_lightning.bitstream.sender import Sender
from aeic_lightning.bitstream.stream import Bitstream, fingerprint, reconstruct
from aeic_lightning.errors import UserError
from aeic_lightning.models.random_model import random_model


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (63, 65), (64, 128), (200, 97)])
def test_round_trip(bitstream, picture, size):
    sent = bitstream.encode_fully(picture(*size))
    got = bitstream.decode(sent.data)
    assert (got.height, got.width) == size
    assert torch.equal(got.y_hat, sent.y_hat)
    assert torch.equal(got.z_hat, sent.z_hat)
    assert len(sent.data) <= sent.bits / 8 + 16


def test_symbols_are_skipped_and_the_sender_uses_their_zero(bitstream, picture):
    seen = []
    sent = bitstream.encode_fully(picture(128, 128))
    assert 0 < sent.coded < sent.y_hat.numel()
    # Where nothing is coded, y_hat is the mean itself, whatever y is.
    y, _ = bitstream.sender(picture(128, 128))

    def code(mean, scale, mask):
        coded = mask & (scale >= 0.08)
        seen.append((mask & ~coded, mean))
        return torch.where(coded, (y - mean).round(), 0.0) + mean

    with exact_mode():
        phi = bitstream.hyper_synthesis(sent.z_hat)[..., : y.shape[2], : y.shape[3]]
        assert torch.equal(bitstream.context(phi, code), sent.y_hat)
    for skipped, mean in seen:
        assert torch.equal(sent.y_hat[skipped], mean[skipped])


def test_escapes(bitstream, picture):
    y, z = (part.clone() for part in bitstream.sender(picture(100, 100)))
    y.flatten()[::50] += 1e5
    y.flatten()[1::50] -= 700
    z.flatten()[::3] -= 2000
    sent = bitstream.encode_latents(y, z, 100, 100)
    assert sent.escaped > 20
    got = bitstream.decode(sent.data)
    assert torch.equal(got.y_hat, sent.y_hat)
    assert torch.equal(got.z_hat, sent.z_hat)


def test_rate_is_the_estimate(model, bitstream, picture):
    for seed, size in enumerate([(64, 64), (256, 320)]):
        x = picture(*size, seed)
        with torch.inference_mode():
            output = model.codec(x)
        estimate = (output.bits_y + output.bits_z).item() / 8
        assert len(bitstream.encode(x)) <= 1.01 * estimate + 8 + 8  # random weights: symbols at the likelihood floor


def test_picture_has_the_original_size(model, bitstream, picture):
    data = bitstream.encode(picture(70, 33))
    image = reconstruct(model, bitstream.decode(data))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 70, 33)


def test_another_checkpoint_is_refused(model, bitstream, picture):
    other = Bitstream(random_model(model.codec.config, seed=1))
    with pytest.raises(UserError, match="another checkpoint"):
        other.decode(bitstream.encode(picture(64, 64)))


def test_the_decoder_is_part_of_the_fingerprint(model, bitstream):
    changed = random_model(model.codec.config)
    assert Bitstream(changed).fingerprint == bitstream.fingerprint
    next(changed.decoder.vae.parameters()).data[0] += 1e-3
    assert Bitstream(changed).fingerprint != bitstream.fingerprint


def test_the_tables_are_part_of_the_fingerprint(model, bitstream):
    """Machines whose tables differ must not read each other's files, though they have the same checkpoint."""
    modules = [bitstream.hyper_synthesis, bitstream.context, model]
    shared = bitstream.shared
    assert fingerprint(modules, shared) == bitstream.fingerprint
    counts = shared.y_tables[7].counts.copy()
    counts[:2] += [1, -1]
    y_tables = [*shared.y_tables[:7], replace(shared.y_tables[7], counts=counts), *shared.y_tables[8:]]
    z_tables = [replace(shared.z_tables[0], low=shared.z_tables[0].low + 1), *shared.z_tables[1:]]
    bounds = shared.bounds.clone()
    bounds[3] += 2**-20
    changes = {
        "y_tables": y_tables, "z_tables": z_tables, "bounds": bounds, "medians": shared.medians + 1 / 64,
        "skip_threshold": 0.09, "grid": replace(shared.grid, multiple=2 * shared.grid.multiple),
    }  # fmt: skip
    for name, value in changes.items():
        assert fingerprint(modules, replace(shared, **{name: value})) != bitstream.fingerprint, name


def test_drift_is_caught(model, bitstream, picture):
    """The weights of one mean differ by one step in the receiver's context, behind an equal fingerprint."""
    data = bitstream.encode(picture(128, 128))
    drifted = Bitstream(model)
    weight = drifted.context.adapter_out[3].last.weight
    weight[:, 0] += 1
    with pytest.raises(UserError, match="not the sender's"):
        drifted.decode(data)


def test_every_single_bit_flip_and_truncation_is_an_error(bitstream, picture):
    data = bitstream.encode(picture(64, 64))
    damaged = [data[:n] for n in range(len(data))]
    damaged += [data + b"\0", data + data]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for stream in damaged:
        with pytest.raises(UserError):
            bitstream.decode(stream)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_error(data):
    with pytest.raises(UserError):
        wire.unpack(bytes([wire.MAGIC + wire.VERSION]) + data, bytes(32))
    if data[:1] != bytes([wire.MAGIC + wire.VERSION]):
        with pytest.raises(UserError):
            wire.unpack(data, bytes(32))


@pytest.mark.parametrize(("height", "width", "front"), [(1, 1, 11), (128, 129, 12), (4096, 4096, 13), (8192, 8192, 13)])
def test_container(height, width, front):
    fingerprint = hashlib.sha256(b"model").digest()
    stream = wire.Stream(height, width, b"abc", b"payload")
    data = wire.pack(stream, fingerprint)
    assert wire.unpack(data, fingerprint) == stream
    assert len(data) == front + len(stream.payload)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 8193)])
def test_impossible_sizes(height, width):
    with pytest.raises(UserError, match="8192"):
        wire.check_size(height, width)


def test_bands_give_what_the_whole_image_gives(model, picture, monkeypatch):
    x = picture(1100, 70)
    with torch.inference_mode():
        y = model.codec.g_a(model.codec.pad(x))
    monkeypatch.setattr("aeic_lightning.bitstream.sender.BAND_PIXELS", 1)
    assert (Sender(model.codec)(x)[0] - y).abs().max() < 1e-4
    for quicker, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch_settings, "_bfloat16", quicker)
        fast = Sender(model.codec, fast=True)
        assert fast.dtype == dtype
        assert (fast(x)[0] - y).std() < 0.05


def test_diverged_models_are_refused(model):
    broken = random_model(model.codec.config)
    broken.codec.g_a[0].conv.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        Bitstream(broken)


def test_integers_hold_the_latents(bitstream, picture):
    sent = bitstream.encode_fully(picture(90, 90))
    z, y = sent.integers()
    assert np.array_equal(z / 64, sent.z_hat.numpy())
    assert np.array_equal(y / 256, sent.y_hat.numpy())

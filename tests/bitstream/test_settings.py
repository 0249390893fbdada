"""Same pixels, same bytes: whatever their layout in memory, and whatever the program around has set in PyTorch."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning import Codec
from aeic_lightning.bitstream.exact import exact_mode
from aeic_lightning.bitstream.sender import Sender
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.codec import as_tensor
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.torch_settings import own_settings

SIZES = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
WIDTHS = {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1]}
PLAIN = {"class_path": "models.plain_encoder.PlainEncoder", "init_args": {"width": 8}}
PIXELS = np.random.default_rng(5).integers(0, 256, (64, 128, 3), dtype=np.uint8)  # no padding: it would copy


def codec_of(encoder):
    sizes = {"encoder": PLAIN} if encoder else {"widths": [8, 8, 16, 16, 32], "depths": [1] * 5}
    return random_model(CodecConfig(**sizes, **SIZES, **WIDTHS))


@pytest.fixture(scope="module", params=[False, True], ids=["star", "own encoder"])
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "last.ckpt"
    save(codec_of(request.param), path)
    return path


def layouts():
    """The same pixels as (1, 3, H, W), in every order of strides that a caller may have."""
    chw = torch.from_numpy(PIXELS).permute(2, 0, 1).contiguous()
    yield "rows of channels", chw[None]
    yield "rows of pixels", torch.from_numpy(PIXELS).permute(2, 0, 1)[None]
    yield "channels last", chw[None].contiguous(memory_format=torch.channels_last)
    yield "transposed", chw.mT.contiguous().mT[None]
    yield "reversed twice", torch.from_numpy(PIXELS[::-1, ::-1].copy()[::-1, ::-1].copy()).permute(2, 0, 1)[None]
    yield "part of a larger one", torch.cat([chw, chw], 2)[None][..., : chw.shape[2]]
    yield "one of a batch", torch.stack([chw * 0, chw])[1:]
    yield "without a stride", torch.as_strided(chw, (1, 3, 64, 128), (7, 64 * 128, 128, 1))


def test_every_layout_gives_the_same_latents_and_bytes(checkpoint):
    bitstream = Bitstream(load_model(checkpoint))
    first = None
    for name, pixels in layouts():
        x = pixels.float() / 127.5 - 1
        y = bitstream.sender.analyse(x)
        first = y if first is None else first
        assert torch.equal(y, first), name
        assert bitstream.encode(x) == bitstream.encode(as_tensor(PIXELS)), name


def test_every_layout_of_the_weights_gives_the_same_latents(checkpoint):
    x = as_tensor(PIXELS)
    expected = Bitstream(load_model(checkpoint)).sender.analyse(x)
    moved = load_model(checkpoint).to(memory_format=torch.channels_last)
    assert torch.equal(Bitstream(moved).sender.analyse(x), expected)


def test_batches_and_threads_give_the_same_bytes(checkpoint):
    bitstream = Bitstream(load_model(checkpoint))
    images = [as_tensor(PIXELS), as_tensor(PIXELS[::-1]), as_tensor(PIXELS)]
    single = [bitstream.encode(x) for x in images]
    assert [one.data for one in bitstream.encode_batch(torch.cat(images))] == single
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert [bitstream.encode(x) for x in images] == single
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def reduced_products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def flushed():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


SETTINGS = {
    "deterministic": deterministic,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "reduced products": reduced_products,
    "no denormals": flushed,
    "no gradients": torch.inference_mode,
    "numpy raises": lambda: np.errstate(all="raise"),
}


@pytest.fixture(scope="module")
def plainly(checkpoint):
    codec = Codec.from_pretrained(checkpoint)
    data = codec.compress(PIXELS)
    return codec, data, codec.decompress_array(data)


STAR = [pytest.param(False, id="star"), pytest.param(True, id="own encoder", marks=pytest.mark.slow)]


@pytest.mark.parametrize("checkpoint", STAR, indirect=True)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_the_process_has_set_changes_nothing(checkpoint, plainly, setting):
    """Neither for a codec of before, nor for one that is loaded under the setting."""
    codec, data, picture = plainly
    with SETTINGS[setting]():
        other = Codec.from_pretrained(checkpoint)
        assert other.fingerprint == codec.fingerprint
        for one in (codec, other):
            assert one.compress(PIXELS) == data
            assert one.compress(Image.fromarray(PIXELS)) == data
            assert np.array_equal(one.decompress_array(data), picture)
            assert np.array_equal(np.asarray(one.decompress_batch([data, data])[1]), picture)


def test_settings_are_as_before_after_calls_that_overlap():
    """The first one in leaves before the second: it must not take the settings with it."""
    with default_dtype(torch.float64):
        inside, leave = threading.Event(), threading.Event()

        def first():
            with own_settings():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=first)
        thread.start()
        inside.wait(10)
        with exact_mode():
            leave.set()
            thread.join()
            assert torch.zeros(1).dtype == torch.float32
        assert torch.zeros(1).dtype == torch.float64


def test_a_receiver_needs_no_class_of_the_senders_encoder(tmp_path, monkeypatch):
    save(codec_of(True), tmp_path / "last.ckpt")
    sender = Codec.from_pretrained(tmp_path / "last.ckpt")
    data = sender.compress(PIXELS)
    picture = sender.decompress_array(data)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["model_config"]["codec"]["encoder"]["class_path"] = "elsewhere.TheirEncoder"
    torch.save(checkpoint, tmp_path / "theirs.ckpt")
    receiver = Codec.from_pretrained(tmp_path / "theirs.ckpt")
    assert receiver.fingerprint == sender.fingerprint
    assert np.array_equal(receiver.decompress_array(data), picture)
    with pytest.raises(
        UserError, match=r"decodes here but does not compress.*elsewhere.TheirEncoder cannot be imported"
    ):
        receiver.compress(PIXELS)


def test_an_image_goes_to_where_the_networks_are(checkpoint, monkeypatch):
    """As `Codec.from_pretrained(..., device="cuda").compress` needs it. The device is one without values."""
    codec = load_model(checkpoint).codec
    sender = Sender(codec.to("meta"))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda values: True)  # whether they are finite
    y, z = sender(as_tensor(PIXELS))
    assert y.is_meta
    assert z.is_meta
    assert y.shape == (1, codec.channels, 64 // codec.stride, 128 // codec.stride)

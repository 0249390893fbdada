"""Streams in bands of rows: every writer and reader of them agrees; the sender in C has tests of its own."""

import functools
import http.server
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aeic_lightning.bitstream import wire
from aeic_lightning.bitstream.coder import PayloadReader, PayloadWriter
from aeic_lightning.bitstream.receive import Receiver
from aeic_lightning.bitstream.send import Sender
from aeic_lightning.bitstream.stream import Bitstream, dial_level, gaussian_tables
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.models.random_model import random_model
from aeic_lightning.web.site import fetch_runtime, write_site
from tests.bitstream.test_c_sender import micro
from tests.bitstream.test_web import call, opened, pixels, waves

TABLES = gaussian_tables()


@pytest.fixture(scope="module")
def bitstream(tiled) -> Bitstream:
    """Of a model of four steps, whose streams have bands in each of them: no codec has that, the format does."""
    bitstream = Bitstream(tiled)
    bitstream.shared = replace(bitstream.shared, by_rows=True)
    return bitstream


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory) -> Path:
    """The session's export, its tables changed."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("rows") / "exported")
    for half in ("send", "receive"):
        tables, manifest = folder / half / "tables.json", folder / half / "manifest.json"
        tables.write_text(json.dumps(json.loads(tables.read_text()) | {"by_rows": True}))
        document = json.loads(manifest.read_text())
        document["files"]["tables.json"] = wire.sha256(tables)
        manifest.write_text(json.dumps(document))
    return folder


IMAGES = [waves(1, 1, 0), waves(70, 40, 1), waves(300, 90, 2)]


def tensor(image: np.ndarray) -> torch.Tensor:
    return from_uint8(torch.from_numpy(image).permute(2, 0, 1))[None]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: f"{image.shape[1]}x{image.shape[0]}")
def test_the_exported_halves_write_and_read_them(bitstream, folder, image):
    sender, receiver = Sender(folder / "send"), Receiver(folder / "receive")
    for dial in (0, 200):
        encoded = bitstream.encode_fully(tensor(image), dial_level(dial, bitstream.levels))
        assert sender.encode(image, dial) == encoded.data
        decoded = receiver.decode(encoded.data)
        for ours, theirs in zip(encoded.integers(), wire.integers_of(decoded.z_hat, decoded.y_hat), strict=True):
            assert np.array_equal(ours, theirs)


def test_the_browser_writes_and_reads_them(bitstream, folder, chromium, tmp_path):
    write_site(folder, tmp_path / "site", fetch_runtime())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = opened(chromium, f"http://127.0.0.1:{server.server_address[1]}/", 1280, 800, False)
    for image in IMAGES:
        expected = bitstream.encode(tensor(image), dial_level(200, bitstream.levels))
        assert bytes(call(page, "encode", pixels=pixels(image), dial=200, most=0)["data"]) == expected
        assert call(page, "decode", data=expected)["height"] == image.shape[0]  # its check is of all latents
    page.context.close()
    server.shutdown()
    server.server_close()


def test_the_order_is_part_of_the_fingerprint():
    torch.manual_seed(0)
    ours, other = (Bitstream(random_model(micro(by_rows=by_rows), seed=0)) for by_rows in (True, False))
    x = tensor(IMAGES[2])
    mine, theirs = ours.encode_fully(x), other.encode_fully(x)
    assert torch.equal(mine.y_hat, theirs.y_hat)
    assert 0 <= len(mine.data) - len(theirs.data) <= 3
    with pytest.raises(UserError, match="another checkpoint"):
        other.decode(mine.data)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_payload_is_read_as_it_was_written(height, width, rows, chance):
    random = np.random.default_rng(chance.randrange(2**32))
    z = random.integers(-9, 9, (3, height, width))
    coded = random.random((4, rows * height, width)) < 0.6
    where, levels = np.flatnonzero(coded), random.integers(0, 64, coded.sum())
    values = np.rint(random.normal(size=len(levels)) * 3 * np.exp(levels / 10)).astype(np.int64)
    writer = PayloadWriter(TABLES, TABLES, rows)
    writer.write_z(z)
    writer.write_y(values, levels, where, coded.shape[1:])
    payload = writer.getvalue()
    reader = PayloadReader(payload, TABLES, TABLES, rows)
    assert np.array_equal(reader.read_z(z.shape), z)
    assert np.array_equal(reader.read_y(levels, where, coded.shape[1:]), values)
    assert len(payload) <= writer.bits / 8 + 5


@pytest.mark.parametrize("payload", [b"", b"\x80", b"\xff\xff\xff", b"12\x05"], ids=["none", "open", "long", "many"])
def test_a_length_of_z_that_cannot_be_is_refused(payload):
    with pytest.raises(AssertionError):
        PayloadReader(payload, TABLES, TABLES, 4)


def test_a_damaged_payload_is_refused_behind_a_right_file_check():
    bitstream, random = Bitstream(random_model(micro())), np.random.default_rng(0)
    data = bitstream.encode(tensor(IMAGES[2]))
    stream = wire.unpack(data, bitstream.fingerprint, has_level=True)
    for number in range(60):
        payload = bytearray(stream.payload)
        at = len(payload) - 1 - number % 3 if number < 12 else random.integers(len(payload))  # the length of z, or any
        payload[at] ^= 1 << random.integers(8)
        cut = payload[: random.integers(len(payload))] if number % 5 == 4 else payload
        with pytest.raises(UserError, match="the decoded latents are not the sender's"):
            bitstream.decode(wire.pack(stream._replace(payload=bytes(cut)), bitstream.fingerprint))

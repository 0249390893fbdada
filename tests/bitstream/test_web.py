"""The site in headless Chromium: streams and latents are those of the Python package, at both widths of a screen."""

import functools
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning.bitstream.export import golden_cases
from aeic_lightning.bitstream.stream import Bitstream, dial_position, reconstruct
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.web.site import check_runtime, fetch_runtime, write_site


@pytest.fixture(scope="module")
def model(tiled):
    return tiled


@pytest.fixture(scope="module")
def bitstream(model):
    return Bitstream(model)


@pytest.fixture(scope="module")
def site(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_site(exported, folder, fetch_runtime())
    return folder


@pytest.fixture(scope="module")
def url(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def opened(chromium, url, width: int, height: int, phone: bool):
    context = chromium.new_context(viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith((url, "blob:", "data:")) else page.problems.append(r.url))
    page.goto(url)
    page.wait_for_selector("html[data-ready=true]", timeout=120_000)
    return page


@pytest.fixture(scope="module")
def page(chromium, url):
    page = opened(chromium, url, 1280, 800, False)
    yield page
    page.context.close()


@pytest.fixture
def phone(chromium, url):
    page = opened(chromium, url, 390, 844, True)
    yield page
    page.context.close()


CALL = """async ([task, given]) => {
  const array = (value) => value && value.kind ? new globalThis[value.kind](value.data) : value;
  const plain = (value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
  for (const name of ["y", "z"]) if (given[name]) given[name].data = array(given[name].data);
  if (given.pixels) given.pixels.data = array(given.pixels.data);
  given.data = array(given.data);
  const { result } = await window.call(task, given);
  return Object.fromEntries(Object.entries(result).map(([name, value]) => [name, plain(value)]));
}"""


def call(page, task, **given):
    def sent(value):
        if isinstance(value, bytes):
            return {"kind": "Uint8Array", "data": list(value)}
        if isinstance(value, torch.Tensor):
            data = {"kind": "Float32Array", "data": [float(v) for v in value.flatten()]}
            return {"data": data, "dims": list(value.shape)}
        return value

    return page.evaluate(CALL, [task, {name: sent(value) for name, value in given.items()}])


def pixels(image: np.ndarray) -> dict:
    data = np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], 2).flatten()
    kind = {"kind": "Uint8ClampedArray", "data": data.tolist()}
    return {"width": image.shape[1], "height": image.shape[0], "data": kind}


def waves(height: int, width: int, seed: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(-20, 20, (height, width, 3))
    wave = np.stack([np.sin(y / (5 + c) + seed) * np.cos(x / (7 - c)) for c in range(3)], 2)
    return (128 + 90 * wave + noise).clip(0, 255).astype(np.uint8)


def test_golden_latents_make_the_same_streams_and_back(page, bitstream):
    """Among them escapes, skipped symbols, a single pixel and clamped values."""
    for height, width, y, z in golden_cases(bitstream).values():
        dial = dial_position(None, bitstream.levels)
        expected = bitstream.encode_latents(y, z, height, width, dial)
        made = call(page, "encodeLatents", y=y, z=z, height=height, width=width, dial=dial)
        assert bytes(made["data"]) == expected.data
        back = call(page, "decode", data=expected.data)
        assert np.array_equal(np.float32(back["yHat"]), expected.y_hat.flatten().numpy())
        assert np.array_equal(np.float32(back["zHat"]), expected.z_hat.flatten().numpy())


@pytest.mark.parametrize(("size", "dial"), [((65, 130), 0), ((280, 330), 255), ((1, 1), 128)])
def test_photographs_cross_in_both_directions(page, bitstream, model, size, dial):
    image = waves(*size, seed=dial)
    made = call(page, "encode", pixels=pixels(image), dial=dial, most=0)
    here = bitstream.decode(bytes(made["data"]))  # its check value is of the latents in the browser
    assert np.array_equal(here.y_hat.flatten().numpy(), np.float32(made["yHat"]))
    level = dial * (bitstream.levels - 1) / 255
    data = bitstream.encode(from_uint8(torch.from_numpy(image).permute(2, 0, 1))[None], level)
    there = call(page, "decode", data=data)
    there = {name: {"kind": "Float32Array", "data": v} if name == "yHat" else v for name, v in there.items()}
    shown = page.evaluate(
        """async (latents) => {
          latents.yHat = new Float32Array(latents.yHat.data);
          return Array.from((await window.call("picture", { latents })).result.data);
        }""",
        there,
    )
    picture = np.array(shown).reshape(*size, 4)[..., :3]
    expected = reconstruct(model, bitstream.decode(data)).permute(1, 2, 0).numpy()
    assert np.abs(picture - expected.astype(int)).max() <= 1


def test_a_size_is_kept(page, bitstream):
    image = waves(96, 128, seed=3)
    smallest = len(call(page, "encode", pixels=pixels(image), dial=0, most=0)["data"])
    largest = len(call(page, "encode", pixels=pixels(image), dial=255, most=0)["data"])
    most = (smallest + largest) // 2
    made = call(page, "encode", pixels=pixels(image), dial=0, most=most)
    assert smallest <= len(made["data"]) <= most
    next_one = call(page, "encode", pixels=pixels(image), dial=made["dial"] + 1, most=0)
    assert len(next_one["data"]) > most
    with pytest.raises(Exception, match=f"1 bytes are too few: the smallest file of this photograph has {smallest}"):
        call(page, "encode", pixels=pixels(image), dial=0, most=1)


def test_damaged_files_are_refused(page, bitstream):
    data = bitstream.encode(from_uint8(torch.from_numpy(waves(64, 64, 1)).permute(2, 0, 1))[None])
    other = bytes([*data[:3], data[3] ^ 1, *data[4:]])
    for wrong, reason in [
        (b"x" * 40, "no .aeic file"), (data[:5], "within its header"), (other, "another model"),
        (data[:-1] + bytes([data[-1] ^ 1]), "check value of the file"), (data + b"x", "check value of the file"),
    ]:  # fmt: skip
        with pytest.raises(Exception, match=reason):
            call(page, "decode", data=wrong)


@pytest.mark.parametrize("screen", ["page", "phone"])
def test_a_visitor_compresses_saves_and_opens(screen, request, bitstream, tmp_path):
    page = request.getfixturevalue(screen)
    image = waves(120, 180, seed=5)
    Image.fromarray(image).save(tmp_path / "photo.png")
    page.set_input_files("#photo", tmp_path / "photo.png")
    page.wait_for_function("document.getElementById('said').textContent.includes('photo.png: 180 x 120 pixels')")
    page.click("#go")
    page.wait_for_function("document.getElementById('said').textContent.includes('decoded in')", timeout=60_000)
    said = page.text_content("#said")
    with page.expect_download() as download:
        page.click("#save")
    data = Path(download.value.path()).read_bytes()
    assert f"180 x 120: {len(data)} bytes, {8 * len(data) / 180 / 120:.4f} bpp, PSNR " in said
    decoded = bitstream.decode(data)
    assert (decoded.height, decoded.width) == (120, 180)
    (tmp_path / "photo.aeic").write_bytes(data)
    page.set_input_files("#stream", tmp_path / "photo.aeic")
    page.wait_for_function("!document.getElementById('said').textContent.includes('PSNR')", timeout=60_000)
    page.wait_for_function("document.getElementById('said').textContent.includes('decoded in')", timeout=60_000)
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#photo", tmp_path / "text.png")
    page.wait_for_selector("#said.bad")
    assert page.text_content("#said") == "text.png is no photograph that this browser can read"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.problems == []


def test_a_second_visit_loads_nothing_large(chromium, url):
    context = chromium.new_context()
    for visit in range(2):
        page, loaded = context.new_page(), []
        page.on("request", lambda r, loaded=loaded: loaded.append(r.url))
        page.goto(url)
        page.wait_for_selector("html[data-ready=true]", timeout=120_000)
        packed = [name for name in loaded if name.endswith(".gz")]
        assert len(packed) == (0 if visit else 7)
        page.close()
    context.close()


def test_a_site_names_what_it_loads(site, bitstream):
    document = json.loads((site / "codec.json").read_text())
    assert document["manifest"]["fingerprint"] == bitstream.fingerprint.hex()
    assert (document["manifest"]["levels"], document["tables"]["channels"]) == (3, 32)
    for file in document["files"].values():
        assert (site / file["url"]).stat().st_size == file["bytes"]


def test_another_runtime_is_refused(tmp_path, capsys):
    (tmp_path / "ort.tgz").write_bytes(b"another")
    with pytest.raises(UserError, match="is not onnxruntime-web"):
        check_runtime(tmp_path / "ort.tgz")
    words = ["export", "--checkpoint", "small-student", "--web", "-o", str(tmp_path / "site")]
    assert main([*words, "--runtime", str(tmp_path / "ort.tgz")]) == 2
    assert "is not onnxruntime-web" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_without_npm_the_package_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no npm: .* name the file with --runtime"):
        fetch_runtime()

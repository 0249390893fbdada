"""The page to try the codec: in a browser at two widths, its limits, and that it is for its own machine alone."""

import base64
import copy
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage
import torch
import uvicorn
from fastapi import HTTPException
from PIL import Image

from aeic_lightning.cli import main
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.serve import trial
from aeic_lightning.serve.app import Turns, make_app

PHOTO = Path(skimage.__file__).parent / "data" / "chelsea.png"
URL = r"(http://127\.0\.0\.1:(\d+))  "


@pytest.fixture(scope="module")
def url():
    """The application on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app({"small-teacher": "small-teacher"}), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.open(PHOTO).resize((192, 128)).save(path)
    return path


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def opened(chromium, url, width: int = 1280, height: int = 900, phone: bool = False):
    """The page; what goes wrong is in `page.problems`."""
    context = chromium.new_context(viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone)
    page = context.new_page()
    page.problems = []
    page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else page.problems.append(r.url))
    page.goto(url)
    page.wait_for_selector("#samples button")
    return page


def table(page) -> list[list[str]]:
    """Name, bytes, bpp, PSNR and LPIPS of each row."""
    cells = [
        [cell.inner_text() for cell in row.query_selector_all("td")] for row in page.query_selector_all("#rows tr")
    ]
    return [row[2:7] for row in cells]


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 900, False), (390, 844, True)])
def test_a_photo_is_shown_beside_other_codecs(chromium, url, photo, width, height, phone, tmp_path):
    page = opened(chromium, url, width, height, phone)
    assert page.is_disabled("#go"), "there is nothing to compress yet"
    assert page.inner_text("#rate").startswith("0.030 ")
    page.fill("#bpp", "500")
    page.set_input_files("#file", photo)
    page.click("#go")
    page.wait_for_selector("#result[data-done='1']", timeout=60_000)

    rows = table(page)
    shown = ["original", "small-teacher", "small-teacher, realism 0.5", "JPEG", "WebP", "AVIF"]
    assert [re.match(r"[\w-]+(, realism 0.5)?", row[0])[0] for row in rows] == shown
    sizes = [int(row[1]) for row in rows[1:]]
    assert sizes[0] == sizes[1], "two pictures of one file"
    assert all(size <= sizes[0] for row, size in zip(rows[1:], sizes, strict=True) if "*" not in row[0])
    bpp = float(re.match(r"[\d.]+", page.inner_text("#rate"))[0])
    assert 0 < sizes[0] * 8 / (192 * 128) <= bpp + 5e-4
    assert page.is_hidden("#floor"), "the rate was reached"

    picture = decode(page.get_attribute("#right", "src"))
    original = Image.open(photo).convert("RGB")
    assert picture.size == original.size == (192, 128)
    x, x_hat = (torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in (original, picture))
    measured = ImageQuality(ms_ssim=False, lpips=("lite2",), dists=()).row("photo", x, x_hat)
    assert rows[1][3:] == [f"{measured['psnr']:.2f}", f"{measured['lpips_lite2']:.3f}"]

    page.check("#rows tr:nth-child(2) input[name=left]")
    page.check("#rows tr:nth-child(4) input[name=right]")
    assert page.inner_text("#left-name") == "small-teacher"
    assert page.inner_text("#right-name").startswith("JPEG")
    assert page.get_attribute("#right", "src") != page.get_attribute("#left", "src")
    page.fill("#split", "20")
    assert page.evaluate("getComputedStyle(document.querySelector('#front')).clipPath") == "inset(0px 0px 0px 20%)"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off at the side"
    for control in ("#go", "#bpp", "#model", "#zoom", "#picture", "#save"):
        assert page.locator(control).bounding_box()["height"] >= 44, "large enough for a finger"
    last = page.locator("#rows tr:last-child").bounding_box()
    assert last["y"] + last["height"] <= height, "the rivals are seen without scrolling"

    page.click("#zoom")
    assert "matrix(2, 0, 0, 2, " in page.evaluate("getComputedStyle(document.querySelector('#left')).transform")
    with page.expect_download() as download:
        page.click("#picture")
    saved = Image.open(download.value.path())
    assert saved.width == 2 * max(192, 320) + 8
    assert saved.height > 128, "the caption is below"
    with page.expect_download() as download:
        page.click("#save")
    stream = Path(download.value.path()).read_bytes()
    assert len(stream) == sizes[0]
    assert page.problems == []
    (tmp_path / "kept.aeic").write_bytes(stream)
    page.set_input_files("#file", tmp_path / "kept.aeic")
    page.wait_for_selector("#result[data-done='2']", timeout=60_000)
    assert [row[:2] for row in table(page)] == [[name, str(len(stream))] for name in shown[1:3]]
    assert np.array_equal(decode(page.get_attribute("#left", "src")), picture)
    page.context.close()


def decode(url: str) -> Image.Image:
    """The picture of a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_sample_is_coded_by_a_click_at_the_lowest_rate_that_the_model_reaches(chromium, url):
    page = opened(chromium, url)
    assert page.locator("#samples button").count() == 6
    page.fill("#bpp", "0")
    said = []
    page.expose_function("noted", lambda text: said.append(text))
    page.evaluate("new MutationObserver(() => noted(document.querySelector('#status').textContent))"
                  ".observe(document.querySelector('#status'), {childList: true})")  # fmt: skip
    page.click("#samples button[title=chelsea]")
    page.wait_for_selector("#result[data-done='1']", timeout=120_000)
    model = table(page)[1]
    lowest = len(Codec.from_pretrained("small-teacher").compress(Image.open(PHOTO), level=0))
    assert int(model[1]) == lowest > 0.02 * 300 * 451 / 8
    assert page.inner_text("#floor").startswith(
        f"{8 * lowest / (300 * 451):.4f} bpp is the lowest rate that small-teacher"
    )
    assert any(text.startswith("small-teacher: compressing") for text in said)
    assert any(text.startswith("AVIF: looking for") for text in said)
    assert page.problems == []
    page.context.close()


def test_what_is_wrong_is_said_on_the_page(chromium, url, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page = opened(chromium, url)
    page.set_input_files("#file", tmp_path / "notes.png")
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert "cannot decode the photograph" in page.inner_text("#status")
    assert page.is_hidden("#result")
    page.context.close()


def test_limits(url, photo):
    data, query = photo.read_bytes(), "/trial?model=small-teacher&bpp="
    assert ask(url + query + "0.1", bytes(trial.MAX_FILE + 1))[0] == 413
    assert ask(url + query + "0.001", data)[0] == 422
    assert ask(url + query + "nan", data)[0] == 422
    assert ask(url + "/trial?model=/etc/passwd&bpp=0.1", data)[0] == 404
    assert ask(url + "/sample/..%2F..%2Fetc%2Fpasswd")[0] == 404
    buffer = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(buffer, "PNG")
    assert "more than" in json.loads(ask(url + query + "0.1", buffer.getvalue())[1])["error"]


def test_streams_that_cannot_be_opened(url):
    assert "no .aeic stream" in json.loads(ask(url + "/open", b"x")[1])["error"]
    other = Codec.from_pretrained("small-student").compress(np.zeros((32, 32, 3), np.uint8), level=0)
    assert "none of small-teacher" in json.loads(ask(url + "/open", other)[1].splitlines()[-1])["error"]


def test_a_model_with_both_decoders_shows_both_pictures_of_one_file(photo):
    codec = copy.deepcopy(Codec.from_pretrained("small-teacher"))
    codec.model.realistic = copy.deepcopy(codec.model.decoder)
    with torch.no_grad():
        for parameter in codec.model.realistic.vae.parameters():
            parameter.mul_(1.02)
    events = [*trial.trial(codec, "m", trial.prepare(photo.read_bytes()), 0.2)]
    faithful, realistic = (event["codec"] for event in events if event.get("codec", {}).get("name", "").startswith("m"))
    assert realistic["name"] == "m, realism 0.5"
    assert realistic["bytes"] == faithful["bytes"]
    assert realistic["stream"] is None
    stream = base64.b64decode(faithful["stream"].partition(",")[2])
    for shown, realism in ((faithful, 0.0), (realistic, 0.5)):
        data = base64.b64decode(shown["picture"].partition(",")[2])
        assert (np.asarray(Image.open(io.BytesIO(data))) == codec.decompress_array(stream, realism)).all()
    again = [event["codec"] for event in trial.opened(codec, "m", stream) if "codec" in event]
    assert [one["name"] for one in again] == ["m", "m, realism 0.5"]
    assert [one["picture"] for one in again] == [faithful["picture"], realistic["picture"]]


def test_large_photographs_are_reduced():
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 3000), "teal").save(buffer, "PNG")
    assert trial.prepare(buffer.getvalue()).shape == (768, 1024, 3)


def test_other_hosts_and_other_pages_are_refused(url):
    assert ask(url + "/")[0] == 200
    assert ask(url + "/", Host="example.org")[0] == 400
    assert ask(url + "/models", Origin="http://example.org")[0] == 403
    assert ask(url + "/models", Origin=url)[0] == 200
    for hidden in ("/docs", "/openapi.json", "/../app.py"):
        assert ask(url + hidden)[0] == 404


def test_one_at_a_time_and_few_that_wait():
    entered, leave = threading.Event(), threading.Event()

    def slow():
        entered.set()
        leave.wait(10)
        yield {"doing": "first"}

    turns = Turns(2)
    first = turns.run(slow)
    entered.wait(10)
    second = turns.run(lambda: iter([{"doing": "second"}]))
    assert next(second) == {"doing": "waiting for the photographs of others"}
    with pytest.raises(HTTPException, match="503"):
        turns.run(slow)
    leave.set()
    assert list(first) == [{"doing": "first"}, {"done": True}]
    assert list(second) == [{"doing": "second"}, {"done": True}]
    assert list(turns.run(lambda: iter(()))) == [{"done": True}], "the places are free again"


def test_an_error_gives_the_turn_back(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    turns = Turns(1)

    def fails(error):
        raise error
        yield

    assert list(turns.run(lambda: fails(UserError("no photograph")))) == [{"error": "no photograph"}]
    assert list(turns.run(lambda: fails(ValueError("a fault")))) == [], "the page says that the server stopped"
    assert list(turns.run(lambda: iter(()))) == [{"done": True}]


def test_a_model_is_loaded_once_by_one_of_many_that_ask_for_it_at_once():
    loads, most = [], []

    @lru_cache
    def load(name):
        most.append(1)
        loads.append(len(most))
        time.sleep(0.05)
        most.pop()
        return object()

    turns = Turns(30)
    waiting = [turns.run(lambda: iter([{"codec": id(load("a"))}])) for _ in range(30)]
    said = [[event["codec"] for event in events if "codec" in event] for events in waiting]
    assert loads == [1]
    assert said == [[id(load("a"))]] * 30


def answers(url: str) -> None:
    for _ in range(100):
        try:
            assert ask(f"{url}/models")[0] == 200
            break
        except urllib.error.URLError:
            time.sleep(0.1)


def test_the_command_listens_on_this_machine_alone_and_ends_on_ctrl_c():
    """Also in the background of a script, where the shell has SIGINT ignored."""
    command = [
        "sh",
        "-c",
        "trap '' INT; exec \"$@\"",
        "sh",
        sys.executable,
        "-m",
        "aeic_lightning",
        "serve",
        "--port=0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = re.match(URL, process.stdout.readline())
    assert found, process.stderr.read()
    answers(found[1])
    with socket.socket() as other, pytest.raises(OSError):
        other.connect(("127.0.0.2", int(found[2])))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stderr.read() == "stopped\n"


def test_the_command_ends_on_sigterm(forked, tmp_path):
    said, errors = tmp_path / "said", tmp_path / "errors"
    process = forked.command("serve", "--port=0", output=said, errors=errors)
    while not (said.exists() and (found := re.match(URL, said.read_text()))):
        assert process.poll() is None, errors.read_text()
        time.sleep(0.05)
    answers(found[1])
    process.terminate()
    assert process.wait(20) == 0
    assert errors.read_text() == "stopped\n"


def test_a_port_that_is_taken_is_an_error_of_one_line(url, capfd):
    port = url.rpartition(":")[2]
    assert main(["serve", "--port", port]) == 2
    assert capfd.readouterr().err.startswith(f"error: port {port} of 127.0.0.1 cannot be had")


def test_the_address_is_printed_and_can_be_opened_before_anything_is_loaded(monkeypatch, capfd):
    opened = []

    def make_app(models, device):
        address = re.match(r"http://([\d.]+):(\d+)", capfd.readouterr().out)
        socket.create_connection((address[1], int(address[2])), timeout=5).close()
        opened.append(next(iter(models)))
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "aeic_lightning.serve.app", SimpleNamespace(make_app=make_app))
    main(["serve", "--port", "0"])
    assert opened == ["small-student"], "the page begins with the default"

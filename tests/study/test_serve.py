"""The page to try the codec: in a browser at two widths, its limits, and that it is for its own machine alone."""

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

import pytest
import skimage
import uvicorn
from fastapi import HTTPException
from PIL import Image

from aeic_lightning.cli import main
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


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 900, False), (390, 844, True)])
def test_a_photo_is_shown_beside_other_codecs(chromium, url, photo, width, height, phone):
    context = chromium.new_context(viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone)
    page, problems = context.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else problems.append(r.url))
    page.goto(url)
    assert page.is_disabled("#go"), "there is nothing to compress yet"
    page.set_input_files("#file", photo)
    page.click("#go")
    page.wait_for_selector("#result:visible", timeout=60_000)

    rows = [row.inner_text().split("\t") for row in page.query_selector_all("#rows tr")]
    assert [row[0].strip(" *") for row in rows] == ["small-teacher", "JPEG", "WebP", "AVIF"]
    sizes = [int(row[1]) for row in rows]
    assert all(size <= sizes[0] for row, size in zip(rows, sizes, strict=True) if "*" not in row[0])
    bpp = float(re.match(r"[\d.]+", page.inner_text("#rate"))[0])
    assert 0 < sizes[0] * 8 / (192 * 128) <= bpp + 5e-4

    first = page.get_attribute("#after", "src")
    page.check("#rows tr:nth-child(2) input")
    assert page.inner_text("#which") == "JPEG"
    assert page.get_attribute("#after", "src") != first
    page.fill("#split", "20")
    assert page.evaluate("getComputedStyle(document.querySelector('#after')).clipPath") == "inset(0px 0px 0px 20%)"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off at the side"
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('.wide'))"), "nor the table"
    assert page.evaluate("document.querySelector('#before').naturalWidth") == 192
    for control in ("#go", "#bpp", "#model"):
        assert page.locator(control).bounding_box()["height"] >= 44, "large enough for a finger"
    assert problems == []
    context.close()


def test_what_is_wrong_is_said_on_the_page(chromium, url, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page = chromium.new_page()
    page.goto(url)
    page.set_input_files("#file", tmp_path / "notes.png")
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert "cannot decode the photograph" in page.inner_text("#status")
    assert page.is_hidden("#result")
    page.close()


def test_limits(url, photo):
    data, query = photo.read_bytes(), "/trial?model=small-teacher&bpp="
    assert ask(url + query + "0.1", bytes(trial.MAX_FILE + 1))[0] == 413
    assert ask(url + query + "0.001", data)[0] == 422
    assert ask(url + query + "nan", data)[0] == 422
    assert ask(url + "/trial?model=/etc/passwd&bpp=0.1", data)[0] == 404
    status, said = ask(url + query + "0.021", data)
    assert status == 422
    assert "too few" in json.loads(said)["detail"]
    buffer = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(buffer, "PNG")
    status, said = ask(url + query + "0.1", buffer.getvalue())
    assert status == 422
    assert "more than" in said


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


def test_one_at_a_time_and_few_that_wait(monkeypatch):
    entered, leave = threading.Event(), threading.Event()

    def slow(*arguments):
        entered.set()
        leave.wait(10)
        return {}

    monkeypatch.setattr("aeic_lightning.serve.app.trial", slow)
    turns = Turns(1)
    first = threading.Thread(target=turns.run, args=(str, "a"))
    first.start()
    entered.wait(10)
    with pytest.raises(HTTPException, match="503"):
        turns.run(str, "a")
    leave.set()
    first.join()
    assert turns.run(str, "a") == {}


def test_a_model_is_loaded_once_by_one_of_many_that_ask_for_it_at_once(monkeypatch):
    loads, most = [], []

    def load(name):
        most.append(1)
        loads.append(len(most))
        time.sleep(0.05)
        most.pop()
        return object()

    monkeypatch.setattr("aeic_lightning.serve.app.trial", lambda codec, *_: {"codec": id(codec)})
    turns, cached, answers = Turns(30), lru_cache(load), []
    threads = [threading.Thread(target=lambda: answers.append(turns.run(cached, "a"))) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [1]
    assert len(answers) == 30
    assert all(answer == answers[0] for answer in answers)


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
        opened.append(address[0])
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "aeic_lightning.serve.app", SimpleNamespace(make_app=make_app))
    main(["serve", "--port", "0"])
    assert len(opened) == 1

"""The board: an honest submission stands, and more than 20 kinds of false ones are refused with the reason."""

import csv
import json
import math
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from aeic_lightning.board import isolation
from aeic_lightning.board.check import check
from aeic_lightning.board.hand_in import hand_in
from aeic_lightning.board.isolation import CommandError, Limits, run
from aeic_lightning.board.submission import read_submission
from aeic_lightning.board.table import Settings, open_board_images, published_bd_rates
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.study.measurement import measurement

NAMES = ("a", "b", "c")
WIDTH, HEIGHT = 24, 16
PNG = '''
import struct, zlib
def write_png(path, width, height, pixels, depth=8, kind=2):
    row = len(pixels) // height
    raw = b"".join(b"\\0" + pixels[y * row:(y + 1) * row] for y in range(height))
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    open(path, "wb").write(b"\\x89PNG\\r\\n\\x1a\\n" + parts)
def decode(data):
    """Every second pixel, each shown as four, at 16 levels."""
    width, height = struct.unpack(">HH", data[:4])
    small = zlib.decompress(data[4:])
    rows = [small[y * width * 3 // 2:(y + 1) * width * 3 // 2] for y in range(height // 2)]
    wide = [b"".join(row[x:x + 3] * 2 for x in range(0, len(row), 3)) for row in rows]
    return width, height, b"".join(row * 2 for row in wide)
'''
HONEST = PNG + 'write_png("picture.png", *decode(open("stream", "rb").read()))\n'
ENCODE = """
import struct, zlib, numpy as np
from PIL import Image
x = np.array(Image.open("image.png"))
small = x[::2, ::2] // 16 * 16
open("stream", "wb").write(struct.pack(">HH", x.shape[1], x.shape[0]) + zlib.compress(small.tobytes(), 9))
"""


def pixels(number: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([128 + 100 * np.sin((x * (c + 1) + y * number) / 7 + number) for c in range(3)], 2).astype(np.uint8)


def stream_of(x: np.ndarray) -> bytes:
    small = x[::2, ::2] // 16 * 16
    return struct.pack(">HH", x.shape[1], x.shape[0]) + zlib.compress(small.tobytes(), 9)


def shown(x: np.ndarray) -> np.ndarray:
    return (x[::2, ::2] // 16 * 16).repeat(2, 0).repeat(2, 1)


def psnr(x: np.ndarray, x_hat: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((x.astype(float) - x_hat) ** 2))


def write_claims(folder: Path, psnrs: list[float], digits: int = 3) -> None:
    sizes = [len((folder / "streams" / f"{name}.bin").read_bytes()) for name in NAMES]
    bpps = [8 * size / (WIDTH * HEIGHT) for size in sizes]
    with (folder / "claims.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "bytes", "bpp", "psnr"])
        for name, size, bpp, value in zip(NAMES, sizes, bpps, psnrs, strict=True):
            table.writerow([name, size, f"{bpp:.5f}", f"{value:.{digits}f}"])
        table.writerow(["mean", f"{sum(sizes) / 3:.2f}", f"{sum(bpps) / 3:.5f}", f"{sum(psnrs) / 3:.{digits}f}"])


@pytest.fixture
def board(tmp_path) -> Path:
    """A folder with images, settings and one honest submission."""
    folder, own = tmp_path / "board", tmp_path / "board" / "honest"
    for part in (folder / "images", own / "streams", own / "decoder"):
        part.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.fromarray(pixels(number)).save(folder / "images" / f"{name}.png")
        (own / "streams" / f"{name}.bin").write_bytes(stream_of(pixels(number)))
    settings = {"images": "images", "rates": [2.0], "rivals": ["jpeg", "webp/2"], "backbones": [], "seconds": 60}
    (folder / "board.yaml").write_text(yaml.safe_dump(settings))
    (own / "decoder" / "decode.py").write_text(HONEST)
    (own / "submission.yaml").write_text(yaml.safe_dump({"decode": "python -I -S decoder/decode.py"}))
    write_claims(own, [psnr(pixels(n), shown(pixels(n))) for n in range(3)])
    return folder


def reasons_of(board: Path, limits: Limits | None = None, earlier: dict[str, str] | None = None) -> list[str]:
    images = open_board_images(Settings(images="images"), board)
    try:
        submission = read_submission(board / "honest")
    except UserError as error:
        return [str(error)]
    hidden = [*images.files.paths, board / "other"]
    limits = limits or Limits(60, 2 << 30, 1 << 20)
    return check(submission, images, measurement([]), {} if earlier is None else earlier, hidden, limits=limits).reasons


def change(board: Path, file: str, old: str, new: str) -> None:
    path = board / "honest" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def decoder(board: Path, code: str) -> None:
    (board / "honest" / "decoder" / "decode.py").write_text(PNG + code)


def setting(board: Path, **settings) -> None:
    path = board / "honest" / "submission.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


def claim(board: Path, image: str, column: str, text: str) -> None:
    path = board / "honest" / "claims.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row[column] = text if row["image"] == image else row.get(column, "")
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def claimed(board: Path, image: str, column: str) -> str:
    with (board / "honest" / "claims.csv").open(newline="") as file:
        return next(row[column] for row in csv.DictReader(file) if row["image"] == image)


def test_an_honest_submission_is_as_it_claims(board):
    assert reasons_of(board) == []


# ---------------------------------------------------------------------- what the files show


def drop(path: str):
    return lambda board: (board / "honest" / path).unlink()


def reuse(board: Path) -> None:
    shutil.copy(board / "honest" / "streams" / "a.bin", board / "honest" / "streams" / "b.bin")


def link_out(board: Path) -> None:
    (board / "beside.bin").write_bytes(b"x")
    (board / "honest" / "decoder" / "more.bin").symlink_to(board / "beside.bin")


def without_header(board: Path) -> None:
    claim(board, "b", "bytes", str(int(claimed(board, "b", "bytes")) - 4))


def originals_as_bmp(board: Path) -> None:
    Image.fromarray(pixels(1)).save(board / "honest" / "decoder" / "lookup.bmp")


SEEN = {
    "an image has no stream": (drop("streams/b.bin"), "1 of 3 images have no stream, such as b"),
    "a stream of no image": (lambda b: (b / "honest/streams/d.bin").write_bytes(b"x"), "belongs to no image: d"),
    "an empty stream": (lambda b: (b / "honest/streams/a.bin").write_bytes(b""), "stream of a is empty"),
    "one image's stream reused": (reuse, "a and b have the same stream"),
    "a size without the header": (without_header, r"b: \d+ bytes are claimed, its file has \d+, header included"),
    "an image left out of the table": (
        lambda b: change(b, "claims.csv", "c," + claimed(b, "c", "bytes"), "d," + claimed(b, "c", "bytes")),
        "have no row of claims.csv, such as c",
    ),
    "an image twice in the table": (lambda b: change(b, "claims.csv", "b,", "a,"), "two rows of a"),
    "no means": (lambda b: change(b, "claims.csv", "mean,", "a mean,"), "no row of the means"),
    "no table": (drop("claims.csv"), "claims.csv cannot be read"),
    "a link out of the submission": (link_out, "decoder/more.bin is a link that leads out"),
    "an original in the decoder": (originals_as_bmp, "decoder/lookup.bmp is the original of b"),
    "a stream in the decoder": (
        lambda b: shutil.copy(b / "honest/streams/c.bin", b / "honest/decoder/weights.bin"),
        "decoder/weights.bin is one of the streams",
    ),
    "no decode command": (lambda b: setting(b, decode=None), "decode is a command"),
    "a misspelt setting": (lambda b: setting(b, enviroment="venv"), "enviroment is no setting; did you mean envir"),
    "no environment": (lambda b: setting(b, environment="venv"), "is no virtual environment"),
}


@pytest.mark.parametrize("kind", SEEN)
def test_refused_before_anything_runs(board, kind, monkeypatch):
    monkeypatch.setattr("aeic_lightning.board.check.run", lambda *a, **k: pytest.fail("a command was run"))
    falsify, reason = SEEN[kind]
    falsify(board)
    found = reasons_of(board)
    assert any(re.search(reason, said) for said in found), found


def test_streams_of_another_submission_are_refused(board):
    earlier: dict[str, str] = {}
    shutil.copytree(board / "honest", board / "copy")
    assert reasons_of(board, earlier=earlier) == []
    change(board, "submission.yaml", "decode:", "name: another\ndecode:")
    assert reasons_of(board, earlier=earlier) == ["its streams are those of honest"]


# ---------------------------------------------------------------------- what the table claims


def of_floats(board: Path) -> None:
    """Figures of the picture before it was rounded to 8 bits."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (HEIGHT, WIDTH, 3))
    values = [psnr(pixels(n), shown(pixels(n)) + noise) for n in range(3)]
    write_claims(board / "honest", values, digits=4)


def up(column: str, image: str = "mean"):
    def falsify(board: Path) -> None:
        text = claimed(board, image, column)
        step = 10.0 ** -len(text.partition(".")[2])
        claim(
            board, image, column, f"{float(text) + (step if column == 'psnr' else -step):.{len(text.split('.')[1])}f}"
        )

    return falsify


def best_two(board: Path) -> None:
    claim(board, "mean", "psnr", f"{max(float(claimed(board, n, 'psnr')) for n in NAMES):.3f}")


def padded(board: Path) -> None:
    for name in NAMES:
        claim(board, name, "bpp", f"{8 * int(claimed(board, name, 'bytes')) / 32**2:.5f}")


CLAIMED = {
    "metrics of floats": (of_floats, r"psnr of a: \d+\.\d{4} is claimed, .* is measured"),
    "quality rounded up": (up("psnr"), "psnr of mean"),
    "quality of one image rounded up": (up("psnr", "b"), "psnr of b"),
    "rate rounded down": (up("bpp"), "bpp of mean"),
    "a mean of the best images": (best_two, "psnr of mean"),
    "padding among the pixels": (padded, r"bpp of a: .* is claimed, .* is measured \(and 2 more\)"),
    "too few decimals": (lambda b: claim(b, "mean", "psnr", "30"), "at least 2 decimals"),
    "no number": (lambda b: claim(b, "a", "psnr", "nan"), "psnr of a: nan is claimed; write a number"),
    "a cell left empty": (lambda b: claim(b, "a", "psnr", ""), "psnr of a: nothing is claimed"),
    "a metric that is not measured": (lambda b: claim(b, "a", "lpips", "0.1000"), "lpips is claimed and not measured"),
    "a likelihood for a rate": (lambda b: claim(b, "a", "bpp_estimate", "0.01"), "files, not of likelihoods"),
    "no rate": (lambda b: change(b, "claims.csv", ",bpp,", ",rate,"), "claims no bpp, or no metric"),
}


@pytest.mark.parametrize("kind", CLAIMED)
def test_refused_for_its_table(board, kind, monkeypatch):
    def in_process(command, scratch, **settings):
        data = (scratch / "stream").read_bytes()
        small = np.frombuffer(zlib.decompress(data[4:]), np.uint8).reshape(HEIGHT // 2, WIDTH // 2, 3)
        Image.fromarray(small.repeat(2, 0).repeat(2, 1)).save(scratch / "picture.png")

    monkeypatch.setattr("aeic_lightning.board.check.run", in_process)
    falsify, reason = CLAIMED[kind]
    falsify(board)
    found = reasons_of(board)
    assert any(re.search(reason, said) for said in found), found


# ---------------------------------------------------------------------- what the decode command does

SHOW = "write_png('picture.png', *decode(data))\n"
READ = "data = open('stream', 'rb').read()\n"


def beside(board: Path) -> str:
    return READ + f"open({str(board / 'honest' / 'streams' / 'a.bin')!r}, 'rb').read(); " + SHOW


def original(board: Path) -> str:
    return READ + f"assert open({str(board / 'images' / 'a.png')!r}, 'rb').read(), 'no original'; " + SHOW


def of_others(board: Path) -> str:
    (board / "other").mkdir()
    (board / "other" / "more").write_text("x")
    return READ + f"open({str(board / 'other' / 'more')!r}).read(); " + SHOW


def leaves_behind(board: Path) -> str:
    return READ + f"open({str(board.parent / 'kept')!r}, 'wb').write(data); " + SHOW


BEHAVES = {
    "leans on a file beside the stream": (beside, "the decode command ends with exit code 1 .*No such file"),
    "reads the stream's name": (
        lambda b: "import glob; data = open(glob.glob('*.bin')[0], 'rb').read()\n" + SHOW,
        "list index out of range",
    ),
    "reads the original": (original, "no original"),
    "reads another submission": (of_others, "No such file"),
    "keeps what it saw for the next image": (leaves_behind, "Read-only file system"),
    "uses the network": (
        lambda b: "import socket; socket.create_connection(('192.0.2.1', 80), 5)\n" + READ + SHOW,
        "Network is unreachable",
    ),
    "another size": (lambda b: READ + "write_png('picture.png', 12, 16, bytes(12 * 16 * 3))", "is 12x16, not 24x16"),
    "the same picture for all": (
        lambda b: "write_png('picture.png', 24, 16, bytes(24 * 16 * 3))",
        "decode to the same picture",
    ),
    "another picture each time": (
        lambda b: READ + "import os\nw, h, p = decode(data)\nwrite_png('picture.png', w, h, os.urandom(3) + p[3:])",
        "another picture each time",
    ),
    "16 bits a channel": (
        lambda b: (
            READ + "w, h, p = decode(data)\nwrite_png('picture.png', w, h, bytes(v for b in p for v in (b, 9)), 16)"
        ),
        "16 bits a channel; what is measured is 8-bit RGB",
    ),
    "a picture with transparency": (
        lambda b: READ + "w, h, p = decode(data)\nwrite_png('picture.png', w, h, bytes(w * h * 4), 8, 6)",
        "of mode RGBA",
    ),
    "no PNG": (lambda b: "open('picture.png', 'w').write('picture')", "picture.png that is no PNG"),
    "no picture": (lambda b: "pass", "writes no picture.png"),
    "a link for a picture": (lambda b: "import os; os.symlink('stream', 'picture.png')", "writes no picture.png"),
    "too slow": (lambda b: "import time; time.sleep(60)", "takes more than 3 s"),
    "too much memory": (lambda b: "x = bytes(3 << 30)", "needs more than 2147483648 bytes of memory"),
    "a huge file": (lambda b: "open('big', 'wb').write(bytes(2 << 20))", "a file of more than 1048576 bytes"),
    "fails": (lambda b: "raise SystemExit('cannot')", r"ends with exit code 1 \(cannot\)"),
}


@pytest.mark.parametrize("kind", BEHAVES)
def test_refused_for_what_its_command_does(board, kind):
    falsify, reason = BEHAVES[kind]
    decoder(board, falsify(board))
    found = reasons_of(board, Limits(3 if kind == "too slow" else 60, 2 << 30, 1 << 20))
    assert len(found) == 1
    assert re.search(reason, found[0]), found
    assert not (board.parent / "kept").exists()


def test_a_program_that_is_not_there(board):
    setting(board, decode="no-such-program stream")
    assert "no-such-program" in reasons_of(board)[0]


def test_a_child_does_not_outlive_its_command(tmp_path):
    (tmp_path / "work").mkdir()
    mark = tmp_path / "work" / "late"
    code = f"import os, time\nif not os.fork():\n os.setsid(); time.sleep(1); open({str(mark)!r}, 'w')"
    run([sys.executable, "-I", "-S", "-c", code], tmp_path / "work", limits=Limits(), kind="namespaces")
    subprocess.run(["sleep", "1.5"], check=True)
    assert not mark.exists()


# ---------------------------------------------------------------------- encoders


def test_an_encoder_is_tried_on_a_mirrored_image(board):
    (board / "honest" / "decoder" / "encode.py").write_text(ENCODE)
    setting(board, encode="python decoder/encode.py")
    images = open_board_images(Settings(images="images"), board)
    submission = read_submission(board / "honest")
    found = check(submission, images, measurement([]), {}, images.files.paths, limits=Limits())
    assert found.reasons == []
    assert found.encoder.startswith("makes the same stream of a; a mirrored: ")


def test_a_decoder_that_has_learned_the_images_is_refused(board):
    """Streams of one byte, and the pictures in the decoder: the mirrored image cannot be among them."""
    own = board / "honest"
    for number, name in enumerate(NAMES):
        (own / "streams" / f"{name}.bin").write_bytes(bytes([number]))
        (own / "decoder" / f"{number}.weights").write_bytes(zlib.compress(pixels(number)[::-1].tobytes()))
    decoder(
        board,
        "n = open('stream', 'rb').read()[0]\np = zlib.decompress(open(f'decoder/{n}.weights', 'rb').read())\n"
        "p = b''.join(p[i * 72:i * 72 + 72] for i in range(15, -1, -1))\np = bytes([p[0] ^ 1]) + p[1:]\n"
        "write_png('picture.png', 24, 16, p)",
    )
    almost = [
        psnr(pixels(n), np.where(np.arange(1152).reshape(16, 24, 3) == 0, pixels(n) ^ 1, pixels(n))) for n in (0, 1, 2)
    ]
    write_claims(own, almost)
    assert reasons_of(board) == []  # which is why the page says that its encoder was not handed in
    (own / "decoder" / "encode.py").write_text("open('stream', 'wb').write(bytes([0]))")
    setting(board, encode="python -I -S decoder/encode.py")
    assert "an image that was not handed in is coded far worse" in reasons_of(board)[0]


def test_an_encoder_of_other_streams_is_refused(board):
    (board / "honest" / "decoder" / "encode.py").write_text("open('stream', 'wb').write(bytes(500))")
    setting(board, encode="python -I -S decoder/encode.py")
    assert "the encode command makes a stream of 500 bytes" in reasons_of(board)[0]


# ---------------------------------------------------------------------- environments and containers


def test_a_virtual_environment_comes_first(board):
    programs = board / "honest" / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "my-decoder").write_text(f"#!/bin/sh\nexec {sys.executable} -I -S decoder/decode.py\n")
    (programs / "my-decoder").chmod(0o755)
    setting(board, decode="my-decoder", environment="venv")
    assert reasons_of(board) == []


def test_a_container_runs_without_network_and_with_limits(board, tmp_path, monkeypatch):
    """A stand-in for docker, which notes its arguments and runs the command in the folder that becomes /work."""
    tools, log = tmp_path / "tools", tmp_path / "arguments"
    tools.mkdir()
    (tools / "docker").write_text(
        f"#!{sys.executable} -IS\nimport os, sys\nwords = sys.argv[1:]\n"
        f"open({str(log)!r}, 'w').write(' '.join(words))\n"
        "volumes = [w.split(':') for a, w in zip(words, words[1:]) if a == '--volume']\nos.chdir(volumes[0][0])\n"
        "os.rmdir('decoder'); os.symlink(volumes[1][0], 'decoder')\n"
        "command = words[words.index('my/image') + 1:]\nos.execvp(command[0], command)\n"
    )
    (tools / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    setting(board, container="my/image", decode=[sys.executable, "-I", "-S", "decoder/decode.py"])
    assert reasons_of(board) == []
    words = log.read_text()
    assert words.startswith("run --rm --network none --read-only --cap-drop ALL")
    assert "--memory 2147483648" in words
    assert "/decoder:/work/decoder:ro my/image" in words


def test_without_isolation_nothing_runs_unless_asked_for(board, monkeypatch):
    monkeypatch.setattr(isolation, "can_isolate", lambda: False)
    with pytest.raises(UserError, match=r"cannot be isolated here .* add --no-isolation"):
        reasons_of(board)
    with pytest.raises(CommandError, match="takes more than 1 s"):
        run(["sleep", "20"], board, limits=Limits(1), kind=isolation.kind_of(None, unsafe=True))


# ---------------------------------------------------------------------- the page


def test_the_page_and_its_file(board, capsys):
    shutil.copytree(board / "honest", board / "false")
    (board / "false" / "submission.yaml").write_text("name: <b>false</b>\ndecode: python\n")
    shutil.copytree(board / "honest", board / "broken")
    (board / "broken" / "submission.yaml").write_text("[")
    out = board.parent / "board.html"
    assert main(["board", str(board), "-o", str(out), "--json"]) == 1
    said = capsys.readouterr()
    assert "1 as claimed, 2 refused, 2 rows of rivals" in said.err
    text = out.read_text()
    document = json.loads(said.out)
    assert document == json.loads(out.with_suffix(".json").read_text())
    rows = {row["name"]: row for row in document["submissions"]}
    assert rows["honest"]["refused"] == []
    expected = sum(psnr(pixels(n), shown(pixels(n))) for n in range(3)) / 3
    assert rows["honest"]["metrics"]["psnr"] == pytest.approx(expected, abs=1e-9)
    low, high = rows["honest"]["intervals"]["psnr"]
    assert low < expected < high
    assert "submission.yaml cannot be read" in rows["broken"]["refused"][0]
    assert "writes no picture.png" in rows["<b>false</b>"]["refused"][0]
    assert "&lt;b&gt;false" in text
    assert "<b>false" not in text
    assert f"{expected:.2f} ({low:.2f} to {high:.2f})" in re.sub("<[^>]*>", "", text)
    assert "without network, on a file system that is read-only" in text
    assert [row["name"] for row in document["rivals"]] == ["jpeg at 2 bpp", "webp/2 at 2 bpp"]
    assert "StableCodec" in text


def test_published_points_give_the_bd_rates_of_the_paper_comparison():
    """PCHIP over the points of AEIC's tables, worked out elsewhere: on Kodak 4.3 % by LPIPS and 6.0 % by DISTS."""
    rows = {(dataset, row.test, row.metric): row.percent for dataset, row in published_bd_rates()}
    assert rows["Kodak", "AEIC-SE", "lpips_alex"] == pytest.approx(4.3, abs=0.06)
    assert rows["Kodak", "AEIC-SE", "dists"] == pytest.approx(6.0, abs=0.06)
    assert rows["CLIC", "AEIC-SE", "lpips_alex"] == pytest.approx(-10.4, abs=0.06)
    assert rows["DIV2K", "AEIC-SE", "lpips_alex"] == pytest.approx(-8.4, abs=0.06)
    assert all((dataset, "StableCodec", "dists") in rows for dataset in ("Kodak", "DIV2K", "CLIC"))


def test_a_model_hands_itself_in(board, tmp_path):
    """Streams, claims and commands of a shipped model; its claims are what `check` measures of its own pictures."""
    folder = hand_in("small-student", 2.0, open_board_images(Settings(images="images"), board), measurement([]), board)
    submission = read_submission(folder)
    assert set(submission.streams()) == set(NAMES)
    assert submission.claims["a"]["bytes"] == str(submission.streams()["a"].stat().st_size)
    assert submission.labels == {"codec": "small-student", "target": 2.0}
    from aeic_lightning import Codec

    picture = Codec.from_pretrained("small-student").decompress(submission.streams()["a"].read_bytes())
    assert float(submission.claims["a"]["psnr"]) == pytest.approx(psnr(pixels(0), np.array(picture)), abs=6e-4)
    with pytest.raises(UserError, match="exists; remove it, or choose another rate"):
        hand_in("small-student", 2.0, open_board_images(Settings(images="images"), board), measurement([]), board)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{0}"], "give -o FILE.html for the page"),
        (["{0}", "--hand-in", "small-student"], "give -o FILE.html for the page"),
        (["{0}", "-o", "{1}/board.txt"], "name a .html file"),
        (["{1}/nowhere", "-o", "{1}/board.html"], "there is no folder .*nowhere of submissions"),
        (["{0}/images", "-o", "{1}/board.html"], "holds no submission"),
    ],
)
def test_what_the_command_refuses(board, capsys, words, reason):
    assert main(["board", *(word.format(board, board.parent) for word in words)]) == 2
    assert re.search(reason, capsys.readouterr().err)


def test_a_misspelt_setting_of_the_board(board, capsys):
    (board / "board.yaml").write_text("rate: [0.03]\n")
    assert main(["board", str(board), "-o", str(board.parent / "board.html")]) == 2
    assert "rate is no setting; did you mean rates?" in capsys.readouterr().err

"""What is printed decides nothing: a reader that goes away, a full disk, names that would command a terminal."""

import io
import os
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from aeic_lightning import Codec
from aeic_lightning.cli import COMMANDS, main
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.output import shown

SIZES = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
WIDTHS = {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1]}
HOSTILE = "a\nb\x1b[2J\x9b31m\u202ec"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "last.ckpt"
    save(random_model(CodecConfig([8, 8, 16, 16, 32], [1] * 5, **SIZES, **WIDTHS, rate_levels=[8.0, 0.5])), path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (90 * number, 50, 20)).save(folder / f"{number}.png")
    return folder


def stream_without_reader(line_buffering: bool):
    reader, writer = os.pipe()
    os.close(reader)
    return io.TextIOWrapper(os.fdopen(writer, "wb"), write_through=line_buffering)


@pytest.mark.parametrize("both", [False, True], ids=["standard output", "standard error too"])
@pytest.mark.parametrize("write_through", [False, True])
def test_files_are_written_without_a_reader(checkpoint, photos, tmp_path, monkeypatch, both, write_through):
    """As in `compress DIR | head -1`, and `2>&1 | head -1`, whose pipe breaks after the first line or at the end."""
    (photos / "3.png").write_bytes(b"no image")  # an error line as well
    for command, source, out, kind in [
        ("compress", photos, "streams", ".aeic"),
        ("decompress", "streams", "out", ".png"),
    ]:
        with monkeypatch.context() as patch:
            stdout = stream_without_reader(write_through)
            patch.setattr(sys, "stdout", stdout)
            if both:
                patch.setattr(sys, "stderr", stream_without_reader(write_through))
            words = [str(tmp_path / source), "--checkpoint", str(checkpoint), "-o", str(tmp_path / out)]
            assert main([command, *words]) == (2 if command == "compress" else 0)
            assert sys.stdout is stdout
            stdout.close()  # what is left in a buffer goes nowhere, and fails no more
        assert sorted(path.name for path in (tmp_path / out).iterdir()) == [f"{n}{kind}" for n in range(3)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_loses_lines_and_no_work(checkpoint, photos, tmp_path, monkeypatch, capsys):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        code = main(["compress", str(photos), "--checkpoint", str(checkpoint), "-o", str(tmp_path / "out")])
    assert code == 1, "what was asked for is there, but a table or document may be lost"
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert "standard output was lost, all else is done: No space left" in capsys.readouterr().err


def test_failures_are_counted_and_names_are_escaped(checkpoint, photos, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(photos / f"{HOSTILE}.png")
    (photos / f"{HOSTILE}2.png").write_bytes(b"no image")
    words = [str(photos), "--checkpoint", str(checkpoint)]
    assert main(["compress", *words, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("4 files, 1 failed, ")
    assert f"{shown(HOSTILE)}.aeic" in said.out
    assert len(said.out.splitlines()) == 5
    assert len(said.err.splitlines()) == 1
    (tmp_path / "out" / f"{HOSTILE}2.aeic").write_bytes(b"no stream")
    assert (
        main(["decompress", str(tmp_path / "out"), "--checkpoint", str(checkpoint), "-o", str(tmp_path / "back")]) == 2
    )
    more = capsys.readouterr()
    assert more.out.splitlines()[-1] == "4 files, 1 failed"
    assert main(["decompress", str(tmp_path / HOSTILE), "-o", str(tmp_path / "back")]) == 2  # in the error of a command
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for text in (said.out, said.err, more.out, more.err, error):
        assert not set(text) & set("\x1b\x9b\u202e")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_lets_a_name_reach_the_terminal_as_a_command(command, capsys, monkeypatch):
    """Whatever a command prints, and however it ends."""

    class Module:
        def add_arguments(self, parser):
            parser.add_argument("name")

        def run(self, args, extra):
            print(args.name)
            print(args.name, file=sys.stderr)
            warnings.warn(args.name, stacklevel=1)
            raise UserError(args.name)

    monkeypatch.setattr("aeic_lightning.cli.import_module", lambda name: Module())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([command, HOSTILE]) == 2
    said = capsys.readouterr()
    assert "\\x1b[2J" in said.out
    assert said.err.endswith(f"error: {shown(HOSTILE)}\n")
    assert not set(said.out + said.err) & set("\x1b\x9b")


def test_what_is_shown_is_one_line_that_moves_nothing():
    assert shown("fotos/größe 1 ✓.png") == "fotos/größe 1 ✓.png"
    assert shown(HOSTILE) == "a\\nb\\x1b[2J\\x9b31m\\u202ec"


def test_remarks_on_images_are_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    # pytest keeps warnings to itself; what Python does without it:
    monkeypatch.setattr(
        warnings, "showwarning", lambda *about, **_: sys.stderr.write(warnings.formatwarning(*about[:4]))
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    assert main(["compress", str(tmp_path / "a.gif"), "--checkpoint", str(checkpoint), "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"warning: {tmp_path}/a.gif: the first of its 2 pictures is taken\n"


@pytest.mark.parametrize("name", ["bpp", "max_bytes", "level"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), "0.1", True, [1], np.array([1.0, 2.0])])
def test_odd_orders_are_one_line(checkpoint, name, value):
    with pytest.raises(UserError, match=f"{name} is .*finite number"):
        codec_of(checkpoint).compress(np.zeros((8, 8, 3), np.uint8), **{name: value})


def test_numbers_of_every_kind_are_taken(checkpoint):
    codec, image = codec_of(checkpoint), np.zeros((8, 8, 3), np.uint8)
    expected = codec.compress(image, level=1)
    for value in (1.0, np.float32(1), np.int64(1)):
        assert codec.compress(image, level=value) == expected
    with pytest.raises(UserError, match="size is 0"):
        codec.compress_batch([image], size=0)
    with pytest.raises(UserError, match="size is 0"):
        codec.decompress_batch([expected], size=0)


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "0"])
def test_an_odd_rate_is_refused_before_any_image(checkpoint, photos, tmp_path, value, capsys):
    words = ["--checkpoint", str(checkpoint), "-o", str(tmp_path / "out"), f"--bpp={value}"]
    assert main(["compress", str(photos), *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


_codecs = {}


def codec_of(checkpoint):
    if checkpoint not in _codecs:
        _codecs[checkpoint] = Codec.from_pretrained(checkpoint)
    return _codecs[checkpoint]

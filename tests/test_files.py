"""Names of files that are written, and whether they can be."""

import os
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aeic_lightning.errors import UserError
from aeic_lightning.files import LONGEST, check_can_write, check_file_names, file_name, write_whole
from datamodules.image_folder import image_names

PART = st.text(st.sampled_from("ab_. ~1ü"), min_size=1, max_size=5).filter(lambda part: part not in (".", ".."))


@pytest.mark.parametrize("name", ["kodim01", "a/b", "sub/deep/c", "a.png", "photo 1", "a_b/c_d", "Straße/日本"])
def test_plain_names_stay_readable(name):
    assert file_name(name) == name.replace("/", "__")


@pytest.mark.parametrize(
    "name",
    ["a__x", "a_/x", "a/_x", "x" * 101, "日本" * 20, "step_000100", "test_step_000100", "x_original", 'a"b', "a:b",
     "a\nb", "b\udcff", "end.", "a~0123abcd", "/".join("deep" for _ in range(40))],
)  # fmt: skip
def test_other_names_are_short_and_end_in_a_hash(name):
    file = file_name(name)
    assert len(file.encode()) <= LONGEST
    assert file[-9] == "~"
    assert file == file_name(name)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in file)


@given(st.lists(st.lists(PART, min_size=1, max_size=3).map("/".join), unique=True, max_size=30))
def test_no_two_images_share_a_file(names):
    written = [f"{file_name(name)}{end}" for name in names for end in (".png", "_original.png")]
    assert len(set(written)) == len(written)
    check_file_names(names)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(name):
    with pytest.raises(UserError, match="leads out of the folder"):
        file_name(name)


def test_the_longest_names_can_be_written(tmp_path):
    write_whole(tmp_path / ("x" * 251 + ".txt"), "whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_text_with_bytes_of_no_encoding_is_written_as_an_escape(tmp_path):
    write_whole(tmp_path / "a.txt", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9"


def test_names_that_are_not_utf_8_become_text(tmp_path):
    paths = [tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "b.png"]
    assert image_names(tmp_path, paths) == ["caf\\xe9", "b"]
    with pytest.raises(UserError, match="two files"):
        image_names(tmp_path, [*paths, tmp_path / "caf\\xe9.png"])


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, message in {
        tmp_path / "file" / "out.json": "is a file, not a folder",
        tmp_path: "it is a folder",
        tmp_path / "new" / ("x" * 300): "a name may have 255 bytes",
        "/proc/nothing/out.json": "cannot write",
    }.items():
        with pytest.raises(UserError, match=message):
            check_can_write(path)
    check_can_write(tmp_path / "new" / "deep" / "out.json")
    check_can_write(tmp_path / "file")
    check_can_write(tmp_path, folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_message_with_any_name_can_be_printed_on_any_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "aeic_lightning", "fit", "--config", os.fsdecode(b"caf\xe9 \xff")],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: no config file caf")

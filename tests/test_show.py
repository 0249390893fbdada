"""What `benchmarks.show` says of the shipped codec: figures of results files, larger files marked."""

import re

import pytest

from aeic_lightning.study.results import Result
from benchmarks.show import section, table, with_table


def result(name: str, kind: str, sizes: list[int], target: float | str, psnr: float, codec: str = "") -> Result:
    rows = [{"name": f"i{n}", "bytes": size, "bpp": size / 1000, "psnr": psnr + n} for n, size in enumerate(sizes)]
    rows = [row | {"ms_ssim": 0.5, "lpips_lite2": 0.25, "dists_lite2": 0.125} for row in rows]
    return Result(name, kind, {"target": target} | ({"codec": codec} if codec else {}), {}, images=rows)


@pytest.fixture
def results() -> list[Result]:
    ours = "student at 0.03 bpp"
    return [
        result(ours, "checkpoint", [30, 50], 0.03, 20.0),
        result(f"avif at {ours}", "anchor", [30, 50], ours, 22.0, "avif"),
        result(f"jpeg at {ours}", "anchor", [90, 70], ours, 18.0, "jpeg"),
        result("student at 0.06 bpp", "checkpoint", [60, 60], 0.06, 30.0),
    ]


def test_the_table_is_of_one_rate_and_marks_larger_files(results):
    lines = table(results, 0.03)
    assert re.match(r"\| student \| 40 \| 0\.0400 \| 20\.50 ± ", lines[2])
    assert lines[3].startswith("| AVIF | 40 | 0.0400 | 22.50 ")
    assert "†" not in lines[2] + lines[3]
    assert lines[4].startswith("| JPEG | 80 (2.0x) | 0.0800 | 18.50 ")
    assert lines[4].count("†") == 4
    assert lines[-1].startswith("† of larger files than those of student")
    assert not any("†" in line for line in table(results, 0.06))


def test_the_table_replaces_what_stands_between_the_marks(results):
    text = "a\n<!-- kodak:begin -->\nold\n<!-- kodak:end -->\nb\n"
    made = with_table(text, results, 0.03)
    assert made.startswith("a\n<!-- kodak:begin -->\n| codec |")
    assert made.endswith("<!-- kodak:end -->\nb\n")
    assert "old" not in made
    assert with_table(made, results, 0.03) == made


def test_a_photograph_of_the_gallery_marks_a_codec_without_so_small_a_file():
    entries = [
        {"name": "student", "bytes": 10, "bpp": 0.01, "psnr": 20.0, "lpips": 0.5, "over": False},
        {"name": "JPEG at 1/4 size", "bytes": 12, "bpp": 0.012, "psnr": 19.0, "lpips": 0.75, "over": True},
    ]
    text = section("cat", (8, 16, 3), ["original", "student", "jpeg"], entries)
    assert "| [student](gallery/cat-student.webp) | 10 | 0.0100 | 20.00 | 0.500 |" in text
    assert "| [JPEG at 1/4 size *](gallery/cat-jpeg.webp) | 12 |" in text
    assert "16 x 8 pixels" in text

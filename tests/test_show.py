"""What `benchmarks.show` says of the shipped codec: figures of results files, larger files marked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aeic_lightning.study.results import Result
from benchmarks.show import HEAD, section, table, with_table

ROOT = Path(__file__).parents[1]


def result(name: str, kind: str, sizes: list[int], target: float | str, psnr: float, codec: str = "") -> Result:
    rows = [{"name": f"i{n}", "bytes": size, "bpp": size / 1000, "psnr": psnr + n} for n, size in enumerate(sizes)]
    rows = [row | {"ssimulacra2": -50, "lpips_lite2": 0.25, "lpips_hed": 0.5} for row in rows]
    rows = [row | {"dists_lite2": 0.125, "dists_hed": 0.5} for row in rows]
    return Result(name, kind, {"target": target} | ({"codec": codec} if codec else {}), {}, images=rows)


@pytest.fixture
def results() -> list[Result]:
    ours = "student at 0.03 bpp"
    return [
        result(ours, "checkpoint", [30, 50], 0.03, 20.0),
        result(f"jpeg at {ours}", "anchor", [90, 70], ours, 18.0, "jpeg"),
        result(f"avif at {ours}", "anchor", [30, 50], ours, 22.0, "avif"),
        result("student at 0.06 bpp", "checkpoint", [60, 60], 0.06, 30.0),
    ]


def test_the_table_is_of_one_rate_and_marks_larger_files(results):
    lines = table(results, 0.03)
    assert re.match(r"\| student \| 40 \| 0\.0400 \| 20\.50 ± ", lines[2])
    assert lines[3].startswith("| AVIF | 40 | 0.0400 | 22.50 ")
    assert "†" not in lines[2] + lines[3]
    assert lines[4].startswith("| JPEG | 80 (2.0x) | 0.0800 | 18.50 ")
    assert lines[4].count("†") == 6
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


@pytest.fixture(scope="module")
def small_site(tmp_path_factory) -> Path:
    """A page of the gallery, built with the plugins and the scripts of the real site."""
    folder = tmp_path_factory.mktemp("small_site")
    (folder / "docs").mkdir()
    entry = {"name": "student", "bytes": 10, "bpp": 0.01, "psnr": 20.0, "lpips": 0.5, "over": False}
    text = section("cat", (8, 16, 3), ["original", "student"], [entry])
    for name in ("cat-original", "cat-student"):
        (folder / "docs/gallery").mkdir(exist_ok=True)
        (folder / f"docs/gallery/{name}.webp").touch()
    (folder / "docs/index.md").write_text(HEAD.format(model="student", aim=0.03, scales="full") + text)
    (folder / "docs/howto_try.md").write_text("# Another page\n\nA word: zymurgy.\n")
    real = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    (folder / "docs/iframe-worker.js").write_text((ROOT / "docs/iframe-worker.js").read_text())
    settings = {name: real[name] for name in ("markdown_extensions", "extra")}
    settings |= {"site_name": "small", "theme": {"name": "material", "font": False}, "plugins": ["search", "offline"]}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet"], cwd=folder, check=True, capture_output=True)
    return folder / "site"


def test_the_gallerys_slider_moves_the_border(chromium, small_site):
    page = chromium.new_page()
    page.goto((small_site / "index.html").as_uri())
    page.locator("input[type=range]").fill("20")
    assert "20%" in page.locator(".pair img").last.evaluate("image => getComputedStyle(image).clipPath")
    page.close()


def test_the_search_works_from_the_disk(chromium, small_site):
    page = chromium.new_page()
    page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    page.goto((small_site / "index.html").as_uri())
    page.fill(".md-search__input", "zymurgy")
    page.wait_for_selector(".md-search-result__item", state="attached", timeout=30_000)
    assert "Another page" in page.text_content(".md-search-result__list")
    page.close()

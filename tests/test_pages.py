"""Every command of README and docs is run, in reading order, in one folder: what one page makes, the next one uses."""

import re
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pages
import pytest
import skimage
import yaml
from PIL import Image

from aeic_lightning.cli import COMMANDS, main
from aeic_lightning.config import locate
from tests.experiment_names import all_but_few_slow

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
NAV = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"]


def _files(entry) -> list[str]:
    if isinstance(entry, str):
        return [f"docs/{entry}"]
    return [file for value in (entry.values() if isinstance(entry, dict) else entry) for file in _files(value)]


SITE = [file for file in _files(NAV) if not file.startswith("docs/results/")]
PAGES = ["README.md", *SITE, "CONTRIBUTING.md"]
RUN_PYTHON = {"README.md", "docs/tutorial.md"}
NAMED = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")
BLOCKS = {page: list(pages.blocks(ROOT, page)) for page in PAGES}
BASH = [block for page in PAGES for block in BLOCKS[page] if block.language == "bash"]
LONG = {"docs/howto_study.md", "docs/howto_measure.md", "docs/full_size.md", "docs/classification.md"}
"""Run in `slow` tests alone. What they train and measure is trained and measured, smaller, by other tests; the tutorial
has the commands of a study."""
LEFT_OUT = 31
"""Blocks that cannot run on any machine with a CPU and without network, or take minutes and are run, smaller, by a test
that they name. Raise it only for another of that kind."""


@pytest.fixture
def reader(made_once):
    return made_once("reader", begin)


def begin(folder: Path) -> None:
    """The folder of a reader who follows the pages: a photograph, folders of photographs, another codec's files."""
    images = Path(skimage.__file__).parent / "data"
    names = ("chelsea.png", "rocket.jpg", "coffee.png")
    chelsea, rocket, coffee = (Image.open(images / name).convert("RGB").resize((128, 128)) for name in names)
    (folder / "first_look").mkdir()
    for photo in ("photo.jpg", "first_look/photo.jpg"):  # whoever reads the README alone, and whoever goes on
        chelsea.save(folder / photo)
    for name in ("photos/train", "photos/val", "photos/validation", "kodak", "theirs", "theirs_files"):
        (folder / name).mkdir(parents=True)
    for name in ("photos/train/a", "photos/train/b", "photos/val/c", "photos/validation/c", "kodak/d", "kodak/e"):
        (coffee if name[-1] in "bd" else rocket).save(folder / f"{name}.png")
    for name in "de":
        noisy = np.asarray(Image.open(folder / "kodak" / f"{name}.png")) // 8 * 8
        Image.fromarray(noisy).save(folder / "theirs" / f"{name}.png")
        (folder / "theirs_files" / f"{name}.bin").write_bytes(b"0" * 300)


@pytest.mark.parametrize("page", all_but_few_slow(PAGES, *(page for page in PAGES if page not in LONG)))
def test_what_a_page_tells_to_do_works(page, reader, made_once, monkeypatch):
    """After those before it, whose files it uses; none uses those of a long one."""
    monkeypatch.syspath_prepend(reader)
    pages.small(monkeypatch)
    for earlier in (p for p in PAGES[: PAGES.index(page) + 1] if p == page or p not in LONG):
        monkeypatch.chdir(reader / "first_look" if earlier == "README.md" else reader)
        made_once(f"pages/{earlier}", lambda _, page=earlier: follow(page, reader))


@pytest.mark.parametrize("page", sorted(LONG))
def test_the_commands_of_a_long_page_are_read_as_they_stand(page, monkeypatch):
    """Their words, and the experiments that they name; nothing is run."""
    written = {match[1] for block in BLOCKS[page] if (match := NAMED.match(block.text))}
    bash = [block for block in BLOCKS[page] if block.language == "bash" and not block.not_run]
    for words in (words for block in bash for words in pages.commands(block.text) if words[0] == "aeic-lightning"):
        module, given = import_module(f"aeic_lightning.cli.commands.{COMMANDS[words[1]][0]}"), []
        monkeypatch.setattr(module, "run", lambda args, extra, given=given: given.append((args, extra)))
        assert main(words[1:]) == 0
        ((args, extra),) = given
        if hasattr(args, "config"):
            assert all(word.startswith("--") and "=" in word for word in extra), words
            for config in [args.config] if isinstance(args.config, Path) else args.config:
                assert str(config) in written or locate(ROOT / "experiments" / config), config
        else:
            assert not extra, words


def follow(page: str, reader: Path) -> None:
    printed = None
    for block in BLOCKS[page]:
        name = NAMED.match(block.text)
        if block.language in ("yaml", "python") and name:
            (reader / name[1]).write_text(block.text)
        elif block.language == "python" and page in RUN_PYTHON:
            exec(compile(block.text, str(block), "exec"), {})
        elif block.language == "text" and block.follows and printed is not None:
            pages.check_output(block, printed)
        printed = pages.run(block) if block.language == "bash" and not block.not_run else None


def test_blocks_that_are_not_run_say_why_and_are_few(capsys):
    left_out = [block for block in BASH if block.not_run]
    with capsys.disabled():
        print(f"\n{len(BASH) - len(left_out)} of {len(BASH)} blocks of commands are run; left out:")
        for block in left_out:
            print(f"  {block}: {block.not_run}")
    assert len(left_out) == LEFT_OUT


def test_commands_are_in_blocks_of_commands():
    """Not indented, and not in blocks of another language, where nobody would run them."""
    for page in PAGES:
        text = re.sub(r"^```bash\n.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"^```sh\n#!/bin/bash\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)  # a script of SLURM
        found = re.findall(r"^\s*(?:python -m|aeic-lightning|pip install|\.venv/bin/).*", text, re.MULTILINE)
        assert not found, page


def test_the_command_has_one_spelling():
    results = (str(path.relative_to(ROOT)) for path in (ROOT / "results").rglob("README.md"))
    for page in {*PAGES, *results} - {"docs/commands.md"}:  # which says that there is another
        assert "python -m aeic_lightning" not in (ROOT / page).read_text(), page


def test_links_of_pages_outside_of_the_site_lead_somewhere():
    """Those of the site itself are checked when it is built: `make docs`."""
    for page in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *(str(path.relative_to(ROOT)) for path in (ROOT / "results").rglob("README.md")),
    ):
        for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / page).read_text()):
            assert not (page == "README.md" and not target.startswith("https://")), f"the package's page lacks {target}"
            if (path := in_repository(ROOT / page, target)) is not None:
                assert path.exists(), f"{page}: {target}"


def in_repository(page: Path, target: str) -> Path | None:
    """The file that a link leads to, on the site or in the repository; None for a page of others."""
    if target.startswith(URLS["Documentation"]):
        name = target.removeprefix(URLS["Documentation"]).removesuffix(".html")
        return ROOT / name / "README.md" if name.startswith("results/") else ROOT / "docs" / f"{name}.md"
    if target.startswith(URLS["Repository"]):
        return ROOT / re.sub(r"^/(blob|raw)/main/", "", target.removeprefix(URLS["Repository"]))
    return None if target.startswith("http") else page.parent / target


def test_one_command_names_the_account_that_publishes(tmp_path):
    """In every link of the documents; the tests of links above find one that it forgets."""
    files = ["README.md", "pyproject.toml", "Makefile", "docs", "benchmarks"]
    for name in files:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    account = URLS["Repository"].split("/")[-2]
    subprocess.run(["make", "owner", "OWNER=someone"], cwd=tmp_path, check=True, capture_output=True)
    left = [p for n in ("README.md", "docs", "pyproject.toml") for p in (tmp_path / n, *(tmp_path / n).rglob("*.md"))]
    assert "someone.github.io/aeic_lightning" in (tmp_path / "README.md").read_text()
    for path in (path for path in left if path.is_file()):
        assert not re.search(rf"{account}\.github\.io|github\.com/{account}/", path.read_text()), path


def test_the_card_of_links_is_small_and_of_the_size_that_sites_show():
    card = ROOT / "docs/gallery/card.jpg"
    assert Image.open(card).size == (1200, 630)
    assert card.stat().st_size < 200_000
    assert "og:image" in (ROOT / "docs/hooks.py").read_text()


def test_screenshots_are_of_both_widths_and_small():
    shown = sorted((ROOT / "docs/screens").iterdir())
    pages = sorted({path.name.partition("-")[0] for path in shown})
    assert set(pages) == {"board", "codec", "gallery", "results", "serve", "site"}
    assert [path.name for path in shown] == [f"{page}-{width}.webp" for page in pages for width in (1280, 390)]
    assert sum(path.stat().st_size for path in shown) <= 600_000


def test_every_page_is_on_the_site_and_the_readme_is_short():
    assert sorted(SITE) == sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert readme.count("<!-- kodak:begin -->") == readme.count("<!-- kodak:end -->") == 1


def test_the_site_has_every_page_of_results():
    pages = {file.removeprefix("docs/") for file in _files(NAV) if file.startswith("docs/results/")}
    assert pages == {str(path.relative_to(ROOT)) for path in (ROOT / "results").rglob("README.md")}


def test_the_pages_name_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    start = (ROOT / "docs/index.md").read_text()
    assert all(f"| `{extra}` |" in start for extra in extras)

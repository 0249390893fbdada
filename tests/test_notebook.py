"""The notebook of one's own study: every cell runs, and its files are those of the page."""

import json
import re
from pathlib import Path

import pages
import skimage.data
from PIL import Image

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "docs/own_study.ipynb").read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_every_cell_runs(tmp_path, monkeypatch, capfd):
    """In this process and made small, as the commands of the pages: one step of small crops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pages.small(monkeypatch)
    (tmp_path / "photos/train").mkdir(parents=True)
    for name in ("chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).resize((128, 128)).save(tmp_path / f"photos/train/{name}.png")
    names: dict = {}
    for cell in CODE:
        exec(compile(cell, "cell", "exec"), names)
    said = capfd.readouterr().out
    assert "L_enc saves bits" in said
    assert re.search(r"^\d+ bytes$", said, re.MULTILINE)
    page = (tmp_path / "runs/own_try/report/index.html").read_text()
    assert "<h1>Does L_enc help my encoder?</h1>" in page
    assert "my encoder, from the images alone" in page

    shown = {
        block.text.partition("\n")[0].removeprefix("# "): block for block in pages.blocks(ROOT, "docs/howto_own.md")
    }
    for name in ("my_shallow.py", "own_study.yaml"):
        assert (tmp_path / name).read_text().split() == shown[name].text.partition("\n")[2].split(), name

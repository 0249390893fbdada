"""Tables that align, and `--json`: one document on standard output, whatever else a command prints."""

import json
import sys

import pytest
from pages import no_processes
from PIL import Image

from aeic_lightning.cli import COMMANDS, main
from aeic_lightning.models.random_model import CODECS, random_model, save
from aeic_lightning.output import align, json_output

TABLE = """before
| codec | psnr (dB) | note |
|---|---|---|
| small | 9.5 | a \\ b |
| larger | 23.66 | - |

- after | not | a table"""


def test_columns_align_and_numbers_are_to_the_right():
    assert align(TABLE).split("\n") == [
        "before",
        "| codec  | psnr (dB) | note  |",
        "| ------ | --------- | ----- |",
        "| small  |       9.5 | a \\ b |",
        "| larger |     23.66 | -     |",
        "",
        "- after | not | a table",
    ]


def test_a_table_with_a_bar_in_a_cell_stays_as_it_is():
    text = "| a | b |\n|---|---|\n| x | y | z |"
    assert align(text) == text


def test_the_document_is_all_that_standard_output_gets(capsys):
    with json_output(True) as give:
        print("for people")
        give({"mean": float("inf"), "rows": (1, 2.5)})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"mean": None, "rows": [1, 2.5]}
    assert shown.err == "for people\n"
    with json_output(False) as give:
        give({})
        print("for people")
    assert capsys.readouterr().out == "for people\n"
    assert sys.stdout is not sys.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    save(random_model(CODECS["tiny"]), folder / "model.ckpt")
    for name, colour in (("a", "teal"), ("b", "maroon")):
        (folder / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(folder / "photos" / f"{name}.png")
    return folder


MODEL = ["--checkpoint", "model.ckpt"]
BD = ["paper:AEIC-ME:Kodak", "--test", "paper:AEIC-SE:Kodak", "--resamples", "0"]
MEASURE = ["--images", "photos", "--backbones", "lite0", "--pictures", "pictures", "-o"]
# In order: decompress reads what compress wrote.
PRINTING = {
    "compress": (["photos", *MODEL, "-o", "out"], lambda d: [f["bytes"] > 10 for f in d["files"]] == [True, True]),
    "decompress": (["out", *MODEL, "-o", "out"], lambda d: [f["width"] for f in d["files"]] == [64, 64]),
    "evaluate": ([*MODEL, *MEASURE, "e.json"], lambda d: d["results"][0]["metrics"]["psnr"]["images"] == 2),
    "anchors": (["--bpp", "2", "--codecs", "jpeg", *MEASURE, "a.json"], lambda d: len(d["results"]) == 1),
    "compare": (["e.json", "a.json", "-o", "compared"], lambda d: len(d["results"]) == 2),
    "bd-rate": (BD, lambda d: all(row["percent"] is not None for row in d["rows"])),
    "complexity": (["--config", "tiny/student_none.yaml"], lambda d: d["modules"]["encode"]["parameters"] > 10_000),
    "plan": (["--config", "tiny/teacher_stage1.yaml"], lambda d: d["missing"] == [] and d["memory_bytes"]["AdamW"] > 0),
    "verify": (["photos", *MODEL, "--settings", "1 thread"], lambda d: d["settings"][0]["same_bytes"] == 2),
    "bench": ([*MODEL, "--sizes", "64x64", "--repeats", "1", "--encode-only"], lambda d: d["sizes"][0]["width"] == 64),
}
NO_FIGURES = {"fit", "validate", "test", "predict", "sweep", "report", "export", "import-released", "serve"}
OWN_TESTS = {"classify", "accuracy"}


@pytest.mark.parametrize("command", PRINTING)
def test_every_command_that_prints_figures_prints_json(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    no_processes(monkeypatch)
    arguments, holds = PRINTING[command]
    assert main([command, *arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert holds(json.loads(shown.out)), shown.out
    assert shown.err


def test_no_command_is_forgotten():
    assert set(PRINTING) | NO_FIGURES | OWN_TESTS == set(COMMANDS)

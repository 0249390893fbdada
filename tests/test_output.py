"""Tables that align, and `--json`: one document on standard output, whatever else a command prints."""

import json
import sys
from pathlib import Path

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
BENCH = ["--sizes", "64x64", "--repeats", "1", "--threads", "1", "--encode-only"]
MEASURE = ["--images", "photos", "--backbones", "lite0", "--pictures", "pictures", "-o"]
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
    "bench": ([*MODEL, *BENCH], lambda d: d["sizes"][0]["width"] == 64),
}
NEEDS = {"decompress": {"compress": "out"}, "compare": {"evaluate": "e.json", "anchors": "a.json"}}
"""Commands whose files another one reads."""
NO_FIGURES = {"predict", "report", "export", "import-released", "serve"}
OWN_TESTS = {"board", "classify", "accuracy", "fit", "validate", "test", "sweep"}


@pytest.mark.parametrize("command", PRINTING)
def test_every_command_that_prints_figures_prints_json(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    no_processes(monkeypatch)
    for before, file in NEEDS.get(command, {}).items():
        assert Path(file).exists() or main([before, *PRINTING[before][0]]) == 0
    capsys.readouterr()
    arguments, holds = PRINTING[command]
    assert main([command, *arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert holds(json.loads(shown.out)), shown.out
    assert shown.err


def test_the_figures_of_a_run(tmp_path, monkeypatch, capsys):
    """Those of its last validation and test, and which runs of a sweep are done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (176, 176), "teal").save(tmp_path / "photos" / f"{name}.png")
    small = ["--data.init_args.crop_size=128", "--data.init_args.batch_size=1", "--data.init_args.samples_per_epoch=2"]
    run = ["--config", "tiny/teacher_stage1.yaml", "--vars.name=run", "--vars.root=.", "--vars.steps=1", *small,
           "--vars.val_every=1", "--data.init_args.val_max_size=[64,64]",
           "--trainer.callbacks=[{class_path: callbacks.checkpoint.LastCheckpoint}, {class_path: "
           "callbacks.quality.QualityMetrics, init_args: {lpips: [], dists: []}}]"]  # fmt: skip

    def document(command, *words):
        assert main([command, *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert document("fit", *run, "--dry-run")["missing"] == []
    fitted = document("fit", *run)
    assert fitted == json.loads((tmp_path / "run" / "metrics_val.json").read_text())
    assert fitted["step"] == 1
    validated = document("validate", *run, "--ckpt_path", "last")
    assert validated["metrics"]["psnr"]["mean"] == pytest.approx(fitted["metrics"]["psnr"]["mean"])
    tested = document("test", *run, "--ckpt_path", "last")
    assert tested["images"]
    (tmp_path / "one.yaml").write_text("root: .\nruns: [{name: run, config: tiny/teacher_stage1.yaml}]")
    (tmp_path / "run" / "finished").touch()
    swept = document("sweep", "--config", "one.yaml", "--dry-run")
    assert swept == {"runs": [{"name": "run", "folder": str(tmp_path / "run"), "done": True}]}


def test_no_command_is_forgotten():
    assert set(PRINTING) | NO_FIGURES | OWN_TESTS == set(COMMANDS)

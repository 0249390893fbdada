"""Sweeps: order, what is done, what failed, what is missing."""

from pathlib import Path

import pytest

from aeic_lightning import UserError
from aeic_lightning.cli import main
from aeic_lightning.sweeps import RECORD, read_sweep, run_sweep

ROOT = Path(__file__).parent.parent


def write(folder: Path, runs: str, extra: str = "") -> Path:
    file = folder / "sweep.yaml"
    file.write_text(f"vars: {{root: {folder}/runs}}\nroot: ${{vars.root}}\nruns:\n{runs}\n{extra}")
    return file


def test_the_demo_is_a_teacher_then_students_that_need_it():
    sweep = read_sweep(ROOT / "experiments/tiny/demo.yaml", ["vars.root=/elsewhere"])
    names = [run.name for run in sweep.runs]
    assert names[:2] == ["teacher_stage1", "teacher_stage2"]
    assert all(names.index(need) < i for i, run in enumerate(sweep.runs) for need in run.needs)
    assert all(run.config.is_file() for run in sweep.runs)
    assert all(run.folder == Path("/elsewhere") / run.name for run in sweep.runs)


def test_a_run_gets_its_folder_and_its_settings(tmp_path):
    file = write(tmp_path, "- {name: a, config: a.yaml, set: {vars.depth: 2}}")
    (run,) = read_sweep(file, []).runs
    assert run.command[-3:] == [f"--vars.root={tmp_path}/runs", "--vars.name=a", "--vars.depth=2"]
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / "checkpoints" / "last.ckpt").touch()
    assert run.command[-2:] == ["--ckpt_path", "last"], "an interrupted run goes on"


def test_a_failure_stops_what_needs_it_but_not_the_rest(tmp_path, capfd):
    runs = "- {name: a, config: no.yaml}\n- {name: b, config: no.yaml, needs: [a]}\n- {name: c, config: no.yaml}"
    sweep = read_sweep(write(tmp_path, runs), [])
    (sweep.runs[2].folder).mkdir(parents=True)
    (sweep.runs[2].folder / RECORD).touch()
    assert run_sweep(sweep) == 1
    said = capfd.readouterr().out
    assert "a: failed" in said
    assert "error: no config file" in said
    assert "b: not started, since a failed" in said
    assert "c: done before" in said
    assert "2 of 3 runs are missing: a, b" in said
    assert "no config file" in (tmp_path / "runs" / "a" / "log.txt").read_text()


def test_dry_run_lists_and_runs_nothing(tmp_path, capfd):
    file = write(tmp_path, "- {name: a, config: a.yaml}")
    assert main(["sweep", "--config", str(file), "--dry-run"]) == 0
    assert capfd.readouterr().out.startswith("missing a: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("runs", "extra", "message"),
    [
        ("- {name: a, config: a.yaml, needs: [b]}\n- {name: b, config: a.yaml}", "", "a needs b, which must be listed"),
        ("- {name: a, config: a.yaml}\n- {name: a, config: a.yaml}", "", "two runs are called a"),
        ("- {name: a, konfig: a.yaml}", "", "a run has name, config, needs and set"),
        ("- {name: a, config: a.yaml}", "compare: {runs: [z]}", "compare names z"),
        ("  []", "", "lists no runs"),
        ("- {name: a, config: a.yaml}", "workers: 0", "number of runs at a time"),
    ],
)
def test_impossible_sweeps_are_said_in_words(tmp_path, runs, extra, message):
    with pytest.raises(UserError, match=message):
        read_sweep(write(tmp_path, runs, extra), [])

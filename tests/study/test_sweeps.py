"""Sweeps: order, what is done, what failed, what is missing."""

import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aeic_lightning.cli import main
from aeic_lightning.config import as_override, load_config, locate
from aeic_lightning.errors import UserError
from aeic_lightning.own_classes import source_digests
from aeic_lightning.run_folder import FIT
from aeic_lightning.study.executors import LOCK, ClusterRun, LocalExecutor, LocalRun
from aeic_lightning.study.runner import run_sweep
from aeic_lightning.study.sweep_file import LOG, RECORD, SETTINGS, Run, read_sweep

ROOT = Path(__file__).parents[2]


def write(folder: Path, runs: str, extra: str = "") -> Path:
    file = folder / "sweep.yaml"
    file.write_text(f"vars: {{root: {folder}/runs}}\nroot: ${{vars.root}}\nruns:\n{runs}\n{extra}")
    return file


def test_the_tiny_study_is_a_teacher_then_students_that_need_it():
    sweep = read_sweep(ROOT / "experiments/sweeps/tiny.yaml", ["vars.root=/elsewhere"])
    names = [run.name for run in sweep.runs]
    assert names[:2] == ["teacher_stage1", "teacher_stage2"]
    assert all(names.index(need) < i for i, run in enumerate(sweep.runs) for need in run.needs)
    assert all(locate(run.config) for run in sweep.runs)
    assert all(run.folder == Path("/elsewhere") / run.name for run in sweep.runs)


def test_a_run_gets_its_folder_and_its_settings(tmp_path):
    file = write(tmp_path, "- {name: a, config: a.yaml, set: {vars.depth: 2}}")
    (run,) = read_sweep(file, []).runs
    assert run.command[-3:] == [f"--vars.root={tmp_path}/runs", "--vars.name=a", "--vars.depth=2"]
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / "checkpoints" / "last.ckpt").touch()
    assert run.command[-2:] == ["--ckpt_path", "last"], "an interrupted run goes on"


def test_a_grid_becomes_a_run_for_each_point(tmp_path):
    for arm in ("plain", "short"):
        (tmp_path / f"{arm}.yaml").touch()
    grid = "depth: [1, 2], arm: {plain: {vars.steps: 9}, short: {vars.steps: '{depth}', vars.from: 'base'}}"
    file = write(
        tmp_path,
        "- {name: base, config: plain.yaml, labels: {arm: teacher}}\n"
        f"- {{name: 'depth={{depth}}_arm={{arm}}', grid: {{{grid}}}, config: '{{arm}}.yaml', needs: [base],"
        " set: {vars.depth: '{depth}', vars.steps: 5}}",
        "set: {data.crop: 128}",
    )
    base, *runs = read_sweep(file, ["set.data.flip=false"]).runs
    assert base.settings["model.init_args.labels.arm"] == "teacher"
    names = [f"depth={depth}_arm={arm}" for depth in (1, 2) for arm in ("plain", "short")]
    assert [run.name for run in runs] == names
    last = runs[-1]
    assert last.config == tmp_path / "short.yaml"
    assert last.needs == ["base"]
    common = {"vars.root": f"{tmp_path}/runs", "vars.name": "depth=2_arm=short", "data.crop": 128, "data.flip": False}
    labels = {"model.init_args.labels.depth": 2, "model.init_args.labels.arm": "short"}
    # An axis' own settings come after the entry's.
    assert last.settings == common | {"vars.depth": 2, "vars.steps": 2, "vars.from": "base"} | labels


def test_a_failure_stops_what_needs_it_but_not_the_rest(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "no.yaml").write_text("model: {class_path: nowhere.Nothing}")
    runs = "- {name: a, config: no.yaml}\n- {name: b, config: no.yaml, needs: [a]}\n- {name: c, config: no.yaml}"
    sweep = read_sweep(write(tmp_path, runs), [])
    (sweep.runs[2].folder).mkdir(parents=True)
    (sweep.runs[2].folder / RECORD).touch()
    assert run_sweep(sweep) == 1
    said = capfd.readouterr().out
    assert "a: failed" in said
    assert "nowhere" in said
    assert "b: not started, since a failed" in said
    assert "c: done before" in said
    assert "2 of 3 runs are missing:\n  a: " in said
    assert "nowhere" in (tmp_path / "runs" / "a" / "log.txt").read_text()


def test_a_run_whose_file_is_missing_stops_the_sweep_before_it_starts(tmp_path, capfd):
    file = write(tmp_path, "- {name: a, config: no.yaml}")
    assert main(["sweep", "--config", str(file)]) == 2
    assert "no config file" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_dry_run_lists_and_runs_nothing(tmp_path, capfd):
    (tmp_path / "a.yaml").write_text("vars: {steps: 1}\ntrainer: {max_steps: '${vars.steps}'}")
    file = write(tmp_path, "- {name: a, config: a.yaml}")
    assert main(["sweep", "--config", str(file), "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert said.startswith("missing a: ")
    assert said.endswith("0 of 1 runs done\n")
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_other_settings_is_not_taken_for_this_run(tmp_path, capfd):
    (tmp_path / "a.yaml").write_text("vars: {steps: 1}\ntrainer: {max_steps: '${vars.steps}'}")
    file = write(tmp_path, "- {name: a, config: a.yaml}")
    (run,) = read_sweep(file, []).runs
    run.folder.mkdir(parents=True)
    (run.folder / SETTINGS).write_text(json.dumps(run.resolved()))
    changed = ["sweep", "--config", str(file), "--dry-run", "--set.vars.steps=2"]
    assert main(changed) == 0, "nothing was trained, so the settings may be corrected"
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "last.ckpt").touch()
    assert main(["sweep", "--config", str(file), "--dry-run"]) == 0
    assert main(changed) == 2
    assert "was begun with trainer.max_steps = 1, the sweep now says 2" in capfd.readouterr().err


def test_a_study_goes_on_where_its_folder_was_moved_to(tmp_path, capfd):
    text = "vars: {name: '', steps: 1}\ntrainer: {default_root_dir: '%s/${vars.name}', max_steps: '${vars.steps}'}"
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.yaml").write_text(text % (tmp_path / place / "runs"))
        write(tmp_path / place, "- {name: a, config: a.yaml, set: {vars.name: a}}")
    (run,) = read_sweep(tmp_path / "here" / "sweep.yaml", []).runs
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / SETTINGS).write_text(json.dumps(run.resolved()))
    (run.folder / "checkpoints" / "last.ckpt").touch()
    shutil.move(tmp_path / "here" / "runs", tmp_path / "there" / "runs")
    words = ["sweep", "--config", str(tmp_path / "there" / "sweep.yaml"), "--dry-run"]
    assert main(words) == 0
    assert main([*words, "--set.vars.steps=2"]) == 2
    assert "was begun with trainer.max_steps = 1" in capfd.readouterr().err


@pytest.mark.parametrize("held", [LOCK, f"{FIT}.lock"], ids=["by a job of the sweep", "by the run"])
def test_a_run_waits_for_what_a_killed_sweep_left_going(tmp_path, held):
    """It then finds the run finished, and does not start it a second time."""
    run = Run("a", tmp_path / "none.yaml", tmp_path / "a")
    run.folder.mkdir()
    with ThreadPoolExecutor() as pool:
        with FileLock(run.folder / held):
            local = LocalRun(run)
            assert not local.done()
            waiting = pool.submit(ClusterRun(run))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            assert not local.done()
            (run.folder / RECORD).touch()
        assert waiting.result(timeout=10) is None
        assert local.done()
        assert local.result() is None
    assert not (run.folder / LOG).exists()


# ---------------------------------------------------------------------- values

PITFALLS = [
    None, "null", "~", "007", 7, "7", "1e3", 1000.0, "on", True, "true", "x # y", "1:30", "2020-01-01", "", " x",
    "a: b", "[1]", [1, "1"], {"k": "no"}, "'", '"', "\\", "a\nb", "\x07", "ü 😀", 1e-07, float("inf"), -0.0, "=", "---",
]  # fmt: skip


def same(a, b):
    return type(a) is type(b) and repr(a) == repr(b)


@pytest.mark.parametrize("value", PITFALLS, ids=repr)
def test_a_value_reaches_the_run_as_the_file_has_it(tmp_path, value):
    (tmp_path / "a.yaml").write_text("vars: {x: 0}\nx: ${vars.x}\nlisted: []")
    entry = {
        "name": "run{number}",
        "config": "a.yaml",
        "set": {"vars.x": "{value}", "listed": ["{value}"], "own": value},
    }
    entry["grid"] = {"number": [1], "value": [value]}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.dump({"root": str(tmp_path), "runs": [entry]}, Dumper=Quoting))
    (run,) = read_sweep(file, []).runs
    config = run.resolved()
    assert same(config["x"], value)
    assert same(config["own"], value)
    assert same(config["listed"], [value])
    label = config["model"]["init_args"]["labels"]["value"]
    assert same(label, value) if type(value) in (int, float, str) else isinstance(label, str)


class Quoting(yaml.SafeDumper):
    """Texts in quotes, so that the test's file says what it means to every reader of YAML."""


Quoting.add_representer(str, lambda d, text: d.represent_scalar("tag:yaml.org,2002:str", text, style='"'))

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner, min_size=1), max_leaves=5
)


@given(VALUES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_override_is_read_as_what_was_written(tmp_path, value):
    if "${" in repr(value):
        return  # an interpolation, which the run resolves
    (tmp_path / "a.yaml").write_text("x: 0")
    assert same(load_config([tmp_path / "a.yaml"], [as_override("x", value)])["x"], value)


def test_labels_of_a_run_keep_their_types(tmp_path, capfd):
    """Through LightningCLI too, which reads a text as YAML where a setting may be a number."""
    labels = {"a": "007", "b": "1e3", "c": "on", "d": "x # y", "e": "1:30", "f": 7, "g": 0.5, "h": "null", "i": "7"}
    entry = {"name": "a", "config": str(ROOT / "experiments/tiny/teacher_stage1.yaml"), "labels": labels}
    (tmp_path / "sweep.yaml").write_text(yaml.dump({"root": str(tmp_path), "runs": [entry]}, Dumper=Quoting))
    (run,) = read_sweep(tmp_path / "sweep.yaml", []).runs
    with pytest.raises(SystemExit) as stop:
        main([*run.command[3:], "--print_config"])
    assert stop.value.code == 0
    arrived = yaml.safe_load(capfd.readouterr().out)["model"]["init_args"]["labels"]
    assert {k: repr(v) for k, v in arrived.items()} == {k: repr(v) for k, v in labels.items()}


# ---------------------------------------------------------------------- killed and started again


def figures(root: Path) -> dict[str, dict]:
    """What each run measured, and its last weights."""
    found = {}
    for file in root.glob("*/metrics_val.json"):
        weights = torch.load(file.parent / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        found[file.parent.name] = json.loads(file.read_text()) | {"weights": weights}
    return found


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_it_gives_the_same_table(forked, tmp_path):
    """Apart: a killed sweep, in test_sweep_processes.py; a killed run, in robustness/test_robustness.py."""

    def command(root: str) -> list[str]:
        small = [
            f"--set.{word}"
            for word in (
                "vars.steps=4",
                "vars.val_every=4",
                "data.init_args.crop_size=128",
                "vars.save_every=1",
                "data.init_args.batch_size=1",
                "data.init_args.val_max_size=[128,192]",
                "model.init_args.codec.widths=[16,16,16,32,32]",
                "model.init_args.codec.depths=[1,1,1,1,1]",
                "model.init_args.codec.context_width=32",
                "model.init_args.codec.synthesis_widths=[32,24,16]",
                "model.init_args.decoder.unet.widths=[16,16,16,16]",
            )
        ]
        file = tmp_path / "sweep.yaml"
        teachers = ROOT / "experiments" / "encoder_depth"
        file.write_text(
            "vars: {root: r}\nroot: ${vars.root}\nthreads: 1\nruns:\n"
            f"- {{name: a, config: {teachers}/teacher_stage1.yaml}}\n"
            f"- {{name: b, config: {teachers}/teacher_stage2.yaml, needs: [a], set: {{vars.stage1: a}}}}\n"
        )
        return ["sweep", "--config", str(file), f"--vars.root={root}", *small]

    words = command(tmp_path / "whole")
    for run in read_sweep(tmp_path / "sweep.yaml", [word.removeprefix("--") for word in words[3:]]).runs:
        assert main(run.command[3:]) == 0
    folder = tmp_path / "killed" / "b"
    sweep = forked.call("tests.study.forked_sweep:main", command(tmp_path / "killed"))
    # Not what it prints: on a busy machine the first line about a step comes after the last step.
    while not (folder / "checkpoints" / "last.ckpt").is_file():
        assert sweep.poll() is None, "the sweep has ended by itself"
        time.sleep(0.02)
    sweep.kill()
    again = forked.finish("tests.study.forked_sweep:main", command(tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    assert "a: done before" in again.stdout
    assert re.search(r"saved .* at step [123]; go on", (folder / "log.txt").read_text()), "it was stopped in the middle"
    assert "Restored all states" in (folder / "log.txt").read_text()
    assert "all 2 runs done" in again.stdout
    whole, killed = figures(tmp_path / "whole"), figures(tmp_path / "killed")
    assert set(whole) == {"a", "b"}
    for name, record in whole.items():
        weights, theirs = record.pop("weights"), killed[name].pop("weights")
        assert all(torch.equal(weights[key], theirs[key]) for key in weights)
        assert record == killed[name]


@pytest.mark.parametrize(
    ("runs", "extra", "message"),
    [
        ("- {name: a, config: a.yaml, needs: [b]}\n- {name: b, config: a.yaml}", "", "a needs b, which must be listed"),
        ("- {name: a, config: a.yaml}\n- {name: a, config: a.yaml}", "", "two runs are called a"),
        ("- {name: a, konfig: a.yaml}", "", "a run has no .konfig.; did you mean config"),
        ("- {name: a, config: a.yaml}", "compare: {runs: [z]}", "compare names z"),
        ("  []", "", "lists no runs"),
        ("- {name: a, config: a.yaml}", "workers: 0", "workers is 0"),
        ("- {name: a, config: a.yaml}", "worker: 2", "a sweep has no .worker.; did you mean workers"),
        ("- {name: a, config: a.yaml}", "cluster: moon", "it is local or slurm"),
        ("- {name: a, config: a.yaml, grid: {depth: [1, 2]}}", "", "two runs are called a; name each axis"),
        ("- {name: 'a{deep}', config: a.yaml, grid: {depth: [1]}}", "", "names {deep}, but the grid has depth"),
        ("- {name: 'a{depth}', config: a.yaml, grid: {depth: 1}}", "", "a list of values"),
        ("- {name: ../a, config: a.yaml}", "", "without slashes"),
    ],
)
def test_impossible_sweeps_are_said_in_words(tmp_path, runs, extra, message):
    with pytest.raises(UserError, match=message):
        read_sweep(write(tmp_path, runs, extra), [])


@pytest.mark.parametrize("size", ["256", "[256]", "[256, 0]", "[256, 25.6]"])
def test_the_size_of_evaluated_images_is_height_and_width(tmp_path, size, capfd):
    (tmp_path / "a.yaml").write_text("{}")
    file = write(tmp_path, "- {name: a, config: a.yaml}")
    assert (
        main(["sweep", "--config", str(file), f"--report={{out: out, against: [], evaluate: {{max_size: {size}}}}}"])
        == 2
    )
    assert "report: evaluate.max_size is [HEIGHT, WIDTH]" in capfd.readouterr().err


def test_a_class_edited_between_two_runs_is_reported_before_the_next_run(tmp_path, capfd, monkeypatch):
    """By the record of the runs that are done, and the file as it is when the sweep starts again."""
    module = tmp_path / "edited_between_runs.py"
    module.write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.yaml").write_text("model: {init_args: {codec: {encoder: {class_path: edited_between_runs.Mine}}}}")
    sweep = read_sweep(write(tmp_path, "- {name: a, config: a.yaml}\n- {name: b, config: a.yaml}"), [])
    done = sweep.runs[0].folder
    done.mkdir(parents=True)
    (done / RECORD).touch()
    (done / "run.json").write_text(json.dumps({"sources": source_digests({"edited_between_runs": module})}))
    started = []
    fails = "raise SystemExit('made to fail')"
    monkeypatch.setattr(Run, "command", property(lambda run: started.append(run.name) or [sys.executable, "-c", fails]))
    assert run_sweep(sweep) == 1
    assert "was edited" not in capfd.readouterr().err
    module.write_text("class Mine:\n    edited = True\n")

    def start(executor, run):
        said.append(capfd.readouterr().err)
        raise KeyboardInterrupt

    said = []
    monkeypatch.setattr(LocalExecutor, "submit", start)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep)
    assert started == ["b"]
    assert "edited_between_runs was edited between the runs a and b" in said[0]

"""A run folder has one place, one process that trains in it, and a record that is true."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from aeic_lightning.cli import main
from aeic_lightning.config import flat
from aeic_lightning.errors import UserError
from aeic_lightning.provenance import git_state, user_repository
from aeic_lightning.run_folder import only_fit, run_folder, settle_run_folder
from aeic_lightning.study.results import read_result

ROOT = Path(__file__).parent.parent
TEACHER = ROOT / "experiments" / "tiny" / "teacher_stage1.yaml"
CHECKPOINTS = "{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 1}}"
MEASURES = "{class_path: callbacks.quality.QualityMetrics, init_args: {ms_ssim: false, lpips: [], dists: []}}"


def words(root: str | Path, *more: str, command: str = "fit", steps: int = 2) -> list[str]:
    """A tiny teacher with the cheapest losses."""
    return [
        command, "--config", str(TEACHER), f"--vars.root={root}", "--vars.name=run", f"--vars.steps={steps}",
        "--vars.val_every=100", "--data.init_args.batch_size=1", "--data.init_args.val_max_size=[128,128]",
        "--model.init_args.write_streams=false",
        "--model.init_args.objective.lpips=0", "--model.init_args.objective.semantic=0",
        f"--trainer.callbacks=[{CHECKPOINTS}, {MEASURES}]", *more,
    ]  # fmt: skip


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# ---------------------------------------------------------------------- where it is


def test_every_way_to_write_a_folder_leads_to_one_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    for path in ("~/runs/a", "$HOME/runs/a", "${HOME}/runs/a", "runs/a", "./runs/../disk/a", tmp_path / "runs" / "a"):
        assert run_folder(path) == (tmp_path / "disk" / "a").resolve()
    with pytest.raises(UserError, match="environment variable in this path is not set"):
        run_folder("$NOT_SET_ANYWHERE/runs")


def test_trainer_and_loggers_get_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    loggers = [{"class_path": "L", "init_args": {"save_dir": "~/runs"}}, {"class_path": "M"}]
    config = {"trainer": {"default_root_dir": "~/runs", "logger": loggers}}
    assert settle_run_folder(config) == tmp_path.resolve() / "runs"
    assert config["trainer"]["default_root_dir"] == loggers[0]["init_args"]["save_dir"] == str(tmp_path / "runs")
    for logger in (True, False, None):
        assert settle_run_folder({"trainer": {"logger": logger}}) == Path.cwd()
    assert settle_run_folder({}) == Path.cwd()


# ---------------------------------------------------------------------- a run, its guard and its record


def test_a_run_is_found_guarded_and_resumed_by_any_name_of_its_folder(tmp_path, monkeypatch, capfd):
    """Also: what a resume changes is reported and recorded, and what is refused changes nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "disk" / "run"
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert main(words("~/link", "--vars.lambda=3")) == 0
    assert not (tmp_path / "~").exists()
    metrics = json.loads((folder / "metrics_val.json").read_text())
    assert metrics["step"] == 2, "val_every is 100, and the last step is validated all the same"
    beginning = (folder / "config.yaml").read_text()
    before = files(tmp_path)
    capfd.readouterr()

    for root, more, steps, message in [
        ("$HOME/link", (), 2, "already holds a run"),
        ("disk", ("--ckpt_path", "last"), 1, "trainer.max_steps is 1, but .*last.ckpt is from 2 already"),
    ]:
        assert main(words(root, *more, steps=steps)) == 2
        (said,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert re.search(message, said), said
        assert files(tmp_path) == before, "what is refused changes no file"

    assert main(words("disk", "--ckpt_path", "last", "--vars.lambda=5", steps=3)) == 0
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    said = capfd.readouterr().err
    assert "from step 2 on with other settings than the run began with" in said
    assert "model.init_args.objective.rate.weight 3 -> 5" in said
    assert (folder / "config.yaml").read_text() == beginning
    later = yaml.safe_load((folder / "config_step_0000002.yaml").read_text())
    assert later["model"]["init_args"]["objective"]["rate"]["weight"] == 5
    record = json.loads((folder / "run.json").read_text())
    assert "--vars.lambda=3" in record["command"] or record["command"].startswith("python -m aeic_lightning")
    (resumed,) = record["resumed"]
    assert resumed["step"] == 2
    assert resumed["changed"] == {"model.init_args.objective.rate.weight": [3, 5], "trainer.max_steps": [2, 3]}
    assert resumed["resumed_from"] == str(folder / "checkpoints" / "last.ckpt")

    # What the run says of itself is what its config says, after the resume as well; reading it takes JSON alone.
    run = read_result(folder)
    assert record["experiment"]["settings"]["trainer.max_steps"] == "3"
    assert run.costs is not None
    assert run.labels["lambda"] == 3
    (folder / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "experiment"}))
    assert read_result(folder) == run, "as it is derived for older runs"
    (folder / "run.json").write_text(json.dumps(record))
    reading = f"from aeic_lightning.study.results import read_result; read_result({str(folder)!r})"
    modules = "import sys; print({'torch', 'yaml'} & set(sys.modules))"
    read = subprocess.run([sys.executable, "-c", f"{reading}; {modules}"], capture_output=True, text=True, cwd=ROOT)
    assert read.stdout == "set()\n", read.stderr

    # Another run's checkpoint would replace the records of this one.
    other = tmp_path / "other.ckpt"
    other.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    before = files(tmp_path)
    for command in ("fit", "validate"):
        assert main(words("disk", "--ckpt_path", str(other), command=command, steps=9)) == 2
        assert "holds another run than" in capfd.readouterr().err
        assert files(tmp_path) == before

    assert main(words("disk", "--ckpt_path", "last", command="validate", steps=3)) == 0
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"config_validate.yaml", "run_validate.json"} <= names
    assert not [name for name in names if "TrainerFn" in name]
    assert json.loads((folder / "run.json").read_text()) == record


def test_fast_dev_run_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curve = "{class_path: callbacks.curves.RateDistortionPicture, init_args: {metrics: [psnr]}}"
    callbacks = f"[{CHECKPOINTS}, {MEASURES}, {curve}]"
    assert main(words(tmp_path / "runs", "--trainer.fast_dev_run=true", f"--trainer.callbacks={callbacks}")) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--trainer.precision=bf16-true", "trainer.precision: bf16-true is not possible"),
        ("--trainer.precision=64-true", "trainer.precision: 64-true is not possible"),
        ("--trainer.overfit_batches=2", "trainer.overfit_batches is not possible"),
    ],
)
def test_what_lightning_offers_and_these_systems_cannot_do(tmp_path, capfd, more, message):
    assert main(words(tmp_path, more)) == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_written_is_refused_before_anything_is_built(tmp_path, capfd):
    (tmp_path / "run").write_text("a file")
    assert main(words(tmp_path)) == 2
    assert "is a file, not a folder" in capfd.readouterr().err


def test_flat_names_every_setting():
    config = {"a": {"b": 1, "c": []}, "d": [{"class_path": "X", "init_args": {"n": 2}}], "e": [1, 2], "f": {}}
    assert flat(config, lists=True) == {
        "a.b": 1,
        "a.c": [],
        "d.0.class_path": "X",
        "d.0.init_args.n": 2,
        "e": [1, 2],
        "f": {},
    }


# ---------------------------------------------------------------------- one process at a time

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom aeic_lightning.run_folder import only_fit\n"
    "with only_fit(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(100)\n"
)


def hold(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_fit_is_refused_and_told_of_the_first(tmp_path, capfd):
    process = hold(tmp_path / "run")
    try:
        before = files(tmp_path / "run")
        assert main(words(tmp_path)) == 2
        assert f"run is in use: process {process.pid} on " in capfd.readouterr().err
        assert files(tmp_path / "run") == before
    finally:
        process.kill()
        process.wait()
    with only_fit(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / ".fit.json").exists()


def test_processes_that_the_run_starts_ask_for_no_lock(tmp_path, monkeypatch):
    process = hold(tmp_path)
    try:
        monkeypatch.setenv("LOCAL_RANK", "1")
        with only_fit(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------------- signals


def test_sigterm_to_the_whole_group_with_workers_saves_and_leaves_no_process(forked, tmp_path):
    """As SLURM and a closing terminal send it: every process of the run gets it at once."""
    callbacks = (
        "[{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 100000}},"
        "{class_path: callbacks.progress.PlainProgress, init_args: {every_n_steps: 1}}]"
    )
    command = words(tmp_path, "--data.init_args.num_workers=2", f"--trainer.callbacks={callbacks}", steps=100000)
    log = tmp_path / "log.txt"
    process = forked.command(*command, output=log, new_session=True)
    deadline = time.monotonic() + 400
    while not log.exists() or "step 2/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=200) == 128 + signal.SIGTERM, log.read_text()
    said = log.read_text()
    assert "go on with --ckpt_path last" in said
    assert "killed" not in said
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] >= 2
    while _is_alive(process.pid):
        assert time.monotonic() < deadline + 100, "a worker is left"
        time.sleep(0.1)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------------- whose code it was


def repository(folder: Path) -> str:
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    for line in ("init -q", "add .", "-c user.name=x -c user.email=x@y commit -q -m first"):
        subprocess.run(["git", *line.split()], cwd=folder, check=True)
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_this_code_and_the_users_repository_are_told_apart(tmp_path, monkeypatch):
    code = git_state()
    commit = repository(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert git_state() == code, "wherever the command is given"
    assert user_repository() == {"name": "mine", "commit": commit, "changed": False}
    (tmp_path / "mine" / "a.txt").write_text("b")
    assert user_repository() == {"name": "mine", "commit": commit, "changed": True}
    monkeypatch.chdir(tmp_path)
    assert user_repository() is None
    monkeypatch.chdir(ROOT)
    assert user_repository() is None


def test_a_package_in_someones_repository_is_not_taken_for_it(tmp_path, monkeypatch):
    """As in a virtual environment below the user's working folder."""
    repository(tmp_path / "mine")
    package = tmp_path / "mine" / ".venv" / "aeic_lightning"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    monkeypatch.setattr("aeic_lightning.provenance.__file__", str(package / "provenance.py"))
    assert git_state() is None

"""The command line as its users meet it: help without heavy imports, exit codes, refusals, resuming."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from aeic_lightning.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
TEACHER = ROOT / "experiments" / "tiny" / "teacher_stage1.yaml"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def fit(root: Path, *words: str, name: str = "run", steps: int = 2) -> int:
    """A tiny teacher with the cheapest losses; callbacks that need features are left out."""
    callbacks = "[{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 1}}]"
    return main(
        ["fit", "--config", str(TEACHER), f"--vars.root={root}", f"--vars.name={name}", f"--vars.steps={steps}",
         "--data.init_args.batch_size=1", "--data.init_args.val_max_size=[128,128]", f"--vars.val_every={steps}",
         "--model.init_args.objective.lpips=0", "--model.init_args.objective.semantic=0",
         f"--trainer.callbacks={callbacks}",
         *words]
    )  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    probe = (
        "import sys\nfrom aeic_lightning.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'lightning', 'diffusers', 'timm', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.yaml"], "error: no config file nowhere.yaml"),
        (["--config", str(TEACHER), "--model.init_args.objective.rat=3"], "no term 'rat'"),
        (["--config", str(TEACHER), "--vars.steps=many"], "max_steps"),
        (["--config", str(TEACHER), "--model.init_args.codec.widths=[16,32]"], "2 widths but 5 depths"),
        (["--config", str(TEACHER), "--data.init_args.crop_size=100"], "multiple of 128"),
        (["--config", str(TEACHER), "--ckpt_path", "last"], "leave --ckpt_path out to start the run"),
        (["--config", str(TEACHER), "--ckpt_path", "nowhere.ckpt"], "no file nowhere.ckpt"),
        (["--config", str(TEACHER), "--model.init_args.init_from=nowhere.ckpt"], "init_from: no file nowhere.ckpt"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capfd, words, message):
    code = main(["fit", *words, f"--vars.root={tmp_path}"])
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2
    assert len(said) == 1
    assert message in said[0]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_run_leaves_its_record_and_refuses_a_restart(tmp_path, capfd):
    assert fit(tmp_path, "--vars.lambda=3") == 0
    folder = tmp_path / "run"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["objective"]["rate"]["weight"] == 3
    assert config["model"]["init_args"]["codec"]["skip_threshold"] == 0.08, "defaults are in the record too"
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["git"] or {"commit": 0, "changed": 0}) == {"commit", "changed"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    capfd.readouterr()
    assert fit(tmp_path) == 2
    assert "already holds a run; go on with it by --ckpt_path last" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    assert fit(tmp_path, "--ckpt_path", "last", steps=3) == 0
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(forked, tmp_path):
    callbacks = (
        "[{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 100000}},"
        "{class_path: callbacks.progress.PlainProgress, init_args: {every_n_steps: 1}}]"
    )
    words = ["fit", "--config", str(TEACHER), f"--vars.root={tmp_path}",
             "--vars.name=run", "--vars.steps=100000", "--data.init_args.batch_size=1",
             "--model.init_args.objective.lpips=0", "--model.init_args.objective.semantic=0",
             f"--trainer.callbacks={callbacks}"]  # fmt: skip
    log = tmp_path / "log.txt"
    process = forked.command(*words, output=log)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not log.exists() or "step 2/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 128 + signal.SIGINT
    assert "go on with --ckpt_path last" in log.read_text()
    step = torch.load(last, weights_only=True)["global_step"]
    assert step >= 2
    assert fit(tmp_path, "--ckpt_path", "last", steps=step + 1) == 0
    assert torch.load(last, weights_only=True)["global_step"] == step + 1


def test_validate_needs_a_checkpoint(capfd):
    assert main(["validate", "--config", str(TEACHER)]) == 2
    assert "add --ckpt_path last" in capfd.readouterr().err


def test_print_config_shows_every_setting(tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(TEACHER), f"--vars.root={tmp_path}", "--vars.lambda=7", "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    assert printed["model"]["init_args"]["objective"]["rate"]["weight"] == 7
    assert printed["trainer"]["default_root_dir"] == f"{tmp_path}/teacher_stage1"


@pytest.mark.parametrize("option", ["--print_config", "--dry-run"])
def test_a_misspelt_setting_is_said_in_one_line(option, capfd):
    assert main(["fit", "--config", str(TEACHER), "--model.init_args.codec.width=3", option]) == 2
    assert (
        capfd.readouterr().err == "error: model: Group 'codec' does not accept option 'width'; did you mean widths?\n"
    )


def test_a_failure_is_exit_code_1(tmp_path, capfd, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of its own making")

    monkeypatch.setattr("aeic_lightning.cli.commands.training.run", broken)
    assert main(["fit", "--config", str(TEACHER)]) == 1
    assert "failed: ZeroDivisionError: of its own making" in capfd.readouterr().err

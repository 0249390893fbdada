"""Checkpoints when a disk is full, and signals to stop, a SLURM job's among them."""

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import torch

from aeic_lightning.cli import main
from aeic_lightning.errors import RunError
from callbacks.checkpoint import WholeCheckpointIO, requeue

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "experiments" / "tiny" / "teacher_stage1.yaml"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full device")
def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(tmp_path):
    """What is written to /dev/full ends with the kernel's own ENOSPC."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1, "x": torch.zeros(9)}, path)
    before = path.read_bytes()
    (path.parent / "last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"No space left on device; the one before is intact; .*making space"):
        WholeCheckpointIO().save_checkpoint({"step": 2, "x": torch.zeros(99999)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    WholeCheckpointIO().save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}


def test_a_file_size_limit_in_a_run_is_exit_code_1(forked, tmp_path):
    """The first checkpoint fits, the second may not: the run ends in words, and goes on once the limit is gone."""
    done = forked.finish("tests.checkpoints.limited:file_size", run_words(tmp_path, steps=4))
    assert done.returncode == 1, done.stderr
    assert "failed: cannot write the checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1
    assert not last.with_name("last.ckpt.part").exists()


def run_words(root: Path, steps: int) -> list[str]:
    callbacks = (
        "[{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 1}},"
        "{class_path: callbacks.progress.PlainProgress, init_args: {every_n_steps: 1}}]"
    )
    return ["fit", "--config", str(TEACHER), f"--vars.root={root}", "--vars.name=run", f"--vars.steps={steps}",
            f"--vars.val_every={steps}", "--data.init_args.batch_size=1", "--data.init_args.val_max_size=[64,64]",
            "--model.init_args.objective.lpips=0", "--model.init_args.objective.semantic=0",
            "--model.init_args.write_streams=false", "--ckpt_path", "auto",
            f"--trainer.callbacks={callbacks}"]  # fmt: skip


def test_slurms_signal_saves_and_requeues_and_the_same_command_goes_on(forked, tmp_path):
    """The job's variables as SLURM sets them, its signal, and an `scontrol` that writes down what it is asked."""
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "study",
        "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    }  # fmt: skip
    log = tmp_path / "log.txt"
    process = forked.command(*run_words(tmp_path, steps=100_000), output=log, env=environment)
    deadline = time.monotonic() + 240
    while not log.exists() or "step 2/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    code = process.wait(timeout=120)
    assert code == 128 + signal.SIGUSR1, log.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "job 77 is back in the queue" in log.read_text()
    assert not list(tmp_path.rglob("hpc_ckpt*")), "Lightning's own handler must stay out of it"
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step >= 2
    words = run_words(tmp_path, steps=step + 1)
    done = forked.finish("aeic_lightning.cli:main", words, env=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["resumed_from"].endswith("last.ckpt")
    assert {"deterministic_algorithms", "threads", "processes"} <= record["determinism"].keys()


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "5"}, "5"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}, "8_3"),
    ],
)
def test_a_task_of_an_array_is_requeued_by_itself(monkeypatch, variables, job):
    asked = []
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def run(words, **_):
        asked.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    requeue()
    assert asked == [["scontrol", "requeue", job]]
    monkeypatch.setenv("SLURM_JOB_ID", "5; rm -rf /")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    with pytest.raises(RunError, match="is no number of a SLURM job"):
        requeue()


def test_memory_that_runs_out_says_what_to_lower(forked, tmp_path):
    """A real allocation failure."""
    words = [*run_words(tmp_path, steps=1), "--data.init_args.crop_size=2048", "--data.init_args.batch_size=2"]
    done = forked.finish("tests.checkpoints.limited:memory", words)
    assert done.returncode == 1, done.stderr
    assert "failed: out of memory" in done.stderr
    assert "Lower data.init_args.batch_size" in done.stderr


def test_a_resumed_run_does_not_need_what_it_started_from(tmp_path):
    """The checkpoint of the stage before may be gone by then."""
    start = tmp_path / "start.ckpt"
    assert main(run_words(tmp_path / "before", steps=1)) == 0
    (tmp_path / "before" / "run" / "checkpoints" / "last.ckpt").rename(start)
    words = [f"--model.init_args.init_from={start}"]
    assert main([*run_words(tmp_path, steps=1), *words]) == 0
    start.unlink()
    assert main([*run_words(tmp_path, steps=2), *words]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["resumed_from"] == str(tmp_path / "run" / "checkpoints" / "last.ckpt")

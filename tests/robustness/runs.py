"""Runs of the command line, each in a process of its own that is forked from this one.

Importing torch and Lightning takes longer than the runs do, so it happens once, before the first fork.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

# One thread, so that a forked process needs no thread pool that it did not inherit.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[2]


def import_everything() -> None:
    """What the runs need, without starting a thread."""
    from importlib import import_module

    for module in (
        "config.lightning_cli",
        "systems",
        "classification.head",
        "classification.system",
        "cli.commands.training",
    ):
        import_module(f"aeic_lightning.{module}")
    for module in ("callbacks.accuracy", "callbacks.curves", "callbacks.layout", "callbacks.pictures", "datamodules",
                   "callbacks.checkpoint", "datamodules.labelled", "torch.utils.tensorboard"):  # fmt: skip
        import_module(module)


def start(argv: list[str], log: Path, before: Callable[[], None] | None = None) -> int:
    """Fork a process that runs the command line with these words; its id. What it prints goes to the end of `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(ROOT)
        print("$ aeic_lightning", *argv, flush=True)
        if before:
            before()
        from aeic_lightning.cli import main

        code = main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float | None = None) -> int:
    """The exit code, or minus the signal that ended it; after `seconds` it is killed with SIGKILL."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 60
        time.sleep(0.02)


def run(argv: list[str], log: Path, before: Callable[[], None] | None = None) -> int:
    """`start`, then `wait`."""
    return wait(start(argv, log, before))

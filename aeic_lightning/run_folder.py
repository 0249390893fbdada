"""The folder of a training run: where it is, and that one process at a time trains in it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.output import is_first_process
from aeic_lightning.provenance import command_line

FIT = ".fit"  # .fit.lock in the run folder is locked while a process trains there, which .fit.json names
ORPHANS_END = 30.0  # seconds in which the loaders' workers of a killed process notice that it is gone


def run_folder(path: str | Path) -> Path:
    """The absolute path of a run folder, or of the root of several: `~`, $VARIABLES and links are followed.

    Everything that reads or writes there takes its path from here, so that all of it is in one place.

    Raises UserError for a variable that is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(str(path)))
    if "$" in expanded:
        raise UserError(f"{path}: an environment variable in this path is not set; set it, or write the path out")
    return Path(os.path.realpath(expanded))


def settle_run_folder(config: dict[str, Any]) -> Path:
    """Make the run folder of a resolved config absolute, where the trainer and the loggers name it, and return it."""
    trainer = config.setdefault("trainer", {}) or {}
    folder = run_folder(trainer.get("default_root_dir") or ".")
    trainer["default_root_dir"] = str(folder)
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = (logger.get("init_args") or {}) if isinstance(logger, dict) else {}
        for name in ("save_dir", "dir"):
            if isinstance(arguments.get(name), str):
                arguments[name] = str(run_folder(arguments[name]))
    config["trainer"] = trainer
    return folder


def read_record(folder: Path) -> dict[str, Any] | None:
    """`run.json` of a run folder; None where there is none that can be read."""
    record = _json(folder / "run.json")
    return record if isinstance(record, dict) else None


@contextmanager
def only_fit(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the processes that the run itself starts do not ask for it.

    Raises UserError, which names the other process, if one trains there.
    """
    if not is_first_process():
        yield
        return
    refused = (
        "{folder} is in use: {holder} is training there; wait for it, stop it, or train in another folder "
        "(--vars.name=NAME)"
    )
    with only_process(folder, FIT, refused):
        yield


def is_free(folder: Path) -> bool:
    """Whether no process trains in a run folder."""
    try:
        with FileLock(folder / f"{FIT}.lock", timeout=0):
            return True
    except Timeout:
        return False


@contextmanager
def only_process(folder: Path, name: str, refused: str) -> Iterator[None]:
    """Hold the lock NAME.lock of a folder, which is made if need be; NAME.json says which process has it.

    The system releases it when the process ends, in whatever way. Raises UserError if another process has it, with the
    words `refused`, in which {folder} and {holder} are filled in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, record = FileLock(folder / f"{name}.lock"), folder / f"{name}.json"
    other = _json(record)
    try:
        lock.acquire(timeout=ORPHANS_END if other and _is_dead(other) else 0)
    except Timeout:
        raise UserError(refused.format(folder=folder, holder=_describe(_json(record)))) from None
    try:
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command_line(),
        }
        write_whole(record, json.dumps(holder) + "\n")
        yield
    finally:
        record.unlink(missing_ok=True)
        lock.release()


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the process was one of this machine and has ended; its workers may still hold the lock."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _describe(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return "process {process} on {host} (since {started}: {command})".format_map(holder)

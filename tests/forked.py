"""Processes that start in a moment: forked from a server that has PyTorch, Lightning and this project loaded.

A process of its own shows what the test's process cannot: exit codes, signals, limits, what is left behind. Importing
everything anew for each takes longer than what most of them do, so one process does it, before the first test: it is
forked when the tests are collected, if one of them asks for the fixture `forked`, and forks again for each request.
"""

import contextlib
import importlib
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.robustness.runs import ROOT, import_everything

UNSEEDED = 67280421310721  # PyTorch's seed in a process that has chosen none
POLL = 0.02


class Process:
    """A process of the server, as `subprocess.Popen` has it: `pid`, `returncode`, poll, wait, signals.

    Args:
        pid: its id.
        reap: the exit code of a process that has ended, asked of its parent.
    """

    def __init__(self, pid: int, reap: Callable[[int], int | None]) -> None:
        self.pid, self._reap = pid, reap
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, minus a signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._reap(self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """Starts processes that have everything loaded."""

    def __init__(self) -> None:
        self.started: list[Process] = []
        self._connection, far = multiprocessing.Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: an xdist worker has one, and it is idle
            self.pid = os.fork()
        if self.pid == 0:
            self._connection.close()
            _serve(far)
        far.close()

    def _ask(self, *question: Any) -> Any:
        self._connection.send(question)
        return self._connection.recv()

    def call(
        self, function: str, *arguments: Any, output: Path | str = os.devnull, errors: Path | str | None = None,
        cwd: Path | str = ROOT, env: dict[str, str] | None = None, new_session: bool = False,
    ) -> Process:  # fmt: skip
        """Start a process that calls `module:function` with these arguments.

        What it returns, or gives to `sys.exit`, is the exit code, as with a script.

        Args:
            function: where it is.
            arguments: what can be pickled.
            output: file of its standard output, and of its errors too unless `errors` names another.
            errors: see `output`.
            cwd: its working folder.
            env: all of its environment; this process' own by default.
            new_session: whether it leads a session and a group of its own.
        """
        options = {"output": str(output), "errors": str(errors or output), "cwd": str(cwd), "new_session": new_session}
        pid = self._ask("start", function, arguments, dict(env or os.environ), options)
        self.started.append(Process(pid, lambda pid: self._ask("reap", pid)))
        return self.started[-1]

    def command(self, *words: str | Path, **options: Any) -> Process:
        """Start a command of the command line: `python -m aeic_lightning WORDS`."""
        return self.call("aeic_lightning.cli:main", list(map(str, words)), **options)

    def finish(self, function: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess:
        """Start a process, wait for its end, and return what it printed, as `subprocess.run` does."""
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            process = self.call(function, *arguments, output=output, errors=errors, **options)
            code = process.wait()
            return subprocess.CompletedProcess(arguments, code, output.read_text(), errors.read_text())

    def kill_what_runs(self) -> None:
        """End the processes that are left of a test."""
        for process in self.started:
            process.kill()
        self.started.clear()

    def end(self) -> None:
        """End the server."""
        self.kill_what_runs()
        self._connection.send(("end",))  # not by closing it alone: a process forked from this one may have it open too
        os.waitpid(self.pid, 0)


def _serve(connection: Connection) -> None:
    """Answer until the tests' process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for whoever runs the tests
    loaded = False
    with contextlib.suppress(EOFError):
        while True:
            kind, *question = connection.recv()
            if kind == "end":
                break
            if kind == "reap":
                connection.send(reap(*question))
                continue
            if not loaded:
                import_everything()
                loaded = True
            connection.send(start(*question))
    os._exit(0)


def start(function: str, arguments: tuple, env: dict[str, str], options: dict[str, Any]) -> int:
    """Fork this process, and call `module:function` in the new one; its id. The options are those of `Server.call`."""
    pid = os.fork()
    if pid == 0:
        _run(function, arguments, env, options)
    return pid


def reap(pid: int) -> int | None:
    """The exit code of a process that this one has started; None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _run(function: str, arguments: tuple, env: dict[str, str], options: dict[str, Any]) -> None:
    """In the new process: what a fresh one has, then the call, then the end."""
    code = 1
    try:
        if options["new_session"]:
            os.setsid()
        os.environ.clear()
        os.environ.update(env)
        os.chdir(options["cwd"])
        _fresh_streams(options["output"], options["errors"])
        _fresh_state()
        module, _, name = function.partition(":")
        code = getattr(importlib.import_module(module), name)(*arguments) or 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fresh_streams(output: str, errors: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for descriptor, target in ((1, os.open(output, flags)), (2, os.open(errors, flags))):
        os.dup2(target, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # pytest has its own in their place.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for logger in (logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))):
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:  # it has the stream that was there when its library was imported
                handler.setStream(sys.stderr)


def _fresh_state() -> None:
    import numpy
    import torch

    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as Python itself has it
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if the tests run where it is ignored
    random.seed()
    numpy.random.seed()
    torch.manual_seed(UNSEEDED)
    # PyTorch makes its thread pool anew at the first use after a fork, and two threads that do so at once abort.
    torch.set_num_threads(torch.get_num_threads())
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)

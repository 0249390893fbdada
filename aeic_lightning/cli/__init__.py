"""The command line: which command, its arguments, how errors look, and what ends it.

Importing this module, and any `--help`, must stay cheap: torch and Lightning take seconds to import, so a command
imports them when it runs.
"""

import argparse
import ctypes
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from aeic_lightning import __version__
from aeic_lightning.errors import RunError, UserError
from aeic_lightning.extras import hint
from aeic_lightning.output import PARENT, heedless, shown
from aeic_lightning.own_classes import HOME, PACKAGES

# Command -> (module with add_arguments(parser) and run(args, extra), one line of help).
COMMANDS = {
    "fit": ("training", "train a teacher or a student from a YAML config"),
    "validate": ("training", "run the validation images through a checkpoint"),
    "test": ("training", "run the test images through a checkpoint"),
    "predict": ("training", "reconstruct images with a checkpoint"),
    "sweep": ("sweep", "run a list of experiments, each after those it needs, then compare them"),
    "compare": ("compare", "table, JSON and picture of finished runs side by side"),
    "evaluate": ("evaluate", "rate and quality of a checkpoint, or of any codec's pictures, on a folder of images"),
    "anchors": ("anchors", "JPEG, WebP, AVIF and JPEG XL at the bytes of a result, or at given rates"),
    "bd-rate": ("bd_rate", "bits that curves spend against a reference at equal quality, with intervals"),
    "report": ("report", "one self-contained page of runs and result files: curves, BD-rates, pictures, configs"),
    "board": ("board", "a leaderboard: submissions decoded and measured anew beside rivals, or refused"),
    "compress": ("compress", "write images as .aeic files"),
    "decompress": ("decompress", "read .aeic files back as PNG"),
    "serve": ("serve", "a page on this machine to try the codec: a photograph beside JPEG, WebP and AVIF"),
    "classify": ("classify", "name the classes of .aeic files, from the streams alone"),
    "accuracy": ("accuracy", "accuracy, bytes and PSNR of finished classifying runs, from their files"),
    "verify": ("verify", "check that streams decode to the same latents under other settings"),
    "bench": ("bench", "time and memory of encoding and decoding, against the plain float32 network"),
    "export": ("export", "write the send and the receive half as ONNX, with tables and golden vectors"),
    "complexity": ("complexity", "parameters and MACs per pixel of a config, by module"),
    "plan": ("plan", "parameters, memory and missing weights of a config, before it is run"),
    "import-released": (
        "import_released",
        "turn a released checkpoint of AEIC or of compress-and-classify into one of this project",
    ),
}

NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
SAVES = ("fit", "sweep")
"""Commands that see to signals by themselves: they save, and go on later."""
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM."""
    follow_parent()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")
    with heedless() as out:
        code = _main(sys.argv[1:] if argv is None else argv)
        out.flush()
        # A reader that has gone (EPIPE), or a terminal (EIO), misses nothing.
        if code == 0 and out.lost and out.lost.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
            return _report(f"failed: standard output was lost, all else is done: {out.lost.strerror}", 1)
        return code


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="aeic-lightning",
        description="Distillation studies of ultra-low-bitrate learned image codecs.",
        epilog="COMMAND --help tells what a command takes.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name == chosen:
            import_module(f"aeic_lightning.cli.commands.{module}").add_arguments(sub)
    args, extra = parser.parse_known_args(argv)

    find_own_classes()
    # Small networks meet thousands of OpenMP barriers a second. Idle threads should spin for a moment (sleeping at
    # each barrier halves the speed) but not for long: beside another process that made training ten times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    run = import_module(f"aeic_lightning.cli.commands.{COMMANDS[args.command][0]}").run
    try:
        with stoppable(args.command):
            if not getattr(args, "document", False):
                return run(args, extra) or 0
            from aeic_lightning.output import json_output

            with json_output(True) as args.give:
                return run(args, extra) or 0
    except Stopped as stopped:
        return _report("stopped", 128 + stopped.number)
    except UserError as error:
        return _report(f"error: {error}", 2)
    except RunError as error:
        return _report(f"failed: {error}", 1)
    except KeyboardInterrupt:
        return _report("stopped", 130)
    except Exception as error:
        if os.environ.get("AEIC_TRACEBACK"):
            raise
        if isinstance(error, ImportError) and (words := hint(error)):
            return _report(f"error: {words}", 2)
        return _report(f"failed: {_explain(error, args.command)} (AEIC_TRACEBACK=1 shows where)", 1)


def _explain(error: Exception, command: str) -> str:
    """A failure in words: what can be done about it, where that is known."""
    message = " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        again = "; then go on with --ckpt_path last" if command == "fit" else ", and run the command again"
        where = error.filename or os.environ.get("TMPDIR", "the output or the temporary folder")
        return f"{error.strerror}: {where}. Make space on that disk{again}"
    # By name: torch may not have been imported.
    kind = type(error).__name__
    if kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in message:
        first = message.split(". ")[0]
        return f"out of memory ({first[:160]}). {SMALLER.get(command, SMALLER['compress'])}"
    return f"{kind}: {message}"


_TRAINING = (
    "Lower data.init_args.batch_size (and raise model.init_args.optimization.accumulate by the same factor) or "
    "data.init_args.crop_size, or set trainer.precision to bf16-mixed; if it happens in a validation, set "
    "data.init_args.val_max_size. `plan --config FILE` says what a run needs"
)
_EVALUATION = "Set data.init_args.val_max_size, or use smaller images"
SMALLER = {
    "fit": _TRAINING,
    "validate": _EVALUATION,
    "test": _EVALUATION,
    "predict": _EVALUATION,
    "compress": "Use smaller images, or a machine with more memory",
}
"""What to lower when memory runs out, by command."""


def _report(message: str, code: int) -> int:
    print(shown(message), file=sys.stderr)  # one line, whatever a file's name holds
    return code


def refuse_extra(extra: list[str]) -> None:
    """For commands that take no free overrides: an unknown argument is an error."""
    if extra:
        raise UserError(f"unknown argument {extra[0]}; --help lists what the command takes")


# ---------------------------------------------------------------------- the user's own classes


class _ProjectPackages:
    """Finds `callbacks` and `datamodules` of this project, wherever the working folder is on the path."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOME)]) if name in PACKAGES else None


def find_own_classes() -> None:
    """Let a file of the working folder be named by class path. Once a process, before these packages are imported."""
    here = os.getcwd()
    if not os.path.samefile(here, HOME):
        # `python -m` puts it first.
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or here) != here]
    if here not in sys.path:
        sys.path.append(here)
    if _ProjectPackages not in sys.meta_path:
        sys.meta_path.insert(0, _ProjectPackages)


# ---------------------------------------------------------------------- signals


class Stopped(BaseException):
    """A signal to stop has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Within, the first SIGTERM or SIGHUP raises `Stopped`: what a command had begun to write goes away with it.

    A second one ends the process at once. Not for the commands of `SAVES`, outside of the main thread, or where a
    signal is ignored (`nohup`) or has a handler.
    """
    before: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    if command not in SAVES and threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow_parent() -> None:
    """End this process with SIGTERM when the sweep that started it is gone, whatever ended that.

    `PARENT` names the process of the sweep. Linux sends the signal at its death; elsewhere a thread asks once a second.
    """
    named = os.environ.pop(PARENT, None)  # not for the children of this process
    if named is None:
        return
    parent = int(named)
    if not _signal_at_death_of_parent():
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="follow_parent").start()
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)


def _signal_at_death_of_parent() -> bool:
    """Ask Linux to send SIGTERM; False where that is not possible."""
    if sys.platform != "linux":
        return False
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)

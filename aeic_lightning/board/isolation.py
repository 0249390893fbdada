"""Commands of others: without network, in an empty folder, with limits of time, memory and file size.

| where | how |
|---|---|
| Linux with util-linux | namespaces (`unshare`): no network, all but the command's folder read-only, paths hidden |
| a container image is named | `docker` or `podman`: no network, read-only but for the command's folder |
| elsewhere | nothing but the limits; only where the caller asks for it, and the page says so |
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aeic_lightning.board import enter
from aeic_lightning.errors import UserError

ENTERED = ["unshare", "--map-root-user", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
WORDS = {
    "namespaces": "without network, on a file system that is read-only but for an empty folder",
    "container": "in a container without network",
    "none": "WITHOUT isolation: the commands could use the network and read every file of the user",
}
STEPS = 16 << 10


@dataclass(frozen=True)
class Limits:
    """What a command may take for one image.

    Attributes:
        seconds: on the clock.
        memory: bytes of address space of a process (of the container, where there is one).
        file: bytes of the largest file that it may write.
    """

    seconds: float = 300
    memory: int = 16 << 30
    file: int = 256 << 20


class CommandError(Exception):
    """Why a command is no good, in words for the table of refusals."""


@cache
def can_isolate() -> bool:
    """Whether namespaces work here."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    try:
        words = [*ENTERED, sys.executable, "-I", enter.__file__, "/dev/shm", "--", "true"]
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def kind_of(container: str | None, unsafe: bool) -> str:
    """Key of `WORDS`. Raises UserError where a command cannot be isolated and the caller has not allowed that."""
    if container:
        return "container"
    if can_isolate():
        return "namespaces"
    if not unsafe:
        raise UserError(
            "commands cannot be isolated here (no unshare, or no user namespaces): use Linux or a container, or read "
            "the submissions' code and add --no-isolation"
        )
    return "none"


def run(
    command: Sequence[str],
    scratch: Path,
    *,
    limits: Limits,
    kind: str,
    environment: Path | None = None,
    container: str | None = None,
    decoder: Path | None = None,
    hidden: Sequence[Path] = (),
) -> None:
    """Run a command in the folder `scratch`, which it sees as its working folder.

    Args:
        command: words; a path in them is relative to `scratch`.
        scratch: holds what the command may read, and takes what it writes.
        limits: of time, memory and file size.
        kind: of isolation, a key of `WORDS`.
        environment: a virtual environment, whose programs are found first; default: the one that runs this.
        container: an image that `docker` or `podman` has, instead of an environment.
        decoder: what the command finds as `decoder/`.
        hidden: files and folders that it must not read.

    Raises CommandError where it fails or exceeds a limit.
    """
    if container:
        words, own = _in_container(command, scratch, container, decoder, limits), dict(os.environ)
    else:
        if decoder:
            (scratch / "decoder").symlink_to(decoder, target_is_directory=True)
        words, own = list(command), _variables(scratch, environment)
        if kind == "namespaces":
            inside = [sys.executable, "-I", enter.__file__, str(scratch), *map(str, hidden), "--"]
            words = [*ENTERED, *inside, *command]
    log = scratch.with_name(scratch.name + ".log")
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, cwd=scratch, env=own, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_limiter(limits, container),
            )  # fmt: skip
            try:
                code = process.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                raise CommandError(f"takes more than {limits.seconds:g} s for one image") from None
            finally:
                _end(process)
        if code:
            raise CommandError(_why(code, log, limits))
    except FileNotFoundError as error:
        raise CommandError(f"cannot start: there is no program {error.filename}") from None
    finally:
        log.unlink(missing_ok=True)


def _variables(scratch: Path, environment: Path | None) -> dict[str, str]:
    """No more of the environment than a program needs: no keys, no settings of the one who runs this."""
    programs = (environment / "bin") if environment else Path(sys.executable).parent
    own = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "HOME": str(scratch), "TMPDIR": str(scratch)}
    own |= {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    if environment:
        own["VIRTUAL_ENV"] = str(environment)
    elif "PYTHONPATH" in os.environ:  # part of the environment that runs this
        own["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return own


def _in_container(command: Sequence[str], scratch: Path, image: str, decoder: Path | None, limits: Limits) -> list[str]:
    tool = shutil.which("docker") or shutil.which("podman")
    if tool is None:
        raise UserError(f"the container {image} needs docker or podman; install one, or name an environment instead")
    words = [tool, "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--pids-limit", "256"]
    words += ["--security-opt", "no-new-privileges", "--memory", str(limits.memory), "--cpus", "1"]
    words += ["--ulimit", f"fsize={limits.file}", "--user", f"{os.getuid()}:{os.getgid()}", "--pull", "never"]
    words += ["--volume", f"{scratch}:/work", "--workdir", "/work", "--env", "HOME=/work", "--env", "TMPDIR=/work"]
    if decoder:
        (scratch / "decoder").mkdir()
        words += ["--volume", f"{decoder}:/work/decoder:ro"]
    return [*words, image, *command]


def _limiter(limits: Limits, container: str | None) -> Callable[[], None]:
    import resource  # which Windows does not have

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if not container:  # whose daemon has limits of its own
            resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file, limits.file))

    return limit


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _why(code: int, log: Path, limits: Limits) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - STEPS))
        lines = [line.strip() for line in file.read().decode(errors="backslashreplace").splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "no message"
    if code == 125 and "isolation failed" in last:
        raise UserError(f"{last}; the kernel allows no such namespace for these paths")
    text = " ".join(lines)
    if code in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ) or "File too large" in text:
        return f"writes a file of more than {limits.file} bytes"
    if "MemoryError" in text or "Cannot allocate memory" in text or "can't allocate memory" in text:
        return f"needs more than {limits.memory} bytes of memory ({last})"
    return f"ends with exit code {code} ({last})"

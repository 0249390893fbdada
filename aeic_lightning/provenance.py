"""What made a result: the command, the code's commit and the versions of the packages."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

PACKAGES = ("torchvision", "lightning", "diffusers", "timm", "torchmetrics", "lpips", "peft", "numpy")


def command_line() -> str:
    """The command line of this process, to be kept beside what it makes."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m`, whichever module that is
    module = spec.name.removesuffix(".__main__") if spec and spec.name.startswith("benchmarks") else "aeic_lightning"
    return f"python -m {module} {shlex.join(sys.argv[1:])}"


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide what a run computes; those of extras where they are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_state() -> dict[str, Any] | None:
    """Of this package's code: its commit, and whether tracked files differ from it.

    None for a package that was installed from an archive, whose version says what it is. The repository of the working
    folder is another matter: `user_repository`.
    """
    package = Path(__file__).parent
    # In a virtual environment inside of someone's repository, git would answer for that one.
    if _git(package, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        return _state(package)
    try:
        installed = distribution("aeic-lightning").read_text("direct_url.json") or ""
        return {"commit": json.loads(installed)["vcs_info"]["commit_id"], "changed": False}  # pip install git+https://
    except (PackageNotFoundError, TypeError, KeyError, ValueError):
        return None


def user_repository() -> dict[str, Any] | None:
    """The git repository that the working folder is in: its name, commit and whether tracked files differ from it.

    None outside of one, and in this package's own.
    """
    here, code = (_git(folder, "rev-parse", "--show-toplevel") for folder in (Path.cwd(), Path(__file__).parent))
    if here is None or (here == code and git_state() is not None):
        return None
    state = _state(Path(here))
    return None if state is None else {"name": Path(here).name} | state


def _state(folder: Path) -> dict[str, Any] | None:
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "-uno")
    return None if commit is None or changes is None else {"commit": commit, "changed": bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def folder_digest(folder: Path) -> str:
    """SHA-256 over the paths below a folder and the sizes of these files. A copied or moved folder has the same."""
    digest = hashlib.sha256()
    for parent, subfolders, files in os.walk(folder, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = os.path.join(parent, name)
            with suppress(OSError):
                digest.update(os.fsencode(f"{os.path.relpath(path, folder)}\0{os.stat(path).st_size}\n"))
    return digest.hexdigest()

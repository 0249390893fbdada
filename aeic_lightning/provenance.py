"""What made a result: the command, the code's commit and the versions of the packages."""

import shlex
import subprocess
import sys
from typing import Any

PACKAGES = ("torchvision", "lightning", "diffusers", "timm", "torchmetrics", "lpips", "peft", "numpy")


def command_line() -> str:
    """The command line of this process, to be kept beside what it makes."""
    return "python -m aeic_lightning " + shlex.join(sys.argv[1:])


def git_state() -> dict[str, Any] | None:
    """Commit, and whether tracked files differ from it; None outside of a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None

"""A sweep whose runs are forked from it, for tests of its processes: nothing is imported anew.

The command line, the sweep and its runs are the real ones; only `subprocess.Popen` is not, which starts the runs.
"""

import subprocess
import sys
from types import SimpleNamespace
from typing import IO, Any

from tests import forked


def popen(command: list[str], stdout: IO, env: dict[str, str], start_new_session: bool, **_: Any) -> forked.Process:
    """`python -m aeic_lightning WORDS`."""
    assert command[:3] == [sys.executable, "-m", "aeic_lightning"]
    options = {"output": stdout.name, "errors": stdout.name, "cwd": ".", "new_session": start_new_session}
    return forked.Process(forked.start("aeic_lightning.cli:main", (command[3:],), env, options), forked.reap)


def main(words: list[str]) -> int:
    from aeic_lightning.cli import main
    from aeic_lightning.study import executors

    executors.subprocess = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
    return main(words)

"""A collection of tests in a process that has no playwright; test_repository.py."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def collect(files: list[str]) -> int:
    """Import the tests anew, as on a machine without the package; pytest's exit code."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "playwright" or TESTS in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]
    sys.modules["playwright"] = None  # importing it is an ImportError
    return pytest.main(["--collect-only", "-q", "-p", "no:xdist", *files])

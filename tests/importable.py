"""Modules of a folder, importable for a while: what a user's own files are to the package."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """`folder` leads sys.path. Its modules are forgotten afterwards: another test's `my_encoder` is its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        try:
            yield
        finally:
            for name, module in list(sys.modules.items()):
                if folder in Path(getattr(module, "__file__", None) or "/").parents:
                    del sys.modules[name]

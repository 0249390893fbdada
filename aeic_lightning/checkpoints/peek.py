"""The step of a checkpoint without torch, whose import takes seconds."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any


class _Numbers(pickle.Unpickler):
    """Reads the numbers and words of a checkpoint; all other objects are left empty, and nothing is run."""

    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Nothing

    def persistent_load(self, pid: Any) -> None:
        return None


class _Nothing:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...


def step_of(path: str | Path) -> int | None:
    """`global_step` of a checkpoint file; None where this way does not find it."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                step = _Numbers(file).load()["global_step"]
        return step if isinstance(step, int) else None
    except Exception:  # a damaged or foreign file has a reader that says what is wrong: `read_checkpoint`
        return None

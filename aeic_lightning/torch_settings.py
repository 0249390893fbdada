"""PyTorch's process-wide settings as streams and pictures need them, whatever a program around has set."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0  # threads and calls that are within now: the first one in sets, the last one out restores
_before: tuple[torch.dtype, list[str]] = (torch.float32, [])


@contextmanager
def own_settings() -> Iterator[None]:
    """Within: float32 by default and in oneDNN's products, no autocast, the CPU as default device.

    Default type and products are settings of the whole process, so other threads see them as well while a call lasts;
    all are as before at its end, when calls of several threads overlap too. Nothing changes where nothing was set.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = torch.get_default_dtype(), [kind.fp32_precision for kind in _products()]
            torch.set_default_dtype(torch.float32)
            for kind in _products():
                kind.fp32_precision = "ieee"
        _inside += 1
    try:
        with ExitStack() as own:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    own.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                own.enter_context(torch.device("cpu"))
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_default_dtype(_before[0])
                for kind, precision in zip(_products(), _before[1], strict=True):
                    kind.fp32_precision = precision


def _products() -> tuple[Any, Any]:
    mkldnn: Any = torch.backends.mkldnn  # PyTorch sets these two at run time
    return mkldnn.conv, mkldnn.matmul

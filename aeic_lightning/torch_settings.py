"""PyTorch's process-wide settings and random state, as streams, pictures and draws need them; devices, number formats.

Cheap to import: PyTorch is imported within the functions, so that a missing file is found without it.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from aeic_lightning.errors import UserError
from aeic_lightning.timing import quickest, remembered

if TYPE_CHECKING:
    import torch

_lock = threading.Lock()
_inside = 0  # threads and calls that are within now: the first one in sets, the last one out restores
_before: "tuple[torch.dtype, list[str]] | None" = None


@contextmanager
def own_settings() -> Iterator[None]:
    """Within: float32 by default and in oneDNN's products, no autocast, the CPU as default device.

    Default type and products are settings of the whole process, so other threads see them as well while a call lasts;
    all are as before at its end, when calls of several threads overlap too. Nothing changes where nothing was set.
    """
    global _inside, _before
    import torch

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
            if not _inside and _before:
                torch.set_default_dtype(_before[0])
                for kind, precision in zip(_products(), _before[1], strict=True):
                    kind.fp32_precision = precision


def _products() -> tuple[Any, Any]:
    import torch

    mkldnn: Any = torch.backends.mkldnn  # PyTorch sets these two at run time
    return mkldnn.conv, mkldnn.matmul


@contextmanager
def own_random_state(seed: int = 0) -> Iterator[None]:
    """Draws inside come from a fresh CPU stream, and the global stream goes on as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs too.
        torch.random.default_generator.manual_seed(seed)
        yield


@contextmanager
def own_random_states(seed: int) -> Iterator[None]:
    """As `own_random_state`, for torch, numpy and Python's `random`: for libraries that draw from all of them."""
    import numpy as np

    words = np.random.SeedSequence(seed).generate_state(3)
    pythons, numpys = random.getstate(), np.random.get_state()
    with own_random_state(int(words[0])):
        np.random.seed(int(words[1]))
        random.seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def check_device(device: "str | torch.device") -> None:
    """Raise UserError for a device that PyTorch does not know, or that this machine does not have."""
    if str(device) == "cpu":  # without importing PyTorch
        return
    import torch

    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except Exception as error:  # RuntimeError, AssertionError or AcceleratorError, by what is missing
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise UserError(f"device {device} cannot be used here ({reason}); choose another, such as cpu") from error
    if wanted.type == "meta":
        raise UserError("device meta holds no values; choose another, such as cpu")


_bfloat16: bool | None = None


def assume_bfloat16(quicker: bool) -> None:
    """Take this for what `bfloat16_is_quicker` would measure."""
    global _bfloat16
    _bfloat16 = quicker


def bfloat16_is_quicker() -> bool:
    """Whether products and convolutions are quicker in bfloat16 than in float32 on this processor.

    Measured in processor time, on some of the size that the networks have: about 0.2 s where it is not `remembered`.
    """
    global _bfloat16
    if _bfloat16 is None:
        answers = "float32", "bfloat16"
        _bfloat16 = remembered("the quicker of float32 and bfloat16", answers, _measure_bfloat16) == "bfloat16"
    return _bfloat16


def fast_choice() -> str:
    """What --fast computes in here, in words."""
    return "bfloat16" if bfloat16_is_quicker() else "float32, since bfloat16 is slower on this processor"


def _measure_bfloat16() -> str:
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(*size, generator=generator) for size in ((512, 1152), (1024, 1152)))
    image, kernel = (torch.randn(*size, generator=generator) for size in ((1, 128, 32, 32), (128, 128, 3, 3)))
    image, kernel = (x.contiguous(memory_format=torch.channels_last) for x in (image, kernel))

    def work(dtype: torch.dtype) -> Callable[[], Any]:
        a, b, c, d = (x.to(dtype) for x in (rows, weight, image, kernel))
        return lambda: (F.linear(a, b), F.conv2d(c, d, padding=1))

    with torch.inference_mode():
        return quickest({"float32": work(torch.float32), "bfloat16": work(torch.bfloat16)})

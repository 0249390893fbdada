"""Products of integer matrices, rounded once to float32, and layers in pieces: what the exact arithmetic runs on.

The same bits come from each of three kernels.

Activations are integers of at most `limit` (LIMIT, or BYTE) in float32, weights are int8. A kernel is exact because no
partial sum is rounded, in whatever order a library adds:

- **int8**: sums below 2^31 in int32. Activations of 15 bits are two signed bytes, 256 high + low.
- **float32**: sums of at most 2^24. Activations of 15 bits are two limbs, 128 high + low, each of at most 128; the
  weights of an output add up to at most 2^17.
- **float64**: sums below 2^53.

Which is quickest depends on the processor by more than a factor of forty, so a short timing decides, whose outcome is
kept for later processes. A kernel is used only after a test with extreme values: some int8 instructions saturate.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from aeic_lightning.timing import least_times, remembered

LIMIT = 2**14  # of activations before a matrix product
BYTE = 127  # the same where measurements showed 8 bits to cost no rate
LIMB = 128  # largest magnitude of a float32 limb
FLOAT32_SUM = 2**24 // LIMB  # most that the weights of an output may add up to for the float32 kernel


class Weights:
    """int8 weights (K, O), with the form that each kernel takes: converted once, at first use."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.forms: dict[torch.dtype, Tensor] = {torch.int8: weight}
        self.fit_float32 = bool(weight.double().abs().sum(0).max() <= FLOAT32_SUM)

    def to(self, dtype: torch.dtype) -> Tensor:
        """(K, O) of another type, exact."""
        if dtype not in self.forms:
            self.forms[dtype] = self.weight.to(dtype).contiguous()
        return self.forms[dtype]


def product_int8(q: Tensor, weights: Weights, limit: int) -> Tensor:
    """Integers (n, K) of at most `limit` times (K, O) -> the exact products, rounded once to float32 (n, O)."""
    weight = weights.to(torch.int8)
    n, inside = q.shape
    if limit <= BYTE:
        out = _scratch.get(torch.int32, n, weight.shape[1])
        return torch._int_mm(q.to(torch.int8), weight, out=out).float()
    q = q.to(torch.int16)
    # q = 256 high + low, both signed bytes.
    limbs = _scratch.get(torch.int8, 2 * n, inside)
    limbs[:n] = q
    limbs[n:] = q.add_(128).bitwise_right_shift_(8)
    products = torch._int_mm(limbs, weight, out=_scratch.get(torch.int32, 2 * n, weight.shape[1]))
    return products[:n].add_(products[n:], alpha=256).float()


def product_float32(q: Tensor, weights: Weights, limit: int) -> Tensor:
    """The same as `product_int8`, for weights that `fit_float32`."""
    weight = weights.to(torch.float32)
    if limit <= BYTE:
        return q @ weight
    high = q.mul(1 / LIMB).round_()
    low = q.sub(high, alpha=LIMB)
    # Not one product that adds to the other: its partial sums would be rounded.
    upper = torch.mm(high, weight, out=_scratch.get(torch.float32, len(q), weight.shape[1]))
    return (low @ weight).add_(upper, alpha=LIMB)


def product_float64(q: Tensor, weights: Weights, limit: int) -> Tensor:
    """The same as `product_int8`, on any machine and for any weights."""
    return (q.double() @ weights.to(torch.float64)).float()


class _Scratch(threading.local):
    """Memory of the last product. New pages from the system would cost more than the product itself."""

    def __init__(self) -> None:
        self.memory: dict[torch.dtype, Tensor] = {}

    def get(self, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
        memory = self.memory.get(dtype)
        if memory is None or memory.numel() < rows * columns:
            with torch.inference_mode(False):  # usable in either mode
                memory = self.memory[dtype] = torch.empty(rows * columns, dtype=dtype)
        return memory[: rows * columns].view(rows, columns)


_scratch = _Scratch()


def product(q: Tensor, weights: Weights, limit: int) -> Tensor:
    """The product by the forced kernel, or else by the quickest that is exact here."""
    name = _forced or kernel(limit)
    if name == "float32" and not weights.fit_float32:
        name = "float64"
    return _function(name)(q, weights, limit)


def _function(name: str) -> Callable[[Tensor, Weights, int], Tensor]:
    return globals()[f"product_{name}"]


KERNELS = ("float32", "float64", "int8")

_forced: str | None = None
_chosen: dict[tuple[bool, bool], str] = {}
_lock = threading.Lock()


def force(name: str | None) -> None:
    """Use this kernel for all products of this process; None: the quickest again."""
    global _forced
    if name is not None and name not in KERNELS:
        raise ValueError(f"no kernel {name!r}; choose from {', '.join(KERNELS)}")
    _forced = name


def kernel(limit: int) -> str:
    """The quickest exact kernel for activations of this limit; timed in some tenths of a second if not `remembered`."""
    key = limit <= BYTE, bool(torch.backends.mkldnn.enabled)
    with _lock:
        if key not in _chosen:
            with torch.inference_mode():
                _chosen[key] = _quickest(BYTE if key[0] else LIMIT)
        return _chosen[key]


def chosen() -> dict[str, str]:
    """Kernel of each kind of product, by the bits of the activations."""
    return {"15 bits": _forced or kernel(LIMIT), "8 bits": _forced or kernel(BYTE)}


def _quickest(limit: int) -> str:
    onednn = "with" if torch.backends.mkldnn.enabled else "without"
    name = remembered(f"exact products up to {limit} {onednn} oneDNN", KERNELS, lambda: _measured(limit))
    return name if is_exact(name, limit) else _measured(limit)


def _measured(limit: int) -> str:
    times = kernel_times(limit)
    return next(name for name in sorted(times, key=times.__getitem__) if is_exact(name, limit))


def kernel_times(limit: int) -> dict[str, float]:
    """Processor seconds of each kernel for a product of the size that takes most of a picture's time."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-limit, limit + 1, (512, 1152), generator=generator).float()
    weights = Weights(torch.randint(-127, 128, (1152, 1024), generator=generator).to(torch.int8))
    int8 = torch.backends.mkldnn.enabled and hasattr(torch, "_int_mm")
    names = [name for name in KERNELS if name != "int8" or int8]
    return least_times({name: partial(_function(name), q, weights, limit) for name in names})


def is_exact(name: str, limit: int) -> bool:
    """Whether a kernel gives the integers on this machine, with the largest values that it may meet and random ones."""
    if name == "float64":
        return True
    generator = torch.Generator().manual_seed(0)
    extreme = torch.full((8, 1024), limit)
    mixed = torch.randint(-limit, limit + 1, (8, 1024), generator=generator)
    function = _function(name)
    for weight in (torch.full((1024, 16), 127), torch.randint(-127, 128, (1024, 16), generator=generator)):
        weights = Weights(weight.to(torch.int8))
        for q in (extreme, -extreme, mixed):
            if not torch.equal(function(q.float(), weights, limit), (q @ weight).float()):
                return False
    return True


# ---------------------------------------------------------------------- pieces

# Layers run in pieces of a few positions or channels at a time: in cache, and on several cores at once. Every core runs
# whole pieces by itself. Splitting each operation over the cores instead would make them wait for one another thousands
# of times an image, which is slow, and on a busy machine far slower than a single core.

ROWS = 512  # positions at a time: near what fits a core's cache, and enough for the interpreter not to matter
T = TypeVar("T")

_threads: ContextVar[int] = ContextVar("threads", default=0)


@contextmanager
def in_pieces() -> Iterator[None]:
    """Inside, `by_rows` and `in_parallel` use all threads, and every other operation one.

    Else the threads of such an operation, which spin for a while in wait of the next, would stand in the way.
    """
    threads = torch.get_num_threads()
    token = _threads.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _threads.reset(token)


def by_rows(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, rows: int = ROWS) -> tuple[Tensor, ...]:
    """A pointwise function of (B, h, w, C) tensors, some positions at a time: it takes and returns (B, n, C)."""
    batch, h, w = inputs[0].shape[:3]
    count = h * w
    flat = [x.reshape(batch, count, x.shape[-1]) for x in inputs]
    if torch.compiler.is_exporting():
        return tuple(output.reshape(batch, h, w, output.shape[-1]) for output in function(*flat))
    rows = max(min(rows // batch, -(-count // _thread_count())), 16)
    outputs: list[Tensor] = []

    def run(start: int) -> None:
        pieces = function(*(x[:, start : start + rows] for x in flat))
        with _pools_lock:
            if not outputs:
                outputs.extend(piece.new_empty(batch, count, piece.shape[2]) for piece in pieces)
        for output, piece in zip(outputs, pieces, strict=True):
            output[:, start : start + rows] = piece

    in_parallel(run, range(0, count, rows))
    return tuple(output.view(batch, h, w, -1) for output in outputs)


def in_parallel(function: Callable[..., T], *arguments: Iterable) -> list[T]:
    """`map`, on all threads, each of whose operations runs on one core."""

    def run(*values: Any) -> T:
        with torch.inference_mode():
            return function(*values)

    if torch.compiler.is_exporting():
        return list(map(function, *arguments))
    threads = _thread_count()
    return list((map if threads == 1 else _pool(threads).map)(run, *arguments))


def _thread_count() -> int:
    return _threads.get() or torch.get_num_threads()


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads, whose own operations run on one core each. Kept; a forked process makes its own."""
    key = (os.getpid(), threads)
    with _pools_lock:
        if key not in _pools:
            before = torch.get_num_threads()
            all_started = threading.Barrier(threads + 1)

            def start() -> None:
                torch.set_num_threads(1)
                torch.get_num_threads()  # a thread takes over the process's number at its first look: while that is 1
                all_started.wait()

            pool = ThreadPoolExecutor(threads, "rows", initializer=start)
            for _ in range(threads):
                pool.submit(int)
            all_started.wait()
            torch.set_num_threads(before)  # it is also what later threads start with
            _pools[key] = pool
        return _pools[key]

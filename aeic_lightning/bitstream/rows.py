"""Layers in pieces, of a few positions or channels at a time: in cache, and on several cores at once.

Every core runs whole pieces by itself. Splitting each operation over the cores instead would make them wait for one
another thousands of times an image, which is slow, and on a busy machine far slower than a single core.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

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
        with _lock:
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
_lock = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads, whose own operations run on one core each. Kept; a forked process makes its own."""
    key = (os.getpid(), threads)
    with _lock:
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

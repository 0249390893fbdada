"""Pointwise layers a few positions at a time, and on several cores at once."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

ROWS = 256  # positions at a time: what fits a core's cache
SHARED_ROWS = 1024  # the same on several cores, which otherwise wait for the interpreter between short operations


def by_rows(
    function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, rows: int | None = None
) -> tuple[Tensor, ...]:
    """`function` of (h, w, C) tensors, a few positions at a time: it sees and returns (n, C) tensors.

    Every core runs whole chunks by itself. Splitting each operation over the cores instead would make them wait for one
    another thousands of times an image, which is slow, and on a busy machine far slower than a single core.
    """
    h, w = inputs[0].shape[:2]
    count = h * w
    flat = [x.reshape(count, x.shape[-1]) for x in inputs]
    if torch.compiler.is_exporting():
        return tuple(r.reshape(h, w, r.shape[-1]) for r in function(*flat))

    def chunk(start: int) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return function(*(x[start : start + rows] for x in flat))

    threads = torch.get_num_threads()
    rows = rows or (ROWS if threads == 1 else SHARED_ROWS)
    rows = max(min(rows, -(-count // threads)), 16)
    starts = range(0, count, rows)
    pieces = list(map(chunk, starts) if threads == 1 else _pool(threads).map(chunk, starts))
    return tuple(torch.cat(column).reshape(h, w, -1) for column in zip(*pieces, strict=True))


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads, whose own operations run on one core each. Kept; a forked process makes its own."""
    key = (os.getpid(), threads)
    with _lock:
        if key not in _pools:
            all_started = threading.Barrier(threads + 1)

            def start() -> None:
                torch.set_num_threads(1)
                all_started.wait()

            pool = ThreadPoolExecutor(threads, "rows", initializer=start)
            for _ in range(threads):
                pool.submit(int)
            all_started.wait()
            torch.set_num_threads(threads)  # it is also what later threads start with
            _pools[key] = pool
        return _pools[key]

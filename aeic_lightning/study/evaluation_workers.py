"""Processes that evaluate a checkpoint side by side: each opens it once, then takes image after image."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from aeic_lightning.metrics.patches import Features
from aeic_lightning.study.evaluate import Checkpoint, RatePoint
from aeic_lightning.study.measurement import Images, Sample, measurement

Measured = tuple[str, dict[str, Any], list[Features]]
"""The name of an image, its row, and its features for each metric of patches."""


class Workers:
    """Up to `count` processes with a checkpoint and a measurement of their own; the threads are divided among them.

    Args:
        path, device, realism: of `Checkpoint`.
        settings: of `measurement`.
        count: of processes.
    """

    def __init__(
        self, path: str, device: str, settings: dict[str, Any], count: int, realism: float | None = None
    ) -> None:
        self.count = count
        self.threads = max(1, (os.cpu_count() or 1) // count)
        given = path, device, settings, self.threads, realism
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), _start, given)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *reason: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def measure(
        self, images: Images, point: RatePoint, pictures: bool, see: Callable[[Sample, dict], None]
    ) -> Iterator[Measured]:
        """Every image, in order. `see` is told of each; without `pictures` its reconstruction is empty."""
        left, waiting = iter(images), []
        # A few images ahead, so that memory does not grow with the number of images.
        while waiting or (waiting := self._submit(left, 2 * self.count, point, pictures)):
            name, x, future = waiting.pop(0)
            row, features, x_hat = future.result()
            waiting += self._submit(left, 1, point, pictures)
            see(Sample(name, x, torch.from_numpy(x_hat)), row)
            yield name, row, features

    def _submit(self, left: Iterator, count: int, point: RatePoint, pictures: bool) -> list[tuple[str, Any, Future]]:
        return [(n, x, self._pool.submit(_measure, n, x.numpy(), point, pictures)) for n, x in islice(left, count)]


_state: dict[str, Any] = {}


def _start(path: str, device: str, settings: dict[str, Any], threads: int, realism: float | None) -> None:
    torch.set_num_threads(threads)
    checkpoint = Checkpoint(path, device, realism)
    _state.update(checkpoint=checkpoint, measure=measurement(**settings).to(checkpoint.device))


def _measure(
    name: str, x: np.ndarray, point: RatePoint, pictures: bool
) -> tuple[dict[str, Any], list[Features], np.ndarray]:
    checkpoint = _state["checkpoint"]
    checkpoint.warm_up(point)
    sample = checkpoint.code(name, torch.from_numpy(x), point)
    row, features = _state["measure"].one(sample.on(checkpoint.device))
    return row, features, sample.x_hat.numpy() if pictures else np.empty(0, np.uint8)

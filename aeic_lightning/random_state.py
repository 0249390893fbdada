"""Draws that leave the global random state alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_state(seed: int = 0) -> Iterator[None]:
    """Draws inside come from a fresh CPU stream, and the global stream goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs too.
        torch.random.default_generator.manual_seed(seed)
        yield

"""Draws that leave the global random state alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_random_state(seed: int = 0) -> Iterator[None]:
    """Draws inside come from a fresh CPU stream, and the global stream goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs too.
        torch.random.default_generator.manual_seed(seed)
        yield


@contextmanager
def own_random_states(seed: int) -> Iterator[None]:
    """As `own_random_state`, for torch, numpy and Python's `random`: for libraries that draw from all of them."""
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

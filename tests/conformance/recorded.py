"""The recorded vectors, and the weights that they were recorded with."""

from pathlib import Path

import numpy as np
import torch
from reference_weights import fill, fill_prior

DATA = Path(__file__).parent / "data"


def read_keys(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a half of a released checkpoint."""
    rows = (line.split("\t") for line in (DATA / file).read_text().splitlines())
    return {name: tuple(map(int, shape.split("x"))) for name, shape in rows}


def codec_weights(file: str) -> dict[str, torch.Tensor]:
    """A `state_dict_codec` filled as the recorded one was."""
    filters = (1, 3, 3, 3, 3, 1)
    state = {}
    for name, shape in read_keys(file).items():
        if name.startswith("entropy_bottleneck."):
            initial = np.zeros(shape, dtype=np.float32)
            if "_matrix" in name:
                scale = 10 ** (1 / 5) * filters[int(name[-1]) + 1]
                initial += np.log(np.expm1(1 / scale)).astype(np.float32)
            state[name] = torch.from_numpy(fill_prior(name, initial))
        else:
            state[name] = torch.from_numpy(fill(name, shape))
    return state


def unet_weights() -> dict[str, torch.Tensor]:
    """A `state_dict_unet` filled as the recorded one was."""
    state = {}
    for name, shape in read_keys("keys_unet_trained.tsv").items():
        prefix = "unet." if ".lora_" in name else "aeic."
        value = fill(prefix + name, shape)
        state[name] = torch.from_numpy(0.3 * value if ".lora_B." in name else value)
    return state


def vectors(file: str) -> dict[str, torch.Tensor]:
    """The recorded arrays of a file."""
    with np.load(DATA / file) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


def assert_close(ours: torch.Tensor, recorded: torch.Tensor, std: float | None = None) -> None:
    """Within 1e-4 of the recorded array's standard deviation, everywhere."""
    assert ours.shape == recorded.shape
    worst = (ours - recorded).abs().max().item() / (recorded.std().item() if std is None else std)
    assert worst < 1e-4, f"off by {worst:.2e} standard deviations"

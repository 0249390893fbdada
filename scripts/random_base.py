"""A full-size base with random weights, for measurements without a download."""

import torch
from torch import Tensor

from aeic_lightning.decoder import DecoderConfig, OneStepDecoder, UNetConfig
from aeic_lightning.weights import stable_diffusion


def use_random_base() -> None:
    """From now on this process makes base weights up (N(0, 0.02^2)) where it would read them."""
    stable_diffusion.read_unet = lambda name, config: _random(_unet_shapes(config))
    stable_diffusion.read_vae_decoder = lambda name: _random(_vae_shapes())


def peak_memory() -> float:
    """Largest resident memory so far, or since `reset_peak_memory`, in GB. Linux."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e9


def reset_peak_memory() -> None:
    """Forget the peak of what came before."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.empty(shape).normal_(0, 0.02, generator=generator) for name, shape in shapes.items()}


def _unet_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        trunk = OneStepDecoder(4, 4, DecoderConfig(unet=config)).denoiser
    return {name.removeprefix("trunk."): tuple(tensor.shape) for name, tensor in trunk.state_dict().items()}


def _vae_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        vae = OneStepDecoder(4, 4, DecoderConfig()).vae
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}

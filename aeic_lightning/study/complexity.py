"""Parameters and multiply-accumulates of the sender and the receiver."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from aeic_lightning.checkpoints.checkpoint import from_dict
from aeic_lightning.checkpoints.released import RELEASED
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig, LatentCodec
from aeic_lightning.models.decoder import DecoderConfig

SIZE = 1024  # square image on which MACs are counted; a multiple of the stride of z


# What the paper's table gives for everything that the sender runs: parameters, MACs per pixel.
PAPER_ENCODE = {"AEIC-ME": (55.91e6, 204.26e3), "AEIC-SE": (16.10e6, 46.02e3)}


@dataclass(frozen=True)
class Cost:
    """One module's share. MACs per pixel of the image are counted at 1024 x 1024.

    A convolution's or a matrix product's multiply-accumulates count, attention included; normalisation, activations,
    the additions of biases and recurrent layers do not.
    """

    name: str
    parameters: int
    macs_per_pixel: float


class _NoStart(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would give them values."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


@contextmanager
def sizes_alone() -> Iterator[None]:
    """Models that are built within have shapes, and neither storage nor values.

    Initialising tensors of the meta device would import PyTorch's compiler.
    """
    with torch.device("meta"), _NoStart():
        yield


def sender_costs(codec: LatentCodec) -> dict[str, Cost]:
    """Costs of the sender's modules, and of `encode`: all of them (g_a, h_a, h_s, all context steps, the prior).

    The codec may be on the meta device; nothing is computed.
    """
    side = SIZE // codec.stride
    inputs = {
        "g_a": (codec.g_a, (3, SIZE, SIZE)),
        "h_a": (codec.h_a, (codec.channels, side, side)),
        "h_s": (codec.h_s, (codec.prior.channels, side // codec.z_stride, side // codec.z_stride)),
        "context": (_AllSteps(codec.context), (codec.context.phi_channels, side, side)),
    }
    costs = {name: _cost(name, *what) for name, what in inputs.items()}
    costs["prior"] = Cost("prior", _parameters(codec.prior), 0.0)
    sender = list(costs.values())
    costs["encode"] = Cost(
        "encode", sum(cost.parameters for cost in sender), sum(cost.macs_per_pixel for cost in sender)
    )
    return costs


def codec_costs(model: AEIC) -> dict[str, Cost]:
    """Costs by module, of the receiver as well, and of `encode`; see `sender_costs`."""
    codec, config = model.codec, model.codec.config
    side = SIZE // codec.stride
    inputs = {
        "g_s": (codec.g_s, (codec.channels, side, side)),
        "denoiser": (model.decoder.denoiser, (config.l_T_channels, SIZE // 8, SIZE // 8)),
        "vae": (model.decoder.vae, (config.l_res_channels, SIZE // 8, SIZE // 8)),
    }
    costs = sender_costs(codec)
    encode = costs.pop("encode")
    prior = costs.pop("prior")
    receiver = {name: _cost(name, *what) for name, what in inputs.items()}
    return costs | receiver | {"prior": prior, "encode": encode}


def _cost(name: str, module: nn.Module, shape: tuple[int, ...]) -> Cost:
    return Cost(name, _parameters(module), _macs(module, shape) / SIZE**2)


def paper_encode(codec: CodecConfig) -> tuple[str, int, float] | None:
    """Name, encode parameters and encode MACs per pixel of the paper's model with these sizes, if it is one."""
    for name, (sizes, _) in RELEASED.items():
        if replace(codec, skip_threshold=sizes.skip_threshold, start=sizes.start) == sizes:
            parameters, macs = PAPER_ENCODE[name]
            return name, int(parameters), macs
    return None


def experiment_configs(config: dict[str, Any], file: Any) -> tuple[CodecConfig, DecoderConfig]:
    """The sizes in a resolved experiment file. Raises UserError for a file without them, or with unknown ones."""
    try:
        sizes = config["model"]["init_args"]
        return from_dict(CodecConfig, sizes["codec"]), from_dict(DecoderConfig, sizes["decoder"])
    except KeyError as error:
        raise UserError(f"{file} has no {error.args[0]} section; give an experiment file with a model") from None
    except TypeError as error:
        raise UserError(f"{file}: {error}; --print_config lists the settings") from error


class _AllSteps(nn.Module):
    """The context model as the sender runs it."""

    def __init__(self, context: nn.Module) -> None:
        super().__init__()
        self.context = context

    def forward(self, phi: torch.Tensor) -> torch.Tensor:
        return self.context(phi, lambda mean, scale, mask: mean)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    # Shapes are all that matters: count on a copy without storage, or with any values where an encoder from elsewhere
    # looks at them.
    module = _without_values(module)
    try:
        return _count(module, shape, "meta")
    except (NotImplementedError, RuntimeError):
        return _count(module.to_empty(device="cpu"), shape, "cpu")


def _count(module: nn.Module, shape: tuple[int, ...], device: str) -> int:
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operation for a whole layer would not be counted
    try:
        with counter, torch.no_grad():
            module(torch.empty(1, *shape, device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // 2


def _without_values(module: nn.Module) -> nn.Module:
    with torch.device("meta"):
        return copy.deepcopy(module).to("meta").eval()

"""Networks that are used but never trained, and the tensors of files: no library of networks is imported here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aeic_lightning.errors import UserError


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or a torch.save file, on the CPU. No other object is unpickled."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"cannot read weights from {path}: {first_line(error)}") from error
    except Exception as error:  # torch.load raises pickle errors of several kinds
        raise UserError(f"cannot read weights from {path}: not a plain state dict") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"cannot read weights from {path}: not a plain state dict")
    return state


@contextmanager
def keeping_modes(*networks: nn.Module) -> Iterator[None]:
    """Context after which every module of these networks is in the mode, training or evaluation, that it had before."""
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


Network = TypeVar("Network", bound=nn.Module)


class Frozen(nn.Module, Generic[Network]):
    """Holds a network that is used but never trained or saved, out of reach of the module tree.

    The network stays in eval mode whatever `.train()` is called on, has no gradients whatever `.requires_grad_()` is
    called on, is in nobody's `.parameters()` or `.state_dict()` (so checkpoints do not carry it, and load strictly
    without it), and keeps float32 whatever the trainer's precision is. It does follow `.to(device)`.
    """

    net: Network

    def __init__(self, net: Network):
        super().__init__()
        # Past nn.Module.__setattr__, which would register it as a child.
        object.__setattr__(self, "net", net.eval().requires_grad_(False))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        # `fn` may change the type as well as the device: follow only the device.
        self.net.to(fn(torch.empty(0)).device)
        return self


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""Whether the device that was asked for is there."""

from typing import TYPE_CHECKING

from aeic_lightning.errors import UserError

if TYPE_CHECKING:
    import torch


def check_device(device: "str | torch.device") -> None:
    """Raise UserError for a device that PyTorch does not know, or that this machine does not have."""
    if str(device) == "cpu":  # without importing PyTorch
        return
    import torch

    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except Exception as error:  # RuntimeError, AssertionError or AcceleratorError, by what is missing
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise UserError(f"device {device} cannot be used here ({reason}); choose another, such as cpu") from error
    if wanted.type == "meta":
        raise UserError("device meta holds no values; choose another, such as cpu")

"""An encoder from its class path, and what the rest of the codec has to know of it: channels, stride, reach."""

from typing import Any

import torch
from torch import nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.parts import build_asked

PROBE_SIDE = 256  # pixels of the square image that an encoder is asked with


def build_encoder(encoder: dict[str, Any]) -> tuple[nn.Module, int, int]:
    """The encoder of `{class_path, init_args}`, its channels M and its stride, asked with one image of zeros.

    Raises UserError where it cannot be built, or gives no (1, M, H/s, W/s) for an image (1, 3, H, W).
    """
    gives = "y (1, M, H/s, W/s) with one stride s"
    module, channels, side = build_asked(encoder, "codec.encoder", (), ("an image", 3, PROBE_SIDE), gives)
    if PROBE_SIDE % side:
        raise UserError(
            f"codec.encoder: {type(module).__name__} gives y of side {side} for an image of {PROBE_SIDE}; it must give "
            f"{gives}"
        )
    return module, channels, PROBE_SIDE // side


# ---------------------------------------------------------------------- reach


@torch.no_grad()
def find_reach(encoder: nn.Module, stride: int) -> int | None:
    """How many rows of pixels a row of y sees beyond its own, at most, as a multiple of the stride.

    Two strides of rows in the middle of a tall image are changed, once to other values and once to NaN, which passes
    through weights of zero as well: the rows of y that change tell the reach. Then a band of the image must give the
    rows of y that the whole image gives, which an encoder with positions or fixed windows need not. The weights are
    taken to be finite, the encoder to be in evaluation mode.

    Returns:
        None where the reach is unlimited (attention, statistics of the whole image) or a band gives another y: such an
        encoder takes each image in one piece.
    """
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    for cells in (16, 64):
        x = torch.rand(1, 3, cells * stride, 4 * stride, generator=generator).to(device) * 2 - 1
        middle = slice(cells // 2 * stride, (cells // 2 + 2) * stride)
        other, broken = x.clone(), x.clone()
        other[:, :, middle] = -x[:, :, middle].flip(2)
        broken[:, :, middle] = torch.nan
        y = encoder(x)
        changed = (encoder(other) != y) | encoder(broken).isnan()
        rows = changed.any(dim=(0, 1, 3)).nonzero().flatten().tolist()
        first, last = min(rows, default=cells // 2), max(rows, default=cells // 2)
        if first == 0 or last == cells - 1:
            continue
        reach = max(cells // 2 - first, last - cells // 2 - 1, 0)
        band = encoder(x[:, :, 2 * stride :])[:, :, reach:]
        whole = y[:, :, 2 + reach :]
        same = torch.allclose(band, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))
        return reach * stride if same else None
    return None

"""How the compress-and-classify model is coded by `aeic_lightning.bitstream`, in the same container.

The hyperprior's h_s runs in the exact arithmetic of `aeic_lightning.bitstream.exact`, so a stream decodes to the same
latents on every machine.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aeic_lightning.bitstream.exact import HyperSynthesis, on_mean_grid
from aeic_lightning.bitstream.sender import laid_out
from aeic_lightning.bitstream.stream import Coding, Tables, coding
from aeic_lightning.classification.model import ClassificationModel
from aeic_lightning.errors import UserError


class OneStep(nn.Module):
    """What `QuadtreeContext` is to AEIC: all of y in a single step, from h_s's scales and means alone."""

    def forward(self, parameters: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        scale, mean = parameters.chunk(2, dim=1)
        mean = on_mean_grid(mean)
        return code(mean, scale, torch.ones_like(mean, dtype=torch.bool))


@coding.register
def _coding(model: ClassificationModel, fast: bool) -> Coding:
    if fast:
        raise UserError("a compress-and-classify model has no fast form; leave out --fast")
    codec = model.codec
    shared = Tables.of(codec.grid, codec.conditional.skip_threshold, codec.prior)
    return Coding(HyperSynthesis(codec.h_s), OneStep(), shared, _Sender(model))


class _Sender:
    """g_a and h_a, the image normalised as the model takes it; there is one rate, hence no level."""

    def __init__(self, model: ClassificationModel) -> None:
        self.model = model

    @torch.inference_mode()
    def analyse(self, x: Tensor) -> Tensor:
        return self.model.codec.g_a(laid_out(self.model.prepare(x), torch.contiguous_format))

    @torch.inference_mode()
    def at_level(self, y: Tensor, level: float | None = None) -> tuple[Tensor, Tensor]:
        return y, self.model.codec.h_a(y)

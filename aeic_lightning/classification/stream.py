"""How the compress-and-classify model is coded by `aeic_lightning.bitstream`, in the same container.

The hyperprior's h_s runs in the exact arithmetic of `aeic_lightning.bitstream.exact`, so a stream decodes to the same
latents on every machine.
"""

import torch
from torch import Tensor

from aeic_lightning.bitstream.exact import HyperSynthesis, PhiContext
from aeic_lightning.bitstream.sender import laid_out
from aeic_lightning.bitstream.stream import Coding, Tables, coding
from aeic_lightning.classification.codec import means_and_scales
from aeic_lightning.classification.model import ClassificationModel
from aeic_lightning.errors import UserError


@coding.register
def _coding(model: ClassificationModel, fast: bool) -> Coding:
    if fast:
        raise UserError("a compress-and-classify model has no fast form; leave out --fast")
    codec = model.codec
    shared = Tables.of(codec.grid, codec.conditional.skip_threshold, codec.prior)
    return Coding(HyperSynthesis(codec.h_s), PhiContext(means_and_scales), shared, _Sender(model))


class _Sender:
    """g_a and h_a, the image normalised as the model takes it; there is one rate, hence no level."""

    def __init__(self, model: ClassificationModel) -> None:
        self.model = model

    @torch.inference_mode()
    def analyse(self, x: Tensor) -> Tensor:
        x = self.model.prepare(x.to(self.model.prior.quantiles.device))
        return self.model.codec.g_a(laid_out(x, torch.contiguous_format))

    @torch.inference_mode()
    def at_level(self, y: Tensor, level: float | None = None) -> tuple[Tensor, Tensor]:
        return y, self.model.codec.h_a(y)

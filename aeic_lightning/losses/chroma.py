"""Distortion of the colours."""

from typing import Any

import torch
from torch import Tensor

from aeic_lightning.losses.term import Description, Term

# The rows of JPEG's Cb and Cr for RGB (ITU-T T.871), without the offset.
CB_CR = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Chroma(Term):
    """Mean squared error of Cb and Cr, for images in [-1, 1].

    A small model that starts from random weights may learn shapes long before colours, which are a few percent of the
    squared error: it then stands on a plateau of grey pictures for thousands of steps. A weight of half of the MSE's,
    or more, takes it off within hundreds.
    """

    needs_picture = True
    of_single_images = True
    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.tensor(CB_CR), persistent=False)

    @classmethod
    def describe(cls) -> Description:
        return Description()

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        difference = output.x_hat - batch["image"]
        return torch.einsum("oc,bchw->bohw", self.matrix.to(difference), difference).square().mean()

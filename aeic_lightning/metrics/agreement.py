"""Semantic fidelity: does a classifier that no loss has seen still see the same thing in the reconstruction?"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from aeic_lightning.errors import UserError
from aeic_lightning.models.backbones import Lite2

SIZE = 260  # the side of images that Lite2 was trained on; larger ones are reduced to it


class ClassAgreement(nn.Module):
    """1 where the most likely ImageNet class of a reconstruction is that of its original, else 0.

    At the lowest rates a decoder paints sharp pictures of other things: LPIPS and FID may not notice. The classifier
    is EfficientNet-Lite2, which is held out from training (losses use Lite0, CLIP and VGG). The original's class need
    not be right: it is compared with itself. Images whose shorter side is longer than 260 pixels are resized to that
    (bilinear, antialiased); nothing is cropped. Chance is far below 1 %.

    Args:
        backbone: "lite2"; the metric's name is same_class_lite2, and its mean over images the share that agrees.
    """

    def __init__(self, backbone: Literal["lite2"] = "lite2") -> None:
        super().__init__()
        if backbone != "lite2":
            raise UserError(f"the agreement of classes has no backbone {backbone!r}: it is held out, on lite2")
        self.name = f"same_class_{backbone}"
        self.backbone = Lite2()

    @torch.no_grad()
    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """(B,) of 1.0 and 0.0 for images (B, 3, H, W) in [-1, 1]."""
        return (self._class(x_hat) == self._class(x)).float()

    def _class(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) > SIZE:
            x = transforms.resize(x, [SIZE], antialias=True)
        return self.backbone.logits(x).argmax(1)

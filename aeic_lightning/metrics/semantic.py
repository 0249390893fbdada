"""Semantic loss: distance of image embeddings (AEIC trains with CLIP's)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from aeic_lightning.errors import UserError
from aeic_lightning.models.backbones import Clip, Lite0

LITE0_SIZE = 224  # larger images are reduced to it


class SemanticLoss(nn.Module):
    """|e(x_hat) - e(x)|, the L2 distance of unit-normalised image embeddings, in [0, 2].

    `clip`: ViT-B/32; the shorter side is resized to 224 (bilinear, antialiased) and the centre cropped. `lite0`: the
    pooled embedding of EfficientNet-Lite0, which takes any size and shape: the shorter side is resized to 224 in the
    same way when it is longer, and nothing is enlarged or cropped.

    Args:
        backbone: "lite0" or "clip"; the metric's name is semantic_lite0 or semantic_clip.
        weights: folder with CLIP; default: the Hugging Face cache.

    Raises UserError when the backbone is unknown or its weights are missing.
    """

    def __init__(self, backbone: Literal["lite0", "clip"] = "lite0", weights: str | None = None):
        super().__init__()
        self.name = f"semantic_{backbone}"
        if backbone == "lite0":
            self.backbone = Lite0(weights)
        elif backbone == "clip":
            self.backbone = Clip(weights)
        else:
            raise UserError(f"the semantic loss has no backbone {backbone!r}: choose lite0 or clip")

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Distance (B,) of images (B, 3, H, W) in [-1, 1]; 0 for equal images. Gradients reach `x_hat` alone."""
        with torch.no_grad():
            reference = self._embed(x)
        # The norm's gradient at 0 is 0, so that equal images are safe.
        return torch.linalg.vector_norm(F.normalize(self._embed(x_hat), dim=1) - F.normalize(reference, dim=1), dim=1)

    def _embed(self, x: Tensor) -> Tensor:
        if isinstance(self.backbone, Clip):
            size = self.backbone.size
            x = transforms.center_crop(transforms.resize(x, [size], antialias=True), [size, size])
        elif min(x.shape[2:]) > LITE0_SIZE:
            x = transforms.resize(x, [LITE0_SIZE], antialias=True)
        return self.backbone.embedding(x)

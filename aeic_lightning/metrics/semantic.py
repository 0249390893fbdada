"""Semantic loss: distance of image embeddings (AEIC trains with CLIP's)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.pairs import Distance, Pair, View, whole
from aeic_lightning.models.backbones import Clip, Lite0

LITE0_SIZE = 224  # larger images are reduced to it


class SemanticLoss(Distance):
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

    def compare(self, pair: Pair) -> Tensor:
        if isinstance(self.backbone, Clip):
            maps_hat, maps = pair.features(self.backbone, Square(self.backbone.size))
            embedded, reference = maps_hat[-1], maps[-1]
        else:
            view: View = reduced if min(pair.x.shape[2:]) > LITE0_SIZE else whole
            maps_hat, maps = pair.features(self.backbone, view)
            embedded = self.backbone.pool(maps_hat[-1])
            with torch.no_grad():
                reference = self.backbone.pool(maps[-1])
        # The norm's gradient at 0 is 0, so that equal images are safe.
        return torch.linalg.vector_norm(F.normalize(embedded, dim=1) - F.normalize(reference, dim=1), dim=1)


def reduced(x: Tensor) -> Tensor:
    """Images whose shorter side is reduced to `LITE0_SIZE`."""
    return transforms.resize(x, [LITE0_SIZE], antialias=True)


@dataclass(frozen=True)
class Square:
    """The view of the square in the middle of images whose shorter side is resized to `side`."""

    side: int

    def __call__(self, x: Tensor) -> Tensor:
        return transforms.center_crop(transforms.resize(x, [self.side], antialias=True), [self.side, self.side])

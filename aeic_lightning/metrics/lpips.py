"""LPIPS: distance of unit-normalised deep features (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", eq. 1)."""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.files import package_folder
from aeic_lightning.metrics.pairs import Distance, Pair
from aeic_lightning.models.backbones import Lite0, Lite2, TorchvisionFeatures
from aeic_lightning.models.frozen import Frozen, read_state_dict
from aeic_lightning.models.hed import HedFeatures

UNWEIGHTED = {"lite0": Lite0, "lite2": Lite2, "hed": HedFeatures}


class LPIPS(Distance):
    """sum_l mean_hw sum_c w_lc (f_lc / |f_l| - g_lc / |g_l|)^2, with |.| the norm over channels at a position.

    `alex` and `vgg` are the standard metrics (version 0.1): channel weights w from the `lpips` package. `lite0` and
    `lite2` have no learned weights: w_lc = 1/5 for every channel of each of EfficientNet-Lite's five stages, i.e. the
    mean over stages and positions of the squared distance of unit vectors, in [0, 4]. `hed` is the same mean over the
    five blocks of a VGG16 that was trained on for edges: no published LPIPS, and not comparable with `vgg`.

    Args:
        backbone: "lite0", "lite2", "hed", "alex" or "vgg"; the metric's name is lpips_ and that.
        weights: AlexNet's or VGG16's torchvision file; default: torch.hub's cache.

    Raises UserError when the backbone is unknown or its weights are missing.
    """

    def __init__(self, backbone: Literal["lite0", "lite2", "hed", "alex", "vgg"] = "lite0", weights: str | None = None):
        super().__init__()
        self.name = f"lpips_{backbone}"
        if backbone in UNWEIGHTED:
            self.backbone = UNWEIGHTED[backbone](weights)
            channel_weights = [torch.full((1, c, 1, 1), 1 / 5) for c in self.backbone.channels]
        elif backbone in ("alex", "vgg"):
            self.backbone = TorchvisionFeatures(backbone, weights)
            channel_weights = _learned_weights(backbone)
        else:
            raise UserError(f"LPIPS has no backbone {backbone!r}: choose lite0, lite2, hed, alex or vgg")
        self.channel_weights = Frozen(nn.ParameterList(channel_weights))

    def compare(self, pair: Pair) -> Tensor:
        total = pair.x.new_zeros(())
        weights = cast(nn.ParameterList, self.channel_weights.net)
        for f, g, w in zip(*pair.features(self.backbone), weights, strict=True):
            # F.normalize has a zero gradient at a zero vector (dead ReLUs), where x / sqrt(sum x^2) has NaN.
            difference = F.normalize(f, dim=1, eps=1e-10) - F.normalize(g, dim=1, eps=1e-10)
            total = total + (w * difference.square()).sum(1).mean((1, 2))
        return total


def _learned_weights(backbone: str) -> list[Tensor]:
    """Channel weights (1, C, 1, 1) of the five layers, from the `lpips` wheel (not imported: it pulls in a trainer)."""
    package = package_folder("lpips")
    state = read_state_dict(package / "weights" / "v0.1" / f"{backbone}.pth")
    return [state[f"lin{layer}.model.1.weight"] for layer in range(5)]

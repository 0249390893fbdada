"""The rate-distortion-perception loss: the one place where the terms are summed.

    L = lambda R + g1 MSE + g2 perceptual + g3 semantic + g4 adversarial

R is in bits per pixel (the likelihood estimate over the pixels of the crop), MSE is on images in [-1, 1]. This is the
loss of AEIC; a larger lambda gives a smaller file.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from aeic_lightning.losses.adversarial import generator_loss
from aeic_lightning.metrics.dists import EdgeAwareDISTS
from aeic_lightning.metrics.lpips import LPIPS
from aeic_lightning.metrics.semantic import LITE0_SIZE, SemanticLoss


@dataclass
class LossConfig:
    """Weights of the terms; a term of weight 0 is neither built nor computed. The defaults are AEIC-ME stage 1's.

    Args:
        rate: lambda, the weight of the bits per pixel. AEIC: 0.8 relaxed; 2, 4, 8, 16, 32 at the target rates.
        mse: weight of the mean squared error on [-1, 1].
        lpips: weight of LPIPS.
        edge_dists: weight of edge-aware DISTS.
        semantic: weight of the distance between image embeddings.
        adversarial: weight of the generator's loss; needs a discriminator.
        lpips_backbone: `lite0` needs no download; `alex` and `vgg` are the standard ones.
        dists_backbone: `lite0` or `vgg`.
        semantic_backbone: `lite0` or `clip`.
    """

    rate: float = 0.8
    mse: float = 2.0
    lpips: float = 1.0
    edge_dists: float = 0.0
    semantic: float = 0.1
    adversarial: float = 0.0
    lpips_backbone: Literal["lite0", "alex", "vgg"] = "lite0"
    dists_backbone: Literal["lite0", "vgg"] = "lite0"
    semantic_backbone: Literal["lite0", "clip"] = "lite0"


class LossOutput(NamedTuple):
    """The weighted total, and each term by name before its weight; all scalars, means over the batch."""

    total: Tensor
    terms: dict[str, Tensor]


class RateDistortionPerceptionLoss(nn.Module):
    """Sum of the terms of `LossConfig`."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.perceptual = nn.ModuleDict()
        if config.lpips:
            self.perceptual["lpips"] = LPIPS(config.lpips_backbone)
        if config.edge_dists:
            self.perceptual["edge_dists"] = EdgeAwareDISTS(config.dists_backbone)
        if config.semantic:
            self.perceptual["semantic"] = SemanticLoss(config.semantic_backbone)

    def forward(
        self,
        x_hat: Tensor,
        x: Tensor,
        bits_estimate: Tensor,
        fake_logits: list[Tensor] | None = None,
        rate_scale: float = 1.0,
    ) -> LossOutput:
        """Images (B, 3, H, W) in [-1, 1]; bits (B,); the discriminator's logits of x_hat if it takes part.

        `rate_scale` multiplies lambda, for a warm-up of the rate.
        """
        bpp = bits_estimate.mean() / (x.shape[2] * x.shape[3])
        terms = {"bpp_estimate": bpp, "mse": (x_hat - x).square().mean()}
        terms |= self._perceptual_terms(x_hat, x)
        if fake_logits is not None:
            terms["adversarial"] = generator_loss(fake_logits)

        config = self.config
        weights = {
            "bpp_estimate": config.rate * rate_scale,
            "mse": config.mse,
            "lpips": config.lpips,
            "edge_dists": config.edge_dists,
            "semantic": config.semantic,
            "adversarial": config.adversarial,
        }
        total = sum(weights[name] * term for name, term in terms.items())
        return LossOutput(total, terms)

    def _perceptual_terms(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        modules = dict(self.perceptual)
        terms = {}
        both_lite0 = self.config.lpips_backbone == self.config.semantic_backbone == "lite0"
        if both_lite0 and {"lpips", "semantic"} <= modules.keys() and min(x.shape[2:]) <= LITE0_SIZE:
            # One pass through the backbone serves both: about a fifth of a tiny training step.
            lpips, semantic = modules.pop("lpips"), modules.pop("semantic")
            with torch.no_grad():
                features = lpips.backbone.features(x)
                embedding = semantic.backbone.pool(features[-1])
            features_hat = lpips.backbone.features(x_hat)
            terms["lpips"] = lpips.compare(features_hat, features).mean()
            terms["semantic"] = semantic.compare(semantic.backbone.pool(features_hat[-1]), embedding).mean()
        return terms | {name: module(x_hat, x).mean() for name, module in modules.items()}

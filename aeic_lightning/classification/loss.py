"""The rate-distortion-accuracy loss: the one place where the terms are summed.

    L = rate bpp + alpha CE + beta D + distillation KL

bpp is the likelihood estimate over the pixels of the image; CE the cross-entropy of the classes; D the mean squared
error on the 0..255 scale. With the paper's weights (Bai et al., AAAI 2022):

    quality   alpha   beta             step 1 (no rate, no quantisation): alpha 1, beta 0.001
       1       0.1    0.001
       2       0.3    0.003
       3       0.6    0.006
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from aeic_lightning.errors import UserError


@dataclass
class ClassificationLossConfig:
    """Weights of the terms. The defaults are the paper's step 1.

    Args:
        rate: weight of the bits per pixel; 0 for step 1, which quantises nothing, 1 for step 2.
        alpha: weight of the cross-entropy.
        beta: weight of the mean squared error on 0..255.
        label_smoothing: share of the target that is spread over all classes.
        mixup: parameter of mixup's beta distribution; 0 for none.
        distillation: weight of the distance to a teacher's logits; needs a teacher.
        temperature: of both softmaxes in that distance (Hinton et al. 2015).
    """

    rate: float = 0.0
    alpha: float = 1.0
    beta: float = 0.001
    label_smoothing: float = 0.1
    mixup: float = 0.8
    distillation: float = 0.0
    temperature: float = 1.0

    def check(self) -> None:
        """Raise UserError for weights that mean nothing."""
        values = (self.rate, self.alpha, self.beta, self.label_smoothing, self.mixup, self.distillation)
        if min(values) < 0 or self.temperature <= 0 or self.label_smoothing >= 1:
            raise UserError("loss: no weight may be negative, label_smoothing is below 1, temperature above 0")


class ClassificationLoss(NamedTuple):
    """The weighted total, and each term by name before its weight; all scalars, means over the batch."""

    total: Tensor
    terms: dict[str, Tensor]


def rate_distortion_accuracy(
    config: ClassificationLossConfig,
    logits: Tensor,
    target: Tensor,
    x_hat: Tensor,
    x: Tensor,
    bits_estimate: Tensor,
    teacher_logits: Tensor | None = None,
    rate_scale: float = 1.0,
) -> ClassificationLoss:
    """Sum of the terms of `config`.

    Args:
        config: the weights.
        logits: (B, classes).
        target: probabilities (B, classes), as mixup and label smoothing leave them, or classes (B,) int64.
        x_hat: (B, 3, H, W), [-1, 1] but not clamped.
        x: (B, 3, H, W) in [-1, 1].
        bits_estimate: (B,) bits of each image.
        teacher_logits: (B, classes), when the weight of the distillation is above 0.
        rate_scale: factor of the rate's weight during its warm-up.
    """
    terms = {
        "cross_entropy": F.cross_entropy(logits, target),
        "mse_255": (127.5 * (x_hat - x)).square().mean(),
    }
    total = config.alpha * terms["cross_entropy"] + config.beta * terms["mse_255"]
    if config.rate:
        terms["bpp_estimate"] = bits_estimate.mean() / (x.shape[2] * x.shape[3])
        total = total + rate_scale * config.rate * terms["bpp_estimate"]
    if config.distillation:
        terms["distillation"] = logits_distance(logits, teacher_logits, config.temperature)
        total = total + config.distillation * terms["distillation"]
    return ClassificationLoss(total, terms)


def logits_distance(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch, in nats."""
    own, theirs = (F.log_softmax(values / temperature, dim=-1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)

"""The terms of compress-and-classify's objective, beside the rate:

    L = rate bpp + alpha CE + beta D + distillation KL

bpp is the likelihood estimate over the pixels of the image; CE the cross-entropy of the classes; D the mean squared
error on the 0..255 scale. With the paper's weights (Bai et al., AAAI 2022):

    quality   alpha   beta             step 1 (no rate, no quantisation): alpha 1, beta 0.001
       1       0.1    0.001
       2       0.3    0.003
       3       0.6    0.006
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from aeic_lightning.errors import UserError
from aeic_lightning.losses.term import Description, Term


class CrossEntropy(Term):
    """Cross-entropy of `output.logits` (B, classes) with the classes, (B,) or as mixup leaves them (B, classes).

    Args:
        label_smoothing: share of the target that is spread over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"cross-entropy: label_smoothing is 0 or more and below 1, not {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(
        self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, label = output.logits, batch["label"]
        loss = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        return loss, {"top1": (logits.argmax(1) == label).float().mean()} if label.ndim == 1 else {}


class SquaredError255(Term):
    """D: mean squared error of pictures in [-1, 1], not clamped, on the 0..255 scale."""

    needs_picture = True

    @classmethod
    def describe(cls) -> Description:
        return Description(metric="psnr")

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        return (127.5 * (output.x_hat - batch["image"])).square().mean()


class LogitsDistillation(Term):
    """Distance of the logits to a teacher's, `teacher["logits"]`: T^2 KL of the two softmaxes (Hinton et al. 2015).

    Args:
        temperature: T, of both softmaxes.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"distillation: temperature must be above 0, not {temperature}")
        self.temperature = temperature

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        assert teacher is not None, "a system that distils has a teacher"
        return logits_distance(output.logits, teacher["logits"], self.temperature)


def logits_distance(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch, in nats."""
    own, theirs = (F.log_softmax(values / temperature, dim=-1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)

"""Dual-side feature distillation: L_enc on the codec's taps, L_dec on the decoder's.

teacher   x ─> y, z, phi, y_hat ─> l_T, l_res ─> h_0 ... h_8, l_0      (frozen)
                │  encoder side       │  decoder side
              ||·||²                ||·||²
                │                     │
student   f(y, z, phi, y_hat) ─> f(l_T, l_res) ─> f(h_0 ... h_8, l_0)  (f: a learnable 1x1 convolution, one per tap)
"""

import torch.nn.functional as F
from torch import Tensor

from aeic_lightning.losses.tap_term import TapMatch, TapTerm

__all__ = ["FeatureDistillation", "TapMatch"]


class FeatureDistillation(TapTerm):
    """For each tap the mean of (teacher - f(student))^2, f being a learnable 1x1 convolution; summed with the weights.

    A tap with `normalise` compares teacher / rms(teacher) with f(student / rms(student)), rms over the whole tensor.
    The square is averaged over the elements of the tap, so that a weight means the same at every width and resolution.

    Args:
        side: `encoder` (L_enc) or `decoder` (L_dec).
        taps: see `TapTerm`.
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)

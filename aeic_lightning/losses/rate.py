"""The rate R, and the search for the lambda that gives a wanted rate."""

import math
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from aeic_lightning.errors import UserError
from aeic_lightning.losses.term import Description, Term

FASTEST = 1.0
"""Error of the rate, as a natural logarithm, above which the search goes no faster."""
WIDEST = math.log(1e4)
"""How far the search goes from the first lambda, either way."""

SETTLE = 100
"""Updates in which the integral part corrects an error once, by default."""


class Rate(Term):
    """Estimated bits per pixel: the likelihood bits of each image over the pixels of the crop, mean over the batch.

    Its weight is lambda. AEIC: 0.8 relaxed; 2, 4, 8, 16, 32 at the target rates; a larger one gives a smaller file. An
    output with `rate_weight` (B,) has each image's bits multiplied by it; `bpp_estimate` stays the plain mean.

    With a `target` the weight is where the search for lambda begins: a controller with a proportional and an integral
    part on log lambda, whose error is log(rate / target), the rate being a moving average over about ten updates. It
    begins to integrate when the weight's warm-up is over. The lambda of each update is logged as `lambda`, the average
    as `bpp_average`; both are in the checkpoint.

    Args:
        target: estimated bits per pixel of the training crops that are wanted; None for a fixed lambda.
        settle: updates in which the integral part corrects an error once. Larger is calmer; the rate follows lambda
            within some tens to hundreds of updates, and `settle` should not be less than that.
    """

    tag = "bpp_estimate"
    search: Tensor

    def __init__(self, target: float | None = None, settle: int = SETTLE) -> None:
        super().__init__()
        if target is not None and not 0 < target < math.inf:
            raise UserError(f"objective.rate: target must be a number of bits per pixel above 0, not {target}")
        if settle < 1:
            raise UserError(f"objective.rate: settle must be 1 or more updates, not {settle}")
        if target is None and settle != SETTLE:
            raise UserError("objective.rate: settle is of the search for a target, and there is none; leave it out")
        self.target, self.settle = target, settle
        self._seen: list[Tensor] = []  # rates of the batches of this update
        if target is not None:
            # Moving average of the rate (0: none yet), and the integral, in units of log lambda.
            self.register_buffer("search", torch.zeros(2, dtype=torch.float64))

    @classmethod
    def describe(cls, **_: Any) -> Description:
        return Description(metric="bpp_estimate")

    @property
    def factor(self) -> float:
        """What the search multiplies the weight by; 1 without a target."""
        if self.target is None:
            return 1.0
        average, integral = self.search.tolist()
        error = _clamped(math.log(average / self.target), FASTEST) if average else 0.0
        return math.exp(_clamped(integral + error, WIDEST))

    def forward(
        self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["image"].shape[2] * batch["image"].shape[3]
        bpp = output.bits_estimate.mean() / pixels
        weight = getattr(output, "rate_weight", None)
        if self.target is None:
            if weight is None:
                return bpp
            weighted = (weight * output.bits_estimate).mean() / pixels
            return weighted, {"bpp_estimate": bpp, "rate_weighted": weighted}
        if weight is not None:
            raise UserError("objective.rate: target is one rate, and this codec has rate_levels; drop one of them")
        if self.training:
            self._seen.append(bpp.detach())
        return self.factor * bpp, {"bpp_estimate": bpp}

    def updated(self, warm: bool) -> None:
        """One step of the search after an update of the model."""
        if self.target is None or not self._seen:
            return
        rate = torch.stack(self._seen).double().mean()
        self._seen = []
        if torch.distributed.is_initialized():  # one lambda for all processes
            torch.distributed.all_reduce(rate)
            rate /= torch.distributed.get_world_size()
        average, integral = self.search.tolist()
        average = 0.9 * average + 0.1 * rate.item() if average else rate.item()
        if warm:
            error = _clamped(math.log(max(average, 1e-12) / self.target), FASTEST)
            integral = _clamped(integral + error / self.settle, WIDEST)
        self.search.copy_(torch.tensor([average, integral], dtype=torch.float64))

    def skipped(self) -> None:
        """Forget the rates of an update that was not taken."""
        self._seen = []


def _clamped(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))

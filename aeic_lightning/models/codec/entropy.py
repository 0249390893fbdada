"""Entropy models: the factorised prior of z and the Gaussian conditional of y (Balle et al. 2018).

Likelihoods are of unit-width bins, floored at 1e-9 with a gradient that can leave the floor.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIKELIHOOD_FLOOR = 1e-9
SCALE_FLOOR = 0.11
NOTHING_CODED = 1e30
"""A skip threshold that no raw scale reaches."""


class _LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient passes below the bound when it would raise x."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return torch.where((x >= ctx.bound) | (grad < 0), grad, 0.0), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound), keeping gradients that point upwards."""
    return _LowerBound.apply(x, bound)


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest (ties to even); the gradient is that of the identity."""
    return x + (x.round() - x).detach()


def add_noise(x: Tensor) -> Tensor:
    """x + U(-1/2, 1/2): the training stand-in for rounding where a rate is estimated."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def bits(likelihood: Tensor) -> Tensor:
    """Information of each image in bits: (B, C, H, W) likelihoods -> (B,)."""
    return -likelihood.log2().flatten(1).sum(1)


class FactorizedPrior(nn.Module):
    """Learned univariate density of each channel of z (Balle et al. 2018, appendix 6.1).

    The cumulative of channel c is sigmoid(logits(v)), logits being a monotone network 1-3-3-3-3-1. The probability of
    the bin around v is sigmoid(logits(v + 1/2)) - sigmoid(logits(v - 1/2)).

    `quantiles` (C, 3) holds for each channel the lower tail, the median and the upper tail (mass `tail_mass` outside in
    all). They are not trained: `update_quantiles` solves for them by bisection, so they always fit the density. Call it
    before evaluation and before a checkpoint is written.
    """

    quantiles: Tensor

    def __init__(self, channels: int, tail_mass: float = 1e-9, init_scale: float = 10.0) -> None:
        super().__init__()
        self.channels = channels
        self.tail_mass = tail_mass
        filters = (1, 3, 3, 3, 3, 1)
        scale = init_scale ** (1 / (len(filters) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for f_in, f_out in pairwise(filters):
            init = math.log(math.expm1(1 / scale / f_out))
            self.matrices.append(nn.Parameter(torch.full((channels, f_out, f_in), init)))
            self.biases.append(nn.Parameter(torch.empty(channels, f_out, 1).uniform_(-0.5, 0.5)))
        for f_out in filters[1:-1]:
            self.factors.append(nn.Parameter(torch.zeros(channels, f_out, 1)))
        self.register_buffer("quantiles", torch.tensor([-init_scale, 0.0, init_scale]).repeat(channels, 1))

    def logits(self, v: Tensor) -> Tensor:
        """Logit of the cumulative at `v` (C, N) -> (C, N); increasing in v."""
        v = v.unsqueeze(1)
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            v = F.softplus(matrix) @ v + bias
            if i < len(self.factors):
                v = v + self.factors[i].tanh() * v.tanh()
        return v.squeeze(1)

    def likelihood(self, z: Tensor) -> Tensor:
        """Probability of the unit bin around each value of z (B, C, h, w), same shape, in [1e-9, 1]."""
        v = z.transpose(0, 1).flatten(1)
        upper, lower = self.logits(v + 0.5), self.logits(v - 0.5)
        # In the upper tail both sigmoids are near 1: mirror them there to keep the digits of the difference.
        # Where they cancel, at the centre of a symmetric density, either side will do; a sign of 0 would give p = 0.
        sign = torch.where((upper + lower).detach() > 0, -1.0, 1.0).to(upper)
        p = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        p = p.reshape(z.shape[1], z.shape[0], *z.shape[2:]).transpose(0, 1)
        return lower_bound(p, LIKELIHOOD_FLOOR)

    @property
    def medians(self) -> Tensor:
        """(1, C, 1, 1): the offset of the rounding grid of each channel."""
        return self.quantiles[:, 1].reshape(1, -1, 1, 1)

    def quantise(self, z: Tensor) -> Tensor:
        """z_hat = round(z - median) + median, straight-through."""
        return round_ste(z - self.medians) + self.medians

    @torch.no_grad()
    def update_quantiles(self) -> None:
        """Solve logits(q) = logit(tail/2), 0, logit(1 - tail/2) by bisection, in float64."""
        tail = math.log(2 / self.tail_mass - 1)
        target = self.quantiles.new_tensor([-tail, 0.0, tail]).double().expand(self.channels, 3)
        density = FactorizedPrior(self.channels).to(self.quantiles.device)
        density.load_state_dict(self.state_dict())
        density.double()
        # Widen until both ends enclose the target, then halve to beyond float32 precision.
        low, high = -torch.ones_like(target), torch.ones_like(target)
        for _ in range(60):
            low = torch.where(density.logits(low) > target, 2 * low, low)
            high = torch.where(density.logits(high) < target, 2 * high, high)
        for _ in range(80):
            middle = (low + high) / 2
            below = density.logits(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        self.quantiles.copy_((low + high) / 2)


class GaussianConditional(nn.Module):
    """Gaussian of given mean and scale, integrated over unit bins: the conditional of y.

    The raw scale comes from the network without softplus or exp, so half of it may be negative; it is floored at
    0.11. Where it is below `skip_threshold` the stream holds no symbol, and y_hat is the mean.
    """

    def __init__(self, skip_threshold: float | None = 0.08) -> None:
        super().__init__()
        self.skip_threshold = skip_threshold

    def is_coded(self, scale: Tensor) -> Tensor:
        """Bool, same shape: where a stream holds a symbol, from the raw scale."""
        if self.skip_threshold is None:
            return torch.ones_like(scale, dtype=torch.bool)
        return scale >= self.skip_threshold

    def quantise(self, y: Tensor, mean: Tensor, scale: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The residual round(y - mean) within `mask`, straight-through, and where a stream holds it.

        What is not coded decodes as 0, and is 0 here, so that the sender's context is the receiver's.
        """
        coded = mask & self.is_coded(scale)
        return torch.where(coded, round_ste(y - mean), 0.0), coded

    def likelihood(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Probability of the unit bin around y; all shapes equal; in [1e-9, 1]."""
        scale = lower_bound(scale, SCALE_FLOOR)
        distance = (y - mean).abs()
        p = _normal_cdf((0.5 - distance) / scale) - _normal_cdf((-0.5 - distance) / scale)
        return lower_bound(p, LIKELIHOOD_FLOOR)


def _normal_cdf(x: Tensor) -> Tensor:
    # erfc keeps the digits of small tails, which 1 + erf would lose.
    return 0.5 * torch.erfc(-(2**-0.5) * x)

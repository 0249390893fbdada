"""The entropy model: the factorised prior of z, the Gaussian conditional of y (Balle et al. 2018), and context models.

Likelihoods are of unit-width bins, floored at 1e-9 with a gradient that can leave the floor. A context model says which
latents each step codes, and what it predicts their means and scales from. It is a part of the codec, given by class
path as the encoder is (`CodecConfig.context`). Shipped are

    QuadtreeContext       four steps, the paper's; the default
    CheckerboardContext   two steps (He et al. 2021, "Checkerboard Context Model for Efficient Learned Image
                          Compression")
    NoContext             one step: means and scales are what h_s gives (Minnen et al. 2018, without the context)

Another order of coding is a subclass of `GridContext` with a `pattern` of its own.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.models.layers import Adapter, ContextLayer

LIKELIHOOD_FLOOR = 1e-9
SCALE_FLOOR = 0.11
NOTHING_CODED = 1e30
"""A skip threshold that no raw scale reaches."""
Position = tuple[int, int]
"""(row, column) within every 2x2 cell of y."""
Pattern = tuple[tuple[tuple[Position, ...], ...], ...]
"""pattern[step][quarter]: the positions that the step codes in that quarter of the channels. Over all steps, each
position of each quarter comes once."""

# In the paper's order the quarters of the channels look at four different positions in every step.
_A, _B, _C, _D = (0, 0), (0, 1), (1, 0), (1, 1)
QUADTREE: Pattern = tuple(
    tuple((position,) for position in step)
    for step in ((_A, _B, _C, _D), (_D, _C, _B, _A), (_C, _D, _A, _B), (_B, _A, _D, _C))
)
CHECKERBOARD: Pattern = (((_A, _D),) * 4, ((_B, _C),) * 4)
AT_ONCE: Pattern = (((_A, _B, _C, _D),) * 4,)


# ---------------------------------------------------------------------- densities


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


# ---------------------------------------------------------------------- context


def grid_mask(
    quarters: tuple[tuple[Position, ...], ...],
    channels: int,
    height: int,
    width: int,
    device: torch.device | None = None,
) -> Tensor:
    """Bool (1, C, H, W): the latents that a step codes. The masks of a pattern partition the tensor."""
    mask = torch.zeros(1, channels, height, width, dtype=torch.bool, device=device)
    for quarter, positions in zip(mask.tensor_split(4, dim=1), quarters, strict=True):
        for row, column in positions:
            quarter[..., row::2, column::2] = True
    return mask


def code_in_steps(
    pattern: Pattern,
    params: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    phi: Tensor,
    code: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Run the steps; the one loop behind training, estimation, writing and reading a stream.

    Args:
        pattern: which latents each step codes.
        params: (base, step) -> mean and raw scale of all positions, each (B, M, H, W). The base is phi, replaced by
            y_hat where it is coded already.
        phi: (B, M, H, W), H and W even; of a model with one step (B, K, H, W).
        code: (mean, scale, mask) -> y_hat of the step (values outside of the mask are ignored): a quantiser in
            training, a range coder on the sender's side, its reader on the receiver's.
    """
    base = phi
    for step, quarters in enumerate(pattern):
        mean, scale = params(base, step)
        mask = grid_mask(quarters, *mean.shape[1:], device=phi.device)
        coded = code(mean, scale, mask)
        base = coded if len(pattern) == 1 else torch.where(mask, coded, base)
    return base


class ContextModel(nn.Module):
    """What predicts y in steps.

    A subclass takes M, the channels of y, first, and whatever else as `init_args`.

    Args:
        pattern: which latents each step codes.
        phi_channels: what h_s must give: M where there is more than one step.
    """

    def __init__(self, pattern: Pattern, phi_channels: int) -> None:
        super().__init__()
        self.pattern, self.phi_channels = pattern, phi_channels

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and raw scale (before any floor), each (B, M, H, W), for all positions; see `code_in_steps`."""
        raise NotImplementedError

    def forward(self, phi: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """y_hat (B, M, H, W); see `code_in_steps`."""
        return code_in_steps(self.pattern, self.params, phi, code)


class GridContext(ContextModel):
    """Means and scales of y in the steps of a pattern, each seeing all that was coded before.

    In step k: `adapter_out[k](g_c(adapter_in[k](base)))`, halves being means then raw scales; base is phi, replaced by
    y_hat where it is coded already. g_c is shared by the steps.

    Args:
        channels: M, of y.
        width: channels inside g_c.
        depth: layers of g_c.
        pattern: which latents each step codes.
    """

    def __init__(self, channels: int, width: int, depth: int, pattern: Pattern) -> None:
        super().__init__(pattern, channels)
        self.adapter_in = nn.ModuleList(Adapter(channels, width) for _ in pattern)
        self.g_c = nn.Sequential(*(ContextLayer(width) for _ in range(depth)))
        adapters = [Adapter(width, 2 * channels) for _ in pattern]
        for adapter in adapters:
            # Start from scales near 1: from 0, half the symbols would begin on the flat side of the scale floor.
            nn.init.ones_(cast(Tensor, adapter.branch2.bias)[channels:])
        self.adapter_out = nn.ModuleList(adapters)

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        mean, scale = self.adapter_out[step](self.g_c(self.adapter_in[step](base))).chunk(2, dim=1)
        return mean, scale


class QuadtreeContext(GridContext):
    """The four steps of AEIC: in each, the quarters of the channels code four different positions of a 2x2 cell."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__(channels, width, depth, QUADTREE)


class CheckerboardContext(GridContext):
    """Two steps: the white squares of a checkerboard in all channels, then the black ones."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__(channels, width, depth, CHECKERBOARD)


class NoContext(ContextModel):
    """One step: phi (B, 2M, H, W) is the means, then the raw scales less 1, so that scales start near 1."""

    def __init__(self, channels: int) -> None:
        super().__init__(AT_ONCE, 2 * channels)

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        mean, scale = base.chunk(2, dim=1)
        return mean, scale + 1

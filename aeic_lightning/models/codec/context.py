"""Context models: which latents each step codes, and what it predicts their means and scales from.

A context model is a part of the codec, given by class path as the encoder is (`CodecConfig.context`). Shipped are

    QuadtreeContext       four steps, the paper's; the default
    CheckerboardContext   two steps (He et al. 2021, "Checkerboard Context Model for Efficient Learned Image
                          Compression")
    NoContext             one step: means and scales are what h_s gives (Minnen et al. 2018, without the context)

Another order of coding is a subclass of `GridContext` with a `pattern` of its own.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from aeic_lightning.models.layers import Adapter, ContextLayer

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


def grid_mask(
    quarters: tuple[tuple[Position, ...], ...],
    channels: int,
    height: int,
    width: int,
    device: torch.device | None = None,
) -> Tensor:
    """Bool (1, C, H, W): the latents that a step codes. The masks of a pattern partition the tensor."""
    mask = torch.zeros(1, channels, height, width, dtype=torch.bool, device=device)
    for quarter, positions in zip(mask.chunk(4, dim=1), quarters, strict=True):
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

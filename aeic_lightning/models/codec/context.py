"""The four-step quadtree context model: which latents each step codes, and what it predicts them from."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from aeic_lightning.models.layers import Adapter, ContextLayer

# QUADTREE[step][quarter]: the position, as (row, column) of every 2x2 cell, that the step codes in that quarter of
# the channels. Each position of each quarter is coded once; within a step the quarters look at four different ones.
_A, _B, _C, _D = (0, 0), (0, 1), (1, 0), (1, 1)
QUADTREE = ((_A, _B, _C, _D), (_D, _C, _B, _A), (_C, _D, _A, _B), (_B, _A, _D, _C))


def quadtree_mask(step: int, channels: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Bool (1, C, H, W): the latents that `step` (0..3) codes. The four masks partition the tensor."""
    mask = torch.zeros(1, channels, height, width, dtype=torch.bool, device=device)
    for quarter, (row, column) in zip(mask.chunk(4, dim=1), QUADTREE[step], strict=True):
        quarter[..., row::2, column::2] = True
    return mask


class QuadtreeContext(nn.Module):
    """Means and scales of y in four steps, each seeing all that was coded before.

    In step k: `adapter_out[k](g_c(adapter_in[k](base)))`, halves being means then raw scales; base is phi, replaced by
    y_hat where it is coded already. g_c is shared by the steps.
    """

    steps = len(QUADTREE)

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.adapter_in = nn.ModuleList(Adapter(channels, width) for _ in range(self.steps))
        self.g_c = nn.Sequential(*(ContextLayer(width) for _ in range(depth)))
        adapters = [Adapter(width, 2 * channels) for _ in range(self.steps)]
        for adapter in adapters:
            # Start from scales near 1: from 0, half the symbols would begin on the flat side of the scale floor.
            nn.init.ones_(cast(Tensor, adapter.branch2.bias)[channels:])
        self.adapter_out = nn.ModuleList(adapters)

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and raw scale (before any floor), each (B, C, H, W), for all positions."""
        mean, scale = self.adapter_out[step](self.g_c(self.adapter_in[step](base))).chunk(2, dim=1)
        return mean, scale

    def forward(self, phi: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Run the four steps; the one loop behind training, estimation, writing and reading a stream.

        `code(mean, scale, mask)` returns y_hat of the step (values outside of the mask are ignored): a quantiser in
        training, a range coder on the sender's side, its reader on the receiver's. phi (B, M, H, W), H and W even.
        """
        base = phi
        for step in range(self.steps):
            mask = quadtree_mask(step, phi.shape[1], *phi.shape[2:], device=phi.device)
            mean, scale = self.params(base, step)
            base = torch.where(mask, code(mean, scale, mask), base)
        return base

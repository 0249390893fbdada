"""The blocks of Stable Diffusion's U-Net and VAE decoder, without time and text, of which the decoder is made.

Tensors have the names that the diffusers library gives them, so that its files fit. The library itself, which takes
five seconds to import, is not needed; tests compare each network with it.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Recompute = Callable[..., Any]
"""Runs a function on arguments, and may drop what it keeps for the backward pass, to compute it again there."""


class Recomputing(nn.Module):
    """A module whose parts run through `recompute`, if it has one, where gradients are computed."""

    recompute: Recompute | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args)"""
        if self.recompute is None or not torch.is_grad_enabled():
            return function(*args)
        return self.recompute(function, *args)


def group_norm(groups: int, channels: int, eps: float) -> nn.Module:
    """GroupNorm; nothing for 0 groups."""
    return nn.GroupNorm(groups, channels, eps=eps) if groups else nn.Identity()


class Resnet(Recomputing):
    """Two 3x3 convolutions beside a skip connection. It starts as the latter alone."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = group_norm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        return out + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention of tokens (B, n, C)."""

    def __init__(self, channels: int, heads: int, bias: bool = False, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.heads = heads
        if norm is not None:
            self.group_norm = norm
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (to(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ImageAttention(Attention):
    """Self-attention of one head over the positions of (B, C, h, w), with its norm and a skip connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, bias=True, norm=group_norm(groups, channels, 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)
        return super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[2:]) + x


class GEGLU(nn.Module):
    """One half of a product, times the GELU of the other."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers of tokens, gated between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # A dropout of 0 stands between them in diffusers.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerLayer(Recomputing):
    """Self-attention, then the feed-forward layers."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm3 = nn.LayerNorm(channels)  # `norm2` is that of the cross-attention
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """A transformer layer over the positions of (B, C, h, w), beside a skip connection. It starts as the latter."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels, 1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerLayer(channels, heads)])
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:]).contiguous() + x


class Downsample(nn.Module):
    """Half the size, rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the size by repetition, or the size that is given, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        return self.conv(F.interpolate(x, size=size) if size else F.interpolate(x, scale_factor=2.0))


class Block(nn.Module):
    """Resnets of these channels, each followed by a transformer if there are `heads`; samplers are added by others."""

    def __init__(self, channels: Sequence[tuple[int, int]], groups: int, eps: float, heads: int | None = None) -> None:
        super().__init__()
        resnets, attentions = [], []
        for w_in, w_out in channels:
            resnets.append(Resnet(w_in, w_out, groups, eps))
            if heads:
                attentions.append(Transformer(w_out, heads, groups))
        # The order of these two lists is that of the parameters in an optimizer's state.
        if heads:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        self.attends = heads is not None

    def layer(self, i: int, x: Tensor) -> Tensor:
        """The resnet of this number, and its transformer."""
        x = self.resnets[i](x)
        return self.attentions[i](x) if self.attends else x


class DownBlock(Block):
    """x -> the output, and what skips to an up block: after each resnet and at the end."""

    def __init__(self, w_in: int, w_out: int, layers: int, groups: int, heads: int | None, halves: bool) -> None:
        super().__init__([(w_in if i == 0 else w_out, w_out) for i in range(layers)], groups, 1e-5, heads)
        self.downsamplers = nn.ModuleList([Downsample(w_out)]) if halves else None

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class UpBlock(Block):
    """x and, for each resnet, what skipped to it, the last first -> the output, of the size of the next skip.

    Args:
        skips: channels of what skips to each resnet.
        w_in, w_out: of x and of the output.
        doubles: whether it ends by doubling the size.
    """

    def __init__(
        self, w_in: int, w_out: int, skips: Sequence[int], groups: int, heads: int | None, doubles: bool
    ) -> None:
        channels = [((w_out if i else w_in) + skip, w_out) for i, skip in enumerate(skips)]
        super().__init__(channels, groups, 1e-5, heads)
        self.upsamplers = nn.ModuleList([Upsample(w_out)]) if doubles else None

    def forward(self, x: Tensor, skips: Sequence[Tensor], size: Sequence[int] | None) -> Tensor:
        for i, skip in enumerate(skips):
            x = self.layer(i, torch.cat([x, skip], dim=1))
        return x if self.upsamplers is None else self.upsamplers[0](x, size)


class MidBlock(nn.Module):
    """Resnet, attention if there is one, resnet."""

    def __init__(self, channels: int, groups: int, eps: float, attention: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        first = Resnet(channels, channels, groups, eps)
        self.attentions = nn.ModuleList([attention()] if attention else [])
        self.resnets = nn.ModuleList([first, Resnet(channels, channels, groups, eps)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class VAEBlock(nn.Module):
    """Resnets, then twice the size if it doubles."""

    def __init__(self, w_in: int, w_out: int, layers: int, groups: int, doubles: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(w_out if i else w_in, w_out, groups, 1e-6) for i in range(layers))
        self.upsamplers = nn.ModuleList([Upsample(w_out)]) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class VAEDecoder(Recomputing):
    """Latents (B, in_channels, h, w) -> (B, out_channels, s h, s w), s doubling with each of the widths but one.

    Args:
        widths: channels, from the output's resolution (first) to the latents' (last).
        layers: resnets of a block.
        groups: of every norm; 0 for none.
        attention: whether the middle block has attention.
    """

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], layers: int, groups: int, attention: bool
    ) -> None:
        super().__init__()
        top = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, top, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = MidBlock(top, groups, 1e-6, (lambda: ImageAttention(top, groups)) if attention else None)
        for i, (w_in, w_out) in enumerate(zip([top, *widths[::-1]], widths[::-1], strict=False), 1):
            self.up_blocks.append(VAEBlock(w_in, w_out, layers, groups, doubles=i < len(widths)))
        self.conv_norm_out = group_norm(groups, widths[0], 1e-6)
        self.conv_out: nn.Module = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.run(self.mid_block, self.conv_in(z))
        for block in self.up_blocks:
            x = self.run(block, x)
        return cast(Tensor, self.conv_out(F.silu(self.conv_norm_out(x))))

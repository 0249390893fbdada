"""The one-step denoiser: a Stable Diffusion U-Net without time, text and cross-attention, run once.

       l_T ──conv_in──> down 0 ─ down 1 ─ down 2 ─ down 3 ─ mid ─ up 0 ─ up 1 ─ up 2 ─ up 3 ──conv_out──> l_0
                          h_0      h_1      h_2      h_3    h_4   h_5    h_6    h_7    h_8

The blocks are the diffusers library's own; nothing replaces the time embedding or the cross-attention.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from torch import Tensor, nn

from aeic_lightning import UserError


@dataclass
class UNetConfig:
    """Sizes of the U-Net. The defaults are those of Stable Diffusion 2.1 (and SD-Turbo).

    Args:
        widths: channels of each resolution; all but the last have attention.
        heads: attention heads of each resolution.
        layers: resnets in a down block (an up block has one more).
        groups: groups of every GroupNorm.
    """

    widths: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])
    heads: list[int] = field(default_factory=lambda: [5, 10, 20, 20])
    layers: int = 2
    groups: int = 32

    def check(self) -> None:
        """Raise UserError where the sizes do not fit together."""
        if len(self.widths) != len(self.heads):
            raise UserError(f"decoder: {len(self.widths)} U-Net widths but {len(self.heads)} heads; give one for each")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads or width % self.groups:
                raise UserError(
                    f"decoder: U-Net width {width} is not a multiple of its {heads} heads and of {self.groups} groups"
                )

    @property
    def hidden_channels(self) -> list[int]:
        """Channels of h_0, h_1, ...: down blocks, mid block, up blocks."""
        return [*self.widths, self.widths[-1], *reversed(self.widths)]


class DenoiserOutput(NamedTuple):
    """l_0 (B, l_res channels, h, w) and the hidden states, each after its block's sampler."""

    l_0: Tensor
    hidden: list[Tensor]


class UNetTrunk(ModelMixin):
    """All of the U-Net between conv_in and conv_out: the part that a teacher and a student can share."""

    _supports_gradient_checkpointing = True

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        config.check()
        self.unet_config = config
        widths, heads = config.widths, config.heads
        last = len(widths) - 1
        common = {
            "temb_channels": None,
            "resnet_eps": 1e-5,
            "resnet_act_fn": "silu",
            "resnet_groups": config.groups,
        }
        attention = {"cross_attention_dim": None, "use_linear_projection": True}

        self.down_blocks = nn.ModuleList()
        for i, (w_in, w_out) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            sizes = {"in_channels": w_in, "out_channels": w_out, "num_layers": config.layers}
            if i < last:
                block = CrossAttnDownBlock2D(
                    **sizes, **common, **attention, num_attention_heads=heads[i], downsample_padding=1
                )
            else:
                block = DownBlock2D(**sizes, **common, add_downsample=False)
            self.down_blocks.append(block)

        self.mid_block = UNetMidBlock2DCrossAttn(
            in_channels=widths[-1], num_attention_heads=heads[-1], **common, **attention
        )

        self.up_blocks = nn.ModuleList()
        for i in range(last, -1, -1):
            sizes = {
                "in_channels": widths[max(i - 1, 0)],
                "out_channels": widths[i],
                "prev_output_channel": widths[min(i + 1, last)],
                "num_layers": config.layers + 1,
                "add_upsample": i > 0,
            }
            if i == last:
                block = UpBlock2D(**sizes, **common)
            else:
                block = CrossAttnUpBlock2D(**sizes, **common, **attention, num_attention_heads=heads[i])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=1e-5)

        # Residual branches start at zero, so that a trunk trained from scratch begins as the identity.
        for module in self.modules():
            if type(module).__name__ == "ResnetBlock2D":
                nn.init.zeros_(module.conv2.weight)
            elif type(module).__name__ == "Transformer2DModel":
                nn.init.zeros_(module.proj_out.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, widths[0], h, w), any h and w -> the same shape before conv_out, and the hidden states."""
        skips, hidden = [x], []
        for block in self.down_blocks:
            x, new_skips = block(x)
            skips += new_skips
            hidden.append(x)
        x = self.mid_block(x)
        hidden.append(x)
        for block in self.up_blocks:
            own = tuple(skips.pop() for _ in block.resnets)[::-1]
            # An odd size was rounded up on the way down: aim at the size of the next skip connection.
            x = block(x, own, upsample_size=skips[-1].shape[2:] if skips else None)
            hidden.append(x)
        return F.silu(self.conv_norm_out(x)), hidden


class Denoiser(nn.Module):
    """One pass l_T -> l_0: a trunk between its own conv_in and conv_out."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, config.widths[0], 3, padding=1)
        self.trunk = UNetTrunk(config)
        self.conv_out = nn.Conv2d(config.widths[0], out_channels, 3, padding=1)

    def forward(self, l_T: Tensor) -> DenoiserOutput:
        """l_T (B, in_channels, h, w) -> l_0 and h_0, h_1, ..."""
        x, hidden = self.trunk(self.conv_in(l_T))
        return DenoiserOutput(self.conv_out(x), hidden)

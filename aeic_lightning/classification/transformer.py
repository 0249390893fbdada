"""The vision transformer that reads latents instead of patches, and the aggregation of its features for the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from aeic_lightning.errors import UserError


@dataclass
class TransformerConfig:
    """Sizes of the transformer. The defaults are those of DeiT-S on 224 x 224 images.

    Args:
        width: channels of a token.
        depth: blocks.
        heads: attention heads; divides `width`.
        mlp_ratio: hidden channels of a block's MLP over `width`.
        drop_path: largest probability of leaving out a branch in training; it rises linearly from 0 over the blocks.
        grid: rows and columns of latents that the position embedding is stored for. Others are resampled.
        classes: number of classes.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    grid: list[int] = field(default_factory=lambda: [14, 14])
    classes: int = 1000

    def check(self) -> None:
        """Raise UserError where the sizes do not fit together."""
        if min(self.width, self.depth, self.heads, self.classes, *self.grid) < 1 or len(self.grid) != 2:
            raise UserError("transformer: width, depth, heads and classes start at 1, grid is [rows, columns]")
        if self.width % self.heads:
            raise UserError(f"transformer: width {self.width} is not divisible by its {self.heads} heads; change one")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"transformer: drop_path is {self.drop_path}; it is a probability below 1")


class LatentTransformer(nn.Module):
    """y_hat (B, C, h, w) -> tokens -> timm's blocks -> class logits.

    Each position of y_hat is a token: a linear layer takes the place of the patch projection.
    """

    def __init__(self, in_channels: int, config: TransformerConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.embed = nn.Linear(in_channels, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid[0] * config.grid[1], config.width))
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        drops = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, qkv_bias=True, norm_layer=norm, drop_path=drop)
            for drop in drops
        )
        self.norm = norm(config.width)
        self.head = nn.Linear(config.width, config.classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in [*self.blocks.modules(), self.head]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def features(self, y_hat: Tensor, depth: int | None = None) -> list[Tensor]:
        """Embedded y_hat before the position embedding, (B, h w, D), then the outputs of the first `depth` blocks
        (None: all), each (B, 1 + h w, D) with the class token first."""
        tokens = self.embed(y_hat.flatten(2).transpose(1, 2))
        position = resample_abs_pos_embed(self.pos_embed, list(y_hat.shape[2:]), self.config.grid)
        x = torch.cat([self.cls_token.expand(len(y_hat), -1, -1), tokens], dim=1) + position
        outputs = [tokens]
        for block in self.blocks[:depth]:
            x = block(x)
            outputs.append(x)
        return outputs

    def logits(self, last: Tensor) -> Tensor:
        """Logits (B, classes) of the last block's output."""
        return self.head(self.norm(last)[:, 0])

    def forward(self, y_hat: Tensor) -> Tensor:
        """Logits (B, classes) of y_hat (B, C, h, w), any h and w."""
        return self.logits(self.features(y_hat)[-1])


class FeatureAggregation(nn.Module):
    """The embedded y_hat and the outputs of some blocks, made into one feature map for the decoder.

    Each source goes through a linear layer to its share of the channels; the concatenation through another.

    Args:
        width: channels of a token.
        blocks: which blocks' outputs take part, counted from 1 (paper: 1, 2, 3).
    """

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.blocks = list(blocks)
        share = width // (len(self.blocks) + 1)
        self.sources = nn.ModuleList(nn.Linear(width, share) for _ in range(len(self.blocks) + 1))
        self.merge = nn.Linear(share * len(self.sources), width)

    @property
    def depth(self) -> int:
        """Blocks that must run before the decoder can."""
        return max(self.blocks, default=0)

    def forward(self, features: Sequence[Tensor], height: int, width: int) -> Tensor:
        """`LatentTransformer.features` of h x w latents -> (B, D, h, w)."""
        inputs = [features[0], *(features[block][:, 1:] for block in self.blocks)]
        parts = [linear(tokens) for linear, tokens in zip(self.sources, inputs, strict=True)]
        merged = self.merge(torch.cat(parts, dim=-1))
        return merged.transpose(1, 2).unflatten(2, (height, width))

"""A model of few weights and, with `LEVELS`, of three rates."""

from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model

LEVELS = [8.0, 2.0, 0.5]


def small(rate_levels: list[float] | None) -> AEIC:
    sizes = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
    widths = {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1]}
    return random_model(CodecConfig([8, 8, 16, 16, 32], [1] * 5, **sizes, **widths, rate_levels=rate_levels))

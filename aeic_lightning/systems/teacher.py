"""The teacher: a model with a moderate encoder, trained without distillation."""

from typing import Any

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.systems.compression import CompressionSystem, aeic
from aeic_lightning.systems.optimization import OptimizationConfig
from aeic_lightning.systems.start import Start, StartFrom


class TeacherSystem(CompressionSystem):
    """AEIC-ME. Stage 1 trains at a relaxed rate; stage 2 starts `init_from` it with the target rate and the adversary.

    The stages differ in their configs alone.

    Args:
        codec: sizes of the latent codec.
        decoder: sizes of the one-step decoder.
        objective, optimization: see `CompressionSystem`, which has the other settings.
        init_from: checkpoint of the stage before, of the same sizes; the whole model starts from it. With
            `{path: ..., only: [codec.h_a, decoder]}` those modules alone do (`StartFrom`).
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        init_from: str | StartFrom | None = None,
        **kwargs,
    ) -> None:
        start = Start(init_from)
        super().__init__(aeic(codec, decoder), objective, optimization, start, teacher=None, **kwargs)

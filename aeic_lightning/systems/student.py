"""The student: a model with a shallow encoder, and the receiver that its teacher trained."""

from typing import Any

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.systems.compression import CompressionSystem, aeic
from aeic_lightning.systems.optimization import OptimizationConfig
from aeic_lightning.systems.start import Start, StartFrom


class StudentSystem(CompressionSystem):
    """AEIC-SE without distillation: the control of every distillation study.

    Args:
        codec, decoder, objective, optimization, init_from: see `TeacherSystem`.
        receiver_from: a teacher's checkpoint, whose receiver the student starts from (`Start`).
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        init_from: str | StartFrom | None = None,
        receiver_from: str | StartFrom | None = None,
        **kwargs,
    ) -> None:
        start = Start(init_from, receiver_from)
        super().__init__(aeic(codec, decoder), objective, optimization, start, teacher=None, **kwargs)

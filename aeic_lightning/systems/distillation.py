"""Dual-side feature distillation: a frozen teacher beside a student."""

from typing import Any

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.systems.compression import CompressionSystem, aeic
from aeic_lightning.systems.optimization import OptimizationConfig
from aeic_lightning.systems.start import Start, StartFrom
from aeic_lightning.systems.teachers import FrozenTeacher


class DistillationSystem(CompressionSystem):
    """AEIC-SE: a student whose objective has L_enc and L_dec, which compare its taps with the teacher's.

    The teacher is loaded while the system is built, so a missing or a foreign one stops the run before it starts. It
    has no gradients, stays in evaluation mode, and is not in the checkpoints.

    Args:
        codec, decoder, objective, optimization, init_from, receiver_from: see `StudentSystem`.
        teacher: checkpoint of the teacher.
        share_base: where the decoder has a pretrained base, hold it once, with an adapter each for teacher and
            student, instead of twice. The results are the same.
        teacher_cache: folder in which the teacher's taps are kept, for crops that come again, or a data set of them
            (`TapCache`).
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        teacher: str,
        init_from: str | StartFrom | None = None,
        receiver_from: str | StartFrom | None = None,
        share_base: bool = True,
        teacher_cache: str | None = None,
        **kwargs,
    ) -> None:
        start, frozen = Start(init_from, receiver_from), FrozenTeacher(teacher, share_base, teacher_cache)
        super().__init__(aeic(codec, decoder), objective, optimization, start, frozen, **kwargs)

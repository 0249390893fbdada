"""Distillation without a finished teacher: one that is trained beside the student, or the student's own average."""

from typing import Any

from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.systems.compression import CompressionSystem, aeic
from aeic_lightning.systems.optimization import OptimizationConfig
from aeic_lightning.systems.start import Start, StartFrom
from aeic_lightning.systems.teachers import AveragedTeacher, TrainedTeacher


class OnlineDistillationSystem(CompressionSystem):
    """Online distillation with a `teacher_codec` (`TrainedTeacher`), self-distillation without (`AveragedTeacher`).

    Validation, test and whoever reads the checkpoint see the student; the teacher's weights lie beside it, under
    `teacher.`, so that a resumed run goes on bit for bit.

    Args:
        codec, decoder, objective, optimization, init_from: see `TeacherSystem`.
        teacher_codec: sizes of the teacher's codec; its decoder has the student's sizes. None for self-distillation.
        teacher_objective: the teacher's own terms; default: the student's without those that compare taps and
            without the adversary.
        teacher_decay: share of the average that a step keeps, in self-distillation.
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        teacher_codec: CodecConfig | None = None,
        teacher_objective: dict[str, Any] | None = None,
        teacher_decay: float = 0.99,
        init_from: str | StartFrom | None = None,
        **kwargs,
    ) -> None:
        if teacher_codec is None and teacher_objective:
            raise UserError("distillation: the average of the student learns by no objective of its own; drop it")
        averaged = AveragedTeacher(teacher_decay)
        teacher = averaged if teacher_codec is None else TrainedTeacher(teacher_codec, teacher_objective, objective)
        super().__init__(aeic(codec, decoder), objective, optimization, Start(init_from), teacher, **kwargs)

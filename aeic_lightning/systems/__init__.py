"""LightningModules: teacher, student, and student with a frozen teacher."""

from aeic_lightning.systems.compression import CompressionSystem
from aeic_lightning.systems.distillation import DistillationSystem
from aeic_lightning.systems.online import OnlineDistillationSystem
from aeic_lightning.systems.optimization import OptimizationConfig
from aeic_lightning.systems.student import StudentSystem
from aeic_lightning.systems.teacher import TeacherSystem

__all__ = [
    "CompressionSystem", "DistillationSystem", "OnlineDistillationSystem", "OptimizationConfig", "StudentSystem",
    "TeacherSystem",
]  # fmt: skip

"""Lightning systems: what is trained, on which loss, from which start."""

from aeic_lightning.systems.analysis import AEICAnalysisSystem, AnalysisSystem
from aeic_lightning.systems.compression import CompressionSystem, OptimizationConfig
from aeic_lightning.systems.distillation import DistillationSystem
from aeic_lightning.systems.student import StudentSystem
from aeic_lightning.systems.teacher import TeacherSystem

__all__ = [
    "AEICAnalysisSystem",
    "AnalysisSystem",
    "CompressionSystem",
    "DistillationSystem",
    "OptimizationConfig",
    "StudentSystem",
    "TeacherSystem",
]

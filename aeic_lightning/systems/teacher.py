"""The teacher: a model with a moderate encoder, trained without distillation."""

from aeic_lightning.systems.compression import CompressionSystem


class TeacherSystem(CompressionSystem):
    """AEIC-ME. Stage 1 trains at a relaxed rate; stage 2 starts `init_from` it with the target rate and the adversary.

    The stages differ in their configs alone.
    """

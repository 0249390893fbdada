"""Compress and classify from the same bytes (Bai et al., AAAI 2022).

Nothing outside of this package imports it but its own commands: AEIC works where it is deleted.
"""

import aeic_lightning.classification.stream  # noqa: F401 (registers how the model is coded)
from aeic_lightning.classification.losses import CrossEntropy, LogitsDistillation, SquaredError255
from aeic_lightning.classification.model import (
    ClassificationConfig,
    ClassificationModel,
    ClassificationOutput,
    PictureClassifier,
)
from aeic_lightning.classification.transformer import FeatureAggregation, LatentTransformer, TransformerConfig

__all__ = [
    "ClassificationConfig",
    "ClassificationModel",
    "ClassificationOutput",
    "CrossEntropy",
    "FeatureAggregation",
    "LatentTransformer",
    "LogitsDistillation",
    "PictureClassifier",
    "SquaredError255",
    "TransformerConfig",
]

"""Compress and classify from the same bytes (Bai et al., AAAI 2022)."""

from aeic_lightning.analysis.loss import AnalysisLossConfig
from aeic_lightning.analysis.model import AnalysisConfig, AnalysisModel, AnalysisOutput, PictureClassifier
from aeic_lightning.analysis.transformer import FeatureAggregation, LatentTransformer, TransformerConfig

__all__ = [
    "AnalysisConfig",
    "AnalysisLossConfig",
    "AnalysisModel",
    "AnalysisOutput",
    "FeatureAggregation",
    "LatentTransformer",
    "PictureClassifier",
    "TransformerConfig",
]

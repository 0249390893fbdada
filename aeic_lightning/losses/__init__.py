"""The objective, and its terms by families: distortions, taps, rate, perceptual, adversarial."""

from aeic_lightning.losses.adversarial import Adversarial
from aeic_lightning.losses.objective import Objective
from aeic_lightning.losses.perceptual import EdgeAwareDISTSTerm, LPIPSTerm, SemanticTerm
from aeic_lightning.losses.rate import Rate
from aeic_lightning.losses.tap_term import (
    AttentionTransfer,
    CosineDistillation,
    FeatureDistillation,
    RelationalDistillation,
    TapMatch,
    TapTerm,
)
from aeic_lightning.losses.term import MSE, Chroma, Description, Term

__all__ = [
    "MSE", "Adversarial", "AttentionTransfer", "Chroma", "CosineDistillation", "Description", "EdgeAwareDISTSTerm",
    "FeatureDistillation", "LPIPSTerm", "Objective", "Rate", "RelationalDistillation", "SemanticTerm", "TapMatch",
    "TapTerm", "Term",
]  # fmt: skip

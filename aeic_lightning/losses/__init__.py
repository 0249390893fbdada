"""The objective, and its terms by families: distortions, taps, rate, perceptual, adversarial."""

from aeic_lightning.losses.adversarial import Adversarial
from aeic_lightning.losses.objective import Objective
from aeic_lightning.losses.tap_term import (
    AttentionTransfer,
    CosineDistillation,
    FeatureDistillation,
    RelationalDistillation,
    TapMatch,
    TapTerm,
)
from aeic_lightning.losses.term import MSE, Chroma, Description, EdgeAwareDISTSTerm, LPIPSTerm, Rate, SemanticTerm, Term

__all__ = [
    "MSE", "Adversarial", "AttentionTransfer", "Chroma", "CosineDistillation", "Description", "EdgeAwareDISTSTerm",
    "FeatureDistillation", "LPIPSTerm", "Objective", "Rate", "RelationalDistillation", "SemanticTerm", "TapMatch",
    "TapTerm", "Term",
]  # fmt: skip

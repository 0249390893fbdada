"""The objective, and its terms: one file a term."""

from aeic_lightning.losses.adversarial import Adversarial
from aeic_lightning.losses.attention import AttentionTransfer
from aeic_lightning.losses.cosine import CosineDistillation
from aeic_lightning.losses.distillation import FeatureDistillation, TapMatch
from aeic_lightning.losses.edge_dists import EdgeAwareDISTSTerm
from aeic_lightning.losses.lpips import LPIPSTerm
from aeic_lightning.losses.mse import MSE
from aeic_lightning.losses.objective import Objective
from aeic_lightning.losses.rate import Rate
from aeic_lightning.losses.relational import RelationalDistillation
from aeic_lightning.losses.semantic import SemanticTerm
from aeic_lightning.losses.tap_term import TapTerm
from aeic_lightning.losses.term import Description, Term

__all__ = [
    "MSE", "Adversarial", "AttentionTransfer", "CosineDistillation", "Description", "EdgeAwareDISTSTerm",
    "FeatureDistillation", "LPIPSTerm", "Objective", "Rate", "RelationalDistillation", "SemanticTerm", "TapMatch",
    "TapTerm", "Term",
]  # fmt: skip

"""The objective, and its terms: one file a term."""

from aeic_lightning.losses.adversarial import Adversarial
from aeic_lightning.losses.distillation import FeatureDistillation, TapMatch
from aeic_lightning.losses.edge_dists import EdgeAwareDISTSTerm
from aeic_lightning.losses.lpips import LPIPSTerm
from aeic_lightning.losses.mse import MSE
from aeic_lightning.losses.objective import Objective
from aeic_lightning.losses.rate import Rate
from aeic_lightning.losses.semantic import SemanticTerm
from aeic_lightning.losses.term import Description, Term

__all__ = [
    "MSE", "Adversarial", "Description", "EdgeAwareDISTSTerm", "FeatureDistillation", "LPIPSTerm", "Objective", "Rate",
    "SemanticTerm", "TapMatch", "Term",
]  # fmt: skip

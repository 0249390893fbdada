"""The one place where the terms are summed."""

import pytest
import torch

from aeic_lightning.losses.adversarial import generator_loss
from aeic_lightning.losses.rate_distortion import LossConfig, RateDistortionPerceptionLoss
from aeic_lightning.metrics.dists import EdgeAwareDISTS
from aeic_lightning.metrics.lpips import LPIPS
from aeic_lightning.metrics.semantic import SemanticLoss


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 96) * 2 - 1, torch.rand(2, 3, 64, 96) * 2 - 1


def test_sum_of_weighted_terms(images):
    x_hat, x = images
    config = LossConfig(rate=3, mse=2, lpips=0.5, edge_dists=0.25, semantic=0.1, adversarial=0.2)
    bits = torch.tensor([100.0, 300.0])
    logits = [torch.randn(2, 5), torch.randn(2, 1)]
    out = RateDistortionPerceptionLoss(config)(x_hat, x, bits, logits, rate_scale=0.5)
    bpp = 200.0 / (64 * 96)
    expected = (
        0.5 * 3 * bpp
        + 2 * ((x_hat - x) ** 2).mean()
        + 0.5 * LPIPS()(x_hat, x).mean()
        + 0.25 * EdgeAwareDISTS()(x_hat, x).mean()
        + 0.1 * SemanticLoss()(x_hat, x).mean()
        + 0.2 * generator_loss(logits)
    )
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert out.terms["bpp_estimate"].item() == pytest.approx(bpp)


@pytest.mark.parametrize("size", [64, 256])
def test_sharing_features_changes_no_figure(size):
    """Small crops share one pass for LPIPS and the semantic loss; large ones do not, since one is reduced first."""
    x_hat, x = torch.rand(1, 3, size, size) * 2 - 1, torch.rand(1, 3, size, size) * 2 - 1
    terms = RateDistortionPerceptionLoss(LossConfig())(x_hat, x, torch.ones(1)).terms
    assert terms["lpips"].item() == pytest.approx(LPIPS()(x_hat, x).item(), rel=1e-5)
    assert terms["semantic"].item() == pytest.approx(SemanticLoss()(x_hat, x).item(), rel=1e-5)


def test_terms_of_weight_zero_are_not_built(images):
    loss = RateDistortionPerceptionLoss(LossConfig(lpips=0, semantic=0))
    assert not loss.perceptual
    assert set(loss(*images, torch.ones(2)).terms) == {"bpp_estimate", "mse"}


def test_gradients_reach_the_reconstruction_and_the_bits(images):
    x_hat, x = images
    x_hat.requires_grad_()
    bits = torch.tensor([10.0, 20.0], requires_grad=True)
    RateDistortionPerceptionLoss(LossConfig())(x_hat, x, bits).total.backward()
    assert (x_hat.grad != 0).any()
    assert torch.allclose(bits.grad, torch.full((2,), 0.8 / 2 / (64 * 96)))

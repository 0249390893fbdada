"""Densities against closed forms and numerical integration; quantiles against the latents that they serve."""

import math

import pytest
import torch
from scipy import integrate, stats

from aeic_lightning.models.codec.context import (
    LIKELIHOOD_FLOOR,
    SCALE_FLOOR,
    FactorizedPrior,
    GaussianConditional,
    bits,
    lower_bound,
    round_ste,
)


@pytest.mark.parametrize("scale", [0.2, 0.7, 3.0, 40.0])
@pytest.mark.parametrize("value", [-6.3, -0.4, 0.0, 0.5, 2.2, 11.0])
def test_gaussian_likelihood_is_the_mass_of_the_unit_bin(scale, value):
    mean = 0.3
    expected = stats.norm.cdf(value + 0.5, mean, scale) - stats.norm.cdf(value - 0.5, mean, scale)
    y, m, s = (torch.tensor([[[[v]]]], dtype=torch.float64) for v in (value, mean, scale))
    got = GaussianConditional().likelihood(y, m, s).item()
    assert got == pytest.approx(max(expected, LIKELIHOOD_FLOOR), rel=1e-6)


def test_gaussian_likelihoods_of_all_integers_sum_to_one():
    symbols = torch.arange(-300.0, 301.0, dtype=torch.float64)
    for scale in (0.05, 0.11, 1.0, 30.0):  # 0.05 is raised to the floor
        p = GaussianConditional().likelihood(symbols, torch.zeros_like(symbols), torch.full_like(symbols, scale))
        assert p.sum().item() == pytest.approx(1.0, abs=601 * LIKELIHOOD_FLOOR)


def test_scales_below_the_floor_count_as_the_floor():
    y = torch.linspace(-2, 2, 9)
    at_floor, below = (GaussianConditional().likelihood(y, torch.zeros(9), torch.full((9,), s)) for s in (0.11, -3.0))
    assert torch.equal(at_floor, below)
    assert SCALE_FLOOR == 0.11


def test_lower_bound_lets_only_rising_gradients_through_below():
    x = torch.tensor([-1.0, -1.0, 2.0, 2.0], requires_grad=True)
    lower_bound(x, 0.0).backward(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert x.grad.tolist() == [0.0, -1.0, 1.0, -1.0]


def test_round_ste_rounds_and_passes_the_gradient():
    x = torch.tensor([0.4, 0.6, -1.5], requires_grad=True)
    rounded = round_ste(x)
    rounded.sum().backward()
    assert torch.equal(rounded.detach(), torch.tensor([0.0, 1.0, -2.0]))
    assert torch.equal(x.grad, torch.ones(3))


def test_bits_of_a_fair_coin():
    assert bits(torch.full((2, 1, 3, 4), 0.5)).tolist() == [12.0, 12.0]


@pytest.fixture
def prior() -> FactorizedPrior:
    prior = FactorizedPrior(3)
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return prior.double()


def test_prior_likelihood_is_the_integral_of_its_density(prior):
    def density(v: float, channel: int) -> float:
        point = torch.full((3, 1), v, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(torch.sigmoid(prior.logits(point))[channel, 0], point)
        return slope[channel, 0].item()

    for channel, value in ((0, -4.0), (1, 0.3), (2, 5.5)):
        expected, _ = integrate.quad(density, value - 0.5, value + 0.5, args=(channel,), epsabs=1e-11)
        z = torch.full((1, 3, 1, 1), value, dtype=torch.float64)
        assert prior.likelihood(z)[0, channel].item() == pytest.approx(expected, rel=1e-6)


def test_prior_likelihoods_of_a_channel_sum_to_one(prior):
    symbols = torch.arange(-3000.0, 3001.0, dtype=torch.float64)
    p = prior.likelihood(symbols.reshape(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert torch.allclose(p.sum((0, 2, 3)), torch.ones(3, dtype=torch.float64), atol=6001 * LIKELIHOOD_FLOOR)


@torch.no_grad()
def test_a_symmetric_prior_has_its_mode_at_the_centre():
    """Zero biases make every channel odd about 0, so the logits of the two edges of the bin around 0 cancel exactly."""
    symmetric = FactorizedPrior(2)
    for bias in symmetric.biases:
        bias.zero_()
    centre, beside = symmetric.likelihood(torch.tensor([0.0, 1e-3]).expand(1, 2, 2)[..., None]).unbind(2)
    torch.testing.assert_close(centre, beside, rtol=1e-3, atol=0)
    z = torch.zeros(1, 2, 1, 1, requires_grad=True)
    with torch.enable_grad():
        symmetric.likelihood(z).log().sum().backward()
    assert all(matrix.grad.isfinite().all() and matrix.grad.abs().sum() > 0 for matrix in symmetric.matrices)


def test_prior_starts_as_published():
    """Matrices at log(expm1(1 / (scale f))), scale = 10^(1/5): the values that the released model was built from."""
    prior = FactorizedPrior(2)
    for matrix, f in zip(prior.matrices, (3, 3, 3, 3, 1), strict=True):
        assert torch.allclose(matrix, torch.tensor(math.log(math.expm1(1 / 10**0.2 / f))))


def test_bisection_finds_the_quantiles(prior):
    prior.update_quantiles()
    cumulative = torch.sigmoid(prior.logits(prior.quantiles))
    expected = torch.tensor([0.5e-9, 0.5, 1 - 0.5e-9], dtype=torch.float64).expand(3, 3)
    assert torch.allclose(cumulative[:, :2], expected[:, :2], rtol=1e-5)
    assert torch.allclose(1 - cumulative[:, 2], 1 - expected[:, 2], rtol=1e-3)


def test_quantiles_follow_the_latents_once_the_prior_has_learned_them():
    """Skewed latents far from the starting quantiles -10, 0, 10: the solved ones hold them, the old ones did not."""
    generator = torch.Generator().manual_seed(1)
    latents = 40 + 8 * torch.randn(4000, generator=generator).abs()
    prior = FactorizedPrior(1)
    optimizer = torch.optim.Adam(prior.parameters(), 0.05)
    for _ in range(400):
        batch = latents[torch.randint(4000, (256,), generator=generator)].reshape(256, 1, 1, 1)
        noisy = batch + torch.empty_like(batch).uniform_(-0.5, 0.5, generator=generator)
        optimizer.zero_grad()
        bits(prior.likelihood(noisy)).mean().backward()
        optimizer.step()
    low, median, high = prior.quantiles[0].tolist()
    assert not low < latents.median() < high
    prior.update_quantiles()
    low, median, high = prior.quantiles[0].tolist()
    assert low < latents.min()
    assert latents.max() < high
    assert median == pytest.approx(latents.median().item(), abs=2.5)
    z = latents[:50].reshape(1, 1, 5, 10)
    z_hat = prior.quantise(z)
    assert (z_hat - z).abs().max() <= 0.5 + 1e-4
    offset = (z_hat - prior.medians).detach()
    assert torch.allclose(offset, offset.round(), atol=1e-4)

"""1x1 convolutions as matrix products."""

import pytest
import torch
import torch.nn.functional as F

from aeic_lightning.models.layers import Pointwise, PointwiseHalves, StarBlock


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 8, 1, 1), (2, 8, 5, 7)])
def test_values_and_gradients_are_those_of_the_convolution(size, layout):
    conv = Pointwise(8, 12).double()
    x = torch.randn(size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    weight, bias = (p.detach().clone().requires_grad_() for p in (conv.weight, conv.bias))
    expected = F.conv2d(plain, weight, bias)
    out = conv(x)
    pattern = torch.randn_like(expected)
    (out * pattern).sum().backward()
    (expected * pattern).sum().backward()
    assert torch.allclose(out, expected)
    for ours, theirs in ((x, plain), (conv.weight, weight), (conv.bias, bias)):
        assert torch.allclose(ours.grad, theirs.grad)


def test_halves_are_the_chunks_of_the_whole_and_lie_in_one_piece():
    conv = PointwiseHalves(8, 12).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    halves = conv(x)
    for half, expected in zip(halves, F.conv2d(x, conv.weight, conv.bias).chunk(2, dim=1), strict=True):
        assert torch.allclose(half, expected)
        assert half.is_contiguous(memory_format=torch.channels_last)


def test_a_star_block_keeps_its_parameters():
    names = {name: tuple(p.shape) for name, p in StarBlock(16).named_parameters()}
    assert names["fc1.weight"] == (64, 16, 1, 1)
    assert names["fc2.weight"] == (16, 32, 1, 1)

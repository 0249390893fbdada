import os
import subprocess
import sys

import pytest
import torch

from aeic_lightning import timing
from aeic_lightning.bitstream import products
from aeic_lightning.bitstream.exact import Linear, exact_mode
from aeic_lightning.bitstream.products import BYTE, KERNELS, LIMIT, Weights
from aeic_lightning.bitstream.stream import Bitstream


def integers(low, high, shape, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def forced():
    yield products.force
    products.force(None)


def product(name, q, weight, limit):
    return getattr(products, f"product_{name}")(q.float(), Weights(weight.to(torch.int8)), limit)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 3), (7, 96, 33), (17, 257, 130), (300, 1152, 64)])
@pytest.mark.parametrize("limit", [LIMIT, BYTE])
@pytest.mark.parametrize("name", KERNELS)
def test_products_are_those_of_integers(name, limit, size):
    rows, inside, outside = size
    q = integers(-limit, limit, (rows, inside))
    weight = integers(-56, 56, (inside, outside), 1)
    assert torch.equal(product(name, q, weight, limit), (q @ weight).float())  # int64, rounded once


@pytest.mark.parametrize("limit", [LIMIT, BYTE])
@pytest.mark.parametrize("name", KERNELS)
def test_limbs_at_their_largest(name, limit):
    """Every value of an activation, whose limbs are then at every value too, by weights that add up to the most."""
    q = torch.arange(-limit, limit + 1)[:, None].expand(-1, 1032)[:: 7 if limit > BYTE else 1]
    weight = torch.full((1032, 2), 127)
    weight[:, 1] = -127
    assert weight[:, 0].sum() <= products.FLOAT32_SUM
    assert torch.equal(product(name, q, weight, limit), (q @ weight).float())


@pytest.mark.parametrize("limit", [LIMIT, BYTE])
@pytest.mark.parametrize("sign", [1, -1])
def test_largest_products_of_a_layer_fit(sign, limit, forced):
    conv = torch.nn.Conv2d(2048, 2, 1)
    conv.weight.data.fill_(sign)
    linear = Linear(conv, limit=limit)
    total = linear.weight.long().sum(0)
    assert (total.abs() * limit < 2**31).all()
    assert Weights(linear.weight).fit_float32 == (limit == LIMIT)
    q = torch.full((3, 2048), float(limit))
    for name in KERNELS:
        forced(name)
        out = products.product(q, Weights(linear.weight), limit)  # by float64 where float32 would round
        assert torch.equal(out, (limit * total).float().expand(3, 2))
        assert torch.allclose(linear(torch.ones(3, 2048)), sign * 2048 + conv.bias, rtol=0.01)


def test_weights_that_do_not_fit_float32_are_noticed():
    weight = torch.full((1033, 2), 127, dtype=torch.int8)
    weight[:, 1] = 0
    assert not Weights(weight).fit_float32
    assert Weights(weight[:1032]).fit_float32


@pytest.mark.parametrize("name", KERNELS)
def test_streams_are_the_same_by_every_kernel(model, name, forced):
    images = [
        torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1 for size in ((97, 130), (1, 1))
    ]
    forced("float64")
    reference = [Bitstream(model).encode_fully(x) for x in images]
    forced(name)
    bitstream = Bitstream(model)
    for x, expected in zip(images, reference, strict=True):
        assert bitstream.encode(x) == expected.data
        assert torch.equal(bitstream.decode(expected.data).y_hat, expected.y_hat)


def test_same_latents_of_the_full_size_by_every_kernel(se_codec, forced):
    from aeic_lightning.bitstream.exact import Context, HyperSynthesis

    layer, context = HyperSynthesis(se_codec.h_s), Context(se_codec.context)
    z_hat = integers(-6, 6, (1, 128, 2, 2)).float()
    latents = []
    for name in KERNELS:
        forced(name)
        with exact_mode():
            latents.append(context(layer(z_hat)[..., :6, :6], lambda mean, scale, mask: mean + scale.round()))
    assert all(torch.equal(y, latents[0]) for y in latents)


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    """As in the first process on a machine."""
    monkeypatch.setattr(products, "_chosen", {})
    monkeypatch.setattr(timing, "choices_folder", lambda: tmp_path / "choices")


def test_a_kernel_that_rounds_is_never_chosen(monkeypatch, nothing_chosen):
    for name in ("float32", "int8"):  # quicker than any, and wrong
        monkeypatch.setattr(
            products, f"product_{name}", lambda q, weights, limit: q.new_zeros(len(q), weights.weight.shape[1])
        )
    assert set(products.chosen().values()) == {"float64"}


def test_a_kernel_that_rounds_is_not_taken_from_an_earlier_process(monkeypatch, nothing_chosen):
    monkeypatch.setattr(products, "kernel_times", lambda limit: {"float32": 1.0, "float64": 2.0})
    assert set(products.chosen().values()) == {"float32"}
    monkeypatch.setattr(products, "_chosen", {})
    monkeypatch.setattr(products, "product_float32", lambda q, weights, limit: q @ weights.weight.float() + 1)
    assert set(products.chosen().values()) == {"float64"}


def test_the_choice_is_made_once_and_by_time(monkeypatch, nothing_chosen):
    calls = []

    def slow(q, weights, limit):
        calls.append(1)
        torch.randn(700, 700) @ torch.randn(700, 700)
        return products.product_float64(q, weights, limit)

    for name in ("float32", "int8"):
        monkeypatch.setattr(products, f"product_{name}", slow)
    assert products.kernel(LIMIT) == "float64"
    count = len(calls)
    products.kernel(LIMIT)
    assert len(calls) == count > 0
    monkeypatch.setattr(products, "_chosen", {})  # another process
    assert products.kernel(LIMIT) == "float64"
    assert len(calls) == count


def test_the_choice_on_a_busy_machine(nothing_chosen):
    """No kernel that is clearly slower than another on its own: wall time made it a matter of chance."""
    with torch.inference_mode():
        alone = products.kernel_times(LIMIT)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
        try:
            chosen = products.kernel(LIMIT)
        finally:
            for process in busy:
                process.kill()
                process.wait()
    assert alone[chosen] < 2 * min(alone.values())


def test_an_unknown_kernel():
    with pytest.raises(ValueError, match="choose from"):
        products.force("int4")

"""The quadtree: a partition, and no step sees what is coded later."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aeic_lightning.models.codec.context import QUADTREE, QuadtreeContext, grid_mask


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_masks_partition_the_latents(quarter, half_height, half_width):
    masks = [grid_mask(QUADTREE[step], 4 * quarter, 2 * half_height, 2 * half_width) for step in range(4)]
    assert torch.equal(sum(mask.int() for mask in masks), torch.ones_like(masks[0], dtype=torch.int32))
    assert len({int(mask.sum()) for mask in masks}) == 1


def test_positions_of_each_quarter_as_published():
    cells = {(0, 0): "a", (0, 1): "b", (1, 0): "c", (1, 1): "d"}
    words = []
    for step in range(4):
        mask = grid_mask(QUADTREE[step], 4, 2, 2)[0]
        words.append("".join(cells[tuple(mask[quarter].nonzero()[0].tolist())] for quarter in range(4)))
    assert words == ["abcd", "dcba", "cdab", "badc"]


@pytest.mark.parametrize("step", range(4))
def test_a_step_depends_only_on_phi_and_on_earlier_steps(step):
    context = QuadtreeContext(8, 16, 1).double()
    phi = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    seen: list[list[torch.Tensor]] = []

    def run(values: torch.Tensor) -> None:
        params = []

        def code(mean, scale, mask):
            params.append((mean, scale))
            return values

        context(phi, code)
        seen.append(params)

    values = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    run(values)
    changed = torch.where(grid_mask(QUADTREE[step], 8, 4, 4), values + 1, values)
    run(changed)
    for k in range(4):
        same = all(torch.equal(a, b) for a, b in zip(seen[0][k], seen[1][k], strict=True))
        assert same == (k <= step)


def test_result_holds_each_step_where_it_coded():
    context = QuadtreeContext(8, 16, 1)
    steps = iter(range(4))
    out = context(torch.randn(2, 8, 4, 6), lambda mean, scale, mask: torch.full_like(mean, float(next(steps))))
    for step in range(4):
        mask = grid_mask(QUADTREE[step], 8, 4, 6).expand_as(out)
        assert (out[mask] == step).all()

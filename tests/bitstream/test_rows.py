import pytest
import torch

from aeic_lightning.bitstream.products import by_rows, in_parallel, in_pieces


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 16, 100, 1000])
@pytest.mark.parametrize("batch", [1, 3])
def test_rows_are_those_of_the_whole(threads, rows, batch):
    a, b = torch.randn(batch, 13, 11, 5), torch.randn(batch, 13, 11, 7)
    total, longer = by_rows(lambda x, y: (x.sum(-1, keepdim=True), torch.cat([y, x], dim=-1)), a, b, rows=rows)
    assert torch.equal(total, a.sum(-1, keepdim=True))
    assert torch.equal(longer, torch.cat([b, a], dim=-1))


def test_every_worker_computes_on_one_core(threads):
    """Otherwise threads times threads of them would fight for the cores."""

    def used(_) -> int:
        torch.randn(300, 300) @ torch.randn(300, 300)
        return torch.get_num_threads()

    assert in_parallel(used, range(20)) == [1] * 20
    assert torch.get_num_threads() == threads
    with in_pieces():
        assert torch.get_num_threads() == 1
        assert in_parallel(used, range(20)) == [1] * 20
    assert torch.get_num_threads() == threads


def test_an_error_in_a_piece_is_raised_and_the_threads_are_given_back(threads):
    with pytest.raises(ZeroDivisionError), in_pieces():
        in_parallel(lambda i: 1 // i, [1, 0])
    assert torch.get_num_threads() == threads

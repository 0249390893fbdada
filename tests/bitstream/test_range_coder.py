import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from aeic_lightning.bitstream import stream as tables
from aeic_lightning.bitstream.coder import SymbolReader, SymbolWriter
from aeic_lightning.bitstream.wire import LARGEST
from aeic_lightning.models.codec.context import FactorizedPrior

GAUSSIAN = tables.gaussian_tables()


def reference_decode(data: bytes, numbers, tables_) -> list[int]:
    """A range decoder in plain integers, from the format's description alone; no escapes."""
    stream = int.from_bytes(data + bytes(64 + 4 * len(numbers)), "big")
    length = 8 * (len(data) + 64 + 4 * len(numbers))
    low, size, read = 0, 2**64 - 1, 64
    values = []
    for number in numbers:
        table = tables_[number]
        cumulative = np.concatenate([[0], np.cumsum(table.counts)])
        scale = size >> 24
        point = (stream >> (length - read)) - low
        index = int(np.searchsorted(cumulative, min(point // scale, 2**24 - 1), "right")) - 1
        low += scale * int(cumulative[index])
        size = scale * int(table.counts[index])
        if size < 2**32:
            low, size, read = low << 32, size << 32, read + 32
        values.append(table.low + index)
    return values


def write(values, numbers, tables_=GAUSSIAN):
    writer = SymbolWriter()
    writer.write(np.array(values, np.int32), np.array(numbers, np.int64), tables_)
    return writer


def test_counts_are_probabilities():
    for scale, table in zip(tables.scale_levels(), GAUSSIAN, strict=True):
        assert table.counts.sum() == 2**24
        assert table.counts.min() >= 1
        values = np.arange(table.low, table.low + table.escape)
        expected = norm.cdf(values + 0.5, scale=scale) - norm.cdf(values - 0.5, scale=scale)
        coded = table.counts[:-1] / 2**24
        assert np.abs(coded - expected).max() < 2**-12  # twelve binary digits each
        # What that costs: the divergence of the coded from the true density, in bits a symbol.
        assert (expected * np.log2(expected / coded)).sum() < 1e-4
        assert table.counts[-1] / 2**24 < 1e-5


def test_levels_are_the_nearest_in_log():
    scales = np.exp(np.random.default_rng(0).uniform(np.log(0.05), np.log(400), 5000)).astype(np.float32)
    got = torch.bucketize(torch.from_numpy(scales), tables.level_bounds(), right=True).numpy()
    nearest = np.abs(np.log(scales)[:, None] - np.log(tables.scale_levels())).argmin(1)
    assert (got == nearest).mean() > 0.999
    assert tables.scale_levels()[[0, -1]] == pytest.approx([0.11, 256])


def test_prior_tables_are_the_prior():
    torch.manual_seed(0)
    prior = FactorizedPrior(6)
    for parameter in prior.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    prior.update_quantiles()
    medians = tables.medians(prior)
    assert np.abs(medians - prior.quantiles[:, 1].numpy()).max() <= 1 / 128 + 1e-6
    for channel, table in enumerate(tables.prior_tables(prior)):
        assert table.counts.sum() == 2**24
        values = torch.arange(table.low, table.low + table.escape) + float(medians[channel])
        expected = prior.likelihood(values.expand(6, -1).reshape(1, 6, 1, -1))[0, channel, 0].detach().numpy()
        assert np.abs(table.counts[:-1] / 2**24 - expected).max() < 2e-3 * expected.max()


@torch.no_grad()
def test_the_table_of_a_symmetric_prior_has_its_mode_at_the_median():
    prior = FactorizedPrior(1)
    for bias in prior.biases:
        bias.zero_()
    prior.update_quantiles()
    prior.quantiles[:, 1] = 0.0  # bisection ends within a rounding of it
    (table,) = tables.prior_tables(prior)
    left, centre, right = table.counts[-table.low - 1 : -table.low + 2]
    assert left == right
    assert 1 < centre / left < 1.01


def test_an_independent_decoder_reads_the_bytes():
    generator = np.random.default_rng(1)
    numbers = np.sort(generator.integers(0, 64, 3000))
    scale = tables.scale_levels()[numbers]
    values = np.clip(np.rint(generator.normal(0, scale)), -5 * scale, 5 * scale).astype(np.int32)
    writer = write(values, numbers)
    assert writer.escaped == 0
    assert reference_decode(writer.getvalue(), numbers, GAUSSIAN) == values.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-LARGEST, LARGEST), st.integers(0, 63)), max_size=30), st.booleans())
def test_round_trip_of_any_values(pairs, small):
    values = [value % 5 - 2 if small else value for value, _ in pairs]
    numbers = [number for _, number in pairs]
    writer = write(values, numbers)
    data = writer.getvalue()
    assert SymbolReader(data).read(np.array(numbers, np.int64), GAUSSIAN).tolist() == values
    # Termination: less than a byte over the ideal length, rounded up.
    assert len(data) <= writer.bits / 8 + 2


def test_several_writes_in_a_row():
    writer, numbers = SymbolWriter(), np.array([3, 60, 3, 0, 63])
    parts = [np.array([1, -200, 0, 9, 4000]), np.array([0, 0, 0, 0, 0]), np.array([-9, 2, 1, -1, LARGEST])]
    for part in parts:
        writer.write(part.astype(np.int32), numbers, GAUSSIAN)
    reader = SymbolReader(writer.getvalue())
    for part in parts:
        assert reader.read(numbers, GAUSSIAN).tolist() == part.tolist()


def test_long_runs_of_carries_end_right():
    """The most and the least probable end of a table, over and over: the coder's interval crosses word borders."""
    table = tables.table(0, np.array([2.0**-24, 1 - 2.0**-20, 2.0**-24]), 0.0)
    for seed in range(300):
        generator = np.random.default_rng(seed)
        values = generator.choice([0, 1, 2], generator.integers(1, 12), p=[0.4, 0.2, 0.4]).astype(np.int32)
        numbers = np.zeros(len(values), np.int64)
        data = write(values, numbers, [table]).getvalue()
        assert SymbolReader(data).read(numbers, [table]).tolist() == values.tolist()
        assert not data.endswith(b"\0")


def test_nothing_costs_nothing():
    assert write([], []).getvalue() == b""

"""Range coding of integers with one table each, by constriction; the bytes end as early as they can.

Values are coded in groups of one table, in the order of the tables' numbers and, within a group, in the given order.
Values outside of their tables follow after the groups, sign and Elias gamma code of their distance.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from constriction import stream as coding  # pyright: ignore[reportAttributeAccessIssue] (compiled)

from aeic_lightning.bitstream.send import shortest_bytes
from aeic_lightning.bitstream.tables import Table

Uniform = coding.model.Uniform

LARGEST = 2**15  # magnitude of a value
_LENGTHS = Uniform(17)  # of the distance of an escaped value, in bits less one
_SIGN = Uniform(2)


class SymbolWriter:
    """Collects values; `getvalue` gives the bytes. `bits` is their ideal code length so far,
    `escaped` how many lay outside of their tables."""

    def __init__(self) -> None:
        self._encoder = coding.queue.RangeEncoder()
        self.bits = 0.0
        self.escaped = 0

    def write(self, values: np.ndarray, numbers: np.ndarray, tables: Sequence[Table]) -> None:
        """Code int `values` (n,), the i-th with `tables[numbers[i]]`. Magnitudes are at most `LARGEST`."""
        escaped = []
        for number, where in _groups(numbers):
            table, group = tables[number], values[where].astype(np.int32)
            index = group - table.low
            outside = (index < 0) | (index >= table.escape)
            index[outside] = table.escape
            self._encoder.encode(index, table.model)
            self.bits += table.bits[index].sum()
            if outside.any():
                escaped.append(_distance(group[outside], table))
        if escaped:
            distance, negative = (np.concatenate(column) for column in zip(*escaped, strict=True))
            lengths = _bit_lengths(distance) - 1
            self._encoder.encode(lengths, _LENGTHS)
            self._encoder.encode(negative, _SIGN)
            long = lengths > 0
            sizes = (1 << lengths[long]).astype(np.int32)
            self._encoder.encode(distance[long] - sizes, Uniform(), sizes)
            self.escaped += len(lengths)
            self.bits += len(lengths) * (np.log2(17) + 1) + lengths.sum()

    def getvalue(self) -> bytes:
        """What has been written, as `shortest_bytes`."""
        return shortest_bytes(self._encoder)


class SymbolReader:
    """Reads what `SymbolWriter` wrote. Raises AssertionError for some bytes that it cannot have written."""

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4 + 8)
        self._decoder = coding.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def read(self, numbers: np.ndarray, tables: Sequence[Table]) -> np.ndarray:
        """int32 (n,): the values that were written with the same `numbers` and `tables`."""
        values = np.empty(len(numbers), np.int32)
        escaped = []
        for number, where in _groups(numbers):
            table = tables[number]
            index = self._decoder.decode(table.model, len(where))
            values[where] = index + table.low
            outside = where[index == table.escape]
            if len(outside):
                escaped.append((outside, table))
        if escaped:
            count = sum(len(where) for where, _ in escaped)
            lengths = self._decoder.decode(_LENGTHS, count)
            negative = self._decoder.decode(_SIGN, count)
            distance = np.ones(count, np.int32)
            long = lengths > 0
            sizes = (1 << lengths[long]).astype(np.int32)
            distance[long] = sizes + self._decoder.decode(Uniform(), sizes)
            done = 0
            for where, table in escaped:
                part = slice(done, done + len(where))
                last = table.low + table.escape - 1
                values[where] = np.where(negative[part], table.low - distance[part], last + distance[part])
                done += len(where)
        return values


def _groups(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The positions of each number that occurs, in rising order of the numbers."""
    order = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers) if len(numbers) else np.zeros(0, np.int64)
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts):
        yield int(number), order[ends[number] - counts[number] : ends[number]]


def _distance(values: np.ndarray, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """How far values lie outside of the table (1 or more), and whether below it."""
    negative = values < table.low
    distance = np.where(negative, table.low - values, values - (table.low + table.escape - 1))
    return distance.astype(np.int32), negative.astype(np.int32)


def _bit_lengths(values: np.ndarray) -> np.ndarray:
    return np.frexp(values.astype(np.float64))[1].astype(np.int32)

"""The payload of a stream, in numpy and constriction: tables, the range coder, and the order of z and y."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from constriction import stream as coding  # pyright: ignore[reportAttributeAccessIssue] (compiled)

PRECISION = 24  # bits of a probability, that of constriction's default range coder

# Values are coded in groups of one table, in the order of the tables' numbers and, within a group, in the given order.
# Values outside of their tables follow after the groups, sign and Elias gamma code of their distance.

Uniform = coding.model.Uniform
_LENGTHS = Uniform(17)  # of the distance of an escaped value, in bits less one
_SIGN = Uniform(2)


@dataclass(frozen=True)
class Table:
    """Counts of the symbols low, low + 1, ..., low + n - 1 and of the escape; n + 1 counts, each at least 1."""

    low: int
    counts: np.ndarray  # int64 (n + 1,), sum 2^24

    @property
    def escape(self) -> int:
        """Index of the escape."""
        return len(self.counts) - 1

    @cached_property
    def model(self) -> Any:
        """The range coder's model. constriction adds one count to each entry, and rescales by exactly 1."""
        return coding.model.Categorical((self.counts - 1).astype(np.float64), perfect=False)

    @cached_property
    def bits(self) -> np.ndarray:
        """Code length of each entry in bits, float64."""
        return PRECISION - np.log2(self.counts)


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


class PayloadWriter:
    """The payload of one image: z, then the steps of y. `bits` and `escaped` are those of `SymbolWriter`.

    With `rows`, the rows of y in a band, z is coded row by row and y band by band, by a range coder of its own each, so
    that a sender can write both while it reads the image.
    """

    def __init__(self, z_tables: Sequence[Table], y_tables: Sequence[Table], rows: int | None) -> None:
        self.z_tables, self.y_tables, self.rows = z_tables, y_tables, rows
        self._y = SymbolWriter()
        self._z = SymbolWriter() if rows else self._y

    @property
    def bits(self) -> float:
        """Ideal code length of what was written."""
        return sum(writer.bits for writer in {self._y, self._z})

    @property
    def escaped(self) -> int:
        """How many values lay outside of their tables."""
        return sum(writer.escaped for writer in {self._y, self._z})

    def write_z(self, symbols: np.ndarray) -> None:
        """Code z less its medians, (N, h, w)."""
        values, channels = symbols.flatten(), channel_numbers(symbols.shape)
        for part in _in_bands(np.arange(len(values)), symbols.shape[1:], 1 if self.rows else None):
            self._z.write(values[part], channels[part], self.z_tables)

    def write_y(self, values: np.ndarray, levels: np.ndarray, where: np.ndarray, size: tuple[int, ...]) -> None:
        """Code residuals (n,) of one step by the levels of their scales; `where` (n,) says which of (M, *size)."""
        for part in _in_bands(where, size, self.rows):
            self._y.write(values[part], levels[part], self.y_tables)

    def getvalue(self) -> bytes:
        """The payload; with `rows` the length of the bytes of z stands at its end, to be read backwards."""
        if not self.rows:
            return self._y.getvalue()
        z = self._z.getvalue()
        return self._y.getvalue() + z + varint(len(z))[::-1]


class PayloadReader:
    """Reads what `PayloadWriter` wrote. Raises AssertionError for some bytes that it cannot have written."""

    def __init__(self, payload: bytes, z_tables: Sequence[Table], y_tables: Sequence[Table], rows: int | None) -> None:
        self.z_tables, self.y_tables, self.rows = z_tables, y_tables, rows
        if not rows:
            self._y = self._z = SymbolReader(payload)
            return
        try:
            count, taken = read_varint(payload[:-4:-1], 0)
        except IndexError:
            raise AssertionError("the payload ends within its last field") from None
        end = len(payload) - taken
        if count > end:
            raise AssertionError("the bytes of z are more than the payload's")
        self._y, self._z = SymbolReader(payload[: end - count]), SymbolReader(payload[end - count : end])

    def read_z(self, shape: tuple[int, ...]) -> np.ndarray:
        """int32 (N, h, w): z less its medians."""
        channels = channel_numbers(shape)
        values = np.empty(len(channels), np.int32)
        for part in _in_bands(np.arange(len(values)), shape[1:], 1 if self.rows else None):
            values[part] = self._z.read(channels[part], self.z_tables)
        return values.reshape(shape)

    def read_y(self, levels: np.ndarray, where: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """int32 (n,): the residuals that were written with the same levels and places."""
        values = np.empty(len(levels), np.int32)
        for part in _in_bands(where, size, self.rows):
            values[part] = self._y.read(levels[part], self.y_tables)
        return values


def channel_numbers(shape: tuple[int, ...]) -> np.ndarray:
    """The channel of every element of (C, h, w), flat."""
    return np.repeat(np.arange(shape[0], dtype=np.uint16), math.prod(shape[1:]))


def _in_bands(where: np.ndarray, size: tuple[int, ...], rows: int | None) -> Iterator[slice | np.ndarray]:
    """Parts of `where`, positions in (C, *size): one for each band of so many rows, or all as one."""
    if rows is None:
        yield slice(None)
        return
    height, width = size
    for _, part in _groups(where // width % height // rows):
        yield part


def _distance(values: np.ndarray, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """How far values lie outside of the table (1 or more), and whether below it."""
    negative = values < table.low
    distance = np.where(negative, table.low - values, values - (table.low + table.escape - 1))
    return distance.astype(np.int32), negative.astype(np.int32)


def _bit_lengths(values: np.ndarray) -> np.ndarray:
    return np.frexp(values.astype(np.float64))[1].astype(np.int32)


def shortest_bytes(encoder: coding.queue.RangeEncoder) -> bytes:
    """The shortest bytes that, with zeros behind, lie in the coder's final interval.

    constriction ends on whole 32-bit words. Its sealed words and its state give the interval [low, low + range) of
    all continuations: of the numbers in it, take the one with most zero bytes at the end.
    """
    words = encoder.get_compressed()
    position, (low, size) = encoder.pos()
    if len(words) == 0:
        return b""
    sealed = int.from_bytes(words[: position + 1].astype(">u4").tobytes(), "big")
    # `sealed` is the start of the interval divided by 2^32, rounded up.
    start = (sealed << 32) - (-low % 2**32)
    length = 4 * (position + 2)
    for zeros in range(8, -1, -1):
        value = -(-start >> 8 * zeros)
        if value << 8 * zeros < start + size and value >> 8 * (length - zeros) == 0:
            return value.to_bytes(length - zeros, "big").rstrip(b"\0")
    raise AssertionError("unreachable: without zeros it is the start itself")


def varint(value: int) -> bytes:
    """7 bits per byte, lowest first; the top bit says that more follow."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at

"""Quantised matrices as Han, Mao and Dally (2016) store them, made decodable: gaps and values in Huffman codes.

For teaching and comparison: no context, one canonical code for the gaps along rows and one for the values, a matrix
each. A gap is the number of zeros before a value; ESCAPE stands for 31 zeros without a value, END for the zeros that
fill a row.
"""

import heapq

import numpy as np

ESCAPE, END = 31, 32
LENGTH_BITS = 5  # of a code length in the file; 0: a symbol that does not occur


def encode(levels: np.ndarray, above: int, below: int) -> np.ndarray:
    """Levels (R, C) between -below and above -> bits (n,) of 0 and 1: two tables of code lengths, gaps, values."""
    gaps, values = _gaps(levels), levels[levels != 0] + below
    parts = []
    for symbols, size in ((gaps, END + 1), (values, above + below + 1)):
        counts = np.bincount(symbols, minlength=size)
        lengths = code_lengths(counts)
        parts.append((_bits(lengths, np.full(size, LENGTH_BITS)), _bits(codes(lengths)[symbols], lengths[symbols])))
    (gap_table, gap_bits), (value_table, value_bits) = parts
    return np.concatenate([gap_table, value_table, gap_bits, value_bits])


def decode(bits: "Bits", rows: int, columns: int, above: int, below: int) -> np.ndarray:
    """The levels (R, C) that `encode` wrote. Raises ValueError when the bits are none of its."""
    tables = [_table([bits.take(LENGTH_BITS) for _ in range(size)]) for size in (END + 1, above + below + 1)]
    places = []
    for row in range(rows):
        column = 0
        while column < columns:
            symbol = bits.symbol(tables[0])
            if symbol == END:
                break
            column += symbol
            if symbol != ESCAPE:
                places.append(row * columns + column)
                column += 1
            if column > columns:
                raise ValueError(f"row {row} of a Huffman coded matrix runs over its {columns} columns")
    levels = np.zeros(rows * columns, np.int16)
    levels[places] = [bits.symbol(tables[1]) - below for _ in places]
    return levels.reshape(rows, columns)


class Bits:
    """Reads bits from bytes, one after the other; ValueError at the end."""

    def __init__(self, data: bytes):
        self.bits = np.unpackbits(np.frombuffer(data, np.uint8)).tolist()
        self.taken = 0

    @property
    def ended(self) -> bool:
        """Whether at most the rest of a byte is left."""
        return len(self.bits) - self.taken < 8

    def take(self, count: int) -> int:
        """A number of so many bits."""
        number = 0
        for _ in range(count):
            number = 2 * number + self._next()
        return number

    def symbol(self, table: dict[tuple[int, int], int]) -> int:
        """A symbol of the table {(length, code): symbol}."""
        code = 0
        for length in range(1, 2**LENGTH_BITS):
            code = 2 * code + self._next()
            if (symbol := table.get((length, code))) is not None:
                return symbol
        raise ValueError("a code word that is in no table")

    def _next(self) -> int:
        if self.taken == len(self.bits):
            raise ValueError("the Huffman codes end too early")
        self.taken += 1
        return self.bits[self.taken - 1]


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Lengths of the Huffman code for symbols that occur so often; 0 where they do not. All below 2^LENGTH_BITS."""
    counts = counts.astype(np.int64)
    if (total := int(counts.sum())) > 2**20:  # lengths stay below 31
        counts = np.where(counts > 0, counts * 2**20 // total + 1, 0)
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(counts[symbol]), symbol, [symbol]) for symbol in np.flatnonzero(counts).tolist()]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, first, left), (b, second, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (a + b, min(first, second), left + right))
    return lengths


def codes(lengths: np.ndarray) -> np.ndarray:
    """The canonical code words: by length, then by symbol. Raises ValueError for lengths of no prefix code."""
    words, code, previous = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in sorted(np.flatnonzero(lengths).tolist(), key=lambda s: (lengths[s], s)):
        length = int(lengths[symbol])
        code <<= length - previous
        if code >> length:
            raise ValueError("code lengths that fit no prefix code")
        words[symbol], code, previous = code, code + 1, length
    return words


def _table(lengths: list[int]) -> dict[tuple[int, int], int]:
    words = codes(np.array(lengths))
    return {(length, int(words[symbol])): symbol for symbol, length in enumerate(lengths) if length}


def _gaps(levels: np.ndarray) -> np.ndarray:
    """The gap symbols of a matrix, row after row."""
    rows, columns = levels.shape
    at, column = np.nonzero(levels)
    first = np.ones(len(at), bool)
    first[1:] = at[1:] != at[:-1]
    zeros = column.copy()
    zeros[1:] -= np.where(first[1:], 0, column[:-1] + 1)
    last = np.zeros(rows, np.int64)  # columns that a row's values and gaps fill
    last[at] = column + 1
    ended = np.flatnonzero(last < columns)
    symbols = np.concatenate([zeros % ESCAPE, np.full(int((zeros // ESCAPE).sum()), ESCAPE), np.full(len(ended), END)])
    row = np.concatenate([at, np.repeat(at, zeros // ESCAPE), ended])
    place = np.concatenate([column, np.repeat(column, zeros // ESCAPE), np.full(len(ended), columns)])
    kind = np.concatenate([np.ones(len(at)), np.zeros(len(symbols) - len(at))])  # escapes come before their gap
    return symbols[np.lexsort((kind, place, row))]


def _bits(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Numbers in so many bits each, one after the other, highest bit first."""
    ends = np.repeat(np.cumsum(lengths), lengths)
    return np.repeat(numbers, lengths) >> (ends - 1 - np.arange(len(ends))) & 1

"""Floating tensors as integers, so that nothing is lost: bit patterns, their order, narrower types, exponents."""

import numpy as np
import torch
from torch import Tensor

from wsnotebook.methods.context_model import ONE, Counts, squash

EXPONENTS = {torch.bfloat16: 8, torch.float16: 5, torch.float32: 8, torch.float64: 11}  # bits; fewest mantissa first
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def words(tensor: Tensor) -> np.ndarray:
    """The bit patterns of a tensor of at most 8 bytes an entry, as integers: (n,) int64."""
    return tensor.contiguous().reshape(-1).view(WORDS[tensor.dtype.itemsize]).numpy().astype(np.int64)


def from_words(patterns: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The inverse of `words`: (n,) of that type."""
    kind = WORDS[dtype.itemsize]
    return torch.from_numpy(np.ascontiguousarray(patterns)).to(kind).view(dtype)


def keys(patterns: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Integers in the order of the floating numbers: -0 just below 0, which is 0, and NaNs at the ends."""
    return np.where(patterns < 0, -(patterns & _largest(dtype)) - 1, patterns)


def from_keys(ordered: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The inverse of `keys`."""
    return np.where(ordered < 0, -(ordered + 1) - _largest(dtype) - 1, ordered)


def narrowest(tensor: Tensor) -> torch.dtype:
    """The type of fewest bytes that holds a tensor exactly; its own, if it is not floating."""
    if tensor.dtype in EXPONENTS:
        patterns = words(tensor)
        for dtype in EXPONENTS:
            narrow = dtype.itemsize < tensor.dtype.itemsize
            if narrow and np.array_equal(words(tensor.to(dtype).to(tensor.dtype)), patterns):
                return dtype
    return tensor.dtype


def lowest(patterns: np.ndarray, bits: int) -> np.ndarray:
    """The lowest bits of each pattern, one after the other: (n * bits,) of 0 and 1."""
    octets = patterns.astype(">i8").view(np.uint8).reshape(-1, 8)[:, 8 - -(-bits // 8) :]
    return np.unpackbits(octets, axis=1)[:, -bits:].ravel()


def from_lowest(low: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `lowest`: (n,) int64, with zeros in the higher bits."""
    low = low.reshape(-1, bits)
    octets = np.zeros((len(low), 8), np.uint8)
    octets[:, 8 - -(-bits // 8) :] = np.packbits(np.pad(low, ((0, 0), (-bits % 8, 0))), axis=1)
    return octets.view(">i8").astype(np.int64).reshape(-1)


def signed(patterns: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Patterns whose highest bit counts as positive -> as `words` gives them."""
    unused = 64 - 8 * dtype.itemsize
    return patterns << unused >> unused


class Exponents:
    """Exponents and signs of the numbers of one floating type, bit by bit along a tree with adaptive counts."""

    def __init__(self, dtype: torch.dtype):
        self.exponent = EXPONENTS[dtype]
        self.mantissa = 8 * dtype.itemsize - 1 - self.exponent  # bits
        self.tree = Counts(2 << self.exponent, 0.4)
        self.coded = 0

    def transmit(self, coder, count: int, patterns: np.ndarray | None = None) -> np.ndarray:
        """Code `count` patterns' exponents and signs, or decode them when none are given; returns them in place."""
        done = []
        while count:
            size = min(count, 32 + self.coded, ONE)
            tops = None
            if patterns is not None:
                tops, patterns = patterns[:size] >> self.mantissa, patterns[size:]
                tops = (tops << 1 & (2 << self.exponent) - 1) | (tops >> self.exponent & 1)  # the sign comes last
            node = np.ones(size, np.int64)
            for bit in reversed(range(self.exponent + 1)):
                ones = coder.code(squash(self.tree.ratio(node)), None if tops is None else tops >> bit & 1)
                self.tree.add(node, ones * ONE, (1 - ones) * ONE)
                node = 2 * node + ones
            done.append(((node >> 1 & (1 << self.exponent) - 1) | (node & 1) << self.exponent) << self.mantissa)
            self.coded += size
            count -= size
        return np.concatenate(done) if done else np.zeros(0, np.int64)


def _largest(dtype: torch.dtype) -> int:
    return 2 ** (8 * dtype.itemsize - 1) - 1

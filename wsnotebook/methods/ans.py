"""Bits with a probability each, to bytes and back, by asymmetric numeral systems (the library constriction).

Probabilities of a one are integers in 1/65536, from 1 to 65535: the fractions k/65536 are exact in floating point, so
encoder and decoder see the same on every machine. `code` is the same call in both directions.
"""

import constriction
import numpy as np

ONE = 1 << 16
BIT = constriction.stream.model.Bernoulli(perfect=False)
FRACTIONS = (np.arange(ONE) / ONE).astype(np.float32)  # exact


class Encoder:
    """Takes bits; `finish` gives the bytes."""

    def __init__(self):
        self.record = Record()

    def code(self, probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Probabilities (n,) that the bits (n,) are ones; returns the bits."""
        self.record.add(probabilities, bits)
        return bits.astype(np.int64)

    def finish(self) -> bytes:
        if not self.record.bits:
            return b""
        coder = constriction.stream.stack.AnsCoder()
        bits, p = self.record.joined()
        coder.encode_reverse(bits.astype(np.int32), BIT, FRACTIONS[p])
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Gives the bits back that an encoder's bytes hold. Any bytes decode to something; `ended` tells a wrong length.

    record: where the bits and their probabilities are noted, if anywhere.
    """

    def __init__(self, data: bytes, record: "Record | None" = None):
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self.coder = constriction.stream.stack.AnsCoder(words)
        self.record = record

    def code(self, probabilities: np.ndarray, bits: None = None) -> np.ndarray:
        """Probabilities (n,) of ones; returns the bits (n,)."""
        decoded = self.coder.decode(BIT, FRACTIONS[probabilities])
        if self.record:
            self.record.add(probabilities, decoded)
        return decoded.astype(np.int64)

    @property
    def ended(self) -> bool:
        return bool(self.coder.is_empty())


class Record:
    """Bits and their probabilities, as they were coded."""

    def __init__(self):
        self.bits: list[np.ndarray] = []
        self.probabilities: list[np.ndarray] = []

    def add(self, probabilities: np.ndarray, bits: np.ndarray) -> None:
        self.probabilities.append(probabilities.astype(np.uint16))
        self.bits.append(bits.astype(bool))

    def extend(self, other: "Record") -> None:
        self.bits += other.bits
        self.probabilities += other.probabilities

    def joined(self, start: int = 0, end: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Bits (n,) and probabilities (n,) of the calls from `start` up to `end`."""
        return np.concatenate(self.bits[start:end]), np.concatenate(self.probabilities[start:end])

    def length(self, start: int = 0, end: int | None = None) -> float:
        """The model's own code length of those: sum of -log2 p, in bits."""
        if not self.bits[start:end]:
            return 0.0
        bits, p = self.joined(start, end)
        return float(-np.log2(np.where(bits, p, ONE - p.astype(np.int64)) / ONE).sum())

"""The three streams of a compressed file's numbers: coded bits, mantissas as they are, deflated integers.

Writer and Reader have the same three calls, for levels, floating numbers and everything else; the mode says how levels
are coded. Mode "context" codes signs and exponents of floating numbers too, "huffman" keeps them with the mantissas.
"""

import numpy as np
import torch

from wsnotebook.methods import ans, context_model, floats, header, huffman
from wsnotebook.methods.context_model import Frame
from wsnotebook.methods.header import CodecError, Source

MODES = ("context", "huffman")


def kept_bits(stored: torch.dtype, mode: str) -> int:
    """How many bits of a floating number are kept as they are."""
    return 8 * stored.itemsize - (1 + floats.EXPONENTS[stored] if mode == "context" else 0)


class Writer:
    def __init__(self, mode: str):
        self.mode = mode
        self.coder, self.exponents = ans.Encoder(), {}
        self.codes = [np.zeros(0, np.int64)]  # bits of mode "huffman"
        self.mantissas, self.integers = [np.zeros(0, np.uint8)], []

    def levels(self, candidates: list[tuple[Frame, np.ndarray]]) -> int:
        """Code the levels (R, C) of the candidate that takes the fewest bits; returns which."""
        trials = []
        for frame, matrix in candidates:
            if self.mode == "context":
                coder = ans.Encoder()
                context_model.transmit(coder, frame, matrix)
                trials.append((coder.record.length(), coder.record))
            else:
                bits = huffman.encode(matrix, frame.above, frame.below)
                trials.append((len(bits), bits))
        best = min(range(len(trials)), key=lambda i: trials[i][0])
        if self.mode == "context":
            self.coder.record.extend(trials[best][1])
        else:
            self.codes.append(trials[best][1])
        return best

    def numbers(self, patterns: np.ndarray, stored: torch.dtype) -> None:
        """Code floating numbers, given as `floats.words`."""
        self.mantissas.append(floats.lowest(patterns, kept_bits(stored, self.mode)))
        if self.mode == "context":
            model = self.exponents.setdefault(stored, floats.Exponents(stored))
            model.transmit(self.coder, len(patterns), patterns)

    def others(self, data: bytes) -> None:
        self.integers.append(data)

    def finish(self) -> tuple[bytes, bytes, bytes]:
        """Integers, mantissas and coded bits."""
        codes = np.packbits(np.concatenate(self.codes)).tobytes()
        stream = self.coder.finish() if self.mode == "context" else codes
        return header.deflated(b"".join(self.integers)), np.packbits(np.concatenate(self.mantissas)).tobytes(), stream


class Reader:
    """record: where to note the coded bits and their probabilities, in mode "context"."""

    def __init__(self, mode: str, integers: bytes, mantissas: bytes, stream: bytes, record: ans.Record | None):
        self.mode, self.record = mode, record
        self.coder = ans.Decoder(stream, record) if mode == "context" else huffman.Bits(stream)
        self.integers, self.exponents = Source(integers), {}
        self.mantissas, self.taken = np.unpackbits(np.frombuffer(mantissas, np.uint8)), 0

    def levels(self, frame: Frame) -> np.ndarray:
        """Levels (R, C)."""
        if self.mode == "context":
            return context_model.transmit(self.coder, frame)
        return huffman.decode(self.coder, frame.rows, frame.columns, frame.above, frame.below)

    def numbers(self, count: int, stored: torch.dtype) -> np.ndarray:
        """So many floating numbers, as `floats.words`."""
        bits = kept_bits(stored, self.mode)
        self.taken += count * bits
        patterns = floats.from_lowest(self.mantissas[self.taken - count * bits : self.taken], bits)
        if self.mode == "context":
            patterns |= self.exponents.setdefault(stored, floats.Exponents(stored)).transmit(self.coder, count)
        return floats.signed(patterns, stored)

    def others(self, count: int) -> bytes:
        return self.integers.take(count)

    @property
    def position(self) -> int:
        """How far the coded bits are read: in bits, or with a record in calls of the coder."""
        return self.coder.taken if self.mode == "huffman" else len(self.record.bits) if self.record else 0

    def finish(self) -> None:
        """Raise CodecError if something is left."""
        if self.integers.left or not self.coder.ended:
            raise CodecError("the file holds more than its tensors")

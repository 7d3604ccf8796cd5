"""The compressed file of a network: every tensor comes back bit for bit.

Tensors that take few values are a codebook and an entry of it for each weight, coded bit by bit with the probabilities
of `context_model` (mode "context"), or in the codes of `huffman` (mode "huffman"). Of the other floating tensors, signs
and exponents are coded and mantissas kept; tensors that are not floating are deflated.

    "WS" | version and mode (1 byte) | CRC-32 (4) | lengths of the next two | header, deflated | integers, deflated
    | mantissas | stream of coded bits

Damage at random passes the checksum once in 2^32. A file that was made up with a valid one can give wrong numbers or a
CodecError, nothing worse: what it announces is checked against `limit` before it is made.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from wsnotebook.methods import ans, context_model, floats, header, huffman, levels
from wsnotebook.methods.accounting import ideal_bits
from wsnotebook.methods.header import Codebook, CodecError, Entry, Source

MAGIC, VERSION, MODES = b"WS", 1, ("context", "huffman")
LIMIT = 1 << 28  # bytes of all tensors together that `decode` makes unless told otherwise: 64 million float32 weights


def encode(
    network: nn.Module | Mapping[str, Tensor],
    quantised: Iterable[str] | None = None,
    *,
    rest: str = "float32",
    mode: str = "context",
) -> bytes:
    """The file of a network or state dict; `decode` gives every tensor back bit for bit, in order.

    quantised: names of the tensors that get a codebook; None: those for which that is smaller. rest: "float16" rounds
    the other floating tensors to that precision first; it is the rounded ones that come back. mode: "context", the
    small file, or "huffman", for comparison. Raises ValueError for an unknown name or mode, too many values for a
    codebook, an unusual type, or a number that float16 cannot hold.
    """
    if rest not in ("float32", "float16") or mode not in MODES:
        raise ValueError(f"rest={rest!r}, mode={mode!r}: expected float32 or float16, and {' or '.join(MODES)}")
    state = network.state_dict() if isinstance(network, nn.Module) else network
    tensors = {name: _checked(name, tensor) for name, tensor in state.items()}
    keys = levels.clustered(tensors, quantised)
    if rest == "float16":
        tensors |= {name: _halved(name, tensor) for name, tensor in tensors.items() if name not in keys}
    books, book_of = levels.codebooks(keys, tensors)
    coder, exponents, links = ans.Encoder(), {}, []
    entries, integers, mantissas, codes = [], [], [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)]

    def put(patterns: np.ndarray, stored: torch.dtype) -> None:
        mantissas.append(floats.lowest(patterns, _mantissa(stored, mode)))
        if mode == "context":
            exponents.setdefault(stored, floats.Exponents(stored)).transmit(coder, len(patterns), patterns)

    for book in books:
        put(levels.numbers(book), book.stored)
    for name, tensor in tensors.items():
        entry = Entry(name, tensor.dtype, tuple(tensor.shape), floats.narrowest(tensor), book_of.get(name, -1))
        if name in keys:
            book = books[book_of[name]]
            ids = np.searchsorted(book.keys, keys[name]) - book.centre
            if mode == "context":
                entry, trial = _smallest(entry, book, ids, links)
                coder.record.extend(trial.record)
            else:
                trials = [replace(entry, layout=layout) for layout in (0, 1)]
                trials = [(e, huffman.encode(levels.matrix(ids, e), book.above, book.centre)) for e in trials]
                entry, bits = min(trials, key=lambda trial: len(trial[1]))
                codes.append(bits)
            links.append(levels.link(ids, entry))
        elif tensor.dtype in floats.EXPONENTS:
            put(floats.words(tensor.to(entry.stored)), entry.stored)
        else:
            integers.append(tensor.contiguous().numpy().tobytes())
        entries.append(entry)
    kept = np.packbits(np.concatenate(mantissas)).tobytes()
    stream = coder.finish() if mode == "context" else np.packbits(np.concatenate(codes)).tobytes()
    head, deflated = header.pack(entries, books), header.deflated(b"".join(integers))
    parts = [header.varint(len(head)), header.varint(len(deflated)), head, deflated, kept, stream]
    body = bytes([VERSION << 4 | MODES.index(mode)]) + b"".join(parts)
    return MAGIC + body[:1] + zlib.crc32(body).to_bytes(4, "little") + body[1:]


def decode(data: bytes, *, limit: int = LIMIT) -> dict[str, Tensor]:
    """{name: tensor}, as it was encoded. Raises CodecError for damaged bytes, or more than `limit` bytes of tensors."""
    return _Decoded(data, limit).state


def describe(data: bytes, *, limit: int = LIMIT) -> "Report":
    """What the file's bytes are spent on. Raises CodecError as `decode` does."""
    return _Decoded(data, limit, ans.Record()).report()


@dataclass(frozen=True)
class TensorReport:
    """What one tensor takes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nonzeros: int
    distinct: int  # entries of its codebook; 0: it has none
    bits: float  # its levels by the model's own code length (sum of -log2 p), or its exponents and mantissas
    entropy: float  # bits of an ideal code for the frequencies of its levels; without codebook, those of its type

    @property
    def entries(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Report:
    """What a file's bytes are spent on; header, integers, mantissas and stream add up to `bytes`."""

    version: int
    mode: str
    tensors: tuple[TensorReport, ...]
    original: int  # bytes of all entries at 4 bytes each
    bytes: int
    header: int  # magic, checksum, lengths; names, types, shapes
    integers: int  # tensors that are not floating
    mantissas: int  # of codebooks and of tensors without one
    stream: int  # coded bits: levels, signs and exponents
    codebooks: int  # how many numbers they hold, all together

    @property
    def ratio(self) -> float:
        """Compression ratio: all entries at float32 over the file."""
        return self.original / self.bytes


class _Decoded:
    """A file taken apart: header, tensors, and with a `record` the bits that each of them takes."""

    def __init__(self, data: bytes, limit: int, record: ans.Record | None = None):
        self.data, self.record, self.bits = bytes(data), record, []
        try:
            self._read(limit)
        except (ValueError, UnicodeDecodeError) as error:
            raise error if isinstance(error, CodecError) else CodecError(f"damaged file: {error}") from None

    def _read(self, limit: int) -> None:
        source = Source(self.data)
        if source.take(2) != MAGIC:
            raise CodecError(f"no file of wsnotebook: it begins with {self.data[:2]!r}, expected {MAGIC!r}")
        kind, checksum = source.take(1), int.from_bytes(source.take(4), "little")
        if kind[0] >> 4 != VERSION or kind[0] & 15 >= len(MODES):
            raise CodecError(f"version {kind[0] >> 4}, mode {kind[0] & 15}: this wsnotebook reads version {VERSION}")
        if zlib.crc32(kind + self.data[source.at :]) != checksum:
            raise CodecError(f"damaged file of {len(self.data)} bytes: the checksum differs")
        self.mode = MODES[kind[0] & 15]
        sizes = source.number(), source.number()
        self.entries, books = header.unpack(source.take(sizes[0]))
        total = sum(entry.size * entry.dtype.itemsize for entry in self.entries)
        if total > limit:
            raise CodecError(f"the tensors take {total} bytes, more than limit={limit}: raise it if you trust the file")
        whole = [entry for entry in self.entries if entry.codebook < 0 and entry.dtype not in floats.EXPONENTS]
        starts = [source.at]
        deflated, size = source.take(sizes[1]), sum(entry.size * entry.dtype.itemsize for entry in whole)
        integers = Source(header.inflated(deflated, size))
        starts.append(source.at)
        raw = [e for e in self.entries if e.codebook < 0 and e.dtype in floats.EXPONENTS]
        widths = [b.count * _mantissa(b.stored, self.mode) for b in books]
        widths += [e.size * _mantissa(e.stored, self.mode) for e in raw]
        mantissas = np.unpackbits(np.frombuffer(source.take(-(-sum(widths) // 8)), np.uint8))
        mantissas = iter(np.split(mantissas, np.cumsum(widths)))
        starts.append(source.at)
        self.ends = [*starts, len(self.data)]  # of header, integers, mantissas, stream
        stream = source.take(source.left)
        coder = ans.Decoder(stream, self.record) if self.mode == "context" else huffman.Bits(stream)
        exponents, links = {}, []

        def get(count: int, stored: torch.dtype) -> np.ndarray:
            patterns = floats.from_lowest(next(mantissas), _mantissa(stored, self.mode))
            if self.mode == "context":
                patterns |= exponents.setdefault(stored, floats.Exponents(stored)).transmit(coder, count)
            return floats.signed(patterns, stored)

        self.books = [levels.with_numbers(book, get(book.count, book.stored)) for book in books]
        self.state, self.marks = {}, [self._position(coder)]
        for entry in self.entries:
            if entry.codebook >= 0:
                values = self._coded(entry, coder, links)
            elif entry.dtype in floats.EXPONENTS:
                values = floats.from_words(get(entry.size, entry.stored), entry.stored).to(entry.dtype)
            else:
                taken = bytearray(integers.take(entry.size * entry.dtype.itemsize))
                values = torch.frombuffer(taken, dtype=entry.dtype) if taken else torch.empty(0, dtype=entry.dtype)
            self.state[entry.name] = values.reshape(entry.shape)
            self.marks.append(self._position(coder))
        if integers.left or not coder.ended:
            raise CodecError("the file holds more than its tensors")

    def _coded(self, entry: Entry, coder, links: list[np.ndarray]) -> Tensor:
        """A tensor with a codebook, flat."""
        if not levels.fits(entry):
            raise CodecError(f"{entry.name}: shape {entry.shape} in layout {entry.layout}, which has too many rows")
        book = self.books[entry.codebook]
        frame = levels.frame(entry, book, links)
        if self.mode == "context":
            matrix = context_model.transmit(coder, frame)
        else:
            matrix = huffman.decode(coder, frame.rows, frame.columns, book.above, book.centre)
        ids = (matrix.T if entry.layout else matrix).reshape(-1)
        links.append(levels.link(ids, entry))
        return floats.from_words(floats.from_keys(book.keys, book.dtype)[ids + book.centre], book.dtype)

    def _position(self, coder) -> int:
        """How far the stream is decoded: in calls of the coder, or in bits."""
        return coder.taken if self.mode == "huffman" else len(self.record.bits) if self.record else 0

    def report(self) -> Report:
        tensors = []
        for entry, start, end in zip(self.entries, self.marks, self.marks[1:], strict=False):
            tensor, coded = self.state[entry.name], entry.codebook >= 0
            bits = end - start if self.mode == "huffman" else self.record.length(start, end)
            if not coded:
                kept = entry.dtype in floats.EXPONENTS
                bits += entry.size * (_mantissa(entry.stored, self.mode) if kept else 8 * entry.dtype.itemsize)
            tensors.append(
                TensorReport(
                    name=entry.name,
                    dtype=str(entry.dtype).removeprefix("torch."),
                    shape=entry.shape,
                    nonzeros=int((tensor != 0).sum()),
                    distinct=len(np.unique(floats.words(tensor))) if coded else 0,
                    bits=float(bits),
                    entropy=float(
                        ideal_bits(floats.words(tensor)) if coded else 8 * entry.stored.itemsize * entry.size
                    ),
                )
            )
        header_, integers, mantissas, stream = (b - a for a, b in zip([0, *self.ends], self.ends, strict=False))
        return Report(
            version=VERSION,
            mode=self.mode,
            tensors=tuple(tensors),
            original=4 * sum(entry.size for entry in self.entries),
            bytes=len(self.data),
            header=header_,
            integers=integers,
            mantissas=mantissas,
            stream=stream,
            codebooks=sum(book.count for book in self.books),
        )


# ---- parts ----


def _checked(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dtype not in header.DTYPES or tensor.layout is not torch.strided:
        what = f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: {what}; expected a dense tensor of {', '.join(str(d)[6:] for d in header.DTYPES)}")
    return tensor.detach().cpu().resolve_conj()


def _halved(name: str, tensor: Tensor) -> Tensor:
    """A floating tensor rounded to float16, in its own type; others as they are."""
    if tensor.dtype not in floats.EXPONENTS:
        return tensor
    rounded = tensor.to(torch.float16).to(tensor.dtype)
    if not torch.equal(rounded.isfinite(), tensor.isfinite()):
        largest = float(tensor[tensor.isfinite()].abs().max())
        raise ValueError(
            f"{name}: {largest:.4g} does not fit float16, whose largest number is 65504; keep rest='float32'"
        )
    return rounded


def _mantissa(stored: torch.dtype, mode: str) -> int:
    """How many bits of a number of a tensor without codebook are kept as they are."""
    return 8 * stored.itemsize - (1 + floats.EXPONENTS[stored] if mode == "context" else 0)


def _smallest(entry: Entry, book: Codebook, ids: np.ndarray, links: list[np.ndarray]) -> tuple[Entry, ans.Encoder]:
    """The entry with the layout that takes the fewest bits, and those."""
    trials = []
    for layout in levels.layouts(entry, ids, links):
        trial, coder = replace(entry, layout=layout), ans.Encoder()
        context_model.transmit(coder, levels.frame(trial, book, links), levels.matrix(ids, trial))
        trials.append((coder.record.length(), trial, coder))
    return min(trials, key=lambda trial: trial[0])[1:]

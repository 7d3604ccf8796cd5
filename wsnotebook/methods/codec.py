"""The compressed file of a network: every tensor comes back bit for bit.

Tensors that take few values are a codebook and an entry of it for each weight, coded bit by bit with the probabilities
of `context_model` (mode "context"), or in the codes of `huffman` (mode "huffman"). Of the other floating tensors, signs
and exponents are coded and mantissas kept; tensors that are not floating are deflated.

    "WS" | version and mode (1 byte) | CRC-32 (4) | lengths of the next two | header, deflated | integers, deflated
    | mantissas | stream of coded bits

Damage at random passes the checksum once in 2^32. A file that was made up with a valid one can give wrong numbers or a
CodecError, nothing worse: what it announces is checked against `limit` before it is made. Reading a file takes at most
64 MiB of memory, and 32 times `limit` and the file's size.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from wsnotebook.methods import ans, floats, header, levels
from wsnotebook.methods.accounting import ideal_bits
from wsnotebook.methods.header import CodecError, Entry, Source
from wsnotebook.methods.streams import MODES, Reader, Writer, kept_bits

MAGIC, VERSION = b"WS", 1
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
    small file, or "huffman", for comparison. Raises ValueError for an unknown name or mode, too many tensors, or
    values for a codebook, an unusual type, or a number that float16 cannot hold.
    """
    if rest not in ("float32", "float16") or mode not in MODES:
        raise ValueError(f"rest={rest!r}, mode={mode!r}: expected float32 or float16, and {' or '.join(MODES)}")
    state = network.state_dict() if isinstance(network, nn.Module) else network
    if len(state) > header.MAX_TENSORS:
        raise ValueError(f"{len(state):,} tensors: a file holds at most {header.MAX_TENSORS:,}; write several")
    tensors = {name: _checked(name, tensor) for name, tensor in state.items()}
    keys = levels.clustered(tensors, quantised)
    if rest == "float16":
        tensors |= {name: _halved(name, tensor) for name, tensor in tensors.items() if name not in keys}
    books, book_of = levels.codebooks(keys, tensors)
    writer, entries, links = Writer(mode), [], []
    for book in books:
        writer.numbers(levels.numbers(book), book.stored)
    for name, tensor in tensors.items():
        entry = Entry(name, tensor.dtype, tuple(tensor.shape), floats.narrowest(tensor), book_of.get(name, -1))
        if name in keys:
            book = books[entry.codebook]
            ids = np.searchsorted(book.keys, keys[name]) - book.centre
            candidates = [replace(entry, layout=layout) for layout in levels.layouts(entry, ids, links, mode)]
            frames = [(levels.frame(e, book, links), levels.matrix(ids, e)) for e in candidates]
            entry = candidates[writer.levels(frames)]
            links.append(levels.link(ids, entry))
        elif tensor.dtype in floats.EXPONENTS:
            writer.numbers(floats.words(tensor.to(entry.stored)), entry.stored)
        else:
            writer.others(tensor.contiguous().numpy().tobytes())
        entries.append(entry)
    head, (integers, mantissas, stream) = header.pack(entries, books), writer.finish()
    sizes = header.varint(len(head)) + header.varint(len(integers))
    body = bytes([VERSION << 4 | MODES.index(mode)]) + sizes + head + integers + mantissas + stream
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
        self.size, self.record = len(data), record
        try:
            self._read(Source(bytes(data)), limit)
        except ValueError as error:
            raise error if isinstance(error, CodecError) else CodecError(f"damaged file: {error}") from None

    def _read(self, source: Source, limit: int) -> None:
        if (magic := source.take(2)) != MAGIC:
            raise CodecError(f"no file of wsnotebook: it begins with {magic!r}, expected {MAGIC!r}")
        kind, checksum = source.take(1), int.from_bytes(source.take(4), "little")
        version, mode = kind[0] >> 4, kind[0] & 15
        if version != VERSION or mode >= len(MODES):
            raise CodecError(f"version {version}, mode {mode}: this wsnotebook reads version {VERSION}")
        if zlib.crc32(kind + source.data[source.at :]) != checksum:
            raise CodecError(f"damaged file of {self.size} bytes: the checksum differs")
        self.mode = MODES[mode]
        sizes = source.number(), source.number()
        self.entries, books = header.unpack(source.take(sizes[0]))
        total = sum(entry.nbytes for entry in self.entries)
        if total > limit:
            raise CodecError(f"the tensors take {total} bytes, more than limit={limit}: raise it if you trust the file")
        self.ends = [source.at]  # of header, integers, mantissas, stream
        plain = [entry for entry in self.entries if entry.codebook < 0]
        integers = sum(entry.nbytes for entry in plain if entry.dtype not in floats.EXPONENTS)
        integers = header.inflated(source.take(sizes[1]), integers)
        self.ends.append(source.at)
        counts = [(book.count, book.stored) for book in books]
        counts += [(entry.size, entry.stored) for entry in plain if entry.dtype in floats.EXPONENTS]
        mantissas = source.take(-(-sum(count * kept_bits(stored, self.mode) for count, stored in counts) // 8))
        self.ends += [source.at, self.size]
        reader = Reader(self.mode, integers, mantissas, source.take(source.left), self.record)
        self.books = [levels.with_numbers(book, reader.numbers(book.count, book.stored)) for book in books]
        self.state, self.marks, links = {}, [reader.position], []
        for entry in self.entries:
            self.state[entry.name] = self._tensor(entry, reader, links).reshape(entry.shape)
            self.marks.append(reader.position)
        reader.finish()

    def _tensor(self, entry: Entry, reader: Reader, links: list[np.ndarray]) -> Tensor:
        """The entries of a tensor, flat."""
        if entry.codebook >= 0:
            book = self.books[entry.codebook]
            ids = levels.flat(reader.levels(levels.frame(entry, book, links)), entry)
            links.append(levels.link(ids, entry))
            values = floats.from_words(floats.from_keys(book.keys, book.dtype), book.dtype)
            return values.index_select(0, torch.from_numpy(ids + book.centre).int())
        if entry.dtype in floats.EXPONENTS:
            return floats.from_words(reader.numbers(entry.size, entry.stored), entry.stored).to(entry.dtype)
        data = bytearray(reader.others(entry.nbytes))
        return torch.frombuffer(data, dtype=entry.dtype) if data else torch.empty(0, dtype=entry.dtype)

    def report(self) -> Report:
        header_, integers, mantissas, stream = np.diff([0, *self.ends]).tolist()
        return Report(
            version=VERSION,
            mode=self.mode,
            tensors=tuple(map(self._report, self.entries, self.marks, self.marks[1:])),
            original=4 * sum(entry.size for entry in self.entries),
            bytes=self.size,
            header=header_,
            integers=integers,
            mantissas=mantissas,
            stream=stream,
            codebooks=sum(book.count for book in self.books),
        )

    def _report(self, entry: Entry, start: int, end: int) -> TensorReport:
        """What a tensor takes whose coded bits lie between two positions."""
        tensor, coded = self.state[entry.name], entry.codebook >= 0
        bits = end - start if self.mode == "huffman" else self.record.length(start, end)
        if entry.dtype not in floats.EXPONENTS:
            bits += 8 * entry.nbytes
        elif not coded:
            bits += entry.size * kept_bits(entry.stored, self.mode)
        return TensorReport(
            name=entry.name,
            dtype=str(entry.dtype).removeprefix("torch."),
            shape=entry.shape,
            nonzeros=int((tensor != 0).sum()),
            distinct=len(np.unique(floats.words(tensor))) if coded else 0,
            bits=float(bits),
            entropy=float(ideal_bits(floats.words(tensor)) if coded else 8 * entry.stored.itemsize * entry.size),
        )


def _checked(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dtype not in header.DTYPES or tensor.layout is not torch.strided:
        what = f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: {what}; expected a dense tensor of {', '.join(str(d)[6:] for d in header.DTYPES)}")
    return tensor.detach().cpu().resolve_conj().resolve_neg()


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

"""What a compressed file says about its tensors before their numbers: names, types, shapes, storage, codebooks."""

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from wsnotebook.methods import floats

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.int16)
DTYPES += (torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128)  # a number in the file: only append
KINDS = ("list", "zero", "multiples")  # of codebooks
OUTPUTS, INPUTS, GRID, FOLDED = LAYOUTS = range(4)  # what the rows of levels are; folded: as long as we like
MAX_LEVELS = 4096  # entries of a codebook
MAX_HEADER = 1 << 22  # bytes
MAX_TENSORS = 1 << 16  # and no more codebooks: what is said of them takes memory before their names are read
# Names that deflate has seen before: part of the format.
NAMES = "in_proj_weight out_proj.weight groups.0.0.bn1.num_batches_tracked bn2.running_var bn1.running_mean"
NAMES += " shortcut.weight bn1.weight bn1.bias conv1.weight conv1.bias conv2.weight conv2.bias"
NAMES += " fc1.weight fc1.bias fc2.weight fc2.bias fc3.weight fc3.bias"
COMMON = b"".join(bytes([len(name)]) + name.encode() for name in NAMES.split())


class CodecError(ValueError):
    """Bytes that are no compressed network, or a damaged one."""


@dataclass(frozen=True)
class Codebook:
    """The values that some tensors take, in order; levels count from entry `centre`, the most frequent one.

    Kinds: "list"; "zero", a list in which zero goes without saying; "multiples" of a float32 step, without gaps.
    """

    dtype: torch.dtype  # of the tensors
    stored: torch.dtype  # the narrowest type that holds its numbers exactly
    kind: str
    size: int
    centre: int
    first: int = 0  # of multiples: the lowest is so many steps
    keys: np.ndarray | None = None  # (size,) int64, increasing: `floats.keys` of the values; None: not read yet
    step: float = 0.0  # of multiples

    @property
    def count(self) -> int:
        """Numbers that the file holds of it."""
        return {"list": self.size, "zero": self.size - 1, "multiples": 1}[self.kind]

    @property
    def above(self) -> int:
        return self.size - 1 - self.centre


@dataclass(frozen=True)
class Entry:
    """How a tensor is stored."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stored: torch.dtype  # of a tensor without codebook: the narrowest type that is exact
    codebook: int = -1  # -1: none
    layout: int = OUTPUTS  # of its levels

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def outputs(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1


def pack(entries: list[Entry], books: list[Codebook]) -> bytes:
    """The header's bytes, deflated; the values of the codebooks are not among them."""
    numbers = [len(entries), len(books)]
    for book in books:
        numbers += [3 * DTYPES.index(book.stored) + KINDS.index(book.kind), book.size, book.centre]
        numbers += [zigzag(book.first)] if book.kind == "multiples" else []
    for entry in entries:
        kind = len(LAYOUTS) * entry.codebook + entry.layout if entry.codebook >= 0 else DTYPES.index(entry.stored)
        numbers += [DTYPES.index(entry.dtype) + 16 * len(entry.shape), *entry.shape, 2 * kind + (entry.codebook >= 0)]
    names = b"".join(varint(len(name)) + name for name in (entry.name.encode() for entry in entries))
    return deflated(b"".join(map(varint, numbers)) + names)


def unpack(data: bytes) -> tuple[list[Entry], list[Codebook]]:
    """The inverse of `pack`; codebooks come without their keys. Raises CodecError."""
    source = Source(inflated(data, MAX_HEADER))
    entries, books, uses = [], [], []
    tensors, count = source.number(), source.number()
    if not count <= tensors <= MAX_TENSORS:
        raise CodecError(f"{tensors} tensors, {count} codebooks; expected at most {MAX_TENSORS}, and no more codebooks")
    for _ in range(count):
        kind, size, centre = (source.number() for _ in range(3))
        stored, kind = _known(kind // 3), KINDS[kind % 3]
        first = unzigzag(source.number()) if kind == "multiples" else 0
        if not (centre < size <= MAX_LEVELS and abs(first) < 1 << 24):
            raise CodecError(f"a codebook of {size} entries around entry {centre}")
        books.append(Codebook(torch.float32, stored, kind, size, centre, first))
    for _ in range(tensors):
        kind = source.number()
        shape = tuple(source.number() for _ in range(kind >> 4)) if kind >> 4 <= 32 else (1 << 40,)
        storage = source.number()
        if math.prod(max(n, 1) for n in shape) >= 1 << 40:
            raise CodecError(f"a tensor of shape {shape}")
        dtype, (number, layout) = _known(kind & 15), divmod(storage >> 1, len(LAYOUTS))
        if storage & 1 and (number >= count or dtype not in floats.EXPONENTS or 0 in shape):
            raise CodecError(f"a {dtype} tensor of shape {shape} with codebook {number} of {count}")
        stored = dtype if storage & 1 else _known(storage >> 1)
        _check_stored(dtype, stored)
        uses.append((dtype, shape, stored, number if storage & 1 else -1, layout if storage & 1 else 0))
    for use in uses:
        name = source.take(source.number())
        entries.append(Entry(name.decode(), *use))
    if source.left or len({entry.name for entry in entries}) < tensors:
        raise CodecError("the header has bytes too many, or two tensors of one name")
    users = [set() for _ in books]
    for entry in entries:
        if entry.codebook >= 0:
            users[entry.codebook].add(entry.dtype)
    for i, (book, dtypes) in enumerate(zip(books, users, strict=True)):
        if len(dtypes) != 1:
            raise CodecError(f"codebook {i} of {count} is used by {len(dtypes)} types of tensors")
        books[i] = replace(book, dtype=dtypes.pop())
        _check_stored(books[i].dtype, book.stored)
        if book.kind == "multiples" and books[i].dtype is not torch.float32:
            raise CodecError(f"multiples in {books[i].dtype}, expected float32")
    return entries, books


class Source:
    """Bytes that are read one after the other; CodecError when there are no more."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise CodecError(f"the file ends early: {count} more bytes expected, {self.left} left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """A number in 7 bits a byte, the lowest first; the highest bit says that another byte follows."""
        number = 0
        for shift in range(0, 49, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise CodecError("a number of more than 7 bytes")


def varint(number: int) -> bytes:
    """What `Source.number` reads."""
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def zigzag(number: int) -> int:
    return 2 * number if number >= 0 else -2 * number - 1


def unzigzag(number: int) -> int:
    return number >> 1 if number % 2 == 0 else -(number + 1 >> 1)


def deflated(data: bytes) -> bytes:
    """Raw deflate with what we know beforehand; nothing for nothing."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=COMMON)
    return packer.compress(data) + packer.flush() if data else b""


def inflated(data: bytes, most: int) -> bytes:
    """The inverse of `deflated`, for at most so many bytes. Raises CodecError."""
    unpacker = zlib.decompressobj(-15, zdict=COMMON)
    try:
        plain = unpacker.decompress(data, most + 1) if data else b""
    except zlib.error as error:
        raise CodecError(f"deflated bytes that are damaged: {error}") from None
    if data and (not unpacker.eof or unpacker.unused_data or len(plain) > most):
        raise CodecError(f"deflated bytes that do not end well within {most} bytes")
    return plain


def _check_stored(dtype: torch.dtype, stored: torch.dtype) -> None:
    narrower = {dtype, stored} <= set(floats.EXPONENTS) and stored.itemsize < dtype.itemsize
    if not narrower and dtype is not stored:
        raise CodecError(f"{dtype} stored as {stored}")


def _known(number: int) -> torch.dtype:
    if number >= len(DTYPES):
        raise CodecError(f"type number {number}; the last known is {len(DTYPES) - 1}")
    return DTYPES[number]

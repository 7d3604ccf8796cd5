"""Tensors that take few values, as levels in a codebook and as the matrix that is coded."""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wsnotebook.methods import floats
from wsnotebook.methods.context_model import Frame
from wsnotebook.methods.header import FOLDED, GRID, INPUTS, MAX_LEVELS, OUTPUTS, Codebook, CodecError, Entry

FOLD = 4096  # columns of a tensor that fits no other layout


def clustered(tensors: dict[str, Tensor], names: Iterable[str] | None) -> dict[str, np.ndarray]:
    """{name: `floats.keys` of its entries} for the tensors that get a codebook; None: those for which it seems smaller.

    Raises ValueError for a name that is not there, or a tensor that cannot have one.
    """
    chosen = set(tensors if names is None else names)
    if unknown := chosen - set(tensors):
        raise ValueError(f"quantised: no tensor {', '.join(sorted(unknown))}; there are {', '.join(tensors) or 'none'}")
    found = {}
    for name, tensor in tensors.items():
        if name not in chosen or not tensor.numel() or tensor.dtype not in floats.EXPONENTS:
            continue
        keys = floats.keys(floats.words(tensor), tensor.dtype)
        if names is None and len(np.unique(keys[:: max(1, len(keys) >> 14)])) > MAX_LEVELS:
            continue
        values, counts = np.unique(keys, return_counts=True)
        if names is None and not _pays(tensor.dtype, floats.narrowest(tensor).itemsize, values, counts):
            continue
        if len(values) > MAX_LEVELS:
            raise ValueError(f"{name}: {len(values)} distinct values; a codebook holds at most {MAX_LEVELS}")
        found[name] = keys
    return found


def _pays(dtype: torch.dtype, width: int, values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether a codebook is shorter: 15 % of numbers of `width` bytes can be saved by coding exponents instead."""
    if len(values) > MAX_LEVELS:
        return False
    entropy = float((counts * np.log2(counts.sum() / counts)).sum()) / 8  # bytes
    numbers = width * (1 if _multiples(dtype, values, counts) else len(values))
    return 3 + entropy + 0.85 * numbers < 0.85 * width * counts.sum()


def codebooks(keys: dict[str, np.ndarray], tensors: dict[str, Tensor]) -> tuple[list[Codebook], dict[str, int]]:
    """Codebooks and which of them each tensor uses. Tensors whose values are mostly another's share its codebook."""
    shared, users = [], []  # by codebook: type and values; names
    for name, all_keys in keys.items():
        dtype, own = tensors[name].dtype, np.unique(all_keys)
        for i, (other, values) in enumerate(shared):
            union = np.union1d(values, own)
            if other is dtype and len(union) - len(values) <= len(own) // 2 and len(union) <= MAX_LEVELS:
                shared[i] = (dtype, union)
                users[i].append(name)
                break
        else:
            shared.append((dtype, own))
            users.append([name])
    books = []
    for (dtype, values), names in zip(shared, users, strict=True):
        counts = sum(np.bincount(np.searchsorted(values, keys[name]), minlength=len(values)) for name in names)
        books.append(_multiples(dtype, values, counts) or _listed(dtype, values, counts))
    return books, {name: i for i, names in enumerate(users) for name in names}


def _listed(dtype: torch.dtype, keys: np.ndarray, counts: np.ndarray) -> Codebook:
    stored = floats.narrowest(floats.from_words(floats.from_keys(keys, dtype), dtype))
    return Codebook(dtype, stored, "zero" if 0 in keys else "list", len(keys), int(counts.argmax()), keys=keys)


def _multiples(dtype: torch.dtype, keys: np.ndarray, counts: np.ndarray) -> Codebook | None:
    """A codebook of all multiples of a step between the lowest and the highest value, if float32 values are such."""
    if dtype is not torch.float32 or len(keys) < 4:
        return None
    values = floats.from_words(floats.from_keys(keys, dtype), dtype).double().numpy()
    smallest = np.abs(values[values != 0]).min()
    for share in range(1, 9):
        near = np.float32(smallest / share)
        for step in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
            if not (step > 0 and values[-1] - values[0] < min(4 * len(keys), MAX_LEVELS) * float(step)):  # nor NaN
                continue
            first, last = np.rint(values[[0, -1]] / step).astype(int).tolist()
            every = _keys_of_multiples(step, first, last - first + 1)
            if np.isin(keys, every).all():
                stored, centre = (
                    floats.narrowest(torch.tensor(step)),
                    int(np.searchsorted(every, keys[counts.argmax()])),
                )
                return Codebook(dtype, stored, "multiples", len(every), centre, first, every, float(step))
    return None


def _keys_of_multiples(step: float, first: int, size: int) -> np.ndarray:
    """Keys of the float32 numbers `first` times the step, and those after it."""
    values = torch.arange(first, first + size).float() * step
    return floats.keys(floats.words(values), torch.float32)


def numbers(book: Codebook) -> np.ndarray:
    """The bit patterns that the file holds of a codebook, in its stored type: the step, or the values but for zero."""
    if book.kind == "multiples":
        return floats.words(torch.tensor([book.step]).to(book.stored))
    keys = book.keys[book.keys != 0] if book.kind == "zero" else book.keys
    return floats.words(floats.from_words(floats.from_keys(keys, book.dtype), book.dtype).to(book.stored))


def with_numbers(book: Codebook, patterns: np.ndarray) -> Codebook:
    """The inverse of `numbers`: the codebook with its keys."""
    values = floats.from_words(patterns, book.stored).to(book.dtype)
    if book.kind == "multiples":
        if not 0 < float(values[0]) < math.inf:
            raise CodecError(f"a step of {float(values[0])}")
        return replace(book, keys=_keys_of_multiples(float(values[0]), book.first, book.size))
    keys = floats.keys(floats.words(values), book.dtype)
    if book.kind == "zero":
        keys = np.insert(keys, np.searchsorted(keys, 0), 0)
    return replace(book, keys=keys)


def matrix(levels: np.ndarray, entry: Entry) -> np.ndarray:
    """Levels (n,) as rows and columns of the entry's layout."""
    if entry.layout == FOLDED:
        return np.pad(levels, (0, -len(levels) % FOLD)).reshape(-1, FOLD)
    rows = levels.reshape(entry.outputs, -1)
    return np.ascontiguousarray(rows.T) if entry.layout else rows


def flat(matrix: np.ndarray, entry: Entry) -> np.ndarray:
    """The inverse of `matrix`."""
    return (matrix.T if entry.layout in (INPUTS, GRID) else matrix).reshape(-1)[: entry.size]


def link(levels: np.ndarray, entry: Entry) -> np.ndarray:
    """How much leads to each output: bits of the number of its non-zeros. (outputs,)"""
    return np.frexp((levels.reshape(entry.outputs, -1) != 0).sum(1))[1]


def frame(entry: Entry, book: Codebook, links: list[np.ndarray]) -> Frame:
    """The matrix of a tensor's levels, as the model sees it; links: `link` of every coded tensor before.

    A link fits when the tensor has a multiple of as many inputs: the positions of a feature map are alike. Raises
    CodecError when the layout does not fit.
    """
    if not fits(entry):
        raise CodecError(
            f"{entry.name}: shape {entry.shape} in layout {entry.layout}, which has too many rows or columns"
        )
    if entry.layout == FOLDED:
        return Frame(-(-entry.size // FOLD), FOLD, book.above, book.centre)
    rows, columns = entry.outputs, entry.size // entry.outputs
    alike, width, height = _grid(entry, links)
    if entry.layout == OUTPUTS:
        return Frame(rows, columns, book.above, book.centre, link_columns=alike)
    width, height = (width, height) if entry.layout == GRID else (1, 1)
    return Frame(columns, rows, book.above, book.centre, width, height, link_rows=alike)


def _grid(entry: Entry, links: list[np.ndarray]) -> tuple[np.ndarray | None, int, int]:
    """What is known of a tensor's inputs: the link (inputs,) that fits, and width and height of planes of them.

    Planes are kernels, the feature maps that a link tells of, or images, which are square; width and height are 1 when
    there seem to be none.
    """
    columns, kernel = entry.size // entry.outputs, entry.shape[2:]
    inputs = columns // math.prod(kernel)
    fitting = next((link for link in reversed(links) if len(link) > 1 and inputs % len(link) == 0), None)
    positions = columns if fitting is None else columns // len(fitting)
    if kernel:
        width, height = kernel[-1], math.prod(kernel[:-1])
    else:
        plane = positions // 3 if math.isqrt(positions // 3) ** 2 * 3 == positions else positions  # colours
        width = height = math.isqrt(plane) if math.isqrt(plane) ** 2 == plane else 1
    if not (2 <= width <= 64 and height <= 4096):
        width = height = 1
    return None if fitting is None else np.repeat(fitting, positions), width, height


def layouts(entry: Entry, levels: np.ndarray, links: list[np.ndarray], mode: str) -> list[int]:
    """The layouts worth trying. In mode "context": the grid alone where neighbours are alike; one, if it takes long."""
    fitting = [layout for layout in (OUTPUTS, INPUTS) if fits(replace(entry, layout=layout))] or [FOLDED]
    if mode != "context":
        return fitting
    if INPUTS in fitting and (width := _grid(entry, links)[1]) > 1:
        mask = (levels != 0).reshape(entry.outputs, -1, width).astype(np.float32)
        both = mask[..., 1:].ravel(), mask[..., :-1].ravel()
        if all(side.any() and not side.all() for side in both) and np.corrcoef(*both)[0, 1] > 0.03:
            return [GRID]
    return fitting if len(levels) <= 1 << 18 else fitting[:1]


def fits(entry: Entry) -> bool:
    """Whether a layout has neither too many rows, which take time, nor too many columns, which take memory."""
    if entry.layout == FOLDED:
        return True
    rows, columns = entry.outputs, entry.size // entry.outputs
    rows, columns = (rows, columns) if entry.layout == OUTPUTS else (columns, rows)
    return rows <= 4096 + 4 * columns and columns <= 1 << 16

"""Zoos larger than memory: rows are worked on in portions, and what is large lies in a file instead, memory-mapped.

Such a file has no name and ends with its tensor. The system keeps as much of it in memory as there is room for.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from wsnotebook.datasets import cache_folder

PORTION = 2**24  # numbers worked on at once
LARGE = 2**27  # numbers of a tensor that goes to a file


def portions(n: int, d: int) -> Iterator[slice]:
    """The rows of (n, d), as many at once as hold PORTION numbers; one empty portion of no rows."""
    size = max(1, PORTION // max(1, d))
    return (slice(first, min(first + size, n)) for first in range(0, max(1, n), size))


def empty(n: int, d: int, like: Tensor) -> Tensor:
    """(n, d) of the kind of another tensor, to be filled: in a file of the cache folder if it is large."""
    if n * d <= LARGE or like.device.type != "cpu":
        return like.new_empty(n, d)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".large-") as file:
        return torch.from_file(file.name, shared=True, size=n * d, dtype=like.dtype).view(n, d)


def mapped(f: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Rows f (n, e) of rows (n, d), by portions; f is row by row."""
    whole = None
    for here in portions(*rows.shape):
        part = f(rows[here])
        if len(part) == len(rows):
            return part
        whole = empty(len(rows), part.shape[1], part) if whole is None else whole
        whole[here] = part
    return whole


def mean(rows: Tensor) -> Tensor:
    """(d,) of rows (n, d). By portions, since columns are summed a few at a time, each time through all the rows."""
    return sum(rows[here].sum(0) for here in portions(*rows.shape)) / len(rows)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (n, d) one after another."""
    whole, first = empty(sum(map(len, parts)), parts[0].shape[1], parts[0]), 0
    for part in parts:
        for here in portions(*part.shape):
            whole[first + here.start : first + here.stop] = part[here]
        first += len(part)
    return whole


def gathered(rows: Tensor, chosen: Tensor) -> Tensor:
    """The chosen (m,) of rows (n, d): (m, d)."""
    whole = empty(len(chosen), rows.shape[1], rows)
    for here in portions(*whole.shape):
        torch.index_select(rows, 0, chosen[here].to(rows.device), out=whole[here])
    return whole

"""How many bits a quantised network takes: the accounting of Ullrich et al. 2017 (after Han et al. 2016).

Each tensor is a sparse matrix in CSR form (rows = outputs), its column gaps and values entropy-coded. What this count
leaves out, on both sides of the ratio: biases, batch-norm parameters, shapes and code tables.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

FULL = 32  # bits of an uncompressed weight
GAP_BITS = {"linear": 5, "conv": 8}  # widest gap written as one symbol: 2^bits - 1


@dataclass(frozen=True)
class LayerSize:
    """One tensor's bits by the paper's accounting; column and value bits are ideal (Shannon) code lengths."""

    name: str
    weights: int
    nonzeros: int
    row_bits: int  # row pointers
    column_bits: int  # gaps between non-zeros along a row
    value_bits: int  # component ids of the non-zeros
    codebook_bits: int  # the components' means, 32 bits each; or all weights, for a tensor left unquantised

    @property
    def bits(self) -> int:
        return self.row_bits + self.column_bits + self.value_bits + self.codebook_bits


@dataclass(frozen=True)
class Sizes:
    """A network's bits, a layer each and in all."""

    layers: tuple[LayerSize, ...]

    @property
    def bits(self) -> int:
        return sum(layer.bits for layer in self.layers)

    @property
    def original_bits(self) -> int:
        return FULL * sum(layer.weights for layer in self.layers)

    @property
    def ratio(self) -> float:
        """Compression ratio: original bits over compressed bits, weights only."""
        return self.original_bits / self.bits

    @property
    def nonzero_percent(self) -> float:
        return 100 * sum(layer.nonzeros for layer in self.layers) / sum(layer.weights for layer in self.layers)


def paper_size(name: str, ids: Tensor, codebook: int) -> LayerSize:
    """The paper's count for one tensor of component ids (out, ...), 0 for zero; codebook: number of other values."""
    matrix = ids.reshape(ids.shape[0], -1).numpy()  # (rows, columns)
    rows, columns = np.nonzero(matrix)
    nonzeros = len(rows)
    first = np.ones(nonzeros, bool)
    first[1:] = rows[1:] != rows[:-1]
    gaps = columns - np.where(first, 0, np.concatenate([[0], columns[:-1]]))
    span = 2 ** GAP_BITS["linear" if ids.ndim == 2 else "conv"] - 1
    padding = np.maximum(0, -(-gaps // span) - 1)  # symbols `span` before the last one: while gap > span
    symbols = np.concatenate([gaps - padding * span, np.full(padding.sum(), span)])
    return LayerSize(
        name=name,
        weights=matrix.size,
        nonzeros=nonzeros,
        row_bits=(matrix.shape[0] + 1) * max(1, math.ceil(math.log2(nonzeros + 1))),
        column_bits=ideal_bits(symbols),
        value_bits=ideal_bits(matrix[rows, columns]),
        codebook_bits=codebook * FULL,
    )


def unquantised_size(name: str, weights: int) -> LayerSize:
    """A tensor left as it is: 32 bits a weight."""
    return LayerSize(name, weights, weights, row_bits=0, column_bits=0, value_bits=0, codebook_bits=weights * FULL)


def ideal_bits(symbols: np.ndarray) -> int:
    """Length of the symbols in an ideal code for their own frequencies: n times their Shannon entropy, rounded."""
    _, counts = np.unique(symbols, return_counts=True)
    return round(float((counts * np.log2(counts.sum() / counts)).sum())) if len(counts) else 0

"""Principal components of a zoo's rows of weights, layer by layer: the closed form that an autoencoder must beat.

The rows of a layer are points of as many dimensions as they have numbers; z directions of largest variance are theirs,
one set for all its rows. A layer of z columns or fewer loses nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wsnotebook.methods.tokens import Standardised, Tokens, standardise, tokens
from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True, eq=False)
class LayerPCA:
    """Per-layer PCA, with an autoencoder's face: networks to latents (n, r, z), one a row, and back."""

    standardised: Standardised
    means: tuple[Tensor, ...]  # (columns,) of the rows of each block
    bases: tuple[Tensor, ...]  # (columns, z) orthonormal columns, by falling variance; zero beyond the block's own

    def embed(self, zoo: Zoo) -> Tensor:
        """Networks -> latents (n, r, z). Raises ValueError for another architecture."""
        return torch.cat([self._embed(some.weights) for some in zoo.blocks()])

    def _embed(self, weights: Tensor) -> Tensor:
        tokens, entries = self.standardised.tokens, self.standardised.encode(weights)
        pairs = zip(tokens.blocks, self.means, self.bases, strict=True)
        z = torch.cat([(block.of(entries) - mean) @ basis for block, mean, basis in pairs], 1)
        return z[:, tokens.window(0, len(tokens)).rows.argsort()]

    def mean(self, zoo: Zoo) -> Tensor:
        """Networks -> the mean of their latents over the rows, (n, z)."""
        return self.embed(zoo).mean(1)

    def decode(self, z: Tensor, like: Zoo | None = None) -> Zoo:
        """Latents (n, r, z) -> networks; like: as `Standardised.zoo`."""
        tokens = self.standardised.tokens
        order = tokens.window(0, len(tokens)).rows  # block by block
        parts = z[:, order].split([len(block.tokens) * block.rows for block in tokens.blocks], 1)
        pairs = zip(parts, self.means, self.bases, strict=True)
        return self.standardised.zoo(
            torch.cat([(own @ basis.T + mean).flatten(1) for own, mean, basis in pairs], 1), like
        )


def layer_pca(zoo: Zoo, z: int, of: Tokens | None = None) -> LayerPCA:
    """Per-layer PCA of a zoo. of: its tokens, where rows are split; None: whole rows.

    Raises ValueError for z < 1 and an empty zoo.
    """
    standardised = standardise(zoo, of or tokens(zoo.layout))
    return LayerPCA(standardised, *components(standardised, zoo, z))


def components(standardised: Standardised, zoo: Zoo, z: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(means, bases) of a `LayerPCA` of a zoo."""
    if z < 1:
        raise ValueError(f"z={z}: expected at least 1 component")
    blocks, n = standardised.tokens.blocks, 0
    means, products = [0.0] * len(blocks), [0.0] * len(blocks)  # (columns,), (columns, columns) about the mean
    for some in zoo.blocks():
        n += len(some)
        share, entries = len(some) / n, standardised.encode(some.weights)
        for b, block in enumerate(blocks):
            x = block.of(entries).flatten(0, 1).double()  # (rows, columns)
            own = x.mean(0)
            step = own - means[b]
            x = x - own
            means[b] = means[b] + share * step
            products[b] = products[b] + x.T @ x + len(x) * (1 - share) * torch.outer(step, step)
    bases = []
    for product in products:
        _, vectors = torch.linalg.eigh(product)  # columns by rising variance
        basis = vectors.flip(1)[:, :z].float()
        bases.append(torch.nn.functional.pad(basis, (0, z - basis.shape[1])))
    return tuple(mean.float() for mean in means), tuple(bases)

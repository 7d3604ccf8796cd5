"""Coordinates of a zoo: n networks of d weights are n points of a space of n - 1 dimensions, which is all that is used.

The space through all networks loses nothing of them and keeps their distances (an exact change of basis, no model of
the density); its first k directions are principal components (PCA). Both come from the n x n matrix of inner products
("dual PCA"), in float64, a block of weights at a time; of very many networks from the d x d matrix of products.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from wsnotebook import memory
from wsnotebook.zoo.value import Zoo

BLOCK = 2**22  # float64 numbers at a time
DUAL = 4_096  # networks, or as many as weights: beyond, the d x d matrix is the one to be had
RANK = 1e-10  # of the largest variance: below, a direction is rounding


@dataclass(frozen=True, eq=False)
class Coordinates:
    """k orthonormal directions around the mean of a zoo's networks, by falling variance.

    Running statistics of batch norm are left out: a decoded network has the zoo's mean of them, and needs
    `evaluation.recalibrated` on training images.
    """

    mean: Tensor  # (d,)
    basis: Tensor  # (k, d) orthonormal rows, zero at statistics
    deviations: Tensor  # (k,) standard deviations of the zoo's coordinates
    explained: Tensor  # (k,) shares of the total variance of all d weights
    rest: Tensor  # (d,) standard deviations of what the k directions leave of each weight; 0 if they leave nothing
    learned: Tensor  # (d,) bool: no running statistic
    like: Zoo  # one of the networks: what the layout and the architecture of all are

    def __repr__(self) -> str:
        k, d = self.basis.shape
        return (
            f"Coordinates({k} of d={d}, {100 * float(self.explained.sum()):.2f} % of the variance, rms {self.rms:.3g})"
        )

    @property
    def rms(self) -> float:
        """Root mean square of a coordinate over the zoo: the unit in which noise is measured."""
        return float(self.deviations.square().mean().sqrt())

    def encode(self, weights: Tensor) -> Tensor:
        """Weights (n, d) -> coordinates (n, k)."""
        return memory.mapped(lambda rows: (rows.to(self.mean) - self.mean) @ self.basis.T, weights)

    def decode(self, z: Tensor) -> Tensor:
        """Coordinates (n, k) -> weights (n, d)."""
        return torch.addmm(self.mean, z, self.basis)

    def zoo(self, z: Tensor, *, remainder: float = 0.0, seed: int = 0, **facts: np.ndarray) -> Zoo:
        """Coordinates (n, k) -> networks made from no single other one: fact "parent" is -1; and these facts.

        remainder: what the k directions leave is drawn weight by weight, at so many times the zoo's deviation of it.
        With a few directions, networks without it lie closer to the zoo than the zoo's networks do to each other.
        Raises ValueError for a remainder that is negative or not finite.
        """
        if not 0 <= remainder < float("inf"):
            raise ValueError(f"remainder={remainder!r}: expected a number from 0 up; 1 is as much as in the zoo")
        weights = self.decode(z)
        if remainder:
            generator = torch.Generator().manual_seed(seed)
            draws = torch.randn(weights.shape, generator=generator).to(weights)
            weights.addcmul_(draws, self.rest, value=remainder)
        return self.like.made(weights, **facts)


def coordinates(zoo: Zoo, k: int | None = None) -> Coordinates:
    """The k directions of largest variance; None: all that there are, n - 1 unless networks are equal.

    Raises ValueError when the zoo spans fewer than k directions, or has networks of several activations.
    """
    kinds = np.unique(zoo.facts.get("activation", ["one"]))
    if len(kinds) > 1:
        raise ValueError(f"zoo: activations {', '.join(kinds)}; take the networks of one, as zoo.filter does")
    n, device = len(zoo), zoo.weights.device
    if n < 2 or (k is not None and not 1 <= k < n):
        raise ValueError(
            f"components={k}, zoo of {n} networks: n networks have at most n - 1 components; expected from 1 to n - 1, "
            "of at least 2 networks"
        )
    learned = zoo.layout.learned().to(device)
    mean = sum(some.weights.sum(0, dtype=torch.float64) for some in zoo.blocks()) / n
    dual = n <= max(zoo.layout.d, DUAL)
    blocks = torch.arange(zoo.layout.d, device=device).split(max(1, BLOCK // n))
    if dual:
        products = torch.zeros(n, n, dtype=torch.float64, device=device)
        for block in blocks:
            centred = _centred(zoo, mean, learned, block)
            products += centred @ centred.T
        squares, (values, vectors) = products.diagonal(), torch.linalg.eigh(products)
    else:
        squares, values, vectors = _largest(zoo, mean, learned, k)
    values, vectors = values.flip(0), vectors.flip(1)  # falling; columns
    rank = int((values > RANK * values[0].clamp(min=torch.finfo(torch.float64).tiny)).sum())
    if rank < (k or 1):
        raise ValueError(
            f"components={k}: the zoo's {n} networks span {rank} directions (some are equal); expected from 1 to that"
        )
    values, vectors = values[: k or rank], vectors[:, : k or rank]
    basis, rest = torch.empty(len(values), zoo.layout.d, device=device), torch.zeros(zoo.layout.d, device=device)
    for block in blocks:
        if dual:
            centred = _centred(zoo, mean, learned, block)
            parts, whole = (vectors / values.sqrt()).T @ centred, centred.square().sum(0)  # (k, block), (block,)
        else:
            parts, whole = vectors[block].T, squares[block]
        basis[:, block] = parts.float()
        if len(values) < rank:
            left = whole - parts.square().T @ values
            rest[block] = (left.clamp(min=0) / (n - 1)).sqrt().float()
    return Coordinates(
        mean=mean.float(),
        basis=basis,
        deviations=(values / (n - 1)).sqrt().float(),
        explained=(values / squares.sum()).float(),
        rest=rest,
        learned=learned,
        like=zoo.filter([0]),
    )


def _largest(zoo: Zoo, mean: Tensor, learned: Tensor, k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(diagonal (d,), values, columns) of the weights' products, summed over networks: the largest k + 1, or all."""
    d = zoo.layout.d
    products = torch.zeros(d, d, dtype=torch.float64, device=mean.device)
    for some in zoo.blocks():
        centred = some.weights.double().sub_(mean).mul_(learned)
        products.addmm_(centred.T, centred)
    squares, subset = products.diagonal().clone(), None if k is None else (max(0, d - k - 1), d - 1)
    own = products.cpu().numpy().T  # symmetric: in the order that LAPACK works in
    found = scipy.linalg.eigh(own, subset_by_index=subset, overwrite_a=True, check_finite=False)
    return squares, *(torch.from_numpy(part).to(squares) for part in found)


def _centred(zoo: Zoo, mean: Tensor, learned: Tensor, block: Tensor) -> Tensor:
    """(n, len(block)) float64: a block of the weights around their mean, statistics zero."""
    return (zoo.weights[:, block].double() - mean[block]) * learned[block]

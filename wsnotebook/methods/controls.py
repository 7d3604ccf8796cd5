"""Networks made from a zoo without learning anything: the controls that every generator has to stand beside.

Each takes a zoo (n networks) and returns one of as many as asked for, with the fact "parent": the model that was the
start, or -1 where several were.
"""

import numpy as np
import torch

from wsnotebook.methods.coordinates import Coordinates, coordinates
from wsnotebook.zoo.value import Zoo


def noise(zoo: Zoo, number: int, scale: float, seed: int = 0) -> Zoo:
    """Networks of the zoo with Gaussian noise of standard deviation `scale`; statistics are kept."""
    generator, rows = torch.Generator().manual_seed(seed), _drawn(zoo, (number, 1), seed)[:, 0]
    draws = zoo.layout.learned() * torch.randn(number, zoo.layout.d, generator=generator)
    models = zoo.facts.get("model", np.arange(len(zoo)))
    return zoo.made(zoo.weights[rows] + (scale * draws).to(zoo.weights), models[rows])


def interpolations(zoo: Zoo, number: int, seed: int = 0, t: float | None = None) -> Zoo:
    """Points on the line between two different networks: at t, or at a random place of it."""
    a, b = zoo.weights[_drawn(zoo, (number, 2), seed)].unbind(1)  # (number, d)
    place = torch.rand(number, 1, generator=torch.Generator().manual_seed(seed)).to(a) if t is None else t
    return zoo.made(a + place * (b - a))


def averages(zoo: Zoo, number: int, of: int, seed: int = 0) -> Zoo:
    """Averages of `of` different networks each."""
    rows = _drawn(zoo, (number, of), seed)
    return zoo.made(torch.stack([zoo.weights[row].mean(0) for row in rows]))


def gaussian(zoo: Zoo, number: int, seed: int = 0, scale: float = 1.0) -> Zoo:
    """Every weight drawn by itself from the Gaussian of its values in the zoo, `scale` times as wide.

    Variances of batch norm stay positive.
    """
    draws = torch.randn(number, zoo.layout.d, generator=torch.Generator().manual_seed(seed)).to(zoo.weights)
    weights = zoo.weights.mean(0) + scale * zoo.weights.std(0) * draws
    low = zoo.weights.min(0).values
    return zoo.made(torch.where(zoo.layout.learned().to(low.device), weights, torch.maximum(weights, low)))


def pca_gaussian(
    zoo: Zoo, number: int, k: int | None = None, scale: float = 1.0, remainder: float = 0.0, seed: int = 0
) -> Zoo:
    """The Gaussian of the zoo's first k principal components (None: all), `scale` times as wide.

    remainder: as `Coordinates.zoo`. What a flow of ours is before any training. Raises what `coordinates` does.
    """
    return gaussian_of(coordinates(zoo, k), number, scale, remainder, seed)


def gaussian_of(c: Coordinates, number: int, scale: float = 1.0, remainder: float = 0.0, seed: int = 0) -> Zoo:
    """`pca_gaussian` of coordinates that are known."""
    draws = torch.randn(number, len(c.basis), generator=torch.Generator().manual_seed(seed)).to(c.basis)
    return c.zoo(scale * c.deviations * draws, remainder=remainder, seed=seed + 1)


def _drawn(zoo: Zoo, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Row numbers; those of a row are different."""
    if shape[1] > len(zoo):
        raise ValueError(f"{shape[1]} different networks asked for, the zoo has {len(zoo)}")
    random = np.random.default_rng(seed)
    return np.stack([random.choice(len(zoo), shape[1], replace=False) for _ in range(shape[0])])

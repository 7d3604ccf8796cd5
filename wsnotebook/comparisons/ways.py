"""Ways of writing networks down as rows of numbers: weights, their statistics and components, latents, a flow's noise.

What is fitted is fitted to the networks that are seen. Another way is one more `Representation`: a name and a function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsnotebook import symmetry
from wsnotebook.methods import properties
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.sampling import integrate, times
from wsnotebook.methods.tokens import Embedder
from wsnotebook.methods.weight_flow import Flow
from wsnotebook.training import check_choice
from wsnotebook.zoo.value import Zoo

BACK = 32  # steps of the flow's way back
PARTS = {"mean": "mean", "layers": "layers", "sequence": "all"}  # of latents, and what `properties.POOLED` calls them


class Networks(NamedTuple):
    """The same networks twice, row by row."""

    raw: Zoo  # their units as they were trained
    aligned: Zoo  # ... in one order for all, as of `symmetry.align`

    def filter(self, rows) -> "Networks":
        return Networks(self.raw.filter(rows), self.aligned.filter(rows))

    def split(self, shares: Sequence[float], seed: int) -> list["Networks"]:
        """As `Zoo.split`."""
        parts = (zoo.split(shares, seed) for zoo in self)
        return [Networks(*part) for part in zip(*parts, strict=True)]


def networks(zoo: Zoo, x: Tensor | None = None, seed: int = 0) -> tuple[Networks, symmetry.Alignment]:
    """A zoo as it is and aligned to the best of its networks; earlier snapshots follow their model's last.

    x (b, ...): a sample input, needed for your own networks alone. Raises ValueError without validation accuracies.
    """
    last = zoo.filter(last_rows(zoo))
    best = int(np.argmax(properties.fact_of(last, "validation_accuracy")))
    order = symmetry.align(last, reference=best, seed=seed, x=x)
    return Networks(zoo, order.zoo if len(last) == len(zoo) else order.carry(zoo)), order


def last_rows(zoo: Zoo) -> np.ndarray:
    """Rows of each model's last snapshot; all, where no fact tells the step."""
    return properties.last_snapshots(zoo) if "step" in zoo.facts else np.arange(len(zoo))


@dataclass(frozen=True)
class Representation:
    """A way of writing networks down."""

    name: str  # as `plots.methods.style` takes it
    features: Callable[[Zoo], np.ndarray | Tensor]  # n networks -> (n, f)
    aligned: bool = True  # whether it is given the aligned networks

    def of(self, networks: Networks) -> np.ndarray:
        """(n, f) float64."""
        found = self.features(networks.aligned if self.aligned else networks.raw)
        return np.asarray(found.cpu() if torch.is_tensor(found) else found, dtype=float)


def of_weights(seen: Networks, k: int) -> list[Representation]:
    """Weights as they are and aligned, s(W) in both ways, and k principal components of the networks seen.

    Raises ValueError when these span fewer than k directions.
    """
    pca = coordinates(without_activations(seen.aligned), k)
    return [
        Representation("raw weights", weights, aligned=False),
        Representation("aligned weights", weights),
        Representation("statistics s(W)", properties.weight_statistics, aligned=False),
        Representation("statistics s(W), tensors", partial(properties.weight_statistics, by="tensor"), aligned=False),
        Representation("PCA", lambda zoo: pca.encode(zoo.weights)),
    ]


def of_embedder(method: str, embedder: Embedder, parts: Sequence[str]) -> list[Representation]:
    """An embedder's latents: their mean, the mean and deviation of every layer's, or all; parts: of `PARTS`."""

    def latents(part: str, zoo: Zoo) -> Tensor:
        check_choice("part", part, PARTS)
        return properties.pooled(embedder, embedder.embed(zoo), PARTS[part])

    return [Representation(f"{method}, {part}", partial(latents, part)) for part in parts]


def of_flow(flow: Flow) -> Representation:
    """The noise that a flow makes networks of."""
    return Representation("weight flow", partial(noise, flow))


def weights(zoo: Zoo) -> Tensor:
    """All that is learned, (n, f)."""
    return zoo.weights[:, zoo.layout.learned()]


def without_activations(zoo: Zoo) -> Zoo:
    """Its networks as rows of numbers alone: coordinates and flows want one activation, but here nothing is decoded."""
    return replace(zoo, facts={name: values for name, values in zoo.facts.items() if name != "activation"})


def noise(flow: Flow, zoo: Zoo, steps: int = BACK) -> Tensor:
    """The noise (n, k) that a flow makes these networks of, in the source's units: its equation from t = 1 to 0."""
    z = flow.coordinates.encode(zoo.weights)
    path = integrate(lambda x, t: flow.network(x, t[None], None), z, times(steps).flip(0))
    return path[-1] / (flow.config.source * flow.coordinates.rms)

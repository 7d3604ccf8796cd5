"""Latents looked at: their spread over a network's depth, models' ways while they train, who is near whom.

After Schuerholt et al. 2024, "SANE" (figures 2 and 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from wsnotebook.evaluation.distances import same_model
from wsnotebook.methods.properties import Target, fact_of, layer_rows
from wsnotebook.methods.tokens import Embedder
from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True, eq=False)
class LayerSpread:
    """How far the latents of a layer's rows scatter, among networks of similar accuracy (or another fact)."""

    layers: tuple[str, ...]
    fact: str
    groups: tuple[tuple[float, float], ...]  # the fact's smallest and largest value in each, rising
    deviation: np.ndarray  # (groups, layers) root mean square distance to the layer's mean in the group, a dimension


def layer_spread(embedder: Embedder, zoo: Zoo, fact: str = "test_accuracy", groups: int = 3) -> LayerSpread:
    """Deviation of latents over networks and rows, layer by layer, in groups of equally many networks by a fact.

    Raises ValueError for a fact that is missing or no number, and more groups than networks.
    """
    y, z = _numbers(zoo, fact), embedder.embed(zoo)
    if not 1 <= groups <= len(zoo):
        raise ValueError(f"groups={groups}: expected 1 .. {len(zoo)}, the number of networks")
    parts, layers = np.array_split(np.argsort(y, kind="stable"), groups), layer_rows(embedder)
    deviation = [
        [float(z[part][:, rows].flatten(0, 1).var(0, correction=0).mean()) for rows in layers] for part in parts
    ]
    ends = tuple((float(y[part].min()), float(y[part].max())) for part in parts)
    return LayerSpread(embedder.standardised.tokens.layers, fact, ends, np.sqrt(deviation))


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Snapshots of models in the plane of the first two principal axes of all mean latents."""

    points: np.ndarray  # (n, 2) of all networks of the zoo
    shares: np.ndarray  # (2,) of the variance
    fact: str
    values: np.ndarray  # (n,) the fact's
    ways: dict[int, np.ndarray]  # {model: its rows, by step}


def trajectories(
    embedder: Embedder, zoo: Zoo, models: Sequence[int] | None = None, fact: str = "test_accuracy"
) -> Trajectories:
    """The ways of models (fact "model"; None: all) through latent space while they were trained.

    Raises ValueError for a model or fact that is not there, and fewer than two networks.
    """
    values, owners, step = _numbers(zoo, fact), fact_of(zoo, "model"), fact_of(zoo, "step")
    models = np.unique(owners) if models is None else np.asarray(models)
    if unknown := set(models.tolist()) - set(owners.tolist()):
        raise ValueError(f"models: {min(unknown)} is none of the zoo's {len(np.unique(owners))} models")
    if len(zoo) < 2:
        raise ValueError(f"zoo: {len(zoo)} networks, expected at least two to span a plane")
    z = embedder.embed(zoo).mean(1).double().cpu().numpy()
    left, sizes, _ = linalg.svd(z - z.mean(0), full_matrices=False)
    points, variance = np.zeros((len(z), 2)), np.zeros(2)
    points[:, : len(sizes)], variance[: len(sizes)] = (left * sizes)[:, :2], sizes[:2] ** 2
    order = np.argsort(step, kind="stable")
    ways = {int(model): order[owners[order] == model] for model in models}
    return Trajectories(points, variance / max((sizes**2).sum(), np.finfo(float).tiny), fact, values, ways)


def nearest_models(embedder: Embedder, zoo: Zoo, row: int, k: int = 5) -> Zoo:
    """The k other models whose mean latents come nearest to a row's, a snapshot of each, with the fact "distance".

    Raises ValueError for a row that is not there, and fewer than k other models.
    """
    if not 0 <= row < len(zoo):
        raise ValueError(f"row={row}: expected 0 .. {len(zoo) - 1}")
    z = embedder.embed(zoo).mean(1).double()
    distance = (z - z[row]).norm(dim=1).cpu().numpy()
    others = np.flatnonzero(~same_model(zoo)[row])
    order = others[np.argsort(distance[others], kind="stable")]
    owners = zoo.facts.get("model", np.arange(len(zoo)))
    _, first = np.unique(owners[order], return_index=True)  # each model's nearest snapshot
    if not 1 <= k <= len(first):
        raise ValueError(f"k={k}: expected 1 .. {len(first)}, the number of other models")
    near = zoo.filter(order[np.sort(first)[:k]])
    return near.derived(near.weights, distance=distance[order[np.sort(first)[:k]]])


def _numbers(zoo: Zoo, fact: str) -> np.ndarray:
    y = Target(fact).values(zoo)
    if y.dtype.kind != "f":
        raise ValueError(f"fact {fact!r} has strings, expected numbers")
    return y

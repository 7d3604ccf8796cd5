"""Distance of networks in weight space: to the nearest of another zoo, or of their own.

The plain distance is inflated by weights whose input is always zero (a pixel at MNIST's border): they keep their
initial noise and change nothing. Weighted by the mean square of each weight's input, they do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from wsnotebook.layout import Layout

if TYPE_CHECKING:
    from wsnotebook.zoo.value import Zoo

BLOCK = 2**23  # float64 numbers at a time
ROWS = 256  # of x at a time
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest network of n networks each."""

    distance: np.ndarray  # (n,)
    index: np.ndarray  # (n,) its row


def nearest(zoo: Zoo, training_zoo: Zoo, moments: Tensor | None = None) -> Nearest:
    """The training network nearest to each of the zoo's: distance^2 = sum_i moments_i (a_i - b_i)^2.

    moments (d,): as of `input_moments`; None is the Euclidean distance without running statistics. Both zoos should be
    aligned to the same reference. Raises ValueError when the two do not fit, or the moments do not.
    """
    _check_same_architecture(zoo, training_zoo)
    return _nearest(zoo, training_zoo, moments, np.zeros((len(zoo), len(training_zoo)), bool))


def leave_one_out(zoo: Zoo, moments: Tensor | None = None) -> Nearest:
    """For each network the nearest other of the same zoo, snapshots of the same model (fact "model") left out.

    Raises ValueError for a zoo of one model.
    """
    return _nearest(zoo, zoo, moments, same_model(zoo))


def same_model(zoo: Zoo) -> np.ndarray:
    """(n, n) bool: pairs that are one network, or snapshots of one. Raises ValueError for a zoo of one model."""
    models = zoo.facts.get("model", np.arange(len(zoo)))
    same = models[:, None] == models
    if same.all():
        raise ValueError(f"{len(zoo)} networks of one model: a network's nearest other needs at least two models")
    return same


def _nearest(zoo: Zoo, other: Zoo, moments: Tensor | None, excluded: np.ndarray) -> Nearest:
    moments = zoo.layout.learned().double() if moments is None else _checked(moments, zoo.layout)
    moments, training = moments.to(zoo.weights.device), other.weights.to(zoo.weights.device)
    squares = _squared_distances(zoo.weights, training, moments)
    index = np.where(excluded, np.inf, squares).argmin(1)
    distance = np.empty(len(zoo))
    for part in np.array_split(np.arange(len(zoo)), -(-len(zoo) * zoo.layout.d // BLOCK)):
        gap = zoo.weights[part].double() - training[index[part]]  # the winner's distance is exact, 0 for a copy
        distance[part] = (gap.square_() @ moments).sqrt_().cpu().numpy()
    return Nearest(distance, index)


def _squared_distances(a: Tensor, b: Tensor, moments: Tensor) -> np.ndarray:
    """(n, m) float64 by matrix products, some columns at a time; a (n, d), b (m, d), moments (d,)."""
    columns = max(1, BLOCK // (len(a) + len(b)))
    out = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for some_a, some_b, some in zip(a.split(columns, 1), b.split(columns, 1), moments.split(columns), strict=True):
        centre = some_b.double().mean(0)
        x, y = ((part.double() - centre) * some.sqrt() for part in (some_a, some_b))
        out += x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return out.cpu().numpy()


@torch.no_grad()
def input_moments(zoo: Zoo, x: Tensor, reference: int = 0) -> Tensor:
    """(d,) float64: for every weight the mean square of the number it multiplies, over x (rows, ...) and positions.

    Inside the network these are the reference row's, so the zoo should be aligned to it. Linear layers and convolutions
    have them; biases, norms and other tensors count 1, running statistics 0.
    """
    if len(x) == 0:
        raise ValueError("x: no rows; expected training inputs")
    network = zoo.module(reference).to(x.device)
    layers = {}
    for name in zoo.layout.names:
        owner, _, tensor = name.rpartition(".")
        if tensor == "weight" and isinstance(network.get_submodule(owner), LAYERS):
            layers[name] = network.get_submodule(owner)
    sums = {name: torch.zeros_like(layer.weight, dtype=torch.float64) for name, layer in layers.items()}
    positions = dict.fromkeys(layers, 0)

    def add(name: str, layer: nn.Module, h: Tensor) -> None:
        # a layer is linear in its weights: applied to h^2, the derivative by a weight is the sum of its inputs' squares
        with torch.enable_grad():
            out = layer.forward(h.square())
            sums[name] += torch.autograd.grad(out.sum(), layer.weight)[0]
        positions[name] += out.numel() // len(layer.weight)

    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: add(name, layer, inputs[0]))
    for part in x.split(ROWS):
        network(part)
    moments = zoo.layout.unflatten(zoo.layout.learned().double())  # views
    for name, total in sums.items():
        if positions[name]:
            moments[name].copy_(total / positions[name])
    return zoo.layout.flatten(moments)


def _checked(moments: Tensor, layout: Layout) -> Tensor:
    moments = torch.as_tensor(moments, dtype=torch.float64)
    if moments.shape != (layout.d,) or not (moments >= 0).all() or moments.isinf().any():
        raise ValueError(
            f"moments: shape {tuple(moments.shape)}, from {float(moments.min())} to {float(moments.max())}; expected "
            f"({layout.d},) finite numbers from 0 up, as input_moments gives"
        )
    return moments


def _check_same_architecture(zoo: Zoo, other: Zoo) -> None:
    if zoo.layout != other.layout or not len(zoo) or not len(other):
        raise ValueError(
            f"zoo: {len(zoo)} x {zoo.network} with d={zoo.layout.d}; training zoo: {len(other)} x {other.network} with "
            f"d={other.layout.d}; expected at least one network each, of one layout"
        )

"""How similar layers of several networks are, by their gradients, and how well that is known.

With a, b the gradients of the loss with respect to composed weights, summed over two halves of many minibatches, and
crop the leading outputs and inputs that layers l, m have in common:

    c(l, m) = (cos(crop a_l, crop b_m) + cos(crop b_l, crop a_m)) / 2    floor(l) = cos(a_l, b_l)          (1)
    similarity(l, m) = c(l, m) / sqrt(floor(l) floor(m)), within [-1, 1]                                   (2)

The halves have no minibatch in common, so noise that two layers of a network have in common does not make them similar.
The public code has the cosine of one minibatch's gradients, in one network.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from wsnotebook.methods.superweight_clusters import Layer, shuffled
from wsnotebook.methods.superweights import Bank
from wsnotebook.training import check_choice

KINDS = ("gradient", "gradient and weight")
RESOLVED = 0.05  # the lowest floor that a cosine is divided by: below it, similarities shrink towards 0


@dataclass(frozen=True, eq=False)
class Similarities:
    """How similar n layers are; clusters are made within the initial ones."""

    layers: tuple[Layer, ...]
    raw: np.ndarray  # (n, n) equation (1), nan for kernels of different sizes
    floor: np.ndarray  # (n,) what a layer has with itself
    initial: tuple[int, ...]  # number of each layer's initial cluster

    @property
    def matrix(self) -> np.ndarray:
        """(n, n) equation (2), 1 on the diagonal where the floor is resolved."""
        floor = np.sqrt(self.floor.clip(RESOLVED, 1))
        return (self.raw / floor / floor[:, None]).clip(-1, 1)

    def shuffled(self, seed: int) -> "Similarities":
        """The same numbers for layers in random order, each kernel size by itself: the control, with equal sizes."""
        kernels = {}
        for layer in self.layers:
            kernels.setdefault(layer.shape[2:], []).append(layer)
        dealt = {group[0].shape[2:]: iter(group) for group in shuffled(list(kernels.values()), seed)}
        return replace(self, layers=tuple(next(dealt[layer.shape[2:]]) for layer in self.layers))

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        raw = [[None if math.isnan(value) else value for value in row] for row in self.raw.tolist()]
        layers = [asdict(layer) for layer in self.layers]
        return {"layers": layers, "raw": raw, "floor": self.floor.tolist(), "initial": list(self.initial)}

    @classmethod
    def from_dict(cls, parts: dict) -> "Similarities":
        """What `to_dict` described, also after JSON."""
        layers = tuple(Layer(**layer | {"shape": tuple(layer["shape"])}) for layer in parts["layers"])
        raw = np.array(parts["raw"], dtype=float)  # None becomes nan
        return cls(layers, raw, np.array(parts["floor"]), tuple(parts["initial"]))


def similarities(
    bank: Bank,
    split: tuple[Tensor, Tensor],
    *,
    kind: str = "gradient",
    batches: int = 32,
    batch: int = 128,
    seed: int = 0,
) -> Similarities:
    """Similarities of all layers that a bank shares, in evaluation mode; its clusters are the initial ones.

    kind: of what the cosines are; "gradient and weight": the mean of the two. batches: minibatches, of up to `batch`
    rows of split (x, y); one of the halves has every other one.
    Raises ValueError for fewer than 2 batches, or fewer rows than batches.
    """
    check_choice("kind", kind, KINDS)
    layers = [layer for cluster in bank.plan.clusters for layer in cluster]
    initial = tuple(g for g, cluster in enumerate(bank.plan.clusters) for _ in cluster)
    bank = copy.deepcopy(bank).eval()
    weights = {
        m: {name: weight.detach().requires_grad_() for name, weight in own.items()} for m, own in bank.compose().items()
    }
    leaves = [weights[layer.member][f"{layer.name}.weight"] for layer in layers]
    halves = [[torch.zeros_like(leaf) for leaf in leaves] for _ in range(2)]
    for number, (x, y) in enumerate(minibatches(split, batches, batch, seed)):
        loss = sum(F.cross_entropy(functional_call(bank.members[m], own, (x,)), y) for m, own in weights.items())
        for total, gradient in zip(halves[number % 2], torch.autograd.grad(loss, leaves), strict=True):
            total += gradient
    cosines = crop_cosines(*halves)
    if kind != "gradient":
        cosines = (cosines + crop_cosines([leaf.detach() for leaf in leaves])) / 2
    return Similarities(tuple(layers), (cosines + cosines.T) / 2, cosines.diagonal().copy(), initial)


def minibatches(split: tuple[Tensor, Tensor], batches: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = split
    if not 2 <= batches <= len(x):
        raise ValueError(f"batches={batches} of {len(x)} rows: expected at least 2, one for each half, and a row each")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    for rows in order[: batches * batch].tensor_split(batches):
        yield x[rows], y[rows]


def crop_cosines(a: Sequence[Tensor], b: Sequence[Tensor] | None = None) -> np.ndarray:
    """(n, n) cosines of tensors a[l] and b[m] (o, i, *kernel), each cropped to the outputs and inputs of both.

    b: of the same shapes as a; None: a itself. nan for different kernels.
    """
    b = a if b is None else b
    shapes = {}
    for n, tensor in enumerate(a):
        shapes.setdefault(tuple(tensor.shape), []).append(n)
    cosines = np.full((len(a), len(a)), np.nan)
    for (s, rows), (t, columns) in combinations_with_replacement(shapes.items(), 2):
        if s[2:] == t[2:]:
            crop = tuple(map(slice, map(min, s[:2], t[:2])))
            unit = {
                key: F.normalize(torch.stack([side[n][crop] for n in numbers]).flatten(1).double(), eps=1e-300)
                for key, side, numbers in (("as", a, rows), ("bs", b, rows), ("at", a, columns), ("bt", b, columns))
            }
            cosines[np.ix_(rows, columns)] = (unit["as"] @ unit["bt"].T).cpu().numpy()
            cosines[np.ix_(columns, rows)] = (unit["at"] @ unit["bs"].T).cpu().numpy()
    return cosines

"""Layers of several networks that a bank of SuperWeights can make, their clusters, and the shapes in a cluster."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn


@dataclass(frozen=True)
class Layer:
    """A layer whose weight the bank makes."""

    member: int  # the network's number
    name: str  # the module's
    shape: tuple[int, ...]  # (o, i, *kernel): outputs, inputs, and the kernel, () for a linear layer

    def __str__(self) -> str:
        return f"{self.member}:{self.name}"


def shareable(
    networks: Sequence[nn.Module], classifier: bool = False
) -> tuple[list[Layer], list[tuple[int, str, str]]]:
    """Layers that can share, network by network in their order, and (member, module, why) of parameters that cannot.

    Convolutions in two dimensions and linear layers; the last linear layer of a network only with `classifier`.
    """
    layers, private = [], []
    for member, network in enumerate(networks):
        last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
        owners = [id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False)]
        for name, module in network.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if not own:
                continue
            if not isinstance(module, nn.Conv2d | nn.Linear):
                reason = f"{type(module).__name__}: only Conv2d and Linear share"
            elif "weight" not in own:
                reason = "its weight is computed (a parametrisation)"
            elif isinstance(module, nn.Conv2d) and module.groups > 1:
                reason = f"a convolution in {module.groups} groups"
            elif owners.count(id(module.weight)) > 1:
                reason = "its weight is tied to another module's"
            elif name in last and not classifier:
                reason = "the classifier"
            else:
                layers.append(Layer(member, name, tuple(module.weight.shape)))
                reason = None if module.bias is None else "only its weight is shared, not its bias"
            private += [(member, name, reason)] if reason else []
    return layers, private


def by_member(layers: Sequence[Layer]) -> dict[int, list[Layer]]:
    """{member: its layers}, the member with most layers first, the others in their order."""
    members = {}
    for layer in layers:
        members.setdefault(layer.member, []).append(layer)
    deepest = max(members, key=lambda member: len(members[member]))
    return {deepest: members[deepest]} | members


def depth_bins(layers: Sequence[Layer], bins: int) -> list[list[Layer]]:
    """Clusters by kernel size, then by depth: about `bins` in all, in proportion to the deepest network's layers."""
    members = by_member(layers)
    deepest = next(iter(members.values()))
    clusters = []
    for kernel in sorted({layer.shape[2:] for layer in layers}):
        parts = max(1, round(bins * sum(layer.shape[2:] == kernel for layer in deepest) / len(deepest)))
        found = [[] for _ in range(parts)]
        for own in members.values():
            own = [layer for layer in own if layer.shape[2:] == kernel]
            few, more = divmod(len(own), parts)  # the first `more` parts have one layer more
            ends = [part * few + min(part, more) for part in range(parts + 1)]
            for cluster, (start, end) in zip(found, pairwise(ends), strict=True):
                cluster += own[start:end]
        clusters += [cluster for cluster in found if cluster]
    return clusters


def shuffled(clusters: Sequence[Sequence[Layer]], seed: int) -> list[list[Layer]]:
    """Clusters of the same sizes, each kernel size's layers dealt at random: the control of any rule for grouping."""
    random_order, dealt = random.Random(seed), {}
    for layer in (layer for cluster in clusters for layer in cluster):
        dealt.setdefault(layer.shape[2:], []).append(layer)
    for layers in dealt.values():
        random_order.shuffle(layers)
    return [[dealt[cluster[0].shape[2:]].pop() for _ in cluster] for cluster in clusters]


def checked(clusters: Sequence[Sequence], layers: Sequence[Layer]) -> list[list[Layer]]:
    """Clusters that a user made of layers, or of (member, module name), as layers in order of member and depth.

    Raises ValueError for an empty cluster, one of several kernel sizes, and a layer that cannot share or comes twice.
    """
    known, used = {(layer.member, layer.name): layer for layer in layers}, set()
    order = {key: position for position, key in enumerate(known)}
    found = []
    for g, cluster in enumerate(clusters):
        keys = [(item.member, item.name) if isinstance(item, Layer) else tuple(item) for item in cluster]
        for key in keys:
            if key not in known:
                raise ValueError(
                    f"clusters[{g}]: {key} is no layer that can share; those are {', '.join(map(str, layers))}"
                )
            if key in used:
                raise ValueError(f"clusters[{g}]: {key} comes twice; a layer is in one cluster")
            used.add(key)
        kernels = {known[key].shape[2:] for key in keys}
        if len(kernels) != 1:
            raise ValueError(
                f"clusters[{g}]: kernels {sorted(kernels)}; expected at least one layer, and one kernel size"
            )
        found.append([known[key] for key in sorted(keys, key=order.get)])
    return found


def separated(rows: Sequence[int], labels: Sequence) -> tuple[tuple[int, ...], list[int]]:
    """Vectors of users once those that have one vector and different labels do not share, and what each is a copy of.

    rows: the vector of each user, of 0, 1, ...; the first label of a vector keeps it, copies follow the old vectors.
    """
    sources, found = list(range(1 + max(rows))), {}
    for row, label in zip(rows, labels, strict=True):
        if (row, label) not in found:
            taken = row in found.values()
            found[row, label] = len(sources) if taken else row
            sources += [row] if taken else []
    return tuple(found[pair] for pair in zip(rows, labels, strict=True)), sources


# ---- the shapes of a cluster -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Increment:
    """What a shape adds to the one before it, and which part of that a larger shape of the ladder still shows."""

    blocks: tuple[tuple[int, int, int, int], ...]  # (first row, end, first column, end), the numbers in this order
    size: int  # M
    shown: tuple[tuple[int, int], ...]  # (rows, columns) not cropped in a layer of shape S_r, S_(r+1), ...


def ladder(shapes: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[Increment]]:
    """Distinct shapes (o, i, *kernel) by size, and the increment that each of them needs."""
    shapes = sorted(set(shapes), key=lambda shape: (math.prod(shape), shape))
    increments = []
    for r, ((o, i, *kernel), (before_o, before_i, *_)) in enumerate(zip(shapes, [(0, 0), *shapes], strict=False)):
        blocks = [(0, min(o, before_o), before_i, i), (before_o, o, 0, i)]  # new inputs of old outputs, new outputs
        blocks = tuple(block for block in blocks if block[0] < block[1] and block[2] < block[3])
        size = sum((b - a) * (d - c) for a, b, c, d in blocks) * math.prod(kernel)
        shown = [tuple(min(s[axis] for s in shapes[r : j + 1]) for axis in (0, 1)) for j in range(r, len(shapes))]
        increments.append(Increment(blocks, size, tuple(shown)))
    return shapes, increments


def users_of(cluster: Sequence[Layer], shapes: list[tuple[int, ...]], r: int) -> list[int]:
    """Positions in the cluster of the layers that use increment r of its ladder of shapes."""
    return [position for position, layer in enumerate(cluster) if shapes.index(layer.shape) >= r]

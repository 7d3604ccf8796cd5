"""Which units the entries of an axis belong to, and what a specification of them says about a whole network.

An axis is a tuple of segments laid end to end. A permutation p of a group is read as: new unit i was old unit p[i].
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """A stretch of an axis: `size` units of a group with `block` neighbouring entries each; None is held fixed."""

    group: str | None
    size: int
    block: int = 1

    def __str__(self) -> str:
        return "-" if self.group is None else self.group + f" x {self.block}" * (self.block > 1)


Axis = tuple[Segment, ...]


@dataclass(frozen=True)
class Group:
    """Units that one permutation moves, wherever they occur.

    With heads > 1 it moves whole heads, of size / heads units each, and the units within a head; all groups of one
    `attention` share the order of its heads. homogeneous: between its incoming and its outgoing weights lies nothing
    but positively homogeneous functions (ReLU, pooling), so that units may also be scaled.
    """

    name: str
    size: int
    heads: int = 1
    attention: str = ""
    homogeneous: bool = False


@dataclass(frozen=True)
class Specification:
    """Which permutations keep a network's function: the axes of every tensor, by the groups they carry."""

    axes: dict[str, tuple[Axis, ...]]  # of every tensor of the state dict
    groups: dict[str, Group]
    fixed_because: dict[str, str]  # {tensor: why some of its entries are held fixed}; inputs and outputs are not listed
    streams: frozenset[str]  # groups that enter or leave an attention: a transformer's residual stream

    def __str__(self) -> str:
        axes = {name: ", ".join(" + ".join(map(str, axis)) for axis in axes) for name, axes in self.axes.items()}
        wide = max([len(name) for name in axes] + [6])
        lines = [f"{'tensor':{wide}}  axes", *(f"{name:{wide}}  {text}" for name, text in axes.items()), "", "groups"]
        for g in self.groups.values():
            heads = f", {g.heads} heads of {g.attention}" if g.attention else ""
            lines.append(f"{g.name:{wide}}  {g.size} units{heads}{', homogeneous' if g.homogeneous else ''}")
        if self.fixed_because:
            lines += ["", "fixed", *(f"{name:{wide}}  {why}" for name, why in self.fixed_because.items())]
        return "\n".join(lines)

    def attentions(self) -> dict[str, list[Group]]:
        """{attention: its groups}, whose heads move together."""
        found: dict[str, list[Group]] = {}
        for group in self.groups.values():
            if group.attention:
                found.setdefault(group.attention, []).append(group)
        return found

    def apply(self, state: dict[str, Tensor], permutations: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state {tensor: (n, ...)} of n networks with their units in a new order, by {group: (n, size) int64}.

        Groups left out keep their order.
        """
        return {name: gather(tensor, self.axes[name], permutations) for name, tensor in state.items()}

    def random(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """n random permutations of every group that keep the network's function: {group: (n, size) int64}."""
        orders = {a: shuffles((n, groups[0].heads), generator) for a, groups in self.attentions().items()}
        return {
            name: from_heads(orders[g.attention], shuffles((n, g.heads, g.size // g.heads), generator))
            if g.attention
            else shuffles((n, g.size), generator)
            for name, g in self.groups.items()
        }


def shuffles(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform permutations along the last axis, (*shape) int64."""
    return torch.rand(shape, generator=generator).argsort(-1)


def from_heads(order: Tensor, within: Tensor) -> Tensor:
    """The permutation (n, heads * h) that puts old head order[i] at place i with its units in the order within[i].

    order: (n, heads); within: (n, heads, h), places in the old head.
    """
    return (order[..., None] * within.shape[-1] + within).flatten(1)


def gather(tensor: Tensor, axes: tuple[Axis, ...], permutations: dict[str, Tensor]) -> Tensor:
    """A tensor (n, *shape) of n networks with its axes in a new order, by {group: (n, size)}."""
    moved = [a for a, axis in enumerate(axes) if any(segment.group in permutations for segment in axis)]
    if not moved:
        return tensor
    rank = moved[-1] + 1  # the axes behind the last moved one are copied as they are
    index = [torch.arange(len(tensor)).reshape(len(tensor), *[1] * rank)]
    for a, axis in enumerate(axes[:rank]):
        places = _places(axis, permutations)  # (n or 1, length)
        index.append(places.reshape(len(places), *[1] * a, places.shape[1], *[1] * (rank - 1 - a)))
    return tensor[tuple(index)]


def _places(axis: Axis, permutations: dict[str, Tensor]) -> Tensor:
    """For every place of an axis the old place of what belongs there, (n, length); (1, length) if nothing moves."""
    parts, start = [], 0
    for group, size, block in axis:
        units = permutations.get(group, torch.arange(size)[None])  # (n, size)
        parts.append((start + units[..., None] * block + torch.arange(block)).flatten(1))
        start += size * block
    n = max(map(len, parts))
    return torch.cat([part.expand(n, -1) for part in parts], 1)

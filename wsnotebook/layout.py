"""Layout: how a network's tensors lie in one row of numbers.

A row (d,) and a state dict {name: tensor} are two views of the same network; `flatten` and `unflatten` are
exact inverses.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KINDS = ("weight", "bias", "norm", "statistic")
COUNTERS = r"num_batches_tracked$"  # to exclude: batch normalisation's integers, which say nothing of the function


@dataclass(frozen=True)
class Layout:
    """Names, shapes and kinds of a network's tensors, in flattening order.

    Kinds: "weight" (matrices and kernels), "bias", "norm" (scale and shift of normalisation layers), "statistic"
    (buffers). Raises ValueError for parts that do not fit together.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    def __post_init__(self):
        alike = len({len(self.names), len(self.shapes), len(self.kinds), len(set(self.names))}) == 1
        sizes = [n for shape in self.shapes for n in shape]
        if not alike or set(self.kinds) - set(KINDS) or not all(isinstance(n, int) and n >= 0 for n in sizes):
            raise ValueError(f"no layout: names {self.names}, shapes {self.shapes}, kinds {self.kinds}")

    @classmethod
    def of(cls, network: nn.Module, kinds: tuple[str, ...] = KINDS, include: str = "", exclude: str = "") -> "Layout":
        """The layout of a network's tensors of the given kinds, in the order of its state dict.

        include, exclude: regular expressions searched in the tensor's name; empty means all, none.
        Raises ValueError when nothing is left, a kind is unknown, or two tensors are one (tied) parameter.
        """
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"kinds: unknown {sorted(unknown)}; the kinds are {', '.join(KINDS)}")
        found = _kinds(network)
        state = network.state_dict()
        names = tuple(
            name
            for name, kind in found.items()
            if kind in kinds and re.search(include, name) and not (exclude and re.search(exclude, name))
        )
        if not names:
            raise ValueError(
                f"no tensor of kind {'/'.join(kinds)} matches include={include!r}, exclude={exclude!r}; "
                f"the network has {', '.join(found) or 'no tensors'}"
            )
        return cls(names, tuple(tuple(state[n].shape) for n in names), tuple(found[n] for n in names))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def d(self) -> int:
        """Length of the row."""
        return sum(self.sizes)

    def flatten(self, state: dict[str, Tensor]) -> Tensor:
        """State dict -> (d,), or that of several networks, {name: (..., *shape)} -> (..., d).

        Raises ValueError naming the first tensor that is missing or of another shape.
        """
        batch = None  # the leading axes, the same for all
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in state:
                raise ValueError(
                    f"state has no tensor {name!r}; it has {', '.join(state) or 'none'}: another architecture?"
                )
            seen = tuple(state[name].shape)
            batch = seen[: len(seen) - len(shape)] if batch is None else batch
            if seen != batch + shape:
                raise ValueError(f"{name}: shape {seen}, expected {batch + shape}: another architecture?")
        return torch.cat([state[n].reshape(*batch, size) for n, size in zip(self.names, self.sizes, strict=True)], -1)

    def unflatten(self, rows: Tensor) -> dict[str, Tensor]:
        """(..., d) -> {name: (..., *shape)}, views of the rows. Raises ValueError when the length differs."""
        if rows.shape[-1:] != (self.d,):
            raise ValueError(
                f"row has shape {tuple(rows.shape)}, the layout needs (..., {self.d}): another architecture?"
            )
        parts = rows.split(self.sizes, -1)
        batch = tuple(rows.shape[:-1])
        return {n: part.view(batch + s) for n, part, s in zip(self.names, parts, self.shapes, strict=True)}

    def learned(self) -> Tensor:
        """(d,) bool: whether the number at each place of the row is learned, not a running statistic."""
        return torch.tensor([kind != "statistic" for kind in self.kinds])[self.tensor_index()]

    def tensor_index(self) -> Tensor:
        """(d,) int64: for each place in the row, the position of its tensor in `names`."""
        return torch.repeat_interleave(torch.arange(len(self.names)), torch.tensor(self.sizes))


def _kinds(network: nn.Module) -> dict[str, str]:
    """{tensor name: kind} for every entry of the state dict, in its order."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    owners = {id(parameter): name for name, parameter in network.named_parameters()}
    if tied := [(owners[id(p)], name) for name, p in parameters.items() if owners[id(p)] != name]:
        raise ValueError(f"tensors {tied[0][0]!r} and {tied[0][1]!r} are one parameter: untie them first, as copies")
    kinds = {}
    for name, tensor in network.state_dict().items():
        owner = network.get_submodule(name.rpartition(".")[0])
        if name not in parameters:
            kinds[name] = "statistic"
        elif "Norm" in type(owner).__name__:
            kinds[name] = "norm"
        else:
            kinds[name] = "weight" if tensor.ndim >= 2 else "bias"
    return kinds


def check_finite(state: dict[str, Tensor], source: str = "state") -> None:
    """Raise ValueError naming the first tensor with a NaN or an infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{source}: tensor {name!r} has {bad} entries that are NaN or infinite out of {tensor.numel()}; "
                "train or load the network again before using its weights"
            )

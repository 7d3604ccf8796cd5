"""Weight matching (Git Re-Basin, Ainsworth et al. 2023, algorithm 1) of many networks to one, in lock-step.

For one group of units with all others held, the best permutation solves a linear assignment problem: similarity of unit
i of the reference to unit j of the model, summed over all tensors the group occurs in. Coordinate descent visits the
groups in a seeded random order, the same for every model. In lock-step: one batched product a visit serves all models;
tensors with one group alone are multiplied once; a model skips a group when nothing around it has changed since.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wsnotebook.symmetry.axes import Specification, gather

SWEEPS = 100  # at most
IMPROVES = 1e-12  # the least relative gain that counts


class Place(NamedTuple):
    """Where a group occurs: entries start .. start + size * block of an axis of a tensor."""

    tensor: str
    axis: int
    start: int
    size: int
    block: int

    def unfold(self, tensor: Tensor) -> Tensor:
        """A row of numbers for every unit: (..., *shape) of the tensor -> (m, size, entries), m networks."""
        part = tensor.narrow(1 + self.axis, self.start, self.size * self.block).movedim(1 + self.axis, 1)
        return part.reshape(len(tensor), self.size, -1)


def places(spec: Specification, movable: set[str], names: list[str]) -> dict[str, list[Place]]:
    """All occurrences of every movable group in these tensors."""
    found: dict[str, list[Place]] = {group: [] for group in spec.groups if group in movable}
    for name in names:
        for a, axis in enumerate(spec.axes[name]):
            start = 0
            for group, size, block in axis:
                if group in movable:
                    found[group].append(Place(name, a, start, size, block))
                start += size * block
    return found


def similarity(found: list[Place], reference: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
    """Inner products of units: (m, size of the reference, size of the model) float64, summed over the places."""
    total = 0
    for place in found:
        units = place.unfold(state[place.tensor])  # (m, size, entries)
        own = place.unfold(reference[place.tensor][None])[0]  # (size, entries)
        total = total + (units @ own.T).double()  # (m, model, reference): one product for all models
    return total.transpose(1, 2)


class Matching:
    """m models on their way to one reference: the permutations so far, and what has yet to be visited.

    reference: {tensor: shape}; state: {tensor: (m, *shape)}, left as it is; both of the tensors that count.
    movable: the groups that may be permuted.
    """

    def __init__(self, spec: Specification, movable: set[str], reference: dict[str, Tensor], state: dict[str, Tensor]):
        self.spec, self.reference = spec, reference
        self.m = len(next(iter(state.values())))
        self.places = places(spec, movable, list(state))
        self.groups = list(self.places)
        touching = {  # the groups of each tensor
            name: [g for g in self.groups if any(p.tensor == name for p in self.places[g])] for name in state
        }
        twice = {  # the same group on two axes of one tensor: the similarity is then linearised
            p.tensor
            for found in self.places.values()
            for p in found
            if any(p.tensor == q.tensor and p.axis != q.axis for q in found)
        }
        shared = {name for name, groups in touching.items() if len(groups) > 1} | twice
        self.alone = {g: [p for p in found if p.tensor not in shared] for g, found in self.places.items()}
        self.joint = {g: [p for p in found if p.tensor in shared] for g, found in self.places.items()}
        self.fixed_part = {  # similarity (m, size, size) in tensors that no other group permutes: one product is enough
            g: similarity(found, reference, state)
            if found
            else torch.zeros(self.m, spec.groups[g].size, spec.groups[g].size, dtype=torch.float64)
            for g, found in self.alone.items()
        }
        self.neighbours = {
            g: [
                i
                for i, h in enumerate(self.groups)
                if any(h in touching[p.tensor] and (h != g or p.tensor in twice) for p in found)
            ]
            for g, found in self.joint.items()
        }
        self.current = {name: state[name].clone() for name in shared}
        self.permutations = {g: torch.arange(spec.groups[g].size).repeat(self.m, 1) for g in self.groups}
        self.waiting = torch.ones(self.m, len(self.groups), dtype=torch.bool)

    def run(self, seed: int) -> Tensor:
        """Visit the groups until nothing improves; each model's sweeps, (m,) int64, the last one without change."""
        generator = np.random.default_rng(seed)
        sweeps = torch.ones(self.m, dtype=torch.int64)
        for _ in range(SWEEPS):
            improved = torch.zeros(self.m, dtype=torch.bool)
            for g in generator.permutation(len(self.groups)):
                improved[self.visit(self.groups[g])] = True
            if not improved.any():
                break
            sweeps += improved
        return sweeps

    def visit(self, group: str) -> Tensor:
        """Give one group of every model that waits for it its best permutation; the rows of the models that gained."""
        column = self.groups.index(group)
        rows = self.waiting[:, column].nonzero()[:, 0]
        self.waiting[rows, column] = False
        if not len(rows):
            return rows
        alone = self.fixed_part[group][rows]  # (r, size, size)
        joint = {place.tensor: self.current[place.tensor][rows] for place in self.joint[group]}
        total = similarity(self.joint[group], self.reference, joint).add_(alone) if joint else alone
        new = torch.from_numpy(assign(total.numpy()))  # (r, size): places in the present order
        gain = (alone.gather(2, new[..., None])[..., 0] - alone.diagonal(dim1=1, dim2=2)).sum(1)  # (r,)
        scale = total.diagonal(dim1=1, dim2=2).abs().sum(1)

        moved = (new != torch.arange(new.shape[1])).any(1).nonzero()[:, 0]  # the others are where they should be
        joint = {name: tensor[moved] for name, tensor in joint.items()}
        after = {name: gather(tensor, self.spec.axes[name], {group: new[moved]}) for name, tensor in joint.items()}
        for name, tensor in joint.items():
            gain[moved] += ((after[name].double() - tensor) * self.reference[name]).flatten(1).sum(1)

        kept = gain[moved] > IMPROVES * scale[moved]
        for name, tensor in after.items():
            self.current[name][rows[moved[kept]]] = tensor[kept]
        moved = moved[kept]
        rows, new = rows[moved], new[moved]
        self.permutations[group][rows] = self.permutations[group][rows].gather(1, new)
        self.fixed_part[group][rows] = alone[moved].gather(2, new[:, None].expand(-1, new.shape[1], -1))
        self.waiting[rows[:, None], torch.tensor(self.neighbours[group], dtype=torch.int64)] = True
        return rows


def assign(similarity: np.ndarray) -> np.ndarray:
    """The best partner of every row, (m, size) int64, by the largest total of (m, size, size)."""
    costs = -similarity
    return np.stack([linear_sum_assignment(cost)[1] for cost in costs])

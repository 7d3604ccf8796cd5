"""A zoo's networks with their units in another order: at random, or aligned to a reference."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from wsnotebook import evaluation, memory, networks
from wsnotebook.layout import Layout
from wsnotebook.symmetry.attention import match_heads
from wsnotebook.symmetry.axes import Specification
from wsnotebook.symmetry.matching import Matching, places
from wsnotebook.symmetry.scaling import balance
from wsnotebook.symmetry.tracing import evaluating, specification
from wsnotebook.zoo.value import Zoo

TOLERANCE = 1e-5  # of the outputs, relative to the largest, before and after a permutation
INPUTS = 8  # random ones, to compare outputs on
ROUNDS = 100  # to the mean, at most
SHRINKS = 1e-4  # the least relative change of the total squared distance that makes another round
PORTION = 2**22  # numbers worked on at once, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Alignment:
    """A zoo's networks with the same functions, their units in the reference's order. n networks of d weights.

    Distances and objectives leave out BN statistics.
    """

    zoo: Zoo  # the aligned networks
    permutations: dict[str, Tensor]  # {group: (n, size)}: new unit i was unit p[i]
    reference: Tensor  # (d,), balanced if they are; for "mean" the final one
    objective_before: np.ndarray  # (n,) inner product with the reference
    objective_after: np.ndarray
    distance_before: np.ndarray  # (n,) Euclidean, to the reference; of the balanced networks if scales were balanced
    distance_after: np.ndarray
    function_error: np.ndarray  # (n,) largest change of a logit
    sweeps: np.ndarray  # (n,) over the groups, in all rounds
    rounds: tuple[float, ...]  # "mean": root mean square distance to the zoo's own mean, at first and after each round
    specification: Specification

    def __repr__(self) -> str:
        before, after = self.distance_before.mean(), self.distance_after.mean()
        error = self.function_error.max()
        return f"Alignment({self.zoo!r}, mean distance {before:.4g} -> {after:.4g}, function error {error:.1e})"

    def carry(self, zoo: Zoo) -> Zoo:
        """Other networks of the same models (fact "model"), such as earlier snapshots, each permuted as its model was.

        Aligned one by one, snapshots of a model would jump between orders. Raises ValueError for a model that was not
        aligned, or was several times, and another architecture.
        """
        if zoo.layout != self.zoo.layout or "model" not in zoo.facts:
            raise ValueError(f"zoo: {zoo!r}; expected networks like the aligned {self.zoo!r}, with the fact model")
        aligned, asked = self.zoo.facts["model"], zoo.facts["model"]
        known, place = np.unique(aligned, return_index=True)
        if len(known) < len(aligned):
            raise ValueError(f"{len(aligned)} aligned networks of {len(known)} models: expected one of each to follow")
        if unknown := set(asked.tolist()) - set(known.tolist()):
            raise ValueError(f"zoo: model {min(unknown)} is none of the {len(known)} that were aligned")
        rows = torch.from_numpy(place[np.searchsorted(known, asked)])
        permutations = {group: p[rows] for group, p in self.permutations.items()}
        return zoo.derived(_permuted(zoo.layout, self.specification, zoo.weights, permutations))


def verify(network: nn.Module, spec: Specification, x: Tensor, seed: int = 0) -> float:
    """Largest change of an output, relative to the largest output, under a random permutation; x (b, ...).

    Computed in float64 with weights moved a little off, so that equal weights (zeros, BN's ones) hide nothing.
    Raises ValueError above 1e-5: the specification does not keep this network's function.
    """
    generator = torch.Generator().manual_seed(seed)
    learned = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    state = {}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor = tensor.double()
            spread = float(tensor.std(correction=0)) or 0.1
            noise = 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) * spread
            tensor = tensor + (noise if name in learned else noise.abs())  # variances stay positive
        state[name] = tensor
    moved = spec.apply({name: tensor[None] for name, tensor in state.items()}, spec.random(1, generator))
    x = x.double() if x.is_floating_point() else x
    before = _outputs(network, state, x)
    after = _outputs(network, {name: tensor[0] for name, tensor in moved.items()}, x)
    change = float((before - after).abs().max() / before.abs().max().clamp(min=1e-30))
    if not change <= TOLERANCE:
        raise ValueError(
            f"{type(network).__name__}: outputs change by {change:.1e} of their size under a permutation by this "
            f"specification, expected at most {TOLERANCE:.0e}: it is another network's, or an operation changes a "
            "tensor in place or depends on the order of units in a way that cannot be seen"
        )
    return change


def permute(zoo: Zoo, seed: int = 0, *, x: Tensor | None = None) -> Zoo:
    """The zoo's networks with the same functions and their units in random order, each network in its own.

    x (b, ...): a sample input, needed for your own networks alone. Fact "parent": the model that each one was.
    """
    spec, _ = _specified(zoo, x)
    permutations = spec.random(len(zoo), torch.Generator().manual_seed(seed))
    weights = _permuted(zoo.layout, spec, zoo.weights, permutations)
    return zoo.derived(weights, parent=zoo.facts.get("model", np.arange(len(zoo))))


@torch.no_grad()
def align(
    zoo: Zoo,
    *,
    reference: int | Tensor | Literal["mean"] = 0,
    scale: bool = False,
    seed: int = 0,
    x: Tensor | None = None,
) -> Alignment:
    """Bring the units of every network into the order in which its weights come closest to the reference's.

    reference: a row of the zoo, a row of weights (d,), or "mean": every network is aligned to the mean of all until
    they come no closer. scale: balance the scales of ReLU units first. seed: of the order in which groups are visited.
    x (b, ...): sample inputs; needed for your own networks alone.
    Weight matching (Ainsworth et al. 2023); heads by TransFusion, a transformer's residual stream stays.
    Assignments are solved on the CPU, so all of it is computed there, and brought back to the weights' device.
    Raises ValueError for an empty zoo, a reference that does not fit, or a network that cannot be followed.
    """
    device, zoo = zoo.weights.device, zoo.to("cpu")
    spec, x = _specified(zoo, x)
    start, fixed = zoo.weights, _row(zoo, reference)
    if scale:
        start = _balanced(zoo.layout, spec, start)
        fixed = None if fixed is None else _balanced(zoo.layout, spec, fixed[None])[0]

    moves = _Moves(zoo.layout, spec, start, seed)
    if fixed is not None:
        moves.towards(fixed)
    else:
        fixed = moves.towards_mean()
    objective_before, distance_before = _compare(zoo.layout, start, fixed)
    objective_after, distance_after = _compare(zoo.layout, moves.weights, fixed)
    return Alignment(
        zoo=zoo.derived(moves.weights).to(device),
        permutations=moves.permutations,
        reference=fixed.to(device),
        objective_before=objective_before,
        objective_after=objective_after,
        distance_before=distance_before,
        distance_after=distance_after,
        function_error=_function_error(zoo, moves.weights, x),
        sweeps=moves.sweeps,
        rounds=tuple(moves.rounds),
        specification=spec,
    )


def _row(zoo: Zoo, reference: int | Tensor | str) -> Tensor | None:
    """The weights (d,) of a reference; None for the mean."""
    if isinstance(reference, Tensor):
        if reference.shape == (zoo.layout.d,) and reference.isfinite().all():
            return reference.to(zoo.weights)
        seen = f"shape {tuple(reference.shape)}{'' if reference.isfinite().all() else ' with NaN or infinities'}"
        wanted = f"a row of ({zoo.layout.d},) finite weights of {zoo.network}"
        raise ValueError(f"reference: {seen}, expected {wanted}: another architecture?")
    if isinstance(reference, int | np.integer) and 0 <= reference < len(zoo):
        return zoo.weights[reference]
    if not (isinstance(reference, str) and reference == "mean"):
        raise ValueError(f'reference={reference!r}: expected "mean", a row of weights, or one of 0 .. {len(zoo) - 1}')
    return None


class _Moves:
    """Networks on their way: their weights now, and the permutations that brought them there."""

    def __init__(self, layout: Layout, spec: Specification, weights: Tensor, seed: int):
        self.layout, self.spec, self.weights, self.seed = layout, spec, weights, seed
        self.permutations = {name: torch.arange(g.size).repeat(len(weights), 1) for name, g in spec.groups.items()}
        self.sweeps = np.zeros(len(weights), np.int64)
        self.rounds: list[float] = []

    def towards(self, reference: Tensor) -> None:
        """Align all networks to a row (d,)."""
        found, sweeps = matched(self.layout, self.spec, reference, self.weights, self.seed)
        self.weights = _permuted(self.layout, self.spec, self.weights, found)
        self.permutations |= {g: self.permutations[g].gather(1, new) for g, new in found.items()}
        self.sweeps = self.sweeps + sweeps

    def towards_mean(self) -> Tensor:
        """Align all networks to their mean until they come no closer to it; the mean (d,).

        The mean of networks in any order says little, so the first round goes to one of them.
        """
        self.rounds.append(self._spread())
        self.towards(self.weights[0])
        self.rounds.append(self._spread())
        for _ in range(ROUNDS):
            before = self.weights, self.permutations.copy()
            self.towards(memory.mean(self.weights))
            spread = self._spread()
            if spread**2 > (1 - SHRINKS) * self.rounds[-1] ** 2:
                self.weights, self.permutations = before
                break
            self.rounds.append(spread)
        return memory.mean(self.weights)

    def _spread(self) -> float:
        """Root mean square distance to the mean."""
        _, distances = _compare(self.layout, self.weights, memory.mean(self.weights))
        return float(np.sqrt((distances**2).mean()))


def _specified(zoo: Zoo, x: Tensor | None) -> tuple[Specification, Tensor]:
    """The zoo's specification, verified on its first network, and inputs for it (b, ...)."""
    if not len(zoo):
        raise ValueError("zoo: it holds no networks; expected at least one")
    if x is None:
        x = networks.example(zoo.network, channels=zoo.provenance.get("build", {}).get("channels"))
        x = torch.randn(INPUTS, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    x = x.cpu()
    specs = [specification(template, x[:1]) for template, _ in zoo.groups()]
    spec = specs[0]  # activations change nothing but which scales are free
    free = {
        name: replace(group, homogeneous=all(other.groups[name].homogeneous for other in specs))
        for name, group in spec.groups.items()
    }
    spec = replace(spec, groups=free)
    verify(zoo.module(0).cpu(), spec, x[:2])
    return spec, x


def matched(
    layout: Layout, spec: Specification, reference: Tensor, weights: Tensor, seed: int
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Permutations {group: (n, size)} by portions of the networks (n, d); their sweeps (n,)."""
    attentions = spec.attentions()
    movable = {name for name, group in spec.groups.items() if not group.attention} - spec.streams
    names = [name for name, kind in zip(layout.names, layout.kinds, strict=True) if kind != "statistic"]
    own = {name: tensor for name, tensor in layout.unflatten(reference).items() if name in names}
    spots = places(spec, {group.name for groups in attentions.values() for group in groups}, names)
    portion, n = max(1, PORTION // (layout.d + sum(group.size**2 for group in spec.groups.values()))), len(weights)
    permutations, sweeps = {}, np.empty(n, np.int64)  # all room at once: kept pieces would leave holes in the memory
    with tqdm(total=n, desc="alignment", unit="network", leave=False, delay=1) as progress:
        for first, rows in zip(range(0, n, portion), weights.split(portion), strict=True):
            here = slice(first, first + len(rows))
            state = {name: tensor for name, tensor in layout.unflatten(rows).items() if name in own}
            matching = Matching(spec, movable, own, state)
            sweeps[here] = matching.run(seed).numpy()
            found = matching.permutations
            for groups in attentions.values():
                found |= match_heads(groups, spots, own, state)
            permutations = permutations or {group: p.new_empty(n, p.shape[1]) for group, p in found.items()}
            for group, p in found.items():
                permutations[group][here] = p
            progress.update(len(rows))
    return permutations, sweeps


def _permuted(layout: Layout, spec: Specification, rows: Tensor, permutations: dict[str, Tensor]) -> Tensor:
    """Networks (n, d) with their units in another order."""
    moved = memory.empty(*rows.shape, rows)
    for here in memory.portions(*rows.shape):
        own = {group: p[here] for group, p in permutations.items()}
        moved[here] = layout.flatten(spec.apply(layout.unflatten(rows[here]), own))
    return moved


def _balanced(layout: Layout, spec: Specification, rows: Tensor) -> Tensor:
    """Networks (n, d) with balanced scales. Raises ValueError when no scale is free."""
    if not any(group.homogeneous for group in spec.groups.values()):
        raise ValueError(
            "scale=True: no units of these networks can be scaled (that takes ReLU and no norm); leave it out"
        )
    return memory.mapped(lambda some: layout.flatten(balance(spec, layout.unflatten(some))).to(some.dtype), rows)


def _compare(layout: Layout, rows: Tensor, row: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Inner products with and distances to one network (d,) of networks (n, d), without statistics: (n,), (n,)."""
    counts = layout.learned().double()
    own = row.double() * counts  # (d,)

    def both(some: Tensor) -> Tensor:
        some = some.double() * counts
        return torch.stack([some @ own, (some - own).norm(dim=1)], 1)

    products, distances = memory.mapped(both, rows).T.cpu().numpy()
    return products, distances


def _function_error(zoo: Zoo, weights: Tensor, x: Tensor) -> np.ndarray:
    """Largest change of an output on x from the zoo's networks to those of other weights (n, d): (n,)."""
    errors = []
    for pair in zip(zoo.blocks(), zoo.derived(weights).blocks(), strict=True):
        before, after = (evaluation.logits(some, x) for some in pair)
        errors.append((before - after).abs().flatten(1).amax(1).cpu().numpy().astype(float))
    return np.concatenate(errors)


@torch.no_grad()
def _outputs(network: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """All numbers that a network gives with this state on x, in evaluation mode, as one row."""
    with evaluating(network):
        outputs = functional_call(network, state, (x,))
    return torch.cat([out.flatten() for out in pytree.tree_leaves(outputs) if isinstance(out, Tensor)])

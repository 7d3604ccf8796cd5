"""Who shares what in a bank of SuperWeights (Teterwak et al. 2024), and what it costs: bookkeeping before any training.

Layers of several networks form clusters. The distinct shapes S_0, S_1, ... of a cluster, sorted by size, are a ladder:
increment r holds the M_r numbers that S_r has beyond S_(r-1), as blocks of rows and columns. A layer of shape S_j is
made of increments 0..j, each mixed from K_r templates (one increment's templates are a SuperWeight) with a coefficient
vector, which layers may share. Where S_r has fewer rows or columns than S_(r-1), what sticks out is cropped.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from wsnotebook.evaluation import uses
from wsnotebook.methods.superweight_clusters import (
    Increment,
    Layer,
    by_member,
    checked,
    depth_bins,
    ladder,
    shareable,
    users_of,
)
from wsnotebook.training import check_choice


@dataclass(frozen=True)
class Plan:
    """Which layers share which templates and coefficients, made by `allocate`; `superweights.Bank` carries it out."""

    clusters: tuple[tuple[Layer, ...], ...]
    templates: tuple[tuple[int, ...], ...]  # K of each cluster's increments
    rows: tuple[tuple[tuple[int, ...], ...], ...]  # [cluster][increment]: which coefficient vector each user has
    private: tuple[tuple[int, str, str], ...]  # (member, module, why its parameters are its own)
    parameters: tuple[int, ...]  # of each member as a network of its own
    macs: tuple[int, ...]  # of each member, for one row of input
    budget: int | None  # that was asked for
    counted: str  # all | bank: what the budget covers

    @cached_property
    def ladders(self) -> list[tuple[list[tuple[int, ...]], list[Increment]]]:
        """`ladder` of each cluster."""
        return [ladder([layer.shape for layer in cluster]) for cluster in self.clusters]

    def users(self, cluster: int, r: int) -> list[int]:
        """Positions in the cluster of the layers that use increment r."""
        return users_of(self.clusters[cluster], self.ladders[cluster][0], r)

    @property
    def superweights(self) -> list[tuple[int, int]]:
        """(cluster, increment) of each."""
        return [(g, r) for g, numbers in enumerate(self.templates) for r in range(len(numbers))]

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers that are trained: `separate` networks, and of the bank `templates`, `coefficients` (`unshared`: when
        every layer has its own), `private`, and all of them, `shared`, with the coefficients as they are now."""
        templates = coefficients = unshared = 0
        for g, r in self.superweights:
            k = self.templates[g][r]
            templates += k * self.ladders[g][1][r].size
            coefficients += k * len(set(self.rows[g][r]))
            unshared += k * len(self.rows[g][r])
        private = _private(self.clusters, self.parameters)
        return {
            "separate": sum(self.parameters),
            "templates": templates,
            "coefficients": coefficients,
            "unshared": unshared,
            "private": private,
            "shared": templates + coefficients + private,
        }

    @property
    def least(self) -> int:
        """What it needs, as its budget counts."""
        return self.sizes["shared" if self.counted == "all" else "templates"]

    def regrouped(self, clusters: Sequence[Sequence[Layer]]) -> "Plan":
        """With these clusters of the same layers, one template an increment, and a vector for every use of it."""
        shapes = [ladder([layer.shape for layer in cluster])[0] for cluster in clusters]
        rows = [
            tuple(tuple(range(len(users_of(cluster, own, r)))) for r in range(len(own)))
            for cluster, own in zip(clusters, shapes, strict=True)
        ]
        one = tuple((1,) * len(own) for own in shapes)
        return replace(self, clusters=tuple(map(tuple, clusters)), templates=one, rows=tuple(rows))

    def filled(self, budget: int | None, most: int) -> "Plan | None":
        """A regrouped plan with as many templates, up to `most`, as fit (budget None: no limit); None: not even it."""
        if budget is not None and self.least > budget:
            return None
        plan = replace(self, budget=budget)
        return replace(plan, templates=_templates(plan, most))

    @property
    def composition_macs(self) -> int:
        """Products that making every layer's weight once takes, no two of them in common."""
        return sum(
            self.templates[g][r] * len(self.rows[g][r]) * self.ladders[g][1][r].size for g, r in self.superweights
        )

    def report(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """{table: (columns, rows)} for `evaluation.markdown`: parameters, members, clusters, sharing, private."""
        names = {"separate": "separate networks", "templates": "bank: templates", "coefficients": "bank: coefficients"}
        names |= {
            "unshared": "... when no layers share them",
            "private": "private to a member",
            "shared": "bank in all",
        }
        sizes = self.sizes
        counts = {text: sizes[name] for name, text in names.items()}
        if self.budget is not None:
            counts[f"budget ({'everything' if self.counted == 'all' else 'templates'})"] = self.budget
        parameters = [[text, f"{n:,}", f"{100 * n / sizes['separate']:.2f} %"] for text, n in counts.items()]
        members = [[str(m), f"{p:,}", f"{self.macs[m]:,}"] for m, p in enumerate(self.parameters)]
        members.append(["making all weights", "", f"{self.composition_macs:,}"])
        clusters, sharing = [], []
        for g, r in self.superweights:
            shapes, increments = self.ladders[g]
            k, rows = self.templates[g][r], self.rows[g][r]
            shape = " x ".join(map(str, shapes[r]))
            clusters.append([f"{g}.{r}", shape, f"{increments[r].size:,}", str(k), str(len(rows)), str(len(set(rows)))])
            held = {}
            for position, row in zip(self.users(g, r), rows, strict=True):
                held.setdefault(row, []).append(str(self.clusters[g][position]))
            sharing += [[f"{g}.{r}", str(row), ", ".join(layers)] for row, layers in sorted(held.items())]
        return {
            "parameters": (["parameters", "of separate"], parameters),
            "members": (["parameters", "MACs a row"], members),
            "clusters": (["up to shape", "numbers", "templates", "layers", "vectors"], clusters),
            "sharing": (["vector", "layers"], sharing),
            "private": (["module", "reason"], [[str(m), name, why] for m, name, why in self.private]),
        }

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, parts: dict) -> "Plan":
        """The plan that `to_dict` described, also after JSON. Raises ValueError for anything else."""
        try:
            frozen = {name: _frozen(value) for name, value in parts.items() if name != "clusters"}
            layers = tuple(tuple(Layer(**l | {"shape": tuple(l["shape"])}) for l in c) for c in parts["clusters"])
            plan = cls(clusters=layers, **frozen)
            fits = all(len(plan.users(g, r)) == len(plan.rows[g][r]) for g, r in plan.superweights)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
            raise ValueError(f"not a plan of SuperWeights ({type(error).__name__}: {error})") from None
        if not fits or [len(shapes) for shapes, _ in plan.ladders] != [len(k) for k in plan.templates]:
            raise ValueError("not a plan of SuperWeights: its numbers of increments or of their users do not fit")
        return plan


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _private(clusters: Sequence[Sequence[Layer]], parameters: Sequence[int]) -> int:
    return sum(parameters) - sum(math.prod(layer.shape) for cluster in clusters for layer in cluster)


# ---- making one --------------------------------------------------------------------------------------------------

SHARING = ("matched", "own", "single")


def allocate(
    networks: Sequence[nn.Module],
    x: Tensor,
    budget: int | None = None,
    *,
    clusters: int | Sequence[Sequence] = 4,
    sharing: str = "matched",
    counted: str = "all",
    most: int = 8,
    classifier: bool = False,
) -> Plan:
    """The plan of a bank for these networks with at most `budget` trained numbers; None: all that are of use.

    x: an input (1, ...), to count MACs and compare outputs. clusters: a number of depth bins, or lists of layers as
    `shareable` names them; layers in none stay private. sharing of coefficient vectors: "matched": each layer has that
    of the layer at the nearest relative depth in the deepest network, or in the first that uses the increment; "own";
    "single": all users of an increment have one. counted: "all" that is trained, coefficients as if none were shared
    any more, or the "bank" of templates alone, as the paper does. most: templates of an increment (never more than
    layers that use it). classifier: whether the last linear layers share too.
    Raises ValueError for networks whose outputs differ, nothing to share, bad clusters, and a budget that is too small,
    naming the smallest possible.
    """
    check_choice("sharing", sharing, SHARING)
    check_choice("counted", counted, ("all", "bank"))
    macs = _macs(networks, x)
    layers, private = shareable(networks, classifier)
    if not layers:
        raise ValueError("networks: no layer can share; expected Conv2d layers, or Linear ones before the last")
    found = depth_bins(layers, clusters) if isinstance(clusters, int) else checked(clusters, layers)
    left_out = set(layers) - {layer for cluster in found for layer in cluster}
    private += [(layer.member, layer.name, "in no cluster") for layer in layers if layer in left_out]
    parameters = tuple(sum(p.numel() for p in network.parameters()) for network in networks)
    plan = Plan(
        clusters=tuple(map(tuple, found)),
        templates=tuple((1,) * len({layer.shape for layer in cluster}) for cluster in found),
        rows=tuple(_rows(cluster, sharing, _depths(layers)) for cluster in found),
        private=tuple(private),
        parameters=parameters,
        macs=macs,
        budget=budget,
        counted=counted,
    )
    return replace(plan, templates=_templates(plan, most))


def _macs(networks: Sequence[nn.Module], x: Tensor) -> tuple[int, ...]:
    """Products of each network's convolutions and linear layers for one row; ValueError when outputs differ."""
    macs, outputs = [], []
    for network in networks:
        made, times = uses(network, x)
        outputs.append(tuple(made.shape[1:]))
        macs.append(sum(n * network.get_submodule(name).weight.numel() for name, n in times.items()))
    if len(set(outputs)) != 1:
        raise ValueError(f"networks: outputs of shapes {', '.join(map(str, outputs))}; members of a bank have one")
    return tuple(macs)


def _depths(layers: Sequence[Layer]) -> dict[Layer, float]:
    """Relative depth of each layer in its network, the deepest network's first."""
    members = by_member(layers).values()
    return {layer: n / max(1, len(own) - 1) for own in members for n, layer in enumerate(own)}


def _rows(cluster: Sequence[Layer], sharing: str, depths: dict[Layer, float]) -> tuple[tuple[int, ...], ...]:
    shapes, rows = ladder([layer.shape for layer in cluster])[0], []
    members = list(dict.fromkeys(layer.member for layer in depths))  # the deepest first
    for r in range(len(shapes)):
        users = [cluster[position] for position in users_of(cluster, shapes, r)]
        first = min((user.member for user in users), key=members.index)
        owners = {"own": users, "matched": [u for u in users if u.member == first], "single": users[:1]}[sharing]
        nearest = [min(owners, key=lambda o: (o != u, abs(depths[o] - depths[u]))) for u in users]
        rows.append(tuple(map(owners.index, nearest)))
    return tuple(rows)


def _templates(plan: Plan, most: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of templates: one each, then for those with more than 1, 2, ... users another one while it fits."""
    every = plan.counted == "all"
    costs = {(g, r): plan.ladders[g][1][r].size + every * len(plan.rows[g][r]) for g, r in plan.superweights}
    private = every * _private(plan.clusters, plan.parameters)
    least = private + sum(costs.values())
    if plan.budget is not None and plan.budget < least:
        few = depth_bins([layer for cluster in plan.clusters for layer in cluster], 1)  # one for each kernel size
        fewest = plan.regrouped(few).least
        raise ValueError(
            f"budget={plan.budget:,} (counted={plan.counted!r}): these {len(plan.clusters)} clusters need at least "
            f"{least:,}{f', {private:,} of it private to members' if every else ''}; {len(few)}, one for each kernel "
            f"size (clusters=1), need {fewest:,}. Raise the budget, or take fewer clusters or smaller networks"
        )
    left = math.inf if plan.budget is None else plan.budget - least
    numbers = dict.fromkeys(costs, 1)
    for k in range(1, most):
        for key, cost in costs.items():
            if len(plan.rows[key[0]][key[1]]) > k and cost <= left:
                numbers[key] += 1
                left -= cost
    return tuple(tuple(numbers[g, r] for r in range(len(steps))) for g, (_, steps) in enumerate(plan.ladders))

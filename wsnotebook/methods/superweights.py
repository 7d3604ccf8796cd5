"""SuperWeights: networks of several widths and depths in one bank of parameters (Teterwak et al. 2024).

The part of layer l's weight that increment r of its cluster brings is a mix of that increment's templates:

    w_(l,r) = s_(l,r) sum_k alpha_(v(l,r),k) T_(r,k)        (1)

with trained T and alpha; v says which coefficient vector the layer has (layers may share one). s is fixed and gives
every layer the scale of He et al. at the start: templates have the largest of their users' scales, so that s <= 1, and
near 1: a step of T moves weights by s^2 of what a plain network's would. Biases, norms, classifiers are a member's own.

What we do differently from the public code: the networks are ordinary modules and are not touched; the budget is kept;
templates have the scale of the layers they are for (there up to 21 times too large); a cluster's layers are made by one
product for each increment, one node of autograd in all; vectors are rows of one parameter, so that sharing is an index.
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call

from wsnotebook.datasets import replacing
from wsnotebook.layout import check_finite
from wsnotebook.methods.superweight_clusters import separated
from wsnotebook.methods.superweight_composition import Cluster, compose, gather
from wsnotebook.methods.superweight_plan import Plan

FORMAT = "wsnotebook superweights 1"


class Bank(nn.Module):
    """Members' networks whose shared weights are made from templates, as a `Plan` of the same networks says.

    networks: ordinary modules; they are copied, not changed, and their shared weights do not count (`from_networks`
    takes them over). noise: standard deviation of what is added to one-hot coefficients at the start. Parameters, each
    storage once: templates (K, M) and coefficients (vectors, K) in the order of plan.superweights, and members'.
    Raises ValueError when the networks are not those of the plan.
    """

    def __init__(self, networks: Sequence[nn.Module], plan: Plan, *, seed: int = 0, noise: float = 0.1):
        super().__init__()
        weights = _shared_weights(networks, plan)
        like = next(iter(weights.values()))
        without = {id(weight): None for weight in weights.values()}  # as if these had been copied already, to None
        self.members = nn.ModuleList(copy.deepcopy(network, dict(without)) for network in networks)
        self.templates, self.coefficients, scales = nn.ParameterList(), nn.ParameterList(), []
        random = torch.Generator().manual_seed(seed)
        for g, r in plan.superweights:
            k, size = plan.templates[g][r], plan.ladders[g][1][r].size
            std = torch.tensor([_he(plan.clusters[g][position].shape) for position in plan.users(g, r)])
            draws = torch.randn(k, size, generator=random)
            draws *= std.max() / draws.square().mean(1, keepdim=True).sqrt()  # that scale exactly, not on average
            members = [plan.clusters[g][position].member for position in plan.users(g, r)]
            first = dict(zip(reversed(plan.rows[g][r]), reversed(_first_templates(members, k)), strict=True))
            mix = torch.eye(k)[[first[v] for v in range(len(first))]]
            mix += noise * torch.randn(mix.shape, generator=random)
            self.templates.append(draws.to(like))
            self.coefficients.append((mix / mix.norm(dim=1, keepdim=True)).to(like))
            scales.append(std / std.max())
        self.register_buffer("scales", torch.cat(scales).to(like))  # s, one for each (SuperWeight, user)
        self._set_plan(plan)

    def _set_plan(self, plan: Plan) -> None:
        self.plan, self._recipes, self._kept = plan, {}, (None, None)

    @classmethod
    def from_networks(cls, networks: Sequence[nn.Module], plan: Plan) -> "Bank":
        """A bank that computes exactly what the networks do, where every layer has templates of its own.

        Raises ValueError when some increment has fewer templates, or vectors, than layers.
        """
        bank = cls(networks, plan, noise=0.0)
        for g, r in plan.superweights:
            k, rows = plan.templates[g][r], plan.rows[g][r]
            if not len(rows) == len(set(rows)) <= k:
                raise ValueError(
                    f"plan: {len(rows)} layers use SuperWeight {g}.{r}, which has {k} templates and {len(set(rows))} "
                    'coefficient vectors; a copy needs one of each a layer: allocate(..., sharing="own", most=...)'
                )
        weights = _shared_weights(networks, plan)
        bank.scales.fill_(1.0)
        with torch.no_grad():
            for cluster in bank._recipe(tuple(range(len(networks)))):
                sources = [weights[layers[0]] for layers in cluster.layers]
                for s, rows, pieces in zip(cluster.superweights, cluster.rows, cluster.pieces, strict=True):
                    for piece in pieces:
                        bank.templates[s][rows, piece.start : piece.end] = gather(cluster, piece, sources)
        return bank

    def forward(self, x: Tensor | Sequence[Tensor], members: Sequence[int] | None = None) -> list[Tensor]:
        """Logits (n, classes) of each of these members; None: all. x: (n, ...), or a sequence of them, one a member.

        In evaluation mode under no_grad, weights are made once, and again after a write to templates or coefficients
        (not one through `.data`, which torch does not count; `train()` forgets them as well).
        """
        members = self._checked(members)
        inputs = [x] * len(members) if isinstance(x, Tensor) else x
        if not self.training and not torch.is_grad_enabled():
            networks = self._plain()
            return [networks[m](rows) for m, rows in zip(members, inputs, strict=True)]
        weights = self._compose(members, lease=True)
        return [functional_call(self.members[m], weights[m], (rows,)) for m, rows in zip(members, inputs, strict=True)]

    def _plain(self) -> nn.ModuleList:
        """The members as plain networks, which have private tensors in common with the bank; kept until it changes."""
        tensors = [*self.templates, *self.coefficients, self.scales]
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._kept[0] != state:
            own = {id(tensor): tensor for tensor in (*self.members.parameters(), *self.members.buffers())}
            networks = copy.deepcopy(self.members, own)
            with torch.no_grad():
                for member, weights in self.compose().items():
                    for name, weight in weights.items():
                        networks[member].get_submodule(name.removesuffix(".weight")).weight = nn.Parameter(weight)
            self._kept = state, networks
        return self._kept[1]

    def train(self, mode: bool = True) -> "Bank":
        """As any module's; weights kept for evaluation are dropped."""
        self._kept = (None, None)
        return super().train(mode)

    def compose(self, members: Sequence[int] | None = None) -> dict[int, dict[str, Tensor]]:
        """{member: {tensor name: shared weight}} of these members, None being all; autograd goes through it."""
        return self._compose(self._checked(members), lease=False)

    def _compose(self, members: tuple[int, ...], lease: bool) -> dict[int, dict[str, Tensor]]:
        weights = {member: {} for member in members}
        for cluster in self._recipe(members):
            templates = [self.templates[s] for s in cluster.superweights]
            mixes = [
                self.coefficients[s].index_select(0, rows) * self.scales.index_select(0, users)[:, None]
                for s, rows, users in zip(cluster.superweights, cluster.rows, cluster.users, strict=True)
            ]
            for layers, weight in zip(cluster.layers, compose(cluster, mixes, templates, lease), strict=True):
                for layer in layers:
                    weights[layer.member][f"{layer.name}.weight"] = weight
        return weights

    def _recipe(self, members: tuple[int, ...]) -> list[Cluster]:
        key = members, self.scales.device
        if key not in self._recipes:
            self._recipes[key] = Cluster.all_of(self.plan, members, self.scales.device)
        return self._recipes[key]

    def _checked(self, members: Sequence[int] | None) -> tuple[int, ...]:
        if members is None:
            return tuple(range(len(self.members)))
        if not members or len(set(members)) < len(members) or not set(members) <= set(range(len(self.members))):
            raise ValueError(f"members={list(members)}: expected different ones of 0 to {len(self.members) - 1}")
        return tuple(members)

    def member(self, i: int) -> nn.Module:
        """Member i as an ordinary network with tensors of its own."""
        return copy.deepcopy(self._plain()[self._checked([i])[0]])

    def parameter_groups(self) -> list[dict]:
        """For an optimiser: everything but the coefficients, and those without weight decay."""
        coefficients = list(self.coefficients)
        own = set(map(id, coefficients))
        rest = [parameter for parameter in self.parameters() if id(parameter) not in own]
        return [{"params": rest}, {"params": coefficients, "weight_decay": 0.0}]

    def unshare(self, labels: dict[int, Sequence], optimiser: torch.optim.Optimizer | None = None) -> None:
        """Layers that share a coefficient vector and have different labels get copies of it; no output changes.

        labels: {position in plan.superweights: a label for each of its users, as plan.users has them}. optimiser: what
        it keeps for a vector (momentum) is copied with it. Raises ValueError for labels that do not fit.
        """
        rows = [list(cluster) for cluster in self.plan.rows]
        users = {s: len(rows[g][r]) for s, (g, r) in enumerate(self.plan.superweights)}
        for s, found in labels.items():
            if len(found) != users.get(s):
                known = f"{users[s]} layers use it" if s in users else f"there are SuperWeights 0 to {len(users) - 1}"
                raise ValueError(f"labels[{s}]: {len(found)} labels; {known}")
        for s, found in labels.items():
            g, r = self.plan.superweights[s]
            rows[g][r], sources = separated(rows[g][r], found)
            parameter = self.coefficients[s]
            self.coefficients[s] = nn.Parameter(parameter.detach()[sources], parameter.requires_grad)
            if optimiser:
                _exchange(optimiser, parameter, self.coefficients[s], sources)
        self._set_plan(replace(self.plan, rows=tuple(map(tuple, rows))))

    # ---- files -------------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters()} | dict(self.named_buffers())

    def save(self, path: str | Path) -> Path:
        """Write plan and tensors as one .safetensors file (whole or not at all). Raises OSError when it cannot be."""
        header = {"format": FORMAT, "plan": json.dumps(self.plan.to_dict())}
        with replacing(path) as part:
            safetensors.torch.save_file(
                {name: t.clone(memory_format=torch.contiguous_format) for name, t in self._tensors().items()},
                part,
                header,
            )
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, networks: Sequence[nn.Module]) -> "Bank":
        """The bank in a file that `save` wrote; networks: of the same architectures, with any weights.

        Raises FileNotFoundError, or ValueError for a damaged file, one that holds something else, or other networks.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"bank {path}: no such file (looked for in {Path.cwd()})")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"bank {path}: not readable ({error}); it is damaged, or no .safetensors file") from None
        if header.get("format") != FORMAT:
            raise ValueError(f"bank {path}: its format is {header.get('format')!r}, expected {FORMAT!r}")
        try:
            plan = Plan.from_dict(json.loads(header.get("plan", "null")))
            wanted = {f"templates.{s}": plan.templates[g][r] for s, (g, r) in enumerate(plan.superweights)}
            if wanted != {name: len(stored[name]) if name in stored else 0 for name in wanted}:
                raise ValueError(f"the plan has templates {plan.templates}, the file others: damaged")
            bank = cls(networks, plan)
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ValueError(f"bank {path}: {error}") from None
        wanted = bank._tensors()
        for name in sorted(wanted.keys() | stored.keys()):
            seen, expected = (tuple(part[name].shape) if name in part else "nothing" for part in (stored, wanted))
            if seen != expected:
                raise ValueError(f"bank {path}: {name!r} is {seen}, expected {expected}: damaged, or other networks?")
        check_finite(stored, f"bank {path}")
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])
        return bank


def _exchange(optimiser: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, sources: list[int]) -> None:
    """Put a parameter in another's place, whose rows `sources` it has, with what the optimiser keeps for them."""
    for group in optimiser.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    kept = optimiser.state.pop(old, {})
    for name, value in kept.items():
        if isinstance(value, Tensor) and value.shape == old.shape:
            kept[name] = value[sources]
    if kept:
        optimiser.state[new] = kept


def _he(shape: tuple[int, ...]) -> float:
    """Standard deviation of He et al. 2015 for a weight (o, i, *kernel) before a ReLU."""
    return math.sqrt(2 / math.prod(shape[1:]))


def _first_templates(members: Sequence[int], k: int) -> list[int]:
    """Which of k templates each user of an increment starts from, by position in its member.

    members: of the users, each member's in order of depth. Members with most users take one template a user, as long as
    there are any; every other user starts where the nearest of these does in relative position.
    """
    n = [members.count(member) for member in members]
    place = [(members[:user].count(member) + 0.5) / n[user] for user, member in enumerate(members)]
    taken = sorted(sorted(range(len(n)), key=lambda user: -n[user])[:k])
    return [taken.index(min(taken, key=lambda t: (t != user, abs(place[t] - place[user])))) for user in range(len(n))]


def _shared_weights(networks: Sequence[nn.Module], plan: Plan) -> dict:
    """{layer: its weight} in the order of the plan; ValueError when these are not the plan's networks."""
    counts = tuple(sum(p.numel() for p in network.parameters()) for network in networks)
    if counts != plan.parameters:
        raise ValueError(f"networks: {counts} parameters, the plan is for members of {plan.parameters}")
    found = {}
    for layer in (layer for cluster in plan.clusters for layer in cluster):
        try:
            weight = networks[layer.member].get_submodule(layer.name).weight
        except AttributeError:
            raise ValueError(f"networks[{layer.member}] has no layer {layer.name!r}, the plan has") from None
        if tuple(weight.shape) != layer.shape:
            raise ValueError(
                f"networks[{layer.member}]: {layer.name!r} is {tuple(weight.shape)}, planned {layer.shape}"
            )
        found[layer] = weight
    return found

"""Compression of trained perceptrons: cut into blocks, each replaced by a smaller network that a search finds.

Huang et al. 2025, "SWAT-NN", section on compression: a network of many hidden layers is cut in two halves; each half,
of about four hidden layers, is replaced by two ("4-to-2"), the second on what the first's replacement hands on, so that
it corrects its errors. The search is `latent_search`: in the latents of an autoencoder that is trained here for the
blocks' form, or directly in the numbers of the networks.

What we do differently from the public code: any perceptron, any cuts, trained teachers; a block hands on a few
coordinates of its units' outputs, those that the teacher's outputs depend on (`Coordinates`); the joined networks are
trained end to end and pruned step by step to the caller's numbers of non-zeros; networks are chosen on validation
inputs, and stand beside students trained from scratch and the teacher itself pruned by magnitude.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from wsnotebook import cornn
from wsnotebook.methods import latent_search, mlp_fitting, mlp_modules, mlp_pruning, swat_nn
from wsnotebook.methods.mlp_arms import best_at
from wsnotebook.methods.mlp_blocks import Coordinates, check_size, join, plain, smallest_form, split
from wsnotebook.methods.mlp_matrix import Form, Parts, concat, non_zeros
from wsnotebook.methods.mlp_teachers import random_network
from wsnotebook.networks import MixedMLP
from wsnotebook.training import check_at_least, finished

STUDENTS = mlp_fitting.Config(steps=6000, lr=0.03)  # how dense students are trained
TUNING = mlp_fitting.Config(steps=2000, lr=0.03)  # ... and pruned networks, after each pruning
AUTOENCODER = swat_nn.Config(iterations=600)  # of a block's form
Inputs = tuple[Tensor, Tensor, Tensor]  # training, validation, test: (m, inputs) each


@dataclass(frozen=True)
class Config:
    """How blocks are replaced, and what comes after."""

    cuts: tuple[int, ...] | None = None  # hidden layers after which to cut, from 1 on; None: the middle; (): no cut
    handed: int = 3  # numbers that a block hands on to the next, at most
    width: int = 7  # units of a new block's hidden layer, at most
    activations: tuple[str, ...] = ("sigmoid", "tanh", "leaky_relu")  # that new units choose from
    search: latent_search.Config = latent_search.Config(  # of each block; its depths: hidden layers of the new one
        depths=(1, 2),
        restarts=4,
        penalties=(1e-4, 1e-3, 1e-2),
        steps=400,
        tuned=4,
        budgets=(),
        training=mlp_fitting.Config(steps=3000, batch=128, lr=0.05),
    )
    kept: int = 2  # beginnings of one depth that the next block is searched for
    corrected: bool = True  # a block is fitted on what the new ones before it hand on; False: on the teacher's own
    training: mlp_fitting.Config = mlp_fitting.Config(steps=6000, lr=0.05)  # of the joined networks
    tuning: mlp_fitting.Config = TUNING  # ... after each pruning

    def __post_init__(self):
        check_at_least(self, handed=1, width=1, kept=1)
        check_at_least(self.search, tuned=1)


# ---- what is found -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Compressed:
    """Plain networks that compute about what a teacher does: n in all, all along the way to the smallest.

    FVU: mean square difference from the teacher's outputs, as a share of their variance. Test inputs choose nothing.
    """

    arm: str  # how they were found: split | student | pruned teacher
    form: Form
    parts: Parts = field(repr=False)  # n networks
    stage: Tensor = field(repr=False)  # (n,) 0: joined, or drawn; 1: trained; then pruned and trained, time after time
    non_zeros: Tensor = field(repr=False)  # (n,)
    validation: Tensor = field(repr=False)  # (n,) FVU
    test: Tensor = field(repr=False)  # (n,) FVU
    cpu_seconds: float  # all in all

    def within(self, budget: int) -> int:
        """The network of lowest validation FVU with at most so many non-zeros. Raises ValueError without one."""
        return int(best_at(self.non_zeros, self.validation, budget))

    def smallest(self, fvu: float) -> int:
        """The network of fewest non-zeros whose validation FVU is at most this. Raises ValueError without one."""
        able = (self.validation <= fvu).nonzero()[:, 0]
        if not len(able):
            lowest = float(self.validation.nan_to_num(torch.inf).min())
            raise ValueError(f"fvu={fvu}: no network is so accurate on validation inputs; the best has {lowest:.3g}")
        return int(able[self.non_zeros[able].argmin()])

    def network(self, i: int) -> MixedMLP:
        """Network i as a module of its own."""
        return mlp_modules.network(self.form, self.parts, i)

    def rows(self, budgets: Sequence[int]) -> list[dict]:
        """For each budget the best network: arm, budget, network (its number), non_zeros, validation and test FVU."""
        found = [(budget, self.within(budget)) for budget in budgets]
        facts = ("non_zeros", "validation", "test")
        return [
            {"arm": self.arm, "budget": budget, "network": i} | {name: getattr(self, name)[i].item() for name in facts}
            for budget, i in found
        ]


class _Task:
    """A teacher whose outputs are scaled to variance 1, and its outputs on all inputs."""

    def __init__(self, network: nn.Module, x: Inputs):
        self.started, self.teacher = time.process_time(), plain(network).float().requires_grad_(False)
        inputs = self.teacher.fc1.in_features
        for name, part in zip(("training", "validation", "test"), x, strict=True):
            if part.ndim != 2 or part.shape[1] != inputs or len(part) < 2:
                raise ValueError(f"x, {name}: shape {tuple(part.shape)}, expected (m, {inputs}) with m of 2 or more")
        self.scale = float(self.teacher(x[0]).var(0, correction=0).mean().sqrt())
        if not self.scale > 0:
            raise ValueError("network: its outputs are constant on the training inputs x; nothing to compress")
        last = self.teacher.get_submodule(f"fc{self.teacher.hidden + 1}")
        last.weight /= self.scale
        last.bias /= self.scale
        self.x, self.y = x, [self.teacher(part) for part in x]

    def data(self, n: int) -> list[mlp_fitting.Data]:
        """Training, validation and test rows for n networks."""
        return [(x, y[:, None].expand(-1, n, -1)) for x, y in zip(self.x, self.y, strict=True)]

    def fit(self, form: Form, parts: Parts, config: mlp_fitting.Config) -> Parts:
        return mlp_fitting.fit(form, parts, *self.data(len(parts.depth))[:2], config).parts

    def shrink(self, form: Form, stages: list[Parts], budgets, prune: Callable, tuning: mlp_fitting.Config) -> None:
        """Prune the last stage to each budget, losing a fifth at most at a time, and train it; add these stages."""
        left = int(non_zeros(form, stages[-1]).max())
        for budget in sorted(budgets, reverse=True):
            while left > budget:
                left = max(budget, left * 4 // 5)
                stages.append(self.fit(form, prune(form, stages[-1], left), tuning))

    def measured(self, arm: str, form: Form, stages: list[Parts]) -> Compressed:
        parts = concat(stages)
        stage = torch.cat([torch.full_like(part.depth, number) for number, part in enumerate(stages)])
        errors = [
            mlp_fitting.errors(form, parts, data) / y.var(0, correction=0).mean()
            for data, y in zip(self.data(len(stage))[1:], self.y[1:], strict=True)
        ]
        parts.weights[:, -1] *= self.scale
        parts.biases[:, -1] *= self.scale
        return Compressed(arm, form, parts, stage, non_zeros(form, parts), *errors, time.process_time() - self.started)


def _check_budgets(budgets: Sequence[int]) -> None:
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets={tuple(budgets)}: expected one or more numbers of non-zeros, each at least 1")


# ---- three ways --------------------------------------------------------------------------------------------------


def compress(
    network: nn.Module,
    x: Inputs,
    budgets: Sequence[int],
    arm: Callable[[Form], latent_search.Arm] = latent_search.direct,
    config: Config = Config(),
) -> Compressed:
    """Replace a trained perceptron's blocks by smaller networks, join these, and prune them to numbers of non-zeros.

    x: training, validation and test inputs. arm: the space of a block's form that is searched: `latent_search.direct`,
    or one that `trained` gives. Raises ValueError as `split`, for inputs of another shape, constant outputs, and
    blocks whose matrices are too large.
    """
    _check_budgets(budgets)
    task = _Task(network, x)
    *hidden, last = split(task.teacher, config.cuts)
    targets, h, rest = [], task.x, [*hidden[1:], last]
    for i, block in enumerate(hidden):
        h = [block(part).detach() for part in h]
        coordinates = Coordinates(h[0], nn.Sequential(*rest[i:]), config.handed)
        targets.append([coordinates(part) for part in h[:2]])
    targets.append(task.y[:2])
    spaces = [arm(form) for form in _block_forms(task, targets, config)]

    chains = [((), task.x[:2])]  # new blocks so far, and what the next one reads
    for space, target in zip(spaces, targets, strict=True):
        grown = [made for blocks, inputs in chains for made in _blocks(space, inputs, target, config, blocks)]
        best = _best_of_each_depth(grown, config.kept)
        chains = [(blocks, handed if config.corrected else target) for _, blocks, handed in best]

    joined = [join(blocks) for _, blocks, _ in grown]
    form = smallest_form(joined)
    stages = [concat([mlp_modules.from_network(form, module) for module in joined])]
    stages.append(task.fit(form, stages[0], config.training))
    task.shrink(form, stages, budgets, lambda *own: mlp_pruning.keep_important(*own, task.x[0]), config.tuning)
    return task.measured("split", form, stages)


def _block_forms(task: _Task, targets: list, config: Config) -> list[Form]:
    sizes = [task.x[0].shape[1], *(target[0].shape[1] for target in targets)]
    forms = [Form(a, b, config.width, max(config.search.depths), config.activations) for a, b in pairwise(sizes)]
    search = config.search
    lanes = len(search.depths) * search.restarts * len(search.penalties)
    for number, form in enumerate(forms, start=1):
        check_size(form, max(lanes, form.depth * search.candidates), f"block {number}")
    return forms


def _blocks(space: latent_search.Arm, inputs, target, config: Config, before: tuple) -> list[tuple]:
    """(validation error, new blocks so far, what they hand on) for the networks that a search finds."""
    (x, x_validation), (y, y_validation) = inputs, (part[:, None] for part in target)
    held_out = x_validation, y_validation
    table = cornn.Table(("block",), (x, y), held_out, held_out)
    found = finished(latent_search.search(space, table, config.search))
    grown = []
    for row in (found.facts["stage"] == found.facts["stage"].max()).nonzero()[:, 0].tolist():
        module = mlp_modules.network(found.form, found.parts, row).requires_grad_(False)
        grown.append((float(found.facts["validation"][row]), (*before, module), [module(part) for part in inputs]))
    return grown


def _best_of_each_depth(grown: list[tuple], kept: int) -> list[tuple]:
    by_depth = {}
    for made in sorted(grown, key=lambda made: made[0]):
        by_depth.setdefault(sum(block.hidden for block in made[1]), []).append(made)
    return [made for those in by_depth.values() for made in those[:kept]]


def trained(config: swat_nn.Config = AUTOENCODER, keep: bool = False) -> Callable:
    """For `compress`: latents of an autoencoder that is trained for each block's form (config's own is not used).

    keep: as of `swat_nn.train`.
    """
    return lambda form: latent_search.latent(finished(swat_nn.train(replace(config, form=form), keep=keep)))


def students(
    network: nn.Module,
    x: Inputs,
    budgets: Sequence[int],
    depths: Sequence[int] = (1, 2, 3),
    activations: Sequence[str] = ("tanh", "leaky_relu"),
    restarts: int = 8,
    training: mlp_fitting.Config = STUDENTS,
) -> Compressed:
    """Control: dense networks of random start trained end to end on the teacher's outputs, none larger than a budget.

    For each budget, depth and activation the widest that it has room for. Raises ValueError as `compress`, and for a
    budget without room for one.
    """
    _check_budgets(budgets)
    task = _Task(network, x)
    ends = task.x[0].shape[1], task.y[0].shape[1]
    sizes = [(ends[0], *[_widest(*ends, depth, budget)] * depth, ends[1]) for budget in budgets for depth in depths]
    if room := [budget for budget in budgets if not any(_widest(*ends, depth, budget) for depth in depths)]:
        raise ValueError(f"budgets: {room[0]} has no room for a dense network of {ends[0]} inputs, {ends[1]} outputs")
    drawn = [
        random_network(shape, activation, True, training.seed * restarts + restart)
        for shape in sizes
        if min(shape)
        for activation in activations
        for restart in range(restarts)
    ]
    form = smallest_form(drawn)
    start = concat([mlp_modules.from_network(form, module) for module in drawn])
    return task.measured("student", form, [start, task.fit(form, start, training)])


def pruned_teacher(
    network: nn.Module,
    x: Inputs,
    budgets: Sequence[int],
    tuning: mlp_fitting.Config = TUNING,
) -> Compressed:
    """Control: the teacher itself, its smallest numbers left out step by step, trained after each.

    Raises ValueError as `compress`.
    """
    _check_budgets(budgets)
    task = _Task(network, x)
    form = smallest_form([task.teacher])
    stages = [mlp_modules.from_network(form, task.teacher)]
    task.shrink(form, stages, budgets, mlp_pruning.keep_largest, tuning)
    return task.measured("pruned teacher", form, stages)


def _widest(inputs: int, outputs: int, depth: int, budget: int) -> int:
    """Units of each hidden layer of the widest dense network with at most `budget` weights and biases; 0: none."""
    width = 0
    while (inputs + depth + outputs) * (width + 1) + (depth - 1) * (width + 1) ** 2 + outputs <= budget:
        width += 1
    return width

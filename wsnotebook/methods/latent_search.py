"""Architecture and weights of small networks searched for together, in a latent space or directly (SWAT-NN).

Huang et al. 2025. A lane is one search: a function, a depth, a restart, and the strength of its penalty. All lanes are
one tensor of points, which Adam moves; a decoder makes networks of them, whose error and price (`latent_objective`) it
lowers. It starts at those of many random networks that are nearest the function; finds a region in latent space; and
then moves the decoded numbers themselves. In the first half activations are mixtures that get purer and masks are
soft; in the second both are hard, as is the threshold of weights, with straight-through gradients: hardening then costs
nothing. Then lanes are hardened, trained on as plain networks (`mlp_fitting`), and pruned step by step by what their
numbers matter. Networks are chosen on validation rows.

What we do differently from the public code: the encoder has a use, the start; restarts, the worse half of which is
dropped early; schedules that act; an objective in which a weight has the same price at every error; fine-tuning and
pruning; and the same search without training the decoder, or without any, which says what the latent space is worth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from wsnotebook.cornn import Table
from wsnotebook.datasets import cache_folder
from wsnotebook.methods import mlp_fitting
from wsnotebook.methods.latent_lanes import Frame, Run
from wsnotebook.methods.mlp_arms import best_at, front
from wsnotebook.methods.mlp_matrix import Form, Parts, concat, from_rows, to_rows, used
from wsnotebook.methods.mlp_modules import to_zoo
from wsnotebook.methods.swat_nn import Swat
from wsnotebook.methods.swat_stream import Stream
from wsnotebook.training import check_at_least, check_choice, fingerprint, run_to_end
from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True)
class Config:
    """How lanes are searched, hardened and trained on. `preset` has the paper's settings and ours."""

    depths: tuple[int, ...] = (1, 2, 3, 4)  # hidden layers; each a lane of its own
    restarts: int = 4  # starting points for each function, depth and penalty
    penalties: tuple[float, ...] = (0.0, 0.02)  # strengths p of the penalty, each a lane of its own
    candidates: int = 1000  # random networks of each depth; lanes start at those nearest their function
    starts: Stream = Stream(on=0.95, sparsity=(0.0,))  # of these: large, as what is pruned later has to be
    steps: int = 300  # updates of the latents
    batch: int = 128  # rows an update, the same for all lanes
    lr: float | None = None  # Adam's largest; None: the arm's own
    decay: bool = True  # a short warm-up and a cosine to 0; False: lr throughout
    drop_at: float = 0.25  # time, as a share of the steps, when the worse half of each function's lanes is dropped
    relative: bool = True  # lowers log(error / constant's error + floor); False: the error itself
    floor: float = 1e-3  # share of the variance below which an error hardly counts as lower
    count: float = 1.0  # price of a weight that is there, in units of p
    units: float = 1.0  # ... of a unit that is on
    size: float = 0.1  # ... of a weight's size, each unit of it
    spread: float = 0.0  # reward for masks that differ within a layer (the public code)
    ramp: float = 0.2  # share of the steps over which the price grows from 0
    threshold: float = 0.0  # weights below it are 0 in the end
    threshold_lr: float = 0.0  # Adam's, of each lane's own threshold; 0: it stays
    steepness: float = 20.0  # of the sigmoid by which a weight counts as above the threshold
    gate: float = 0.0  # steepness of sigmoids by which small weights and masks fade while soft; 0: they do not
    temperatures: tuple[float, float] = (1.0, 0.05)  # of the activations' softmax, at the start and the end
    annealed: float = 0.5  # share of the steps in which it falls
    refined: float = 0.4  # time from which the decoded numbers themselves are moved, not points; above 1: never
    refining_lr: float = 0.06  # Adam's from then on
    straight: float = 0.5  # time from which activations, masks and threshold are hard; above 1: never
    tuned: int = 8  # lanes of each function and penalty that are trained on
    budgets: tuple[int, ...] = (100, 80, 65, 50, 40, 30, 25, 20, 16, 13, 10, 7)  # non-zeros to prune to, in turn
    training: mlp_fitting.Config = mlp_fitting.Config(steps=6000, batch=128, lr=0.1)  # of hardened networks
    tuning: mlp_fitting.Config = mlp_fitting.Config(steps=3000, batch=128, lr=0.1)  # ... after each pruning
    seed: int = 0  # of starting points and rows

    def __post_init__(self):
        check_at_least(
            self, restarts=1, candidates=16, steps=0, batch=1, drop_at=0, floor=0, count=0, units=0, size=0, spread=0
        )
        check_at_least(self, ramp=1e-9, threshold=0, threshold_lr=0, steepness=0, gate=0, annealed=1e-9, refined=0)
        check_at_least(self, refining_lr=0, straight=0, tuned=0)
        if not self.depths or not self.penalties or min(self.penalties) < 0:
            raise ValueError(f"depths={self.depths}, penalties={self.penalties}: expected one or more, none negative")
        if not all(b > 0 for b in self.temperatures) or not all(b >= 1 for b in self.budgets):
            raise ValueError(f"temperatures={self.temperatures}, budgets={self.budgets}: expected positive numbers")

    @property
    def iterations(self) -> int:
        """Updates of the latents, then hardening, training on and each pruning as one more."""
        return self.steps + 1 + (1 + len(self.budgets) if self.tuned else 0)


def preset(name: str, **changes) -> Config:
    """The settings "paper" (8,001 steps on all rows, no fine-tuning; but for its start) or "ours", changed.

    Raises ValueError for another name.
    """
    check_choice("preset", name, ("paper", "ours"))
    if name == "ours":
        return Config(**changes)
    lanes = {"restarts": 1, "penalties": (1e-4,), "steps": 8001, "batch": 3000, "lr": 0.1, "decay": False}
    terms = {"relative": False, "count": 0.01, "size": 0.1, "units": 0.5, "spread": 0.4, "ramp": 1e-9}
    schedules = {"threshold": 0.0, "threshold_lr": 1e-3, "gate": 200.0, "temperatures": (1.0, 0.01)}
    ends = {"annealed": 3000 / 8001, "starts": Stream(), "refined": 2.0, "straight": 2.0, "drop_at": 2.0, "tuned": 0}
    return Config(**lanes | terms | schedules | ends | changes)


# ---- arms: what is searched in -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A space that is searched: how its points become networks, and where networks are in it."""

    name: str
    form: Form
    decode: Callable[[Tensor, Tensor], Parts]  # points (n, ...), depth (n,) -> numbers, with logits as in `soft`
    encode: Callable[[Parts], Tensor]  # plain networks -> points (n, ...)
    lr: float  # Adam's, where nothing else is asked for


def latent(swat: Swat, name: str = "latent") -> Arm:
    """The latents of an autoencoder, trained or not."""
    config = swat.config
    return Arm(name, config.form, swat.network.requires_grad_(False).decode, swat.embed, 0.05)


def direct(form: Form) -> Arm:
    """The numbers of the networks themselves, without a decoder; what a start does not use is small."""

    def encode(parts: Parts) -> Tensor:
        real, small = used(form, parts.depth), [(0.3 * torch.randn(part.shape)).to(part) for part in parts[:4]]
        weights, biases = (
            torch.where(part != 0, part, noise * here)
            for part, noise, here in zip(parts[:2], small, real, strict=False)
        )
        activations, masks = 2 * parts.activations + small[2], 4 * parts.masks - 2 + small[3]
        return to_rows(form, Parts(weights, biases, activations, masks, parts.depth))

    return Arm("direct", form, lambda rows, depth: from_rows(form, rows, depth), encode, 0.06)


# ---- what is found -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """Plain networks that a search has found, n in all, each of a lane at a stage.

    stage 0: hardened; 1: trained on; then one for each budget that it was pruned to and trained again. Errors are mean
    squares, or cross-entropies in nats. History: iteration, objective (mean of the lanes), fvu (median error relative
    to the constant's), temperature, lanes, cpu_seconds.
    """

    config: Config
    arm: str  # its name
    form: Form
    names: tuple[str, ...]  # of the functions
    parts: Parts  # n networks
    facts: dict[str, Tensor]  # (n,) each: function, restart, penalty, lane, stage, non_zeros, train, validation, test
    lanes: dict[str, Tensor]  # before hardening, (lanes,): function, depth, restart, penalty, number; train and so on
    frames: list[Frame]  # lanes that were trained on, during the search
    history: dict[str, list[float]]
    finished: bool = True  # False: stopped early, and hardened there

    def __repr__(self) -> str:
        return f"Found({len(self.parts.depth)} networks of {len(self.names)} functions, arm {self.arm})"

    def rows(self, function: str) -> Tensor:
        """(k,) which networks are of this function. Raises ValueError for one that was not searched."""
        if function not in self.names:
            raise ValueError(f"function {function!r} was not searched for; there are {', '.join(self.names)}")
        return (self.facts["function"] == self.names.index(function)).nonzero()[:, 0]

    def measured(self, function: str) -> tuple[Tensor, Tensor, Tensor]:
        """(non-zeros, validation, test errors) of this function's networks, (k,) each."""
        rows = self.rows(function)
        return tuple(self.facts[name][rows] for name in ("non_zeros", "validation", "test"))

    def best(self, function: str, budget: int | None = None) -> int:
        """The network of lowest validation error, of at most `budget` non-zeros. Raises ValueError without such."""
        rows, (count, errors, _) = self.rows(function), self.measured(function)
        return int(rows[best_at(count, errors, int(count.max()) if budget is None else budget)])

    def front(self, function: str) -> Tensor:
        """(k,) networks that no other beats in non-zeros or validation error, from few non-zeros on."""
        rows, (count, errors, _) = self.rows(function), self.measured(function)
        rows = rows[front(count, errors)]
        return rows[self.facts["non_zeros"][rows].argsort()]

    def hardening(self) -> Tensor:
        """(lanes,) validation error after hardening over that before."""
        own = self.facts["stage"] == 0
        return self.facts["validation"][own] / self.lanes["validation"]

    def replay(self, lane: int) -> list[Frame]:
        """A lane's search from its start, then its plain networks stage by stage: frames of one network each.

        Raises ValueError for a lane that was not trained on.
        """
        own = [frame.take(frame.number == lane) for frame in self.frames]
        if not own or not len(own[0].number):
            raise ValueError(f"lane {lane} was not trained on, so it has no frames; these have: {self._trained_on()}")
        for row in (self.facts["lane"] == lane).nonzero()[:, 0]:
            number, *measured = (self.facts[name][row : row + 1] for name in ("lane", "validation", "non_zeros"))
            parts = self.parts.take(slice(int(row), int(row) + 1))
            own.append(Frame(own[-1].iteration + 1, 0.0, number, parts, parts.weights != 0, *measured))
        return own

    def _trained_on(self) -> str:
        return ", ".join(map(str, self.frames[-1].number.tolist())) if self.frames else "none"

    def zoo(self, rows: Tensor | slice = slice(None)) -> Zoo:
        """These networks as plain ones, with all facts, function by its name, and what `mlp_modules.to_zoo` adds."""
        facts = {name: values[rows].numpy() for name, values in self.facts.items() if name != "non_zeros"}
        facts["function"] = np.array(self.names)[facts["function"]]
        return to_zoo(self.form, self.parts.take(rows), {"arm": self.arm, "config": repr(self.config)}, **facts)


def search(arm: Arm, table: Table, config: Config = Config(), *, keep: bool = False) -> Found:
    """Search for networks of every function of the table: float y (m, functions) or (m, functions, outputs), or int64
    classes (m, functions). On the table's device, where a decoder must be too; what is found is on the CPU.

    keep: store the state in the cache folder, under the hash of arm, table and config; the same call later goes on from
    there, or returns at once. An interrupt (Ctrl-C, the notebook's stop button) hardens what there is.
    Raises ValueError for a depth that the form has not, constant targets, and when the search diverges.
    """
    run = Run(arm, table, config)
    path = None
    if keep:
        points = arm.decode(run.z[:8], run.lanes.depth[:8])  # tells decoders apart
        rows = *table.train, *table.validation, *table.test
        name = fingerprint(config, arm.name, table.names, run.z, *points, *rows, Frame._fields)
        path = cache_folder() / "results" / f"latent-search-{name}.pt"
    finished = run_to_end(run, path, f"search, {arm.name}", "fvu")
    if run.searched is None:
        run.harden()
    made, searched, frames = pytree.tree_map_only(Tensor, Tensor.cpu, (run.found, run.searched, run.frames))
    facts = {name: torch.cat([stage[name] for stage in made]) for name in made[0] if name != "parts"}
    at = torch.searchsorted(searched["number"], facts["lane"])
    facts = {name: searched[name][at] for name in ("function", "restart", "penalty")} | facts
    parts = concat([stage["parts"] for stage in made])
    return Found(config, arm.name, run.form, table.names, parts, facts, searched, frames, run.history, finished)

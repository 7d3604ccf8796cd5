"""All lanes of a latent search (`latent_search`) at once: their steps, their hardening, and what comes after it.

The randomness of a chunk of steps depends on (seed, chunk) alone, so a run that was interrupted and goes on gives the
same numbers as one that was not. No lane's numbers depend on another's, but for which of them go on.
"""

import math
import time
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from wsnotebook.methods import mlp_fitting
from wsnotebook.methods.latent_objective import constant_errors, formed, objective, rate, temperature
from wsnotebook.methods.mlp_matrix import Form, Parts, empty, evaluate, from_rows, hardened, non_zeros, to_rows, used
from wsnotebook.methods.mlp_pruning import keep_important
from wsnotebook.methods.swat_stream import draw
from wsnotebook.training import epoch_randomness

CPU = torch.device("cpu")
PROBED = 128  # rows on which it is seen which networks are near a function
EPS = 1e-3  # variance of a network's outputs that counts as constant, and is not scaled up
FRAMES = 24  # looks at all lanes during a search, from which it can be replayed


class Lanes(NamedTuple):
    """What n lanes are: each (n,)."""

    function: Tensor  # place in the table
    depth: Tensor
    restart: Tensor
    penalty: Tensor  # float
    number: Tensor  # its own, from the start on

    def take(self, rows: Tensor) -> "Lanes":
        return Lanes(*(part[rows] for part in self))

    def to(self, device: torch.device) -> "Lanes":
        return Lanes(*(part.to(device) for part in self))


def lanes(functions: int, config) -> Lanes:
    """All of a search: every function x depth x restart x penalty."""
    sizes = functions, len(config.depths), config.restarts, len(config.penalties)
    function, depth, restart, penalty = torch.cartesian_prod(*map(torch.arange, sizes)).unbind(1)
    penalties = torch.tensor(config.penalties)[penalty]
    return Lanes(function, torch.tensor(config.depths)[depth], restart, penalties, torch.arange(len(function)))


class Frame(NamedTuple):
    """Lanes at one moment of a search."""

    iteration: int
    temperature: float
    number: Tensor  # (n,) which lanes
    parts: Parts  # n networks, as they are computed
    kept: Tensor  # (n, L + 1, H, H) bool: weights that are there; hardening would leave out the others
    error: Tensor  # (n,) of the networks, on validation rows
    non_zeros: Tensor  # (n,) of the networks, if they were hardened now

    def take(self, rows: Tensor) -> "Frame":
        own = (part[rows] for part in (self.kept, self.error, self.non_zeros))
        return Frame(self.iteration, self.temperature, self.number[rows], self.parts.take(rows), *own)

    def plain(self, form: Form) -> Parts:
        """The networks hardened: of the weights that are there, units that are on and something reads."""
        return hardened(form, self.parts._replace(weights=self.parts.weights * self.kept))


class Run:
    """What changes during a search, and so what is kept between its chunks.

    arm, config: of `latent_search`; table: a `cornn.Table`.
    """

    def __init__(self, arm, table, config):
        self.arm, self.form, self.config = arm, arm.form, config
        self.rows = {name: columns(getattr(table, name)) for name in ("train", "validation", "test")}
        self.constant = constant_errors(self.rows["train"][1])  # (functions,)
        if not (self.constant > 0).all():
            name = table.names[int((self.constant <= 0).int().argmax())]
            raise ValueError(f"table: the targets of {name!r} are constant in the training rows; nothing to search for")
        self.device = table.train[0].device
        self.lanes = lanes(len(table.names), config).to(self.device)
        used(self.form, torch.tensor(config.depths))  # raises for depths that the form has not
        with epoch_randomness(config.seed, -1, CPU):
            self.z = arm.encode(starts(self.form, self.lanes, self.rows["train"], config))
        self.refined_at = max(1, int(config.refined * config.steps))
        self.threshold = torch.full((len(self.z),), config.threshold, device=self.device)
        self.moments = [torch.zeros_like(v) for v in (self.z, self.z, self.threshold, self.threshold)]
        self.score = torch.zeros(len(self.z), device=self.device)  # running mean of the objective
        self.iteration, self.spent, self.frames = 0, 0.0, []
        self.searched, self.found, self.plain = None, [], None
        self.history = {name: [] for name in ("iteration", "objective", "fvu", "temperature", "lanes", "cpu_seconds")}

    def take(self, rows: Tensor) -> None:
        """Go on with these lanes alone."""
        self.lanes, self.z, self.threshold, self.score = (
            part.take(rows) if isinstance(part, Lanes) else part[rows]
            for part in (self.lanes, self.z, self.threshold, self.score)
        )
        self.moments = [part[rows] for part in self.moments]

    def data(self, name: str) -> tuple[Tensor, Tensor]:
        """x (m, inputs) and the lanes' y (m, n, outputs) or (m, n)."""
        x, y = self.rows[name]
        return x, y[:, self.lanes.function]

    def step(self) -> tuple[Tensor, Tensor]:
        """One update of all lanes; (objective, error relative to the constant), (n,) each."""
        config, t, constant = self.config, self.iteration / self.config.steps, self.constant[self.lanes.function]
        x, y = self.rows["train"]
        rows = torch.randperm(len(x))[: config.batch]
        own = self.z.requires_grad_(), self.threshold.requires_grad_(config.threshold_lr > 0)
        raw = self.decoded()
        y = y[rows][:, self.lanes.function]
        value, error = objective(self.form, raw, own[1], self.lanes.penalty, constant, x[rows], y, config, t)
        moving = [v for v in own if v.requires_grad]
        gradients = torch.autograd.grad(value.sum(), moving)
        with torch.no_grad():
            refining = self.iteration >= self.refined_at
            lr = config.refining_lr if refining else config.lr or self.arm.lr
            lrs = rate(lr, config, t), config.threshold_lr
            number = self.iteration + 1 - refining * self.refined_at
            for k, (v, g, lr) in enumerate(zip(moving, gradients, lrs, strict=False)):
                adam(v, g, *self.moments[2 * k : 2 * k + 2], number, lr)
            self.threshold.clamp_(0, 3)
        self.z, self.threshold = self.z.detach(), self.threshold.detach()
        self.score = torch.lerp(self.score, value.detach(), 0.1 if self.iteration else 1.0)
        self.iteration += 1
        if self.iteration == self.refined_at:
            self.refine()
        return value.detach(), error.detach() / constant

    def decoded(self) -> Parts:
        """The numbers, and logits, that the lanes' points stand for: by the arm's decoder, or their own."""
        decode = self.arm.decode if self.iteration < self.refined_at else partial(from_rows, self.form)
        return decode(self.z, self.lanes.depth)

    @torch.no_grad()
    def refine(self) -> None:
        """From here on the decoded numbers themselves are searched for."""
        self.z = to_rows(self.form, self.arm.decode(self.z, self.lanes.depth))
        self.moments = [torch.zeros_like(v) for v in (self.z, self.z, self.threshold, self.threshold)]

    def train_chunk(self) -> None:
        """Up to the next frame; after the last, hardening; then one pruning with its training."""
        config, started = self.config, time.process_time()
        values = [torch.full((1,), math.nan)] * 2
        if self.iteration < config.steps:
            chunk = max(1, config.steps // FRAMES)
            at = self.iteration // chunk
            steps, seen = min(chunk, config.steps - self.iteration), []
            with epoch_randomness(config.seed, at, CPU):
                for _ in range(steps):
                    if self.iteration == int(config.drop_at * config.steps):
                        self.drop()
                    seen.append(self.step())
            values = [torch.cat(part) for part in zip(*seen, strict=True)]
            if not values[0].isfinite().all():
                lr = config.lr or self.arm.lr
                raise ValueError(f"iteration {self.iteration}: the search diverged; use a lr below {lr:g}")
            self.frames.append(self.frame())
        else:
            self.harden() if self.searched is None else self.tune()
            self.iteration += 1
        self.spent += time.process_time() - started
        now = temperature(config, min(1.0, self.iteration / max(1, config.steps)))
        record = self.iteration, float(values[0].mean()), float(values[1].median()), now, len(self.z), self.spent
        for part, value in zip(self.history.values(), record, strict=True):
            part.append(value)

    def drop(self) -> None:
        """Of each function's lanes with one penalty, the better half by the objective goes on."""
        self.take(_best_of(self.lanes, self.score, None))

    @torch.no_grad()
    def now(self) -> tuple[Parts, Tensor, Parts]:
        """The lanes' networks: (as computed, which weights hardening keeps (n, L + 1, H, H), hardened)."""
        t = min(1.0, self.iteration / max(1, self.config.steps))
        computed, mixed = formed(self.form, self.decoded(), self.threshold, self.config, t)
        kept = mixed.weights.abs() >= self.threshold[:, None, None, None]
        return computed, kept, hardened(self.form, mixed._replace(weights=mixed.weights * kept))

    def frame(self) -> Frame:
        computed, kept, plain = self.now()
        errors = mlp_fitting.errors(self.form, computed, self.data("validation"))
        t = temperature(self.config, self.iteration / self.config.steps)
        return Frame(self.iteration, t, self.lanes.number, computed, kept, errors, non_zeros(self.form, plain))

    def harden(self) -> None:
        """Plain networks of all lanes; then each function's best lanes of each penalty alone go on."""
        computed, _, plain = self.now()
        self.searched = self.lanes._asdict() | self.errors(computed)
        self.record(plain, 0, self.lanes.number)
        made = self.found[0]
        score = (made["validation"] / self.constant[self.lanes.function] + self.config.floor).log()
        chosen = _best_of(self.lanes, score + self.lanes.penalty * made["non_zeros"], self.config.tuned)
        self.take(chosen)
        self.plain = plain.take(chosen)
        self.frames = [frame.take(torch.isin(frame.number, self.lanes.number)) for frame in self.frames]

    def tune(self) -> None:
        """Train all networks, the first time; then prune them to the next budget, and train those that shrank."""
        stage, parts = self.iteration - self.config.steps, self.plain
        changed = torch.ones_like(parts.depth, dtype=torch.bool)
        if stage > 1:
            budget = self.config.budgets[stage - 2]
            changed = non_zeros(self.form, parts) > budget
            parts = keep_important(self.form, parts, budget, self.rows["train"][0])
        if changed.any():
            own = changed.nonzero()[:, 0]
            data = [(x, y[:, own]) for x, y in map(self.data, ("train", "validation"))]
            how = self.config.training if stage == 1 else self.config.tuning
            fitted = mlp_fitting.fit(self.form, parts.take(own), *data, how).parts
            self.plain = Parts(*(part.index_copy(0, own, new) for part, new in zip(parts, fitted, strict=True)))
            self.record(self.plain, stage, self.lanes.number)

    def errors(self, parts: Parts) -> dict[str, Tensor]:
        """Of the lanes' networks on all rows: train, validation, test, (n,) each."""
        return {name: mlp_fitting.errors(self.form, parts, self.data(name)) for name in self.rows}

    def record(self, parts: Parts, stage: int, number: Tensor) -> None:
        facts = {"lane": number, "stage": torch.full_like(number, stage), "non_zeros": non_zeros(self.form, parts)}
        self.found.append(facts | self.errors(parts) | {"parts": parts})

    def state(self) -> dict:
        """What `load` needs to go on from here."""
        frames = [(*frame[:3], tuple(frame.parts), *frame[4:]) for frame in self.frames]
        found = [made | {"parts": tuple(made["parts"])} for made in self.found]
        own = {name: getattr(self, name) for name in KEPT}
        plain = None if self.plain is None else tuple(self.plain)
        return own | {"lanes": tuple(self.lanes), "frames": frames, "found": found, "plain": plain}

    def load(self, stored: dict) -> None:
        stored = pytree.tree_map_only(Tensor, lambda t: t.to(self.device), stored)
        for name in KEPT:
            setattr(self, name, stored[name])
        self.lanes = Lanes(*stored["lanes"])
        self.frames = [Frame(*frame[:3], Parts(*frame[3]), *frame[4:]) for frame in stored["frames"]]
        self.found = [made | {"parts": Parts(*made["parts"])} for made in stored["found"]]
        self.plain = None if stored["plain"] is None else Parts(*stored["plain"])


KEPT = ("z", "threshold", "moments", "score", "iteration", "spent", "searched", "history")  # of a Run, as they are


def starts(form: Form, lanes: Lanes, data: tuple[Tensor, Tensor], config) -> Parts:
    """Plain networks where lanes start: of each depth those drawn of the stream that are nearest the lane's function.

    As near as a factor and a constant for each output bring them, which they then have; y (m, functions, outputs), or
    classes (m, functions), whose indicators are the outputs' targets.
    """
    x, y = (part[:PROBED] for part in data)
    y = y if y.is_floating_point() else F.one_hot(y, form.outputs).float()
    centred, parts = y - y.mean(0), empty(form, lanes.depth)
    drawn = draw(form, config.starts, config.candidates * form.depth).to(x.device)
    for depth in config.depths:
        nets = drawn.take(drawn.depth == depth)
        outputs = evaluate(form, nets, x)  # (c, m, outputs)
        mean, variance = outputs.mean(1), outputs.var(1, unbiased=False).clamp(min=EPS)
        slope = torch.einsum("cmo,mfo->cfo", outputs - mean[:, None], centred) / (len(x) * variance[:, None])
        order = (slope.square() * variance[:, None]).sum(2).argsort(0, descending=True)  # (c, functions)
        own = (lanes.depth == depth).nonzero()[:, 0]  # a function's together
        function, each = lanes.function[own], config.restarts * len(config.penalties)
        rank = torch.arange(len(own), device=x.device) % each
        best = order[rank % len(order), function]
        factor, near = slope[best, function], nets.take(best)
        near.weights[:, -1, : form.outputs] *= factor[..., None]
        near.biases[:, -1, : form.outputs] *= factor
        near.biases[:, -1, : form.outputs] += y.mean(0)[function] - factor * mean[best]
        for part, new in zip(parts[:4], near[:4], strict=True):
            part[own] = new
    return parts


def adam(v: Tensor, g: Tensor, mean: Tensor, square: Tensor, step: int, lr: float) -> None:
    """One update of v and its moments, in place (Kingma and Ba 2015, beta 0.9 and 0.99)."""
    mean.lerp_(g, 0.1)
    square.lerp_(g * g, 0.01)
    v.addcdiv_(mean / (1 - 0.9**step), (square / (1 - 0.99**step)).sqrt_().add_(1e-10), value=-lr)


def columns(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A table's rows with y (m, functions, outputs), or classes (m, functions)."""
    x, y = data
    return x, y[..., None] if y.is_floating_point() and y.ndim == 2 else y


def _best_of(lanes: Lanes, score: Tensor, kept: int | None) -> Tensor:
    """The lanes (k,) of lowest score among those of one function and penalty: so many, or the better half."""
    chosen = []
    for function in lanes.function.unique():
        for penalty in lanes.penalty.unique():
            rivals = ((lanes.function == function) & (lanes.penalty == penalty)).nonzero()[:, 0]
            chosen.append(rivals[score[rivals].argsort()[: kept if kept is not None else -(-len(rivals) // 2)]])
    return torch.cat(chosen).sort().values

"""Weight flow: networks from noise, by a velocity field learned by flow matching on the coordinates of a zoo.

Gupta et al. 2026, "DeepWeightFlow". Per step, with z a zoo's networks in `coordinates`, s and sigma the deviations of
source and path noise:

    x0 ~ s N(0, I),  x1 ~ z,  t ~ U(0, 1),  x_t = (1 - t) x0 + t x1 + sigma eps,  loss = mean |v(x_t, t) - (x1 - x0)|^2

What we do differently from the public code: the exact reduction to the n - 1 coordinates that carry everything, fresh
noise instead of a fixed table, the last or the averaged network instead of the one with the luckiest minibatch, and
measured on held-out networks. The perfect minimiser only copies the zoo (`closed_form_flow`): what is new in a sample
comes from what stops the network short of it. `source` is the dial.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from wsnotebook.datasets import cache_folder
from wsnotebook.methods.conditions import Conditions
from wsnotebook.methods.coordinates import Coordinates, coordinates
from wsnotebook.methods.flow_training import Run
from wsnotebook.methods.sampling import integrate, start, times
from wsnotebook.methods.velocity import Velocity
from wsnotebook.training import check_at_least, check_choice, fingerprint, run_to_end
from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True)
class Config:
    """How a flow is trained. `preset` has the paper's settings and ours."""

    components: int | None = None  # principal components; None: all, which lose nothing of the training networks
    network: str = "residual"  # residual (ours) | paper
    hidden: int = 256  # width of the velocity network
    blocks: int = 2  # residual blocks; of "residual" alone
    time_features: int = 64  # width of the time's embedding
    dropout: float = 0.0  # probability
    source: float = 1.0  # standard deviation of the start, in units of the coordinates' rms
    path_noise: float = 1e-3  # sigma, in the same units
    time: str = "uniform"  # distribution of t: uniform | beta, which is Beta(2, 5)
    pairs: str = "fresh"  # x0: fresh noise | table, a fixed x0 for each network, shuffled (the public code)
    iterations: int = 5_000  # optimiser's steps
    batch: int = 64  # pairs a step
    lr: float = 1e-3  # AdamW's learning rate at the start, and from there along a cosine
    floor_lr: float = 1e-6  # ... at the end
    weight_decay: float = 1e-5  # decoupled
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's
    ema: float = 0.99  # decay of the running average of the network, which then is what is kept; 0: none
    keep: str = "last"  # last | validation (lowest held-out loss) | best_batch (lowest of a minibatch: public code)
    held_out: float = 0.0  # share of the models that is not trained on, but validated on; in the others' coordinates
    condition: str = ""  # the fact that the flow is told: numbers, or names of categories; empty: none
    seed: int = 0  # of weights, pairs, times, noise and dropout

    def __post_init__(self):
        check_choice("network", self.network, ("residual", "paper"))
        check_choice("time", self.time, ("uniform", "beta"))
        check_choice("pairs", self.pairs, ("fresh", "table"))
        check_choice("keep", self.keep, ("last", "validation", "best_batch"))
        check_at_least(self, hidden=2, blocks=0, time_features=2, dropout=0, source=1e-9, path_noise=0, iterations=0)
        check_at_least(self, batch=1, lr=0, floor_lr=0, weight_decay=0, ema=0, held_out=0)
        if self.ema >= 1 or self.held_out >= 1 or self.dropout >= 1:
            raise ValueError(f"ema={self.ema}, held_out={self.held_out}, dropout={self.dropout}: expected below 1")
        if self.keep == "validation" and not self.held_out:
            raise ValueError("keep='validation' needs networks to validate on: set held_out, such as 0.2")


def preset(name: str, zoo: Zoo, **changes) -> Config:
    """The settings "paper" (for MNIST MLPs; its deviations are in weights' units, hence the zoo) or "ours", changed.

    Raises ValueError for another name, and what `coordinates` does.
    """
    check_choice("preset", name, ("paper", "ours"))
    if name == "ours":
        return Config(**changes)
    rms = coordinates(zoo, changes.get("components")).rms
    paper = Config(
        network="paper",
        hidden=512,
        dropout=0.1,
        source=0.01 / rms,
        path_noise=0.001 / rms,
        pairs="table",
        iterations=30_000,
        batch=8,
        lr=5e-4,
        ema=0.0,
        keep="best_batch",
    )
    return replace(paper, **changes)


@dataclass(frozen=True, eq=False)
class Flow:
    """A trained flow. History: an entry every 100 iterations, entry 0 before the first.

    Its fields: iteration; loss, mean over these iterations, and validation_loss, at fixed points on held-out networks,
    both relative to the target's mean square (1: as good as standing still); velocity, the size of v at fixed points
    relative to the target's (towards 0: the flow went extinct); cpu_seconds, so far.
    """

    config: Config
    coordinates: Coordinates  # of the networks trained on
    conditions: Conditions | None
    network: Velocity
    history: dict[str, list[float]]
    finished: bool = True  # False: stopped early (and usable all the same)

    def __repr__(self) -> str:
        return f"Flow({self.coordinates!r}, {self.history['iteration'][-1]} iterations, {self.config.network} network)"

    def sample(
        self,
        n: int,
        *,
        steps: int = 50,
        solver: str = "rk4",
        power: float = 2.0,
        seed: int = 0,
        condition: float | str | np.ndarray | None = None,
        remainder: float = 0.0,
        trajectory: bool = False,
    ) -> Zoo | Tensor:
        """n networks, with the facts model, parent (-1), and condition if there is one.

        solver: euler | rk4 | adaptive, as `sampling.integrate`. power: of `sampling.times`; 1 is evenly spaced, the
        paper's. condition: a value of the fact trained with, for all or (n,); None draws from the training networks'.
        remainder: as `Coordinates.zoo`, for flows in few components.
        trajectory: instead, the coordinates at all times (steps + 1, n, k). With batch norm, pass the result to
        `evaluation.recalibrated` with training images.
        Raises ValueError for a condition that the flow does not know, and what `times` and `integrate` do.
        """
        c = self.coordinates
        x = start(n, len(c.basis), self.config.source * c.rms, seed, c.basis.device)
        if self.conditions is None:
            if condition is not None:
                raise ValueError(f"condition={condition!r}: this flow has none; train it with Config(condition=fact)")
            asked, facts = None, {}
        else:
            values = self.conditions.values(n, condition, seed)
            asked, facts = self.conditions.encode(values).to(x.device), {"condition": values}
        path = integrate(lambda x, t: self.network(x, t[None], asked), x, times(steps, power), solver, c.rms)
        return path if trajectory else c.zoo(path[-1], remainder=remainder, seed=seed, **facts)


def train(zoo: Zoo, config: Config, *, keep: bool = False) -> Flow:
    """Train a flow to the zoo's networks, on the device that they are on.

    keep: store the state in the cache folder, under the hash of zoo and config; the same call later goes on from there,
    or returns at once. An interrupt (Ctrl-C, the notebook's stop button) leaves a usable flow with `finished` False.
    Raises ValueError for a zoo that does not have the components or the condition, and when the loss diverges.
    """
    run = Run(zoo, config)
    finished = run_to_end(run, _kept_path(zoo, config) if keep else None, "flow")
    return Flow(config, run.coordinates, run.conditions, run.chosen(), run.history, finished)


def _kept_path(zoo: Zoo, config: Config) -> Path:
    """Where a run's state is kept: one file for each (config, zoo, package version)."""
    facts = [(fact, zoo.facts[fact].tolist()) for fact in sorted({"model", config.condition} & set(zoo.facts))]
    name = fingerprint(config, zoo.network, zoo.layout, zoo.weights, facts)
    return cache_folder() / "results" / f"weight-flow-{name}.pt"

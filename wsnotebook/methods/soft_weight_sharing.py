"""Soft weight-sharing: retrain a network under a learned mixture prior until its weights cluster, then quantise.

Ullrich, Meeds and Welling 2017, "Soft weight-sharing for neural network compression". The loss of a step is

    L = cross-entropy(batch) + tau / N * L_C(all weights)          (N training rows)

with the complexity L_C of `mixture_prior`. What we do differently from the public code: biases and norms learn too, the
weights' learning rate decays, near-duplicate components are merged, and the quantisation rule is chosen on validation.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import astuple, dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from wsnotebook import datasets, networks, training
from wsnotebook.datasets import Dataset
from wsnotebook.evaluation import score
from wsnotebook.layout import Layout, check_finite
from wsnotebook.methods import codec
from wsnotebook.methods.mixture_prior import Mixture, MixturePrior

HISTORY = (
    "epoch",
    "loss",  # training cross-entropy, nats
    "complexity",  # L_C, nats a weight
    "tau",
    "validation_error",  # %, in floating point
    "validation_loss",  # nats
    "spike_sigma",
    "cpu_seconds",  # so far
)
FOLLOWED = 4_000  # weights of each tensor whose path is kept, for the pictures


@dataclass(frozen=True)
class Config:
    """How a trained network is clustered and quantised. The defaults are the public code's for LeNet-300-100."""

    components: int = 17  # J, the spike at zero included
    tau: float = 0.005  # weight of the complexity; more compresses more
    tau_warmup: int = 0  # epochs over which tau rises linearly to its value
    pi_0: float = 0.999  # the spike's fixed mixing proportion
    init_sigma: float = 0.25  # starting standard deviation of every component
    init_range: tuple[float, float] | None = (
        None  # of the starting means; None: from the smallest to the largest weight
    )
    gamma: tuple[float, float] | None = (250.0, 0.1)  # (shape, rate) of the free components' precisions; None: no prior
    gamma_zero: tuple[float, float] | None = (5000.0, 2.0)  # the same for the spike
    lr_weights: float = 5e-4  # Adam's learning rate for the network
    lr_means: float = 1e-4  # ... for the means mu_j
    lr_log_variances: float = 3e-3  # ... for log s_j
    lr_logits: float = 3e-3  # ... for the mixing logits
    schedule: str = "constant"  # of lr_weights: constant | cosine | step
    weight_decay: float = 0.0  # L2 coefficient on the clustered weights
    train_rest: bool = False  # biases, norms and tensors left out learn too
    epochs: int = 100  # of retraining
    batch: int = 128  # rows a step
    augment: bool = False  # random crops and flips
    include: str = ""  # regular expression: which weight tensors are clustered; empty: all
    exclude: str = ""  # regular expression: which are left as they are
    merge: float = 1e-10  # merge components closer than this symmetric divergence, nats
    assign: str = "ml"  # ml | map | validation (whichever has the lower validation error)
    seed: int = 0  # of order and augmentation

    def __post_init__(self):
        training.check_choice("schedule", self.schedule, training.SCHEDULES)
        training.check_choice("assign", self.assign, ("ml", "map", "validation"))
        training.check_at_least(self, components=2, tau=0, tau_warmup=0, epochs=1, batch=1, weight_decay=0, merge=0)
        training.check_at_least(self, lr_weights=0, lr_means=0, lr_log_variances=0, lr_logits=0, init_sigma=1e-4)
        if not 0 < self.pi_0 < 1:
            raise ValueError(f"pi_0={self.pi_0!r}: expected a proportion strictly between 0 and 1")


@dataclass(frozen=True)
class Preset:
    """Everything one experiment needs: data, network, its training and its compression."""

    dataset: str
    network: str
    training: training.Config
    config: Config
    taus: tuple[float, ...]  # candidates for config.tau, chosen on validation; empty: keep config.tau
    seeds: int  # runs, for the interval
    checkpoint: str = ""  # file of a trained network to start from; empty: train one


@dataclass(frozen=True)
class Result:
    """A run of soft weight-sharing, finished or so far. History and mixtures: one entry an epoch, entry 0 before it."""

    config: Config
    layout: Layout  # of the clustered tensors
    history: dict[str, list]  # its fields: HISTORY
    mixtures: tuple[Mixture, ...]
    sample: Tensor  # (m,) places of the followed weights in the clustered row
    sample_layer: Tensor  # (m,) their tensors, as positions in layout.names
    trace: Tensor  # (epochs + 1, m) their values
    before: dict[str, Tensor]  # the network's state at the start
    after: dict[str, Tensor]  # ... now, in floating point
    quantised: dict[str, Tensor]  # ... with clustered weights at means of `mixture`; empty while running
    mixture: Mixture  # the last one, near-duplicates merged
    sizes: codec.Sizes | None  # the paper's accounting; None while running
    assign: str  # the quantisation rule that was kept: ml | map; empty while running
    quantised_error: float  # validation error of the quantised network, %; nan while running
    finished: bool  # False: running, or stopped early (and usable all the same)


def compress(
    network: nn.Module,
    dataset: Dataset,
    config: Config,
    *,
    keep: bool = False,
    watch: Callable[[Result], bool | None] | None = None,
) -> Result:
    """Retrain a copy of a trained network under the mixture prior and quantise it.

    keep: as in `training.train`. watch: called with the result so far after every epoch; True stops there. An interrupt
    (Ctrl-C, the notebook's stop button) stops too; both leave a quantised, usable result with `finished` False.
    Raises ValueError for weights that are not finite or a filter that leaves no tensor.
    """
    path = training.kept_path("soft-weight-sharing", config, dataset, network) if keep else None
    run = _Retraining(network, dataset, config)
    if stored := training.load_kept(path):
        run.load(stored)
    stopped = False
    try:
        for epoch in tqdm(run.epochs_left(), desc="soft weight-sharing", unit="epoch", leave=False):
            run.record(epoch, run.train_epoch(epoch))
            if path:
                with datasets.replacing(path) as file:
                    torch.save(run.state(), file)
            if watch and watch(run.result()):
                stopped = epoch < config.epochs
                break
    except KeyboardInterrupt:
        if not run.trace:
            raise
        stopped = True
    check_finite(run.network.state_dict(), "retrained network")
    return replace(quantise(run.result(), run.network, dataset), finished=not stopped)


class _Retraining:
    """What changes while a network is retrained, and so what is kept between epochs."""

    def __init__(self, network: nn.Module, dataset: Dataset, config: Config):
        check_finite(network.state_dict(), "network")
        self.config, self.dataset = config, dataset
        self.before = _snapshot(network)
        self.network = copy.deepcopy(network)
        self.layout = Layout.of(network, kinds=("weight",), include=config.include, exclude=config.exclude)
        parameters = dict(self.network.named_parameters())
        self.clustered = [parameters[name] for name in self.layout.names]
        rest = [p for name, p in parameters.items() if name not in self.layout.names] if config.train_rest else []
        with torch.no_grad():
            low, high = config.init_range or (float(self.row().min()), float(self.row().max()))
        means = torch.linspace(low, high, config.components - 1)
        prior = MixturePrior(means, config.init_sigma, config.pi_0, config.gamma, config.gamma_zero)
        self.prior = prior.to(self.clustered[0].device)
        weight_groups = [{"params": self.clustered, "weight_decay": config.weight_decay}, {"params": rest}]
        mixture_groups = [
            {"params": [self.prior.means], "lr": config.lr_means},
            {"params": [self.prior.log_variances], "lr": config.lr_log_variances},
            {"params": [self.prior.logits], "lr": config.lr_logits},
        ]
        self.weight_optimiser = torch.optim.Adam(weight_groups, lr=config.lr_weights, fused=True)
        self.mixture_optimiser = torch.optim.Adam(mixture_groups)
        self.sample, self.sample_layer = _followed(self.layout)
        self.history = {name: [] for name in HISTORY}
        self.mixtures, self.trace = [], []
        self.started = time.process_time()

    def row(self) -> Tensor:
        """The clustered weights as one row, (d,)."""
        return torch.cat([p.reshape(-1) for p in self.clustered])

    def epochs_left(self) -> range:
        return range(len(self.trace), self.config.epochs + 1)

    def tau(self, epoch: int) -> float:
        """The complexity's weight in this epoch, warmed up linearly."""
        return self.config.tau * (min(1.0, epoch / self.config.tau_warmup) if self.config.tau_warmup else 1.0)

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training rows (none in epoch 0); the mean training cross-entropy, nats."""
        config, (x, y), tau = self.config, self.dataset.train, self.tau(epoch)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        self.network.train()
        with training.epoch_randomness(config.seed, epoch, x.device):
            for t, rows in training.minibatches(len(x), config, epoch, x.device):
                training.set_lr(self.weight_optimiser, config.lr_weights, config.schedule, t)
                inputs = training.augmented(x[rows]) if config.augment else x[rows]
                data_loss = F.cross_entropy(self.network(inputs), y[rows])
                loss = data_loss + tau / len(x) * self.prior(self.row())
                self.weight_optimiser.zero_grad()
                self.mixture_optimiser.zero_grad()
                loss.backward()
                self.weight_optimiser.step()
                self.mixture_optimiser.step()
                total += data_loss.detach() * len(rows)
        return float(total) / len(x) if epoch > 0 else score(self.network, self.dataset.train).loss

    @torch.no_grad()
    def record(self, epoch: int, loss: float) -> None:
        """Append the state after an epoch to history, mixtures and trace."""
        mixture, validation, row = self.prior.mixture(), score(self.network, self.dataset.validation), self.row()
        complexity = float(self.prior(row)) / self.layout.d
        spent = time.process_time() - self.started
        facts = (epoch, loss, complexity, self.tau(epoch), *astuple(validation), float(mixture.sigmas[0]), spent)
        for name, value in zip(HISTORY, facts, strict=True):
            self.history[name].append(value)
        self.mixtures.append(mixture)
        self.trace.append(row[self.sample.to(row.device)].cpu())

    def result(self) -> Result:
        """The run so far, not quantised."""
        parts = (tuple(self.mixtures), self.sample, self.sample_layer, torch.stack(self.trace), self.before)
        history = copy.deepcopy(self.history)
        after = _snapshot(self.network)
        return Result(
            self.config, self.layout, history, *parts, after, {}, self.mixtures[-1], None, "", math.nan, False
        )

    def _modules(self) -> dict:
        names = ("network", "prior", "weight_optimiser", "mixture_optimiser")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict:
        """Everything the next epoch depends on, and what was recorded."""
        mixtures = [(m.means, m.sigmas, m.pis) for m in self.mixtures]
        recorded = {"history": self.history, "mixtures": mixtures, "trace": torch.stack(self.trace)}
        return recorded | {name: module.state_dict() for name, module in self._modules().items()}

    def load(self, stored: dict) -> None:
        """Go on from a `state`."""
        for name, module in self._modules().items():
            module.load_state_dict(stored[name])
        self.history, self.trace = stored["history"], list(stored["trace"])
        self.mixtures = [Mixture(*parts) for parts in stored["mixtures"]]
        self.started = time.process_time() - self.history["cpu_seconds"][-1]


def quantise(result: Result, network: nn.Module, dataset: Dataset) -> Result:
    """Set every clustered weight to the mean of its component, by the rule of the Config, and count the bits.

    With assign="validation" both rules are tried; the lower validation error is kept, then the smaller size.
    """
    layout, mixture = result.layout, result.mixture.merged(result.config.merge)
    row = layout.flatten(result.after)
    network = copy.deepcopy(network)
    choices = []
    for rule in ("ml", "map") if result.config.assign == "validation" else (result.config.assign,):
        ids = mixture.assign(row, rule)
        state = result.after | layout.unflatten(mixture.means[ids].float())
        network.load_state_dict(state)
        sizes = _paper_sizes(network, layout, ids, len(mixture.means) - 1)
        choices.append((score(network, dataset.validation).error, sizes.bits, rule, state, sizes))
    error, _, rule, state, sizes = min(choices, key=lambda choice: choice[:2])
    quantised = {name: tensor.clone() for name, tensor in state.items()}
    return replace(result, quantised=quantised, mixture=mixture, sizes=sizes, assign=rule, quantised_error=error)


def _paper_sizes(network: nn.Module, layout: Layout, ids: Tensor, codebook: int) -> codec.Sizes:
    """The paper's count over all weight tensors; those outside the layout stay at 32 bits a weight."""
    every = Layout.of(network, kinds=("weight",))
    clustered = layout.unflatten(ids)
    return codec.Sizes(
        tuple(
            codec.paper_size(name, clustered[name], codebook)
            if name in clustered
            else codec.unquantised_size(name, size)
            for name, size in zip(every.names, every.sizes, strict=True)
        )
    )


def _followed(layout: Layout) -> tuple[Tensor, Tensor]:
    """Places (m,) of at most FOLLOWED evenly spread weights a tensor, and the tensor (m,) each belongs to."""
    starts = torch.tensor((0, *layout.sizes)).cumsum(0)
    places = [
        start + torch.linspace(0, size - 1, min(size, FOLLOWED), dtype=torch.float64).round().long()
        for start, size in zip(starts, layout.sizes, strict=False)
    ]
    sample = torch.cat(places)
    return sample, layout.tensor_index()[sample]


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


# ---- experiments by name -----------------------------------------------------------------------------------------

_LENET = Config(gamma=(391.84, 0.3369), gamma_zero=(5661.6, 2.889), tau=0.0044376)  # the public code's tuned values
_OURS = replace(_LENET, init_sigma=0.1, schedule="cosine", train_rest=True, epochs=20, merge=1e-2, assign="validation")
_CONSTANT = training.Config(epochs=20, schedule="constant")

PRESETS = {
    "quick": Preset(
        dataset="digits",
        network="mlp-64-300-100-10",
        training=training.Config(epochs=30, batch=32, lr=2e-3),
        config=replace(
            _OURS,
            components=13,
            tau=0.01,
            pi_0=0.99,
            gamma=(250.0, 0.1),
            gamma_zero=(500.0, 0.05),
            lr_weights=3e-3,
            lr_means=1e-3,
            lr_log_variances=2e-2,
            lr_logits=2e-2,
            epochs=30,
            batch=32,
        ),
        taus=(0.01, 0.02, 0.04),
        seeds=3,
    ),
    "laptop": Preset(
        dataset="mnist",
        network="lenet-300-100",
        training=training.Config(epochs=20, batch=256, lr=2e-3),
        config=replace(
            _OURS, tau=0.06, lr_weights=5e-3, lr_means=2e-4, lr_log_variances=6e-3, lr_logits=6e-3, batch=256
        ),
        taus=(0.03, 0.045, 0.06),
        seeds=5,
    ),
    "paper": Preset("mnist", "lenet-300-100", _CONSTANT, _LENET, taus=(), seeds=5),
    "lenet-5-caffe": Preset("mnist", "lenet-5-caffe", _CONSTANT, _LENET, taus=(), seeds=1),
    "tutorialnet": Preset(
        dataset="mnist",
        network="tutorialnet",
        training=replace(_CONSTANT, epochs=30, batch=256),
        config=Config(components=16, pi_0=0.99, tau=0.003, init_range=(-0.6, 0.6), assign="map", epochs=30, batch=256),
        taus=(),
        seeds=1,
    ),
    "wrn-16-4": Preset(
        dataset="cifar10",
        network="wrn-16-4",
        training=training.Config(epochs=160, optimiser="sgd", lr=0.1, schedule="step", weight_decay=5e-4, augment=True),
        config=replace(
            _LENET,
            components=64,
            pi_0=0.99,
            lr_weights=1e-3,
            lr_means=3e-4,
            lr_log_variances=1e-3,
            lr_logits=1e-3,
            epochs=40,
            augment=True,
        ),
        taus=(),
        seeds=1,
    ),
}  # the scales first, then the papers' other networks


def preset(
    name: str, *, dataset: str = "", network: str = "", checkpoint: str = "", overrides: dict | None = None
) -> Preset:
    """An experiment by name, with another dataset or network if given, and any setting changed by `overrides`.

    overrides: fields of this module's Config by name, and those of training.Config as "training.epochs".

    checkpoint: a trained network's file, taken as it is instead of training one. A tau among the overrides is kept:
    there is then nothing to choose. Raises ValueError for an unknown preset or field.
    """
    training.check_choice("preset", name, PRESETS)
    chosen, overrides = PRESETS[name], overrides or {}
    known = {field.name: Config for field in fields(Config)}
    known |= {f"training.{field.name}": training.Config for field in fields(training.Config)}
    if unknown := overrides.keys() - known.keys():
        raise ValueError(f"overrides: unknown {', '.join(sorted(unknown))}; soft weight-sharing has {', '.join(known)}")
    changed = {owner: {} for owner in (Config, training.Config)}
    for name, value in overrides.items():
        changed[known[name]][name.removeprefix("training.")] = value
    config = replace(chosen.config, **changed[Config])
    how = replace(chosen.training, **changed[training.Config])
    taus = () if "tau" in overrides else chosen.taus
    names = {"dataset": dataset or chosen.dataset, "network": network or chosen.network, "checkpoint": checkpoint}
    how = replace(how, epochs=0) if checkpoint else how
    return replace(chosen, **names, training=how, config=config, taus=taus)


@dataclass(frozen=True)
class Run:
    """One seed of an experiment: the trained network and its compression. The test set has not been looked at."""

    seed: int
    trained: training.Result
    result: Result


def trained_network(preset: Preset, dataset: Dataset, seed: int) -> tuple[nn.Module, training.Result]:
    """The experiment's network before compression, and its training; kept as it goes."""
    network = networks.build_for(dataset, preset.network, seed=seed)
    if preset.checkpoint:
        training.load_checkpoint(network, preset.checkpoint)
    trained = training.train(network, dataset, replace(preset.training, seed=seed), keep=True)
    network.load_state_dict(trained.state)
    return network, trained


def study(preset: Preset, seeds: Sequence[int], device="cpu", executor: Executor | None = None) -> list[Run]:
    """Train and compress a network for each seed; kept as they go, side by side if an executor is given."""
    one = partial(_run, preset, device)
    return list(executor.map(one, seeds) if executor else map(one, seeds))


def _run(preset: Preset, device, seed: int) -> Run:
    dataset = datasets.load(preset.dataset).to(device)
    network, trained = trained_network(preset, dataset, seed)
    return Run(seed, trained, compress(network, dataset, replace(preset.config, seed=seed), keep=True))


def choose(runs: Sequence[Run], allowance: float = 0.1) -> Run:
    """The smallest of several compressions of one network whose validation error stays near the trained network's.

    allowance: how much worse it may be, percentage points; if none is that good, the one with the lowest error.
    """
    good = [r for r in runs if r.result.quantised_error <= r.trained.history["validation_error"][-1] + allowance]
    if not good:
        return min(runs, key=lambda run: run.result.quantised_error)
    return min(good, key=lambda run: run.result.sizes.bits)

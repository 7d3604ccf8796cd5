"""Soft weight-sharing: retrain a network under a learned mixture prior until its weights cluster, quantise, and pack.

Ullrich, Meeds and Welling 2017, "Soft weight-sharing for neural network compression". The loss of a step is

    L = cross-entropy(batch) + tau / N * L_C(all weights)          (N training rows)

with the complexity L_C of `mixture_prior`. What we do differently from the public code: biases and norms learn too, the
weights' learning rate decays, near-duplicate components are merged, the quantisation rule is chosen on validation, the
codebooks are trained after it (`codebook`), and the outcome is a file (`codec`).
"""

import copy
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from wsnotebook import training
from wsnotebook.datasets import Dataset
from wsnotebook.evaluation import score
from wsnotebook.layout import Layout, check_finite
from wsnotebook.methods import codebook
from wsnotebook.methods.codebook import Clustered, Compressed
from wsnotebook.methods.mixture_prior import Mixture, MixturePrior

HISTORY = (
    "epoch",
    "loss",  # training cross-entropy, nats
    "complexity",  # L_C, nats a weight
    "tau",
    "validation_error",  # %, in floating point
    "validation_loss",  # nats
    "spike_sigma",  # the widest spike's
    "cpu_seconds",  # so far
)
FOLLOWED = 4_000  # weights of each tensor whose path is kept, for the pictures
CONDENSED = 0.05  # a spike that narrows by less than this share in an epoch, and has halved before, has condensed


@dataclass(frozen=True)
class Config:
    """How a trained network is clustered, quantised and packed. Defaults: the public code's for LeNet-300-100."""

    components: int = 17  # J, the spike at zero included
    mixture: str = "global"  # global: one for all tensors | layer: one for each
    tau: float = 0.005  # weight of the complexity; more compresses more
    tau_warmup: int = 0  # epochs over which tau rises linearly to its value
    pi_0: float = 0.999  # the spike's mixing proportion: fixed, or with `beta` its start
    beta: tuple[float, float] | None = None  # Beta hyper-prior of pi_0, which is then learned; None: fixed
    init_sigma: float = 0.25  # starting standard deviation of every component
    init_range: tuple[float, float] | None = (
        None  # of the starting means; None: from the smallest to the largest weight
    )
    gamma: tuple[float, float] | None = (250.0, 0.1)  # (shape, rate) of the free components' precisions; None: no prior
    gamma_zero: tuple[float, float] | None = (5000.0, 2.0)  # the same for the spike
    tolerance: float = 0.0  # largest relative error of the prior's gradient, for speed; 0: exact (`MixturePrior`)
    lr_weights: float = 5e-4  # Adam's learning rate for the network
    lr_means: float = 1e-4  # ... for the means mu_j
    lr_log_variances: float = 3e-3  # ... for log s_j
    lr_logits: float = 3e-3  # ... for the mixing logits
    schedule: str = "constant"  # of lr_weights: constant | cosine | step
    weight_decay: float = 0.0  # L2 coefficient on the clustered weights
    train_rest: bool = False  # biases, norms and tensors left out learn too
    epochs: int = 100  # of retraining
    patience: int = 0  # epochs with a condensed spike after which retraining stops early; 0: never
    batch: int = 128  # rows a step
    shift: int = 0  # random shifts of the images by up to so many pixels
    flip: bool = False  # random horizontal flips
    include: str = ""  # regular expression: which weight tensors are clustered; empty: all
    exclude: str = ""  # regular expression: which are left as they are
    skip_last: bool = False  # the last weight tensor is left as it is, too
    merge: float = 0.0  # merge components closer than so many standard deviations; 0: none
    assign: str = "ml"  # ml | map | validation (whichever has the lower validation error)
    fine_tune: codebook.Config = field(default=codebook.Config())  # after quantising, and how the file is rounded
    seed: int = 0  # of order and augmentation

    def __post_init__(self):
        training.check_choice("schedule", self.schedule, training.SCHEDULES)
        training.check_choice("assign", self.assign, ("ml", "map", "validation"))
        training.check_choice("mixture", self.mixture, ("global", "layer"))
        training.check_at_least(self, components=2, tau=0, tau_warmup=0, epochs=1, batch=1, weight_decay=0, merge=0)
        training.check_at_least(self, lr_weights=0, lr_means=0, lr_log_variances=0, lr_logits=0, init_sigma=1e-4)
        training.check_at_least(self, patience=0, tolerance=0, shift=0)
        if not 0 < self.pi_0 < 1:
            raise ValueError(f"pi_0={self.pi_0!r}: expected a proportion strictly between 0 and 1")


@dataclass(frozen=True)
class Result:
    """A run of soft weight-sharing, finished or so far. History and mixtures: one entry an epoch, entry 0 before it."""

    config: Config
    layout: Layout  # of the clustered tensors
    history: dict[str, list]  # its fields: HISTORY
    mixtures: tuple[Mixture, ...]  # with a mixture a layer: all of them pooled into one
    layer_mixtures: dict[str, tuple[Mixture, ...]]  # those of each tensor; empty with a global mixture
    sample: Tensor  # (m,) places of the followed weights in the clustered row
    sample_layer: Tensor  # (m,) their tensors, as positions in layout.names
    trace: Tensor  # (epochs + 1, m) their values
    before: dict[str, Tensor]  # the network's state at the start
    after: dict[str, Tensor]  # ... now, in floating point
    assign: str = ""  # the quantisation rule that was kept: ml | map; empty while running
    compressed: Compressed | None = None  # the quantised network and its file
    finished: bool = False  # False: running, or stopped early (and usable all the same)

    @property
    def mixture(self) -> Mixture:
        """The last mixture, near-duplicates merged."""
        return self.mixtures[-1].merged(self.config.merge)

    @property
    def condensed(self) -> bool:
        """Whether the spike has stopped narrowing; before that, quantising destroys the network."""
        return condensed_epochs(self.history["spike_sigma"]) > 0


def compress(
    network: nn.Module,
    dataset: Dataset,
    config: Config,
    *,
    keep: bool = False,
    watch: Callable[[Result], bool | None] | None = None,
) -> Result:
    """Retrain a copy of a trained network under the mixture prior, quantise it, train its codebooks and pack it.

    keep: as in `training.train`. watch: called with the result so far after every epoch; True stops there. An interrupt
    (Ctrl-C, the notebook's stop button) stops too; both leave a quantised, usable result with `finished` False.
    Warns when the spike has not condensed. Raises ValueError for weights that are not finite or a filter that leaves no
    tensor.
    """
    dataset.check_classes("soft weight-sharing")
    path = training.kept_path("soft-weight-sharing", config, dataset, network) if keep else None
    run = _Retraining(network, dataset, config)
    if stored := training.load_kept(path):
        run.load(stored)
        if "compressed" in stored:
            compressed = Compressed.load(stored["compressed"])
            return replace(run.result(), assign=stored["assign"], compressed=compressed, finished=True)
    stopped, kept = False, time.monotonic()
    try:
        for epoch in tqdm(run.epochs_left(), desc="soft weight-sharing", unit="epoch", leave=False):
            if run.patience_is_over():
                break
            run.record(epoch, run.train_epoch(epoch))
            asked_to_stop = watch and watch(run.result())
            if asked_to_stop or time.monotonic() - kept > training.KEEP_EVERY:
                training.save_kept(path, run.state())
                kept = time.monotonic()
            if asked_to_stop:
                stopped = epoch < config.epochs
                break
    except KeyboardInterrupt:
        if not run.trace:
            raise
        stopped = True
    check_finite(run.network.state_dict(), "retrained network")
    if not stopped and not run.result().condensed:
        sigmas = run.history["spike_sigma"]
        warnings.warn(
            f"the spike had not condensed when retraining ended (sigma {sigmas[0]:.3g} -> {sigmas[-1]:.3g}, in the "
            f"last epoch from {sigmas[-2]:.3g}): quantising may destroy the network; raise epochs, tau or "
            "lr_log_variances, or start from a smaller init_sigma",
            stacklevel=2,
        )
    rule, clustered, _ = assign(run.result(), run.network, dataset)
    compressed = codebook.pack(run.network, dataset, clustered, config.fine_tune)
    if not stopped:
        training.save_kept(path, run.state() | {"assign": rule, "compressed": compressed.stored()})
    return replace(run.result(), assign=rule, compressed=compressed, finished=not stopped)


def condensed_epochs(spike_sigmas: Sequence[float]) -> int:
    """For how many epochs, up to the last one, the spike has been condensed."""
    count = 0
    for before, now in zip(spike_sigmas[-2::-1], spike_sigmas[::-1], strict=False):
        if now > 0.5 * spike_sigmas[0] or now < (1 - CONDENSED) * before:
            break
        count += 1
    return count


class _Retraining:
    """What changes while a network is retrained, and so what is kept between epochs."""

    def __init__(self, network: nn.Module, dataset: Dataset, config: Config):
        check_finite(network.state_dict(), "network")
        self.config, self.dataset = config, dataset
        self.before = _snapshot(network)
        self.network = copy.deepcopy(network)
        self.layout = clustered_layout(network, config)
        parameters = dict(self.network.named_parameters())
        self.clustered = [parameters[name] for name in self.layout.names]
        rest = [p for name, p in parameters.items() if name not in self.layout.names] if config.train_rest else []
        self.priors = nn.ModuleList(map(self._prior, self.rows())).to(self.clustered[0].device)
        weight_groups = [{"params": self.clustered, "weight_decay": config.weight_decay}, {"params": rest}]
        rates = {"means": config.lr_means, "log_variances": config.lr_log_variances}
        mixture_groups = [
            {"params": [parameter], "lr": rates.get(name.rpartition(".")[2], config.lr_logits)}
            for name, parameter in self.priors.named_parameters()
        ]
        self.weight_optimiser = torch.optim.Adam(weight_groups, lr=config.lr_weights, fused=True)
        self.mixture_optimiser = torch.optim.Adam(mixture_groups)
        self.sample, self.sample_layer = _followed(self.layout)
        self.history = {name: [] for name in HISTORY}
        self.mixtures, self.trace = [], []  # an entry an epoch; of mixtures: one a prior
        self.started = time.process_time()

    def _prior(self, row: Tensor) -> MixturePrior:
        config = self.config
        low, high = config.init_range or (float(row.detach().min()), float(row.detach().max()))
        means = torch.linspace(low, high, config.components - 1)
        options = {"beta": config.beta, "tolerance": config.tolerance}
        return MixturePrior(means, config.init_sigma, config.pi_0, config.gamma, config.gamma_zero, **options)

    def rows(self) -> list[Tensor]:
        """The clustered weights as rows (d_g,), one for each mixture."""
        flat = [p.reshape(-1) for p in self.clustered]
        return flat if self.config.mixture == "layer" else [torch.cat(flat)]

    def complexity(self) -> Tensor:
        """L_C of all clustered weights: a scalar, nats."""
        return sum(prior(row) for prior, row in zip(self.priors, self.rows(), strict=True))

    def epochs_left(self) -> range:
        return range(len(self.trace), self.config.epochs + 1)

    def patience_is_over(self) -> bool:
        patience = self.config.patience
        return patience > 0 and condensed_epochs(self.history["spike_sigma"]) >= patience

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
                data_loss = F.cross_entropy(self.network(training.augmented(x[rows], config)), y[rows])
                loss = data_loss + tau / len(x) * self.complexity()
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
        mixtures, validation = [prior.mixture() for prior in self.priors], score(self.network, self.dataset.validation)
        complexity = float(self.complexity()) / self.layout.d
        spike, spent = max(float(mixture.sigmas[0]) for mixture in mixtures), time.process_time() - self.started
        facts = (epoch, loss, complexity, self.tau(epoch), *astuple(validation), spike, spent)
        for name, value in zip(HISTORY, facts, strict=True):
            self.history[name].append(value)
        self.mixtures.append(mixtures)
        row = torch.cat(self.rows())
        self.trace.append(row[self.sample.to(row.device)].cpu())

    def result(self) -> Result:
        """The run so far, not quantised."""
        pooled, by_layer = tuple(mixtures[0] for mixtures in self.mixtures), {}
        if self.config.mixture == "layer":
            pooled = tuple(_pooled(mixtures, self.layout.sizes) for mixtures in self.mixtures)
            by_layer = dict(zip(self.layout.names, zip(*self.mixtures, strict=True), strict=True))
        return Result(
            config=self.config,
            layout=self.layout,
            history=copy.deepcopy(self.history),
            mixtures=pooled,
            layer_mixtures=by_layer,
            sample=self.sample,
            sample_layer=self.sample_layer,
            trace=torch.stack(self.trace),
            before=self.before,
            after=_snapshot(self.network),
        )

    def _modules(self) -> dict:
        names = ("network", "priors", "weight_optimiser", "mixture_optimiser")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict:
        """Everything the next epoch depends on, and what was recorded."""
        mixtures = [[(m.means, m.sigmas, m.pis) for m in mixtures] for mixtures in self.mixtures]
        recorded = {"history": self.history, "mixtures": mixtures, "trace": torch.stack(self.trace)}
        return recorded | {name: module.state_dict() for name, module in self._modules().items()}

    def load(self, stored: dict) -> None:
        """Go on from a `state`."""
        for name, module in self._modules().items():
            module.load_state_dict(stored[name])
        self.history, self.trace = stored["history"], list(stored["trace"])
        self.mixtures = [[Mixture(*parts) for parts in mixtures] for mixtures in stored["mixtures"]]
        self.started = time.process_time() - self.history["cpu_seconds"][-1]


def clustered_layout(network: nn.Module, config: Config) -> Layout:
    """The tensors that the Config's filters choose. Raises ValueError when none is left."""
    exclude = config.exclude
    if config.skip_last:
        last = re.escape(Layout.of(network, kinds=("weight",)).names[-1])
        exclude = f"{exclude}|^{last}$" if exclude else f"^{last}$"
    return Layout.of(network, kinds=("weight",), include=config.include, exclude=exclude)


def assign(result: Result, network: nn.Module, dataset: Dataset) -> tuple[str, Clustered, float]:
    """Give every clustered weight its component, whose mean is its new value: (rule, ids and means, validation error).

    By the rule of the Config; with assign="validation" both are tried, and the lower validation error is kept, then the
    smaller size by the paper's accounting.
    """
    layout, network = result.layout, copy.deepcopy(network)
    rows = layout.unflatten(layout.flatten(result.after))
    merged = {
        name: result.layer_mixtures.get(name, result.mixtures)[-1].merged(result.config.merge) for name in layout.names
    }
    means = {name: mixture.means.float() for name, mixture in merged.items()}
    choices = []
    for rule in ("ml", "map") if result.config.assign == "validation" else (result.config.assign,):
        ids = {name: merged[name].assign(row.reshape(-1), rule).view(row.shape) for name, row in rows.items()}
        clustered = Clustered(ids, means)
        network.load_state_dict(result.after | clustered.values())
        bits = codebook.paper_sizes(network, clustered).bits
        choices.append((score(network, dataset.validation).error, bits, rule, clustered))
    error, _, rule, clustered = min(choices, key=lambda choice: choice[:2])
    return rule, clustered, error


def _pooled(mixtures: Sequence[Mixture], sizes: Sequence[int]) -> Mixture:
    """The mixture that a weight of an unknown tensor comes from: each tensor's, weighed by its number of weights."""
    means, sigmas = (torch.cat([getattr(m, part) for m in mixtures]) for part in ("means", "sigmas"))
    return Mixture(means, sigmas, torch.cat([m.pis * n / sum(sizes) for m, n in zip(mixtures, sizes, strict=True)]))


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

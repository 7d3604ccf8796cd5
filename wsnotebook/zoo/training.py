"""Training a zoo: the networks of a group are one computation, a shard of groups is one file, shards make the zoo.

Which networks there are (`plan`) depends on the Config and n alone, and a network's minibatches on its own seed. So
shards can be trained in any order, by any process, and one that is on disk is not trained again.
"""

import itertools
import math
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm.auto import tqdm

import wsnotebook
from wsnotebook import engines, networks
from wsnotebook.datasets import Dataset, cache_folder
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.training import (
    SCHEDULES,
    architecture,
    augmented,
    check_at_least,
    check_choice,
    epoch_randomness,
    fingerprint,
    set_aside,
)
from wsnotebook.zoo.value import Zoo, concat, load

PARTS = ("train", "validation", "test")  # of the data
VARIED = ("optimiser", "lr", "weight_decay", "init", "activation", "dropout", "epochs")  # fields that take a tuple


@dataclass(frozen=True)
class Config:
    """How the networks of a zoo are trained. A tuple in one of `VARIED` is a list of choices.

    A frozen parameter has no weight decay either; the running statistics of a frozen batch norm go on adapting.
    The networks go through the grid of all choices in a shuffled order, again and again: n networks of a grid of g
    are n / g of each combination, and the first n of them when n < g.
    """

    epochs: int | tuple[int, ...] = 5  # passes over the training rows
    batch: int = 64  # rows a step
    optimiser: str | tuple[str, ...] = "adam"  # adam (L2 decay) | adamw (decoupled) | sgd (Nesterov momentum 0.9)
    lr: float | tuple[float, ...] = 1e-3  # learning rate at the start
    weight_decay: float | tuple[float, ...] = 0.0  # coefficient
    schedule: str = "constant"  # constant | cosine (to 0) | step (x 0.1 at 50 % and 75 %)
    init: str | tuple[str, ...] = "default"  # default | he | xavier | uniform | normal, as `networks.initialise`
    activation: str | tuple[str, ...] | None = None  # relu | tanh | gelu | sigmoid; None: the network's own
    dropout: float | tuple[float, ...] = 0.0  # probability
    shift: int = 0  # random shifts of the images by up to so many pixels
    flip: bool = False  # random horizontal flips
    frozen: tuple[str, ...] = ()  # parameters that stay as they start: names, or patterns such as "conv1.*"
    order: str = "own"  # of the minibatches: own | shared by all networks (their first layers are then one product)
    snapshots: tuple[int, ...] = ()  # steps after which every network is kept, besides the last
    scored: int = 5_000  # training rows, the first, that a network's training accuracy is measured on
    seed: int = 0  # network i has the seed `seed` + i, of its weights, order and dropout

    def __post_init__(self):
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("order", self.order, ("own", "shared"))
        object.__setattr__(self, "snapshots", tuple(self.snapshots))
        check_at_least(self, batch=1, shift=0, scored=1, seed=0, snapshots=0)
        check_at_least(self, epochs=0, lr=0, weight_decay=0, dropout=0)
        for field, choices in {"optimiser": ("adam", "adamw", "sgd"), "init": networks.INITS}.items():
            for value in self.choices(field):
                check_choice(field, value, choices)
        if list(self.snapshots) != sorted(set(self.snapshots)):
            raise ValueError(f"zoo.Config: snapshots={self.snapshots}, expected increasing steps >= 0")
        if not isinstance(self.frozen, tuple):
            raise ValueError(f"zoo.Config: frozen={self.frozen!r}, expected a tuple of names or patterns")

    def choices(self, field: str) -> tuple:
        """The values that a field takes over the zoo."""
        value = getattr(self, field)
        return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True)
class Model:
    """One network of a plan: its number, its seed, and its value of every field of `VARIED`."""

    number: int
    seed: int
    optimiser: str
    lr: float
    weight_decay: float
    init: str
    activation: str | None
    dropout: float
    epochs: int


def plan(config: Config, n: int) -> list[Model]:
    """The n networks that a Config asks for."""
    grid = list(itertools.product(*(config.choices(field) for field in VARIED)))
    order = np.random.default_rng(config.seed).permutation(len(grid))
    rows = (grid[order[i % len(grid)]] for i in range(n))
    return [Model(i, config.seed + i, **dict(zip(VARIED, row, strict=True))) for i, row in enumerate(rows)]


def train(
    network: str,
    dataset: Dataset,
    n: int,
    config: Config = Config(),
    *,
    start: Zoo | None = None,
    folder: str | Path | None = None,
    shard: int = engines.GROUP,
    executor: Executor | None = None,
) -> Zoo:
    """Train n networks of this name (or package.module:function) on dataset.train, on its device; choose nothing.

    start: n networks of the same architecture to train on from, instead of fresh ones; their weights, activations and
    order of rows are taken, and fact "parent" is their fact "model".
    folder: where shards and the zoo are kept; None is a place in the cache folder of this data and these settings.
    The same call later loads the zoo, or goes on with the shards that are missing; a damaged file is set aside with a
    RuntimeWarning and trained again. shard: networks a file. executor: trains the shards, each in one task, in
    processes or machines that see the folder (`cluster`).

    Facts of a network: model (its number), step, epoch, seed, parent (-1: trained from scratch), the fields of
    `VARIED`, accuracies in % and losses in nats of train (rows `scored`), validation and test, and gap (train
    minus test accuracy). Networks that diverged are left out from there on: a RuntimeWarning and provenance "diverged"
    name them. Raises ValueError for n < 1, a network that does not take the data, and a choice or a frozen parameter
    that it does not have.
    """
    if n < 1 or shard < 1:
        raise ValueError(f"n={n}, shard={shard}: expected at least 1 network, and 1 in a shard")
    dataset.check_classes("a zoo")
    models, steps = plan(config, n), math.ceil(len(dataset.train[0]) / config.batch)
    if start is not None:
        if start.network != network or len(start) != n:
            raise ValueError(f"start: {len(start)} x {start.network}, expected {n} x {network}")
        activations = start.facts.get("activation", [model.activation for model in models])
        models = [replace(m, activation=a and str(a)) for m, a in zip(models, activations, strict=True)]
    for model in {(m.activation, m.dropout, m.init): m for m in models}.values():  # before any work: do they fit?
        _build(network, dataset, model)
    shortest = steps * min(config.choices("epochs"))
    if config.snapshots and config.snapshots[-1] > shortest:
        raise ValueError(f"snapshots: step {config.snapshots[-1]} is after the last step, {shortest}")
    template, device = _build(network, dataset, models[0]), dataset.train[0].device
    _frozen(template, config)
    engine = engines.choose(template, device.type)
    work = _Work(network, dataset, config, engine, start)
    folder = Path(folder) if folder else _folder(work, n, template)
    whole = folder / "zoo.safetensors"
    if (kept := _kept(whole)) is not None:
        _diverged(kept, models, steps)
        return kept.to(device)

    size = 1 if engine == "single" else engines.GROUP
    groups = list(_groups(models, size))
    per_shard = max(1, shard // size)
    shards = [groups[i : i + per_shard] for i in range(0, len(groups), per_shard)]
    paths = [folder / f"shard-{per_shard * size}-{i}.safetensors" for i in range(len(shards))]
    missing = [(part, path) for part, path in zip(shards, paths, strict=True) if _kept(path) is None]
    with tqdm(total=n, desc=f"training {n} x {network} ({engine})", unit="network", leave=False) as progress:
        progress.update(n - sum(len(group) for part, _ in missing for group in part))
        if executor is None:
            for part, path in missing:
                _train_shard(work, part, path, progress)
        elif missing:
            with _spooled(work, folder) as spool:
                tasks = {executor.submit(_train_elsewhere, spool, part, path): part for part, path in missing}
                try:
                    for task in as_completed(tasks):
                        task.result()
                        progress.update(sum(map(len, tasks[task])))
                finally:
                    for task in tasks:  # at Ctrl-C, or when one failed
                        task.cancel()
    try:
        zoo = concat([load(path) for path in paths])
    except FileNotFoundError:  # another process was faster
        if not whole.exists():
            raise
    else:
        zoo = zoo.filter(np.lexsort((zoo.facts["step"], zoo.facts["model"])))
        replace(zoo, provenance=zoo.provenance | {"diverged": _diverged(zoo, models, steps)}).save(whole)
    for path in paths:
        path.unlink(missing_ok=True)
    return load(whole).to(device)


def _diverged(zoo: Zoo, models: list[Model], steps: int) -> list[int]:
    """Whose last step, of so many an epoch, is missing; a RuntimeWarning says so, also whenever the zoo is loaded."""
    there = set(zip(zoo.facts["model"].tolist(), zoo.facts["step"].tolist(), strict=True))
    lost = [model.number for model in models if (model.number, steps * model.epochs) not in there]
    if lost:
        left_out = f"{len(lost)} of {len(models)} networks diverged and are left out from there on: {lost}"
        warnings.warn(left_out, RuntimeWarning, stacklevel=3)
    return lost


def _kept(path: Path) -> Zoo | None:
    """The zoo in a file of the folder; None without one, and for a damaged one, which is set aside."""
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        set_aside(path, str(error))
        return None


class _Work(NamedTuple):
    """What all shards of a zoo share."""

    network: str
    dataset: Dataset
    config: Config
    engine: str
    start: Zoo | None


class _Spool(NamedTuple):
    """The same for other processes: what is large is in files, which they map."""

    work: _Work  # without data and start
    device: torch.device
    data: Path
    start: Path | None

    def read(self) -> _Work:
        tensors = safetensors.torch.load_file(self.data, str(self.device))
        parts = {part: (tensors[f"{part}.x"], tensors[f"{part}.y"]) for part in PARTS}
        dataset = replace(self.work.dataset, **parts)
        return self.work._replace(dataset=dataset, start=self.start and load(self.start, self.work.network))


@contextmanager
def _spooled(work: _Work, folder: Path) -> Iterator[_Spool]:
    """Files in the zoo's folder while it is trained by others."""
    light = replace(work.dataset, **dict.fromkeys(PARTS, ()))
    pairs = {part: zip("xy", getattr(work.dataset, part), strict=True) for part in PARTS}
    tensors = {f"{part}.{name}": tensor.cpu().contiguous() for part, pair in pairs.items() for name, tensor in pair}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spool-", dir=folder) as spool:
        data = Path(spool, "data.safetensors")
        safetensors.torch.save_file(tensors, data)
        start = work.start and work.start.save(Path(spool, "start.safetensors"))
        yield _Spool(work._replace(dataset=light, start=None), work.dataset.train[0].device, data, start)


def _folder(work: _Work, n: int, template: torch.nn.Module) -> Path:
    network, dataset, config, engine, start = work
    parts = [network, dataset, n, config, engine, start and start.weights]
    if start is not None:
        parts += [(fact, start.facts[fact].tolist()) for fact in ("activation", "model") if fact in start.facts]
    if ":" in network:  # what the user's function makes, it may not have made yesterday
        parts.append(architecture(template))
    name = fingerprint(*parts)
    return cache_folder() / "zoos" / f"{network.replace(':', '.')}-{name}"


def _build(network: str, dataset: Dataset, model: Model) -> torch.nn.Module:
    options = {"activation": model.activation, "dropout": model.dropout, "init": model.init}
    return networks.build_for(dataset, network, seed=model.seed, **options)


def _frozen(network: torch.nn.Module, config: Config) -> set[str]:
    """The names of the parameters that the config freezes. Raises ValueError for a pattern of none, or when all are."""
    names = [name for name, _ in network.named_parameters()]
    matches = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in config.frozen}
    if unknown := [pattern for pattern, found in matches.items() if not found]:
        raise ValueError(f"frozen: {unknown[0]!r} is no parameter's name or pattern; they are {', '.join(names)}")
    frozen = set().union(*matches.values())
    if frozen == set(names):
        raise ValueError(f"frozen={config.frozen}: all parameters are, so there is nothing to train")
    return frozen


def _groups(models: list[Model], size: int) -> Iterator[list[Model]]:
    """Groups of at most `size` networks that share what a computation shares, equal settings side by side."""

    def shared(model: Model) -> tuple:
        return model.epochs, model.optimiser, str(model.activation), model.dropout > 0

    ordered = sorted(models, key=lambda m: (*shared(m), m.lr, m.weight_decay, m.number))
    for _, alike in itertools.groupby(ordered, shared):
        alike = list(alike)
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def _train_elsewhere(spool: _Spool, groups: list[list[Model]], path: Path) -> None:
    """Train these groups in another process, unless one that was lost had come so far."""
    torch.set_num_threads(1)  # the cores are shared
    if not path.exists():
        _train_shard(spool.read(), groups, path)


def _train_shard(work: _Work, groups: list[list[Model]], path: Path, progress: tqdm | None = None) -> None:
    """Train these groups and write their zoo to `path`."""
    parts = []
    for group in groups:
        parts.append(_train_group(work, group))
        if progress is not None:
            progress.update(len(group))
    concat(parts).save(path)


def _train_group(work: _Work, models: list[Model]) -> Zoo:
    """The zoo of these networks and their snapshots, without those that are not finite."""
    network, dataset, config, engine, start = work
    (x, y), first = dataset.train, models[0]
    template = _build(network, dataset, first)
    layout = Layout.of(template, exclude=COUNTERS)
    if start is None:
        first_rows = torch.stack([layout.flatten(_build(network, dataset, model).state_dict()) for model in models])
    else:
        first_rows = start.weights[[model.number for model in models]].to(x.device)
    column = lambda field: torch.tensor([getattr(m, field) for m in models], device=x.device)  # noqa: E731
    trainer = engines.make(
        engine,
        template,
        first_rows,
        optimiser=first.optimiser,
        lr=column("lr"),
        weight_decay=column("weight_decay").float(),
        dropout=column("dropout").float(),
        seeds=column("seed"),
        frozen=_frozen(template, config),
    )
    per_epoch = math.ceil(len(x) / config.batch)
    last, rows, facts = first.epochs * per_epoch, [], []
    for step, (images, batches) in _segments(x, config, models):
        if batches is not None:
            scale = [SCHEDULES[config.schedule](t / last) for t in range(step - batches.shape[-2], step)]
            trainer.run(images, y, batches, torch.tensor(scale))
        if step in config.snapshots or step == last:
            rows.append(trainer.weights)
            facts.append(_facts(models, trainer, dataset, step, step / per_epoch, config.scored))
    weights = torch.cat(rows)
    finite = weights.isfinite().all(1)
    facts = {name: np.concatenate([part[name] for part in facts])[finite.cpu().numpy()] for name in facts[0]}
    if start is not None:
        facts["parent"] = start.facts.get("model", np.arange(len(start)))[facts["model"]]
    build = {"classes": len(dataset.classes), "channels": x.shape[1] if x.ndim == 4 else None}
    provenance = {"build": build, "dataset": dataset.name, "checksum": dataset.checksum, "official": dataset.official}
    provenance |= {"config": asdict(config), "engine": engine, "wsnotebook": wsnotebook.__version__}
    return Zoo(weights[finite].cpu(), layout, facts, network, provenance)


def _segments(x: Tensor, config: Config, models: list[Model]) -> Iterator[tuple[int, tuple]]:
    """(step reached, (images, minibatches (k, steps, batch) on the way there)), -1 being no row.

    It stops at every epoch's end and every snapshot. Minibatches are (steps, batch) when they are shared.
    """
    yield 0, (x, None)
    n, per_epoch = len(x), math.ceil(len(x) / config.batch)
    seeds = [model.seed for model in models] if config.order == "own" else [config.seed]
    for epoch in range(1, models[0].epochs + 1):
        order = torch.full((len(seeds), per_epoch * config.batch), -1, device=x.device)
        for own, seed in zip(order, seeds, strict=True):
            with epoch_randomness(seed, epoch, x.device):
                own[:n] = torch.randperm(n, device=x.device)
        with epoch_randomness(config.seed, epoch, x.device):
            images = augmented(x, config)
        batches = order.view(-1, per_epoch, config.batch)
        batches, done = batches if config.order == "own" else batches[0], (epoch - 1) * per_epoch
        stops = {s - done for s in config.snapshots if done < s < done + per_epoch} | {per_epoch}
        for a, b in itertools.pairwise(sorted(stops | {0})):
            yield done + b, (images, batches[..., a:b, :])


def _facts(
    models: list[Model], trainer, dataset: Dataset, step: int, epoch: float, scored: int
) -> dict[str, np.ndarray]:
    """One entry a network for each fact."""
    k = len(models)
    facts = {
        "model": np.array([m.number for m in models]),
        "parent": np.full(k, -1),
        "step": np.full(k, step),
        "epoch": np.full(k, epoch),
        "seed": np.array([m.seed for m in models]),
    }
    for field in VARIED:
        if field != "activation" or models[0].activation is not None:
            facts["epochs_in_all" if field == "epochs" else field] = np.array([getattr(m, field) for m in models])
    for part in PARTS:
        x, y = getattr(dataset, part)
        accuracy, loss = trainer.score(x[:scored], y[:scored]) if part == "train" else trainer.score(x, y)
        facts |= {f"{part}_accuracy": accuracy.cpu().numpy(), f"{part}_loss": loss.cpu().numpy()}
    return facts | {"gap": facts["train_accuracy"] - facts["test_accuracy"]}

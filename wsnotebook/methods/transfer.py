"""Networks of several origins, trained on in the same way, one arm each: on other data, or on their own.

`transfer` counts epochs and may freeze layers; `fine_tuning` counts steps and freezes nothing.

After Gupta et al. 2026, "DeepWeightFlow". What we do differently from the public code, where generated networks freeze
part of their layers and random ones none, and the epoch with the best test accuracy is reported: every arm freezes the
same tensors; networks of the same number see the same minibatches, and where the head is fresh start from the same one,
in every arm; the epochs are places in one run; few-shot means few rows.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from wsnotebook import evaluation, networks, zoo
from wsnotebook.datasets import Dataset
from wsnotebook.evaluation.blocks import classes
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.training import check_choice
from wsnotebook.zoo.value import Zoo

PAPER = zoo.Config(optimiser="adamw", lr=1e-4, weight_decay=1e-5, schedule="cosine")  # their settings
SEEDS = 1_000_000  # the first of the seeds here: no head or order that an arm's networks may have been trained with


@dataclass(frozen=True, eq=False)
class Transfer:
    """How every arm's n networks did after so many epochs; a network that diverged is nan from there on."""

    dataset: str
    epochs: tuple[float, ...]
    frozen: tuple[str, ...]  # names of the tensors that stayed as they started, in every arm
    head: str
    validation: dict[str, np.ndarray]  # {arm: (epochs, n)} accuracy, %
    test: dict[str, np.ndarray]
    zoos: dict[str, Zoo]  # {arm: its networks at all these epochs}, with `zoo.train`'s facts
    steps: tuple[int, ...] | None = None  # the same places counted in minibatches, by `fine_tuning`

    def __repr__(self) -> str:
        frozen = f"frozen in every arm: {', '.join(self.frozen) or 'nothing'}"
        return f"Transfer(to {self.dataset}; {', '.join(self.test)}; head: {self.head}; {frozen})"

    @property
    def columns(self) -> list[str]:
        """Headings for `rows`, as `evaluation.markdown` takes both."""
        return [f"epoch {e}" for e in self.epochs] if self.steps is None else [f"{s} steps" for s in self.steps]

    def rows(self, part: str = "test") -> list[list[str]]:
        """Each arm's name and accuracies (%): means over its networks, and half-widths of their 95 % intervals."""
        check_choice("part", part, ("validation", "test"))
        texts = evaluation.mean_and_half_width
        return [[arm, *(texts(epoch.tolist(), 2) for epoch in values)] for arm, values in getattr(self, part).items()]


def transfer(
    arms: dict[str, Zoo],
    dataset: Dataset,
    epochs: tuple[int, ...] = (0, 1, 5),
    *,
    config: zoo.Config = PAPER,
    share: float = 0.4,
    head: str = "keep",
    shots: int | None = None,
    seed: int = 0,
) -> Transfer:
    """Train every arm's networks on dataset.train, all in the same way, and score them after each of `epochs`.

    arms: {name: networks}, all of one architecture: generated ones; the zoo that they were learned from; copies of it
    (`ClosedForm`); random initialisations, which `zoo.train` gives with epochs=0. Batch norm's running statistics are
    taken as they are, so recalibrate those of all arms or of none.
    config: how to train; its epochs, snapshots, frozen and seed are set here. A cosine ends with the last epoch. Small
    networks need the rate that they were trained with.
    share: of the layers, from the first on and rounded down, that stay frozen, as `layers` counts them.
    head: "keep" the last layer; or start from a "fresh" one, as it must be when the classes are others in number. Epoch
    0 is zero-shot transfer only if the head is kept and class c means the same in both data sets.
    shots: training rows a class, drawn by `seed`, the same for all networks; None: all. An epoch is a pass over these.
    Trained networks are kept in the cache folder, and the same call later loads them. Raises ValueError for arms that
    are not of one architecture, data that they do not take, and epochs, share, head or shots that cannot be.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share!r}: expected from 0 up to, not including, 1: the last layer is always trained")
    _check_places("epochs", epochs, (0, 1, 5))
    _check(arms, dataset, head)
    if shots is not None:
        dataset = _few(dataset, shots, seed)
    found = layers(next(iter(arms.values())).layout)
    frozen = tuple(itertools.chain(*found[: math.floor(share * len(found))]))
    per_epoch = math.ceil(len(dataset.train[0]) / config.batch)
    config = replace(config, epochs=epochs[-1], frozen=frozen)
    curves = _curves(arms, dataset, [per_epoch * epoch for epoch in epochs], config, head, seed)
    return Transfer(dataset.label, tuple(epochs), frozen, head, *curves)


def fine_tuning(
    arms: dict[str, Zoo],
    dataset: Dataset,
    steps: tuple[int, ...] = (0, 100, 250, 600, 1200),
    *,
    config: zoo.Config,
    head: str = "keep",
    seed: int = 0,
) -> Transfer:
    """Train every arm's networks on, as `transfer` does with nothing frozen, and score them after each of `steps`.

    An arm that learns faster than random initialisations need not come from good networks: rows that do not belong
    together may, too (`latent_sampling`'s mode "tokens"), so these belong beside it.
    steps: minibatches of config.batch rows. No more rows are gone through than they need: the passes are of equal
    length, over training rows drawn by `seed`, the same for all; a schedule ends with the last step, or as much later
    as the passes need to be equal (fewer steps than there are passes).
    config: how to train, best as the zoo was. arms, head and errors: as `transfer`.
    """
    _check_places("steps", steps, (0, 100, 250))
    _check(arms, dataset, head)
    x, y = dataset.train
    passes = math.ceil(steps[-1] / math.ceil(len(x) / config.batch))
    length = math.ceil(steps[-1] / max(passes, 1)) * config.batch or len(x)  # rows a pass
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:length].sort().values.to(x.device)
    fewer = replace(dataset, train=(x[rows], y[rows]))
    curves = _curves(arms, fewer, steps, replace(config, epochs=passes, frozen=()), head, seed)
    epochs = tuple(step * config.batch / len(x) for step in steps)
    return Transfer(dataset.label, epochs, (), head, *curves, steps=tuple(steps))


def layers(layout: Layout) -> list[list[str]]:
    """The names of a network's parameters, layer by layer, in the order of its state dict.

    A layer is a module with matrices or kernels; what has none, such as a norm, belongs to the layer before it.
    """
    owners = [name.rpartition(".")[0] for name in layout.names]
    with_weights = {owner for owner, kind in zip(owners, layout.kinds, strict=True) if kind == "weight"}
    found, current = [[]], None
    for name, owner, kind in zip(layout.names, owners, layout.kinds, strict=True):
        if owner in with_weights and owner != current:
            found += [[]] if current is not None else []
            current = owner
        if kind != "statistic":
            found[-1].append(name)
    return found


def _check_places(name: str, places: tuple[int, ...], example: tuple[int, ...]) -> None:
    if {type(place) for place in places} != {int} or list(places) != sorted(set(places)) or places[0] < 0:
        raise ValueError(f"{name}={places}: expected increasing whole numbers >= 0, such as {example}")


def _check(arms: dict[str, Zoo], dataset: Dataset, head: str) -> None:
    """Raise ValueError unless the arms have one architecture, which takes the data."""
    check_choice("head", head, ("keep", "fresh"))
    if not arms:
        raise ValueError("arms: none given; expected {name: Zoo}")
    first = next(iter(arms.values()))
    layout = Layout.of(first.template(), exclude=COUNTERS)
    for name, arm in arms.items():
        if (arm.network, arm.layout) != (first.network, layout):
            raise ValueError(
                f"arms[{name!r}]: {arm.network} with d={arm.layout.d}, expected {first.network} with d={layout.d}: "
                "arms have one architecture, and all of its tensors"
            )
    outputs = classes(first, dataset.train[0])
    if head == "keep" and outputs != len(dataset.classes):
        raise ValueError(
            f"{dataset.name} has {len(dataset.classes)} classes, {first.network} {outputs} outputs: pass head='fresh'"
        )


def _curves(
    arms: dict[str, Zoo], dataset: Dataset, steps: Sequence[int], config: zoo.Config, head: str, seed: int
) -> tuple[dict, dict, dict]:
    """{arm: accuracies (steps, n)} in validation and in test, and {arm: its networks at all these steps}."""
    if head == "fresh":
        arms = {
            name: _with_fresh_heads(arm, layers(arm.layout)[-1], dataset, SEEDS + seed) for name, arm in arms.items()
        }
    last = config.epochs * math.ceil(len(dataset.train[0]) / config.batch)
    config = replace(config, snapshots=tuple(step for step in steps if step < last), seed=SEEDS + seed)
    trained = {name: zoo.train(arm.network, dataset, len(arm), config, start=arm) for name, arm in arms.items()}
    if last > steps[-1]:
        trained = {name: one.filter(one.facts["step"] <= steps[-1]) for name, one in trained.items()}
    validation, test = (
        {name: _by_step(trained[name], f"{part}_accuracy", steps, len(arm)) for name, arm in arms.items()}
        for part in ("validation", "test")
    )
    return validation, test, trained


def _few(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """The data set with `shots` training rows of every class."""
    x, y = dataset.train
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    rows = [order[y[order] == c] for c in range(len(dataset.classes))]
    if not 1 <= shots <= min(map(len, rows)):
        raise ValueError(f"shots={shots}: expected 1 to {min(map(len, rows))}, the training rows of the rarest class")
    rows = torch.cat([own[:shots] for own in rows])
    return replace(dataset, name=f"{dataset.label}, {shots} a class", train=(x[rows], y[rows]))


def _with_fresh_heads(arm: Zoo, head: list[str], dataset: Dataset, seed: int) -> Zoo:
    """The networks with the last layers of new ones for these classes, network i's that of seed + i."""
    network = arm.network
    if network.startswith("mlp-"):  # its name says the number of outputs
        network = f"{network.rpartition('-')[0]}-{len(dataset.classes)}"
    layout = Layout.of(networks.build_for(dataset, network), exclude=COUNTERS)
    last = layout.shapes[layout.names.index(head[0])]
    if last[0] != len(dataset.classes):
        raise ValueError(
            f"{network}: its last layer, {head[0]} {last}, has not an output a class; define the head last"
        )
    fresh = []
    for i in range(len(arm)):
        state = networks.build_for(dataset, network, seed=seed + i).state_dict()
        fresh.append({name: state[name].cpu() for name in head})
    heads = {name: torch.stack([state[name] for state in fresh]) for name in head}
    weights = layout.flatten(arm.layout.unflatten(arm.weights.cpu()) | heads)
    return replace(arm, weights=weights, layout=layout, network=network)


def _by_step(trained: Zoo, fact: str, steps: Sequence[int], n: int) -> np.ndarray:
    """(steps, n) of a fact; nan where a network is missing."""
    values = np.full((len(steps), n), math.nan)
    values[np.searchsorted(steps, trained.facts["step"]), trained.facts["model"]] = trained.facts[fact]
    return values

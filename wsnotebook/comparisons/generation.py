"""Which way of making networks from a zoo makes new and good ones? Every way on one zoo, measured alike.

A way (`generators`) has settings, one of which is chosen on validation images by the share of networks that are novel
and accurate (`evaluation.novelty`). Test images are scored once, by new networks of several generators.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from wsnotebook import evaluation, symmetry, zoo
from wsnotebook.comparisons.generators import IMAGES, Fit, Ways
from wsnotebook.datasets import Dataset
from wsnotebook.evaluation import Novelty, Reference
from wsnotebook.methods.transfer import Transfer, fine_tuning
from wsnotebook.zoo.value import Zoo

COPY = 0.1  # a network nearer than this to one of the zoo's is a copy; 1: as near as the zoo's are to each other
TOGETHER = 16  # networks of an ensemble
COLUMNS = {  # measure: digits
    "accuracy (%)": 2,
    "nearest (zoo's = 1)": 2,
    "error overlap": 2,
    "copies (%)": 0,
    "novel and accurate (%)": 0,
    "ensemble gain": 2,
}


@dataclass(frozen=True, eq=False)
class Task:
    """A zoo that networks are made from, and what they are held against."""

    data: Dataset
    zoo: Zoo  # its units in one order
    order: Tensor  # (d,) the row of weights that it is aligned to
    validation: Reference
    test: Reference

    @property
    def images(self) -> Tensor:
        """Training images for batch norm's statistics, and to follow the units of a network by."""
        return self.data.train[0][:IMAGES].cpu()


def task(nets: Zoo, data: Dataset, reference: int | str = 0, seed: int = 0) -> Task:
    """The task of networks in any order. reference, seed: as `symmetry.align`, whose errors it raises."""
    x = data.train[0][:IMAGES].cpu()
    aligned = symmetry.align(nets, reference=reference, seed=seed, x=x[:8])
    moments = evaluation.input_moments(aligned.zoo, x)
    held = (evaluation.reference(aligned.zoo, part, moments) for part in (data.validation, data.test))
    return Task(data, aligned.zoo, aligned.reference, *held)


@dataclass(frozen=True, eq=False)
class Entry:
    """A way at one setting: its networks, a zoo for each seed of the generator, and what they are on one split."""

    method: str
    setting: str
    networks: tuple[Zoo, ...]
    found: tuple[Novelty, ...]
    ensembles: tuple[float, ...]  # accuracy of the first `TOGETHER` together, %
    trained: float  # CPU-seconds of a generator's training; 0: it has none
    made: float  # CPU-seconds a network, training apart

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {np.mean(own):.{COLUMNS[name]}f}" for name, own in self.measures().items())
        return f"Entry({self.method}, {self.setting}: {values})"

    def measures(self) -> dict[str, list[float]]:
        """{column of `COLUMNS`: a number a seed}."""
        lines = []
        for found, together in zip(self.found, self.ensembles, strict=True):
            c, near = found.generated, found.generated.distance / np.median(found.reference.distance)
            line = c.accuracy.mean(), near.mean(), c.error_iou.mean(), 100 * (near < COPY).mean(), found.joint
            lines.append([*map(float, line), together - float(c.accuracy[:TOGETHER].mean())])
        return dict(zip(COLUMNS, map(list, zip(*lines, strict=True)), strict=True))


def measured(
    method: str, setting: str, networks: Sequence[Zoo], on: Reference, trained: float = 0.0, made: float = 0.0
) -> Entry:
    """The entry of networks that are aligned as the reference's zoo is. Raises what `evaluation.novelty` does."""
    found = tuple(evaluation.novelty(each, on) for each in networks)
    return Entry(
        method, setting, tuple(networks), found, tuple(map(_ensemble, networks, [on] * len(networks))), trained, made
    )


def the_zoo(on: Reference) -> Entry:
    """The entry of the zoo itself, each network against the others: what a perfect generator's would be like."""
    found = evaluation.novelty(on.zoo.filter([0]), on)
    itself = replace(found, generated=found.reference)
    return Entry("the zoo, leave one out", "", (on.zoo,), (itself,), (_ensemble(on.zoo, on),), 0.0, 0.0)


def _ensemble(networks: Zoo, on: Reference) -> float:
    return evaluation.ensemble_accuracy(networks.filter(range(min(TOGETHER, len(networks)))), on.split)


def compare(ways: Ways, task: Task, *, n: int = 100, seeds: int = 1, seed: int = 0) -> list[Entry]:
    """Every way at its best setting: n networks of each of `seeds` generators. Raises what the methods do."""
    entries = []
    for method, dials in ways.items():
        setting = best_setting(dials, task, n, seed)
        networks, training, spent = [], 0.0, 0.0
        for i in range(seeds):
            draw, seconds = dials[setting](i)
            started = time.process_time()
            networks.append(evaluation.recalibrated(draw(n, seed + 1 + i), task.images))
            spent += time.process_time() - started
            training += seconds
        entries.append(measured(method, setting, networks, task.test, training / seeds, spent / seeds / n))
    return entries


def best_setting(dials: Mapping[str, Fit], task: Task, n: int, seed: int = 0) -> str:
    """The setting with most novel and accurate ones of n networks; where none has any, that with the least shortfall.

    By validation images, and the first generator of each.
    """
    if len(dials) == 1:
        return next(iter(dials))

    def score(setting: str) -> tuple[float, float]:
        draw, _ = dials[setting](0)
        found = evaluation.novelty(evaluation.recalibrated(draw(n, seed), task.images), task.validation)
        return found.joint, -shortfall(found)

    return max(dials, key=score)


def shortfall(found: Novelty) -> float:
    """How far networks lie below both bounds of novel and accurate, as shares of these, on average; 0: none does."""
    c = found.generated
    near, wrong = 1 - c.distance / found.distance_above, 1 - c.accuracy / found.accuracy_above
    return float((near.clip(min=0) + wrong.clip(min=0)).mean())


def from_scratch(task: Task, n: int, config: zoo.Config, start: Zoo | None = None) -> Entry:
    """The entry of n networks trained anew, as the zoo's were, and aligned; never kept, so that they are timed.

    start: as `zoo.train`. Raises what that does.
    """
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        nets = zoo.train(task.zoo.network, task.data, n, config, start=start, folder=folder)
        nets = nets.derived(nets.weights.clone())  # off the file
    spent = time.process_time() - started
    return measured("from scratch", f"{config.epochs} epochs", [_ordered(nets, task)], task.test, made=spent / n)


def after_training(
    arms: Mapping[str, Zoo], task: Task, steps: tuple[int, ...], config: zoo.Config
) -> tuple[Transfer, dict[str, list[Novelty]]]:
    """Every arm's networks trained on, batch for batch; and {arm: what they are after each of `steps`}.

    Distances are the lesser of two, as networks are and aligned anew: only the first sees what a generated network was
    a copy of, only the second finds twins of one that began in an order of its own. Raises what `fine_tuning` does.
    """
    tuned = fine_tuning(dict(arms), task.data, steps, config=config)
    found = {}
    for arm, nets in tuned.zoos.items():
        aligned, at = _ordered(nets, task), nets.facts["step"]
        found[arm] = [_nearer(nets.filter(at == step), aligned.filter(at == step), task.test) for step in steps]
    return tuned, found


def _ordered(nets: Zoo, task: Task) -> Zoo:
    """The networks with their units in the task's order."""
    return symmetry.align(nets, reference=task.order, x=task.images[:8]).zoo


def _nearer(nets: Zoo, aligned: Zoo, on: Reference) -> Novelty:
    """What networks are, held against the zoo in both orders."""
    one, other = evaluation.novelty(nets, on), evaluation.novelty(aligned, on)
    distance = np.minimum(one.generated.distance, other.generated.distance)
    return replace(one, generated=replace(one.generated, distance=distance))


def table(entries: Sequence[Entry]) -> tuple[list[str], list[list]]:
    """(columns, rows): a method, its setting, a list of a number a seed for every column of `COLUMNS`, CPU-seconds."""
    columns = ["setting", *COLUMNS, "training (CPU-s)", "a network (CPU-ms)"]
    rows = [[e.method, e.setting, *e.measures().values(), e.trained, 1000 * e.made] for e in entries]
    return columns, rows


def markdown(columns: list[str], rows: list[list]) -> str:
    """The table as text: means over seeds, and half-widths of their 95 % intervals; CPU times to two digits."""
    text = evaluation.mean_and_half_width
    lines = [
        [method, setting, *map(text, values, COLUMNS.values()), *(f"{seconds:.2g}" for seconds in times)]
        for method, setting, *values, times in ([*row[:-2], row[-2:]] for row in rows)
    ]
    return evaluation.markdown(columns, lines)

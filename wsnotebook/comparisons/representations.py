"""What a way of writing a network down knows about it: its properties, its kin, and whether its units' order matters.

All representations see the same networks, and everything is told on one scale, 0: nothing, 1: all there is to know,

    R2 of a number,   (right - most frequent) / (1 - most frequent) of a category,   (found - chance) / (1 - chance),

on models to which nothing was fitted. Change is how far a network's features move when its units change places, in
units of the distance between two networks: 0, the representation does not see it; 1, it takes it for another one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from wsnotebook import symmetry
from wsnotebook.comparisons.ways import Networks, Representation, last_rows
from wsnotebook.evaluation import interval
from wsnotebook.methods import properties
from wsnotebook.methods.properties import Probe, Scaling, Target
from wsnotebook.zoo.value import Zoo

Interval = tuple[float, float]  # mean, and half-width of its 95 % interval (nan: of one number)


class Twins(NamedTuple):
    """Networks, and the same functions with their units in other places."""

    own: Networks
    moved: Networks
    again: Zoo  # `moved`, brought back into the one order
    cpu_seconds: float  # that this took, a network


@dataclass(frozen=True, eq=False)
class Entry:
    """What one representation knows."""

    name: str
    numbers: int  # that a network becomes
    cpu_seconds: float  # that it takes, alignment included if it needs that
    probes: dict[str, Probe]  # {target: ...}; "other" scores are those of the networks set aside
    elsewhere: list[float]  # R2 of the first target on the other zoo, one a split; empty without one
    relatives: list[float]  # of each model: share of snapshots nearest to another one of it, on the scale above
    twins: list[float]  # of each network: 1 if its moved twin is nearest to it, on the scale above
    change: list[float]  # of each network
    again: list[float]  # ... after alignment brought it back; empty for what is not given aligned networks

    def answers(self) -> dict[str, Interval]:
        """{question: what it knows, from 0 (nothing) to 1}; below 0 it is worse than knowing nothing."""
        found = {name: interval(_skill(probe)) for name, probe in self.probes.items()}
        rest = {"elsewhere": self.elsewhere, "relatives": self.relatives, "twins": self.twins}
        return found | {name: interval(values) for name, values in rest.items() if values}

    def row(self) -> dict[str, float | None]:
        """Everything as numbers, half-widths of intervals as "... +-", for a file."""
        found = {"numbers": self.numbers, "cpu_ms": 1000 * self.cpu_seconds}
        measured = self.answers() | {"change": interval(self.change)}
        measured |= {"change, aligned again": interval(self.again)} if self.again else {}
        for name, (mean, half) in measured.items():
            found |= {name: mean, f"{name} +-": half if np.isfinite(half) else None}
        return found


# ---- the questions -----------------------------------------------------------------------------------------------


def answerable(zoo: Zoo, targets: Mapping[str, Target] = properties.TARGETS) -> tuple[dict[str, Target], list[str]]:
    """The targets that a zoo's facts can answer, and for each of the others a sentence that says why not."""
    found, left = {}, []
    for name, target in targets.items():
        if missing := [fact for fact in (target.fact, *["step"] * target.last) if fact not in zoo.facts]:
            left.append(f"{name}: the zoo has no fact {missing[0]!r}")
            continue
        rows = last_rows(zoo) if target.last else np.arange(len(zoo))
        if target.last and len(rows) == len(zoo):
            left.append(f"{name}: one snapshot of each model")
        elif len(np.unique(target.values(zoo.filter(rows)))) < 2:
            left.append(f"{name}: the same for all networks")
        else:
            found[name] = target
    return found, left


def twins(networks: Networks, reference: Tensor, x: Tensor | None = None, seed: int = 0) -> Twins:
    """Networks with their units shuffled, and aligned again to a reference (d,) of the first alignment.

    x (b, ...): a sample input, needed for your own networks alone.
    """
    moved = Networks(*(symmetry.permute(zoo, seed, x=x) for zoo in networks))
    started = time.process_time()
    again = symmetry.align(moved.aligned, reference=reference, seed=seed, x=x).zoo
    return Twins(networks, moved, again, (time.process_time() - started) / len(again))


def compare(
    ways: Sequence[Representation],
    seen: Networks,
    unseen: Networks,
    targets: Mapping[str, Target],
    pairs: Twins,
    *,
    other: Networks | None = None,
    seeds: Sequence[int] = properties.SEEDS,
) -> list[Entry]:
    """What each representation knows of `unseen` networks by probes of `seen` ones, a split of these a seed.

    pairs: twins, of whom one is to be found by the other. other: a zoo of another kind, for the first of the targets
    (a number). Raises ValueError for what `properties.probe` does.
    """
    return [_entry(way, seen, unseen, targets, pairs, other, seeds) for way in ways]


def _entry(way: Representation, seen: Networks, unseen: Networks, targets, pairs: Twins, other, seeds) -> Entry:
    x, started = way.of(seen), time.process_time()
    x_unseen = way.of(unseen)
    spent = (time.process_time() - started) / len(x_unseen) + way.aligned * pairs.cpu_seconds
    scaled = Scaling.of(x)
    probes = properties.probe(x, seen.aligned, targets, seeds=seeds, other=(x_unseen, unseen.aligned))
    elsewhere = []
    if other is not None:
        first = next(iter(probes.values()))
        x_other, y = way.of(other), first.target.values(other.aligned)
        elsewhere = [1 - float(np.mean((y - model.predict(x_other)) ** 2) / y.var()) for model in first.models]
    own, moved = (scaled(way.of(networks)) for networks in (pairs.own, pairs.moved))
    again = scaled(way.of(pairs.moved._replace(aligned=pairs.again))) if way.aligned else moved
    return Entry(
        name=way.name,
        numbers=x.shape[1],
        cpu_seconds=spent,
        probes=probes,
        elsewhere=elsewhere,
        relatives=relatives(scaled(x_unseen), unseen.aligned.facts.get("model", np.arange(len(x_unseen)))),
        twins=twin_found(own, again),
        change=change(own, moved).tolist(),
        again=change(own, again).tolist() if way.aligned else [],
    )


def relatives(x: np.ndarray, models: np.ndarray) -> list[float]:
    """Of each model with several networks, the share of them whose nearest other one, of features (n, f), is its own.

    0: as often as by chance; 1: always. Empty when no model has several, or there is one model alone.
    """
    n, (_, place, sizes) = len(x), np.unique(models, return_inverse=True, return_counts=True)
    squares = _squares(x, x)
    np.fill_diagonal(squares, np.inf)
    found = np.bincount(place, place[squares.argmin(1)] == place) / sizes  # (models,)
    several = (sizes > 1) & (sizes < n)
    chance = (sizes[several] - 1) / (n - 1)
    return ((found[several] - chance) / (1 - chance)).tolist()


def twin_found(x: np.ndarray, twins: np.ndarray) -> list[float]:
    """Whether each twin's features (n, f) are nearest to its own network's (n, f). 0: as by chance; 1: it is found."""
    n = len(x)
    found = _squares(twins, x).argmin(1) == np.arange(n)
    return ((found - 1 / n) / (1 - 1 / n)).tolist() if n > 1 else []


def change(x: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """(n,) how far features (n, f) are from the moved networks', over the root mean square between two networks."""
    between = np.sqrt(2 * x.var(0, ddof=1).sum()) if len(x) > 1 else np.nan
    return np.linalg.norm(moved - x, axis=1) / between


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) squared distances of rows."""
    return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T


def _skill(probe: Probe) -> list[float]:
    """A probe's score on the networks set aside, one a split, 0 for knowing nothing and 1 for everything."""
    if not probe.classes:
        return probe.scores["other r2"]
    right, most = (np.array(probe.scores[f"other {name}"]) / 100 for name in ("accuracy", "majority"))
    return ((right - most) / np.maximum(1 - most, 1e-9)).tolist()


def table(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) for `evaluation.markdown`: what each knows, and what it costs."""
    questions = list(entries[0].answers())
    columns = ["numbers", "CPU-ms", *questions, "change", "aligned again"]
    rows = []
    for entry in entries:
        answers = entry.answers()
        moved = [f"{np.mean(values):.2f}" if values else "" for values in (entry.change, entry.again)]
        told = [_text(*answers[question]) for question in questions]
        rows.append([entry.name, str(entry.numbers), f"{1000 * entry.cpu_seconds:.2g}", *told, *moved])
    return columns, rows


def _text(mean: float, half: float) -> str:
    return f"{round(mean, 2) + 0.0:.2f}" + (f" ± {half:.2f}" if np.isfinite(half) else "")

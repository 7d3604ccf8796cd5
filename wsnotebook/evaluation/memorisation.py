"""Are generated networks new, or copies of training networks? Each is held against the training network it resembles.

The reference is the training zoo against itself, each network left out in turn: a generator that is as good and as
various as training gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from wsnotebook.evaluation.distances import Nearest, leave_one_out, nearest, same_model
from wsnotebook.evaluation.reports import Report, report

if TYPE_CHECKING:
    from wsnotebook.zoo.value import Zoo


def error_iou(errors: np.ndarray, training_errors: np.ndarray, excluded: np.ndarray | None = None) -> np.ndarray:
    """(n,) from 0 to 1: the largest overlap of a network's errors with a training network's, |E & F| / |E | F|.

    errors (n, rows), training_errors (m, rows): bool, as of `report`. excluded (n, m): pairs left out. No errors at
    all on both sides count 1. Raises ValueError for other shapes, or a network with all pairs left out.
    """
    e, f = np.asarray(errors), np.asarray(training_errors)
    if e.ndim != 2 or f.ndim != 2 or e.shape[1] != f.shape[1] or not len(f) or e.dtype != bool or f.dtype != bool:
        raise ValueError(
            f"errors: {e.dtype} {e.shape}, training_errors: {f.dtype} {f.shape}; expected bool (n, rows), (m, rows)"
        )
    e, f = e.astype(np.float32), f.astype(np.float32)
    both = (e @ f.T).astype(float)  # (n, m) counts
    either = e.sum(1)[:, None] + f.sum(1) - both
    overlap = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    if excluded is not None:
        if excluded.shape != overlap.shape or excluded.all(1).any():
            raise ValueError(f"excluded: expected shape {overlap.shape} and a pair left in for every network")
        overlap[excluded] = -np.inf
    return overlap.max(1)


def disagreement(predictions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) %: rows on which two networks predict differently; predictions, others (n, rows).

    Raises ValueError for different shapes.
    """
    if predictions.shape != others.shape:
        raise ValueError(f"predictions {predictions.shape}, others {others.shape}: expected the same shape (n, rows)")
    return 100 * (predictions != others).mean(1)


@dataclass(frozen=True, eq=False)
class Comparison:
    """n networks, each against the training networks."""

    accuracy: np.ndarray  # (n,) %
    distance: np.ndarray  # (n,) to the nearest in weight space
    index: np.ndarray  # (n,) the nearest's row in the training zoo
    disagreement: np.ndarray  # (n,) % of rows on which it predicts otherwise than the nearest
    error_iou: np.ndarray  # (n,) largest overlap of errors with any, 0 to 1


@dataclass(frozen=True, eq=False)
class Novelty:
    """Generated networks against the training zoo, beside the training zoo against itself."""

    generated: Comparison
    reference: Comparison  # each training network against the others
    distance_above: float  # novel is a network farther than this from all training networks
    accuracy_above: float  # accurate is one above this, %

    @property
    def joint(self) -> float:
        """% of the generated networks that are novel and accurate."""
        return self._joint(self.generated)

    @property
    def reference_joint(self) -> float:
        """% of the training networks that are: about half of them, by the median."""
        return self._joint(self.reference)

    def _joint(self, networks: Comparison) -> float:
        novel, accurate = networks.distance > self.distance_above, networks.accuracy > self.accuracy_above
        return 100 * float((novel & accurate).mean())

    def __repr__(self) -> str:
        lines = [f"Novelty(novel and accurate: {self.joint:.1f} %, training zoo {self.reference_joint:.1f} %; medians:"]
        for name, c in (("generated", self.generated), ("training", self.reference)):
            numbers = (np.median(v) for v in (c.accuracy, c.distance, c.disagreement, c.error_iou))
            lines.append(
                "  {}: accuracy {:.2f} %, distance {:.3g}, disagreement {:.2f} %, error IoU {:.3f}".format(
                    name, *numbers
                )
            )
        return "\n".join(lines) + ")"


@dataclass(frozen=True, eq=False)
class Reference:
    """A training zoo with what does not depend on the networks that are held against it; of `reference`."""

    zoo: Zoo
    split: tuple[Tensor, Tensor]
    moments: Tensor | None
    report: Report
    comparison: Comparison  # each network against the others


def reference(training_zoo: Zoo, split: tuple[Tensor, Tensor], moments: Tensor | None = None) -> Reference:
    """What generated networks are held against: a training zoo on split, distances weighted by moments.

    moments (d,): of `input_moments`. Raises ValueError when they do not fit, or the zoo has one model.
    """
    near, seen = leave_one_out(training_zoo, moments), report(training_zoo, split)
    others = _comparison(seen, seen, near, same_model(training_zoo))
    return Reference(training_zoo, split, moments, seen, others)


def novelty(zoo: Zoo, reference: Reference, distance_times: float = 1.0, accuracy_quantile: float = 0.05) -> Novelty:
    """How new and how accurate generated networks are; aligned to what the training zoo is aligned to.

    distance_times: novel is farther from all training networks than this times the median distance of a training
    network to its nearest other. accuracy_quantile: accurate is above this quantile of the training networks'
    accuracies. Raises ValueError when the zoos do not fit.
    """
    if distance_times < 0 or not 0 <= accuracy_quantile <= 1:
        raise ValueError(
            f"distance_times={distance_times}, accuracy_quantile={accuracy_quantile}: expected from 0 up, from 0 to 1"
        )
    near, own = nearest(zoo, reference.zoo, reference.moments), reference.comparison
    return Novelty(
        _comparison(report(zoo, reference.split), reference.report, near),
        own,
        distance_above=distance_times * float(np.median(own.distance)),
        accuracy_above=float(np.quantile(own.accuracy, accuracy_quantile)),
    )


def _comparison(networks: Report, training: Report, near: Nearest, excluded: np.ndarray | None = None) -> Comparison:
    return Comparison(
        accuracy=networks.accuracy,
        distance=near.distance,
        index=near.index,
        disagreement=disagreement(networks.predictions, training.predictions[near.index]),
        error_iou=error_iou(networks.errors, training.errors, excluded),
    )

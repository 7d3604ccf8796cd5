"""Accuracy and loss between networks: along straight lines, and on the plane through three of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wsnotebook import memory
from wsnotebook.evaluation.recalibration import recalibrated
from wsnotebook.evaluation.reports import report

if TYPE_CHECKING:
    from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True, eq=False)
class Path:
    """Scores along the straight lines between p pairs of networks."""

    t: np.ndarray  # (points,) from 0, the first network, to 1, the second
    accuracy: np.ndarray  # (p, points) %
    loss: np.ndarray  # (p, points) nats

    @property
    def barrier(self) -> np.ndarray:
        """(p,) nats: the most by which the loss exceeds the line between its ends (Entezari et al. 2022)."""
        return (self.loss - self._straight(self.loss)).max(1)

    @property
    def accuracy_barrier(self) -> np.ndarray:
        """(p,) percentage points: the most by which the accuracy falls below the straight line between its ends."""
        return (self._straight(self.accuracy) - self.accuracy).max(1)

    @property
    def midpoint_accuracy(self) -> np.ndarray:
        """(p,) %: of the mean of the two networks."""
        return self.accuracy[:, len(self.t) // 2]

    def _straight(self, values: np.ndarray) -> np.ndarray:
        first, last = values[:, :1], values[:, -1:]
        return np.where(self.t < 0.5, first + self.t * (last - first), last - (1 - self.t) * (last - first))


def interpolate(
    zoo: Zoo,
    i: int | Sequence[int],
    j: int | Sequence[int],
    split: tuple[Tensor, Tensor],
    points: int = 21,
    recalibrate: Tensor | None = None,
) -> Path:
    """Scores on split along the straight lines from the zoo's rows i to j, each a number or (p,) numbers.

    points: on each line, an odd number. recalibrate: training images, for batch norm's statistics at every point.
    Raises ValueError for rows that do not pair up or have different activations.
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points={points}: expected an odd number from 3 up, so that the midpoint is one of them")
    i, j = _rows(zoo, "i", i), _rows(zoo, "j", j)
    if len(i) != len(j):
        raise ValueError(f"i has {len(i)} rows and j {len(j)}: expected pairs")
    _check_activations(zoo, i, j)
    t = np.linspace(0, 1, points)
    first, second = np.repeat(i, points), np.repeat(j, points)  # (p points,)
    share = torch.from_numpy(np.tile(t, len(i))).float().to(zoo.weights.device)

    def weights(part: np.ndarray) -> Tensor:
        return torch.lerp(zoo.weights[first[part]], zoo.weights[second[part]], share[part, None])

    accuracy, loss = _scores(zoo, first, weights, split, recalibrate)
    return Path(t, accuracy.reshape(-1, points), loss.reshape(-1, points))


@dataclass(frozen=True, eq=False)
class Plane:
    """Scores on the plane through three networks; coordinates are distances in weight space from the first."""

    x: np.ndarray  # (points,) along the line from the first network to the second
    y: np.ndarray  # (points,) at a right angle to it
    corners: np.ndarray  # (3, 2) the networks' coordinates (x, y)
    accuracy: np.ndarray  # (points of y, points of x) %
    loss: np.ndarray  # (points of y, points of x) nats


def plane(
    zoo: Zoo,
    rows: tuple[int, int, int],
    split: tuple[Tensor, Tensor],
    points: int = 21,
    margin: float = 0.3,
    recalibrate: Tensor | None = None,
) -> Plane:
    """Scores on split over the plane through three rows of the zoo (Garipov et al. 2018), on points x points networks.

    margin: around the triangle, as a share of its width and height. recalibrate: training images; batch norm needs
    them, because running variances are not on the plane. Distances leave out running statistics.
    Raises ValueError for rows on one line, or of different activations.
    """
    corner = _rows(zoo, "rows", rows)
    if len(corner) != 3 or points < 2 or margin < 0:
        raise ValueError(f"rows={rows}, points={points}, margin={margin}: expected three rows, >= 2 and >= 0")
    _check_activations(zoo, corner[:1], corner[1:])
    if recalibrate is None and any(name.endswith("running_var") for name in zoo.layout.names):
        raise ValueError(f"{zoo.network} has batch norm: give training images as recalibrate=")
    origin, *others = zoo.weights[corner].double()
    u, v = ((other - origin) * zoo.layout.learned().to(origin.device) for other in others)  # (d,)
    width = u.norm()
    along = v @ u / width.clamp(min=torch.finfo(u.dtype).tiny)
    v = v - along * u / width
    height = v.norm()
    if not height > 1e-6 * width > 0:
        raise ValueError(f"rows={rows}: the three networks lie on one line, so there is no plane; use interpolate")
    basis = torch.stack([u / width, v / height])  # (2, d), orthonormal
    corners = np.array([[0, 0], [float(width), 0], [float(along), float(height)]])
    x, y = (np.linspace(c.min() - margin * np.ptp(c), c.max() + margin * np.ptp(c), points) for c in corners.T)
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)).to(basis)  # (points points, 2)

    def weights(part: np.ndarray) -> Tensor:
        return (origin + grid[part] @ basis).float()

    scores = _scores(zoo, np.full(len(grid), corner[0]), weights, split, recalibrate)
    return Plane(x, y, corners, *(values.reshape(points, points) for values in scores))


def _scores(
    zoo: Zoo,
    rows: np.ndarray,
    weights: Callable[[np.ndarray], Tensor],
    split: tuple[Tensor, Tensor],
    recalibrate: Tensor | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy (m,), loss (m,)) of networks like the zoo's rows (m,) with other weights, made a portion at a time."""
    reports = []
    for part in np.array_split(np.arange(len(rows)), -(-len(rows) * zoo.layout.d // memory.PORTION)):
        networks = zoo.filter(rows[part]).derived(weights(part))
        networks = networks if recalibrate is None else recalibrated(networks, recalibrate)
        reports.append(report(networks, split))
    return np.concatenate([r.accuracy for r in reports]), np.concatenate([r.loss for r in reports])


def _rows(zoo: Zoo, name: str, rows: int | Sequence[int]) -> np.ndarray:
    rows = np.atleast_1d(rows)
    if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(zoo):
        raise ValueError(f"{name}={rows.tolist()}: expected row numbers from 0 to {len(zoo) - 1}")
    return rows


def _check_activations(zoo: Zoo, i: np.ndarray, j: np.ndarray) -> None:
    kinds = zoo.facts.get("activation")
    if kinds is not None and (kinds[i] != kinds[j]).any():
        seen = ", ".join(np.unique(kinds[np.concatenate([i, j])]))
        raise ValueError(f"networks of different activations ({seen}): nothing lies between them; filter the zoo first")

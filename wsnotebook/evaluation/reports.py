"""Accuracy, loss and calibration of every network of a zoo; accuracy of their ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wsnotebook.evaluation.blocks import blocks, classes

if TYPE_CHECKING:
    from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True, eq=False)
class Report:
    """What n networks do on the same rows."""

    accuracy: np.ndarray  # (n,) %
    loss: np.ndarray  # (n,) mean negative log-likelihood, nats
    ece: np.ndarray  # (n,) expected calibration error, percentage points
    brier: np.ndarray  # (n,) mean squared distance of the probabilities from the one-hot label, 0 to 2
    per_class: np.ndarray  # (n, classes) % of the class's rows; nan for a class without rows
    predictions: np.ndarray  # (n, rows) int16
    errors: np.ndarray  # (n, rows) bool, where the prediction is not the label

    def __repr__(self) -> str:
        n, rows = self.errors.shape
        return f"Report({n} networks, {rows} rows, accuracy {self.accuracy.mean():.2f} ± {self.accuracy.std():.2f} %)"


def report(zoo: Zoo, split: tuple[Tensor, Tensor], bins: int = 15) -> Report:
    """Report of all networks on (x (rows, ...), y (rows,)), in evaluation mode.

    bins: of equal width, for the largest probability, in the calibration error (Guo et al. 2017).
    Raises ValueError for a split that does not fit, or a network with logits that are not finite.
    """
    x, y = split
    outputs = _checked_classes(zoo, x, y)
    if bins < 1:
        raise ValueError(f"bins={bins}: expected at least 1")
    n, rows = len(zoo), len(x)
    predictions = np.empty((n, rows), np.int16)
    loss, brier, gaps = np.zeros(n), np.zeros(n), np.zeros((n, bins))  # gaps: sum of (correct - confidence) in each bin
    for members, here, block in blocks(zoo, x):
        k, label = len(members), y[here]
        log_p = block.mT.contiguous().log_softmax(1)  # (k, classes, b): torch is slow where few classes are neighbours
        log_own = log_p.gather(1, label.expand(k, 1, -1)).squeeze(1)  # (k, b)
        p = log_p.exp_()
        confidence, predicted = p.max(1)  # (k, b)
        squares = p.square_().sum(1) - 2 * log_own.exp() + 1
        bin = (confidence * bins).ceil().long().sub_(1).clamp_(0, bins - 1)  # (m / bins, (m + 1) / bins]
        bin += bins * torch.arange(k, device=bin.device)[:, None]
        gap = (predicted == label).double() - confidence
        gap = torch.bincount(bin.flatten(), gap.flatten(), minlength=k * bins).view(k, bins)
        predictions[members, here] = predicted.cpu().numpy()
        loss[members] -= log_own.sum(-1, dtype=torch.float64).cpu().numpy()
        brier[members] += squares.sum(-1, dtype=torch.float64).cpu().numpy()
        gaps[members] += gap.cpu().numpy()
    y = y.cpu().numpy()
    errors = predictions != y
    return Report(
        accuracy=100 * (1 - errors.mean(1)),
        loss=loss / rows,
        ece=100 * np.abs(gaps).sum(1) / rows,
        brier=brier / rows,
        per_class=_per_class(errors, y, outputs),
        predictions=predictions,
        errors=errors,
    )


def _checked_classes(zoo: Zoo, x: Tensor, y: Tensor) -> int:
    """Number of outputs, each a class that the labels may name."""
    outputs = classes(zoo, x)
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"split: labels {tuple(y.shape)} {y.dtype}; expected int64 ({len(x)},), one a row of x")
    if y.min() < 0 or y.max() >= outputs:
        raise ValueError(
            f"split: labels from {int(y.min())} to {int(y.max())}; {zoo.network} has {outputs} outputs, so labels are "
            f"from 0 to {outputs - 1}"
        )
    return outputs


def _per_class(errors: np.ndarray, y: np.ndarray, outputs: int) -> np.ndarray:
    wrong = errors.astype(np.float32) @ np.eye(outputs, dtype=np.float32)[y]  # (n, classes) counts
    count = np.bincount(y, minlength=outputs).astype(float)
    return 100 * (1 - wrong / np.where(count > 0, count, np.nan))


def logits(zoo: Zoo, x: Tensor) -> Tensor:
    """Logits (n, rows, classes) float32 of all networks on x (rows, ...), in evaluation mode.

    Raises ValueError for an x that the networks do not take, or logits that are not finite.
    """
    out = torch.empty(len(zoo), len(x), classes(zoo, x), device=x.device)
    for members, here, block in blocks(zoo, x):
        out[torch.from_numpy(members), here] = block
    return out


def ensemble_accuracy(zoo: Zoo, split: tuple[Tensor, Tensor]) -> float:
    """Accuracy (%) of all networks together: the class with the largest mean probability.

    Raises ValueError as `report` does.
    """
    x, y = split
    total = torch.zeros(_checked_classes(zoo, x, y), len(x), dtype=torch.float64, device=x.device)
    for _, here, block in blocks(zoo, x):
        total[:, here] += block.mT.contiguous().softmax(1).sum(0, dtype=torch.float64)
    return 100 * float((total.argmax(0) == y).double().mean())

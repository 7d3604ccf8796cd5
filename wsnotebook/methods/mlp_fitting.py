"""Hundreds of small perceptrons trained at once, each on a target of its own.

SWAT-NN (Huang et al. 2025) has no training after its search; here all arms of a comparison go through the same `fit`.
In float32 on a CPU it is compiled (`mlp_kernel`, extra `fast`); otherwise it is PyTorch's automatic differentiation.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.methods.mlp_matrix import Form, Parts, check_plain, evaluate
from wsnotebook.training import check_at_least

try:
    from wsnotebook.methods import mlp_kernel as kernel
except ImportError:  # numba is an extra
    kernel = None

LANES = 256  # networks that PyTorch evaluates at once
Data = tuple[Tensor, Tensor]  # x (m, inputs) of all networks, y of each: float (m, n, outputs), or int64 classes (m, n)


@dataclass(frozen=True)
class Config:
    """How networks are trained: by Adam, all on the same rows."""

    steps: int = 2000  # updates of each network
    batch: int = 256  # rows an update
    lr: float = 0.1  # learning rate at the start, cosine to 0
    check_every: int = 100  # updates between two looks at the validation rows
    seed: int = 0  # of the rows' order, and of networks that are drawn

    def __post_init__(self):
        check_at_least(self, steps=0, batch=1, lr=0, check_every=1)


@dataclass(frozen=True)
class Fitted:
    """Trained networks, each with the weights that were best on the validation rows."""

    parts: Parts
    train: Tensor  # (n,) errors on all training rows: mean square, or cross-entropy in nats
    validation: Tensor  # (n,)


def fit(form: Form, parts: Parts, train: Data, validation: Data, config: Config) -> Fitted:
    """Train weights and biases of n plain networks, each on its own y; what is 0 stays 0. They go where the rows are.

    A network's result does not depend on the others. The weights at the start count among those that may be best.
    Raises ValueError for networks that are not plain, or data of another form or number.
    """
    check_plain(parts)
    parts = parts.to(train[0].device)
    for name, data in (("train", train), ("validation", validation)):
        _check(form, parts, name, data)
    way = kernel.trained if _compiled(parts) else by_torch
    batches = _batches(len(train[0]), config)
    parts = way(form, parts, train, validation, batches, config.lr, config.check_every)
    return Fitted(parts, errors(form, parts, train), errors(form, parts, validation))


@torch.no_grad()
def errors(form: Form, parts: Parts, data: Data) -> Tensor:
    """Each network's error on its rows (n,): mean square, or cross-entropy (nats) where y has classes."""
    _check(form, parts, "data", data)
    parts = parts.to(data[0].device)
    if _compiled(parts) and all((shares % 1 == 0).all() for shares in (parts.masks, parts.activations)):
        return kernel.errors(form, parts, data)
    return _evaluated(form, parts, data)


def _evaluated(form: Form, parts: Parts, data: Data) -> Tensor:
    x, y = data
    groups = torch.arange(len(parts.depth)).split(LANES)
    return torch.cat([_errors(evaluate(form, parts.take(lanes), x).mT, y[:, lanes]) for lanes in groups])


def _compiled(parts: Parts) -> bool:
    """Whether plain networks go through the kernel."""
    return kernel is not None and parts.weights.dtype == torch.float32 and parts.weights.device.type == "cpu"


def _errors(outputs: Tensor, y: Tensor) -> Tensor:
    """(n,) of outputs (n, outputs, m)."""
    if y.is_floating_point():
        return (outputs - y.permute(1, 2, 0)).square().mean((1, 2))
    return F.cross_entropy(outputs, y.T, reduction="none").mean(1)


def _check(form: Form, parts: Parts, name: str, data: Data) -> None:
    (x, y), n = data, len(parts.depth)
    if x.dtype != parts.weights.dtype or x.shape[1:] != (form.inputs,):
        expected = f"(m, {form.inputs}) and {parts.weights.dtype}, as the networks'"
        raise ValueError(f"{name}: x of shape {tuple(x.shape)} and type {x.dtype}, expected {expected}")
    expected = (len(x), n, form.outputs)[: 3 if y.is_floating_point() else 2]
    if y.shape != expected or not len(x):
        raise ValueError(
            f"{name}: y of shape {tuple(y.shape)} and type {y.dtype}, expected {expected} for {len(x)} rows, {n} "
            f"networks and {form.outputs} outputs (numbers (m, n, outputs), or int64 classes (m, n))"
        )


def _batches(m: int, config: Config) -> list[Tensor]:
    """Rows of each step: all m in random order, again and again; those that fill no batch wait for the next time."""
    generator, batch = torch.Generator().manual_seed(config.seed), min(config.batch, m)
    found = []
    while len(found) < config.steps:
        found += torch.randperm(m, generator=generator)[: m // batch * batch].split(batch)
    return found[: config.steps]


def by_torch(
    form: Form, parts: Parts, train: Data, validation: Data, batches: list[Tensor], lr: float, check_every: int
) -> Parts:
    """Networks after a step of Adam (Kingma and Ba 2015) for each batch: as they were when they validated best.

    Gradients are of the sum of the networks' errors, so that each has its own. They are not clipped: a norm over all
    would tie the networks together, and Adam's steps do not grow with a gradient.
    """
    learned = [part.clone().requires_grad_() for part in parts[:2]]
    fixed = [part == 0 for part in parts[:2]]
    optimiser, (x, y) = torch.optim.Adam(learned, lr), train
    now = parts._replace(weights=learned[0], biases=learned[1])
    best, lowest = [part.clone() for part in parts[:2]], torch.full_like(parts.masks[:, 0, 0], torch.inf)
    for step in range(len(batches) + 1):
        if step % check_every == 0 or step == len(batches):
            with torch.no_grad():
                error = _evaluated(form, now, validation)
                for kept, part in zip(best, learned, strict=True):
                    kept[error < lowest] = part[error < lowest]
                lowest = torch.where(error < lowest, error, lowest)
        if step < len(batches):
            rows = batches[step]
            optimiser.zero_grad()
            _errors(evaluate(form, now, x[rows]).mT, y[rows]).sum().backward()
            for part, zero in zip(learned, fixed, strict=True):
                part.grad[zero] = 0
            optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / len(batches))) / 2
            optimiser.step()
    return parts._replace(weights=best[0], biases=best[1])

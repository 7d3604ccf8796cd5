"""Thousands of small perceptrons trained at once, each on a target of its own; dense and pruned ones as controls.

Networks of a search (SWAT-NN, Huang et al. 2025, has no fine-tuning and no controls) are compared with dense networks
of tanh units, and with dense networks pruned by magnitude (Han et al. 2015), at equal numbers of non-zeros. All arms
go through the same `fit`, and are chosen on validation rows.

A network is a row of p numbers: of every layer [W | b], unit after unit. Networks of one depth and of about as many
units compute together. Gradients are written out, so that a unit computes its own activation alone, whatever others
its layer has, and nothing is written to fresh memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.cornn import Table
from wsnotebook.methods.mlp_matrix import Form, Parts, concat, empty, evaluate, hardened, non_zeros, permuted, units
from wsnotebook.training import check_at_least

LANES = 256  # networks of a group: they share the cost of every operation
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
    """Train weights and biases of n plain networks, each on its own y; what is 0 stays 0.

    A network's result does not depend on the others. The weights at the start count among those that may be best.
    Raises ValueError for networks that are not plain, or data of another form or number.
    """
    non_zeros(form, parts)  # only of plain networks
    for name, data in (("train", train), ("validation", validation)):
        _check(form, len(parts.depth), name, data)
    batches = _batches(len(train[0]), config)
    orders = parts.masks[..., : form.width].argsort(dim=-1, descending=True, stable=True)
    parts = permuted(form, parts, orders)  # units that are on in front: the others need no room
    parts = parts._replace(weights=parts.weights.clone(), biases=parts.biases.clone())
    alike = torch.cat([parts.depth[:, None], units(parts)], 1).unique(dim=0, return_inverse=True)[1].argsort()
    of_depths = alike.split(parts.depth.bincount().tolist())  # and in each depth by the number of units
    for lanes in (lanes for those in of_depths for lanes in those.split(LANES) if len(lanes)):
        group = _Group(form, parts.take(lanes))
        (x, y), (x_validation, y_validation) = train, validation
        kept = _trained(group, (x, y[:, lanes]), (x_validation, y_validation[:, lanes]), batches, config)
        parts.weights[lanes], parts.biases[lanes] = group.weights_and_biases(kept)
    parts = permuted(form, parts, orders.argsort(-1))
    return Fitted(parts, errors(form, parts, train), errors(form, parts, validation))


def errors(form: Form, parts: Parts, data: Data) -> Tensor:
    """Each network's error on its rows (n,): mean square, or cross-entropy (nats) where y has classes."""
    _check(form, len(parts.depth), "data", data)
    x, y = data
    groups = torch.arange(len(parts.depth)).split(LANES)
    return torch.cat([_errors(evaluate(form, parts.take(lanes), x).mT, y[:, lanes]) for lanes in groups])


def _errors(outputs: Tensor, y: Tensor) -> Tensor:
    """(n,) of outputs (n, outputs, m)."""
    if y.is_floating_point():
        return (outputs - y.permute(1, 2, 0)).square().mean((1, 2))
    return F.cross_entropy(outputs, y.T, reduction="none").mean(1)


def _check(form: Form, n: int, name: str, data: Data) -> None:
    x, y = data
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


def _trained(group: "_Group", train: Data, validation: Data, batches: list[Tensor], config: Config) -> Tensor:
    """Numbers (n, p) of a group's networks after training. Adam, as Kingma and Ba 2015.

    Gradients are of the sum of the networks' errors, so that each has its own. They are not clipped: a norm over all
    would tie the networks together, and Adam's steps do not grow with a gradient.
    """
    (x, y), (x_validation, y_validation) = train, validation
    v, learns = group.numbers, group.numbers != 0
    mean, square = torch.zeros_like(v), torch.zeros_like(v)
    best, lowest = v, torch.full_like(v[:, :1], torch.inf)
    for step in range(config.steps + 1):
        if step % config.check_every == 0 or step == config.steps:
            error = _errors(group.outputs(v, x_validation.T), y_validation)[:, None]
            best, lowest = torch.where(error < lowest, v, best), torch.where(error < lowest, error, lowest)
        if step < config.steps:
            rows = batches[step]
            g = group.gradient(v, x[rows].T, y[rows]) * learns
            mean.lerp_(g, 0.1)
            square.mul_(0.999).addcmul_(g, g, value=0.001)
            lr = config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2 / (1 - 0.9 ** (step + 1))
            deviation = square.sqrt().div_(math.sqrt(1 - 0.999 ** (step + 1))).add_(1e-8)
            v = torch.addcdiv(v, mean, deviation, value=-lr)
    return best


class _Group:
    """n networks of one depth, and how a row of numbers computes: each layer has as many units as the widest of them.

    Units lie in rows, (n * units, m). For the activations, rows are brought into an order in which each has its own
    together. Results are written where they were before: fresh memory costs more than what is computed in it.
    """

    def __init__(self, form: Form, parts: Parts):
        depth = int(parts.depth[0])
        widths = units(parts).amax(0).clamp(min=1)[:depth].tolist()
        self.parts, self.places = parts, [*range(depth), form.depth]  # the output layer is always the last
        self.shapes = [(here, before + 1) for before, here in pairwise([form.inputs, *widths, form.outputs])]
        self.numbers = torch.cat(
            [
                torch.cat([parts.weights[:, place, :a, : b - 1], parts.biases[:, place, :a, None]], 2).flatten(1)
                for place, (a, b) in zip(self.places, self.shapes, strict=True)
            ],
            1,
        )  # (n, p)
        self.kinds = [_Kinds(form, parts, layer, width) for layer, width in enumerate(widths)]
        self.room = {}  # for m points: of each hidden layer z and h, (n * units, m)

    def layers(self, v: Tensor) -> list[Tensor]:
        """Rows of numbers (n, p) as (n, units, units before + 1) of each layer."""
        pieces = v.split([a * b for a, b in self.shapes], 1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def weights_and_biases(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of `Parts`."""
        weights, biases = self.parts.weights.clone(), self.parts.biases.clone()
        for place, layer, (a, b) in zip(self.places, self.layers(v), self.shapes, strict=True):
            weights[:, place, :a, : b - 1], biases[:, place, :a] = layer[..., :-1], layer[..., -1]
        return weights, biases

    def outputs(self, v: Tensor, x: Tensor) -> Tensor:
        """(n, outputs, m) of x (inputs, m)."""
        return self._forward(self.layers(v), x)[0]

    def _forward(self, layers: list[Tensor], x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Outputs; and of each hidden layer what its units give and how it grows with z, (n, units, m) each."""
        first, *others = layers
        n, m = len(first), x.shape[1]
        if m not in self.room:
            self.room[m] = [x.new_empty(2, n * a, m) for a, _ in self.shapes[:-1]]
        room = self.room[m]
        torch.addmm(first[..., -1].reshape(-1, 1), first[..., :-1].flatten(0, 1), x, out=room[0][0])
        hidden = []
        for layer, (z, h), kinds, after in zip(others, room, self.kinds, [*room[1:], None], strict=True):
            kinds.activate(z, h)
            hidden.append((h.unflatten(0, (n, -1)), z.unflatten(0, (n, -1))))
            out = None if after is None else after[0].unflatten(0, (n, -1))
            y = torch.baddbmm(layer[..., -1:], layer[..., :-1], hidden[-1][0], out=out)
        return y, hidden

    def gradient(self, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(n, p): of each network's error, x (inputs, m)."""
        layers = self.layers(v)
        outputs, hidden = self._forward(layers, x)
        outputs.requires_grad_()
        (g,) = torch.autograd.grad(_errors(outputs, y).sum(), outputs)
        pieces = []
        for layer, (h, slope) in zip(layers[:0:-1], hidden[::-1], strict=True):
            pieces.append(torch.cat([g @ h.mT, g.sum(-1, keepdim=True)], 2).flatten(1))
            g = torch.bmm(layer[..., :-1].mT, g, out=h).mul_(slope)
        pieces.append(torch.cat([g @ x.T, g.sum(-1, keepdim=True)], 2).flatten(1))
        return torch.cat(pieces[::-1], 1)


class _Kinds:
    """Which activation each of a layer's n * width units has."""

    def __init__(self, form: Form, parts: Parts, layer: int, width: int):
        kinds = torch.where(parts.masks > 0, parts.activations.argmax(-1), -1)[:, layer, :width].flatten()
        self.writers = [_off] + [ACTIVATE[name] for name in form.activations]
        self.counts = (kinds + 1).bincount(minlength=len(self.writers)).tolist()
        self.order = None if max(self.counts) == len(kinds) else kinds.argsort(stable=True)  # units that are off first
        self.back = None if self.order is None else self.order.argsort()
        self.room = {}  # for m points: z and h in that order, (n * width, m)

    def activate(self, z: Tensor, h: Tensor) -> None:
        """Write f(z) in h and f'(z) in z, (n * width, m) each; 0 for units that are off."""
        if self.order is None:
            self._activate(z, h)
            return
        m = z.shape[1]
        if m not in self.room:
            self.room[m] = z.new_empty(2, *z.shape)
        ordered, values = self.room[m]
        self._activate(torch.index_select(z, 0, self.order, out=ordered), values)
        torch.index_select(ordered, 0, self.back, out=z)
        torch.index_select(values, 0, self.back, out=h)

    def _activate(self, z: Tensor, h: Tensor) -> None:
        for write, *some in zip(self.writers, z.split(self.counts), h.split(self.counts), strict=True):
            if len(some[0]):
                write(*some)


def _off(z, h):
    z.zero_()
    h.zero_()


def _sigmoid(z, h):
    torch.sigmoid(z, out=h)
    torch.addcmul(h, h, h, value=-1, out=z)


def _tanh(z, h):
    torch.sigmoid(z.mul_(2), out=h).mul_(2).sub_(1)  # to 1e-7, in a third of the time of torch.tanh
    torch.mul(h, h, out=z).neg_().add_(1)


def _linear(z, h, below: float):
    h.copy_(z)
    h.mul_(z.gt_(0).mul_(1 - below).add_(below))


def _gelu(z, h):
    share = torch.erf(z / math.sqrt(2)).mul_(0.5).add_(0.5)
    torch.mul(z, share, out=h)
    z.mul_(torch.exp(-z * z / 2)).div_(math.sqrt(2 * math.pi)).add_(share)


def _sin(z, h):
    torch.sin(z, out=h)
    z.cos_()


ACTIVATE = {  # each of `networks.UNITS`: writes f(z) in h and f'(z) in z
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "leaky_relu": lambda z, h: _linear(z, h, 0.01),
    "relu": lambda z, h: _linear(z, h, 0.0),
    "gelu": _gelu,
    "sin": _sin,
    "identity": lambda z, h: _linear(z, h, 1.0),
}


# ---- controls ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """Of every function and size the network of lowest validation error among its restarts."""

    names: tuple[str, ...]  # of the functions
    parts: Parts  # functions * sizes networks, a function's together
    non_zeros: Tensor  # (functions, sizes) int64, and of the same shape:
    validation: Tensor  # mean square errors
    test: Tensor


def dense(
    form: Form, shapes: Sequence[Sequence[int]], activation: str, table: Table, config: Config, restarts: int = 3
) -> Control:
    """Networks without zeros, of several shapes (the units of each hidden layer, as (7,) or (5, 5)), all at once.

    Raises ValueError for an activation or a shape that the form has not.
    """
    parts, data = _start(form, shapes, activation, table, config, restarts)
    return _chosen(form, table, [fit(form, parts, *data, config)], len(shapes), restarts)


def pruned(
    form: Form,
    shapes: Sequence[Sequence[int]],
    activation: str,
    table: Table,
    counts: Sequence[int],
    config: Config,
    fine_tuning: Config,
    restarts: int = 3,
) -> Control:
    """The same, pruned by magnitude to these numbers of non-zeros, from the largest on: sizes are (counts, shapes).

    They lose a third at most at a time and are then trained by `fine_tuning`. Raises ValueError as `dense`.
    """
    parts, data = _start(form, shapes, activation, table, config, restarts)
    fitted, found = fit(form, parts, *data, config), []
    left = int(non_zeros(form, parts).max())
    for count in sorted(counts, reverse=True):
        while left > count:
            left = max(count, left * 2 // 3)
            fitted = fit(form, keep_largest(form, fitted.parts, left), *data, fine_tuning)
        found.append(fitted)
    return _chosen(form, table, found, len(shapes), restarts)


def keep_largest(form: Form, parts: Parts, count: int) -> Parts:
    """Each network's largest weights and biases: as many as leave at most `count` non-zeros in it, the others 0.

    Units that nothing reads any more are off, and do not count. Raises ValueError for networks that are not plain.
    """
    before = non_zeros(form, parts)
    sizes = torch.cat([parts.weights.flatten(1), parts.biases.flatten(1)], 1).abs()  # (n, p)
    rank = sizes.argsort(dim=1, descending=True, stable=True).argsort(1)
    split = [parts.weights[0].numel(), parts.biases[0].numel()]

    def first(k: Tensor) -> Parts:
        weights, biases = (rank < k[:, None]).split(split, 1)
        weights, biases = parts.weights * weights.view_as(parts.weights), parts.biases * biases.view_as(parts.biases)
        return hardened(form, parts._replace(weights=weights, biases=biases))

    k = torch.zeros_like(before)
    for bit in reversed(range(sizes.shape[1].bit_length())):  # non-zeros grow with k: its largest, bit by bit
        more = k + 2**bit
        k = torch.where(non_zeros(form, first(more)) <= count, more, k)
    return first(k)


def _start(form, shapes, activation, table: Table, config: Config, restarts: int) -> tuple[Parts, tuple[Data, Data]]:
    """Networks for (functions, shapes, restarts), and their training and validation rows."""
    functions = len(table.names)
    pattern = concat([_dense(form, shape, activation) for shape in shapes])
    parts = _drawn(pattern.take(torch.arange(len(shapes)).repeat_interleave(restarts).repeat(functions)), config.seed)
    lanes = torch.arange(functions).repeat_interleave(len(shapes) * restarts)
    return parts, (_of(table.train, lanes), _of(table.validation, lanes))


def _dense(form: Form, shape: Sequence[int], activation: str) -> Parts:
    """One network with 1 in all its places."""
    if activation not in form.activations:
        raise ValueError(f"activation={activation!r}: expected one of {form}")
    if not 1 <= len(shape) <= form.depth or not 1 <= min(shape) <= max(shape) <= form.width:
        raise ValueError(f"shape {tuple(shape)}: expected the units of 1 to {form.depth} hidden layers of {form}")
    parts = empty(form, torch.tensor([len(shape)]))
    for layer, (before, here) in enumerate(pairwise([form.inputs, *shape, form.outputs])):
        place = layer if layer < len(shape) else form.depth
        parts.weights[:, place, :here, :before], parts.biases[:, place, :here] = 1, 1
    for layer, here in enumerate(shape):
        parts.masks[:, layer, :here], parts.activations[:, layer, :here, form.activations.index(activation)] = 1, 1
    return parts


def _drawn(pattern: Parts, seed: int) -> Parts:
    """Random numbers where the pattern is not 0, as PyTorch draws a linear layer's: uniform up to 1 / sqrt(fan-in)."""
    g = torch.Generator().manual_seed(seed)
    bound = (pattern.weights != 0).sum(-1).clamp(min=1).rsqrt()  # (n, L + 1, H)
    weights, biases = (2 * torch.rand(part.shape, generator=g) - 1 for part in pattern[:2])
    weights, biases = weights * bound[..., None] * (pattern.weights != 0), biases * bound * (pattern.biases != 0)
    return pattern._replace(weights=weights, biases=biases)


def _of(data: Data, functions: Tensor) -> Data:
    """A table's rows with a target for each network: y (m, n, 1)."""
    x, y = data
    return x, y[:, functions, None]


def _chosen(form: Form, table: Table, found: list[Fitted], sizes: int, restarts: int) -> Control:
    """The best restarts of several trainings of (functions, sizes, restarts) networks; these are then all the sizes."""
    functions = len(table.names)
    parts, validation = concat([f.parts for f in found]), torch.cat([f.validation for f in found])
    lanes = torch.arange(len(validation)).view(len(found), functions, sizes, restarts)
    lanes = lanes.transpose(0, 1).flatten(1, 2)  # (functions, sizes, restarts)
    validation, best = validation[lanes].min(2)
    parts = parts.take(lanes.gather(2, best[..., None]).flatten())
    test = errors(form, parts, _of(table.test, torch.arange(functions).repeat_interleave(lanes.shape[1])))
    return Control(table.names, parts, non_zeros(form, parts).view_as(best), validation, test.view_as(best))


# ---- error against non-zeros -------------------------------------------------------------------------------------


def best_at(non_zeros: Tensor, errors: Tensor, budget: int) -> Tensor:
    """Which network has the lowest error of those with at most `budget` non-zeros: (...) of (..., n), n networks each.

    Of equal ones the one with fewest non-zeros, then the first: how arms are compared, the errors being those of
    validation. Raises ValueError where there is none.
    """
    within = (non_zeros <= budget) & errors.isfinite()
    if not within.any(-1).all():
        seen = int(non_zeros[~within.any(-1)].amin())
        raise ValueError(f"budget={budget}: some function has no network of so few non-zeros; the smallest has {seen}")
    at = non_zeros.argsort(dim=-1, stable=True)
    return at.gather(-1, torch.where(within, errors, torch.inf).gather(-1, at).argmin(-1, keepdim=True))[..., 0]


def front(non_zeros: Tensor, errors: Tensor) -> Tensor:
    """Bool (..., n): which of n networks none beats in non-zeros or error without losing in the other; of equals one.

    A network whose error is not finite is never among them.
    """
    errors = torch.where(errors.isfinite(), errors, torch.inf)
    at = errors.argsort(dim=-1, stable=True)
    at = at.gather(-1, non_zeros.gather(-1, at).argsort(dim=-1, stable=True))  # by non-zeros, then error, then place
    sorted_errors = errors.gather(-1, at)
    before = F.pad(sorted_errors, (1, 0), value=torch.inf).cummin(-1).values[..., :-1]
    return torch.zeros_like(at, dtype=torch.bool).scatter(-1, at, sorted_errors < before)

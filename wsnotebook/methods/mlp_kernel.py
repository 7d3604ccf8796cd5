"""The compiled training of `mlp_fitting`: float32 perceptrons, number by number (numba, the `fast` extra).

A network is a list of links: a weight or bias that is not 0, and the unit it leads to. So a zero, or a unit that is
off, costs nothing. The SIMD lanes hold data rows, BLOCK at a time: what every unit gives for them stays in the first
cache level. A HANDFUL of networks goes through a block together, and shares the gathering of its inputs.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.engines.lane_kernels import CAREFUL, GELU, IDENTITY, RELU, SIGMOID, TANH, activate
from wsnotebook.engines.vectors import WIDTH, add, fma, load, peek, splat, spread, store
from wsnotebook.methods.mlp_matrix import Form, Parts, hardened, live

HANDFUL = 16  # networks at a time; training can be interrupted after each and after every look at the validation rows
BLOCK = 128  # data rows at a time
STRIDE = 4 * WIDTH  # rows whose sums grow at once in registers
LEAKY_RELU, SINE = 5, 6  # besides those of `lane_kernels`
KINDS = {
    "sigmoid": SIGMOID,
    "tanh": TANH,
    "leaky_relu": LEAKY_RELU,
    "relu": RELU,
    "gelu": GELU,
    "sin": SINE,
    "identity": IDENTITY,
}
f32 = np.float32
NOTHING = np.zeros(0, f32)
Data = tuple[Tensor, Tensor]  # as in `mlp_fitting`


class Networks(NamedTuple):
    """Of n networks, what is linked with what. A network's rows: the inputs, a 1, the hidden units, the outputs."""

    units: np.ndarray  # (n + 1,) where each network's units start: layer by layer, the outputs last
    links: np.ndarray  # (units + 1,) where each unit's links start
    sources: np.ndarray  # (links,) the row that a link reads; a bias reads the 1
    kinds: np.ndarray  # (units,) of activation


class State(NamedTuple):
    """Of the same networks, what changes in training, float32."""

    numbers: np.ndarray  # (links,)
    mean: np.ndarray  # (links,) Adam's, of the gradient
    square: np.ndarray  # (links,) and of its square
    gradient: np.ndarray  # (links * WIDTH,) in WIDTH parts


class Rows(NamedTuple):
    """Inputs that n networks share, and the targets of each, float32."""

    x: np.ndarray  # (inputs, m)
    y: np.ndarray  # (n, outputs, m): numbers, or 1 at a row's class and 0 elsewhere
    classes: bool


class Scratch(NamedTuple):
    """A network at work on a block, float32: rows of BLOCK numbers."""

    h: np.ndarray  # the network's rows
    slope: np.ndarray  # derivatives of its units' activations
    g: np.ndarray  # the error's derivatives by its rows
    t: np.ndarray  # targets


@torch.no_grad()
def trained(
    form: Form, parts: Parts, train: Data, validation: Data, batches: Sequence[Tensor], lr: float, check_every: int
) -> Parts:
    """Plain float32 networks after a step for each batch, at their best: the same as `mlp_fitting.by_torch`."""
    learned, last = _numbers(parts), len(batches)
    steps = torch.stack(batches).numpy() if batches else None
    rates = lr * (1 + np.cos(np.pi * np.arange(last) / max(1, last))) / 2
    for lanes, there, networks, scratch in _handfuls(form, parts):
        best, lowest = learned[lanes][there].numpy(), np.full(len(there), np.inf)
        mean, square, gradient = (torch.zeros(k * best.size).numpy() for k in (1, 1, WIDTH))
        state = State(best.copy(), mean, square, gradient)
        seen, unseen = (_rows(form, x, y[:, lanes]) for x, y in (train, validation))
        sizes = there.flatten(1).sum(1).numpy()  # links of each network
        for step in [*range(0, last, check_every), last]:
            error = _errors(networks, state.numbers, unseen, scratch)
            better = error < lowest
            lowest, best = np.where(better, error, lowest), np.where(better.repeat(sizes), state.numbers, best)
            if step < last:
                some = slice(step, step + check_every)
                train_some(networks, state, seen, scratch, steps[some], rates[some], step)
        learned[lanes][there] = torch.from_numpy(best)
    return parts._replace(weights=learned[..., :-1].contiguous(), biases=learned[..., -1].contiguous())


@torch.no_grad()
def errors(form: Form, parts: Parts, data: Data) -> Tensor:
    """(n,) of plain float32 networks, as `mlp_fitting.errors`."""
    found, numbers = torch.zeros(len(parts.depth)), _numbers(parts)
    for lanes, there, networks, scratch in _handfuls(form, parts):
        rows = _rows(form, data[0], data[1][:, lanes])
        found[lanes] = torch.from_numpy(_errors(networks, numbers[lanes][there].numpy(), rows, scratch))
    return found


def _errors(networks: Networks, numbers: np.ndarray, data: Rows, scratch: Scratch) -> np.ndarray:
    found = np.empty(len(data.y))
    go_through(networks, numbers, data, np.arange(data.x.shape[1]), scratch, found, NOTHING)
    return found


def _handfuls(form: Form, parts: Parts) -> Iterator[tuple[slice, Tensor, Networks, Scratch]]:
    """Where networks are, which of their `_numbers` are links, and those in their order."""
    parts = hardened(form, parts)
    for start in range(0, len(parts.depth), HANDFUL):
        lanes = slice(start, start + HANDFUL)
        some = parts.take(lanes)
        there = _numbers(some) != 0
        networks = _networks(form, some, there)
        height = form.inputs + 1 + int(np.diff(networks.units).max())
        scratch = Scratch(*(torch.zeros(k * BLOCK).numpy() for k in (height, height, height, form.outputs)))
        scratch.h[form.inputs * BLOCK : (form.inputs + 1) * BLOCK] = 1
        yield lanes, there, networks, scratch


def _numbers(parts: Parts) -> Tensor:
    """(n, L + 1, H, H + 1): [W | b] of every layer."""
    return torch.cat([parts.weights, parts.biases[..., None]], -1)


def _networks(form: Form, parts: Parts, there: Tensor) -> Networks:
    """Of `hardened` parts; there (n, L + 1, H, H + 1): which of their `_numbers` are links."""
    on = live(form, parts).biases  # (n, L + 1, H) units, outputs among them
    rows = form.inputs + on.flatten(1).cumsum(1).view_as(on)  # of each unit
    inputs = torch.arange(form.rows).expand(len(on), 1, -1)
    last = rows[torch.arange(len(on)), parts.depth - 1, None]  # (n, 1, H) those that the outputs read
    sources = torch.cat([inputs, rows[:, : form.depth - 1], last], 1)  # (n, L + 1, H) of the rows a layer reads
    sources = F.pad(sources, (0, 1), value=form.inputs)[:, :, None].expand_as(there)  # biases read the 1
    kinds = torch.tensor([KINDS[name] for name in form.activations])[parts.activations.argmax(-1)]  # (n, L, H)
    kinds = F.pad(kinds, (0, 0, 0, 1), value=IDENTITY)  # (n, L + 1, H)
    units, links = (F.pad(count.cumsum(0), (1, 0)) for count in (on.sum((1, 2)), there.sum(-1)[on]))
    return Networks(*(part.numpy() for part in (units, links, sources[there], kinds[on])))


def _rows(form: Form, x: Tensor, y: Tensor) -> Rows:
    classes = not y.is_floating_point()
    y = (F.one_hot(y, form.outputs) if classes else y).to(x)  # (m, n, outputs)
    return Rows(x.T.contiguous().numpy(), y.permute(1, 2, 0).contiguous().numpy(), classes)


# ---- compiled ----------------------------------------------------------------------------------------------------


@njit(fastmath=CAREFUL, error_model="numpy")
def activated(a, slope, kind):
    """a = activation(a) and slope = its derivative there."""
    if kind == LEAKY_RELU:
        for i in range(a.size):
            slope[i] = f32(1) if a[i] > f32(0) else f32(0.01)
            a[i] *= slope[i]
    elif kind == SINE:
        for i in range(a.size):
            halves = np.floor(a[i] * (1 / np.pi) + 0.5)  # float64: as exact for large numbers as these are
            sign = f32(1 - 2 * (halves - 2 * np.floor(0.5 * halves)))
            r = f32(a[i] - halves * np.pi)  # in [-pi / 2, pi / 2]
            q = r * r
            sine, cosine = f32(-1 / 39916800), f32(1 / 479001600)  # their Taylor series
            sine, cosine = sine * q + f32(1 / 362880), cosine * q + f32(-1 / 3628800)
            sine, cosine = sine * q + f32(-1 / 5040), cosine * q + f32(1 / 40320)
            sine, cosine = sine * q + f32(1 / 120), cosine * q + f32(-1 / 720)
            sine, cosine = sine * q + f32(-1 / 6), cosine * q + f32(1 / 24)
            sine, cosine = sine * q + f32(1), cosine * q + f32(-1 / 2)
            a[i] = sign * r * sine
            slope[i] = sign * (cosine * q + f32(1))
    else:
        activate(a, slope, kind)


@njit(error_model="numpy")
def _gather(values, rows, size, out):
    """values (k, m) at these rows -> out, a row of BLOCK for each; 0 up to size."""
    for j in range(len(values)):
        source, target = values[j], out[j * BLOCK : j * BLOCK + size]
        for i in range(rows.size):
            target[i] = peek(source, peek(rows, i))
        for i in range(rows.size, size):
            target[i] = f32(0)


@njit(error_model="numpy")
def _forward(networks, net, numbers, row, size, h, slope):
    """Fill the rows h and slope of a network's units, the first of them `row`, from its inputs'."""
    sources = networks.sources
    for unit in range(networks.units[net], networks.units[net + 1]):
        first, last, start = networks.links[unit], networks.links[unit + 1], row * BLOCK
        for i in range(0, size, STRIDE):
            v0 = splat(f32(0))
            v1, v2, v3 = v0, v0, v0
            for k in range(first, last):
                w, at = spread(numbers, k), peek(sources, k) * BLOCK + i
                v0 = fma(w, load(h, at), v0)
                v1 = fma(w, load(h, at + WIDTH), v1)
                v2 = fma(w, load(h, at + 2 * WIDTH), v2)
                v3 = fma(w, load(h, at + 3 * WIDTH), v3)
            store(h, start + i, v0)
            store(h, start + i + WIDTH, v1)
            store(h, start + i + 2 * WIDTH, v2)
            store(h, start + i + 3 * WIDTH, v3)
        if networks.kinds[unit] != IDENTITY:
            activated(h[start : start + size], slope[start : start + size], networks.kinds[unit])
        row += 1


@njit(error_model="numpy")
def _backward(networks, net, numbers, row, size, h, slope, g, gradient):
    """Add to gradient (links * WIDTH,), in WIDTH parts, what the outputs' rows of g say; other rows of g are 0."""
    sources, inner = networks.sources, row
    row += networks.units[net + 1] - networks.units[net]
    for unit in range(networks.units[net + 1] - 1, networks.units[net] - 1, -1):
        row -= 1
        start = row * BLOCK
        if networks.kinds[unit] != IDENTITY:
            for i in range(start, start + size):
                g[i] *= slope[i]
        for k in range(networks.links[unit], networks.links[unit + 1]):
            at = peek(sources, k) * BLOCK - start
            v0, v1 = load(gradient, k * WIDTH), splat(f32(0))
            v2, v3 = v1, v1
            if peek(sources, k) < inner:
                for i in range(start, start + size, STRIDE):
                    v0 = fma(load(g, i), load(h, at + i), v0)
                    v1 = fma(load(g, i + WIDTH), load(h, at + i + WIDTH), v1)
                    v2 = fma(load(g, i + 2 * WIDTH), load(h, at + i + 2 * WIDTH), v2)
                    v3 = fma(load(g, i + 3 * WIDTH), load(h, at + i + 3 * WIDTH), v3)
            else:
                w = spread(numbers, k)
                for i in range(start, start + size, STRIDE):
                    e0, e1, e2, e3 = load(g, i), load(g, i + WIDTH), load(g, i + 2 * WIDTH), load(g, i + 3 * WIDTH)
                    j = at + i
                    v0 = fma(e0, load(h, j), v0)
                    v1 = fma(e1, load(h, j + WIDTH), v1)
                    v2 = fma(e2, load(h, j + 2 * WIDTH), v2)
                    v3 = fma(e3, load(h, j + 3 * WIDTH), v3)
                    store(g, j, fma(w, e0, load(g, j)))
                    store(g, j + WIDTH, fma(w, e1, load(g, j + WIDTH)))
                    store(g, j + 2 * WIDTH, fma(w, e2, load(g, j + 2 * WIDTH)))
                    store(g, j + 3 * WIDTH, fma(w, e3, load(g, j + 3 * WIDTH)))
            store(gradient, k * WIDTH, add(add(v0, v1), add(v2, v3)))


@njit(fastmath=CAREFUL | {"reassoc"}, error_model="numpy")
def _loss(z, y, g, rows, outputs, classes, scale):
    """Sum over rows of outputs z, targets y -> g, its derivative * scale; all in rows of BLOCK."""
    total = 0.0
    if classes:
        for i in range(rows):
            top, mass = z[i], f32(0)
            for j in range(i + BLOCK, i + outputs * BLOCK, BLOCK):
                top = max(top, z[j])
            for j in range(i, i + outputs * BLOCK, BLOCK):
                g[j] = np.exp(z[j] - top)
                mass += g[j]
                total -= y[j] * (z[j] - top)
            total += np.log(mass)
            for j in range(i, i + outputs * BLOCK, BLOCK):
                g[j] = (g[j] / mass - y[j]) * scale
    else:
        for start in range(0, outputs * BLOCK, BLOCK):
            squares = f32(0)
            for i in range(start, start + rows):
                e = z[i] - y[i]
                g[i] = f32(2) * scale * e
                squares += e * e
            total += squares
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def go_through(networks, numbers, data, rows, scratch, errors, gradient):
    """Fill errors (n,), the networks' on these rows; add their derivatives to gradient, unless it is empty."""
    h, slope, g, t = scratch.h, scratch.slope, scratch.g, scratch.t
    outputs, row = data.y.shape[1], len(data.x) + 1
    scale = 1 / rows.size if data.classes else 1 / (rows.size * outputs)
    for net in range(errors.size):
        errors[net] = 0
    for start in range(0, rows.size, BLOCK):
        some = rows[start : start + BLOCK]
        size = (some.size + STRIDE - 1) // STRIDE * STRIDE
        _gather(data.x, some, size, h)
        for net in range(errors.size):
            height = row + networks.units[net + 1] - networks.units[net]
            _forward(networks, net, numbers, row, size, h, slope)
            _gather(data.y[net], some, size, t)
            for i in range(row * BLOCK, height * BLOCK):
                g[i] = f32(0)
            at = (height - outputs) * BLOCK
            errors[net] += scale * _loss(h[at:], t, g[at:], some.size, outputs, data.classes, f32(scale))
            if gradient.size:
                _backward(networks, net, numbers, row, size, h, slope, g, gradient)


@njit(fastmath=CAREFUL, error_model="numpy")
def _adam(w, mean, square, gradient, lr, step):
    """Kingma and Ba 2015; gradient (w.size * WIDTH,) has WIDTH parts of each."""
    rate, root = f32(lr / (1 - 0.9**step)), f32((1 - 0.999**step) ** -0.5)
    for k in range(w.size):
        e = f32(0)
        for part in gradient[k * WIDTH : (k + 1) * WIDTH]:
            e += part
        mean[k] += f32(0.1) * (e - mean[k])
        square[k] = f32(0.999) * square[k] + f32(0.001) * e * e
        w[k] -= rate * mean[k] / (np.sqrt(square[k]) * root + f32(1e-8))


@njit(cache=True, nogil=True, error_model="numpy")
def train_some(networks, state, data, scratch, steps, rates, before):
    """A step of Adam for each batch of rows, steps (s, batch), at its rate; before: steps made already."""
    errors = np.empty(len(data.y))
    for step in range(len(steps)):
        for i in range(state.gradient.size):
            state.gradient[i] = f32(0)
        go_through(networks, state.numbers, data, steps[step], scratch, errors, state.gradient)
        _adam(state.numbers, state.mean, state.square, state.gradient, rates[step], before + step + 1)

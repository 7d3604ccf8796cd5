"""Training and evaluating many small CNNs of one architecture quickly on a CPU (numba, the `fast` extra).

What a framework spends on a network of a few thousand weights is overhead: here an image goes through a whole
network, and back, within the first cache level. `lane_kernels` has the passes of training and `lane_forward` that of
scoring; this file lays a network out for them.
"""

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.engines import lane_forward
from wsnotebook.engines import lane_kernels as kernels
from wsnotebook.engines.lane_kernels import CHUNKS, LAYER, PAIRS, WIDTH

ACTIVATIONS = {
    nn.Identity: kernels.IDENTITY,
    nn.ReLU: kernels.RELU,
    nn.Tanh: kernels.TANH,
    nn.Sigmoid: kernels.SIGMOID,
    nn.GELU: kernels.GELU,
}
OPTIMISERS = {"adam": kernels.ADAM, "adamw": kernels.ADAMW, "sgd": kernels.SGD}
BLOCK = 1024  # images whose logits are held at once when scoring


class Stage(NamedTuple):
    """A convolution or a linear layer, and what directly follows it."""

    affine: nn.Module
    pooled: bool = False
    activation: int = kernels.IDENTITY
    dropout: bool = False


def supports(network: nn.Module) -> bool:
    """Whether `LaneEngine` takes the network: see `stages`."""
    try:
        return bool(stages(network))
    except ValueError:
        return False


def stages(network: nn.Module) -> list[Stage]:
    """A CNN as (Conv2d [MaxPool2d(2)] | Linear) [activation] [Dropout] stages, Flatten before the first Linear.

    Convolutions have square kernels, stride 1, no padding, one group. Raises ValueError naming the layer that differs.
    Not a network without convolutions: torch's matrix products are quicker there.
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"network: {type(network).__name__}; expected a flat nn.Sequential: use the torch engine")
    found, flat = [], False
    for name, layer in network.named_children():
        kind, last = type(layer), found[-1] if found else None
        bare = last is not None and last == Stage(last.affine)
        if (kind is nn.Conv2d and not flat and _plain(layer)) or (
            kind is nn.Linear and flat and layer.bias is not None
        ):
            found.append(Stage(layer))
        elif kind is nn.Flatten and found and (layer.start_dim, layer.end_dim) == (1, -1):
            flat = True
        elif kind is nn.MaxPool2d and bare and not flat and _halves(layer):
            found[-1] = last._replace(pooled=True)
        elif kind in ACTIVATIONS and last and last == Stage(last.affine, last.pooled) and _exact(layer):
            found[-1] = last._replace(activation=ACTIVATIONS[kind])
        elif kind is nn.Dropout and last and not last.dropout:
            found[-1] = last._replace(dropout=True)
        else:
            raise ValueError(
                f"layer {name!r}, {layer}, is not one that the lanes take there: they take stages of Conv2d (square, "
                "stride 1, no padding, bias) then MaxPool2d(2), later of Linear, after a Flatten; each then Identity, "
                "ReLU, Tanh, Sigmoid or exact GELU; then Dropout. Use the torch engine"
            )
    if not (found and flat and isinstance(found[-1].affine, nn.Linear)):
        raise ValueError("network: its last layer with weights must be a Linear, with a Flatten before the first one")
    return found


def _plain(conv: nn.Conv2d) -> bool:
    square = conv.kernel_size[0] == conv.kernel_size[1]
    steps = (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), (0, 0), (1, 1), 1)
    return square and steps and conv.bias is not None


def _halves(pool: nn.MaxPool2d) -> bool:
    numbers = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return numbers in ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1)) and not (pool.ceil_mode or pool.return_indices)


def _exact(activation: nn.Module) -> bool:
    return getattr(activation, "approximate", "none") == "none"


def sizes(network: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(channels, height, width) of images, and of every stage's output for them.

    Raises ValueError when network and images do not fit, naming the layer.
    """
    if len(shape) != 3:
        raise ValueError(f"x: shape (n, {', '.join(map(str, shape))}), expected (n, c, h, w)")
    found = [tuple(shape)]
    for affine, pooled, *_ in stages(network):
        (c, h, w), linear, cell = found[-1], isinstance(affine, nn.Linear), 2 if pooled else 1
        kh, kw = (h, w) if linear else affine.kernel_size
        oh, ow = (h - kh + 1) // cell, (w - kw + 1) // cell
        if (c * h * w != affine.in_features if linear else c != affine.in_channels) or min(oh, ow) < 1:
            raise ValueError(f"{affine}: for images {tuple(shape)} its input is {(c, h, w)}, which does not fit")
        found.append((len(affine.weight), oh, ow))
    return found


def forward(network: nn.Sequential, weights: Tensor, x: Tensor) -> Tensor:
    """Logits (k, n, classes) of k networks on images x (n, c, h, w), in evaluation mode; torch's threads share them.

    network: the template, as `stages` takes it; weights (k, d) float32, rows in state-dict order.
    Raises ValueError when network and images do not fit.
    """
    shapes, layers, weight = sizes(network, x.shape[1:]), [], 0
    for (affine, pooled, activation, _), shape in zip(stages(network), shapes, strict=False):
        size = 0 if isinstance(affine, nn.Linear) else affine.kernel_size[0]
        layers.append((*shape, len(affine.weight), size, pooled, activation, weight))
        weight += affine.weight.numel() + affine.bias.numel()
    layers, length, n = np.array(layers, lane_forward.STAGE), sum(map(math.prod, shapes)), len(x)
    rows, images = weights.float().contiguous().numpy(), x.detach().float().flatten(1).contiguous().numpy()
    logits = torch.empty(len(weights), n, shapes[-1][0])
    each = WIDTH * (n // (WIDTH * torch.get_num_threads()) + 1)  # images of a thread

    def evaluate(start: int) -> None:
        lane_forward.evaluate(layers, rows, images, start, min(start + each, n), length, logits.numpy())

    with ThreadPoolExecutor() as pool:
        list(pool.map(evaluate, range(0, n, each)))
    return logits


class Plan(NamedTuple):
    """Where everything of an architecture lies; the tables are explained in `lane_kernels`."""

    layers: np.ndarray  # LAYER records
    lines: np.ndarray
    pairs: np.ndarray
    slots: np.ndarray
    chunks: np.ndarray
    where: np.ndarray  # a row; pooling overwrites its part
    order: np.ndarray  # where in a row of parameters each number of the forward pass's weights is
    learned: np.ndarray  # start and stop of its parts that are not frozen
    place: np.ndarray  # (d,) where in it each entry of the state dict is
    length: int  # D, of a row of parameters; the last number stays 0


def _whole(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def plan(network: nn.Sequential, shape: tuple[int, ...], frozen: Collection[str]) -> Plan:
    """Lay a network out for images of a shape (c, h, w); frozen: names of the parameters that are not learned.

    Raises ValueError as `sizes` does.
    """
    shapes, stride = sizes(network, shape), shape[0]  # the floats between two neighbouring positions of an input
    source, target, length = 0, _whole(math.prod(shape), WIDTH), 0
    layers, place, tables = [], [], {name: [] for name in ("line", "pair", "slot", "chunk", "kernel")}
    where = [np.zeros(target)]
    learns = np.array([name not in frozen for name, _ in network.named_parameters()])  # weight, bias, weight, ...
    found = zip(stages(network), learns.reshape(-1, 2), pairwise(shapes), strict=True)
    for (affine, pooled, activation, dropout), own, ((c, h, w), (out, oh, ow)) in found:
        linear = isinstance(affine, nn.Linear)
        if linear and h == w == 1:
            c, w, stride = 1, c, 1
        kh, kw = (h, w) if linear else affine.kernel_size
        cell, padded = 2 if pooled else 1, _whole(out, WIDTH)

        # Pairs of windows side by side; of a pool cell, the two pairs in a row of the table.
        i, j, half = np.ogrid[:oh, : (ow if pooled else _whole(ow, 2) // 2), :cell]
        pair = (((cell * i + half) * w + 2 * j) * stride).reshape(-1, cell)
        slot = (target + (i * ow + j * (2 // cell)) * padded + 0 * half).reshape(-1, cell)
        missing = (0, _whole(pair.size, PAIRS) // cell - len(pair)), (0, 0)
        # A window's lines of numbers, and the vectors of its rows.
        u, k, q = np.ogrid[:kh, :c, : _whole(kw * stride, WIDTH) : WIDTH]
        line, chunk = u[..., 0] * w * stride + k[..., 0], u[:, 0] * w * stride + q[0]
        grown = _whole(chunk.size, CHUNKS)
        # Weights: a row of chunks an output channel; for the forward pass, a vector of output channels a number.
        o, k, u, v = np.ogrid[:out, :c, :kh, :kw]
        weight = length + (o * grown + u * q.size) * WIDTH + v * stride + k  # (out, c, kh, kw)
        bias = length + out * grown * WIDTH
        kernel = np.full((padded, kh * c * kw), -1)
        kernel[:out] = weight.transpose(0, 2, 1, 3).reshape(out, -1)
        parts = {
            "line": line,
            "pair": np.pad(pair, missing, "edge"),
            "slot": np.pad(slot, missing, "edge"),
            "chunk": np.pad(chunk.ravel(), (0, grown - chunk.size)),
            "kernel": kernel.reshape(-1, WIDTH, kh * c * kw).transpose(0, 2, 1),
        }
        record = {name: sum(part.size for part in table) for name, table in tables.items() if name != "slot"}
        record |= {"channels": out, "padded": padded, "positions": oh * ow, "source": source, "target": target}
        record |= {"pooled": pooled, "activation": activation, "dropout": dropout, "stride": stride, "width": kw}
        record |= {"weight": length, "bias": bias, "grown": grown, "learns": own.any()}
        record |= {"lines": line.size, "pairs": parts["pair"].size, "chunks": chunk.size}
        layers.append(tuple(int(record[name]) for name in LAYER.names))
        for name, part in parts.items():
            tables[name].append(part.ravel())
        place += [weight.ravel(), bias + np.arange(out)]
        corner = (np.arange(oh)[:, None] * w + np.arange(ow)) * stride  # without pooling
        where += [corner.repeat(padded), np.zeros(padded)]  # room for half a pair too many
        source, target, length = target, target + (oh * ow + 1) * padded, bias + padded
        stride = padded

    where.append(np.zeros(max(layer[LAYER.names.index("stride")] for layer in layers) + WIDTH))
    line, pair, slot, chunk, order = (np.concatenate(table).astype(np.int64) for table in tables.values())
    length += WIDTH
    order[order < 0] = length - 1
    where, place, layers = np.concatenate(where).astype(np.int32), np.concatenate(place), np.array(layers, LAYER)
    starts = np.append(np.stack([layers["weight"], layers["bias"]], 1), length)  # of the parameters, and the end
    learned = starts[np.diff(learns, prepend=False, append=False)].reshape(-1, 2)  # neighbours are one part
    return Plan(layers, line, pair, slot, chunk, where, order, learned, place, length)


class LaneEngine:
    """k networks of one architecture, trained on the same images; none sees another.

    weights (k, d) float32, rows in state-dict order; lr, weight_decay, dropout, seeds (k,): one a model, dropout the
    probability at every Dropout layer (whose own is not read). optimiser: "adam", "adamw" or "sgd" (Nesterov momentum
    0.9), as PyTorch's. frozen: names of the parameters that stay as they are. A dropout mask depends on (seed, step,
    place in the batch, layer, unit) and nothing else.
    Raises ValueError for a network that `stages` refuses, or sizes that do not fit.
    """

    def __init__(
        self,
        network: nn.Sequential,
        weights: Tensor,
        *,
        optimiser: str,
        lr: Tensor,
        weight_decay: Tensor,
        dropout: Tensor,
        seeds: Tensor,
        frozen: Collection[str] = (),
    ):
        stages(network)
        d = sum(parameter.numel() for parameter in network.parameters())
        if weights.ndim != 2 or weights.shape[1] != d:
            raise ValueError(f"weights: shape {tuple(weights.shape)}, expected (k, {d}): another architecture?")
        if optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser: {optimiser!r}, expected one of {', '.join(OPTIMISERS)}")
        k = len(weights)
        for name, values in {"lr": lr, "weight_decay": weight_decay, "dropout": dropout, "seeds": seeds}.items():
            if values.shape != (k,):
                raise ValueError(f"{name}: shape {tuple(values.shape)}, expected ({k},), one a model")
        if not ((dropout >= 0) & (dropout < 1)).all():
            raise ValueError(f"dropout: {dropout.tolist()}, expected probabilities in [0, 1)")
        self.network, self.optimiser, self.frozen, self.step = network, OPTIMISERS[optimiser], frozen, 0
        self.lr, self.weight_decay, self.dropout = (t.double().numpy() for t in (lr, weight_decay, dropout))
        self.seeds = seeds.long().numpy()
        self.start, self.shape = weights.detach().float().clone(), None

    @property
    def weights(self) -> Tensor:
        """(k, d) float32, now: a copy."""
        if self.shape is None:
            return self.start.clone()
        return torch.from_numpy(self.net.weights.take(self.place, 1))

    def run(self, x: Tensor, y: Tensor, rows: Tensor, lr_scale: Tensor) -> Tensor:
        """Train some steps; returns each model's mean training loss over them (k,), nats, float64.

        x (n, c, h, w), y (n,) int64; rows (steps, batch) int64 of both for all models, or (k, steps, batch), -1 for
        none; lr_scale (steps,) multiplies lr.
        """
        images, labels = self._images(x), y.numpy()
        rows = rows.view(-1, *rows.shape[-2:]).numpy()  # (1 or k, steps, batch)
        if rows.size and not (rows.min() >= -1 and rows.max() < min(len(x), len(y))):
            raise ValueError(f"rows: between {rows.min()} and {rows.max()}, expected -1 to {min(len(x), len(y)) - 1}")
        if len(rows) not in (1, len(self.start)):
            raise ValueError(f"rows: for {len(rows)} models, expected one order for all or {len(self.start)}")
        filled = (rows >= 0).any(2).all(0)
        if not filled.all():
            raise ValueError(f"rows: step {int(filled.argmin())} has none")
        classes = int(self.net.layers[-1]["channels"])
        if not (labels.min() >= 0 and labels.max() < classes):
            raise ValueError(f"y: labels {labels.min()} to {labels.max()}, the network has {classes} outputs")
        losses, rates = np.zeros(len(self.start)), lr_scale.double().numpy()
        if rates.shape != (rows.shape[1],):
            raise ValueError(f"lr_scale: shape {rates.shape}, expected ({rows.shape[1]},), one a step")
        constants = self.optimiser, self.lr, self.weight_decay, self.dropout, self.seeds
        kernels.train(self.net, self.m, self.v, *constants, images, labels, rows, rates, self.step, losses)
        self.step += rows.shape[1]
        return torch.from_numpy(losses / rows.shape[1])

    def logits(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) -> (k, n, classes), without dropout."""
        return forward(self.network, self.weights, x)

    def score(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy in % and mean cross-entropy in nats of each model, (k,) float64, without dropout."""
        right, loss = torch.zeros(2, len(self.start), dtype=torch.float64)
        for images, labels in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
            logits = self.logits(images)  # (k, n, classes)
            right += (logits.argmax(2) == labels).sum(1)
            loss += F.cross_entropy(logits.double().mT, labels.expand(len(logits), -1), reduction="none").sum(1)
        return 100 * right / len(y), loss / len(y)

    def _images(self, x: Tensor) -> np.ndarray:
        """(n, c, h, w) -> (n, c, h w); the first images tell how everything is laid out."""
        shape = tuple(x.shape[1:])
        if self.shape not in (None, shape):
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (n, c, h, w) = (n, {self.shape})")
        if self.shape is None:
            self._lay_out(shape)
        return x.detach().float().contiguous().flatten(2).numpy()

    def _lay_out(self, shape: tuple[int, ...]) -> None:
        k, laid = len(self.start), plan(self.network, shape, self.frozen)
        weights = torch.zeros(k, laid.length).numpy()  # torch's memory starts at a cache line
        weights[:, laid.place] = self.start.numpy()
        a, slope, g = torch.zeros(3, laid.where.size).numpy()
        state = weights, weights.take(laid.order, 1), laid.order, laid.learned, a, slope, laid.where, g
        self.net = kernels.Net(laid.layers, laid.lines, laid.pairs, laid.slots, laid.chunks, *state)
        self.place, self.shape = laid.place, shape
        self.m, self.v = torch.zeros(2, k, laid.length).numpy()

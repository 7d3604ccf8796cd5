"""Making the weights of a cluster's layers from its templates, and the gradients of that: equation (1), vectorised.

An increment is a product (layers, K) @ (K, M) whose parts go to their places in the weights. It is made in pieces of
rows that stay in the processor's cache on the way, and memory of the last step is used again: in the largest case
fresh memory costs more than the arithmetic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wsnotebook.methods.superweight_clusters import Layer
from wsnotebook.methods.superweight_plan import Plan

PIECE = 2**20  # numbers made at a time: 4 MB at float32
ROWS = 4  # of a product, at least: then a row's bits do not depend on the others, and un-sharing changes nothing


@dataclass(frozen=True)
class Piece:
    """Some rows of a block of an increment: templates[:, start:end], and where in a weight they go."""

    r: int
    start: int
    end: int
    top: int  # the first row
    bottom: int  # after the last
    left: int  # the first column
    right: int  # after the last


@dataclass
class Cluster:
    """The weights to make of a cluster for some members: one for all layers of a shape that share all their vectors."""

    shapes: list[tuple[int, ...]]  # S_0, S_1, ... as far as used
    shown: list[tuple[tuple[int, int], ...]]  # of each increment: rows and columns that S_r, S_(r+1), ... show
    levels: list[int]  # for each weight its shape's number; ascending
    layers: list[list[Layer]]  # ... and those that have it
    superweights: list[int]  # of each increment its position in plan.superweights
    rows: list[Tensor]  # ... and coefficient vectors of the weights that use it (the last so many), (u,)
    users: list[Tensor]  # ... and where their scales stand in all scales, (u,)
    pieces: list[list[Piece]]  # ... and its pieces
    spare: list[list[Tensor]] = field(default_factory=list)  # memory of former weights that no graph needs

    @classmethod
    def all_of(cls, plan: Plan, members: Sequence[int], device: torch.device) -> list["Cluster"]:
        """Those of a plan that these members have layers in."""
        first, made = 0, []  # position of the cluster's first SuperWeight, and scale
        scale = 0
        for g, layers in enumerate(plan.clusters):
            shapes, increments = plan.ladders[g]
            users = [plan.users(g, r) for r in range(len(shapes))]
            starts = [scale + sum(map(len, users[:r])) for r in range(len(shapes))]
            weights = {}  # (level, vectors): positions of layers
            for position, layer in enumerate(layers):
                if layer.member in members:
                    level = shapes.index(layer.shape)
                    vectors = tuple(plan.rows[g][r][users[r].index(position)] for r in range(level + 1))
                    weights.setdefault((level, vectors), []).append(position)
            if weights:
                weights = sorted(weights.items())
                levels = [level for (level, _), _ in weights]
                kernel = math.prod(shapes[0][2:])
                rows, places, pieces = [], [], []
                for r in range(levels[-1] + 1):
                    using = [(vectors, found[0]) for (level, vectors), found in weights if level >= r]
                    rows.append(torch.tensor([vectors[r] for vectors, _ in using], device=device))
                    places.append(torch.tensor([starts[r] + users[r].index(p) for _, p in using], device=device))
                    pieces.append(_pieces(r, increments[r].blocks, kernel, max(ROWS, len(using))))
                made.append(
                    cls(
                        shapes=shapes[: levels[-1] + 1],
                        shown=[increments[r].shown for r in range(levels[-1] + 1)],
                        levels=levels,
                        layers=[[layers[position] for position in found] for _, found in weights],
                        superweights=list(range(first, first + levels[-1] + 1)),
                        rows=rows,
                        users=places,
                        pieces=pieces,
                    )
                )
            first, scale = first + len(shapes), scale + sum(map(len, users))
        return made


def _pieces(r: int, blocks: tuple, kernel: int, weights: int) -> list[Piece]:
    pieces, start = [], 0
    for top, bottom, left, right in blocks:
        row = (right - left) * kernel
        step = max(1, PIECE // (weights * row))
        for first in range(top, bottom, step):
            last = min(bottom, first + step)
            pieces.append(Piece(r, start, start := start + (last - first) * row, first, last, left, right))
    return pieces


def compose(cluster: Cluster, mixes: list[Tensor], templates: list[Tensor], lease: bool) -> tuple[Tensor, ...]:
    """The weights of a cluster. mixes: (u, K) coefficients of each increment, scaled; templates: (K, M).

    lease: their memory is used again after the backward pass, or when the graph is gone; what still needs them then
    (a second backward pass after another composition) raises autograd's error about a tensor modified in place.
    """
    return _Compose.apply(cluster, lease, *mixes, *templates)


class _Compose(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cluster: Cluster, lease: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.cluster = cluster
        mixes, templates = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        like, levels = templates[0], cluster.levels
        lease = lease and any(ctx.needs_input_grad)  # else there is no graph to tell when
        if lease and cluster.spare and cluster.spare[-1][0].dtype == like.dtype:
            stacks = cluster.spare.pop()
        else:  # (weights of that shape, o, i, kernel numbers)
            stacks = [like.new_empty(levels.count(j), *s[:2], math.prod(s[2:])) for j, s in enumerate(cluster.shapes)]
        if lease:
            ctx.lease = _Lease(cluster.spare, stacks)
        for pieces, mix, template in zip(cluster.pieces, mixes, templates, strict=True):
            rows = F.pad(mix, (0, 0, 0, max(0, ROWS - len(mix))))
            for piece in pieces:
                _place(cluster, piece, (rows @ template[:, piece.start : piece.end])[: len(mix)], stacks)
        return tuple(
            weight for s, stack in zip(cluster.shapes, stacks, strict=True) for weight in stack.view(-1, *s).unbind()
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cluster, tensors = ctx.cluster, ctx.saved_tensors
        if hasattr(ctx, "lease"):
            ctx.lease.end()
        half = len(tensors) // 2
        for_mixes, for_templates = [], []
        for pieces, mix, template in zip(cluster.pieces, tensors[:half], tensors[half:], strict=True):
            for_mix, for_template = torch.zeros_like(mix), torch.empty_like(template)
            for piece in pieces:
                numbers = gather(cluster, piece, gradients)
                torch.mm(mix.T, numbers, out=for_template[:, piece.start : piece.end])
                for_mix.addmm_(numbers, template[:, piece.start : piece.end].T)
            for_mixes.append(for_mix)
            for_templates.append(for_template)
        return None, None, *for_mixes, *for_templates


class _Lease:
    """Memory that goes back to the spare when it ends, at the latest with the graph that holds it."""

    def __init__(self, spare: list, stacks: list[Tensor]):
        self.spare, self.stacks = spare, stacks

    def end(self) -> None:
        if self.stacks is not None:
            self.spare.append(self.stacks)
            self.stacks = None

    __del__ = end


def _place(cluster: Cluster, piece: Piece, numbers: Tensor, stacks: list[Tensor]) -> None:
    """Write a piece (u, size) of the weights that use its increment to where it belongs in each."""
    rows, columns = piece.bottom - piece.top, piece.right - piece.left
    parts = numbers.view(len(numbers), rows, columns, -1)
    used = 0
    for stack, (bottom, right) in zip(stacks[piece.r :], cluster.shown[piece.r], strict=False):
        bottom, right = min(piece.bottom, bottom), min(piece.right, right)
        if piece.top < bottom and piece.left < right:
            shown = parts[used : used + len(stack), : bottom - piece.top, : right - piece.left]
            stack[:, piece.top : bottom, piece.left : right] = shown
        used += len(stack)


def gather(cluster: Cluster, piece: Piece, weights: Sequence[Tensor]) -> Tensor:
    """The transpose of placing: a piece (u, size) of the weights (o, i, *kernel) that use its increment."""
    first = next(n for n, level in enumerate(cluster.levels) if level >= piece.r)
    rows, columns = piece.bottom - piece.top, piece.right - piece.left
    numbers = weights[0].new_empty(len(weights) - first, piece.end - piece.start)
    parts = numbers.view(len(numbers), rows, columns, -1)
    for part, level, weight in zip(parts.unbind(), cluster.levels[first:], weights[first:], strict=True):
        bottom, right = cluster.shown[piece.r][level - piece.r]
        bottom, right = min(piece.bottom, bottom), min(piece.right, right)
        cropped = bottom < piece.bottom or right < piece.right
        if cropped:
            part.zero_()
        if piece.top < bottom and piece.left < right:
            source = weight.reshape(*weight.shape[:2], -1)[piece.top : bottom, piece.left : right]
            (part[: bottom - piece.top, : right - piece.left] if cropped else part).copy_(source)
    return numbers

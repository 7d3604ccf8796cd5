"""What becomes of the units on a tensor's axes in each operation: the rules that `tracing` applies one by one.

A layer ties its weight's input axis to the axis it reads and gives the weight's output axis; element-wise operations
tie their arguments; norms tie their parameters to the channels; reshapes, pooling and means pass on. Everything else
has no rule, and what it touches is held fixed. Operations are called by PyTorch's names in small letters, without _.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsnotebook.symmetry.unification import Identities, Pieces


@dataclass(frozen=True, eq=False)
class Followed:
    """A tensor met on the way and the units on each of its axes."""

    value: Tensor
    axes: list[Pieces]
    parameter: bool = False  # of the network itself, not computed


class Call(NamedTuple):
    """One operation: its name, its tensors in order (a layer's parameters behind its input), and what it gave."""

    op: str
    where: str  # the operation's place, for people
    tensors: list[Followed]
    out: Tensor
    probe: Callable[[Tensor], Tensor]  # the same operation on another first tensor
    option: Any  # a group norm's number of groups, a padding's widths

    @property
    def x(self) -> Followed:
        return self.tensors[0]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names(
    "relu leakyrelu identity dropout dropout1d dropout2d dropout3d alphadropout featuredropout featurealphadropout "
    "add iadd radd sub isub rsub mul imul rmul multiply div truediv itruediv pow maximum minimum where lerp "
    "relu6 rrelu elu selu celu gelu silu mish softplus softsign softshrink hardshrink tanhshrink threshold tanh "
    "sigmoid logsigmoid hardsigmoid hardswish hardtanh abs neg exp log log1p sqrt rsqrt square sin cos erf reciprocal "
    "clamp clip clone contiguous detach to float double typeas softmax logsoftmax softmin normalize layernorm rmsnorm"
)  # an entry for an entry; softmax and norms over an axis do not mind its order
POOLING = frozenset(f"{kind}pool{d}d" for d in (1, 2, 3) for kind in ("max", "avg", "adaptivemax", "adaptiveavg"))
CHANNELWISE = _names("batchnorm instancenorm prelu groupnorm")
REDUCTIONS = _names("mean sum amax amin prod var std logsumexp")
RESHAPES = _names("view reshape flatten unflatten viewas reshapeas squeeze unsqueeze")
VIEWS = _names(
    "getitem getattr permute transpose swapaxes movedim t chunk split tensorsplit unbind narrow select expand expandas"
)
LAYERS = _names("linear conv1d conv2d conv3d")
SCALABLE = (
    _names("relu leakyrelu identity dropout dropout1d dropout2d dropout3d abs clone contiguous detach")
    | _names("cat concat mean sum")
    | (LAYERS | POOLING | RESHAPES | VIEWS)
)  # f(s x) = s f(x) for s > 0, unit by unit


class NoRuleError(Exception):
    """No rule follows this call."""


class Rules:
    """The rules, and the identities they have tied so far."""

    def __init__(self):
        self.units = Identities()
        self.unscalable: list[Pieces] = []  # axes whose units must keep their scale

    def follow(self, call: Call) -> list[Pieces]:
        """The axes of what a call gives."""
        kind = re.sub(r"\dd$", "", call.op)
        for i, tensor in enumerate(call.tensors):
            # balancing knows the network's own tensors as weights of layers, and only as those
            if call.op not in SCALABLE or tensor.parameter != (call.op in LAYERS and i > 0):
                self.unscalable += tensor.axes
        if call.op == "linear":
            return self._linear(call)
        if kind in ("conv", "convtranspose"):
            return self._convolution(call, transposed=kind == "convtranspose")
        if call.op in ELEMENTWISE:
            return self._broadcast(call.tensors, call)
        if kind in CHANNELWISE:
            return self._channelwise(call)
        if call.op in POOLING:
            return self._spatial(call, int(call.op[-2]))
        if kind.endswith("pad"):  # two widths an axis
            return self._spatial(call, len(call.option) // 2)
        if kind in ("interpolate", "upsample"):
            return self._spatial(call, call.out.ndim - 2)
        if call.op in REDUCTIONS:
            return self._reduction(call)
        if call.op in RESHAPES:
            return self._reshape(call)
        if call.op in VIEWS:
            return self._view(call)
        if call.op in ("cat", "concat"):
            return self._concatenation(call)
        if call.op in ("matmul", "bmm", "mm"):
            return self._product(call)
        if call.op == "scaleddotproductattention":
            return self._attention(call)
        if call.op == "embedding":
            return self._embedding(call)
        raise NoRuleError

    def lost(self, tensors: list[Followed], why: str) -> None:
        """Hold everything on these tensors fixed."""
        for tensor in tensors:
            for axis in tensor.axes:
                self.units.fix(axis, why)

    def space(self, sizes: tuple[int, ...]) -> list[Pieces]:
        """Axes that are no units: batch, tokens, height, width."""
        return [self.units.fixed(size) for size in sizes]

    def _linear(self, call: Call) -> list[Pieces]:
        x, weight, *bias = call.tensors
        self.units.unify(x.axes[-1], weight.axes[1], call.where)
        for b in bias:
            self.units.unify(b.axes[0], weight.axes[0], call.where)
        return [*x.axes[:-1], weight.axes[0]]

    def _convolution(self, call: Call, transposed: bool) -> list[Pieces]:
        x, weight, *bias = call.tensors
        channel = x.value.ndim - weight.value.ndim + 1  # 1, or 0 without a batch axis
        inputs, outputs = x.value.shape[channel], call.out.shape[channel]
        split = outputs // weight.value.shape[1] if transposed else inputs // weight.value.shape[1]
        into, out = weight.axes[:2] if transposed else weight.axes[1::-1]
        if split == 1:
            self.units.unify(x.axes[channel], into, call.where)
        elif split == inputs and not transposed:  # depthwise: each channel's own outputs follow it
            each = outputs // inputs
            expanded = tuple((k, size, block * each) for k, size, block in self.units.expand(x.axes[channel]))
            self.units.unify(expanded, out, call.where)
            self.unscalable.append(out)
        else:
            for axis in (x.axes[channel], *weight.axes[:2]):
                self.units.fix(axis, f"{call.where} is a convolution in {split} groups")
            out = self.units.fixed(outputs)
        for b in bias:
            self.units.unify(b.axes[0], out, call.where)
        for axis in weight.axes[2:]:
            self.units.fix(axis)
        for axis in x.axes[channel + 1 :]:
            self.units.fix(axis, f"{call.where} works along this axis")
        return [*x.axes[:channel], out, *self.space(call.out.shape[channel + 1 :])]

    def _broadcast(self, tensors: list[Followed], call: Call) -> list[Pieces]:
        """Axes aligned at the right end, those of one entry stretched."""
        axes = []
        for place, size in zip(range(-call.out.ndim, 0), call.out.shape, strict=True):
            alike = [t.axes[place] for t in tensors if t.value.ndim >= -place and t.value.shape[place] == size]
            if not alike:
                raise NoRuleError
            for other in alike[1:]:
                self.units.unify(alike[0], other, call.where)
            axes.append(alike[0])
        return axes

    def _channelwise(self, call: Call) -> list[Pieces]:
        x, *parameters = call.tensors
        if call.op == "groupnorm" and call.option not in (1, x.value.shape[1]):
            self.lost([x], f"{call.where} normalises {call.option} groups of channels")
        for parameter in parameters:
            if parameter.value.numel() > 1:
                self.units.unify(x.axes[1], parameter.axes[0], call.where)
        return x.axes

    def _spatial(self, call: Call, last: int) -> list[Pieces]:
        """Operations among the `last` axes, such as height and width."""
        kept = call.out.ndim - last
        for axis in call.x.axes[kept:]:
            self.units.fix(axis, f"{call.where} works along this axis")
        return [*call.x.axes[:kept], *self.space(call.out.shape[kept:])]

    def _reduction(self, call: Call) -> list[Pieces]:
        """An axis goes where the result grows with it; if it does not, it is reduced, whatever its units' order."""
        shape = call.x.value.shape
        axes = self.space(call.out.shape)
        for i, axis in enumerate(call.x.axes):
            grown = call.probe(torch.zeros(*shape[:i], shape[i] + 1, *shape[i + 1 :])).shape
            places = [j for j, size in enumerate(call.out.shape) if size != grown[j]]
            if places:
                axes[places[0]] = axis
            else:
                self.unscalable.append(axis)
        return axes

    def _reshape(self, call: Call) -> list[Pieces]:
        """Runs of axes with as many entries before as after are joined to one or split from one."""
        old = [(size, axis) for size, axis in zip(call.x.value.shape, call.x.axes, strict=True) if size > 1]
        new = [size for size in call.out.shape if size > 1]
        axes = []
        while new:
            run, sizes = [old.pop(0)], [new.pop(0)]
            while (before := math.prod(size for size, _ in run)) != (after := math.prod(sizes)):
                if before < after:
                    run.append(old.pop(0))
                else:
                    sizes.append(new.pop(0))
            axes += self._regroup(run, sizes, call.where)
        found = iter(axes)
        return [next(found) if size > 1 else self.units.fixed(1) for size in call.out.shape]

    def _regroup(self, run: list[tuple[int, Pieces]], sizes: list[int], where: str) -> list[Pieces]:
        """Neighbouring axes (size, axis) as neighbouring axes of other sizes."""
        moving = [i for i, (_, axis) in enumerate(run) if not self.units.is_fixed(axis)]
        if not moving:
            return self.space(tuple(sizes))
        if len(moving) == 1 and len(sizes) == 1:
            before = math.prod(size for size, _ in run[: moving[0]])
            behind = math.prod(size for size, _ in run[moving[0] + 1 :])
            return [tuple((k, s, block * behind) for k, s, block in self.units.expand(run[moving[0]][1])) * before]
        if len(run) == 1 and (first := self.units.divide(self.units.expand(run[0][1]), math.prod(sizes[1:]))):
            return [first, *self.space(tuple(sizes[1:]))]
        why = f"{where} mixes units with other axes"
        for _, axis in run:
            self.units.fix(axis, why)
        return [self.units.fixed(size, why) for size in sizes]

    def _view(self, call: Call) -> list[Pieces]:
        """Where the result's axes come from is read off a numbered tensor's strides and offset."""
        shape = call.x.value.shape
        probe = torch.arange(call.x.value.numel()).view(shape)
        seen = call.probe(probe)
        if seen.untyped_storage().data_ptr() != probe.untyped_storage().data_ptr():
            raise NoRuleError  # a copy: indices given as tensors
        source = {stride: i for i, stride in enumerate(probe.stride()) if shape[i] > 1}
        axes, used = [], set()
        for size, stride in zip(seen.shape, seen.stride(), strict=True):
            if size == 1 or stride == 0:
                axes.append(self.units.fixed(size))
                continue
            i = source.get(stride)
            if i is None or i in used:
                raise NoRuleError
            used.add(i)
            start = seen.storage_offset() // stride % shape[i]
            axes.append(self._slice(call.x.axes[i], start, size, call.where))
        for i in set(source.values()) - used:
            self.units.fix(call.x.axes[i], f"{call.where} picks one unit")
        return axes

    def _slice(self, axis: Pieces, start: int, size: int, where: str) -> Pieces:
        """`size` entries of an axis from `start` on."""
        front, rest = self.units.cut(self.units.expand(axis), start)
        piece = self.units.cut(rest, size)[0] if front or not start else ()
        if not piece:
            why = f"{where} takes a part of the units"
            self.units.fix(axis, why)
            piece = self.units.fixed(size, why)
        return piece

    def _concatenation(self, call: Call) -> list[Pieces]:
        axes = list(call.x.axes)
        for i, size in enumerate(call.out.shape):
            if size != call.x.value.shape[i]:
                axes[i] = sum((tensor.axes[i] for tensor in call.tensors), ())
            else:
                for tensor in call.tensors[1:]:
                    self.units.unify(axes[i], tensor.axes[i], call.where)
        return axes

    def _product(self, call: Call) -> list[Pieces]:
        a, b = call.tensors
        if a.value.ndim < 2 or b.value.ndim < 2:
            raise NoRuleError
        self.units.unify(a.axes[-1], b.axes[-2], call.where)
        batch = [Followed(t.value[..., 0, 0], t.axes[:-2]) for t in (a, b)]
        return [*self._broadcast(batch, call._replace(out=call.out[..., 0, 0])), a.axes[-2], b.axes[-1]]

    def _attention(self, call: Call) -> list[Pieces]:
        """softmax(q k') v: the width of q is that of k, the result has that of v; tokens and heads stay."""
        for i, tensor in enumerate(call.tensors):  # q, k, v and a mask
            for axis in tensor.axes[: -1 if i < 3 else None]:
                self.units.fix(axis, f"{call.where} has a mask or an order")
        self.units.unify(call.tensors[0].axes[-1], call.tensors[1].axes[-1], call.where)
        return [*self.space(call.out.shape[:-1]), call.tensors[2].axes[-1]]

    def _embedding(self, call: Call) -> list[Pieces]:
        words, weight = call.tensors
        self.units.fix(weight.axes[0])
        return [*words.axes, weight.axes[1]]

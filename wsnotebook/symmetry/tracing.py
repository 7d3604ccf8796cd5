"""The specification of any network: which permutations keep its function, found by following its units through it.

torch.fx records the network's operations; each is then run once on a sample, and `rules` says what becomes of the units
on its axes. What no rule follows is held fixed: freedom is lost, never the function. For multilayer perceptrons and
residual networks this gives the hand-written specifications of Ainsworth et al. 2023 (Git Re-Basin).
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from wsnotebook import networks
from wsnotebook.symmetry.axes import Group, Segment, Specification
from wsnotebook.symmetry.rules import Call, Followed, NoRuleError, Rules
from wsnotebook.symmetry.unification import Pieces


def specification(network: nn.Module, x: Tensor) -> Specification:
    """Which permutations of units keep the function of a network that takes x (1, ...): every tensor, axis by axis.

    Inputs and outputs stay as they are; what cannot be followed is held fixed and listed with the reason.
    Raises ValueError for a network whose operations depend on its data, so that they cannot be recorded.
    """
    with evaluating(network), torch.no_grad():
        return _Follower(network).follow(_recorded(network), x)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, every module's own mode given back afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _recorded(network: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{type(network).__name__} cannot be recorded by torch.fx: {error}. Operations that depend on the data "
            "(an if on a tensor, a loop over one, len(tensor)) have to be rewritten"
        ) from None


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, networks.Attention) or super().is_leaf_module(module, name)


class _Follower:
    """One walk through a recorded network."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.state = network.state_dict(keep_vars=True)  # {name: tensor}
        self.rules = Rules()
        self.units = self.rules.units
        self.parameters: dict[int, Followed] = {}  # by id, so that tied tensors are one
        self.attentions: dict[str, tuple[Pieces, Pieces, int, list[Pieces]]] = {}  # q and k, v, heads, streams

    def follow(self, graph: fx.Graph, x: Tensor) -> Specification:
        values: dict[fx.Node, Any] = {}
        inputs = iter([x])
        for node in graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                value = next(inputs, node.args[0] if node.args else None)
                values[node] = self._still(value)
            elif node.op == "get_attr":
                values[node] = self._tensor(node.target)
            elif node.op == "output":
                for tensor in _tensors(args):
                    self.rules.lost([tensor], "")
            else:
                values[node] = self._run(node, args, kwargs)
        return self._resolve()

    def _still(self, value: Any, why: str = "") -> Any:
        """A value whose units, if it has any, stay where they are."""
        return pytree.tree_map_only(
            Tensor, lambda t: Followed(t, [self.units.fixed(size, why) for size in t.shape]), value
        )

    def _tensor(self, name: str) -> Followed:
        """A tensor of the network; one of its state dict starts with units of its own on every axis."""
        owner, _, leaf = name.rpartition(".")
        if name not in self.state:
            return self._still(getattr(self.network.get_submodule(owner), leaf))
        tensor = self.state[name]
        if id(tensor) not in self.parameters:
            labels = [owner if leaf in ("weight", "bias") and owner else name] + [f"{name}[{i}]" for i in range(1, 9)]
            axes = [self.units.fresh(labels[i], size) for i, size in enumerate(tensor.shape)]
            self.parameters[id(tensor)] = Followed(tensor, axes, parameter=True)
        return self.parameters[id(tensor)]

    def _run(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        """Run one operation, and follow the units of its tensors into what it gives."""
        module = self.network.get_submodule(node.target) if node.op == "call_module" else None

        def run(first: Any = None) -> Any:
            """The operation's result, for another first argument if one is given."""
            inputs, options = pytree.tree_map_only(Followed, lambda t: t.value, (args, kwargs))
            if first is not None:
                if not inputs:
                    raise NoRuleError  # the first argument has been given by name
                inputs = (first, *inputs[1:])
            if node.op == "call_method":
                return getattr(inputs[0], node.target)(*inputs[1:], **options)
            return (module or node.target)(*inputs, **options)

        tensors = _tensors((args, kwargs))
        if node.target is operator.getitem and not isinstance(args[0], Followed):
            return args[0][args[1]]  # one of several results
        out = run()
        if not any(isinstance(value, Tensor) for value in pytree.tree_leaves(out)):
            return out  # a size, a number
        if module is not None:
            tensors += [self._tensor(f"{node.target}.{name}") for name, t in module.state_dict().items() if t.ndim]
            name = type(module).__name__
        else:
            name = node.target if node.op == "call_method" else node.target.__name__
        op = name.replace("_", "").lower()
        where = node.target if module is not None else node.name
        if module is None:
            option = kwargs.get("num_groups", kwargs.get("pad", args[1] if len(args) > 1 else None))
        else:
            option = getattr(module, "num_groups", getattr(module, "padding", None))

        def follow(pick: Callable[[Any], Tensor]) -> Followed:
            """The result, or that part of it, with its units."""
            call = Call(op, where, tensors, pick(out), lambda first: pick(run(first)), option)
            return Followed(call.out, self.rules.follow(call))

        try:
            if _is_attention(module):
                return self._attention(node.target, module, tensors, out)
            if isinstance(out, Tensor):
                return follow(lambda result: result)
            if op in ("chunk", "split", "tensorsplit", "unbind"):
                return tuple(follow(operator.itemgetter(i)) for i in range(len(out)))
            raise NoRuleError
        except NoRuleError:
            why = f"{where} ({name}) is not followed"
            self.rules.lost(tensors, why)
            return self._still(out, why)

    def _attention(self, place: str, module: nn.Module, tensors: list[Followed], out: Any) -> Any:
        """Self-attention as a whole: heads may change places, and units within a head, those of q and k alike."""
        *inputs, weight, bias, projection, projection_bias = tensors
        result, shares = (out, None) if isinstance(out, Tensor) else out
        if shares is not None and shares.ndim > result.ndim or len(inputs) > 3:
            raise NoRuleError  # the heads can be told apart from outside; a mask
        unify = self.units.unify
        for x in inputs:
            unify(x.axes[-1], weight.axes[1], place)
            self.rules.lost([Followed(x.value, x.axes[:-1])], f"{place} mixes along this axis")
        if place not in self.attentions:
            dim = result.shape[-1]
            heads = module.heads if isinstance(module, networks.Attention) else module.num_heads
            qk, v = self.units.fresh(f"{place}.qk", dim), self.units.fresh(f"{place}.v", dim)
            self.attentions[place] = (qk, v, heads, [weight.axes[1], projection.axes[0]])
            unify(weight.axes[0], qk + qk + v, place)
            unify(bias.axes[0], qk + qk + v, place)
            unify(projection.axes[1], v, place)
            for k, *_ in self.units.expand(v):
                self.units.names[k] = f"{place}.v"
            unify(projection_bias.axes[0], projection.axes[0], place)
        self.rules.unscalable += [axis for tensor in tensors for axis in tensor.axes]
        followed = Followed(result, [*self.rules.space(result.shape[:-1]), projection.axes[0]])
        return followed if isinstance(out, Tensor) else (followed, self._still(shares))

    def _resolve(self) -> Specification:
        """What has been tied, in names."""
        expand, why = self.units.expand, self.units.why
        pieces = {}
        for name, tensor in self.state.items():
            unused = [self.units.fixed(size, "the network does not use it") for size in tensor.shape]
            known = self.parameters.get(id(tensor))
            pieces[name] = [expand(axis) for axis in (known.axes if known else unused)]
        sizes = {k: size for axes in pieces.values() for axis in axes for k, size, _ in axis if k not in why}
        names = {k: self.units.names[k] for k in sorted(sizes)}
        heads = {}  # of the groups of attentions
        for place, (qk, v, number, _) in self.attentions.items():
            heads |= {k: (number, place) for axis in (qk, v) for k, _, _ in expand(axis) if k not in why}
        rigid = {k for axis in self.rules.unscalable for k, _, _ in expand(axis)}
        for axes in pieces.values():
            rigid |= {k for axis in axes[:1] for k, _, _ in axis} & {k for axis in axes[1:] for k, _, _ in axis}
        inner = {k for axes in pieces.values() for axis in axes[1:2] for k, _, _ in axis}  # read by some layer
        groups = [
            Group(name, sizes[k], *heads.get(k, (1, "")), homogeneous=k in inner and k not in rigid)
            for k, name in names.items()
        ]
        streams = {k for *_, axes in self.attentions.values() for axis in axes for k, _, _ in expand(axis)}
        return Specification(
            axes={
                n: tuple(tuple(Segment(names.get(k), *r) for k, *r in a) for a in axes) for n, axes in pieces.items()
            },
            groups={group.name: group for group in groups},
            fixed_because={
                name: reason
                for name, axes in pieces.items()
                for reason in [next((why[k] for axis in axes for k, _, _ in axis if why.get(k)), "")]
                if reason
            },
            streams=frozenset(names[k] for k in streams if k in names),
        )


def _tensors(values: Any) -> list[Followed]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Followed)]


def _is_attention(module: nn.Module | None) -> bool:
    """Whether it is attention with a weight and a bias for q, k and v together, and another pair for the projection."""
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight is not None and module.in_proj_bias is not None and module.bias_k is None
    return isinstance(module, networks.Attention)

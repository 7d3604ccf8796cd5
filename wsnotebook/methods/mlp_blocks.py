"""Trained perceptrons cut into blocks that can be replaced one by one, and joined again (`mlp_compression`)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from wsnotebook.layout import check_finite
from wsnotebook.methods import mlp_modules
from wsnotebook.methods.mlp_matrix import Form
from wsnotebook.networks import UNITS, MixedMLP

LIMIT = 2**27  # numbers in the matrices of a search's lanes: 512 MB, and Adam needs thrice that
PROBED = 512  # inputs on which it is seen what a teacher's outputs depend on


def plain(network: nn.Module) -> MixedMLP:
    """The same perceptron as a MixedMLP; network: one, or a Sequential of linear layers with activations between them.

    A checkpoint becomes one by `zoo.from_checkpoints([file], name).module(0)`.
    Raises ValueError for a network that is no perceptron with a hidden layer, too wide, or has numbers not finite.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if len(linear) < 2:
        seen = f"{type(network).__name__} with {len(linear)} linear layers"
        raise ValueError(f"network: {seen}, expected a perceptron (nn.Sequential or MixedMLP) with a hidden layer")
    check_finite(network.state_dict(), "network")
    width = max(layer.out_features for layer in linear[:-1])
    form = Form(linear[0].in_features, linear[-1].out_features, width, len(linear) - 1, tuple(UNITS))
    check_size(form, 1, "network")
    return mlp_modules.network(form, mlp_modules.from_network(form, network), 0)


def split(network: nn.Module, cuts: Sequence[int] | None = None) -> list[MixedMLP]:
    """Blocks whose chain is the network: each but the last hands on the outputs of the hidden layer that it ends with.

    cuts: hidden layers after which to cut, counted from 1; None: the middle one. Raises ValueError as `plain`, and for
    a cut that is not there.
    """
    whole = plain(network)
    cuts = ([whole.hidden // 2] if whole.hidden > 1 else []) if cuts is None else [*cuts]
    if cuts != sorted({*cuts} & {*range(1, whole.hidden)}):
        raise ValueError(
            f"cuts={tuple(cuts)}: expected rising numbers from 1 to {whole.hidden - 1} "
            f"for a network of {whole.hidden} hidden layers, each block having one or more"
        )
    linear, kinds = _layers(whole)
    blocks = []
    for start, end in pairwise([0, *cuts, whole.hidden]):
        units = len(linear[end - 1][1])
        same = torch.eye(units).to(linear[0][0]), torch.zeros(units).to(linear[0][0])
        blocks.append(_assembled([*linear[start:end], same if end < whole.hidden else linear[-1]], kinds[start:end]))
    return blocks


def join(blocks: Sequence[MixedMLP]) -> MixedMLP:
    """One network that computes the blocks one after the other: what one writes and the next reads is one linear layer.

    Raises ValueError where a block does not read as many numbers as the one before it hands on.
    """
    linear, kinds = _layers(blocks[0])
    for number, block in enumerate(blocks[1:], start=2):
        ((weight, bias), *others), more = _layers(block)
        before, shift = linear.pop()
        if weight.shape[1] != len(shift):
            raise ValueError(f"block {number} reads {weight.shape[1]} numbers, the one before it hands on {len(shift)}")
        linear += [(weight @ before, weight @ shift + bias), *others]
        kinds += more
    return _assembled(linear, kinds)


def _layers(network: MixedMLP) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """(weight, bias) of each linear layer, and the activations of each hidden one."""
    linear = [network.get_submodule(f"fc{i}") for i in range(1, network.hidden + 2)]
    kinds = [network.get_buffer(f"activation{i}") for i in range(1, network.hidden + 1)]
    return [(layer.weight.detach(), layer.bias.detach()) for layer in linear], kinds


def _assembled(linear: list[tuple[Tensor, Tensor]], kinds: list[Tensor]) -> MixedMLP:
    made = MixedMLP(linear[0][0].shape[1], *(len(bias) for _, bias in linear)).to(linear[0][0].dtype)
    state = {f"activation{i}": kind for i, kind in enumerate(kinds, start=1)}
    for i, (weight, bias) in enumerate(linear, start=1):
        state |= {f"fc{i}.weight": weight, f"fc{i}.bias": bias}
    made.load_state_dict(state)
    return made.eval()


def smallest_form(networks: Sequence[MixedMLP]) -> Form:
    """The smallest form with room for all."""
    layers = [_layers(network) for network in networks]
    width = max(len(kind) for _, kinds in layers for kind in kinds)
    there = torch.cat([kind for _, kinds in layers for kind in kinds]).unique().tolist()
    activations = tuple(name for place, name in enumerate(UNITS) if place in there) or ("identity",)
    first, last = layers[0][0][0][0], layers[0][0][-1][1]
    return Form(first.shape[1], len(last), width, max(network.hidden for network in networks), activations)


def check_size(form: Form, lanes: int, what: str) -> None:
    """Raise ValueError where the matrices of so many networks of this form are more numbers than LIMIT."""
    if lanes * form.rows * form.columns > LIMIT:
        raise ValueError(
            f"{what}: too wide: {lanes} matrices of {form.rows} x {form.columns} numbers ({form}), there is room for "
            f"{LIMIT} numbers; reduce the inputs, or candidates, restarts, depths, handed or width of the config"
        )


class Coordinates:
    """The few numbers of a cut that a teacher's outputs depend on most, from its units' outputs h (m, units).

    With C the mean of (dy / dh)^T (dy / dh), they are the principal components of C^(1/2) h: a square error in them is,
    to first order, that of the teacher's outputs. Those that do not vary are left out; the first has variance 1.
    rest: computes y (m, outputs) from h.
    """

    def __init__(self, h: Tensor, rest: Callable[[Tensor], Tensor], handed: int):
        probe = h[:PROBED].detach().requires_grad_()
        gradients = [torch.autograd.grad(y.sum(), probe, retain_graph=True)[0] for y in rest(probe).unbind(1)]
        gradients = torch.cat(gradients).double()
        values, vectors = torch.linalg.eigh(gradients.T @ gradients / len(probe))
        root = vectors * (values.clamp(min=0) + 1e-3 * values.sum() / len(values)).sqrt()  # (units, units)
        self.mean = h.double().mean(0)
        variances, components = torch.linalg.eigh(((h.double() - self.mean) @ root).T.cov(correction=0))
        variances, components = variances.flip(0)[:handed], components.flip(1)[:, :handed]
        there = variances > 1e-8 * variances[0]
        self.map = root @ components[:, there] / variances[0].sqrt()  # (units, numbers)

    def __call__(self, h: Tensor) -> Tensor:
        return ((h.double() - self.mean) @ self.map).float()

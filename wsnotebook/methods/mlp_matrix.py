"""Multilayer perceptrons of any depth, width and activations as matrices of one form, and all of them computed at once.

Huang et al. 2025, "SWAT-NN", section 3: a row for each unit number holds that unit's weights, biases, activations and
masks in every layer. With W_l, b_l, m_l and the shares a_l of the activations f_k, L the network's own depth:

    h_0 = x,  z_l = W_l h_{l-1} + b_l,  h_l = m_l sum_k a_lk f_k(z_l),  y = W h_L + b

What we do differently from the public code: inputs, outputs, width, depth and activations are a `Form`, not constants;
a unit's row has its incoming weights; the output layer has the same place at every depth, so that networks of several
depths are one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wsnotebook.networks import UNITS, in_order
from wsnotebook.training import check_at_least

BLOCK = 2**20  # numbers in a layer that are worked on at once
ODD = ("tanh", "sin", "identity")  # activations with f(-z) = -f(z)


@dataclass(frozen=True)
class Form:
    """The largest network that a matrix has room for, and the activations its units choose from."""

    inputs: int = 2  # numbers of x
    outputs: int = 1  # numbers of y
    width: int = 7  # units of a hidden layer, at most
    depth: int = 4  # hidden layers, at most
    activations: tuple[str, ...] = ("sigmoid", "tanh", "leaky_relu")  # of `networks.UNITS`

    def __post_init__(self):
        check_at_least(self, inputs=1, outputs=1, width=1, depth=1)
        unknown = [name for name in self.activations if name not in UNITS]
        if unknown or not self.activations or len(set(self.activations)) < len(self.activations):
            raise ValueError(
                f"activations={self.activations!r}: expected one or more, once each, of {', '.join(UNITS)}"
            )

    @property
    def rows(self) -> int:
        """Rows of the matrix, and of a layer's weights: H."""
        return max(self.inputs, self.outputs, self.width)

    @property
    def columns(self) -> int:
        """Numbers in a row: F."""
        return (self.depth + 1) * (self.rows + 1) + self.depth * (len(self.activations) + 1)


class Parts(NamedTuple):
    """n networks of one form (H rows, L hidden layers, A activations); what a network does not use is 0."""

    weights: Tensor  # (n, L + 1, H, H) [layer, to unit, from unit]; the output layer's is always the last
    biases: Tensor  # (n, L + 1, H)
    activations: Tensor  # (n, L, H, A) shares: one 1 for each unit of a plain network
    masks: Tensor  # (n, L, H) 1: the unit is on
    depth: Tensor  # (n,) int64, hidden layers in use: 1 to L

    def take(self, rows) -> "Parts":
        """The networks of these rows: a slice, a mask or numbers."""
        return Parts(*(part[rows] for part in self))

    def to(self, *target) -> "Parts":
        """On a device, or in a floating-point type."""
        parts = [part.to(*target) for part in self[:4]]
        return Parts(*parts, self.depth.to(parts[0].device))


def concat(several: Sequence[Parts]) -> Parts:
    """All networks of several `Parts` of one form, in order."""
    return Parts(*map(torch.cat, zip(*several, strict=True)))


def check_depth(form: Form, depth: Tensor) -> None:
    """Raise ValueError when one of the depths (n,) is out of the form's range."""
    if len(depth) and not 1 <= int(depth.min()) <= int(depth.max()) <= form.depth:
        seen = f"from {int(depth.min())} to {int(depth.max())}"
        raise ValueError(f"depth: {seen}, expected 1 to {form.depth} hidden layers")


def check_parts(form: Form, parts: Parts) -> None:
    """Raise ValueError naming the first part that is not of this form."""
    n, L, H, A = len(parts.depth), form.depth, form.rows, len(form.activations)
    shapes = ((n, L + 1, H, H), (n, L + 1, H), (n, L, H, A), (n, L, H), (n,))
    for name, part, expected in zip(Parts._fields, parts, shapes, strict=True):
        if part.shape != expected:
            raise ValueError(f"parts.{name}: shape {tuple(part.shape)}, expected {expected} of {form}")


def used(form: Form, depth: Tensor) -> Parts:
    """Which places networks of these depths (n,) use, as bool `Parts`. Raises ValueError for a depth out of range."""
    check_depth(form, depth)
    n, at = len(depth), torch.arange(form.rows, device=depth.device)
    layers = torch.arange(form.depth, device=depth.device) < depth[:, None]  # (n, L)
    into, units, out = at < form.inputs, at < form.width, at < form.outputs  # (H,) each
    masks = layers[:, :, None] & units  # (n, L, H)
    first = torch.arange(form.depth, device=depth.device)[:, None] == 0  # (L, 1)
    hidden = masks[..., None] & torch.where(first, into, units)[:, None]  # (n, L, H, H)
    last = (out[:, None] & units).expand(n, 1, -1, -1)
    biases = torch.cat([masks, out.expand(n, 1, -1)], 1)
    activations = masks[..., None].expand(-1, -1, -1, len(form.activations))
    return Parts(torch.cat([hidden, last], 1), biases, activations, masks, depth)


def empty(form: Form, depth: Tensor, dtype: torch.dtype = torch.float32) -> Parts:
    """Networks of these depths (n,) in which everything is 0: all units off."""
    return Parts(*(torch.zeros(part.shape, dtype=dtype, device=depth.device) for part in used(form, depth)[:4]), depth)


def live(form: Form, parts: Parts) -> Parts:
    """Which places count, as bool `Parts`: those `used`, of units that are on; weights between two of them."""
    real = used(form, parts.depth)
    masks = (parts.masks >= 0.5) & real.masks
    biases = torch.cat([masks, real.biases[:, -1:]], 1)  # (n, L + 1, H)
    before = _before(parts, masks, torch.arange(form.rows, device=masks.device) < form.inputs)
    return Parts(
        biases[..., None] & before[..., None, :], biases, masks[..., None] & real.activations, masks, parts.depth
    )


def evaluate(form: Form, parts: Parts, x: Tensor) -> Tensor:
    """Outputs (n, m, outputs) of n networks on the same inputs x (m, inputs), or each on its own (n, m, inputs).

    A loop over layers, none over networks: those that are deep enough stand in front. Differentiable in all but depth.
    Raises ValueError for parts or x of another form.
    """
    check_parts(form, parts)
    n = len(parts.depth)
    if x.shape[-1:] != (form.inputs,) or x.ndim not in (2, 3) or (x.ndim == 3 and len(x) != n):
        expected = f"(m, {form.inputs}) or ({n}, m, {form.inputs})"
        raise ValueError(f"x: shape {tuple(x.shape)}, expected {expected} for {n} networks of {form}")
    size = max(1, BLOCK // max(1, form.width * x.shape[-2]))
    if n > size:
        some = (slice(i, i + size) for i in range(0, n, size))
        return torch.cat([evaluate(form, parts.take(rows), x if x.ndim == 2 else x[rows]) for rows in some])
    order = parts.depth.argsort(descending=True, stable=True)
    parts, width = parts.take(order), form.width
    reaching = [int((parts.depth > layer).sum()) for layer in range(form.depth)] + [0]  # networks, layer by layer
    shares = (parts.activations * parts.masks[..., None])[..., :width, :]
    h, outputs = x if x.ndim == 2 else x[order], [x.new_zeros(0, form.outputs, x.shape[-2])]
    h = h.mT  # (inputs, m) or (n, inputs, m): a unit's points lie together
    for layer, (k, next_k) in enumerate(zip(reaching, reaching[1:], strict=False)):
        if not k:
            break
        weights, biases = parts.weights[:k, layer, :width, : h.shape[-2]], parts.biases[:k, layer, :width]
        if h.ndim == 2:  # all see the same: one product
            z = in_order(weights.flatten(0, 1), h, biases.flatten()).unflatten(0, (k, width))
        else:
            z = in_order(weights, h[:k], biases)
        h = _blended(form, z, shares[:k, layer])  # (k, width, m)
        ending = slice(next_k, k)
        weights, biases = parts.weights[ending, -1, : form.outputs, :width], parts.biases[ending, -1, : form.outputs]
        outputs.append(in_order(weights, h[ending], biases))
    return torch.cat(outputs[::-1])[order.argsort()].mT


def _blended(form: Form, z: Tensor, shares: Tensor) -> Tensor:
    """Sums z (n, units, m) through each activation, by its share (n, units, A)."""
    first, *others = (UNITS[name](z) for name in form.activations)
    h = first * shares[..., :1]
    for k, value in enumerate(others, start=1):
        h = torch.addcmul(h, value, shares[..., k, None])
    return h


# ---- the matrix: a row for each unit number ----------------------------------------------------------------------


def to_rows(form: Form, parts: Parts) -> Tensor:
    """(n, H, F): in row j the weights, biases, activations and masks of unit j in all layers, from the first on."""
    check_parts(form, parts)
    weights, activations = (part.transpose(1, 2).flatten(2) for part in (parts.weights, parts.activations))
    return torch.cat([weights, parts.biases.mT, activations, parts.masks.mT], 2)


def from_rows(form: Form, rows: Tensor, depth: Tensor) -> Parts:
    """The networks that `to_rows` gives these rows. Raises ValueError for another shape."""
    L, H, A = form.depth, form.rows, len(form.activations)
    if rows.shape != (len(depth), H, form.columns):
        expected = (len(depth), H, form.columns)
        raise ValueError(f"rows: shape {tuple(rows.shape)}, expected {expected} of {form}")
    weights, biases, activations, masks = rows.split([(L + 1) * H, L + 1, L * A, L], 2)
    weights = weights.unflatten(2, (L + 1, H)).transpose(1, 2)
    return Parts(weights, biases.mT, activations.unflatten(2, (L, A)).transpose(1, 2), masks.mT, depth)


# ---- the same functions with their units in other places ---------------------------------------------------------


def permuted(form: Form, parts: Parts, orders: Tensor, signs: Tensor | None = None) -> Parts:
    """The same functions, with unit orders[n, l, j] of layer l in place j; orders: (n, L, width) permutations.

    signs (n, L, width) of 1 and -1: units that then change theirs, in and out, where their activation is odd.
    Raises ValueError for other shapes.
    """
    check_parts(form, parts)
    expected = (len(parts.depth), form.depth, form.width)
    for name, given in (("orders", orders), ("signs", signs)):
        if given is not None and given.shape != expected:
            raise ValueError(f"{name}: shape {tuple(given.shape)}, expected {expected}")
    rest = torch.arange(form.width, form.rows, device=orders.device).expand(*expected[:2], -1)
    orders = torch.cat([orders, rest], 2)  # (n, L, H)
    flips = torch.ones_like(parts.masks)
    if signs is not None:
        odd = torch.tensor([name in ODD for name in form.activations], device=orders.device)
        odd = (parts.activations * ~odd).sum(-1) == 0
        flips[..., : form.width] = torch.where(odd[..., : form.width], signs, 1).to(flips)
    moved = parts.masks.gather(2, orders), parts.biases[:, :-1].gather(2, orders) * flips.gather(2, orders)
    masks, biases = moved[0], torch.cat([moved[1], parts.biases[:, -1:]], 1)
    activations = parts.activations.gather(2, orders[..., None].expand_as(parts.activations))
    weights = parts.weights * _before(parts, flips, 1)[..., None, :]  # signs of what comes in, then of the unit
    weights = torch.cat([weights[:, :-1] * flips[..., None], weights[:, -1:]], 1)
    identity = torch.arange(form.rows, device=orders.device).expand(len(orders), 1, -1)
    weights = weights.gather(2, torch.cat([orders, identity], 1)[..., None].expand_as(weights))
    weights = weights.gather(3, _before(parts, orders, identity[0, 0])[..., None, :].expand_as(weights))
    return Parts(weights, biases, activations, masks, parts.depth)


def _before(parts: Parts, units: Tensor, inputs) -> Tensor:
    """Of something of all hidden units (n, L, H): for every layer (n, L + 1, H), that of the layer before it.

    inputs: of the network's inputs. The output layer comes after the last hidden layer that the network uses.
    """
    last = units[torch.arange(len(units), device=units.device), parts.depth - 1]  # (n, H)
    first = torch.zeros_like(last) + inputs
    return torch.cat([first[:, None].to(last), units[:, :-1], last[:, None]], 1)


def canonical(form: Form, parts: Parts) -> Parts:
    """The same functions in one order: units by activation, then by the size of what comes in; those that are off last.

    Networks that differ by the order of their units, or by signs that `permuted` may change, become the same.
    """
    check_parts(form, parts)
    size = parts.weights[:, :-1].square().sum(-1) + parts.biases[:, :-1].square()  # (n, L, H)
    size = size / (1 + size.amax(-1, keepdim=True))  # below 1
    key = torch.where(parts.masks >= 0.5, parts.activations.argmax(-1) - size, torch.inf)[..., : form.width]
    signs = torch.where(parts.biases[:, :-1] < 0, -1, 1)[..., : form.width]
    return permuted(form, parts, key.argsort(dim=-1, stable=True), signs)


def random_orders(form: Form, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(orders, signs) for `permuted`, (n, L, width) each."""
    shape = n, form.depth, form.width
    orders = torch.rand(shape, generator=generator).argsort(-1)
    return orders, 2 * torch.randint(2, shape, generator=generator) - 1


# ---- plain networks ----------------------------------------------------------------------------------------------


@torch.no_grad()
def hardened(form: Form, parts: Parts, threshold: float = 0.0) -> Parts:
    """Plain networks: the largest activation, masks of 1/2 and more, no weight below the threshold, nothing unused.

    A unit that is off has no weights, in or out. One that nothing reads is off too: the function is the same.
    """
    check_parts(form, parts)
    real, depth = used(form, parts.depth), parts.depth
    networks = torch.arange(len(depth), device=depth.device)
    weights = parts.weights * (real.weights & (parts.weights.abs() >= threshold))
    on = torch.cat([(parts.masks >= 0.5) & real.masks, real.biases[:, -1:]], 1)  # (n, L + 1, H)
    for layer in reversed(range(form.depth)):
        reader = torch.where(depth == layer + 1, form.depth, layer + 1)  # (n,) the layer that reads this one
        read = (weights[networks, reader] != 0) & on[networks, reader][..., None]  # (n, to, from)
        on[:, layer] &= read.any(1)
    masks = on[:, :-1].to(parts.masks)
    best = torch.zeros_like(parts.activations).scatter_(-1, parts.activations.argmax(-1, keepdim=True), 1)
    plain = Parts(weights, parts.biases, best, masks, depth)
    return Parts(*(part * here for part, here in zip(plain[:4], live(form, plain)[:4], strict=True)), depth)


def non_zeros(form: Form, parts: Parts) -> Tensor:
    """(n,) numbers that are not 0: weights between units that are on, biases of these and of the outputs.

    Raises ValueError for networks that `hardened` has not made plain.
    """
    check_plain(parts)
    parts = hardened(form, parts)
    return parts.weights.flatten(1).count_nonzero(1) + parts.biases.flatten(1).count_nonzero(1)


def check_plain(parts: Parts) -> None:
    """Raise ValueError for networks that `hardened` has not made plain."""
    on = parts.masks > 0
    if not (parts.masks[on] == 1).all() or not (parts.activations[on].amax(-1) == 1).all():
        raise ValueError("parts: masks or activations between 0 and 1; make them plain by `hardened` first")


def units(parts: Parts) -> Tensor:
    """(n, L) hidden units that are on in each layer, of plain networks."""
    return (parts.masks >= 0.5).sum(-1)

"""The logits of a whole zoo, a block of networks and rows at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from wsnotebook import engines, memory
from wsnotebook.engines import stacked
from wsnotebook.layout import Layout

if TYPE_CHECKING:  # the zoo's own training imports evaluation
    from wsnotebook.zoo.value import Zoo

ACTIVATIONS = 2**22  # numbers in the widest layer of a block
ROWS = 256  # of x in a block, at most: what fits the cache is quicker


@torch.no_grad()
def blocks(zoo: Zoo, x: Tensor) -> Iterator[tuple[np.ndarray, slice, Tensor]]:
    """(numbers of the networks, rows of x, logits (networks, rows, classes)) until all are done, in evaluation mode.

    Raises ValueError for logits that are not finite.
    """
    for template, members in zoo.groups():
        template = template.to(x.device)
        compiled = engines.choose(template, x.device.type) == "lanes" and zoo.layout == Layout.of(template)
        widest = template(x[:1]).numel() if compiled else _widest(template, x[:1])  # compiled, only logits are held
        rows = max(1, min(ROWS, ACTIVATIONS // widest, len(x)))
        k = max(1, min(ACTIVATIONS // (rows * widest), memory.PORTION // zoo.layout.d))
        for part in np.array_split(members, -(-len(members) // k)):
            weights = zoo.weights[torch.from_numpy(part)].to(x.device)
            forward = _forward(template, zoo.layout, weights, compiled)
            for start in range(0, len(x), rows):
                here = slice(start, start + rows)
                logits = forward(x[here])
                _check(logits, part)
                yield part, here, logits


def _forward(network: nn.Module, layout: Layout, weights: Tensor, compiled: bool) -> Callable[[Tensor], Tensor]:
    """From rows (b, ...) to the logits (k, b, classes) of k networks, with weights (k, d)."""
    if compiled:
        from wsnotebook.engines import lanes  # needs numba

        return partial(lanes.forward, network, weights)
    states = {name: tensor.contiguous() for name, tensor in layout.unflatten(weights).items()}
    if stacked.supports(network):
        return partial(stacked.forward, network, states)
    each = [dict(zip(states, tensors, strict=True)) for tensors in zip(*states.values(), strict=True)]
    return lambda x: torch.stack([functional_call(network, state, (x,)) for state in each])  # vmap is slower on a CPU


@torch.no_grad()
def classes(zoo: Zoo, x: Tensor) -> int:
    """Number of outputs of the zoo's networks on rows of x. Raises ValueError where there is nothing to compute."""
    if len(zoo) == 0 or len(x) == 0:
        raise ValueError(f"{len(zoo)} networks on {len(x)} rows: expected at least one of each")
    try:
        return zoo.template().to(x.device)(x[:1]).shape[-1]
    except RuntimeError as error:
        raise ValueError(f"x: {zoo.network} does not take rows of shape {tuple(x.shape[1:])}: {error}") from None


def _widest(network: nn.Module, row: Tensor) -> int:
    """Most numbers that one row becomes in any layer with weights."""
    sizes = [1]
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
    hooks = [
        layer.register_forward_hook(lambda _, __, out: sizes.append(out.numel() if torch.is_tensor(out) else 1))
        for layer in layers
    ]
    network(row)
    for hook in hooks:
        hook.remove()
    return max(sizes)


def _check(logits: Tensor, members: np.ndarray) -> None:
    finite = logits.mul(0).flatten(1).sum(1).cpu().numpy() == 0  # NaN else; isfinite takes four times as long
    if not finite.all():
        raise ValueError(
            f"network {members[~finite][0]} of the zoo gives NaN or infinite logits: its weights are too large (leave "
            "it out: zoo.filter(rows)), or a running variance is negative (recalibrated(zoo, x))"
        )

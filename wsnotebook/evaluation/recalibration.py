"""Batch norm's running statistics, found again for weights that were not trained: generated, averaged, interpolated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from wsnotebook.zoo.value import Zoo


@torch.no_grad()
def recalibrated(zoo: Zoo, x: Tensor, batch: int = 128) -> Zoo:
    """The zoo with running statistics that are the average over x (rows, ...); without batch norm, the zoo as it is.

    x: TRAINING images, never test images: the statistics are part of the network. Each of the equal parts of x, of at
    most `batch` rows, counts alike (momentum None in torch). One network after another, all else in evaluation mode.
    Raises ValueError for no rows, or a layout without the statistics.
    """
    norms = _tracking(zoo.template())
    if not norms:
        return zoo
    if missing := [name for name in norms if f"{name}.running_var" not in zoo.layout.names]:
        raise ValueError(
            f"layout: no running statistics of {missing[0]!r}, so there is nowhere to put them; make the zoo with all "
            "kinds of tensors, Layout.of(network)"
        )
    if len(x) == 0:
        raise ValueError("x: no rows; expected training images")
    parts = x.tensor_split(-(-len(x) // batch))
    weights = zoo.weights.clone()
    for network, members in zoo.groups():
        norms = _tracking(network.to(x.device)).values()
        for i in members:
            network.load_state_dict(zoo.layout.unflatten(zoo.weights[i]), strict=False)
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the cumulative average
                norm.train()
            for part in parts:
                network(part)
            weights[i] = zoo.layout.flatten(network.state_dict())
    return zoo.derived(weights)


def _tracking(network: nn.Module) -> dict[str, _BatchNorm]:
    modules = network.named_modules()
    return {name: m for name, m in modules if isinstance(m, _BatchNorm) and m.track_running_stats}

"""How often a network multiplies its weights: its work, whatever the machine."""

import copy
from collections import Counter

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def uses(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, int]]:
    """(outputs (1, ...), {layer: how often each of its weights is multiplied}) for the first row of x (n, ...).

    Of linear layers and convolutions, in evaluation mode; padding counts as an input. A network that calls none of
    its layers, as a MixedMLP, takes every linear one once. The network stays as it was.
    """
    network, counts = copy.deepcopy(network).eval(), Counter()
    for name, layer in network.named_modules():
        if isinstance(layer, LAYERS):
            run = lambda m, _, y, name=name: counts.update({name: y[0].numel() // len(m.weight)})  # noqa: E731
            layer.register_forward_hook(run)
    outputs = network(x[:1])
    linear = (name for name, layer in network.named_modules() if isinstance(layer, nn.Linear))
    return outputs, dict(counts or Counter(linear))

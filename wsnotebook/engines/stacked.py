"""k networks of one architecture as one computation in torch.

While every network still sees the same rows, a layer of all of them is one product with k times the outputs; after it,
a linear layer is a batched product and a convolution a grouped one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = (nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid)
LAYERS += (nn.Identity,)


def supports(network: nn.Module) -> bool:
    """Whether `forward` computes the network layer by layer, in training mode too: a flat Sequential of `LAYERS`."""
    return isinstance(network, nn.Sequential) and all(_supported(layer) for layer in network)


def _supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return type(layer) in LAYERS


def forward(
    network: nn.Module, states: dict[str, Tensor], x: Tensor, dropout: "Dropout | None" = None, own: bool = False
) -> Tensor:
    """Logits (k, b, classes) of k networks on the same rows x (b, ...); own: each on its own rows (k, b, ...).

    network: the template, as `supports` takes it; its own weights do not count. states: {name: (k, *shape)}.
    dropout: draws the masks in training; None is evaluation mode.
    """
    k, h, shared = len(next(iter(states.values()))), x, not own  # shared: h is the same for all
    images = x.ndim == (5 if own else 4)
    if images and own:
        h = x.transpose(0, 1).flatten(1, 2)  # (b, k channels, h, w)
    if images:
        h = h.to(memory_format=torch.channels_last)  # three times quicker than the default for many channels
    for name, layer in network.named_children():
        if isinstance(layer, nn.Conv2d):
            weight, bias = states[f"{name}.weight"].flatten(0, 1), states.get(f"{name}.bias")  # (k out, in, s, s)
            bias = None if bias is None else bias.flatten()
            h = F.conv2d(h, weight, bias, layer.stride, layer.padding, layer.dilation, 1 if shared else k)
            shared = False  # now (b, k channels, h, w)
        elif isinstance(layer, nn.Linear):
            weight, bias = states[f"{name}.weight"], states.get(f"{name}.bias")  # (k, out, in), (k, out)
            if shared:
                h = (h @ weight.flatten(0, 1).T).unflatten(1, (k, -1)).transpose(0, 1)  # (k, b, out)
                h = h if bias is None else h + bias[:, None]
            else:
                h = h @ weight.mT if bias is None else torch.baddbmm(bias[:, None], h, weight.mT)
            shared = False
        elif isinstance(layer, nn.Flatten):
            if shared:
                h = h.flatten(1)
            elif images:
                h = h.unflatten(1, (k, -1)).transpose(0, 1).flatten(2)  # (k, b, features)
            images = False
        elif isinstance(layer, nn.Dropout):
            if dropout is not None and images:
                h = h[:, None] if shared else h.unflatten(1, (k, -1))  # (b, 1 or k, channels, h, w)
                h, shared = (h * dropout(len(h), h.shape[2:]).transpose(0, 1)).flatten(1, 2), False
            elif dropout is not None:
                h, shared = h * dropout(h.shape[-2], h.shape[-1:]), False
        else:
            h = layer(h)
    return h


class Dropout:
    """Dropout's masks for k networks, each from a generator of its own: they do not depend on the others."""

    def __init__(self, p: Tensor, seeds: Tensor):
        self.p = p.tolist()
        self.device = p.device
        self.generators = [torch.Generator(p.device).manual_seed(int(seed)) for seed in seeds]

    def __call__(self, b: int, features: tuple[int, ...]) -> Tensor:
        """Factors (k, b, *features): 0 with probability p, else 1 / (1 - p)."""
        draws = zip(self.p, self.generators, strict=True)
        return torch.stack(
            [(torch.rand(b, *features, generator=g, device=self.device) >= p) / (1 - p) for p, g in draws]
        )

"""What a bank of SuperWeights must beat: networks that share nothing, as they are or thinner at equal parameters."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsnotebook.methods.superweight_plan import Plan


class Separate(nn.Module):
    """Copies of networks that share nothing, to be trained and called like a `superweights.Bank`.

    plan: of the same networks, `allocate(networks, x, clusters=[])`.
    """

    def __init__(self, networks: Sequence[nn.Module], plan: Plan):
        super().__init__()
        self.members, self.plan = nn.ModuleList(map(copy.deepcopy, networks)), plan

    def forward(self, x: Tensor | Sequence[Tensor], members: Sequence[int] | None = None) -> list[Tensor]:
        """Logits (n, classes) of each of these members; None: all. x: (n, ...), or a sequence of them, one a member."""
        members = range(len(self.members)) if members is None else members
        inputs = [x] * len(members) if isinstance(x, Tensor) else x
        return [self.members[m](rows) for m, rows in zip(members, inputs, strict=True)]

    def member(self, i: int) -> nn.Module:
        """Member i as a network of its own."""
        return copy.deepcopy(self.members[i])

    def parameter_groups(self) -> list[dict]:
        """For an optimiser."""
        return [{"params": list(self.parameters())}]


def thinner(networks: Sequence[nn.Module], x: Tensor, parameters: int) -> list[nn.Module]:
    """The networks with all inner widths times one factor, the largest at which they have at most so many parameters.

    x: an input (1, ...); its channels and the outputs stay. Weights are crops of the networks' own, scaled for the
    smaller fan-in, so that random ones keep their law. Widths need not be whole multiples of anything.
    Raises ValueError as `thinned` does, for widths that do not fit each other any more, and too small a number.
    """
    low, high = 0.0, 1.0
    empty = [copy.deepcopy(network).to("meta") for network in networks]
    count = lambda factor: sum(p.numel() for network in empty for p in thinned(network, factor).parameters())  # noqa: E731
    if (least := count(low)) > parameters:
        raise ValueError(f"parameters={parameters:,}: with one unit a layer these networks still have {least:,}")
    if count(high) > parameters:
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    else:
        low = high
    found = [thinned(network, low) for network in networks]
    for number, network in enumerate(found):
        try:
            with torch.no_grad():
                copy.deepcopy(network).eval()(x[:1])
        except RuntimeError as error:
            raise ValueError(
                f"networks[{number}]: {low:.3f} times as wide, its layers do not fit each other ({error}); "
                "networks that flatten images cannot be thinned"
            ) from None
    return found


def thinned(network: nn.Module, factor: float) -> nn.Module:
    """The network with all inner widths times `factor`, rounded, at least 1; its weights are as `thinner` makes them.

    Raises ValueError for modules other than Conv2d, Linear and BatchNorm with parameters.
    """
    network = copy.deepcopy(network)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    thin = lambda width: max(1, round(factor * width))  # noqa: E731
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            o, i = module.weight.shape[:2]
            outputs = o if module is layers[-1] else thin(o)
            inputs = i if module is layers[0] else thin(i)
            module.weight = nn.Parameter(module.weight.detach()[:outputs, :inputs] * math.sqrt(i / inputs))
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach()[:outputs].clone())
            names = (
                ("out_channels", "in_channels") if isinstance(module, nn.Conv2d) else ("out_features", "in_features")
            )
            for attribute, width in zip(names, (outputs, inputs), strict=True):
                setattr(module, attribute, width)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.num_features = thin(module.num_features)
            for own, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.ndim:
                    cropped = tensor.detach()[: module.num_features].clone()
                    setattr(module, own, nn.Parameter(cropped) if isinstance(tensor, nn.Parameter) else cropped)
        elif list(module.parameters(recurse=False)):
            raise ValueError(
                f"{name or 'network'}: a {type(module).__name__}; only Conv2d, Linear and BatchNorm can be thinned"
            )
    return network

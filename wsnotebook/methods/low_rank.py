"""Low rank, a baseline: every matrix of a network as a product of two thin ones, cut from its singular values.

    W = U S V^T  ~  (U_r S_r^(1/2)) (S_r^(1/2) V_r^T),    the nearest of rank r (Eckart and Young 1936)

A kernel (o, i, h, w) is the matrix (o, i h w): a convolution becomes one with r outputs and a 1 x 1 one after it
(Denton et al. 2014). Ranks of all layers come from one threshold, on the share of its matrix that singular value k of
layer l explains, for the numbers that it costs:

    keep (l, k)  where  s_lk^2 / (|W_l|^2 (rows_l + columns_l)) >= theta                        (1)

Scaling a layer changes nothing in it. The factors are then trained like any network (`training.train`).
"""

import copy

import torch
from torch import Tensor, nn

from wsnotebook.layout import check_finite


def ranks(network: nn.Module, percent: float) -> dict[str, int]:
    """{layer: its rank} by (1), theta being the least with which at most `percent` % of all matrices' numbers are left.

    Each layer keeps rank 1 at least; one whose factors would hold as many numbers as its matrix stays whole, and is
    left out. Raises ValueError for a percentage that is no share, or below what rank 1 everywhere takes.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent={percent!r}: expected a share in (0, 100] %")
    check_finite(network.state_dict(), "network")
    matrices = {name: layer.weight.detach().flatten(1).double().cpu() for name, layer in _layers(network).items()}
    scores, costs, owners = [], [], []
    for number, w in enumerate(matrices.values()):
        s = torch.linalg.svdvals(w)
        score = s.square() / (w.square().sum() * sum(w.shape))
        score[0] = torch.inf
        numbers = (torch.arange(len(s) + 1) * sum(w.shape)).clamp(max=w.numel())  # at each rank
        scores, costs, owners = [*scores, score], [*costs, numbers.diff()], [*owners, torch.full((len(s),), number)]
    scores, costs, owners = map(torch.cat, (scores, costs, owners))
    order = scores.argsort(descending=True, stable=True)
    whole = sum(w.numel() for w in matrices.values())
    kept = order[costs[order].cumsum(0) <= percent / 100 * whole]
    if len(kept) < len(matrices):
        least = 100 * float(costs[order[: len(matrices)]].sum()) / whole
        raise ValueError(f"percent={percent!r}: rank 1 in all {len(matrices)} layers already takes {least:.2f} %")
    found = torch.bincount(owners[kept], minlength=len(matrices)).tolist()
    return {
        name: rank for rank, (name, w) in zip(found, matrices.items(), strict=True) if rank * sum(w.shape) < w.numel()
    }


def factored(network: nn.Module, ranks: dict[str, int]) -> nn.Module:
    """A copy of the network in which these layers are two, nn.Sequential under the old name, of truncated SVDs."""
    network, layers = copy.deepcopy(network), _layers(network)
    for name, rank in ranks.items():
        w = layers[name].weight.detach()
        u, s, v = torch.linalg.svd(w.flatten(1).double(), full_matrices=False)
        root = s[:rank].sqrt()
        pair = _pair(layers[name], rank)
        with torch.no_grad():
            pair[0].weight.copy_((root[:, None] * v[:rank]).view(rank, *w.shape[1:]))
            pair[1].weight.copy_((u[:, :rank] * root).view_as(pair[1].weight))
            if pair[1].bias is not None:
                pair[1].bias.copy_(layers[name].bias)
        network.set_submodule(name, pair)
    return network


def like(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A copy of the network with the layers factored that are so in a state dict, and that state."""
    network, layers = copy.deepcopy(network), _layers(network)
    for name, layer in layers.items():
        if f"{name}.0.weight" in state:
            network.set_submodule(name, _pair(layer, len(state[f"{name}.0.weight"])))
    network.load_state_dict(state)
    return network


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Those that can be factored: linear ones, and convolutions of one group."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or isinstance(module, nn.Conv2d) and module.groups == 1
    }


def _pair(layer: nn.Module, rank: int) -> nn.Sequential:
    bias, where = layer.bias is not None, {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False, **where)
        return nn.Sequential(first, nn.Linear(rank, layer.out_features, bias=bias, **where))
    names = ("stride", "padding", "dilation", "padding_mode")
    options = {name: getattr(layer, name) for name in names} | where
    first = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False, **options)
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, 1, bias=bias, **where))

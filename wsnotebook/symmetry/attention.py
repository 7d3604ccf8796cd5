"""Heads of attention find their partners (TransFusion, as DeepWeightFlow uses it), then the units within each head.

A head's singular values do not depend on how its units are mixed, so heads are paired first, by the distance of the
singular values of their q, k and v blocks. Within a pair the order of q's and k's units is one permutation and, a
freedom that the papers leave unused, that of v's units and the projection's columns another one. With the residual
stream fixed no part depends on another, so one round is all: further rounds would find the same.
"""

import torch
from torch import Tensor

from wsnotebook.symmetry.axes import Group, from_heads
from wsnotebook.symmetry.matching import Place, assign, similarity


def match_heads(
    groups: list[Group],
    places: dict[str, list[Place]],
    reference: dict[str, Tensor],
    state: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Permutations {group: (m, size)} of one attention's groups that bring m models close to the reference.

    reference: {tensor: shape}, state: {tensor: (m, *shape)}; places: where the groups occur.
    """
    heads = groups[0].heads
    distance = 0  # (m, heads of the reference, heads of the model)
    for group in groups:
        for place in places[group.name]:
            if place.axis == 0 and reference[place.tensor].ndim > 1:  # rows of q, k, v
                own = _spectra(place.unfold(reference[place.tensor][None]), heads)  # (1, heads, h)
                theirs = _spectra(place.unfold(state[place.tensor]), heads)  # (m, heads, h)
                distance = distance + torch.cdist(own.expand(len(theirs), -1, -1), theirs)
    order = torch.from_numpy(assign(-distance.numpy()))  # (m, heads)
    found, gain = {}, 0
    for group in groups:
        h = group.size // heads
        units = similarity(places[group.name], reference, state)  # (m, size, size)
        blocks = units.unflatten(2, (heads, h)).unflatten(1, (heads, h)).transpose(2, 3)  # (m, heads, heads, h, h)
        pairs = blocks[torch.arange(len(order))[:, None], torch.arange(heads), order]  # (m, heads, h, h)
        within = torch.from_numpy(assign(pairs.flatten(0, 1).numpy())).unflatten(0, (-1, heads))  # (m, heads, h)
        found[group.name] = from_heads(order, within)
        gain = gain + (units.gather(2, found[group.name][..., None])[..., 0] - units.diagonal(dim1=1, dim2=2)).sum(1)
    worse = gain < 0  # singular values know nothing of directions: a model that lay better stays
    for group in groups:
        found[group.name][worse] = torch.arange(group.size)
    return found


def _spectra(units: Tensor, heads: int) -> Tensor:
    """Singular values of each head's rows, descending: (m, heads * h, entries) -> (m, heads, h)."""
    rows = units.double().unflatten(1, (heads, -1))
    return torch.linalg.svdvals(rows)

"""Who shares in a bank of SuperWeights: similar layers share templates, uses that agree share coefficient vectors.

What we do differently from the public code: clusters are agglomerated, where there a weaker pair could take a layer out
of its group; layers of all networks are compared, not those of the first; the search for a threshold ends; vectors can
be separated within a network too.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.methods.superweight_clusters import Layer, depth_bins, shareable
from wsnotebook.methods.superweight_plan import Plan, allocate
from wsnotebook.methods.superweight_similarities import Similarities, minibatches
from wsnotebook.methods.superweights import Bank
from wsnotebook.training import check_choice

LINKAGES = ("average", "complete", "single")

# ---- clusters ----------------------------------------------------------------------------------------------------


def clusters(of: Similarities, threshold: float, linkage: str = "average") -> list[list[Layer]]:
    """Clusters whose similarity is at least the threshold, within the initial ones; at -1, these themselves.

    linkage: the similarity of two clusters is their pairs' average, lowest ("complete") or highest ("single").
    """
    found = []
    for positions, tree in _trees(of, linkage):
        labels = _cut(tree, threshold)
        found += [[of.layers[p] for p in positions[labels == label]] for label in dict.fromkeys(labels.tolist())]
    return found


def _trees(of: Similarities, linkage: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(positions, their tree) of each initial cluster."""
    initial, matrix = np.array(of.initial), of.matrix
    positions = [np.flatnonzero(initial == number) for number in dict.fromkeys(of.initial)]
    return [(own, _tree(matrix[np.ix_(own, own)], linkage)) for own in positions]


def _tree(similarity: np.ndarray, linkage: str) -> np.ndarray:
    """scipy's tree of what has these similarities (n, n), a merge in every row; those that are nan count as 0."""
    check_choice("linkage", linkage, LINKAGES)
    distances = squareform((1 - np.nan_to_num(similarity)).clip(0), checks=False)  # rounding
    return hierarchy.linkage(distances, linkage) if len(distances) else np.zeros((0, 4))


def _cut(tree: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) label of each, where merges are undone whose similarity is below the threshold."""
    return hierarchy.fcluster(tree, 1 - threshold + 1e-12, "distance") if len(tree) else np.ones(1, dtype=int)


def fitting(
    of: Similarities,
    networks: Sequence[nn.Module],
    x: Tensor,
    budget: int | None,
    *,
    threshold: float = 0.1,
    linkage: str = "average",
    **options,
) -> tuple[float, Plan]:
    """(threshold, plan) of the highest threshold, from `threshold` down, whose clusters fit into the budget.

    Below -1, where no initial cluster is divided, the last try is one cluster for each kernel size (-inf). options: of
    `allocate`, which x is for as well. Raises its ValueError, with the smallest budget, when not even that fits.
    """
    heights = np.concatenate([1 - tree[:, 2] for _, tree in _trees(of, linkage)])
    tries = [threshold, *sorted({float(height) for height in heights if height < threshold}, reverse=True)]
    one = [[layer for layer in of.layers if layer.shape[2:] == k] for k in sorted({l.shape[2:] for l in of.layers})]
    plain = allocate(networks, x, clusters=one, **options)
    for tried in tries:
        found = clusters(of, tried, linkage)
        if budget is None or plain.regrouped(found).least <= budget:
            return tried, allocate(networks, x, budget, clusters=found, **options)
    return -math.inf, allocate(networks, x, budget, clusters=one, **options)


def fitting_bins(networks: Sequence[nn.Module], x: Tensor, budget: int | None, bins: int, **options) -> Plan:
    """The plan of so many depth bins, or of fewer, as many as fit into the budget.

    options: of `allocate`, which x is for as well. Raises its ValueError when not even one for each kernel size fits.
    """
    layers, _ = shareable(networks, options.get("classifier", False))
    plain = allocate(networks, x, clusters=1, **options)
    while bins > 1 and budget is not None and plain.regrouped(depth_bins(layers, bins)).least > budget:
        bins -= 1
    return allocate(networks, x, budget, clusters=bins, **options)


# ---- coefficient vectors -----------------------------------------------------------------------------------------


def matched(plan: Plan, of: Similarities) -> Plan:
    """The plan in which a layer has the vector of the most similar one in the first network that uses the increment.

    The first is the one with most layers if it does, as in `allocate`; its own layers have a vector each.
    """
    position, matrix = {layer: n for n, layer in enumerate(of.layers)}, np.nan_to_num(of.matrix)
    deepest = max(range(len(plan.parameters)), key=[layer.member for layer in of.layers].count)
    rows = []
    for g, cluster in enumerate(plan.clusters):
        rows.append([])
        for r in range(len(plan.templates[g])):
            users = [cluster[p] for p in plan.users(g, r)]
            first = min((user.member for user in users), key=lambda member: (member != deepest, member))
            owners = [user for user in users if user.member == first]
            places = [position[owner] for owner in owners]
            nearest = [owners.index(u) if u in owners else int(matrix[position[u], places].argmax()) for u in users]
            rows[-1].append(tuple(nearest))
    return replace(plan, rows=tuple(map(tuple, rows)))


def coefficient_gradients(
    bank: Bank, split: tuple[Tensor, Tensor], *, batches: int = 32, batch: int = 128, seed: int = 0
) -> list[Tensor]:
    """Gradient (users, K) of the loss for each SuperWeight's uses, as if no two layers had a vector in common.

    In evaluation mode, summed over minibatches of split (x, y), as for `similarities`; users as plan.users has them.
    """
    own = copy.deepcopy(bank).eval()
    own.coefficients.requires_grad_(True)
    own.unshare({s: range(len(own.plan.rows[g][r])) for s, (g, r) in enumerate(own.plan.superweights)})
    totals = [torch.zeros_like(vectors) for vectors in own.coefficients]
    for x, y in minibatches(split, batches, batch, seed):
        loss = sum(F.cross_entropy(logits, y) for logits in own(x))
        for total, gradient in zip(totals, torch.autograd.grad(loss, list(own.coefficients)), strict=True):
            total += gradient
    rows = [list(own.plan.rows[g][r]) for g, r in own.plan.superweights]
    return [total[order] for total, order in zip(totals, rows, strict=True)]


def disagreeing(
    gradients: Sequence[Tensor], plan: Plan, threshold: float = 0.9, linkage: str = "average"
) -> dict[int, list[int]]:
    """Labels for `Bank.unshare`: those of a vector's users differ whose gradients (users, K) have a lower cosine.

    Users of different vectors may have equal labels; a SuperWeight in which all agree is left out.
    """
    found = {}
    for s, (g, r) in enumerate(plan.superweights):
        unit = F.normalize(gradients[s].double(), dim=1)
        cosines, rows = (unit @ unit.T).cpu().numpy(), np.array(plan.rows[g][r])
        labels = np.ones(len(rows), dtype=int)
        for row in set(rows.tolist()):
            users = np.flatnonzero(rows == row)
            labels[users] = _cut(_tree(cosines[np.ix_(users, users)], linkage), threshold)
        if labels.max() > 1:
            found[s] = labels.tolist()
    return found

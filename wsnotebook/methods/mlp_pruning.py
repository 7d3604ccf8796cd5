"""Perceptrons without the numbers that are smallest, or that matter least: to at most so many non-zeros."""

import torch
from torch import Tensor

from wsnotebook.methods.mlp_matrix import Form, Parts, evaluate, hardened, non_zeros
from wsnotebook.training import epoch_randomness

PROBES, PROBED = 16, 128  # random signs, and rows, by which it is seen what numbers matter


def keep_largest(form: Form, parts: Parts, count: int) -> Parts:
    """Each network's largest weights and biases: as many as leave at most `count` non-zeros in it, the others 0.

    Units that nothing reads any more are off, and do not count. Raises ValueError for networks that are not plain.
    """
    before = non_zeros(form, parts)
    sizes = torch.cat([parts.weights.flatten(1), parts.biases.flatten(1)], 1).abs()  # (n, p)
    rank = sizes.argsort(dim=1, descending=True, stable=True).argsort(1)
    split = [parts.weights[0].numel(), parts.biases[0].numel()]

    def first(k: Tensor) -> Parts:
        weights, biases = (rank < k[:, None]).split(split, 1)
        weights, biases = parts.weights * weights.view_as(parts.weights), parts.biases * biases.view_as(parts.biases)
        return hardened(form, parts._replace(weights=weights, biases=biases))

    k = torch.zeros_like(before)
    for bit in reversed(range(sizes.shape[1].bit_length())):  # non-zeros grow with k: its largest, bit by bit
        more = k + 2**bit
        k = torch.where(non_zeros(form, first(more)) <= count, more, k)
    return first(k)


def keep_important(form: Form, parts: Parts, count: int, x: Tensor) -> Parts:
    """Networks without the numbers that matter least to their outputs on x, with `count` non-zeros at most.

    What it costs to leave out w is about w^2 mean_x (df / dw)^2 (LeCun et al. 1990, "Optimal Brain Damage", with
    Gauss-Newton's curvature), the mean estimated from sums over x with random signs, whose mean square it is.
    """
    own = [part.clone().requires_grad_() for part in parts[:2]]
    y = evaluate(form, parts._replace(weights=own[0], biases=own[1]), x[:PROBED])
    with epoch_randomness(0, count, torch.device("cpu")):
        signs = (2 * torch.randint(2, (PROBES, *y.shape[1:])) - 1).to(y)  # the same for all networks
    squares = [0.0, 0.0]
    for sign in signs:
        gradients = torch.autograd.grad(y, own, sign.expand_as(y), retain_graph=True)
        squares = [total + g.square() for total, g in zip(squares, gradients, strict=True)]
    matters = [part.detach() * (total.sqrt() + 1e-9) for part, total in zip(own, squares, strict=True)]
    kept = keep_largest(form, parts._replace(weights=matters[0], biases=matters[1]), count)
    weights, biases = (torch.where(k != 0, part.detach(), 0) for k, part in zip(kept[:2], own, strict=True))
    return kept._replace(weights=weights, biases=biases)

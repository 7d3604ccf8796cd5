"""What a latent search lowers (`latent_search`): networks from decoded numbers, soft or hard, their error and price.

With a lane's error e on a minibatch, v that of the constant, n a smooth count of weights and units, p the lane's own
strength and m the masks:

    objective = log(e / v + floor) + p r (n + units * sum m + size * sum |w|) - spread * mean_l std(m_l)
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.methods.mlp_matrix import Form, Parts, evaluate, used
from wsnotebook.methods.swat_autoencoder import soft


def temperature(config, t: float) -> float:
    """Of the activations' softmax at time t in [0, 1] of the search: along a line, then at its end."""
    start, end = config.temperatures
    return max(end, start + (end - start) * t / config.annealed)


def formed(form: Form, raw: Parts, threshold: Tensor, config, t: float) -> tuple[Parts, Parts]:
    """(what is computed, the mixtures behind it) of decoded numbers at time t; threshold (n,), of |weights|.

    From `config.straight` on what is computed is hard, with the gradients of the mixtures (straight-through).
    """
    mixed, real = soft(form, raw, temperature(config, t)), used(form, raw.depth)
    above = mixed.weights.abs() - threshold[:, None, None, None]
    if t < config.straight:
        if not config.gate:
            return mixed, mixed
        weights = mixed.weights * (config.gate * above).sigmoid()
        return mixed._replace(weights=weights, masks=(config.gate * (mixed.masks - 0.5)).sigmoid() * real.masks), mixed
    best = F.one_hot(mixed.activations.argmax(-1), len(form.activations)) * real.activations
    hard = mixed.weights * (above >= 0), mixed.biases, best, mixed.masks >= 0.5
    return Parts(*(h + (s - s.detach()) for h, s in zip(hard, mixed[:4], strict=True)), raw.depth), mixed


def lane_errors(outputs: Tensor, y: Tensor) -> Tensor:
    """(n,) of outputs (n, m, outputs): mean square, y (m, n, outputs); or cross-entropy in nats, y int64 (m, n)."""
    if y.is_floating_point():
        return (outputs - y.transpose(0, 1)).square().mean((1, 2))
    return F.cross_entropy(outputs.mT, y.T, reduction="none").mean(1)


def constant_errors(y: Tensor) -> Tensor:
    """(functions,) errors of the best constant: y (m, functions, outputs), or int64 classes (m, functions)."""
    if y.is_floating_point():
        return y.var(0, unbiased=False).mean(1)
    shares = F.one_hot(y).float().mean(0)  # (functions, classes)
    return -torch.xlogy(shares, shares).sum(1)


def price(form: Form, computed: Parts, mixed: Parts, threshold: Tensor, config) -> Tensor:
    """(n,) what a network costs: weights between units that are on, these units, and the size of all weights."""
    masks, real, n = computed.masks, used(form, computed.depth), len(threshold)
    into = torch.cat([masks, real.biases[:, -1:]], 1)  # (n, L + 1, H)
    last = masks[torch.arange(n, device=masks.device), computed.depth - 1]
    out = torch.cat([torch.ones_like(masks[:, :1]), masks[:, :-1], last[:, None]], 1)
    size = mixed.weights.abs()
    there = (config.steepness * (size - threshold[:, None, None, None])).sigmoid() * real.weights
    count = (there * into[..., None] * out[..., None, :]).sum((1, 2, 3))
    return config.count * count + config.units * masks.sum((1, 2)) + config.size * size.sum((1, 2, 3))


def spread(masks: Tensor, depth: Tensor, width: int) -> Tensor:
    """(n,) mean over the layers in use of the standard deviation of their masks (n, L, H): the public code's reward."""
    layers = masks[..., :width].std(-1) if width > 1 else masks.new_zeros(masks.shape[:2])
    return layers.sum(1) / depth


def objective(
    form: Form,
    raw: Parts,
    threshold: Tensor,
    penalty: Tensor,
    constant: Tensor,
    x: Tensor,
    y: Tensor,
    config,
    t: float,
) -> tuple[Tensor, Tensor]:
    """(objective (n,), error (n,)) of n lanes at time t, each its own: no lane's depends on another's.

    raw: decoded numbers. threshold, penalty, constant (n,): t, p and v of the lanes. x (m, inputs), y (m, n, outputs)
    or int64 (m, n).
    """
    computed, mixed = formed(form, raw, threshold, config, t)
    error = lane_errors(evaluate(form, computed, x), y)
    value = (error / constant + config.floor).log() if config.relative else error
    value = value + penalty * min(1.0, t / config.ramp) * price(form, computed, mixed, threshold, config)
    if config.spread:
        value = value - config.spread * spread(computed.masks, computed.depth, form.width)
    return value, error


def rate(lr: float, config, t: float) -> float:
    """Adam's step at time t: up to lr in 3 % of the search, then a cosine to 0; or lr throughout."""
    if not config.decay:
        return lr
    return lr * min(1.0, (t + 1e-3) / 0.03) * 0.5 * (1 + math.cos(math.pi * t))

"""A flow in the span of n networks is the flow in the space of all their weights: exactly, and as it is learned."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from wsnotebook import datasets, evaluation, zoo
from wsnotebook.methods.closed_form_flow import ClosedForm
from wsnotebook.methods.sampling import integrate, times
from wsnotebook.methods.velocity import PaperVelocity
from wsnotebook.methods.weight_flow import Flow, preset, train

SETTINGS = {"hidden": 64, "dropout": 0.0, "batch": 16, "lr": 2e-3, "iterations": 800, "pairs": "fresh", "keep": "last"}
SEEDS, SAMPLES = 3, 60  # flows differ more among seeds than the two ways do: their samples are pooled


@functools.cache
def nets():
    """Twelve networks of 131 weights, which classify iris."""
    config = zoo.Config(epochs=30, batch=16, lr=0.02)
    return zoo.train("mlp-4-16-3", datasets.load("iris"), 12, config)


# ---- the exact flow ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [0.01, 1.0])
def test_the_exact_flow_in_all_weights_is_the_one_in_the_span(source):
    flow = ClosedForm(nets(), source)
    c, s, sigma, x1 = flow.coordinates, flow.source, flow.path_noise, nets().weights.double()
    basis, mean = c.basis.double(), c.mean.double()

    def velocity(x, t):  # straightforward, in d dimensions, around no mean
        variance = (1 - t) ** 2 * s**2 + sigma**2
        w = (-(x[:, None] - t * x1).square().sum(2) / (2 * variance)).softmax(1)  # (m, n)
        m = w @ x1
        return m - (1 - t) * s**2 / variance * (x - t * m)

    x0 = s * torch.randn(50, nets().layout.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = integrate(velocity, x0, times(50))  # (steps + 1, m, d)
    span = integrate(flow.velocity, x0 @ basis.T, times(50))  # (steps + 1, m, k)
    moved = full - times(50)[:, None, None] * mean
    torch.testing.assert_close(moved @ basis.T, span, rtol=0, atol=1e-4 * c.rms)
    rest = moved[-1] - moved[-1] @ basis.T @ basis
    before = x0 - x0 @ basis.T @ basis
    torch.testing.assert_close(rest, before * sigma / (s**2 + sigma**2) ** 0.5, rtol=0, atol=0.03 * sigma)


# ---- the learned flow --------------------------------------------------------------------------------------------


@functools.cache
def in_all_weights() -> zoo.Zoo:
    """Samples of the paper's network and recipe, written straightforwardly in the space of all weights."""
    x1, source, path_noise, born = nets().weights, 0.01, 0.001, []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        config = preset("paper", nets(), **SETTINGS)
        network = PaperVelocity(x1.shape[1], config.hidden, config.time_features, config.dropout)
        optimiser = torch.optim.AdamW(network.parameters(), config.lr, config.betas, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.iterations, config.floor_lr)
        for _ in range(config.iterations):
            target = x1[torch.randint(len(x1), (config.batch,))]
            x0, t = source * torch.randn_like(target), torch.rand(config.batch)
            x = (1 - t[:, None]) * x0 + t[:, None] * target + path_noise * torch.randn_like(target)
            loss = (network(x, t) - (target - x0)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        x0 = source * torch.randn(SAMPLES, x1.shape[1])
        born.append(integrate(lambda x, t, network=network: network(x, t[None]), x0, times(50))[-1])
    return nets().made(torch.cat(born))


@functools.cache
def in_the_span(**changes) -> list[Flow]:
    config = preset("paper", nets(), **SETTINGS | changes)
    return [train(nets(), replace(config, seed=seed)) for seed in range(SEEDS)]


def samples(flows: list[Flow]) -> zoo.Zoo:
    return nets().made(torch.cat([flow.sample(SAMPLES, seed=seed).weights for seed, flow in enumerate(flows)]))


def equal(a: zoo.Zoo, b: zoo.Zoo) -> dict[str, bool]:
    """Whether two samples of networks have the same distribution, by fixed bounds, between what seeds and errors do.

    networks: the energy coefficient (2 E|a - b| - E|a - a'| - E|b - b'|) / 2 E|a - b|, which is 0 for equal
    distributions and 1 for far ones, is below 0.07; copies: the median distances to the nearest training network are
    within a factor of 1.8; accuracy: the means are within 2 %.
    """
    between, *within = (cdist(x.weights, y.weights).mean() for x, y in ((a, b), (a, a), (b, b)))
    distances = [np.median(evaluation.nearest(born, nets()).distance) for born in (a, b)]
    accuracies = [evaluation.report(born, datasets.load("iris").train).accuracy.mean() for born in (a, b)]
    return {
        "networks": bool(1 - sum(within) / (2 * between) < 0.04),
        "copies": bool(max(distances) < 1.8 * min(distances)),
        "accuracy": bool(abs(accuracies[0] - accuracies[1]) < 2),
    }


def test_the_learned_flow_in_all_weights_gives_the_samples_of_the_one_in_the_span():
    assert equal(in_all_weights(), samples(in_the_span())) == {"networks": True, "copies": True, "accuracy": True}


def test_a_flow_that_is_not_trained_enough_gives_others():
    assert not any(equal(in_all_weights(), samples(in_the_span(iterations=100))).values())


def test_a_wrong_source_gives_others():
    wide = [replace(flow, config=replace(flow.config, source=10 * flow.config.source)) for flow in in_the_span()]
    assert not equal(in_all_weights(), samples(wide))["copies"]

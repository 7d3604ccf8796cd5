"""Laws of low rank: full rank changes nothing, cut ranks are the best there are, one threshold orders all layers."""

import itertools
import math

import pytest
import torch
from torch import nn

from wsnotebook import networks
from wsnotebook.methods import low_rank


@pytest.fixture
def perceptron():
    return networks.build("mlp-12-9-7-4", seed=1)


def images():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, (3, 2), stride=2, padding=1, dilation=(1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(150, 5)
    )


def truncated(w, rank):
    u, s, v = torch.linalg.svd(w.detach().flatten(1).double(), full_matrices=False)
    return sum(s[k] * torch.outer(u[:, k], v[k]) for k in range(rank)).reshape(w.shape)


@pytest.mark.parametrize(("build", "shape"), [(lambda: networks.build("mlp-12-9-7-4"), (12,)), (images, (2, 9, 9))])
def test_factors_compute_what_the_truncated_matrices_do(build, shape):
    network, x = build().double(), torch.randn(7, *shape, dtype=torch.float64)
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for rank in (1, 3):
        made, straight = low_rank.factored(network, dict.fromkeys(layers, rank)), build().double()
        straight.load_state_dict(network.state_dict())
        for name in layers:
            w = straight.get_submodule(name).weight
            w.data = truncated(w, rank)
        torch.testing.assert_close(made(x), straight(x))


def test_at_full_rank_a_network_is_what_it_was(perceptron):
    whole = {f"fc{i}": min(perceptron.get_submodule(f"fc{i}").weight.shape) for i in (1, 2, 3)}
    x = torch.randn(5, 12)
    torch.testing.assert_close(low_rank.factored(perceptron, whole)(x), perceptron(x), atol=1e-5, rtol=1e-5)


def test_the_threshold_keeps_the_prefix_that_fits_as_a_straight_search_finds_it(perceptron):
    matrices = {f"fc{i}": perceptron.get_submodule(f"fc{i}").weight.detach().double() for i in (1, 2, 3)}
    shares = {
        name: torch.linalg.svdvals(w).square() / (w.square().sum() * sum(w.shape)) for name, w in matrices.items()
    }
    whole = sum(w.numel() for w in matrices.values())
    for percent in (35, 50, 80, 95):
        best = {}
        for theta in sorted({float(v) for s in shares.values() for v in s}):  # the least that fits
            found = {name: max(1, int((s >= theta).sum())) for name, s in shares.items()}
            numbers = sum(min(found[name] * sum(w.shape), w.numel()) for name, w in matrices.items())
            if numbers <= percent / 100 * whole:
                best = found
                break
        expected = {n: r for n, r in best.items() if r * sum(matrices[n].shape) < matrices[n].numel()}
        assert low_rank.ranks(perceptron, percent) == expected
    assert low_rank.ranks(perceptron, 100) == {}


def test_scaling_a_layer_changes_no_rank(perceptron):
    before = low_rank.ranks(perceptron, 50)
    assert len(set(before.values())) > 1
    with torch.no_grad():
        perceptron.fc2.weight *= 1000
    assert low_rank.ranks(perceptron, 50) == before


def test_ranks_are_the_best_of_all_of_their_cost_by_what_they_explain():
    """Greedy by (1) is a knapsack's: no choice of ranks with as few numbers explains more of the matrices in all."""
    network = networks.build("mlp-16-14-12-10", seed=1)
    found = low_rank.ranks(network, 60)
    matrices = {name: network.get_submodule(name).weight.detach().double() for name in found}
    assert len(found) == 3
    spectra = {name: torch.linalg.svdvals(w).square() / w.square().sum() for name, w in matrices.items()}

    def both(ranks):
        cost = sum(rank * sum(matrices[name].shape) for name, rank in ranks.items())
        return cost, sum(float(spectra[name][:rank].sum()) for name, rank in ranks.items())

    cost, explained = both(found)
    every = itertools.product(*(range(1, min(w.shape) + 1) for w in matrices.values()))
    others = [both(dict(zip(matrices, ranks, strict=True))) for ranks in every]
    assert max(e for c, e in others if c <= cost) == pytest.approx(explained)


@pytest.mark.parametrize("build", [lambda: networks.build("mlp-12-9-7-4"), images])
def test_a_state_says_which_layers_were_factored(build):
    network = build()
    made = low_rank.factored(network, low_rank.ranks(network, 60))
    again = low_rank.like(build(), made.state_dict())
    assert [type(m) for m in again.modules()] == [type(m) for m in made.modules()]
    for (name, a), (other, b) in zip(made.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


@pytest.mark.parametrize("percent", [0, -3, 101, math.nan])
def test_shares_are_checked(perceptron, percent):
    with pytest.raises(ValueError, match=r"percent=.*\(0, 100\]"):
        low_rank.ranks(perceptron, percent)


def test_too_small_a_share_names_the_smallest(perceptron):
    with pytest.raises(ValueError, match=r"rank 1 in all 3 layers already takes 24\.\d\d %"):
        low_rank.ranks(perceptron, 5)

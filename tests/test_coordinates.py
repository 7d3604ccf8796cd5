"""Coordinates of a zoo are a change of basis: nothing is lost, distances stay, and k of them are the best k."""

import numpy as np
import pytest
import torch

from wsnotebook import networks, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import coordinates as module
from wsnotebook.methods.coordinates import coordinates


def made(n, network="mlp-6-4-3", **facts):
    layout = Layout.of(networks.build(network), exclude=COUNTERS)
    weights = torch.stack([layout.flatten(networks.build(network, seed=i).state_dict()) for i in range(n)])
    weights += 0.1 * torch.rand(weights.shape, generator=torch.Generator().manual_seed(0))  # statistics differ, too
    return zoo.Zoo(weights, layout, {"model": np.arange(n)} | facts, network, {})


@pytest.fixture(scope="module")
def nets():
    return made(9)


def test_decode_undoes_encode_on_the_zoo_and_encode_undoes_decode_everywhere(nets):
    c = coordinates(nets)
    assert c.basis.shape == (8, nets.layout.d)
    torch.testing.assert_close(c.decode(c.encode(nets.weights)), nets.weights, rtol=1e-4, atol=1e-5)
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(c.encode(c.decode(z)), z, rtol=1e-4, atol=1e-5)


def test_distances_between_networks_are_kept(nets):
    z = coordinates(nets).encode(nets.weights)
    torch.testing.assert_close(torch.cdist(z, z), torch.cdist(nets.weights, nets.weights), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("k", [1, 3, None])
def test_they_are_the_principal_components(nets, k, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7 * len(nets))  # several blocks of weights, the last one shorter
    c = coordinates(nets, k)
    centred = (nets.weights - nets.weights.mean(0)).double()
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    size = len(c.basis)
    torch.testing.assert_close(
        (c.basis.double() @ directions[:size].T).abs(), torch.eye(size).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(c.deviations.double(), values[:size] / 8**0.5, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        c.explained.double(), (values.square() / values.square().sum())[:size], rtol=1e-4, atol=0
    )
    torch.testing.assert_close(c.encode(nets.weights).std(0), c.deviations, rtol=1e-4, atol=1e-5)


def test_running_statistics_are_the_zoos_mean():
    nets = made(5, "resnet-8")
    c = coordinates(nets)
    statistic = torch.tensor([kind == "statistic" for kind in nets.layout.kinds])[nets.layout.tensor_index()]
    assert torch.equal(c.learned, ~statistic)
    back = c.decode(c.encode(nets.weights))
    assert torch.equal(back[:, statistic], c.mean[statistic].expand(5, -1))
    torch.testing.assert_close(back[:, ~statistic], nets.weights[:, ~statistic], rtol=1e-4, atol=1e-5)


def test_equal_networks_add_no_direction(nets):
    twice = zoo.concat([nets, nets])
    assert len(coordinates(twice).basis) == 8
    with pytest.raises(ValueError, match="components=12: the zoo's 18 networks span 8 directions"):
        coordinates(twice, 12)
    with pytest.raises(ValueError, match="2 networks span 0 directions"):
        coordinates(nets.filter([3, 3]))


def test_decoded_networks_are_a_zoo(nets):
    c = coordinates(made(9, activation=np.full(9, "tanh")))
    born = c.zoo(torch.zeros(2, 8), asked=np.array([1.0, 2.0]))
    assert born.facts["parent"].tolist() == [-1, -1]
    assert born.facts["asked"].tolist() == [1.0, 2.0]
    assert born.facts["activation"].tolist() == ["tanh", "tanh"]
    assert torch.equal(born.weights[0], c.mean)


@pytest.mark.parametrize("k", [0, 9, 100])
def test_too_many_components_are_refused(nets, k):
    with pytest.raises(ValueError, match=f"components={k}, zoo of 9 networks: .* from 1 to n - 1"):
        coordinates(nets, k)


def test_networks_of_two_activations_are_refused():
    with pytest.raises(ValueError, match="activations gelu, tanh; take the networks of one"):
        coordinates(made(4, activation=np.array(["tanh", "gelu"] * 2)))


def test_the_remainder_is_what_the_components_leave():
    nets = made(40)
    c = coordinates(nets, 5)
    left = nets.weights - c.decode(c.encode(nets.weights))
    assert torch.allclose(c.rest, left.std(0), atol=1e-5)
    z = torch.zeros(4000, 5)
    drawn = c.zoo(z, remainder=0.5, seed=3).weights
    assert torch.allclose(drawn.std(0), 0.5 * c.rest, rtol=0.1)
    assert (drawn.mean(0) - c.mean).abs().max() < 5 * 0.5 * c.rest.max() / 4000**0.5
    assert torch.equal(c.zoo(z, remainder=0.5, seed=3).weights, drawn)
    whole = coordinates(nets)
    z = whole.encode(nets.weights)
    assert not whole.rest.any()
    assert torch.equal(whole.zoo(z, remainder=1.0).weights, whole.decode(z))
    with pytest.raises(ValueError, match="remainder=-1: expected a number from 0 up"):
        c.zoo(z, remainder=-1)

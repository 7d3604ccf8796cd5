"""The controls are what their names say: points of lines, means, noise of a size."""

import numpy as np
import pytest
import torch

from wsnotebook import networks, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import controls


@pytest.fixture(scope="module")
def nets():
    layout = Layout.of(networks.build("resnet-8"), exclude=COUNTERS)
    weights = torch.stack([layout.flatten(networks.build("resnet-8", seed=i).state_dict()) for i in range(6)])
    return zoo.Zoo(weights, layout, {"model": np.arange(10, 16)}, "resnet-8", {})


def test_noise_has_its_size_and_leaves_statistics(nets):
    made = controls.noise(nets, 4, 0.1, seed=1)
    parents = nets.weights[torch.from_numpy(made.facts["parent"] - 10)]
    kinds = np.array(nets.layout.kinds)[nets.layout.tensor_index()]
    change = (made.weights - parents).numpy()
    assert (change[:, kinds == "statistic"] == 0).all()
    assert change[:, kinds != "statistic"].std() == pytest.approx(0.1, rel=0.02)


def test_interpolations_lie_between_two_networks(nets):
    for t in (None, 0.25):
        for row in controls.interpolations(nets, 5, seed=2, t=t).weights:
            to = (nets.weights - row).norm(dim=1)
            between = (nets.weights[:, None] - nets.weights[None]).norm(dim=2)
            gaps = to[:, None] + to[None] - between + 1e9 * torch.eye(6)
            assert gaps.min() < 1e-3 * between.max()


def test_an_average_of_all_is_the_mean(nets):
    assert torch.allclose(controls.averages(nets, 2, of=6).weights, nets.weights.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="7 different networks asked for, the zoo has 6"):
        controls.averages(nets, 2, of=7)


def test_gaussian_has_the_zoos_moments_and_positive_variances(nets):
    made = controls.gaussian(nets, 200)
    assert (made.weights.mean(0) - nets.weights.mean(0)).abs().max() < 0.5 * nets.weights.std(0).max()
    assert (made.module(0).bn.running_var > 0).all()
    assert not torch.equal(made.weights, controls.gaussian(nets, 200, seed=1).weights)


def test_pca_gaussian_has_the_zoos_covariance():
    layout = Layout.of(networks.build("mlp-3-4-2"))
    weights = torch.randn(300, layout.d) @ torch.randn(layout.d, layout.d)
    nets = zoo.Zoo(weights, layout, {}, "mlp-3-4-2", {})
    true, size = torch.cov(weights.T), torch.linalg.matrix_norm(torch.cov(weights.T))
    for k, remainder, width in ((None, 0.0, 1.0), (None, 0.0, 0.5), (layout.d - 1, 1.0, 1.0)):
        made = controls.pca_gaussian(nets, 20_000, k, width, remainder).weights
        assert torch.linalg.matrix_norm(torch.cov(made.T) - width**2 * true) < 0.05 * size
        assert torch.linalg.vector_norm(made.mean(0) - weights.mean(0)) < 0.05 * size.sqrt()
    one = controls.pca_gaussian(nets, 50, 1).weights
    assert torch.linalg.matrix_rank(one - one.mean(0), rtol=1e-4) == 1

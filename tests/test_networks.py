import pytest
import torch

from wsnotebook import datasets, networks
from wsnotebook.layout import Layout

# name, classes, input shape, weights under the prior, all parameters
TABLE = [
    ("lenet-300-100", 10, (1, 28, 28), 266_200, 266_610),
    ("lenet-5-caffe", 10, (1, 28, 28), 430_500, 431_080),
    ("tutorialnet", 10, (1, 28, 28), 641_875, 642_460),
    ("wrn-16-4", 10, (3, 32, 32), 2_745_264, 2_748_890),
    ("wrn-16-4", 100, (3, 32, 32), 2_768_304, 2_772_020),
    ("mlp-64-32-10", 10, (1, 8, 8), 2_368, 2_410),
]


@pytest.mark.parametrize(("name", "classes", "shape", "weights", "parameters"), TABLE)
def test_counts_match_the_paper_and_the_output_has_a_logit_a_class(name, classes, shape, weights, parameters):
    network = networks.build(name, classes=classes).eval()
    assert Layout.of(network, kinds=("weight",)).d == weights
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(2, *shape)).shape == (2, classes)


def test_wrn_16_4_has_17_weight_tensors():
    assert len(Layout.of(networks.build("wrn-16-4"), kinds=("weight",)).names) == 17


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    before = torch.random.get_rng_state()
    a, b, c = (networks.build("mlp-5-4-3", seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["fc1.weight"], c["fc1.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["lenet-5", "mlp-64", "mlp-64-0-10", "wrn-16-0", "resnet"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown network '{name}'.*lenet-300-100"):
        networks.build(name)


def test_a_wrong_depth_says_which_depths_exist():
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4 .* got 15"):
        networks.build("wrn-15-2")


def test_a_network_that_does_not_fit_the_data_says_so():
    iris = datasets.load("iris")
    assert networks.build_for(iris, "mlp-4-16-3")(iris.train[0]).shape == (len(iris.train[1]), 3)
    with pytest.raises(ValueError, match=r"'lenet-300-100' does not take iris's rows of shape \(4,\)"):
        networks.build_for(iris, "lenet-300-100")
    with pytest.raises(ValueError, match="has 10 outputs; iris has 3 classes"):
        networks.build_for(iris, "mlp-4-8-10")


def test_a_users_function_makes_the_network(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef small():\n    return nn.Linear(4, 3)\ndef none():\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = networks.build("my_networks:small", seed=1)
    assert mine.weight.shape == (3, 4)
    assert torch.equal(mine.weight, networks.build("my_networks:small", seed=1).weight)
    assert not torch.equal(mine.weight, networks.build("my_networks:small", seed=2).weight)
    with pytest.raises(ValueError, match="'my_networks:none' gives NoneType, expected a torch.nn.Module"):
        networks.build("my_networks:none")
    for name in ("my_networks:large", "no_networks:small"):
        with pytest.raises(ValueError, match=f"network '{name}'.*importable from here"):
            networks.build(name)


def test_a_residual_network_takes_the_datasets_channels(digits):
    network = networks.build_for(digits, "wrn-10-1")
    assert network(digits.train[0][:5]).shape == (5, 10)

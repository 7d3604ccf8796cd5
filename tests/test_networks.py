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


ZOOS = [  # of the Model Zoos (sane.md) and DeepWeightFlow (weight_flow.md)
    ("mlp-784-32-32-10", None, 26_506),
    ("mlp-784-128-128-10", None, 118_282),
    ("mlp-4-16-3", None, 131),
    ("cnn-small", None, 2_464),
    ("cnn-small", 3, 2_864),
    ("cnn-medium", None, 3_047),
    ("cnn-large", None, 10_853),
    ("resnet-20", None, 272_474),
    ("resnet-18", None, 11_173_962),
    ("vit-small", None, 2_693_578),
    ("cnn-tiny", None, 494),
    ("resnet-8", 1, 77_754),
    ("vit-tiny", None, 26_538),
]


@pytest.mark.parametrize(("name", "channels", "parameters"), ZOOS)
def test_a_zoos_network_has_the_published_count_and_takes_its_example(name, channels, parameters):
    network = networks.build(name, channels=channels).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(networks.example(name, channels=channels)).shape == (1, 3 if name == "mlp-4-16-3" else 10)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("hidden", "parameters"), [(1, 41), (3, 261), (5, 481)])
def test_the_six_of_cornn_have_layers_of_ten_and_one_output(hidden, parameters, activation):
    name = f"cornn-{hidden}-{activation}"
    network = networks.build(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(networks.example(name)).shape == (1, 1)
    kinds = [type(module).__name__.lower() for module in network]
    assert [kinds.count(kind) for kind in (activation, "linear", "flatten")] == [hidden, hidden + 1, 1]
    assert len(kinds) == 2 * hidden + 2


@pytest.mark.parametrize("init", networks.INITS)
def test_an_init_has_its_spread_and_zero_biases(init):
    layer = networks.build("mlp-400-300-10", init=init).fc1
    wanted = {"default": (1 / 3 / 400), "he": 2 / 400, "xavier": 2 / 700, "uniform": 0.01 / 3, "normal": 4e-4}[init]
    assert layer.weight.var().item() == pytest.approx(wanted, rel=0.03)
    assert (layer.bias == 0).all() == (init != "default")


@pytest.mark.parametrize(("name", "activations"), [("mlp-64-16-16-10", 2), ("cnn-tiny", 3)])
def test_activation_and_dropout_are_where_they_belong(name, activations):
    network = networks.build(name, activation="gelu", dropout=0.25)
    kinds = [type(module).__name__ for module in network]
    assert kinds.count("GELU") == activations
    assert kinds.count("Dropout") == 2
    assert "Tanh" not in kinds
    assert "ReLU" not in kinds
    same = networks.build(name, activation="gelu").state_dict()
    assert list(same) == list(network.state_dict())


def test_a_choice_that_a_network_does_not_have_is_refused():
    with pytest.raises(ValueError, match="activation='swish': expected one of relu"):
        networks.build("cnn-small", activation="swish")
    with pytest.raises(ValueError, match="dropout=1.5"):
        networks.build("cnn-small", dropout=1.5)
    with pytest.raises(ValueError, match="init='zeros'"):
        networks.build("cnn-small", init="zeros")
    with pytest.raises(ValueError, match="'resnet-20': activation and dropout can be chosen"):
        networks.build("resnet-20", activation="tanh")
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 2 .* got 19"):
        networks.build("resnet-19")


def test_wrn_16_4_has_17_weight_tensors():
    assert len(Layout.of(networks.build("wrn-16-4"), kinds=("weight",)).names) == 17


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    before = torch.random.get_rng_state()
    a, b, c = (networks.build("mlp-5-4-3", seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["fc1.weight"], c["fc1.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "name", ["lenet-5", "mlp-64", "mlp-64-0-10", "wrn-16-0", "resnet", "cornn-2-relu", "cornn-1-gelu"]
)
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
    sphere = datasets.load("cornn-sphere")
    assert networks.build_for(sphere, "cornn-3-tanh")(sphere.train[0]).shape == (3000, 1)
    with pytest.raises(ValueError, match="has 3 outputs; cornn-sphere has 1 target"):
        networks.build_for(sphere, "mlp-2-8-3")


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

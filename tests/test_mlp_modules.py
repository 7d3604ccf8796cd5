"""Matrices of perceptrons become modules, zoos and files that predict the same, and modules become matrices."""

import numpy as np
import pytest
import torch
from test_mlp_matrix import FORMS, drawn, points, same
from torch import nn

from wsnotebook import networks, zoo
from wsnotebook.methods import mlp_matrix as mm
from wsnotebook.methods import mlp_modules
from wsnotebook.methods.mlp_matrix import Form

MODULES = {name: kind for kind, name in mlp_modules.MODULES.items()}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_network_of_its_own_predicts_bit_equal_also_from_a_file(form, tmp_path):
    parts, x = drawn(form), points(form, 333)
    y = mm.evaluate(form, parts, x)
    for i in range(40):
        own = mlp_modules.network(form, parts, i)
        assert torch.equal(own(x).detach(), y[i])
        again = mm.evaluate(form, mlp_modules.from_network(form, own), x)[0]
        assert torch.equal(again, y[i])
    path = tmp_path / "net.pt"
    torch.save(own.state_dict(), path)
    loaded = networks.build(f"mixed-{'-'.join(map(str, sizes(own)))}")
    loaded.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(loaded(x).detach(), y[39])


def sizes(network):
    layers = [network.get_submodule(f"fc{i}") for i in range(1, network.hidden + 2)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_zoo_of_all_goes_through_its_file_and_predicts_bit_equal(form, tmp_path):
    parts, x = drawn(form), points(form, 333)
    made = mlp_modules.to_zoo(form, parts, {"seed": 3}, error=np.arange(40.0))
    loaded = zoo.load(made.save(tmp_path / "found.safetensors"))
    again, found = mlp_modules.from_zoo(loaded)
    assert again == form
    assert same(found, parts)
    y = mm.evaluate(form, parts, x)
    assert torch.equal(mm.evaluate(form, found, x), y)
    for i in range(40):
        assert torch.equal(loaded.module(i)(x).detach(), y[i])
    assert loaded.facts["depth"].tolist() == parts.depth.tolist()
    assert loaded.facts["non_zeros"].tolist() == mm.non_zeros(form, parts).tolist()
    assert loaded.facts["error"][7] == 7
    assert loaded.provenance["seed"] == 3


@pytest.mark.parametrize("activation", sorted(MODULES))
def test_a_sequential_and_its_matrix_agree_in_float64(activation):
    form = Form(3, 2, 6, 3, ("relu", *({activation} - {"relu"})))
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(3, 6),
        MODULES[activation](),
        nn.Dropout(0.5),
        nn.Linear(6, 4, bias=False),
        nn.ReLU(),
        nn.Linear(4, 2),
    )
    net, x = net.double().eval(), points(form, dtype=torch.float64)
    parts = mlp_modules.from_network(form, net)
    torch.testing.assert_close(mm.evaluate(form, parts, x)[0], net(x).detach())
    assert int(parts.depth) == 2
    assert mm.units(parts).tolist() == [[6, 4, 0]]
    assert int(mm.non_zeros(form, parts)) == 3 * 6 + 6 + 6 * 4 + 4 * 2 + 2
    torch.testing.assert_close(mlp_modules.network(form, parts, 0)(x).detach(), net(x).detach())


def test_linear_layers_after_each_other_are_units_that_hand_on():
    form = Form(activations=("identity", "tanh"))
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    torch.testing.assert_close(
        mm.evaluate(form, mlp_modules.from_network(form, net), points(form))[0], net(points(form)).detach()
    )


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 1)], "layer '0': 9 units"),
        ([nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)], "layer '0': activation relu"),
        ([nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 1)], "layer '1': Softplus"),
        ([nn.Linear(2, 3), nn.LeakyReLU(0.2), nn.Linear(3, 1)], "layer '1': LeakyReLU"),
        ([nn.Linear(2, 3), nn.Tanh(), nn.BatchNorm1d(3), nn.Linear(3, 1)], "layer '2': BatchNorm1d"),
        ([nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Tanh()], "does not end with a linear layer"),
        ([nn.Linear(2, 1)], "0 hidden layers"),
        ([*[nn.Linear(2, 2), nn.Tanh()] * 5, nn.Linear(2, 1)], "5 hidden layers"),
        ([nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)], "3 inputs and 1 outputs"),
        ([nn.Flatten()], "does not end with a linear layer"),
    ],
)
def test_networks_that_do_not_fit_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        mlp_modules.from_network(Form(), nn.Sequential(*layers))


def test_other_modules_and_zoos_are_refused():
    with pytest.raises(ValueError, match="GELU, expected nn.Sequential or MixedMLP"):
        mlp_modules.from_network(Form(), nn.GELU())
    other = mlp_modules.to_zoo(Form(), drawn(Form()))
    other.provenance.pop("form")
    with pytest.raises(ValueError, match="to_zoo"):
        mlp_modules.from_zoo(other)

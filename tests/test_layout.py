import pytest
import torch
from torch import nn

from wsnotebook import networks
from wsnotebook.layout import Layout, check_finite


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).eval()


def test_unflatten_undoes_flatten_and_the_other_way_round(network):
    layout = Layout.of(network)
    state = network.state_dict()
    row = layout.flatten(state)
    back = layout.unflatten(row)
    assert list(back) == list(state)
    assert all(torch.equal(back[n], state[n].to(row.dtype)) for n in state)
    assert torch.equal(layout.flatten(back), row)


def test_many_networks_are_flattened_as_each_of_them(network):
    layout = Layout.of(network)
    rows = torch.randn(2, 3, layout.d)
    states = layout.unflatten(rows)
    assert torch.equal(layout.flatten(states), rows)
    for name, tensor in layout.unflatten(rows[1, 2]).items():
        assert torch.equal(states[name][1, 2], tensor)
    with pytest.raises(ValueError, match=r"3.weight: shape \(3, 4, 12\), expected \(2, 3, 4, 12\)"):
        layout.flatten(states | {"3.weight": states["3.weight"][1]})


def test_kinds_tell_weights_from_biases_norms_and_statistics(network):
    layout = Layout.of(network)
    assert dict(zip(layout.names, layout.kinds, strict=True)) == {
        "0.weight": "weight",
        "0.bias": "bias",
        "1.weight": "norm",
        "1.bias": "norm",
        "1.running_mean": "statistic",
        "1.running_var": "statistic",
        "1.num_batches_tracked": "statistic",
        "3.weight": "weight",
        "3.bias": "bias",
    }


def test_filters_choose_by_kind_and_by_name(network):
    assert Layout.of(network, kinds=("weight",)).names == ("0.weight", "3.weight")
    assert Layout.of(network, kinds=("weight",), exclude=r"^3\.").names == ("0.weight",)
    assert Layout.of(network, kinds=("bias",), include=r"^3\.").names == ("3.bias",)


def test_tensor_index_follows_the_row(network):
    layout = Layout.of(network)
    index = layout.tensor_index()
    row = torch.cat([torch.full((size,), i) for i, size in enumerate(layout.sizes)])
    assert torch.equal(index, row)


def test_errors_say_what_was_seen_and_expected(network):
    layout = Layout.of(network)
    with pytest.raises(ValueError, match="no tensor of kind weight matches include='nothing'"):
        Layout.of(network, kinds=("weight",), include="nothing")
    with pytest.raises(ValueError, match=r"unknown \['wieght'\]"):
        Layout.of(network, kinds=("wieght",))
    with pytest.raises(ValueError, match=r"shape \(3,\), the layout needs"):
        layout.unflatten(torch.zeros(3))
    network[3].bias = network[0].bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match="'0.bias' and '3.bias' are one parameter"):
        Layout.of(network)
    with pytest.raises(ValueError, match="no tensor '0.weight'"):
        layout.flatten(networks.build("mlp-4-3-2").state_dict())


def test_check_finite_names_the_tensor(network):
    state = network.state_dict()
    check_finite(state)
    state["3.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="'3.weight' has 1 entries that are NaN"):
        check_finite(state)


def test_learned_is_all_but_the_running_statistics(network):
    layout = Layout.of(network)
    marked = layout.unflatten(layout.learned())
    assert {name for name, part in marked.items() if part.all()} == set(dict(network.named_parameters()))
    assert {name for name, part in marked.items() if not part.any()} == set(dict(network.named_buffers()))

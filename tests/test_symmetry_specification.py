import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsnotebook import networks, symmetry

NAMES = (
    "mlp-12-9-8-4 lenet-300-100 lenet-5-caffe tutorialnet cnn-small cnn-medium cnn-large cnn-tiny resnet-8 resnet-20 "
    "resnet-18 vit-tiny vit-small wrn-10-1 wrn-16-4"
)


def table(spec) -> dict[str, str]:
    """{tensor: axes} of a specification, its groups called g0, g1 ... in the order they are met."""
    names, rows = {}, {}
    for tensor, axes in spec.axes.items():
        for segment in itertools.chain(*axes):
            if segment.group is not None:
                names.setdefault(segment.group, f"g{len(names)}")
        rows[tensor] = ", ".join(" + ".join(str(s._replace(group=names.get(s.group))) for s in axis) for axis in axes)
    return rows


def written(text: str) -> dict[str, str]:
    """A table written by hand, 'tensor: axes' a line."""
    return dict(line.strip().split(": ") for line in text.strip().splitlines())


def without(rows: dict[str, str], *words: str) -> dict[str, str]:
    return {name: axes for name, axes in rows.items() if not any(word in name for word in words)}


def followed(network: nn.Module, *shape: int):
    """The specification of a network that takes (1, *shape), verified."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    spec = symmetry.specification(network, x[:1])
    assert symmetry.verify(network, spec, x) < 1e-9
    return spec


@pytest.mark.parametrize("name", NAMES.split())
def test_a_random_permutation_changes_no_output_of_any_network(name):
    network = networks.build(name)
    x = torch.cat([networks.example(name), -0.5 * networks.example(name)])
    spec = symmetry.specification(network, x[:1])
    assert not spec.fixed_because
    assert set(spec.axes) == set(network.state_dict())
    assert symmetry.verify(network, spec, x) < 1e-9  # float64


def test_multilayer_perceptron():
    spec = symmetry.specification(networks.build("mlp-8-6-5-3"), torch.zeros(1, 8))
    assert table(spec) == written("""
        fc1.weight: g0, -
        fc1.bias: g0
        fc2.weight: g1, g0
        fc2.bias: g1
        fc3.weight: -, g1
        fc3.bias: -""")
    assert [(group.name, group.size, group.homogeneous) for group in spec.groups.values()] == [
        ("fc1", 6, True),
        ("fc2", 5, True),
    ]


def test_convolutions_and_flattening():
    assert table(symmetry.specification(networks.build("cnn-small"), networks.example("cnn-small"))) == written("""
        conv1.weight: g0, -, -, -
        conv1.bias: g0
        conv2.weight: g1, g0, -, -
        conv2.bias: g1
        conv3.weight: g2, g1, -, -
        conv3.bias: g2
        fc1.weight: g3, g2 x 9
        fc1.bias: g3
        fc2.weight: -, g3
        fc2.bias: -""")
    lenet = symmetry.specification(networks.build("lenet-5-caffe"), networks.example("lenet-5-caffe"))
    assert table(lenet)["fc1.weight"] == "g2, g1 x 16"


def test_residual_networks_have_a_group_a_stage_and_a_group_a_block():
    spec = symmetry.specification(networks.build("resnet-8"), networks.example("resnet-8"))
    assert without(table(spec), "bn", "shortcut.1") == written("""
        conv.weight: g0, -, -, -
        blocks.0.conv1.weight: g1, g0, -, -
        blocks.0.conv2.weight: g0, g1, -, -
        blocks.1.conv1.weight: g2, g0, -, -
        blocks.1.conv2.weight: g3, g2, -, -
        blocks.1.shortcut.0.weight: g3, g0, -, -
        blocks.2.conv1.weight: g4, g3, -, -
        blocks.2.conv2.weight: g5, g4, -, -
        blocks.2.shortcut.0.weight: g5, g3, -, -
        fc.weight: -, g5
        fc.bias: -""")
    norms = table(spec)
    for statistic in ("weight", "bias", "running_mean", "running_var"):
        assert norms[f"bn.{statistic}"] == "g0"
        assert norms[f"blocks.2.bn1.{statistic}"] == "g4"
        assert norms[f"blocks.2.shortcut.1.{statistic}"] == "g5"


@pytest.mark.parametrize(("name", "stages", "blocks"), [("resnet-20", 3, 9), ("resnet-18", 4, 8), ("wrn-10-1", 3, 3)])
def test_number_of_groups_of_residual_networks(name, stages, blocks):
    spec = symmetry.specification(networks.build(name), networks.example(name))
    assert len(spec.groups) == stages + blocks
    assert not any(group.homogeneous for group in spec.groups.values())  # they have norms


def test_vision_transformer():
    spec = symmetry.specification(networks.build("vit-tiny"), networks.example("vit-tiny"))
    assert without(table(spec), "blocks.1") == written("""
        token: -, -, g0
        position: -, -, g0
        embed.weight: g0, -, -, -
        embed.bias: g0
        blocks.0.norm1.weight: g0
        blocks.0.norm1.bias: g0
        blocks.0.attention.qkv.weight: g1 + g1 + g2, g0
        blocks.0.attention.qkv.bias: g1 + g1 + g2
        blocks.0.attention.proj.weight: g0, g2
        blocks.0.attention.proj.bias: g0
        blocks.0.norm2.weight: g0
        blocks.0.norm2.bias: g0
        blocks.0.mlp.fc1.weight: g3, g0
        blocks.0.mlp.fc1.bias: g3
        blocks.0.mlp.fc2.weight: g0, g3
        blocks.0.mlp.fc2.bias: g0
        norm.weight: g0
        norm.bias: g0
        head.weight: -, g0
        head.bias: -""")
    assert spec.streams == {"embed"}
    assert {g.name: g.heads for g in spec.attentions()["blocks.0.attention"]} == {
        "blocks.0.attention.qk": 2,
        "blocks.0.attention.v": 2,
    }


class Module(nn.Module):
    """A module of these layers whose forward is a function of (layers, x)."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def test_concatenation_is_a_list_of_segments():
    network = Module(
        lambda m, x: m.last(F.relu(torch.cat([m.a(x), m.b(x)], 1)).flatten(1)),
        a=nn.Conv2d(1, 3, 3),
        b=nn.Conv2d(1, 5, 3),
        last=nn.Linear(8 * 4, 2),
    )
    assert table(followed(network, 1, 4, 4))["last.weight"] == "-, g0 x 4 + g1 x 4"


def test_a_sum_with_a_concatenation_splits_the_units():
    network = Module(
        lambda m, x: m.last(F.relu(torch.cat([m.a(x), m.b(x)], 1) + m.both(x))),
        a=nn.Linear(4, 3),
        b=nn.Linear(4, 5),
        both=nn.Linear(4, 8),
        last=nn.Linear(8, 2),
    )
    rows = table(followed(network, 4))
    assert rows["both.weight"] == "g0 + g1, -"
    assert rows["both.bias"] == "g0 + g1"


def test_a_sum_of_parts_that_overlap_is_held_fixed_with_the_reason():
    network = Module(
        lambda m, x: m.last(torch.cat([m.a(x), m.b(x)], 1) + torch.cat([m.b(x), m.a(x)], 1)),
        a=nn.Linear(4, 3),
        b=nn.Linear(4, 5),
        last=nn.Linear(8, 2),
    )
    spec = followed(network, 4)
    assert not spec.groups
    assert "different make-up" in spec.fixed_because["a.weight"]


def test_depthwise_convolution_follows_its_input_and_other_groups_are_fixed():
    def network(groups, outputs):
        return nn.Sequential(
            nn.Conv2d(1, 6, 1),
            nn.ReLU(),
            nn.Conv2d(6, outputs, 3, groups=groups),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(outputs * 4, 2),
        )

    rows = table(followed(network(6, 6), 1, 4, 4))
    assert (rows["2.weight"], rows["2.bias"], rows["5.weight"]) == ("g0, -, -, -", "g0", "-, g0 x 4")
    rows = table(followed(network(6, 12), 1, 4, 4))  # two outputs a channel
    assert (rows["2.weight"], rows["5.weight"]) == ("g0 x 2, -, -, -", "-, g0 x 8")
    spec = followed(network(3, 6), 1, 4, 4)
    assert not spec.groups
    assert "convolution in 3 groups" in spec.fixed_because["0.weight"]


def test_a_reshape_that_mixes_units_is_fixed_and_one_that_does_not_is_followed():
    mixing = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
    spec = followed(mixing, 4)
    assert not spec.groups
    assert "mixes units" in spec.fixed_because["0.weight"]
    keeping = Module(
        lambda m, x: m.last(m.conv(x).reshape(x.shape[0], -1).view(-1, 6, 4).permute(0, 2, 1).mean(1)),
        conv=nn.Conv2d(1, 6, 3),
        last=nn.Linear(6, 2),
    )
    assert table(followed(keeping, 1, 4, 4))["last.weight"] == "-, g0"


def test_skip_connection_of_a_users_module_ties_and_a_norm_after_the_sum_follows():
    network = Module(
        lambda m, x: m.last(F.relu(m.bn(m.inner(h := F.relu(m.first(x))) + h + m.side(x)))),
        first=nn.Linear(4, 6),
        inner=nn.Linear(6, 6),
        side=nn.Linear(4, 6),
        bn=nn.BatchNorm1d(6),
        last=nn.Linear(6, 2),
    )
    rows = table(followed(network, 4))
    assert rows["inner.weight"] == "g0, g0"
    assert rows["side.weight"] == "g0, -"
    assert rows["bn.running_var"] == "g0"


def test_a_sum_with_the_input_is_fixed_without_further_reason():
    network = Module(lambda m, x: m.last(x + m.first(x)), first=nn.Linear(4, 4), last=nn.Linear(4, 2))
    spec = followed(network, 4)
    assert not spec.groups
    assert not spec.fixed_because


def test_free_parameters_products_and_parts_are_followed():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.shift = nn.Parameter(torch.randn(8))
            self.matrix = nn.Parameter(torch.randn(4, 3))
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            a, b = (self.first(x) * 2 + self.shift).chunk(2, 1)
            return self.last(torch.tanh(a @ self.matrix)) + 0 * b.sum()

    spec = followed(Mixed(), 4)
    assert "part of the units" in spec.fixed_because["shift"]
    assert table(spec)["last.weight"] == "-, g0"
    assert table(spec)["matrix"] == "-, g0"


def test_attention_of_pytorch():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Linear(8, 2)

        def forward(self, x):
            h = self.embed(x)
            return self.last(h + self.attention(h, h, h, need_weights=False)[0])

    rows = table(followed(Block(), 5, 3))
    assert rows["attention.in_proj_weight"] == "g1 + g1 + g2, g0"
    assert rows["attention.out_proj.weight"] == "g0, g2"


def test_what_has_no_rule_is_held_fixed():
    network = Module(lambda m, x: m.last(torch.cumsum(m.first(x), 1)), first=nn.Linear(4, 5), last=nn.Linear(5, 2))
    spec = followed(network, 4)
    assert not spec.groups
    assert "cumsum" in spec.fixed_because["first.weight"]
    norm = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
    assert "2 groups of channels" in followed(norm, 1, 2, 2).fixed_because["1.weight"]


def test_networks_that_depend_on_their_data_are_refused():
    network = Module(lambda m, x: m.a(x) if x.sum() > 0 else -m.a(x), a=nn.Linear(4, 2))
    network.train()
    with pytest.raises(ValueError, match=r"Module cannot be recorded by torch.fx.*control flow"):
        symmetry.specification(network, torch.zeros(1, 4))
    assert network.training


def test_verify_refuses_a_wrong_specification():
    spec = symmetry.specification(networks.build("mlp-8-6-6-3"), torch.zeros(1, 8))
    skipping = Module(
        lambda m, x: m.fc3(m.fc2(h := m.fc1(x)) + h), fc1=nn.Linear(8, 6), fc2=nn.Linear(6, 6), fc3=nn.Linear(6, 3)
    )
    with pytest.raises(ValueError, match="outputs change by"):
        symmetry.verify(skipping, spec, torch.randn(2, 8))


def test_a_specification_prints_as_a_table():
    text = str(symmetry.specification(networks.build("lenet-5-caffe"), networks.example("lenet-5-caffe")))
    assert "fc1.weight    fc1, conv2 x 16" in text
    assert "conv2         50 units, homogeneous" in text


def test_scales_are_free_only_where_balancing_would_keep_the_function():
    def homogeneous(function, **layers):
        spec = followed(Module(function, **layers), 4)
        return [group.homogeneous for group in spec.groups.values()]

    def layers():
        return {"first": nn.Linear(4, 6), "last": nn.Linear(6, 2)}

    assert homogeneous(lambda m, x: m.last(F.relu(m.first(x))), **layers()) == [True]
    assert homogeneous(lambda m, x: m.last(F.leaky_relu(F.dropout(m.first(x), training=False))), **layers()) == [True]
    assert homogeneous(lambda m, x: m.last(torch.tanh(m.first(x))), **layers()) == [False]
    assert homogeneous(lambda m, x: m.last(F.relu(m.first(x) + 1)), **layers()) == [False]
    assert homogeneous(lambda m, x: m.last(F.relu(m.first(x)).softmax(1)), **layers()) == [False]
    assert homogeneous(lambda m, x: m.last(h := m.first(x)) + h.mean(), **layers()) == [False]
    tied = layers() | {"inner": nn.Linear(6, 6)}
    assert homogeneous(lambda m, x: m.last(m.inner(h := m.first(x)) + h), **tied) == [False]


def test_paddings_options_by_name_and_masks():
    network = Module(
        lambda m, x: m.last(F.group_norm(F.pad(m.conv(x), pad=(1, 1, 0, 0)), num_groups=1).mean(dim=(2, 3))),
        conv=nn.Conv2d(1, 6, 3),
        last=nn.Linear(6, 2),
    )
    assert table(followed(network, 1, 4, 4))["last.weight"] == "-, g0"
    named = Module(
        lambda m, x: m.last(torch.mean(input=m.conv(x), dim=(2, 3))), conv=nn.Conv2d(1, 6, 3), last=nn.Linear(6, 2)
    )
    assert "mean" in followed(named, 1, 4, 4).fixed_because["conv.weight"]
    bare = Module(
        lambda m, x: m.last(m.attention(h := m.embed(x), h, h)[0]),
        embed=nn.Linear(3, 8),
        attention=nn.MultiheadAttention(8, 2, bias=False, batch_first=True),
        last=nn.Linear(8, 2),
    )
    assert "MultiheadAttention" in followed(bare, 5, 3).fixed_because["attention.in_proj_weight"]


def test_tied_embeddings_recurrent_layers_and_unused_tensors():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.inner, self.unused = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(3, 3)
            self.memory = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x):
            h = self.inner(self.inner(self.words(x)))  # (n, tokens, 4)
            return F.linear(h, self.words.weight), self.memory(h.detach() * 0)[0]

    network, x = Words(), torch.tensor([[1, 5, 2]])
    spec = symmetry.specification(network, x)
    assert symmetry.verify(network, spec, x) < 1e-9
    assert "LSTM" in spec.fixed_because["memory.weight_ih_l0"]
    assert spec.fixed_because["unused.weight"] == "the network does not use it"

"""Tokens hold every learned weight once, and give it back bit for bit."""

import numpy as np
import pytest
import torch
from torch import nn

from wsnotebook import networks
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods.tokens import standardise, tokens
from wsnotebook.zoo.value import Zoo


class Unusual(nn.Module):
    """Tensors that no list of layers has: bare tables, a scalar, a weight without a bias, a bias without a weight."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.table = nn.Parameter(torch.randn(1, 5, 7))
        self.shift_bias = nn.Parameter(torch.randn(3))
        self.attention = nn.MultiheadAttention(4, 2)
        self.up = nn.ConvTranspose1d(3, 7, 2)
        self.free = nn.Linear(6, 5, bias=False)
        self.norm = nn.BatchNorm1d(9)
        self.one = nn.Conv2d(2, 1, 3)


def layout_of(name):
    return Layout.of(Unusual() if name == "unusual" else networks.build(name), exclude=COUNTERS)


def random_rows(layout, n=3, seed=0):
    return torch.randn(n, layout.d, generator=torch.Generator().manual_seed(seed))


NAMES = ("mlp-6-4-3", "cnn-small", "cnn-tiny", "resnet-8", "vit-tiny", "unusual")
OPTIONS = ({}, {"width": 10}, {"width": 1}, {"width": 500}, {"pack": 8}, {"pack": 3, "width": 30})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("statistics", [False, True])
def test_tokens_give_the_weights_back_bit_for_bit(name, options, statistics):
    layout = layout_of(name)
    of, weights, rest = tokens(layout, **options, statistics=statistics), random_rows(layout), torch.zeros(layout.d)
    dense = of.encode(weights)
    assert dense.shape == (3, len(of), of.width)
    there = layout.learned() if not statistics else torch.ones(layout.d, dtype=torch.bool)
    assert torch.equal(of.decode(dense, rest), weights * there)
    assert torch.equal(of.weights(of.entries(weights), rest), weights * there)
    assert sorted(of.places.tolist()) == there.nonzero().flatten().tolist()  # each one once
    assert (dense[:, ~of.mask] == 0).all()
    assert int(of.mask.sum()) == len(of.places)


def test_a_row_is_an_outputs_weights_and_its_bias():
    network = networks.build("cnn-small")
    layout = layout_of("cnn-small")
    of = tokens(layout)
    dense = of.encode(layout.flatten(network.state_dict())[None])[0]
    assert repr(of) == "Tokens(48 x 201, 5 layers, 25.5 % real)"
    at = 0
    for layer, module in enumerate([network.conv1, network.conv2, network.conv3, network.fc1, network.fc2]):
        for row, (weight, bias) in enumerate(zip(module.weight, module.bias, strict=True)):
            real = torch.cat([weight.flatten(), bias[None]])
            assert torch.equal(dense[at, : len(real)], real)
            assert (dense[at, len(real) :] == 0).all()
            assert of.positions[at].tolist() == [at, layer, row]
            at += 1
    assert at == len(of)


def test_parts_of_a_row_follow_each_other():
    layout = layout_of("cnn-small")
    whole, split = tokens(layout), tokens(layout, width=64)
    weights = random_rows(layout)
    wide, parts = whole.encode(weights), split.encode(weights)
    conv2 = split.positions[:, 1] == 1
    assert split.positions[conv2, 2].tolist() == [row for row in range(6) for _ in range(4)]
    rows = parts[:, conv2].reshape(3, 6, 256)
    assert torch.equal(rows[:, :, :201], wide[:, 8:14])
    assert torch.equal(split.positions[:, 0], torch.arange(len(split)))


def test_packed_tokens_are_whole_rows_one_behind_the_other():
    layout = layout_of("cnn-small")
    one, packed = tokens(layout), tokens(layout, pack=8)
    weights = random_rows(layout)
    assert [len(block.tokens) for block in packed.blocks] == [2, 6, 1, 4, 2]  # of 8, 6, 4, 20, 10 rows
    assert [block.rows for block in tokens(layout, pack=2).blocks] == [2, 1, 2, 2, 2]
    assert torch.equal(packed.rows, one.rows)
    assert torch.equal(packed.rows[packed.first_row], packed.positions[:, 1:])
    for block, alone in zip(packed.blocks, one.blocks, strict=True):
        assert torch.equal(block.of(packed.entries(weights)), alone.of(one.entries(weights)))
    fc1 = packed.encode(weights)[:, 9:13, : 5 * 37].reshape(3, 20, 37)
    assert torch.equal(fc1, one.encode(weights)[:, 18:38, :37])
    assert packed.positions[9:13, 2].tolist() == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("name", "width"), [("resnet-8", 64 * 9), ("mlp-6-4-3", 7), ("vit-tiny", 129), ("cnn-tiny", 25)]
)
def test_the_width_is_the_widest_rows(name, width):
    assert tokens(layout_of(name)).width == width


def test_norms_and_tables_have_rows_of_their_own():
    of = tokens(layout_of("vit-tiny"))
    sizes = {name: [len(b.tokens) for b in of.blocks if of.layers[b.layer] == name] for name in of.layers}
    assert sizes["token"] == [1]
    assert sizes["position"] == [17]
    assert sizes["blocks.0.norm1.weight"] == sizes["blocks.0.norm1.bias"] == [1]
    assert sizes["blocks.0.attention.qkv.weight"] == [96]
    unusual = tokens(layout_of("unusual"))
    columns = {unusual.layers[block.layer]: block.columns for block in unusual.blocks}
    assert columns["attention.in_proj_weight"] == 5
    assert columns["up.bias"] == 7  # of the outputs, whereas the weight's rows are inputs
    assert "attention.in_proj_bias" not in columns


@pytest.mark.parametrize("options", [{}, {"width": 10}, {"pack": 4}])
def test_a_window_is_that_stretch_of_the_dense_tokens(options):
    layout = layout_of("cnn-tiny")
    of, weights = tokens(layout, **options), random_rows(layout)
    dense, entries, seen = of.encode(weights), of.entries(weights), []
    for start in range(0, len(of), 5):
        stop = min(start + 5, len(of))
        window = of.window(start, stop)
        rebuilt = torch.zeros(3, stop - start, of.width)
        column = of.slots[window.entries] % of.width
        rebuilt[:, window.token, column] = entries[:, window.entries]
        assert torch.equal(rebuilt, dense[:, start:stop])
        at = window.token[column == 0] + start  # block by block
        assert torch.equal(window.positions, of.positions[at])
        assert sorted(at.tolist()) == list(range(start, stop))
        assert torch.equal(window.token, (at - start).repeat_interleave(of.mask[at].sum(1)))
        assert sum(part.tokens * part.columns for part in window.parts) == len(window.entries)
        assert sum(part.tokens * part.rows for part in window.parts) == len(window.rows)
        of_token = torch.searchsorted(of.first_row, window.rows, right=True) - 1
        assert torch.equal(of_token.unique_consecutive(), at)
        assert torch.equal(of.within(window.rows, range(start + 1, stop)), of_token > start)
        seen += window.entries.tolist()
    assert sorted(seen) == list(range(len(of.places)))


def made(name, n=6):
    layout = layout_of(name)
    rows = random_rows(layout, n) * (1 + layout.tensor_index()) + layout.tensor_index()
    return Zoo(rows, layout, {"model": np.arange(n) + 10}, name, {})


@pytest.mark.parametrize("options", OPTIONS)
def test_every_layer_has_mean_0_and_deviation_1(options):
    zoo = made("resnet-8")
    of = tokens(zoo.layout, **options)
    standardised = standardise(zoo, of)
    entries = standardised.encode(zoo.weights)
    for layer in range(len(of.layers)):
        x = torch.cat([block.of(entries).flatten() for block in of.blocks if block.layer == layer]).double()
        assert float(x.mean()) == pytest.approx(0, abs=1e-5)
        assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    back = standardised.decode(entries)
    learned = zoo.layout.learned()
    torch.testing.assert_close(back[:, learned], zoo.weights[:, learned])
    torch.testing.assert_close(back[:, ~learned], zoo.weights.mean(0)[~learned].expand(6, -1))


def test_a_constant_layer_keeps_its_scale():
    zoo = made("mlp-6-4-3")
    zoo.layout.unflatten(zoo.weights)["fc1.weight"].fill_(3.0)
    zoo.layout.unflatten(zoo.weights)["fc1.bias"].fill_(3.0)
    standardised = standardise(zoo, tokens(zoo.layout))
    entries = standardised.encode(zoo.weights)
    assert entries.isfinite().all()
    torch.testing.assert_close(standardised.decode(entries), zoo.weights)


def test_decoded_networks_know_where_they_come_from():
    zoo = made("mlp-6-4-3")
    kinds = np.array(["relu", "tanh"] * 3)
    mixed = zoo.derived(zoo.weights, activation=kinds, test_accuracy=np.full(6, 99.0))
    standardised = standardise(mixed, tokens(zoo.layout))
    entries = standardised.encode(zoo.weights)
    born = standardised.zoo(entries, mixed)
    assert born.facts["parent"].tolist() == zoo.facts["model"].tolist()
    assert (born.facts["activation"] == kinds).all()
    assert set(born.facts) == {"model", "parent", "activation"}  # no accuracy: nobody measured theirs
    with pytest.raises(ValueError, match="activations relu, tanh"):
        standardised.zoo(entries)
    assert (standardise(zoo, tokens(zoo.layout)).zoo(entries[:2]).facts["parent"] == -1).all()
    with pytest.raises(ValueError, match="like: 6 networks for 2 decoded ones"):
        standardised.zoo(entries[:2], mixed)


def test_what_cannot_be_tokenised():
    layout = layout_of("mlp-6-4-3")
    for width in (0, -3):
        with pytest.raises(ValueError, match=f"width={width}, pack=1: expected at least 1"):
            tokens(layout, width)
    with pytest.raises(ValueError, match="pack=0: expected at least 1"):
        tokens(layout, pack=0)
    with pytest.raises(ValueError, match=r"weights: shape \(3, 7\), these tokens are of \(n, 43\)"):
        tokens(layout).encode(torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"weights: shape \(3, 7\)"):
        tokens(layout).entries(torch.zeros(3, 7))
    statistics = Layout.of(networks.build("resnet-8"), kinds=("statistic",), exclude=COUNTERS)
    with pytest.raises(ValueError, match="running statistics alone; pass statistics=True"):
        tokens(statistics)
    with pytest.raises(ValueError, match="no networks"):
        standardise(made("mlp-6-4-3").filter([]), tokens(layout))

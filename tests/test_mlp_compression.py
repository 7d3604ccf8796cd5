"""Compression of perceptrons: cutting and joining change nothing, budgets are kept, and test inputs choose nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from torch import nn

from wsnotebook import networks, zoo
from wsnotebook.methods import latent_search, mlp_blocks, mlp_fitting, mlp_teachers, swat_nn
from wsnotebook.methods import mlp_compression as mc
from wsnotebook.networks import MixedMLP

FIT = mlp_fitting.Config(steps=30, batch=64, lr=0.03, check_every=15)
SEARCH = latent_search.Config(
    depths=(1, 2), restarts=2, penalties=(1e-3,), candidates=64, steps=32, batch=64, tuned=2, budgets=(), training=FIT
)
SMALL = mc.Config(handed=2, width=4, search=SEARCH, kept=1, training=FIT, tuning=FIT)
BUDGETS = (30, 15)


def drawn(*sizes, activation="tanh", bias=True, seed=0, dtype=torch.float32):
    """A Sequential with weights large enough to bend."""
    g, layers = torch.Generator().manual_seed(seed), []
    for before, here in pairwise(sizes):
        layer = nn.Linear(before, here, bias=bias)
        for tensor in layer.parameters():
            tensor.data = torch.randn(tensor.shape, generator=g) * (1.5 / before**0.5 if tensor.ndim == 2 else 0.5)
        layers += [layer, networks.ACTIVATIONS.get(activation, nn.LeakyReLU)()]
    return nn.Sequential(*layers[:-1]).to(dtype).eval()


def inputs(columns=2, m=(160, 80, 80), seed=1):
    g = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.rand(k, columns, generator=g) - 1 for k in m)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parts, b.parts, strict=True))


@pytest.fixture(scope="module")
def teacher():
    return drawn(2, 6, 6, 6, 6, 1)


@pytest.fixture(scope="module")
def x():
    return inputs()


@pytest.fixture(scope="module")
def split(teacher, x):
    return mc.compress(teacher, x, BUDGETS, config=SMALL)


# ---- blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [None, (), (1,), (3,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_network_that_is_cut_and_joined_is_itself(cuts, bias):
    network, x = drawn(3, 5, 4, 6, 3, 2, activation="leaky_relu", bias=bias, dtype=torch.float64), inputs(3)[0].double()
    blocks = mlp_blocks.split(network, cuts)
    assert len(blocks) == (2 if cuts is None else len(cuts) + 1)
    assert sum(block.hidden for block in blocks) == 4
    h = x
    for block in blocks:
        h = block(h)
    torch.testing.assert_close(h, network(x), rtol=1e-12, atol=1e-12)
    joined, whole = mlp_blocks.join(blocks).state_dict(), mlp_blocks.plain(network).state_dict()
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


def test_blocks_hand_on_the_outputs_of_their_last_hidden_layer():
    network, x = drawn(2, 5, 4, 3, 1, dtype=torch.float64), inputs()[0].double()
    first, _ = mlp_blocks.split(network, (2,))
    torch.testing.assert_close(first(x), network[:4](x), rtol=1e-12, atol=1e-12)


def test_networks_that_read_less_are_joined_too():
    torch.manual_seed(0)
    blocks = [MixedMLP(2, 4, 3).double(), MixedMLP(3, 5, 2, 2).double()]
    x = inputs()[0].double()
    torch.testing.assert_close(mlp_blocks.join(blocks)(x), blocks[1](blocks[0](x)), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="block 2 reads 3 numbers, the one before it hands on 2"):
        mlp_blocks.join([MixedMLP(2, 4, 2), MixedMLP(3, 5, 1)])


def test_a_square_error_in_all_coordinates_is_that_of_a_linear_rest():
    g = torch.Generator().manual_seed(2)
    h, weight = torch.randn(400, 6, generator=g), torch.randn(6, 6, generator=g)
    moved = h + 0.1 * torch.randn(400, 6, generator=g)
    coordinates = mlp_blocks.Coordinates(h, lambda h: h @ weight.T, 6)
    ours = (coordinates(moved) - coordinates(h)).square().sum()
    # up to the unit, and to the thousandth that every direction has in addition
    theirs = ((moved - h) @ weight.T).square().sum() + 1e-3 * weight.square().sum() / 6 * (moved - h).square().sum()
    variance = coordinates(h).var(0, correction=0)
    assert variance[0] == pytest.approx(1, rel=1e-4)
    total = (h @ weight.T).var(0, correction=0).sum() + 1e-3 * weight.square().sum() / 6 * h.var(0, correction=0).sum()
    assert ours / variance.sum() == pytest.approx(float(theirs / total), rel=1e-3)


def test_coordinates_are_those_that_the_outputs_depend_on():
    h = torch.randn(300, 5, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 1.0, 1.0, 9.0, 0.0])
    read = torch.tensor([2.0, -1.0, 0.0, 0.0, 5.0])
    (found,) = mlp_blocks.Coordinates(h, lambda h: (h @ read)[:, None], 1)(h).T
    assert torch.corrcoef(torch.stack([found, h @ read]))[0, 1].abs() > 0.99
    assert mlp_blocks.Coordinates(h, lambda h: h, 5).map.shape == (5, 4), "what does not vary is left out"


# ---- compression -------------------------------------------------------------------------------------------------


def test_budgets_are_kept_and_the_numbers_are_of_the_networks(teacher, x, split):
    for row, budget in zip(split.rows(BUDGETS), BUDGETS, strict=True):
        i = row["network"]
        module, y = split.network(i), teacher(x[2]).detach()
        error = (module(x[2]) - y).square().mean() / y.var(0, correction=0).mean()
        count = sum(int(tensor.count_nonzero()) for tensor in module.parameters())
        assert row["budget"] == budget
        assert count == row["non_zeros"] <= budget
        assert row["test"] == pytest.approx(float(error.detach()), rel=1e-3)
        able = split.non_zeros <= budget
        assert split.validation[i] == split.validation[able].min()
    with pytest.raises(ValueError, match="budget=0"):
        split.within(0)


def test_an_error_allowance_gives_the_smallest_network(split):
    allowed = float(split.validation.median())
    i = split.smallest(allowed)
    assert split.validation[i] <= allowed
    assert split.non_zeros[i] == split.non_zeros[split.validation <= allowed].min()
    with pytest.raises(ValueError, match="fvu=0: no network is so accurate on validation inputs; the best has"):
        split.smallest(0)


def test_networks_predict_the_same_bits_after_a_file(x, split, tmp_path):
    found = split.network(split.within(BUDGETS[0]))
    path = tmp_path / "compressed.safetensors"
    safetensors.torch.save_file(found.state_dict(), path)
    sizes = [found.fc1.in_features, *(len(b) for n, b in found.state_dict().items() if n.endswith("bias"))]
    again = networks.build("mixed-" + "-".join(map(str, sizes)))
    again.load_state_dict(safetensors.torch.load_file(path))
    assert torch.equal(again(x[2]), found(x[2]))


def test_every_way_repeats_itself_and_test_inputs_choose_nothing(teacher, x, split):
    other = *x[:2], x[2] * 0.5
    ways = [
        (BUDGETS, lambda x: mc.compress(teacher, x, BUDGETS, config=SMALL)),
        (BUDGETS, lambda x: mc.students(teacher, x, BUDGETS, (1, 2), restarts=2, training=FIT)),
        ((100,), lambda x: mc.pruned_teacher(teacher, x, (100,), FIT)),
    ]
    for budgets, way in ways:
        first = split if way is ways[0][1] else way(x)
        again = way(other)
        assert same(again, first)
        assert torch.equal(again.validation, first.validation)
        assert not torch.equal(again.test, first.test)
        assert [row["network"] for row in again.rows(budgets)] == [row["network"] for row in first.rows(budgets)]


def test_blocks_that_see_the_errors_before_them_fit_better():
    network, x = drawn(2, 8, 8, 8, 8, 1, seed=5), inputs()
    config = replace(SMALL, handed=1, search=replace(SEARCH, steps=60, depths=(1,)))
    corrected, blind = (mc.compress(network, x, (40,), config=replace(config, corrected=c)) for c in (True, False))
    joined = [float(found.validation[found.stage == 0].min()) for found in (corrected, blind)]
    assert joined[0] <= joined[1]


def test_training_pruning_and_scale(teacher, x, split):
    best = [float(split.validation[split.stage == stage].min()) for stage in (0, 1)]
    assert best[1] <= best[0]
    largest = [int(split.non_zeros[split.stage == stage].max()) for stage in range(1, int(split.stage.max()) + 1)]
    assert largest == sorted(largest, reverse=True)
    assert all(after >= before * 4 // 5 - SMALL.width for before, after in pairwise(largest)), "a fifth, and a unit"
    louder = mlp_blocks.plain(teacher)
    louder.fc5.weight.data *= 1024
    louder.fc5.bias.data *= 1024
    before = {name: tensor.clone() for name, tensor in louder.state_dict().items()}
    loud = mc.pruned_teacher(louder, x, (100,), FIT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in louder.state_dict().items()), "not touched"
    torch.testing.assert_close(loud.test, mc.pruned_teacher(teacher, x, (100,), FIT).test)


def test_the_latents_of_a_trained_autoencoder_are_searched(teacher, x):
    seen = []
    arm = mc.trained(swat_nn.Config(z=16, dim=16, heads=2, blocks=1, points=16, batch=16, iterations=4))

    def noted(form):
        seen.append(arm(form))
        return seen[-1]

    found = mc.compress(
        teacher, x, BUDGETS, noted, replace(SMALL, cuts=(1, 3), search=replace(SEARCH, steps=10, depths=(2,)))
    )
    assert [(space.name, space.form.inputs, space.form.outputs) for space in seen] == [
        ("latent", 2, 2),
        ("latent", 2, 2),
        ("latent", 2, 1),
    ]
    assert found.parts.depth.unique().tolist() == [6]
    assert found.validation[found.stage == 1].isfinite().all()


def test_own_checkpoints_and_several_outputs(x, tmp_path):
    network = networks.build("mlp-2-6-6-3", activation="tanh")
    torch.save(network.state_dict(), tmp_path / "own.pt")
    read = zoo.from_checkpoints([tmp_path / "own.pt"], "mlp-2-6-6-3", activation="tanh").module(0)
    first, second = (mc.compress(module, x, (40,), config=replace(SMALL, cuts=())) for module in (network, read))
    assert same(first, second)
    assert first.form.outputs == 3


# ---- controls and teachers ---------------------------------------------------------------------------------------


def test_students_are_dense_and_the_widest_that_fit(teacher, x):
    control = mc.students(teacher, x, (21, 70), depths=(1, 2), restarts=2, training=FIT)
    drawn = control.non_zeros[control.stage == 0].view(2, 2, 4)  # budgets, depths, activations x restarts
    for budget, of_depths in zip((21, 70), drawn.tolist(), strict=True):
        for depth, counts in enumerate(of_depths, start=1):
            sizes = {w: sum(a * b + b for a, b in pairwise([2, *[w] * depth, 1])) for w in range(1, 40)}
            assert set(counts) == {max(size for size in sizes.values() if size <= budget)}
    with pytest.raises(ValueError, match="budgets: 3 has no room"):
        mc.students(teacher, x, (70, 3))


def test_a_pruned_teacher_starts_as_itself(teacher, x):
    control = mc.pruned_teacher(teacher, x, (60,), FIT)
    assert control.validation[0] == pytest.approx(0, abs=1e-9)
    assert control.non_zeros[-1] <= 60 < control.non_zeros[0]


def test_the_published_teacher_has_413_weights_and_no_biases(monkeypatch):
    monkeypatch.setattr(mlp_fitting, "fit", lambda form, parts, train, validation, _: mlp_fitting.Fitted(
        parts, mlp_fitting.errors(form, parts, train), mlp_fitting.errors(form, parts, validation)
    ))  # fmt: skip
    network, error = mlp_teachers.deep_teacher()
    assert sum(p.numel() for name, p in network.named_parameters() if name.endswith("weight")) == 413
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    assert error > 0
    network, _ = mlp_teachers.wide_teacher("ridge")
    assert sum(p.numel() for p in network.parameters()) == 2241


# ---- what is refused ---------------------------------------------------------------------------------------------


def with_nan():
    network = drawn(2, 4, 4, 1)
    network[2].weight.data[0, 0] = torch.nan
    return network


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(1, 2, 3), "Conv2d with 0 linear layers, expected a perceptron"),
        (nn.Linear(2, 1), "Linear with 1 linear layers"),
        (Own(), "Own, expected nn.Sequential or MixedMLP"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), "layer '1': BatchNorm1d"),
        (nn.Sequential(nn.Linear(2, 9000), nn.Tanh(), nn.Linear(9000, 1)), "too wide"),
        (with_nan(), "'2.weight' has 1 entries that are NaN"),
    ],
)
def test_what_is_no_perceptron_is_named(network, message, x):
    with pytest.raises(ValueError, match=message):
        mc.compress(network, x, BUDGETS, config=SMALL)


@pytest.mark.parametrize("cuts", [(0,), (4,), (2, 1), (2, 2), (-1,)])
def test_cuts_that_are_not_there_are_named(cuts, teacher, x):
    with pytest.raises(ValueError, match=r"cuts=\(.*expected rising numbers from 1 to 3 for a network of 4 hidden"):
        mc.compress(teacher, x, BUDGETS, config=replace(SMALL, cuts=cuts))


def test_other_misfits_are_named(teacher, x):
    with pytest.raises(ValueError, match=r"x, validation: shape \(80, 3\), expected \(m, 2\)"):
        mc.compress(teacher, (x[0], inputs(3)[1], x[2]), BUDGETS, config=SMALL)
    with pytest.raises(ValueError, match="constant on the training inputs"):
        mc.students(drawn(2, 4, 1), (torch.zeros(9, 2), *x[1:]), BUDGETS)
    for way in (mc.compress, mc.students, mc.pruned_teacher):
        for budgets in ((), (20, 0)):
            with pytest.raises(ValueError, match="budgets=.*each at least 1"):
                way(teacher, x, budgets)
    with pytest.raises(ValueError, match="block 1: too wide: 128 matrices of 3000"):
        mc.compress(drawn(3000, 4, 4, 1), inputs(3000), BUDGETS, config=SMALL)
    with pytest.raises(ValueError, match="handed=0"):
        mc.Config(handed=0)
    with pytest.raises(ValueError, match="tuned=0"):
        mc.Config(search=replace(SEARCH, tuned=0))

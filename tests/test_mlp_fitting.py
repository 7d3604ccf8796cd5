"""Perceptrons trained at once learn what each would alone; controls and fronts are what a plain search finds."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsnotebook import cornn, networks
from wsnotebook.methods import mlp_fitting as mf
from wsnotebook.methods import mlp_matrix as mm
from wsnotebook.methods.mlp_fitting import Config
from wsnotebook.methods.mlp_matrix import Form, Parts

FORMS = (Form(), Form(3, 2, 5, 3, tuple(networks.UNITS)), Form(1, 4, 6, 1, ("tanh",)))


def drawn(form, n=12, seed=0, dtype=torch.float64):
    """Plain networks of all depths with units that are off and weights that are 0."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.arange(n) % form.depth + 1
    shapes = [part.shape for part in mm.used(form, depth)[:4]]
    weights, biases, activations, masks = (torch.randn(shape, generator=g, dtype=dtype) for shape in shapes)
    weights = weights * (torch.rand(shapes[0], generator=g) < 0.8)
    return mm.hardened(form, Parts(weights, biases, activations, (masks > -0.8).to(dtype), depth))


def rows(form, n, m, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, form.inputs, generator=g, dtype=dtype), torch.randn(m, n, form.outputs, generator=g).to(dtype)


def classes(form, n, m, seed=0):
    x, _ = rows(form, n, m, seed)
    return x, torch.randint(form.outputs, (m, n), generator=torch.Generator().manual_seed(seed))


def assert_same(a, b):
    for name, p, q in zip(Parts._fields, a, b, strict=True):
        torch.testing.assert_close(p, q, msg=lambda text, name=name: f"{name}: {text}")


def alone(form, parts, i, train, validation, config):
    """Network i, trained by PyTorch's Adam on full batches: its weights, biases and lowest validation error."""
    one = parts.take(slice(i, i + 1))
    learned = [nn.Parameter(part.clone()) for part in one[:2]]
    zero = [part == 0 for part in one[:2]]
    optimiser = torch.optim.Adam(learned, config.lr)

    def error(data):
        outputs = mm.evaluate(form, one._replace(weights=learned[0], biases=learned[1]), data[0])[0]
        y = data[1][:, i]
        return F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)

    best = math.inf, None
    for step in range(config.steps + 1):
        if step % config.check_every == 0 or step == config.steps:
            value = error(validation).item()
            best = min(best, (value, [p.detach().clone() for p in learned]), key=lambda pair: pair[0])
        optimiser.param_groups[0]["lr"] = config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2
        optimiser.zero_grad()
        error(train).backward()
        for p, at in zip(learned, zero, strict=True):
            p.grad[at] = 0
        optimiser.step()
    return *best[1], best[0]


# ---- fitting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [rows, classes])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_all_at_once_is_pytorchs_adam_on_each_alone(form, make):
    if make is classes and form.outputs == 1:
        form = Form(2, 3)
    parts = drawn(form, 9)
    train, validation = make(form, 9, 40), make(form, 9, 20, seed=1)
    config = Config(steps=16, batch=40, lr=0.05, check_every=5)
    fitted = mf.fit(form, parts, train, validation, config)
    for i in range(9):
        weights, biases, lowest = alone(form, parts, i, train, validation, config)
        torch.testing.assert_close(fitted.parts.weights[i], weights[0])
        torch.testing.assert_close(fitted.parts.biases[i], biases[0])
        assert fitted.validation[i].item() == pytest.approx(lowest, rel=1e-9)
    assert (fitted.validation < mf.errors(form, parts, validation)).any(), "some network learned"
    torch.testing.assert_close(fitted.train, mf.errors(form, fitted.parts, train))


@pytest.mark.parametrize("name", networks.UNITS)
def test_every_activation_and_its_slope_are_those_of_the_units(name):
    z = torch.linspace(-4, 4, 201, dtype=torch.float64).view(3, 67).requires_grad_()
    value = networks.UNITS[name](z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    place, h = z.detach().clone(), torch.empty(3, 67, dtype=torch.float64)
    mf.ACTIVATE[name](place, h)
    at = z != 0 if name in ("relu", "leaky_relu") else torch.ones_like(z, dtype=torch.bool)
    torch.testing.assert_close(h, value.detach())
    torch.testing.assert_close(place[at], slope[at])


def test_zeros_masks_activations_and_depths_stay():
    form = Form()
    parts = drawn(form, 40, dtype=torch.float32)
    before = [part.clone() for part in parts]
    data = rows(form, 40, 300, dtype=torch.float32)
    fitted = mf.fit(form, parts, data, data, Config(steps=40)).parts
    for name, old, new, given in zip(Parts._fields, before, fitted, parts, strict=True):
        assert torch.equal(old, given), f"{name} of what was given has changed"
        assert torch.equal(old == 0, new == 0), name
    for old, new in zip(before[2:], fitted[2:], strict=True):
        assert torch.equal(old, new)
    assert (fitted.weights != parts.weights).any()


def test_the_company_a_network_is_in_does_not_change_it(monkeypatch):
    monkeypatch.setattr(mf, "LANES", 5)
    form = Form()
    parts, (x, y), (x_validation, y_validation) = drawn(form, 30), rows(form, 30, 100), rows(form, 30, 50, 1)
    config = Config(steps=30, batch=32, check_every=7)
    together = mf.fit(form, parts, (x, y), (x_validation, y_validation), config)
    for chosen in (slice(4, 5), torch.tensor([20, 3, 11])):
        few = mf.fit(form, parts.take(chosen), (x, y[:, chosen]), (x_validation, y_validation[:, chosen]), config)
        assert_same(few.parts, together.parts.take(chosen))
        torch.testing.assert_close(few.validation, together.validation[chosen])


def test_a_start_that_validates_best_is_kept():
    form, parts = Form(), drawn(Form())
    x = torch.randn(60, 2, dtype=torch.float64)
    y = mm.evaluate(form, parts, x).transpose(0, 1)  # what they compute already
    fitted = mf.fit(form, parts, (x, y + 3), (x, y), Config(steps=50, check_every=5))
    assert_same(fitted.parts, parts)
    assert fitted.validation.max() < 1e-20
    torch.testing.assert_close(fitted.train, torch.full((12,), 9.0, dtype=torch.float64))


def test_networks_that_are_lost_do_not_take_others_along():
    form = Form()
    parts, data = drawn(form), rows(form, 12, 50)
    config = Config(steps=20, check_every=5)
    well = mf.fit(form, parts, data, data, config)
    y = data[1].clone()
    y[:, 3] = torch.nan
    ill = mf.fit(form, parts, (data[0], y), data, config)
    others = torch.arange(12) != 3
    assert_same(ill.parts.take(others), well.parts.take(others))
    assert ill.parts.weights.isfinite().all()


def test_training_lowers_the_error_of_every_network_that_can_learn():
    table = cornn.table(["sphere", "ridge"])
    form = Form(activations=("tanh",), depth=1)
    control = mf.dense(form, [(3,), (7,)], "tanh", table, Config(steps=300), restarts=2)
    assert (control.test < cornn.controls(table)["affine"][:, None]).all()


# ---- controls ----------------------------------------------------------------------------------------------------


def test_dense_controls_have_no_zeros_and_the_errors_of_their_networks():
    table = cornn.table(["ackley", "adjiman", "leon"])
    form = Form()
    shapes = [(2,), (6,), (3, 4), (2, 2, 2, 2)]
    control = mf.dense(form, shapes, "tanh", table, Config(steps=60), restarts=2)
    sizes = [4 * 2 + 1, 4 * 6 + 1, 9 + 16 + 5, 6 + 6 + 6 + 6 + 3]
    assert control.non_zeros.tolist() == [sizes] * 3
    for f, name in enumerate(table.names):
        x, y = cornn.table([name]).test
        for s, shape in enumerate(shapes):
            i = f * len(shapes) + s
            module = mm.network(form, control.parts, i)
            assert mm.units(control.parts)[i].tolist() == [*shape, *[0] * (4 - len(shape))]
            assert F.mse_loss(module(x), y).item() == pytest.approx(control.test[f, s].item(), rel=1e-4)


def test_of_restarts_the_one_of_lowest_validation_error_is_taken():
    table, form, config = cornn.table(["bird", "ridge"]), Form(width=4, depth=1), Config(steps=40)
    seen = []
    fit = mf.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mf, "fit", lambda *args: seen.append(fit(*args)) or seen[-1])
        dense = mf.dense(form, [(2,), (4,)], "tanh", table, config, restarts=3)
        pruned = mf.pruned(form, [(2,), (4,)], "tanh", table, [6, 11], config, config, restarts=3)
    assert torch.equal(dense.validation, seen[0].validation.view(2, 2, 3).amin(2))
    at_11, at_6 = (seen[i].validation.view(2, 2, 3).amin(2) for i in (2, 4))  # 17 at the start, then 11, 7 and 6
    assert torch.equal(pruned.validation, torch.cat([at_11, at_6], 1))
    shuffled = cornn.Table(table.names, table.train, table.validation, (table.test[0].flip(0), table.test[1]))
    again = mf.dense(form, [(2,), (4,)], "tanh", shuffled, config, restarts=3)
    assert_same(again.parts, dense.parts)
    assert not torch.equal(again.test, dense.test)


def test_pruning_keeps_the_largest_that_the_count_has_room_for():
    form = Form(2, 2, 4, 3, ("tanh", "relu"))
    parts = drawn(form, 7)
    numbers = torch.cat([parts.weights.flatten(1), parts.biases.flatten(1)], 1)
    for count in (0, 5, 17, 1_000):
        pruned = mf.keep_largest(form, parts, count)
        found = mm.non_zeros(form, pruned)
        for i in range(7):
            best = None
            for cut in [*numbers[i].abs().unique().tolist(), math.inf]:  # from nothing pruned on
                one = parts.take(slice(i, i + 1))
                kept = (part * (part.abs() >= cut) for part in one[:2])
                best = mm.hardened(form, Parts(*kept, *one[2:]))
                if int(mm.non_zeros(form, best)) <= count:
                    break
            assert_same(pruned.take(slice(i, i + 1)), best)
    assert torch.equal(found, mm.non_zeros(form, parts))


def test_pruned_controls_hold_their_budgets():
    table, form, counts = cornn.table(["sphere", "beale"]), Form(width=6, depth=2), (9, 30, 18)
    control = mf.pruned(form, [(6,), (5, 5)], "tanh", table, counts, Config(steps=80), Config(steps=40), restarts=2)
    assert control.non_zeros.shape == control.test.shape == (2, 6)
    budgets = torch.tensor([30, 30, 18, 18, 9, 9])
    assert (control.non_zeros <= budgets).all()
    assert (control.non_zeros >= budgets - 8).all(), "a unit is gone at most"
    assert (mm.non_zeros(form, control.parts).view(2, 6) == control.non_zeros).all()


# ---- fronts ------------------------------------------------------------------------------------------------------


def test_fronts_and_budgets_by_brute_force():
    g = np.random.default_rng(0)
    for n in (1, 2, 9, 40):
        sizes, found = torch.from_numpy(g.integers(1, 12, (5, n))), torch.from_numpy(g.integers(0, 9, (5, n)) / 4)
        found[g.random((5, n)) < 0.1] = torch.nan
        found[:, 0] = 1.0
        on = mf.front(sizes, found)
        for r in range(5):
            pairs = [(s, e) for s, e in zip(sizes[r].tolist(), found[r].tolist(), strict=True)]
            for i, (s, e) in enumerate(pairs):
                beaten = any(a <= s and b <= e and ((a, b) != (s, e) or j < i) for j, (a, b) in enumerate(pairs))
                assert on[r, i] == (not beaten and not math.isnan(e))
        for budget in (int(sizes[:, 0].max()), 11):
            for r, i in enumerate(mf.best_at(sizes, found, budget).tolist()):
                able = [
                    (e, s, j)
                    for j, (s, e) in enumerate(zip(sizes[r].tolist(), found[r].tolist(), strict=True))
                    if s <= budget and not math.isnan(e)
                ]
                assert i == min(able)[2]


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    form, parts, data = Form(), drawn(Form()), rows(Form(), 12, 20)
    with pytest.raises(ValueError, match=r"validation: y of shape \(20, 11, 1\).*expected \(20, 12, 1\)"):
        mf.fit(form, parts, data, (data[0], data[1][:, 1:]), Config())
    with pytest.raises(ValueError, match=r"train: y of shape \(20, 12, 1\) and type torch.int64"):
        mf.fit(form, parts, (data[0], data[1].long()), data, Config())
    with pytest.raises(ValueError, match="hardened"):
        mf.fit(form, parts._replace(masks=parts.masks / 2), data, data, Config())
    with pytest.raises(ValueError, match="steps=-1"):
        Config(steps=-1)
    table = cornn.table(["ridge"])
    with pytest.raises(ValueError, match="activation='relu'"):
        mf.dense(form, [(3,)], "relu", table, Config())
    for shape in ((), (8,), (3, 0), (3, 3, 3, 3, 3)):
        with pytest.raises(ValueError, match="expected the units of 1 to 4 hidden layers"):
            mf.dense(form, [shape], "tanh", table, Config())
    with pytest.raises(ValueError, match="budget=3: .* the smallest has 5"):
        mf.best_at(torch.tensor([[5, 9], [2, 9]]), torch.ones(2, 2), 3)

"""Perceptrons trained at once learn what each would alone; controls and fronts are what a plain search finds."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsnotebook import cornn, networks
from wsnotebook.methods import mlp_arms, mlp_controls, mlp_modules, mlp_pruning
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_company_a_network_is_in_does_not_change_it(monkeypatch, dtype):
    if mf.kernel:
        monkeypatch.setattr(mf.kernel, "HANDFUL", 7)
    form = Form(activations=tuple(networks.UNITS))
    parts, (x, y), (x_validation, y_validation) = (
        drawn(form, 30, dtype=dtype),
        rows(form, 30, 200, dtype=dtype),
        rows(form, 30, 150, 1, dtype),
    )
    config = Config(steps=30, batch=140, lr=0.02, check_every=7)
    together = mf.fit(form, parts, (x, y), (x_validation, y_validation), config)
    same = torch.equal if mf.kernel and dtype == torch.float32 else torch.allclose
    for chosen in (slice(4, 5), torch.tensor([20, 3, 11])):
        few = mf.fit(form, parts.take(chosen), (x, y[:, chosen]), (x_validation, y_validation[:, chosen]), config)
        assert all(map(same, few.parts, together.parts.take(chosen)))
        assert same(few.validation, together.validation[chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_that_validates_best_is_kept(dtype):
    form, parts = Form(), drawn(Form(), dtype=dtype)
    x = torch.randn(60, 2, dtype=dtype)
    y = mm.evaluate(form, parts, x).transpose(0, 1)  # what they compute already
    fitted = mf.fit(form, parts, (x, y + 3), (x, y), Config(steps=50, check_every=5))
    assert_same(fitted.parts, parts)
    assert fitted.validation.max() < 100 * torch.finfo(dtype).eps ** 2
    torch.testing.assert_close(fitted.train, torch.full((12,), 9.0, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_that_are_lost_do_not_take_others_along(dtype):
    form = Form()
    parts, data = drawn(form, dtype=dtype), rows(form, 12, 50, dtype=dtype)
    config = Config(steps=20, check_every=5)
    well = mf.fit(form, parts, data, data, config)
    y = data[1].clone()
    y[:, 3] = torch.nan
    ill = mf.fit(form, parts, (data[0], y), data, config)
    others = torch.arange(12) != 3
    assert_same(ill.parts.take(others), well.parts.take(others))
    assert ill.parts.weights.isfinite().all()
    assert mf.errors(form, parts, (data[0], y)).isnan().tolist() == [i == 3 for i in range(12)]


def test_training_lowers_the_error_of_every_network_that_can_learn():
    table = cornn.table(["sphere", "ridge"])
    form = Form(activations=("tanh",), depth=1)
    control = mlp_controls.dense(form, [(3,), (7,)], "tanh", table, Config(steps=300), restarts=2)
    assert (control.test < cornn.controls(table)["affine"][:, None]).all()


# ---- compiled ----------------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(mf.kernel is None, reason="numba is not installed (extra `fast`)")


def single(data):
    return tuple(part.float() if part.is_floating_point() else part for part in data)


def gradients(form, parts, x, y):
    """Each network's error, and its derivatives by [W | b] (n, L + 1, H, H + 1), by PyTorch in float64."""
    learned = [part.double().requires_grad_() for part in parts[:2]]
    outputs = mm.evaluate(form, parts.to(torch.float64)._replace(weights=learned[0], biases=learned[1]), x.double())
    if y.is_floating_point():
        errors = (outputs - y.double().transpose(0, 1)).square().mean((1, 2))
    else:
        errors = F.cross_entropy(outputs.flatten(0, 1), y.T.flatten(), reduction="none").view(len(outputs), -1).mean(1)
    by_weights, by_biases = torch.autograd.grad(errors.sum(), learned)
    return errors.detach(), torch.cat([by_weights, by_biases[..., None]], -1)


@compiled
@pytest.mark.parametrize("name", networks.UNITS)
def test_compiled_activations_and_slopes_are_those_of_the_units(name):
    ends = [3e-8, 0.5, 7.9, 9.99, 10.01, 86.5, 100.0, 1e4]
    z = torch.cat([torch.linspace(-40, 40, 16001), torch.tensor(ends), -torch.tensor(ends)])
    exact = z.double().requires_grad_()
    value = networks.UNITS[name](exact)
    (slope,) = torch.autograd.grad(value.sum(), exact)
    h, found = z.clone(), torch.empty_like(z)
    mf.kernel.activated(h.numpy(), found.numpy(), mf.kernel.KINDS[name])
    torch.testing.assert_close(h.double(), value.detach(), rtol=1e-6, atol=5e-7)
    at = z != 0 if name in ("relu", "leaky_relu") else torch.ones_like(z, dtype=torch.bool)
    torch.testing.assert_close(found.double()[at], slope[at], rtol=1e-6, atol=2e-6)


@compiled
@pytest.mark.parametrize("m", [3, 128, 300])
@pytest.mark.parametrize("make", [rows, classes])
def test_compiled_errors_and_gradients_are_those_of_float64(make, m):
    form, n = Form(3, 4, 6, 3, tuple(networks.UNITS)), 40
    parts, (x, y) = drawn(form, n, dtype=torch.float32), single(make(form, n, m))
    expected, slopes = gradients(form, parts, x, y)
    torch.testing.assert_close(mf.errors(form, parts, (x, y)).double(), expected, rtol=1e-5, atol=1e-6)
    reached = 0
    for lanes, there, net, scratch in mf.kernel._handfuls(form, parts):
        found = np.zeros((int(there.sum()), mf.kernel.WIDTH), np.float32)
        numbers = torch.cat([parts.weights, parts.biases[..., None]], -1)[lanes][there].numpy()
        data, errors = mf.kernel._rows(form, x, y[:, lanes]), np.empty(len(there))
        mf.kernel.go_through(net, numbers, data, np.arange(m), scratch, errors, found.reshape(-1))
        torch.testing.assert_close(torch.from_numpy(found.sum(1)).double(), slopes[lanes][there], rtol=1e-4, atol=1e-5)
        reached += len(found)
    assert reached == int(mm.non_zeros(form, parts).sum())


@compiled
@pytest.mark.parametrize("make", [rows, classes])
@pytest.mark.parametrize("form", [*FORMS[:2], Form(2, 3, 16, 2, ("tanh", "gelu", "sin"))], ids=str)
def test_compiled_training_is_as_near_to_float64_as_pytorch_in_float32(form, make):
    if make is classes and form.outputs == 1:
        form = Form(2, 3)
    parts = drawn(form, 20)
    train, validation = make(form, 20, 300), make(form, 20, 70, seed=1)
    config = Config(steps=50, batch=150, lr=0.02, check_every=20)  # whole blocks of rows, and the rest of one
    exact = mf.fit(form, parts, train, validation, config)
    given = form, parts.to(torch.float32), single(train), single(validation)
    fitted = mf.fit(*given, config)
    pytorch = mf.by_torch(*given, mf._batches(300, config), config.lr, config.check_every)
    for own, theirs, right in zip(fitted.parts[:2], pytorch[:2], exact.parts[:2], strict=True):
        off, allowed = (own - right).abs(), (theirs - right).abs()
        assert off.mean() < 2 * allowed.mean() + 1e-7
        assert off.max() < 20 * allowed.max() + 1e-5
    torch.testing.assert_close(fitted.validation.double(), exact.validation, rtol=1e-4, atol=1e-5)
    assert not torch.equal(fitted.parts.weights, parts.weights.float())


@compiled
def test_units_that_are_off_or_unread_are_left_alone():
    form = Form()
    parts, data = drawn(form, 20, dtype=torch.float32), rows(form, 20, 100, dtype=torch.float32)
    g = torch.Generator().manual_seed(1)
    live = mm.live(form, parts)
    weights, biases = (torch.randn(part.shape, generator=g) for part in parts[:2])
    filled = parts._replace(
        weights=torch.where(live.weights, parts.weights, weights), biases=torch.where(live.biases, parts.biases, biases)
    )
    config = Config(steps=20, check_every=20)
    fitted, alone = mf.fit(form, filled, data, data, config), mf.fit(form, parts, data, data, config)
    assert torch.equal(fitted.validation, alone.validation)
    assert torch.equal(fitted.parts.weights, torch.where(live.weights, alone.parts.weights, weights))
    assert torch.equal(fitted.parts.biases, torch.where(live.biases, alone.parts.biases, biases))


@compiled
def test_large_numbers_lose_nothing():
    form = Form(2, 3, activations=tuple(networks.UNITS))
    parts, (x, y) = drawn(form, 30, dtype=torch.float32), classes(form, 30, 100)
    parts = parts._replace(weights=torch.cat([1e4 * parts.weights[:, :1], parts.weights[:, 1:]], 1))
    for data in ((x.float(), y), rows(form, 30, 100, dtype=torch.float32)):
        fitted = mf.fit(form, parts, data, data, Config(steps=30, check_every=10))
        assert fitted.train.isfinite().all()
        assert (fitted.validation <= mf.errors(form, parts, data)).all()
        assert not torch.equal(fitted.parts.weights, parts.weights)


@compiled
def test_without_numba_or_with_soft_units_it_is_pytorch(monkeypatch):
    form = Form()
    parts, data = drawn(form, dtype=torch.float32), rows(form, 12, 60, dtype=torch.float32)
    soft = parts._replace(activations=torch.full_like(parts.activations, 1 / 3))
    outputs = mm.evaluate(form, soft, data[0]).transpose(0, 1)
    torch.testing.assert_close(mf.errors(form, soft, data), (outputs - data[1]).square().mean((0, 2)))
    config = Config(steps=10, lr=0.02)
    quick = mf.fit(form, parts, data, data, config)
    monkeypatch.setattr(mf, "kernel", None)
    slow = mf.fit(form, parts, data, data, config)
    for a, b in zip(quick.parts, slow.parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# ---- controls ----------------------------------------------------------------------------------------------------


def test_dense_controls_have_no_zeros_and_the_errors_of_their_networks():
    table = cornn.table(["ackley", "adjiman", "leon"])
    form = Form()
    shapes = [(2,), (6,), (3, 4), (2, 2, 2, 2)]
    control = mlp_controls.dense(form, shapes, "tanh", table, Config(steps=60), restarts=2)
    sizes = [4 * 2 + 1, 4 * 6 + 1, 9 + 16 + 5, 6 + 6 + 6 + 6 + 3]
    assert control.non_zeros.tolist() == [sizes] * 3
    for f, name in enumerate(table.names):
        x, y = cornn.table([name]).test
        for s, shape in enumerate(shapes):
            i = f * len(shapes) + s
            module = mlp_modules.network(form, control.parts, i)
            assert mm.units(control.parts)[i].tolist() == [*shape, *[0] * (4 - len(shape))]
            assert F.mse_loss(module(x), y).item() == pytest.approx(control.test[f, s].item(), rel=1e-4)


def test_of_restarts_the_one_of_lowest_validation_error_is_taken():
    table, form, config = cornn.table(["bird", "ridge"]), Form(width=4, depth=1), Config(steps=40)
    seen = []
    fit = mf.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp_controls, "fit", lambda *args: seen.append(fit(*args)) or seen[-1])
        dense = mlp_controls.dense(form, [(2,), (4,)], "tanh", table, config, restarts=3)
        pruned = mlp_controls.pruned(form, [(2,), (4,)], "tanh", table, [6, 11], config, config, restarts=3)
    assert torch.equal(dense.validation, seen[0].validation.view(2, 2, 3).amin(2))
    at_11, at_6 = (seen[i].validation.view(2, 2, 3).amin(2) for i in (2, 4))  # 17 at the start, then 11, 7 and 6
    assert torch.equal(pruned.validation, torch.cat([at_11, at_6], 1))
    shuffled = cornn.Table(table.names, table.train, table.validation, (table.test[0].flip(0), table.test[1]))
    again = mlp_controls.dense(form, [(2,), (4,)], "tanh", shuffled, config, restarts=3)
    assert_same(again.parts, dense.parts)
    assert not torch.equal(again.test, dense.test)


def test_pruning_keeps_the_largest_that_the_count_has_room_for():
    form = Form(2, 2, 4, 3, ("tanh", "relu"))
    parts = drawn(form, 7)
    numbers = torch.cat([parts.weights.flatten(1), parts.biases.flatten(1)], 1)
    for count in (0, 5, 17, 1_000):
        pruned = mlp_pruning.keep_largest(form, parts, count)
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
    control = mlp_controls.pruned(
        form, [(6,), (5, 5)], "tanh", table, counts, Config(steps=80), Config(steps=40), restarts=2
    )
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
        on = mlp_arms.front(sizes, found)
        for r in range(5):
            pairs = [(s, e) for s, e in zip(sizes[r].tolist(), found[r].tolist(), strict=True)]
            for i, (s, e) in enumerate(pairs):
                beaten = any(a <= s and b <= e and ((a, b) != (s, e) or j < i) for j, (a, b) in enumerate(pairs))
                assert on[r, i] == (not beaten and not math.isnan(e))
        for budget in (int(sizes[:, 0].max()), 11):
            for r, i in enumerate(mlp_arms.best_at(sizes, found, budget).tolist()):
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
    with pytest.raises(ValueError, match=r"train: x of shape \(20, 2\) and type torch.float32, .* torch.float64"):
        mf.fit(form, parts, (data[0].float(), data[1]), data, Config())
    with pytest.raises(ValueError, match="hardened"):
        mf.fit(form, parts._replace(masks=parts.masks / 2), data, data, Config())
    with pytest.raises(ValueError, match="steps=-1"):
        Config(steps=-1)
    table = cornn.table(["ridge"])
    with pytest.raises(ValueError, match="activation='relu'"):
        mlp_controls.dense(form, [(3,)], "relu", table, Config())
    for shape in ((), (8,), (3, 0), (3, 3, 3, 3, 3)):
        with pytest.raises(ValueError, match="expected the units of 1 to 4 hidden layers"):
            mlp_controls.dense(form, [shape], "tanh", table, Config())
    with pytest.raises(ValueError, match="budget=3: .* the smallest has 5"):
        mlp_arms.best_at(torch.tensor([[5, 9], [2, 9]]), torch.ones(2, 2), 3)


def test_controls_come_back_as_they_were(monkeypatch, tmp_path):
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(tmp_path))
    form, table, short = Form(width=3), cornn.table(["ridge", "sphere"]), Config(steps=20)
    given = form, [(3,), (2, 2)], "tanh", table
    ways = [
        lambda: mlp_controls.dense(*given, short, 2, keep=True),
        lambda: mlp_controls.pruned(*given, (8, 5), short, short, "importance", 2, keep=True),
        lambda: mlp_controls.pruned(*given, (8, 5), short, short, "magnitude", 2, keep=True),
    ]
    made = [way() for way in ways]
    monkeypatch.setattr(mlp_controls, "fit", lambda *_: pytest.fail("trained again"))
    for control, way in zip(made, ways, strict=True):
        again = way()
        assert again.names == control.names
        for name in mlp_controls.FACTS:
            assert torch.equal(getattr(again, name), getattr(control, name))
        assert all(torch.equal(a, b) for a, b in zip(again.parts, control.parts, strict=True))


def test_controls_together_have_the_networks_of_each():
    form, table, short = Form(width=3), cornn.table(["ridge", "sphere"]), Config(steps=20)
    several = [mlp_controls.dense(form, shapes, "tanh", table, short, 1) for shapes in ([(3,)], [(2,), (2, 2)])]
    both = mlp_controls.together(several)
    errors = mf.errors(form, both.parts, mlp_controls._of(table.test, torch.tensor([0, 0, 0, 1, 1, 1])))
    assert torch.equal(errors.view(2, 3), both.test)
    for name in mlp_controls.FACTS:
        for k, control in enumerate(several):
            own = getattr(both, name)[:, k : k + 1] if k == 0 else getattr(both, name)[:, 1:]
            assert torch.equal(own, getattr(control, name))


def test_a_control_is_pruned_by_a_known_rule():
    with pytest.raises(ValueError, match="by"):
        mlp_controls.pruned(Form(), [(3,)], "tanh", cornn.table(["ridge"]), (5,), Config(), Config(), "luck")

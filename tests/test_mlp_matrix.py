"""Matrices of perceptrons compute what the plain networks compute, and keep it in every form they are brought into."""

import itertools

import pytest
import torch
from torch import nn

from wsnotebook import networks
from wsnotebook.methods import mlp_matrix as mm
from wsnotebook.methods import mlp_modules
from wsnotebook.methods.mlp_matrix import Form, Parts

FORMS = (
    Form(),
    Form(3, 2, 5, 3, ("tanh", "relu", "gelu", "sin", "identity")),
    Form(4, 1, 2, 1, ("leaky_relu",)),
    Form(1, 6, 3, 2, tuple(networks.UNITS)),
)


def drawn(form, n=40, seed=0, dtype=torch.float32):
    """Plain networks of all depths with units that are off and weights that are 0."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.arange(n) % form.depth + 1
    shapes = [part.shape for part in mm.used(form, depth)[:4]]
    weights, biases, activations, masks = (torch.randn(shape, generator=g, dtype=dtype) for shape in shapes)
    weights = 2 * weights * (torch.rand(shapes[0], generator=g) < 0.8)
    return mm.hardened(form, Parts(weights, biases, activations, (masks > -0.8).to(dtype), depth))


def soft(form, n=12, seed=0):
    """Networks with shares and masks between 0 and 1, float64."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.arange(n) % form.depth + 1
    real = mm.used(form, depth)
    weights, biases, activations, masks = (
        torch.randn(part.shape, generator=g, dtype=torch.float64) * part for part in real[:4]
    )
    return Parts(weights, biases, activations.softmax(-1) * real.activations, masks.sigmoid() * real.masks, depth)


def points(form, m=50, dtype=torch.float32):
    return 2 * torch.rand(m, form.inputs, generator=torch.Generator().manual_seed(1), dtype=dtype) - 1


def by_equation(form, parts, i, x):
    """Outputs (m, outputs) of network i, unit by unit, with PyTorch's own activations."""
    own = {"sigmoid": torch.sigmoid, "gelu": nn.functional.gelu}
    h = [x[:, k] for k in range(form.inputs)]
    for layer in range(int(parts.depth[i])):
        units = []
        for j in range(form.width):
            z = parts.biases[i, layer, j] + sum(parts.weights[i, layer, j, k] * h[k] for k in range(len(h)))
            values = [own.get(name, networks.UNITS[name])(z) for name in form.activations]
            shares = parts.activations[i, layer, j]
            units.append(parts.masks[i, layer, j] * sum(s * v for s, v in zip(shares, values, strict=True)))
        h = units
    weights, biases = parts.weights[i, -1], parts.biases[i, -1]
    outputs = [biases[j] + sum(weights[j, k] * h[k] for k in range(form.width)) for j in range(form.outputs)]
    return torch.stack(outputs, 1)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# ---- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_evaluate_is_the_equation_and_so_are_its_gradients(form):
    parts, x = soft(form), points(form, dtype=torch.float64)
    ours, theirs = (Parts(*(p.clone().requires_grad_() for p in parts[:4]), parts.depth) for _ in range(2))
    y = mm.evaluate(form, ours, x)
    expected = torch.stack([by_equation(form, theirs, i, x) for i in range(len(parts.depth))])
    torch.testing.assert_close(y, expected)
    factors = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (y * factors).sum().backward()
    (expected * factors).sum().backward()
    for name, a, b in zip(Parts._fields, ours[:4], theirs[:4], strict=False):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_networks_may_have_points_of_their_own_and_gradients_reach_them():
    form, parts = FORMS[1], soft(FORMS[1])
    x = torch.randn(len(parts.depth), 9, form.inputs, dtype=torch.float64, requires_grad=True)
    y = mm.evaluate(form, parts, x)
    for i in range(len(x)):
        torch.testing.assert_close(y[i], mm.evaluate(form, parts, x[i])[i])
    (grad,) = torch.autograd.grad(y.sum(), x)
    expected = torch.stack(
        [torch.autograd.grad(by_equation(form, parts, i, x[i]).sum(), x)[0][i] for i in range(len(x))]
    )
    torch.testing.assert_close(grad, expected)


def test_what_a_network_does_not_use_is_never_read():
    form = Form(3, 2, 5, 3)
    parts, real = drawn(form), mm.used(form, drawn(form).depth)
    filled = (torch.where(here, part, torch.nan) for part, here in zip(parts[:4], real[:4], strict=True))
    assert torch.equal(
        mm.evaluate(form, Parts(*filled, parts.depth), points(form)), mm.evaluate(form, parts, points(form))
    )


def test_the_company_a_network_is_in_does_not_change_it():
    form, parts = Form(), drawn(Form(), 60)
    y = mm.evaluate(form, parts, points(form))
    for rows in (slice(3, 4), torch.tensor([50, 3, 17]), parts.depth == 2):
        assert torch.equal(mm.evaluate(form, parts.take(rows), points(form)), y[rows])
    assert torch.equal(mm.evaluate(form, mm.concat([parts, parts]), points(form)), torch.cat([y, y]))


def test_blocks_and_no_networks_at_all_are_no_special_cases(monkeypatch):
    form, parts = Form(), drawn(Form(), 60)
    own = torch.randn(60, 50, 2)
    shared, separate = mm.evaluate(form, parts, points(form)), mm.evaluate(form, parts, own)
    monkeypatch.setattr(mm, "BLOCK", 7 * 50 * 11)
    assert torch.equal(mm.evaluate(form, parts, points(form)), shared)
    assert torch.equal(mm.evaluate(form, parts, own), separate)
    assert mm.evaluate(form, parts.take(slice(0)), points(form)).shape == (0, 50, 1)


def test_a_dead_network_is_the_constant_that_its_outputs_biases_are():
    form = Form(outputs=2)
    parts = drawn(form)
    for layer in range(form.depth):
        reaching = parts.take(parts.depth > layer)
        masks = reaching.masks.clone()
        masks[:, layer] = 0
        dead = reaching._replace(masks=masks)
        y = mm.evaluate(form, dead, points(form))
        assert torch.equal(y, y[:, :1].expand_as(y))
        last = reaching.depth == layer + 1
        assert torch.equal(y[last, 0], reaching.biases[last, -1, : form.outputs])
        plain = mm.hardened(form, dead)
        torch.testing.assert_close(mm.evaluate(form, plain, points(form)), y)
        assert torch.equal(
            mlp_modules.network(form, plain, 0)(points(form)).detach(), mm.evaluate(form, plain, points(form))[0]
        )
        assert (mm.units(plain)[:, : layer + 1] == 0).all(), "units before a dead layer are read by nobody"


# ---- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_and_parts_are_inverses(form):
    parts = drawn(form)
    rows = mm.to_rows(form, parts)
    assert rows.shape == (40, form.rows, form.columns)
    assert same(mm.from_rows(form, rows, parts.depth), parts)
    noise = torch.randn(rows.shape)
    assert torch.equal(mm.to_rows(form, mm.from_rows(form, noise, parts.depth)), noise)


def test_the_papers_form_has_56_columns_and_197_weights_and_biases():
    form = Form()
    real = mm.used(form, torch.tensor([1, 2, 3, 4]))
    assert form.columns == 56
    counts = [int(real.weights[i].sum() + real.biases[i].sum()) for i in range(4)]
    assert counts == [29, 85, 141, 197]


def test_a_row_is_a_units_own():
    form = FORMS[1]
    parts, j = drawn(form), 2
    marked = [part.clone() for part in parts[:4]]
    marked[0][:, :, j], marked[1][:, :, j], marked[2][:, :, j], marked[3][:, :, j] = 7, 7, 7, 7
    rows, changed = mm.to_rows(form, parts), mm.to_rows(form, Parts(*marked, parts.depth))
    assert (changed[:, j] == 7).all()
    others = [k for k in range(form.rows) if k != j]
    assert torch.equal(changed[:, others], rows[:, others])


# ---- symmetries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_permuted_and_flipped_units_keep_the_function(form):
    g = torch.Generator().manual_seed(3)
    for parts in (drawn(form, dtype=torch.float64), soft(form)):
        orders, signs = mm.random_orders(form, len(parts.depth), g)
        x = points(form, dtype=torch.float64)
        y = mm.evaluate(form, parts, x)
        for moved in (mm.permuted(form, parts, orders), mm.permuted(form, parts, orders, signs)):
            torch.testing.assert_close(mm.evaluate(form, moved, x), y)
            real = mm.used(form, parts.depth)
            assert all(
                not part[~here].any() for part, here in zip(moved[:4], real[:4], strict=True) if part is not None
            )


def test_permuted_does_what_it_says():
    form = Form(width=3, depth=1, activations=("tanh", "relu"))
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    order, signs = torch.tensor([[[2, 0, 1]]]), torch.tensor([[[-1, 1, 1]]])
    moved = mlp_modules.network(form, mm.permuted(form, mlp_modules.from_network(form, net), order, signs), 0)
    flips = signs[0, 0][order[0, 0]]
    torch.testing.assert_close(moved.fc1.weight, net[0].weight[order[0, 0]] * flips[:, None])
    torch.testing.assert_close(moved.fc2.weight, net[2].weight[:, order[0, 0]] * flips)


def test_permuting_back_is_exact():
    form, parts = Form(), drawn(Form())
    orders, signs = mm.random_orders(form, 40, torch.Generator().manual_seed(4))
    moved = mm.permuted(form, parts, orders, signs)
    assert not same(moved, parts)
    back = mm.permuted(form, moved, orders.argsort(-1), signs.gather(2, orders))
    assert same(back, parts)


# ---- plain networks ----------------------------------------------------------------------------------------------


def test_hardened_is_plain_and_stays():
    form = Form()
    parts = soft(form)
    plain = mm.hardened(form, parts, 0.5)
    assert set(plain.masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(plain.activations.sum(-1), plain.masks)
    assert not ((plain.weights != 0) & (plain.weights.abs() < 0.5)).any()
    assert (plain.masks <= (parts.masks >= 0.5)).all()
    assert same(mm.hardened(form, plain, 0.5), plain)


def test_hardened_takes_units_that_nothing_reads_and_keeps_the_function():
    form = Form()
    parts = drawn(form)
    masks = mm.used(form, parts.depth).masks.float()  # all on, also those without a way to the output
    full = parts._replace(masks=masks, activations=nn.functional.one_hot(masks.long() * 0, 3) * masks[..., None])
    plain = mm.hardened(form, full)
    assert (plain.masks < masks).any()
    torch.testing.assert_close(mm.evaluate(form, plain, points(form)), mm.evaluate(form, full, points(form)))


def test_non_zeros_by_brute_force():
    form = Form(2, 2, 3, 2, ("tanh", "relu"))
    parts = drawn(form, 60)
    for i, counted in enumerate(mm.non_zeros(form, parts).tolist()):
        weights, biases, masks, depth = (
            part[i].tolist() for part in (parts.weights, parts.biases, parts.masks, parts.depth)
        )
        alive = [range(2), *([j for j in range(3) if masks[layer][j]] for layer in range(depth)), range(2)]
        places = [*range(depth), form.depth]
        found = 0
        for place, (before, here) in zip(places, itertools.pairwise(alive), strict=True):
            found += sum(weights[place][j][k] != 0 for j in here for k in before)
            found += sum(biases[place][j] != 0 for j in here)
        assert counted == found


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_forms_teach():
    with pytest.raises(ValueError, match="width=0"):
        Form(width=0)
    with pytest.raises(ValueError, match="swish.*expected.*sigmoid.*identity"):
        Form(activations=("tanh", "swish"))
    with pytest.raises(ValueError, match="once each"):
        Form(activations=("tanh", "tanh"))


def test_parts_and_points_of_another_form_are_named():
    form, parts = Form(), drawn(Form())
    with pytest.raises(ValueError, match=r"parts.weights: shape \(40, 5, 7, 7\)"):
        mm.evaluate(Form(width=8), parts, points(form))
    with pytest.raises(ValueError, match=r"x: shape \(50, 3\), expected \(m, 2\)"):
        mm.evaluate(form, parts, torch.zeros(50, 3))
    with pytest.raises(ValueError, match="x: shape"):
        mm.evaluate(form, parts, torch.zeros(3, 50, 2))
    with pytest.raises(ValueError, match="depth: from 0 to 5"):
        mm.used(form, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="rows: shape"):
        mm.from_rows(form, torch.zeros(2, 7, 55), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="orders: shape"):
        mm.permuted(form, parts, torch.zeros(40, 4, 6, dtype=torch.int64))


def test_soft_networks_are_hardened_before_they_are_plain():
    form = Form()
    for refused in (
        lambda p: mlp_modules.network(form, p, 0),
        lambda p: mlp_modules.to_zoo(form, p),
        lambda p: mm.non_zeros(form, p),
    ):
        with pytest.raises(ValueError, match="hardened"):
            refused(soft(form).to(torch.float32))

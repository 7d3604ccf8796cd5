"""Latent search: every lane is a search of its own, what it lowers is the formula, and test rows choose nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsnotebook import cornn, zoo
from wsnotebook.methods import latent_lanes, latent_objective, mlp_fitting, mlp_pruning, swat_nn
from wsnotebook.methods import latent_search as ls
from wsnotebook.methods.mlp_matrix import Form, evaluate, from_rows, hardened, non_zeros, used
from wsnotebook.methods.swat_stream import Stream, draw

FORM = Form(width=4, depth=3)
FIT = mlp_fitting.Config(steps=20, batch=64, check_every=10)
SMALL = ls.Config(
    depths=(1, 3),
    candidates=100,
    restarts=2,
    penalties=(0.001, 0.005),
    steps=48,
    batch=64,
    tuned=2,
    budgets=(20, 8),
    training=FIT,
    tuning=FIT,
)
# of the preset's settings those by which what is computed differs from the mixtures, the threshold learned faster
PAPER = {name: getattr(ls.preset("paper"), name) for name in ("threshold", "gate", "straight", "refined", "relative")}
PAPER |= {"threshold_lr": 0.03}


@pytest.fixture(scope="module")
def table():
    return cornn.table(("sphere", "adjiman"))


@pytest.fixture(scope="module")
def found(table):
    return ls.search(ls.direct(FORM), table, SMALL)


@pytest.fixture(scope="module")
def swat():
    return swat_nn.untrained(swat_nn.Config(form=FORM, z=16, dim=16, heads=2, blocks=1))


def drawn(n=2, seed=0):
    """Raw numbers of n networks of depths 1, 3, 1, ..., float64."""
    depth = 1 + 2 * (torch.arange(n) % 2)
    rows = 0.5 * torch.randn(n, FORM.rows, FORM.columns, generator=torch.Generator().manual_seed(seed)).double()
    return rows, depth


# ---- the objective -----------------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + (-v).exp())


def by_loop(raw, i, threshold, penalty, x, y, config, t):
    """Objective of lane i while it is soft, number by number."""
    depth, W, start_end = int(raw.depth[i]), FORM.width, config.temperatures
    heat = max(start_end[1], start_end[0] + (start_end[1] - start_end[0]) * t / config.annealed)
    masks = sigmoid(raw.masks[i, :depth, :W])
    shares = (raw.activations[i, :depth, :W] / heat).exp()
    shares = shares / shares.sum(-1, keepdim=True)
    used_masks = sigmoid(config.gate * (masks - 0.5)) if config.gate else masks
    cost, errors = 0.0, 0.0
    places = [*range(depth), FORM.depth]
    ends = [[1.0] * FORM.inputs, *used_masks, [1.0] * FORM.outputs]
    for place, before, here in zip(places, ends, ends[1:], strict=False):
        for j in range(len(here)):
            for k in range(len(before)):
                size = raw.weights[i, place, j, k].abs()
                above = size - threshold
                cost = cost + config.count * sigmoid(config.steepness * above) * here[j] * before[k]
                cost = cost + config.size * size
    cost = cost + config.units * used_masks.sum()
    for point, target in zip(x, y, strict=True):
        h = list(point)
        for layer, place in enumerate(places):
            z = []
            for j in range(W if layer < depth else FORM.outputs):
                total = raw.biases[i, place, j]
                for k in range(len(h)):
                    w = raw.weights[i, place, j, k]
                    w = w * sigmoid(config.gate * (w.abs() - threshold)) if config.gate else w
                    total = total + w * h[k]
                z.append(total)
            if layer < depth:
                own = [torch.sigmoid, torch.tanh, torch.nn.functional.leaky_relu]
                z = [
                    used_masks[layer, j] * sum(a * f(z[j]) for a, f in zip(shares[layer, j], own, strict=True))
                    for j in range(W)
                ]
            h = z
        errors = errors + (h[0] - target) ** 2 / len(x)
    value = (errors / 0.2 + config.floor).log() if config.relative else errors
    deviation = (used_masks - used_masks.mean(1, keepdim=True)).square().sum(1).div(W - 1).sqrt().mean()
    return value + penalty * min(1.0, t / config.ramp) * cost - config.spread * deviation


@pytest.mark.parametrize(("name", "t"), [("ours", 0.1), ("ours", 0.4), ("paper", 0.2), ("paper", 0.9)])
def test_the_objective_and_its_gradient_are_the_formulas(name, t):
    config = ls.preset(name)
    rows, depth = drawn()
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(shape, generator=g).double() for shape in ((6, 2), (6, 2, 1)))
    threshold, penalty = torch.tensor([0.1, 0.3]).double(), torch.tensor([0.01, 0.2]).double()
    ours, theirs = (rows.clone().requires_grad_() for _ in range(2))
    constant = torch.full((2,), 0.2).double()
    raw = from_rows(FORM, ours, depth)
    value, _ = latent_objective.objective(FORM, raw, threshold, penalty, constant, x, y, config, t)
    raw = from_rows(FORM, theirs, depth)
    expected = [by_loop(raw, i, threshold[i], penalty[i], x, y[:, i, 0], config, t) for i in range(2)]
    torch.testing.assert_close(value, torch.stack(expected))
    value.sum().backward()
    sum(expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_in_the_second_half_the_hardened_network_is_computed_and_every_number_has_a_gradient():
    rows, depth = drawn(6)
    rows.requires_grad_()
    raw, threshold = from_rows(FORM, rows, depth), torch.full((6,), 0.2).double()
    computed, mixed = latent_objective.formed(FORM, raw, threshold, SMALL, 0.7)
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(2)).double()
    y = evaluate(FORM, computed, x)
    torch.testing.assert_close(y.detach(), evaluate(FORM, hardened(FORM, mixed, 0.2), x))
    y.square().sum().backward()
    first = used(FORM, depth).masks[:, 0]  # where a unit is off, its mask still learns
    assert (from_rows(FORM, rows.grad, depth).masks[:, 0][first] != 0).any()
    assert (raw.masks[:, 0][first] < 0).any()


def test_adam_is_pytorchs():
    g = torch.Generator().manual_seed(3)
    ours = torch.randn(5, generator=g)
    theirs = torch.nn.Parameter(ours.clone())
    optimiser = torch.optim.Adam([theirs], 0.05, betas=(0.9, 0.99), eps=1e-10)
    moments = torch.zeros(5), torch.zeros(5)
    for step in range(1, 6):
        gradient = torch.randn(5, generator=g)
        latent_lanes.adam(ours, gradient, *moments, step, 0.05)
        theirs.grad = gradient.clone()
        optimiser.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_constant_errors_are_those_of_the_best_constant():
    y = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(4))
    expected = (y - y.mean(0)).square().mean((0, 2))
    torch.testing.assert_close(latent_objective.constant_errors(y), expected)
    classes = torch.tensor([[0, 1], [1, 1], [1, 0], [2, 0]])
    entropy = [0.5 * math.log(2) + 0.5 * math.log(4), math.log(2)]
    torch.testing.assert_close(latent_objective.constant_errors(classes), torch.tensor(entropy))


# ---- lanes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["direct", "latent"])
def test_a_lane_alone_finds_what_it_finds_among_others(kind, table, swat):
    arm = ls.direct(FORM) if kind == "direct" else ls.latent(swat)
    config = replace(SMALL, drop_at=2.0, steps=24)
    together, alone = (latent_lanes.Run(arm, table, config) for _ in range(2))
    number = 5
    alone.take(torch.tensor([number]))
    for _ in range(24):
        together.train_chunk()
        alone.train_chunk()
    torch.testing.assert_close(alone.z[0], together.z[number], rtol=1e-3, atol=1e-3)
    assert not torch.equal(together.z[number], together.z[number + 1])


def test_lanes_are_all_combinations_and_the_worse_half_of_a_functions_is_dropped(table):
    run = latent_lanes.Run(ls.direct(FORM), table, SMALL)
    own = torch.stack([part.double() for part in run.lanes[:4]], 1)
    assert len(own.unique(dim=0)) == len(own) == 2 * 2 * 2 * 2
    before, run.score = run.lanes, torch.arange(16.0).flip(0)
    run.drop()
    assert len(run.z) == 8
    for function in range(2):
        for penalty in before.penalty.unique():
            rivals = before.number[(before.function == function) & (before.penalty == penalty)]
            stay = run.lanes.number[(run.lanes.function == function) & (run.lanes.penalty == penalty)]
            assert stay.tolist() == rivals[len(rivals) // 2 :].tolist()


def test_interrupted_and_resumed_is_the_same_to_the_last_bit(table, found, tmp_path):
    run = latent_lanes.Run(ls.direct(FORM), table, SMALL)
    while run.iteration < SMALL.iterations:
        run.train_chunk()
        torch.save(run.state(), tmp_path / "state.pt")
        run = latent_lanes.Run(ls.direct(FORM), table, SMALL)
        run.load(torch.load(tmp_path / "state.pt", weights_only=True))
    again = latent_lanes.Run.state(run)
    parts = [torch.cat(same) for same in zip(*(made["parts"] for made in again["found"]), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(parts, found.parts, strict=True))
    assert torch.equal(torch.cat([made["validation"] for made in again["found"]]), found.facts["validation"])
    assert all(torch.equal(a[3][0], b.parts.weights) for a, b in zip(again["frames"], found.frames, strict=True))


def test_kept_searches_return_at_once_and_tell_arms_apart(table, swat, monkeypatch):
    first = ls.search(ls.latent(swat), table, SMALL, keep=True)
    monkeypatch.setattr(latent_lanes.Run, "train_chunk", lambda self: pytest.fail("searched again"))
    again = ls.search(ls.latent(swat), table, SMALL, keep=True)
    assert all(torch.equal(a, b) for a, b in zip(first.parts, again.parts, strict=True))
    other = swat_nn.untrained(replace(swat.config, seed=1))
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        ls.search(ls.latent(other), table, SMALL, keep=True)
    monkeypatch.setattr(latent_lanes.Frame, "_fields", latent_lanes.Frame._fields[:-1])
    with pytest.raises(pytest.fail.Exception, match="searched again"):  # what was kept has frames of another shape
        ls.search(ls.latent(swat), table, SMALL, keep=True)


def test_an_interrupted_search_has_hardened_networks(table, monkeypatch):
    step, calls = latent_lanes.Run.step, []

    def stopping(self):
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(latent_lanes.Run, "step", stopping)
    found = ls.search(ls.direct(FORM), table, SMALL)
    assert not found.finished
    assert found.facts["stage"].eq(0).all()
    assert len(found.zoo()) == 16


@pytest.mark.parametrize("changes", [{}, PAPER, PAPER | {"straight": 0.5}], ids=["ours", "paper", "paper, hard"])
def test_a_frame_has_the_networks_that_the_search_computes(changes, table):
    """At every place: soft, gated or hard, with thresholds that stay or are learned."""
    config = replace(SMALL, **changes)
    run, learned = latent_lanes.Run(ls.direct(FORM), table, config), False
    x, y = (part.double() for part in table.validation)
    while run.iteration < config.steps:
        run.train_chunk()
        frame, own, t = run.frames[-1], run.lanes.function, run.iteration / config.steps
        outputs = evaluate(FORM, frame.parts.to(torch.float64), x)[..., 0]  # (n, m)
        torch.testing.assert_close((outputs - y.T[own]).square().mean(1), frame.error.double(), rtol=1e-4, atol=1e-6)
        targets = y.float()[:, own, None]
        raw, constant = run.decoded(), run.constant[own]
        _, error = latent_objective.objective(
            FORM, raw, run.threshold, run.lanes.penalty, constant, x.float(), targets, config, t
        )
        torch.testing.assert_close(error, frame.error)
        plain, real = frame.plain(FORM), used(FORM, raw.depth).weights
        assert torch.equal(non_zeros(FORM, plain), frame.non_zeros)
        kept = raw.weights.abs() >= run.threshold[:, None, None, None]  # logits have no part in weights
        assert torch.equal(frame.kept[real], kept[real])
        learned |= bool((kept != (raw.weights.abs() >= config.threshold)).any())
        if t >= config.straight:
            torch.testing.assert_close(evaluate(FORM, plain, x.float()), evaluate(FORM, frame.parts, x.float()))
            assert torch.equal(frame.parts.weights != 0, frame.kept & real & (raw.weights != 0))
    assert learned == (config.threshold_lr > 0)


# ---- what is found -----------------------------------------------------------------------------------------------


def test_hardening_is_exact_and_budgets_are_kept(found):
    torch.testing.assert_close(found.hardening(), torch.ones(len(found.lanes["number"])), rtol=1e-4, atol=1e-4)
    for stage, budget in enumerate(SMALL.budgets, start=2):
        count = found.facts["non_zeros"][found.facts["stage"] == stage]
        assert len(count)
        assert (count <= budget).all()
    trained = found.facts["stage"] == 1
    hard = {int(lane): row for row, lane in enumerate(found.facts["lane"]) if found.facts["stage"][row] == 0}
    for row in trained.nonzero()[:, 0].tolist():
        before = hard[int(found.facts["lane"][row])]
        assert found.facts["non_zeros"][row] == found.facts["non_zeros"][before]
        assert found.facts["validation"][row] <= found.facts["validation"][before]


def test_the_zoo_has_the_networks_and_their_errors(found, table, tmp_path):
    loaded = zoo.load(found.zoo().save(tmp_path / "found.safetensors"))
    x, y = table.test
    for i in (0, len(loaded) // 2, len(loaded) - 1):
        outputs = loaded.module(i)(x).detach()
        assert torch.equal(outputs, evaluate(found.form, found.parts, x)[i])
        function = found.names.index(loaded.facts["function"][i])
        error = float((outputs[:, 0] - y[:, function]).square().mean())
        assert error == pytest.approx(float(loaded.facts["test"][i]), rel=1e-4)
        counted = int(hardened(FORM, found.parts).weights[i].count_nonzero() + found.parts.biases[i].count_nonzero())
        assert loaded.facts["non_zeros"][i] == counted
    assert set(loaded.facts["depth"]) == {1, 3}


def test_best_and_front_by_brute_force(found):
    for name in found.names:
        nets = [
            (int(found.facts["non_zeros"][i]), float(found.facts["validation"][i]), i)
            for i in found.rows(name).tolist()
        ]
        best = found.best(name, 15)
        assert min(error for count, error, _ in nets if count <= 15) == found.facts["validation"][best]
        expected = [
            (count, error)
            for count, error, _ in nets
            if not any((c <= count and e < error) or (c < count and e <= error) for c, e, _ in nets)
        ]
        front = [(int(found.facts["non_zeros"][i]), float(found.facts["validation"][i])) for i in found.front(name)]
        assert front == sorted(set(expected))


def test_test_rows_choose_nothing(table, found):
    x, y = table.test
    other = replace(table, test=(x, y.flip(0)))
    again = ls.search(ls.direct(FORM), other, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(found.parts, again.parts, strict=True))
    for name in found.names:
        assert found.best(name, 20) == again.best(name, 20)
        assert torch.equal(found.front(name), again.front(name))
    assert not torch.equal(found.facts["test"], again.facts["test"])


def test_a_replay_goes_from_the_start_to_the_smallest_network(found):
    row = found.best("sphere", 20)
    lane = int(found.facts["lane"][row])
    frames = found.replay(lane)
    stages = int((found.facts["lane"] == lane).sum())
    assert len(frames) == latent_lanes.FRAMES + stages
    assert [f.iteration for f in frames] == sorted(f.iteration for f in frames)
    assert frames[0].temperature > frames[12].temperature == SMALL.temperatures[1]
    assert frames[-1].non_zeros <= SMALL.budgets[-1]
    assert frames[latent_lanes.FRAMES].error == frames[latent_lanes.FRAMES - 1].error  # hardened: the same
    with pytest.raises(ValueError, match="lane 99 was not trained on"):
        found.replay(99)


def test_a_search_finds_better_than_a_plane(table):
    config = replace(SMALL, steps=120, training=mlp_fitting.Config(steps=120, batch=64))
    found = ls.search(ls.direct(FORM), table, config)
    affine = cornn.controls(table)["affine"]
    for f, name in enumerate(table.names):
        assert found.facts["test"][found.best(name, 20)] < 0.5 * affine[f]


def test_classes_are_told_apart_by_cross_entropy():
    g = torch.Generator().manual_seed(5)
    x = 2 * torch.rand(900, 2, generator=g) - 1
    y = torch.stack([(x[:, 0] > 0).long() + (x[:, 1] > 0).long(), (x.square().sum(1) > 0.6).long()], 1)
    parts = zip(x.split(300), y.split(300), strict=True)
    classes = cornn.Table(("steps", "disc"), *parts)
    form = Form(outputs=3, width=4, depth=2)
    config = replace(SMALL, depths=(1, 2), steps=150, penalties=(0.01,), budgets=(), batch=100)
    found = ls.search(ls.direct(form), classes, config)
    for f, name in enumerate(found.names):
        row = found.best(name)
        outputs = evaluate(form, found.parts, x[600:])[row]
        own = torch.nn.functional.cross_entropy(outputs, y[600:, f])
        torch.testing.assert_close(found.facts["test"][row], own)
        assert float((outputs.argmax(1) == y[600:, f]).float().mean()) > 0.85


def test_dead_networks_are_constants_with_one_number(table):
    def decode(z, depth):
        raw = from_rows(FORM, z, depth)
        return raw._replace(masks=raw.masks * 0 - 3)

    arm = replace(ls.direct(FORM), decode=decode)
    found = ls.search(arm, table, replace(SMALL, budgets=()))
    assert (found.facts["non_zeros"] <= 1).all()
    x = table.test[0]
    y = evaluate(found.form, found.parts, x)
    assert torch.equal(y, y[:, :1].expand_as(y))
    trained = found.facts["validation"][found.facts["stage"] == 1]
    assert trained.isfinite().all()


def test_a_search_starts_at_the_nearest_networks_of_its_depth(table):
    config = replace(SMALL, candidates=200, restarts=3, penalties=(0.01,), starts=Stream())
    lanes, rows = latent_lanes.lanes(2, config), latent_lanes.columns(table.train)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = latent_lanes.starts(FORM, lanes, rows, config)
        torch.manual_seed(0)
        drawn = draw(FORM, Stream(), 200 * FORM.depth)
    assert torch.equal(parts.depth, lanes.depth)
    x, y = (part[: latent_lanes.PROBED].double() for part in rows)
    outputs = evaluate(FORM, drawn.to(torch.float64), x)[..., 0]
    errors = mlp_fitting.errors(FORM, parts.to(torch.float64), (x, y[:, lanes.function]))
    for function in range(2):
        for depth in config.depths:
            fits = []
            for f in outputs[(drawn.depth == depth) & (outputs.var(1, unbiased=False) > latent_lanes.EPS)]:
                terms = torch.stack([torch.ones_like(f), f], 1)
                rest = y[:, function] - terms @ torch.linalg.lstsq(terms, y[:, function]).solution
                fits.append(float(rest.square().mean()))
            own = errors[(lanes.function == function) & (lanes.depth == depth)]
            assert own.sort().values.tolist() == pytest.approx(sorted(fits)[:3], rel=1e-3)


def test_refining_starts_at_the_decoded_numbers(swat, table):
    run = latent_lanes.Run(ls.latent(swat), table, SMALL)
    before = run.decoded()
    run.iteration = run.refined_at
    run.refine()
    assert all(torch.equal(a, b) for a, b in zip(before, run.decoded(), strict=True))
    assert run.z.shape[1:] == (FORM.rows, FORM.columns)


@pytest.mark.parametrize("kind", ["direct", "latent"])
def test_an_arm_knows_where_networks_are(kind, swat):
    arm = ls.direct(FORM) if kind == "direct" else ls.latent(swat)
    parts = draw(FORM, Stream(), 30, torch.Generator().manual_seed(0))
    points = arm.encode(parts)
    assert len(points) == 30
    back = hardened(FORM, arm.decode(points, parts.depth))
    if kind == "direct":  # units without weights in the network have small ones at the start
        there = parts.activations.sum(-1) > 0
        assert torch.equal(arm.decode(points, parts.depth).masks > 0, there)
        assert torch.equal(torch.where(parts.weights != 0, back.weights, 0), parts.weights)


def test_pruning_keeps_what_matters_to_the_outputs():
    parts = hardened(FORM, from_rows(FORM, drawn(8)[0].float() * 2, drawn(8)[1]))
    x = torch.randn(latent_lanes.PROBED, 2, generator=torch.Generator().manual_seed(6))
    small = mlp_pruning.keep_important(FORM, parts, 12, x)
    assert (non_zeros(FORM, small) <= 12).all()
    kept = small.weights != 0
    assert torch.equal(small.weights[kept], parts.weights[kept])
    y, by_size = evaluate(FORM, parts, x), mlp_pruning.keep_largest(FORM, parts, 12)
    ours, theirs = ((evaluate(FORM, p, x) - y).square().mean((1, 2)) for p in (small, by_size))
    assert ours.mean() <= theirs.mean()
    alone = mlp_pruning.keep_important(FORM, parts.take([3]), 12, x)
    torch.testing.assert_close(alone.weights[0], small.weights[3])


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_bad_input_is_named(table, found):
    with pytest.raises(ValueError, match="sphere"):
        cornn.table(("spher",))
    with pytest.raises(ValueError, match="'ridge' was not searched for; there are sphere, adjiman"):
        found.best("ridge")
    with pytest.raises(ValueError, match="budget=0"):
        found.best("sphere", 0)
    with pytest.raises(ValueError, match="depth: from 1 to 4, expected 1 to 3"):
        ls.search(ls.direct(FORM), table, replace(SMALL, depths=(1, 4)))
    x, y = table.train
    flat = replace(table, train=(x, y * torch.tensor([1.0, 0.0])))
    with pytest.raises(ValueError, match="targets of 'adjiman' are constant"):
        ls.search(ls.direct(FORM), flat, SMALL)
    with pytest.raises(ValueError, match="restarts=0"):
        ls.Config(restarts=0)
    with pytest.raises(ValueError, match="penalties=\\(\\)"):
        ls.Config(penalties=())
    with pytest.raises(ValueError, match="preset='mine'"):
        ls.preset("mine")
    with pytest.raises(ValueError, match="diverged; use a lr below"):
        ls.search(ls.direct(FORM), table, replace(SMALL, lr=1e30))
    assert np.isfinite(found.facts["test"].numpy()).all()

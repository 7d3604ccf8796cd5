"""Flows go where they must: to the zoo's distribution, along exact velocities, the same way every time."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsnotebook import evaluation, networks, training, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import flow_training
from wsnotebook.methods.closed_form_flow import ClosedForm
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.sampling import integrate, times
from wsnotebook.methods.velocity import PaperVelocity, Velocity
from wsnotebook.methods.weight_flow import Config, Flow, preset, train
from wsnotebook.training import as_vector

LAYOUT = Layout.of(networks.build("mlp-6-4-3"))
QUICK = Config(hidden=16, blocks=1, time_features=8, batch=16, iterations=250)


def made(weights, **facts):
    return zoo.Zoo(weights, LAYOUT, {"model": np.arange(len(weights))} | facts, "mlp-6-4-3", {})


def embedded(points, **facts):
    """Points (n, 2) as networks: in a plane of the d-dimensional space of weights."""
    generator = torch.Generator().manual_seed(5)
    plane = torch.linalg.qr(torch.randn(LAYOUT.d, 2, generator=generator)).Q.T
    return made(torch.randn(LAYOUT.d, generator=generator) + points @ plane, **facts)


@pytest.fixture(scope="module")
def nets():
    return made(torch.randn(12, LAYOUT.d, generator=torch.Generator().manual_seed(0)))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.network.parameters(), b.network.parameters(), strict=True))


# ---- the velocities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "h", "e"), [(99, 512, 64), (7, 12, 4)])
def test_the_papers_network_has_the_papers_number_of_parameters(d, h, e):
    network = PaperVelocity(d, h, e, 0.1)
    expected = (
        (d + e) * h + h + 2 * h + h * h // 2 + h // 2 + h + h * h // 2 + h + 2 * h + h * d + d + 2 * e + e * e + e
    )
    assert sum(p.numel() for p in network.parameters()) == expected
    assert (network(torch.randn(3, d), torch.rand(3)) == 0).all()


@pytest.mark.parametrize("c", [0, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_by_hand_is_autograds(c, dropout):
    network = PaperVelocity(7, 12, 4, dropout, c).double()
    torch.nn.init.normal_(network.layers[-1].weight)
    x, t, target, condition = torch.randn(5, 7), torch.rand(5), torch.randn(5, 7), torch.randn(5, c) if c else None
    point = [None if part is None else part.double() for part in (x, t, condition, target)]
    as_vector(network)
    torch.manual_seed(1)
    loss = network.gradient(*point)
    by_hand = [p.grad.clone() for p in network.parameters()]
    torch.manual_seed(1)
    torch.testing.assert_close(Velocity.gradient(network, *point), loss)
    for p, grad in zip(network.parameters(), by_hand, strict=True):
        assert grad.abs().max() > 0
        torch.testing.assert_close(p.grad, grad)


@pytest.mark.parametrize("source", [0.01, 1.0, 10.0])
def test_an_untrained_flow_gives_the_gaussian_of_the_zoo(nets, source):
    flow = train(nets, replace(QUICK, iterations=0, source=source, path_noise=1e-4))
    z = flow.coordinates.encode(flow.sample(1500).weights)
    torch.testing.assert_close(z.std(0), flow.coordinates.deviations, rtol=0.1, atol=0)
    assert z.mean(0).abs().max() < 0.12 * flow.coordinates.rms


@pytest.mark.parametrize("t", [0.0, 0.3, 0.95, 1.0])
def test_the_closed_form_is_the_mean_velocity_of_all_paths_through_a_point(t):
    flow = ClosedForm(made(torch.randn(2, LAYOUT.d, generator=torch.Generator().manual_seed(1))), 0.7, 0.2)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * flow.coordinates.rms  # (m, 1): two networks, one axis
    x0 = torch.linspace(-9, 9, 20_001, dtype=torch.float64) * flow.source
    top = bottom = 0
    for x1 in flow.z.double().flatten():
        off = (x - (1 - t) * x0 - t * x1) / flow.path_noise  # (m, grid)
        density = torch.exp(-(x0 / flow.source).square() / 2 - off.square() / 2)
        top, bottom = top + (density * (x1 - x0)).sum(1), bottom + density.sum(1)
    torch.testing.assert_close(
        flow.velocity(x, torch.tensor(t, dtype=torch.float64))[:, 0], top / bottom, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("t", [0.0, 0.02, 0.5, 0.999, 1.0])
def test_outside_the_span_the_closed_form_only_shrinks(nets, t):
    flow = ClosedForm(nets, source=0.5, path_noise=1e-3)
    c, s, sigma = flow.coordinates, flow.source, flow.path_noise
    x = torch.randn(6, LAYOUT.d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)  # around the mean
    x1 = nets.weights.double() - c.mean
    variance = (1 - t) ** 2 * s**2 + sigma**2
    w = (-torch.cdist(x, t * x1).square() / (2 * variance)).softmax(1)  # (m, n)
    each = x1 - (1 - t) * s**2 / variance * (x[:, None] - t * x1)  # (m, n, d): x1 - x0, given network and point
    v = (w[..., None] * each).sum(1)
    basis = c.basis.double()
    span = flow.velocity(x @ basis.T, torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(v @ basis.T, span, rtol=1e-4, atol=1e-4 * float(v.norm(dim=1).max()))
    outside, moved = (y - y @ basis.T @ basis for y in (x, v))
    torch.testing.assert_close(moved, -(1 - t) * s**2 / variance * outside, rtol=1e-3, atol=1e-4 * float(v.abs().max()))


@pytest.mark.parametrize("source", [0.01, 1.0])
def test_the_closed_form_copies_the_zoo(nets, source):
    born = ClosedForm(nets, source).sample(40)
    between = np.median(evaluation.leave_one_out(nets).distance)
    near = evaluation.nearest(born, nets)
    assert near.distance.max() < 1e-2 * between
    noise = 1e-3 * coordinates(nets).rms * 11**0.5  # what is left of the source is the path noise
    assert float(np.sqrt(np.mean(near.distance**2))) == pytest.approx(noise, rel=0.1)
    assert len(set(near.index)) > 6  # of 12


@pytest.mark.parametrize("source", [0.01, 1.0])
def test_the_default_steps_end_where_many_do(nets, source):
    flow = ClosedForm(nets, source)
    default, many, even = (
        flow.sample(40, seed=1, trajectory=True, **options)[-1] for options in ({}, {"steps": 1000}, {"power": 1})
    )
    unit = flow.coordinates.rms * 11**0.5
    assert (default - many).norm(dim=1).max() < 1e-4 * unit
    assert (even - many).norm(dim=1).max() > 1e-3 * unit


def test_solvers_converge_at_their_order():
    A = torch.tensor([[0.3, -2.0], [1.5, -0.4]], dtype=torch.float64)
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    exact = x @ torch.matrix_exp(A).T
    for solver, order in (("euler", 1), ("rk4", 4)):
        errors = [(integrate(lambda x, t: x @ A.T, x, times(n, 1), solver)[-1] - exact).norm() for n in (32, 64)]
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("power", [1, 2])
def test_time_is_where_the_solvers_say(power):
    at = times(50, power)
    assert at[[0, 25, 50]].tolist() == [0, 0.5, 1]
    assert float(at[10]) == pytest.approx(0.2**power / (0.2**power + 0.8**power))
    torch.testing.assert_close(at, 1 - at.flip(0))
    for solver in ("euler", "rk4"):
        path = integrate(lambda x, t: 3 * t.square().expand_as(x), torch.zeros(1, 1, dtype=torch.float64), at, solver)
        assert (path[:, 0, 0] - at**3).abs().max() < (0.1 if solver == "euler" else 1e-9)


def test_times_dense_near_zero_settle_a_small_source(nets):
    flow = ClosedForm(nets, source=0.005)

    def ends(**options):
        z = flow.sample(200, trajectory=True, **options)[-1]
        return torch.cdist(z, flow.z).argmin(1)

    exact = ends(steps=3000, power=3)
    even, dense = ((ends(steps=20, power=power) == exact).float().mean() for power in (1, 2))
    assert dense > 0.95
    assert even < 0.7


def test_the_adaptive_solver_agrees_with_rk4(nets):
    pytest.importorskip("torchdiffeq")
    flow = ClosedForm(nets, path_noise=0.3)
    a, b = (flow.sample(5, solver=solver, trajectory=True) for solver in ("adaptive", "rk4"))
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


# ---- training ----------------------------------------------------------------------------------------------------


def test_a_flow_learns_a_ring():
    angles = torch.arange(60) * 2 * torch.pi / 60
    nets = embedded(3 * torch.stack([angles.cos(), angles.sin()], 1))
    flow = train(nets, replace(QUICK, hidden=64, batch=64, lr=1e-2, iterations=500))
    z = flow.coordinates.encode(flow.sample(600, steps=30).weights)
    assert z.shape == (600, 2)
    assert z.mean(0).abs().max() < 0.4
    torch.testing.assert_close(z.T.cov(), 4.5 * torch.eye(2), rtol=0.2, atol=0.6)
    assert (z.norm(dim=1) - 3).abs().median() < 0.5  # on the ring; of a Gaussian it is more than 1
    assert flow.history["loss"][-1] < 0.9 * flow.history["loss"][0]


def test_a_flow_approaches_the_closed_form():
    nets = embedded(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0]]))
    flow, exact = train(nets, replace(QUICK, hidden=64, batch=64, lr=1e-2, iterations=500)), ClosedForm(nets)
    x, t = torch.randn(200, 2, generator=torch.Generator().manual_seed(3)), torch.full((200,), 0.5)
    with torch.no_grad():
        gap = flow.network(x, t) - exact.velocity(x, t)
    assert gap.square().mean() < 0.1 * exact.velocity(x, t).square().mean()


def test_the_flow_follows_its_condition():
    generator = torch.Generator().manual_seed(4)
    kind = np.array(["low", "high"] * 30)
    points = torch.randn(60, 2, generator=generator) * torch.tensor([0.5, 1.0])
    points[:, 0] += torch.tensor(np.where(kind == "high", 3.0, -3.0)).float()
    nets = embedded(points, kind=kind, accuracy=90 + points[:, 0].numpy())
    side = coordinates(nets).encode(nets.weights)[kind == "high", 0].mean().sign()
    for fact, low, high in (("kind", "low", "high"), ("accuracy", 87.0, 93.0)):
        flow = train(nets, replace(QUICK, hidden=32, batch=64, lr=1e-2, iterations=200, condition=fact))
        for asked, place in ((low, -3.0), (high, 3.0)):
            born = flow.sample(200, steps=20, condition=asked)
            mean = side * flow.coordinates.encode(born.weights)[:, 0].mean()
            assert float(mean) == pytest.approx(place, abs=0.8)
            assert (born.facts["condition"] == asked).all()
        mixed = flow.sample(200, steps=20)  # as in the zoo: both
        assert len(set(mixed.facts["condition"])) > 1


def test_the_average_of_the_parameters_is_what_it_says(nets):
    constant = replace(QUICK, lr=1e-2, floor_lr=1e-2, ema=0.0)
    path = [list(train(nets, replace(constant, iterations=i)).network.parameters()) for i in range(4)]
    averaged = train(nets, replace(constant, iterations=3, ema=0.6)).network.parameters()
    weights = (0.6**3, 0.4 * 0.6**2, 0.4 * 0.6, 0.4)
    for p, *steps in zip(averaged, *path, strict=True):
        torch.testing.assert_close(p, sum(w * q for w, q in zip(weights, steps, strict=True)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"network": "paper", "dropout": 0.1, "pairs": "table", "keep": "best_batch"}])
def test_an_interrupted_run_goes_on_to_the_same_flow(nets, monkeypatch, changes):
    config = replace(QUICK, held_out=0.25, **changes)
    whole = train(nets, config)
    assert whole.finished
    chunk, calls = flow_training.Run.train_chunk, []

    def interrupted(run):
        calls.append(run.iteration)
        if len(calls) == 2:
            raise KeyboardInterrupt
        chunk(run)

    monkeypatch.setattr(training, "KEEP_EVERY", -1.0)
    monkeypatch.setattr(flow_training.Run, "train_chunk", interrupted)
    early = train(nets, config, keep=True)
    assert not early.finished
    assert early.history["iteration"] == [0, 100]
    assert len(early.sample(2, steps=2)) == 2
    rest = train(nets, config, keep=True)
    assert same(rest, whole)
    assert calls == [0, 100, 100, 200]
    for name in ("iteration", "loss", "validation_loss", "velocity"):
        assert rest.history[name] == whole.history[name]
    assert same(train(nets, config, keep=True), whole)
    assert len(calls) == 4  # at once


def test_seeds_repeat(nets):
    one, two, other = (train(nets, replace(QUICK, iterations=20, seed=seed)) for seed in (0, 0, 1))
    assert same(one, two)
    assert not same(one, other)
    a, b, c = (one.sample(3, steps=3, seed=seed).weights for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_pairs_are_those_of_the_equation(nets):
    config = replace(QUICK, path_noise=0, source=0.5, pairs="table", time="beta")
    run = flow_training.Run(nets, config)
    x, t, _, target = run.pairs(run.z, None, 5000, run.table)
    x0, x1 = x - t[:, None] * target, x + (1 - t)[:, None] * target
    assert torch.cdist(x0, run.table).min(1).values.max() < 1e-2
    assert torch.cdist(x1, run.z).min(1).values.max() < 1e-2
    assert float(t.mean()) == pytest.approx(2 / 7, abs=0.01)
    fresh, *_ = run.pairs(run.z, None, 5000)
    assert float(run.table.std()) == pytest.approx(run.source, rel=0.2)
    assert torch.cdist(fresh, run.table).min() > 1e-1


def test_validation_keeps_the_flow_with_its_lowest_loss(nets):
    config = replace(QUICK, held_out=0.25, keep="validation", lr=0.03, components=3, iterations=600)
    run = flow_training.Run(nets, config)
    while run.iteration < config.iterations:
        run.train_chunk()
    assert len(run.z) == 9
    run.averaged = run.best
    lowest = min(run.history["validation_loss"])
    assert run.measured(run.held_out)[0] == pytest.approx(lowest, rel=1e-5)
    assert run.history["validation_loss"][-1] > lowest


def test_the_papers_preset_has_its_deviations_in_weights(nets):
    config = preset("paper", nets, iterations=0)
    path = train(nets, config).sample(300, steps=1, trajectory=True)
    assert float(path[0].std()) == pytest.approx(0.01, rel=0.05)
    assert config.path_noise * coordinates(nets).rms == pytest.approx(0.001)
    with pytest.raises(ValueError, match="preset='ous'"):
        preset("ous", nets)


def test_trajectories_end_at_the_samples(nets):
    for flow in (train(nets, replace(QUICK, iterations=10)), ClosedForm(nets)):
        path = flow.sample(3, steps=7, seed=2, trajectory=True)
        assert path.shape == (8, 3, 11)
        assert torch.equal(flow.coordinates.decode(path[-1]), flow.sample(3, steps=7, seed=2).weights)


def test_networks_with_batch_norm_are_recalibrated():
    layout = Layout.of(networks.build("resnet-8"), exclude=COUNTERS)
    weights = torch.stack([layout.flatten(networks.build("resnet-8", seed=i).state_dict()) for i in range(4)])
    nets = zoo.Zoo(weights, layout, {"model": np.arange(4)}, "resnet-8", {})
    born = train(nets, replace(QUICK, iterations=10)).sample(2, steps=4)
    x = torch.randn(32, *networks.example("resnet-8").shape[1:], generator=torch.Generator().manual_seed(0))
    ready = evaluation.recalibrated(born, x)
    statistic = torch.tensor([kind == "statistic" for kind in layout.kinds])[layout.tensor_index()]
    assert torch.equal(ready.weights[:, ~statistic], born.weights[:, ~statistic])
    assert (ready.weights[:, statistic] != born.weights[:, statistic]).any()
    assert torch.isfinite(ready.module(0)(x)).all()


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow(nets) -> Flow:
    return train(nets, replace(QUICK, iterations=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0, power=2.0: expected a whole number from 1 up"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"power": 0.5}, "power=0.5: expected"),
        ({"solver": "heun"}, "solver='heun': expected one of 'euler', 'rk4', 'adaptive'"),
        ({"n": 0}, "n=0: expected a number of networks"),
        ({"condition": "high"}, "this flow has none; train it with"),
    ],
)
def test_samples_that_cannot_be_made(flow, nets, options, message):
    with pytest.raises(ValueError, match=message):
        flow.sample(**{"n": 2} | options)
    if "condition" not in options:
        with pytest.raises(ValueError, match=message):
            ClosedForm(nets).sample(**{"n": 2} | options)


def test_a_solver_that_is_not_installed(flow, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install 'wsnotebook\[flow\]'"):
        flow.sample(2, solver="adaptive")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": 12}, "components=12, zoo of 12 networks: n networks have at most n - 1"),
        ({"components": 9, "held_out": 0.25}, "components=9, zoo of 9 networks"),
        ({"condition": "speed"}, "condition='speed': the zoo has no such fact; it has model"),
        ({"network": "unet"}, "network='unet'"),
        ({"source": 0.0}, "source=0.0"),
        ({"iterations": -1}, "iterations=-1"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"keep": "validation"}, "set held_out"),
        ({"lr": 1e30, "iterations": 100}, "training diverged; use a smaller lr"),
    ],
)
def test_settings_that_cannot_be(nets, changes, message):
    with pytest.raises(ValueError, match=message):
        train(nets, replace(QUICK, **changes))


def test_conditions_that_no_network_had(nets):
    kinds = np.array(["low", "high"] * 6)
    flow = train(made(nets.weights, kind=kinds), replace(QUICK, iterations=1, condition="kind"))
    with pytest.raises(ValueError, match=r"condition kind: unknown \['middle'\]; the networks have 'high', 'low'"):
        flow.sample(2, condition="middle")
    with pytest.raises(ValueError, match=r"shape \(3,\), expected one value or \(2,\)"):
        flow.sample(2, condition=np.array(["low"] * 3))
    with pytest.raises(ValueError, match="all networks have 1.0"):
        train(made(nets.weights, same=np.ones(12)), replace(QUICK, condition="same"))
    numbers = train(made(nets.weights, step=np.arange(12)), replace(QUICK, iterations=1, condition="step"))
    with pytest.raises(ValueError, match="expected finite numbers"):
        numbers.sample(2, condition="low")


@pytest.mark.parametrize("numbers", [{"source": 0.0}, {"path_noise": 0.0}, {"source": float("nan")}])
def test_closed_forms_that_cannot_be(nets, numbers):
    with pytest.raises(ValueError, match="expected two positive numbers"):
        ClosedForm(nets, **numbers)

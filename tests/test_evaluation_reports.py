"""Laws of the report of a whole zoo, and of batch norm's recalibration."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from wsnotebook import engines, evaluation, networks
from wsnotebook.evaluation import blocks
from wsnotebook.layout import Layout
from wsnotebook.zoo.value import Zoo, concat


def make(name, n, seed=0, noise=0.0, layout=None, **build):
    """n initial networks; noise keeps running statistics and norms from being alike."""
    nets = [networks.build(name, seed=seed + i, **build) for i in range(n)]
    layout = layout or Layout.of(nets[0])
    weights = torch.stack([layout.flatten(net.state_dict()) for net in nets]).detach()
    weights += noise * torch.rand(weights.shape, generator=torch.Generator().manual_seed(seed))
    facts = {"model": np.arange(n)}
    if "activation" in build:
        facts["activation"] = np.full(n, build.pop("activation"))
    return Zoo(weights, layout, facts, name, {"build": build})


def mixed():
    zoos = [make("cnn-tiny", 2, seed=i, activation=kind) for i, kind in enumerate(("tanh", "relu", "gelu"))]
    return concat(zoos).filter([0, 2, 4, 1, 3, 5])


def batch_norm(n):
    """Networks whose statistics look as if from a training."""
    zoo = make("resnet-8", n, channels=1, noise=0.1)
    state = zoo.layout.unflatten(zoo.weights.clone())
    tracked = {name: t + 7 for name, t in state.items() if name.endswith("num_batches_tracked")}
    return zoo.derived(zoo.layout.flatten(state | {name: t.floor() for name, t in tracked.items()}))


ZOOS = {
    "mlp": lambda: make("mlp-64-12-10", 5),
    "mixed": mixed,
    "batch norm": lambda: batch_norm(2),
    "transformer": lambda: make("vit-tiny", 2),
}


@pytest.fixture
def split(digits):
    return tuple(t[::5] for t in digits.validation)


@pytest.mark.parametrize("kind", ZOOS)
@pytest.mark.parametrize("small", [False, True])
def test_a_report_is_each_networks_own_score(kind, small, split, monkeypatch):
    if small:  # many blocks of rows and of networks
        monkeypatch.setattr(blocks, "ACTIVATIONS", 900)
    zoo = ZOOS[kind]()
    report = evaluation.report(zoo, split)
    logits = evaluation.logits(zoo, split[0])
    for i in range(len(zoo)):
        own = evaluation.score(zoo.module(i), split)
        assert report.accuracy[i] == pytest.approx(100 - own.error)
        assert report.loss[i] == pytest.approx(own.loss, rel=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(logits[i], zoo.module(i)(split[0]), rtol=1e-4, atol=1e-5)
    assert (report.predictions == logits.argmax(-1).numpy()).all()
    assert (report.errors == (report.predictions != split[1].numpy())).all()


def trained(zoo, split, steps=40):
    """The zoo after some steps, of one activation."""
    same, (x, y) = torch.zeros(len(zoo)), split
    settings = {"lr": same + 1e-2, "weight_decay": same, "dropout": same, "seeds": torch.arange(len(zoo))}
    engine = engines.StackedEngine(zoo.template(), zoo.weights, optimiser="adam", **settings)
    engine.run(x, y, torch.arange(steps * 16).view(steps, 16) % len(x), torch.ones(steps))
    return zoo.derived(engine.weights)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "sigmoid"])
@pytest.mark.parametrize(("name", "n", "rows"), [("cnn-tiny", 17, 1), ("cnn-tiny", 7, 72), ("cnn-small", 1, 40)])
def test_compiled_and_stacked_networks_have_the_same_report(activation, name, n, rows, split, monkeypatch):
    pytest.importorskip("numba")
    from wsnotebook.engines import lanes

    x, y = (t[:rows] for t in split)
    if name == "cnn-small":
        x = nn.functional.interpolate(x, (28, 28))
    fresh, calls, forward = make(name, n, activation=activation), [], lanes.forward
    monkeypatch.setattr(lanes, "forward", lambda *arguments: calls.append(1) or forward(*arguments))
    zoos = [fresh, trained(fresh, (x, y))]
    compiled = [(evaluation.report(zoo, (x, y)), evaluation.logits(zoo, x)) for zoo in zoos]
    assert len(calls) == 4
    monkeypatch.setattr(engines, "choose", lambda *_: "stacked")
    for zoo, (ours, logits) in zip(zoos, compiled, strict=True):
        plain = evaluation.report(zoo, (x, y))
        torch.testing.assert_close(logits, evaluation.logits(zoo, x), rtol=1e-5, atol=1e-5)
        assert (ours.accuracy == plain.accuracy).all()
        assert ours.loss == pytest.approx(plain.loss, rel=1e-5, abs=1e-6)
        assert ours.brier == pytest.approx(plain.brier, rel=1e-5, abs=1e-6)
    assert len(calls) == 4


def test_blocks_hold_no_more_logits_than_they_may_and_all_of_them_once(split, monkeypatch):
    monkeypatch.setattr(blocks, "ACTIVATIONS", 1000)
    zoo, x = mixed(), split[0]
    seen = np.zeros((len(zoo), len(x)), int)
    for members, here, logits in blocks.blocks(zoo, x):
        assert logits.numel() <= 1000
        seen[members, here] += 1
    assert (seen == 1).all()


def test_a_zoo_without_the_biases_of_a_cnn_is_scored_as_if_they_were_zero(split):
    build = {"activation": "relu"}
    whole = make("cnn-tiny", 3, **build)
    without = make("cnn-tiny", 3, layout=Layout.of(whole.template(), ("weight",)), **build)
    state = whole.layout.unflatten(whole.weights.clone())
    zero = whole.derived(whole.layout.flatten({n: t * (not n.endswith("bias")) for n, t in state.items()}))
    a, b = evaluation.logits(without, split[0]), evaluation.logits(zero, split[0])
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_brier_calibration_and_classes_are_those_of_the_plain_formulas(split):
    zoo, (x, y), bins = make("mlp-64-12-10", 4), split, 10
    zoo = zoo.derived(5 * zoo.weights)  # confident enough to fill several bins
    report = evaluation.report(zoo, split, bins)
    p = evaluation.logits(zoo, x).double().softmax(-1).numpy()
    y = y.numpy()
    for i in range(len(zoo)):
        confidence, correct = p[i].max(1), p[i].argmax(1) == y
        inside = [(confidence > m / bins) & (confidence <= (m + 1) / bins) for m in range(bins)]
        ece = sum(rows.mean() * abs(correct[rows].mean() - confidence[rows].mean()) for rows in inside if rows.any())
        assert sum(rows.any() for rows in inside) > 3
        assert report.ece[i] == pytest.approx(100 * ece, rel=1e-4)
        assert report.brier[i] == pytest.approx(((p[i] - np.eye(10)[y]) ** 2).sum(1).mean(), rel=1e-4)
        assert report.per_class[i] == pytest.approx([100 * correct[y == c].mean() for c in range(10)])


def constant(bias):
    """A network that gives the same logits on every row."""
    zoo = make("mlp-2-3-4", 1)
    state = {name: torch.zeros(1, *s) for name, s in zip(zoo.layout.names, zoo.layout.shapes, strict=True)}
    return zoo.derived(zoo.layout.flatten(state | {"fc2.bias": torch.tensor([bias])}))


def test_a_calibrated_network_has_no_calibration_error_and_a_sure_one_that_is_wrong_has_all():
    x, y = torch.randn(8, 2), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    p = torch.tensor([0.5, 0.25, 0.25, 1e-9])
    assert evaluation.report(constant(p.log().tolist()), (x, y)).ece == pytest.approx(0, abs=1e-4)
    sure = evaluation.report(constant([0.0, 0.0, 0.0, 60.0]), (x, y))
    assert sure.ece == pytest.approx(100)
    assert sure.brier == pytest.approx(2)
    assert sure.loss == pytest.approx(60)
    assert sure.accuracy == 0
    assert np.isnan(sure.per_class[0, 3])  # no row of this class
    assert (sure.per_class[0, :3] == 0).all()


def test_an_ensemble_is_the_mean_of_probabilities(split):
    zoo, x = mixed().filter([0, 1, 2, 3, 4]), split[0]  # groups of different sizes
    zoo = zoo.derived(3 * zoo.weights)
    logits = evaluation.logits(zoo, x).double()
    together, of_logits = logits.softmax(-1).mean(0).argmax(1), logits.mean(0).argmax(1)
    assert not torch.equal(together, of_logits)
    assert evaluation.ensemble_accuracy(zoo, (x, together)) == 100
    one = zoo.filter([1, 1, 1])
    assert evaluation.ensemble_accuracy(one, split) == pytest.approx(evaluation.report(one, split).accuracy[0])


def test_a_report_says_what_does_not_fit(split):
    zoo, (x, y) = make("mlp-64-12-10", 3), split
    with pytest.raises(ValueError, match="at least one of each"):
        evaluation.report(zoo.filter([]), split)
    with pytest.raises(ValueError, match="at least one of each"):
        evaluation.logits(zoo, x[:0])
    with pytest.raises(ValueError, match="does not take rows of shape"):
        evaluation.report(zoo, (x[:, :, :4], y))
    with pytest.raises(ValueError, match="one a row of x"):
        evaluation.report(zoo, (x, y[:-1]))
    with pytest.raises(ValueError, match="10 outputs"):
        evaluation.ensemble_accuracy(zoo, (x, y + 5))
    with pytest.raises(ValueError, match="bins"):
        evaluation.report(zoo, split, bins=0)
    weights = zoo.weights.clone()
    weights[1] = 1e38
    with pytest.raises(ValueError, match="network 1 of the zoo"):
        evaluation.report(zoo.derived(weights), split)
    zoo = make("cnn-tiny", 3, activation="relu")
    with pytest.raises(ValueError, match="network 2 of the zoo"):
        evaluation.report(zoo.derived(zoo.weights * torch.tensor([[1.0], [1.0], [1e20]])), split)


def test_recalibration_is_torchs_own_cumulative_pass(digits):
    zoo, x = batch_norm(2), digits.train[0][:96]
    fresh = evaluation.recalibrated(zoo, x, batch=32)
    for i in range(len(zoo)):
        network = zoo.module(i).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        with torch.no_grad():
            for part in x.split(32):
                network(part)
        torch.testing.assert_close(fresh.weights[i], zoo.layout.flatten(network.state_dict()).detach())
    learned = torch.tensor([kind != "statistic" for kind in zoo.layout.kinds])[zoo.layout.tensor_index()]
    assert torch.equal(fresh.weights[:, learned], zoo.weights[:, learned])
    assert not torch.equal(fresh.weights, zoo.weights)


def test_recalibration_leaves_other_networks_and_says_what_is_missing(digits):
    plain, x = make("mlp-64-12-10", 2), digits.train[0][:32]
    assert evaluation.recalibrated(plain, x) is plain
    network = networks.build("resnet-8", channels=1)
    without = make("resnet-8", 1, layout=Layout.of(network, ("weight", "bias", "norm")), channels=1)
    with pytest.raises(ValueError, match="no running statistics of 'bn'"):
        evaluation.recalibrated(without, x)
    with pytest.raises(ValueError, match="no rows"):
        evaluation.recalibrated(batch_norm(1), x[:0])


def test_a_report_is_frozen(split):
    report = evaluation.report(make("mlp-64-12-10", 2), split)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.loss = 0
    assert "2 networks, 72 rows" in repr(report)

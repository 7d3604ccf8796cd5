"""Every subset of members: averages, scores, temperatures, weights, and the best one that a budget allows."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsnotebook import evaluation, networks
from wsnotebook.layout import Layout
from wsnotebook.methods import superweight_ensembles as ensembles
from wsnotebook.methods.superweight_baselines import Separate
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank
from wsnotebook.zoo.value import Zoo


@pytest.fixture(scope="module")
def logits():
    return 2 * torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def y():
    return torch.randint(5, (40,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def nets():
    return [
        networks.build(name, seed=seed) for seed, name in enumerate(("mlp-64-32-10", "mlp-64-16-10", "mlp-64-8-10"))
    ]


@pytest.fixture(params=["bank", "separate"])
def model(request, nets, digits):
    x = digits.train[0][:1]
    return Bank(nets, allocate(nets, x)) if request.param == "bank" else Separate(nets, allocate(nets, x, clusters=[]))


def test_subsets_are_all_of_them_once_small_ones_first():
    seen = ensembles.subsets(4)
    assert sorted(tuple(row) for row in seen.long().tolist())[0] == (0, 0, 0, 1)
    assert len({tuple(row) for row in seen.tolist()}) == len(seen) == 15
    assert seen.sum(1).tolist() == sorted(seen.sum(1).tolist())
    with pytest.raises(ValueError, match="n=13 members"):
        ensembles.subsets(13)


@pytest.mark.parametrize("rule", ["probabilities", "logits"])
def test_averages_equal_a_loop_over_subsets(logits, rule):
    chosen = ensembles.subsets(3)
    seen = ensembles.average(logits, chosen / chosen.sum(1, keepdim=True), rule)
    for s, row in enumerate(chosen):
        own = logits[row].double()
        wanted = own.mean(0).log_softmax(-1) if rule == "logits" else own.softmax(-1).mean(0).log()
        torch.testing.assert_close(seen[s], wanted, atol=1e-6, rtol=1e-6)


def test_scores_equal_the_report_of_a_zoo(digits):
    made = [networks.build("mlp-64-16-10", seed=seed) for seed in range(3)]
    layout = Layout.of(made[0])
    weights = torch.stack([layout.flatten(network.state_dict()) for network in made])
    zoo = Zoo(6 * weights, layout, {"model": np.arange(3)}, "mlp-64-16-10", {})
    report = evaluation.report(zoo, digits.validation)
    seen = ensembles.scores(evaluation.logits(zoo, digits.validation[0]).double().log_softmax(-1), digits.validation[1])
    np.testing.assert_allclose(seen["accuracy"], report.accuracy)
    for name, wanted in {"nll": report.loss, "ece": report.ece, "brier": report.brier}.items():
        np.testing.assert_allclose(seen[name], wanted, rtol=1e-4)


def test_calibration_error_equals_a_loop_over_bins():
    generator = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(2, 300, 3, generator=generator, dtype=torch.float64)).softmax(-1)
    y = torch.randint(3, (300,), generator=generator)
    y[::2] = p[0, ::2].argmax(-1)
    y[p[0].amax(-1) > 0.9] = p[0].argmax(-1)[p[0].amax(-1) > 0.9]  # too sure of some, not sure enough of others
    for s, seen in enumerate(ensembles.scores(p.log(), y, bins=10)["ece"]):
        confidence, predicted = p[s].max(-1)
        gaps = [
            float(((predicted == y).double() - confidence)[(m / 10 < confidence) & (confidence <= (m + 1) / 10)].sum())
            for m in range(10)
        ]
        assert seen == pytest.approx(sum(map(abs, gaps)) / 3)


@pytest.mark.parametrize(("margin", "right"), [(3.0, 30), (0.2, 24), (1.0, 39)])
def test_temperature_in_closed_form(margin, right):
    """Two classes at a constant margin, right in a share p of rows: the likelihood is best at margin / logit p."""
    log_p = torch.tensor([margin, 0.0], dtype=torch.float64).log_softmax(0).expand(1, 40, 2)
    y = (torch.arange(40) >= right).long()
    p = right / 40
    assert float(ensembles.temperatures(log_p, y)[0]) == pytest.approx(margin / math.log(p / (1 - p)), rel=1e-6)


def test_temperatures_lower_the_loss_of_every_subset(logits, y):
    log_p = ensembles.average(logits + 2 * F.one_hot(y, 5), torch.eye(3))
    t = ensembles.temperatures(log_p, y)
    loss = lambda scale: ensembles.scores((log_p / (scale * t)[:, None, None]).log_softmax(-1), y)["nll"]  # noqa: E731
    for scale in (0.9, 0.99, 1.01, 1.1):
        assert (loss(1.0) < loss(scale)).all()


def test_fitted_weights_have_the_highest_likelihood(logits, y):
    chosen = ensembles.subsets(3)
    logits = logits.clone()
    logits[0].scatter_add_(1, y[:, None], torch.full((40, 1), 2.0))  # one that knows more
    weights = ensembles.fitted_weights(logits, y, chosen)
    assert ((weights > 0) <= chosen).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(7, dtype=torch.float64))
    (pair,) = (chosen == torch.tensor([True, True, False])).all(1).nonzero().flatten()
    grid = torch.linspace(0, 1, 1001)
    nll = ensembles.scores(ensembles.average(logits, torch.stack([grid, 1 - grid, 0 * grid], 1)), y)["nll"]
    assert float(weights[pair, 0]) == pytest.approx(float(grid[nll.argmin()]), abs=2e-3)
    fitted = ensembles.scores(ensembles.average(logits, weights), y)["nll"]
    uniform = ensembles.scores(ensembles.average(logits, chosen / chosen.sum(1, keepdim=True)), y)["nll"]
    assert (fitted <= uniform + 1e-9).all()


def test_disagreement_equals_a_loop(logits):
    seen = ensembles.disagreement(logits)
    for a, b in np.ndindex(3, 3):
        different = sum(int(logits[a, n].argmax() != logits[b, n].argmax()) for n in range(40))
        assert seen[a, b] == pytest.approx(different / 40)


def test_front_equals_brute_force():
    random = np.random.default_rng(0)
    cost, good = random.integers(1, 9, 40), random.integers(1, 9, 40)
    seen = ensembles.front(cost, good)
    wanted = {
        (c, g) for c, g in zip(cost, good, strict=True)
        if not any((c2 <= c and g2 >= g and (c2, g2) != (c, g)) for c2, g2 in zip(cost, good, strict=True))
    }  # fmt: skip
    assert {(cost[s], good[s]) for s in seen} == wanted
    assert len(seen) == len(wanted)
    assert [cost[s] for s in seen] == sorted(cost[s] for s in seen)


@pytest.mark.parametrize("rule", ensembles.RULES)
def test_the_best_subset_within_the_budget_predicts_and_only_its_members_run(model, digits, rule):
    made = ensembles.anytime(model, digits.validation, rule)
    x, y = digits.test
    full = ensembles.member_logits(model, x)
    every, score = made.log_probabilities(full), made.scores(full, y)
    np.testing.assert_allclose(score["nll"], ensembles.scores(every, y)["nll"])
    np.testing.assert_array_equal(made.macs, made.subsets.long().numpy() @ np.array(model.plan.macs))
    accuracy = made.validation["accuracy"]
    called = []
    hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in model.members]
    for budget in (*sorted(made.macs), math.inf):
        s = made.best(budget)
        assert made.macs[s] <= budget
        assert accuracy[s] == accuracy[made.macs <= budget].max()
        torch.testing.assert_close(made.predict(x, budget), every[s].exp(), atol=1e-6, rtol=1e-5)
    if isinstance(model, Separate):  # a bank's kept networks are copies
        called.clear()
        made.predict(x)
        assert len(called) == int(made.subsets[made.best()].sum())
    for hook in hooks:
        hook.remove()
    with pytest.raises(ValueError, match=f"cheapest member needs {made.macs.min():,}"):
        made.best(made.macs.min() - 1)
    seconds = made.seconds(x[:4], repeats=1)
    assert seconds.shape == made.macs.shape
    assert np.isfinite(seconds).all()


def test_disagreement_of_a_subset_is_its_pairs_mean(model, digits):
    made = ensembles.anytime(model, digits.validation, scaled=False)
    pairs = ensembles.disagreement(made.logits)
    assert (made.temperature == 1).all()
    for chosen, seen in zip(made.subsets, made.validation["disagreement"], strict=True):
        members = chosen.nonzero().flatten().tolist()
        own = [pairs[a, b] for a in members for b in members if a < b]
        assert (math.isnan(seen) and not own) or seen == pytest.approx(np.mean(own))


def test_logits_that_are_not_finite_are_named(nets, digits):
    model = Separate(nets, allocate(nets, digits.train[0][:1], clusters=[]))
    nn.init.constant_(model.members[1].fc1.weight, math.nan)
    with pytest.raises(ValueError, match="member 1 gives NaN"):
        ensembles.member_logits(model, digits.validation[0])


def test_the_interval_of_a_difference_is_paired():
    random = np.random.default_rng(0)
    b = random.random(4000) < 0.7
    a = np.where(random.random(4000) < 0.05, True, b)
    difference, low, high = ensembles.accuracy_difference(a[None], b[None])
    assert difference == pytest.approx(100 * (a.mean() - b.mean()))
    d = a.astype(float) - b
    half = 196 * d.std() / math.sqrt(4000)  # of a normal law; both 95 %
    assert low == pytest.approx(difference - half, abs=0.15 * half)
    assert high == pytest.approx(difference + half, abs=0.15 * half)
    assert ensembles.accuracy_difference(a[None], a[None]) == (0, 0, 0)
    with pytest.raises(ValueError, match="the same for both"):
        ensembles.accuracy_difference(a[None], b[None, :5])


def test_a_row_that_several_seeds_saw_is_one_row():
    random = np.random.default_rng(0)
    a, b = random.random((2, 3, 500)) < 0.7
    once = ensembles.accuracy_difference(a[:1], b[:1])
    again = ensembles.accuracy_difference(np.repeat(a[:1], 3, 0), np.repeat(b[:1], 3, 0))
    assert again == pytest.approx(once)
    rows = (a.astype(float) - b).mean(0)
    difference, low, high = ensembles.accuracy_difference(a, b)
    assert difference == pytest.approx(100 * rows.mean())
    assert (high - low) / 2 == pytest.approx(196 * rows.std() / math.sqrt(500), rel=0.15)

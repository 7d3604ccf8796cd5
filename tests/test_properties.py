"""Laws of what weights tell: probes are the regressions that they say, split by model, and never see the test part."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference
from sklearn.preprocessing import StandardScaler

from wsnotebook import networks, symmetry
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import latent_maps, properties
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.properties import Probe, Ridge, Target, probe
from wsnotebook.zoo.value import Zoo

N, SNAPSHOTS = 60, 3


def made(name="mlp-6-5-4-3", models=N, seed=0, **facts):
    """Random networks, some snapshots of each, that drift as they are "trained"."""
    n = models * SNAPSHOTS
    layout = Layout.of(networks.build(name), exclude=COUNTERS)
    generator = torch.Generator().manual_seed(seed)
    start, drift = (torch.randn(models, layout.d, generator=generator) for _ in range(2))
    step = torch.arange(1, SNAPSHOTS + 1)
    weights = (start[:, None] + 0.3 * step[:, None] * drift[:, None]).flatten(0, 1)
    weights = torch.where(layout.learned(), weights, weights.abs())  # variances are positive
    accuracy = np.random.default_rng(seed).uniform(10, 90, n)
    facts = {
        "model": np.repeat(np.arange(models) + 7, SNAPSHOTS),
        "step": np.tile(10 ** np.arange(SNAPSHOTS), models),
        "test_accuracy": accuracy,
    } | facts
    return Zoo(weights, layout, facts, name, {})


@pytest.fixture(scope="module")
def nets():
    return made()


def rng(seed=0):
    return np.random.default_rng(seed)


def one(x, zoo, target="test_accuracy", **options) -> Probe:
    target = target if isinstance(target, Target) else Target(target)
    return probe(x, zoo, {"it": target}, **options)["it"]


# ---- features ----------------------------------------------------------------------------------------------------


def test_weight_statistics_are_numpys_of_every_layer(nets):
    found, state = properties.weight_statistics(nets), nets.layout.unflatten(nets.weights.double())
    expected = []
    for layer in ("fc1", "fc2", "fc3"):
        for i in range(len(nets)):
            w = np.concatenate([state[f"{layer}.weight"][i].numpy().ravel(), state[f"{layer}.bias"][i].numpy()])
            expected.append([w.mean(), w.var(), w.min(), *np.percentile(w, (25, 50, 75)), w.max()])
    np.testing.assert_allclose(found, np.reshape(expected, (3, len(nets), 7)).swapaxes(0, 1).reshape(-1, 21), atol=1e-5)
    apart = properties.weight_statistics(nets, "tensor")
    assert apart.shape == (len(nets), 7 * 6)
    np.testing.assert_allclose(apart[:, 7 + 2], state["fc1.bias"].min(1).values)
    small = made("cnn-small", 2)
    assert properties.weight_statistics(small).shape == (6, 35)


@pytest.mark.parametrize("name", ["mlp-6-5-4-3", "cnn-small", "resnet-8"])
@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_weight_statistics_do_not_see_the_order_of_units(name, by):
    zoo = made(name, 2)
    moved = symmetry.permute(zoo, seed=3)
    assert not moved.weights.equal(zoo.weights)
    np.testing.assert_allclose(
        properties.weight_statistics(moved, by), properties.weight_statistics(zoo, by), rtol=1e-6, atol=1e-6
    )


def test_running_statistics_of_batch_norm_are_no_features():
    zoo = made("resnet-8", 2)
    other = zoo.derived(torch.where(zoo.layout.learned(), zoo.weights, zoo.weights + 1))
    assert not other.weights.equal(zoo.weights)
    for name, x in properties.features(zoo).items():
        np.testing.assert_array_equal(properties.features(other)[name], x)


def test_features_follow_the_order_of_networks(nets):
    pca = layer_pca(nets, 3)
    order = rng().permutation(len(nets))
    moved = properties.features(nets.filter(order), {"PCA": pca})
    for name, x in properties.features(nets, {"PCA": pca}).items():
        np.testing.assert_allclose(moved[name], x[order], atol=1e-5, err_msg=name)


def test_an_embedders_features_are_of_its_latents(nets):
    pca = layer_pca(nets, 3)
    found, z = properties.features(nets, {"PCA": pca}), pca.embed(nets)  # rows: 5, 4 and 3 of the layers
    np.testing.assert_allclose(found["PCA, mean"], pca.mean(nets), atol=1e-6)
    np.testing.assert_array_equal(found["PCA, all"].reshape(z.shape), z)
    for i, part in enumerate(z.split([5, 4, 3], 1)):
        own = found["PCA, layers"][:, 6 * i : 6 * i + 6]
        np.testing.assert_allclose(own, torch.cat([part.mean(1), part.std(1, correction=0)], 1), atol=1e-6)


# ---- ridge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [5, 40, 90])  # fewer features than networks, and more
@pytest.mark.parametrize("strength", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_ridge_is_scikit_learns(f, strength, shape):
    x, y = rng(1).normal(3, rng(2).uniform(0.1, 9, f), (40, f)), rng(3).normal(5, 2, shape)
    scaler = StandardScaler().fit(x)
    expected = Reference(alpha=strength).fit(scaler.transform(x), y).predict(scaler.transform(x[:7] + 1))
    model = Ridge(x, x[:3]).fit(y, strength)
    np.testing.assert_allclose((x[:7] + 1) @ model.coefficients + model.intercept, expected, rtol=1e-6, atol=1e-6)


def test_both_forms_of_ridge_are_one():
    x, y = rng().normal(size=(20, 19)), rng(1).normal(size=20)
    primal = Ridge(x, x).fit(y, 0.7).predict(x)
    x = np.concatenate([x, np.ones((20, 5))], 1)  # constants add features, and say nothing
    np.testing.assert_allclose(Ridge(x, x).fit(y, 0.7).predict(x), primal, atol=1e-9)


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("f", [6, 50])
def test_the_strength_is_the_one_that_does_best_on_validation(f, k):
    x, x_validation = rng(4).normal(size=(30, f)), rng(5).normal(size=(30, f))
    number, number_validation = (part[:, 0] + rng(6).normal(size=30) for part in (x, x_validation))
    y, y_validation = (np.digitize(part, [-1, 1]) if k else part for part in (number, number_validation))
    ridge = Ridge(x, x_validation)

    def error(model):
        off = model.predict(x_validation) - y_validation
        return np.mean(off != 0) if k else np.mean(off**2)

    every = [ridge.fit(np.eye(k)[y] if k else y, strength) for strength in properties.STRENGTHS]
    best = ridge.best(y, y_validation, k)
    assert error(best) == pytest.approx(min(map(error, every)))
    assert error(best) < max(map(error, every)), "strengths differ here"


# ---- probes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_what_is_planted_is_found_and_noise_is_not(nets, kind):
    x = rng(1).normal(size=(len(nets), 4))
    zoo = replace(nets, facts=nets.facts | {"planted": 40 + 5 * x @ [1.0, -2.0, 0.5, 3.0]})
    zoo.facts["kind"] = np.where(zoo.facts["planted"] > 40, "above", "below")
    planted, kinds = one(x, zoo, "planted", kind=kind, seeds=[0, 1]), one(x, zoo, "kind", kind=kind, seeds=[0, 1])
    assert min(planted.scores["r2"]) > (0.9999 if kind == "ridge" else 0.95)
    assert min(planted.scores["tau"]) > (0.99 if kind == "ridge" else 0.85)
    assert kinds.interval()[0] > 85 > kinds.interval("majority")[0]
    assert kinds.classes == ("above", "below")
    noise = one(x, zoo, "test_accuracy", kind=kind, seeds=[0, 1])
    assert max(noise.scores["r2"]) < 0.25


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_numbers_are_those_of_the_definitions(nets, kind):
    x, y = properties.weight_statistics(nets), nets.facts["test_accuracy"]
    found = one(x, nets, kind=kind, seeds=[3])
    test = properties.split(nets, seed=3)[2]
    predicted = found.models[0].predict(x[test])
    r2 = 1 - ((y[test] - predicted) ** 2).sum() / ((y[test] - y[test].mean()) ** 2).sum()
    pairs = list(itertools.combinations(range(len(test)), 2))
    agree = sum(np.sign((y[test[i]] - y[test[j]]) * (predicted[i] - predicted[j])) for i, j in pairs)  # no ties here
    assert found.scores["r2"] == pytest.approx([r2])
    assert found.scores["tau"] == pytest.approx([agree / len(pairs)])


@pytest.mark.parametrize("k", [0, 2])
def test_the_mlp_is_kept_as_it_was_at_its_best(monkeypatch, k):
    x, x_validation = rng(1).normal(size=(2, 30, 8))
    y, y_validation = ((part[:, 0] > 0).astype(int) if k else part[:, 0] for part in (x, x_validation + 0.5))
    monkeypatch.setattr(properties, "PATIENCE", 99)
    errors = []
    for epochs in range(1, 90, 6):  # the same ones and some more, each time
        monkeypatch.setattr(properties, "EPOCHS", epochs)
        found = properties.mlp(x, y, x_validation, y_validation, k, seed=0).predict(x_validation)
        errors.append(np.mean(found != y_validation) if k else np.mean((found - y_validation) ** 2))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_model_is_on_two_sides(nets, seed):
    parts = properties.split(nets, seed=seed)
    owners = [set(nets.facts["model"][part]) for part in parts]
    assert not any(a & b for a, b in itertools.combinations(owners, 2))
    assert sorted(np.concatenate(parts)) == list(range(len(nets)))
    for part, own in zip(nets.split(seed=seed), parts, strict=True):
        assert part.weights.equal(nets.weights[own]), "the parts are the zoo's own"


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
@pytest.mark.parametrize("fact", ["test_accuracy", "optimiser"])
def test_the_probe_does_not_see_the_test_part(nets, kind, fact):
    x = properties.weight_statistics(nets)
    nets = replace(nets, facts=nets.facts | {"optimiser": rng(8).choice(["adam", "sgd"], len(nets))})
    test = properties.split(nets, seed=0)[2]
    x_other, y_other = x.copy(), nets.facts[fact].copy()
    x_other[test], y_other[test] = 100 * rng(9).normal(size=x[test].shape), rng(9).permutation(y_other[test])
    other = replace(nets, facts=nets.facts | {fact: y_other})
    a, b = (one(x, zoo, fact, kind=kind, seeds=[0]) for x, zoo in ((x, nets), (x_other, other)))
    np.testing.assert_array_equal(a.models[0].predict(x), b.models[0].predict(x))
    if kind == "ridge":
        np.testing.assert_array_equal(a.models[0].coefficients, b.models[0].coefficients)
    assert a.scores != b.scores


def test_targets_that_are_probed_together_get_what_each_gets_alone(nets):
    x = properties.weight_statistics(nets)
    targets = {"a": Target("test_accuracy"), "last": Target("test_accuracy", last=True), "b": Target("step", log=True)}
    together = probe(x, nets, targets, seeds=[0, 1])
    assert list(together) == list(targets)
    for name, target in targets.items():
        assert together[name].scores == one(x, nets, target, seeds=[0, 1]).scores


def test_last_snapshots_are_all_that_a_target_within_an_epoch_has(nets):
    rows = properties.last_snapshots(nets)
    assert rows.tolist() == list(range(SNAPSHOTS - 1, len(nets), SNAPSHOTS))
    x = properties.weight_statistics(nets)
    alone = one(x[rows], nets.filter(rows), seeds=[2])
    assert one(x, nets, Target("test_accuracy", last=True), seeds=[2]).scores == alone.scores
    order = rng().permutation(len(nets))
    assert set(order[properties.last_snapshots(nets.filter(order))]) == set(rows)


def test_a_logarithm_is_predicted_as_one(nets):
    x = np.log10(nets.facts["step"])[:, None]
    found = one(x, nets, Target("step", log=True), seeds=[0])
    np.testing.assert_allclose(found.models[0].predict(x), x[:, 0], atol=1e-4)


def test_numbers_can_be_categories(nets):
    x = np.eye(SNAPSHOTS)[np.log10(nets.facts["step"]).astype(int)]
    found = one(x, nets, Target("step", category=True), seeds=[0])
    assert set(found.classes) == {"1", "10", "100"}
    assert found.scores["accuracy"] == [100]
    assert found.scores["majority"] == [pytest.approx(100 / 3)]


def test_another_zoo_is_scored_and_not_learned_from(nets):
    x = rng(1).normal(size=(len(nets), 3))
    x -= x.mean(0)
    truth = {"planted": x @ [1.0, 2.0, 3.0], "kind": np.where(x[:, 0] > 0, "a", "b")}
    here = replace(nets, facts=nets.facts | truth)
    there = replace(nets, facts=nets.facts | {"planted": -truth["planted"], "kind": np.full(len(nets), "new")})
    targets = {"number": Target("planted"), "kind": Target("kind")}
    found = probe(x, here, targets, other=(x, there))
    alone = probe(x, here, targets)
    assert found["number"].scores["r2"] == alone["number"].scores["r2"]
    assert found["number"].scores["other r2"] == pytest.approx([-3] * 5, abs=1e-3), "the sign is wrong: 1 - 2^2"
    assert found["number"].scores["other tau"] == pytest.approx([-1] * 5, abs=1e-2)
    assert found["kind"].scores["other accuracy"] == [0] * 5
    shown = properties.table({"x": found}, other=True)
    assert "| x | -3.000" in shown
    assert "(-1.00) | 0.0 ± 0.0 (of 0.0 %) |" in shown


def test_the_table_has_the_means_over_splits(nets):
    x = properties.weight_statistics(nets)
    found = {"s(W)": probe(x, nets, {"accuracy": Target("test_accuracy")})}
    r2, tau = (np.array(found["s(W)"]["accuracy"].scores[name]) for name in ("r2", "tau"))
    half = 2.776 * r2.std(ddof=1) / 5**0.5  # Student's, 4 degrees of freedom
    heads, _, row = properties.table(found).splitlines()
    assert heads == "|  | accuracy: R2 (tau) |"
    assert row == f"| s(W) | {r2.mean():.3f} ± {half:.3f} ({tau.mean():.2f}) |"


def test_constant_features_tell_nothing(nets):
    found = one(np.ones((len(nets), 3)), nets)
    assert max(found.scores["r2"]) <= 0
    assert found.scores["tau"] == [0] * 5


def test_what_cannot_be_probed(nets):
    x = properties.weight_statistics(nets)
    with pytest.raises(ValueError, match=r"x: features of shape \(5, 21\), expected \(180, f\)"):
        one(x[:5], nets)
    with pytest.raises(ValueError, match=r"other: features of shape \(180, 20\), expected \(180, 21\)"):
        one(x, nets, other=(x[:, 1:], nets))
    bad = x.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 features are NaN or infinite, the first in row 3, column 2"):
        one(bad, nets)
    with pytest.raises(ValueError, match="fact 'gap' is missing; this zoo has model, step, test_accuracy"):
        one(x, nets, "gap")
    same = replace(nets, facts=nets.facts | {"lr": np.full(len(nets), 1e-3), "init": np.full(len(nets), "he")})
    for fact in ("lr", "init"):
        with pytest.raises(ValueError, match=f"fact '{fact}' is the same for all 126 networks of the training part"):
            one(x, same, fact)
    with pytest.raises(ValueError, match="the same for all 180 networks of the other zoo"):
        one(x, nets, other=(x, replace(nets, facts=nets.facts | {"test_accuracy": np.ones(len(nets))})))
    zero = replace(nets, facts=nets.facts | {"step": nets.facts["step"] - 1, "gap": np.full(len(nets), np.inf)})
    with pytest.raises(ValueError, match="fact 'step' is 0 in 60 of 180 networks, expected numbers above 0"):
        one(x, zero, Target("step", log=True))
    with pytest.raises(ValueError, match="fact 'gap' is inf in 180 of 180 networks, expected finite numbers"):
        one(x, zero, "gap")
    with pytest.raises(ValueError, match="1 models are too few for 3 parts"):
        one(x[:3], nets.filter(range(3)))
    with pytest.raises(ValueError, match="shares"):
        one(x, nets, shares=(0.9, 0.1, 0.0))
    with pytest.raises(ValueError, match="0 targets, 5 seeds"):
        probe(x, nets, {})
    with pytest.raises(ValueError, match="kind='forest': expected one of"):
        one(x, nets, kind="forest")
    with pytest.raises(ValueError, match="by='row': expected one of"):
        properties.weight_statistics(nets, "row")


# ---- latents looked at -------------------------------------------------------------------------------------------


def test_the_spread_is_the_deviation_of_a_layers_latents(nets):
    pca = layer_pca(nets, 3)
    found = latent_maps.layer_spread(pca, nets, groups=2)
    order = nets.facts["test_accuracy"].argsort()
    assert found.layers == ("fc1.weight", "fc2.weight", "fc3.weight")
    for group, part in enumerate(np.split(order, 2)):
        accuracy = nets.facts["test_accuracy"][part]
        assert found.groups[group] == (accuracy.min(), accuracy.max())
        for layer, z in enumerate(pca.embed(nets)[part].double().split([5, 4, 3], 1)):
            expected = ((z - z.mean((0, 1))) ** 2).mean().sqrt()
            assert found.deviation[group, layer] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match=r"groups=0: expected 1 \.\. 180"):
        latent_maps.layer_spread(pca, nets, groups=0)


def test_ways_are_of_each_models_snapshots_in_order(nets):
    pca = layer_pca(nets, 3)
    order = rng().permutation(len(nets))
    moved = nets.filter(order)
    found = latent_maps.trajectories(pca, moved, [9, 12])
    assert list(found.ways) == [9, 12]
    for model, rows in found.ways.items():
        assert moved.facts["model"][rows].tolist() == [model] * SNAPSHOTS
        assert moved.facts["step"][rows].tolist() == [1, 10, 100]
    z = pca.mean(moved).double()
    z -= z.mean(0)
    assert found.shares.sum() <= 1
    np.testing.assert_allclose((found.points**2).sum(0) / (z**2).sum().numpy(), found.shares)
    every = latent_maps.trajectories(layer_pca(nets, 2), nets)  # a plane holds two numbers as they are
    z = layer_pca(nets, 2).mean(nets).double()
    np.testing.assert_allclose(np.linalg.norm(every.points[3] - every.points[50]), (z[3] - z[50]).norm(), rtol=1e-5)
    assert len(every.ways) == N
    with pytest.raises(ValueError, match="models: 1 is none of the zoo's 60 models"):
        latent_maps.trajectories(pca, nets, [9, 1])
    with pytest.raises(ValueError, match="1 networks, expected at least two"):
        latent_maps.trajectories(pca, nets.filter([0]))


def test_the_nearest_models_are_by_brute_force(nets):
    pca, row = layer_pca(nets, 3), 20
    found = latent_maps.nearest_models(pca, nets, row, 4)
    z, owners = pca.mean(nets).double().numpy(), nets.facts["model"]
    nearest = {}
    for i in range(len(nets)):
        if owners[i] != owners[row]:
            distance = np.linalg.norm(z[i] - z[row])
            nearest[owners[i]] = min(nearest.get(owners[i], (np.inf, -1)), (distance, i))
    expected = sorted(nearest.values())[:4]
    np.testing.assert_allclose(found.facts["distance"], [distance for distance, _ in expected])
    assert found.weights.equal(nets.weights[[i for _, i in expected]])
    with pytest.raises(ValueError, match=r"k=60: expected 1 \.\. 59"):
        latent_maps.nearest_models(pca, nets, row, 60)
    with pytest.raises(ValueError, match=r"row=180: expected 0 \.\. 179"):
        latent_maps.nearest_models(pca, nets, 180)
    with pytest.raises(ValueError, match="of one model"):
        latent_maps.nearest_models(pca, nets.filter(range(3)), 0)

"""Laws of the comparison of representations: counts by hand, scales with ends, and functions that shuffling keeps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsnotebook import cornn, networks, zoo
from wsnotebook.comparisons import own, perceptrons, representations, ways
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import properties, sane, swat_nn, swat_stream, weight_flow
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.mlp_fitting import Config
from wsnotebook.methods.mlp_matrix import Form, evaluate
from wsnotebook.methods.mlp_modules import from_zoo
from wsnotebook.methods.properties import Probe, Target
from wsnotebook.methods.sampling import integrate, times
from wsnotebook.zoo.value import Zoo

MODELS, SNAPSHOTS = 40, 3


def made(models=MODELS, seed=0):
    """Random networks, some snapshots of each, whose size tells their accuracy."""
    n, name = models * SNAPSHOTS, "mlp-6-5-4-3"
    layout = Layout.of(networks.build(name), exclude=COUNTERS)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    start, drift = (torch.randn(models, layout.d, generator=generator) for _ in range(2))
    step = np.tile(10 ** np.arange(SNAPSHOTS), models)
    size = torch.from_numpy(rng.uniform(0.5, 2, n)).float()
    weights = (start.repeat_interleave(SNAPSHOTS, 0) + 0.3 * drift.repeat_interleave(SNAPSHOTS, 0)) * size[:, None]
    accuracy = 40 * size.numpy() + rng.normal(size=n)
    facts = {"model": np.repeat(np.arange(models) + 7, SNAPSHOTS), "step": step}
    facts |= {"test_accuracy": accuracy, "validation_accuracy": accuracy}
    facts["activation"] = np.array(["relu", "tanh"])[facts["model"] % 2]
    return Zoo(weights, layout, facts, name, {})


@pytest.fixture(scope="module")
def nets():
    return ways.networks(made())


@pytest.fixture(scope="module")
def parts(nets):
    return nets[0].split((0.7, 0.3), 0)


@pytest.fixture(scope="module")
def twins(nets, parts):
    last = parts[1].filter(ways.last_rows(parts[1].raw))
    return representations.twins(last, nets[1].reference)


# ---- networks and the ways of writing them down ------------------------------------------------------------------


def test_aligned_networks_are_the_same_functions_in_their_models_order(nets):
    both, order = nets
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    for i in (0, 4, 119):
        torch.testing.assert_close(both.aligned.module(i)(x), both.raw.module(i)(x), atol=1e-5, rtol=1e-5)
    group = next(iter(order.permutations))
    assert not order.permutations[group].equal(torch.arange(order.permutations[group].shape[1]).expand(MODELS, -1))
    assert len(order.zoo) == MODELS, "one a model: the others follow"


def test_latents_are_those_that_notebook_04_probes(parts):
    embedder = layer_pca(parts[0].aligned, 3)
    features = properties.features(parts[1].aligned, {"it": embedder})
    for way, name in zip(
        ways.of_embedder("SANE", embedder, ["mean", "layers", "sequence"]), ("mean", "layers", "all"), strict=True
    ):
        np.testing.assert_allclose(way.of(parts[1]), features[f"it, {name}"])
    with pytest.raises(ValueError, match="part='first'"):
        ways.of_embedder("SANE", embedder, ["first"])[0].of(parts[1])


def test_weights_are_represented_as_they_say(parts):
    seen, unseen = parts
    by_name = {way.name: way.of(unseen) for way in ways.of_weights(seen, 7)}
    np.testing.assert_array_equal(by_name["raw weights"], unseen.raw.weights)
    np.testing.assert_array_equal(by_name["aligned weights"], unseen.aligned.weights)
    centred = (seen.aligned.weights - seen.aligned.weights.mean(0)).double()
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    expected = (unseen.aligned.weights - seen.aligned.weights.mean(0)).double() @ axes[:7].T
    np.testing.assert_allclose(np.abs(by_name["PCA"]), expected.abs(), atol=1e-4)


def test_an_untrained_flows_noise_is_known_in_closed_form(parts):
    zoo = ways.without_activations(parts[0].aligned)
    flow = weight_flow.train(zoo, weight_flow.Config(components=5, iterations=0, path_noise=0.1, source=0.7))
    c, z = flow.coordinates, flow.coordinates.encode(zoo.weights)
    source, path = 0.7 * c.rms, 0.1 * c.rms
    expected = z * ((source**2 + path**2) / (c.deviations**2 + path**2)).sqrt() / source
    torch.testing.assert_close(ways.noise(flow, zoo), expected, rtol=1e-3, atol=1e-4)


def test_a_flow_makes_the_networks_of_their_noise(parts):
    zoo = ways.without_activations(parts[0].aligned)
    config = weight_flow.Config(components=4, iterations=200, hidden=32, path_noise=0.1)
    flow = weight_flow.train(zoo, config)
    x = ways.noise(flow, parts[1].aligned) * flow.config.source * flow.coordinates.rms
    again = integrate(lambda x, t: flow.network(x, t[None], None), x, times(ways.BACK))[-1]
    torch.testing.assert_close(again, flow.coordinates.encode(parts[1].aligned.weights), rtol=0, atol=0.02)


# ---- the questions -----------------------------------------------------------------------------------------------


def test_relatives_are_counted_as_by_hand():
    rng = np.random.default_rng(0)
    x, models = rng.normal(size=(30, 4)), rng.integers(0, 6, 30)
    models[models == 5] = 50 + np.arange((models == 5).sum())  # some have one snapshot alone
    found = []
    for model in np.unique(models):
        rows = np.flatnonzero(models == model)
        if len(rows) < 2:
            continue
        hits = []
        for i in rows:
            distance = [np.inf if i == j else np.linalg.norm(x[i] - x[j]) for j in range(30)]
            hits.append(models[int(np.argmin(distance))] == model)
        chance = (len(rows) - 1) / 29
        found.append((np.mean(hits) - chance) / (1 - chance))
    np.testing.assert_allclose(representations.relatives(x, models), found)


def test_relatives_have_both_ends_and_may_be_none():
    models = np.repeat(np.arange(5), 4)
    own = models[:, None] + 0.01 * np.random.default_rng(0).normal(size=(20, 3))
    assert representations.relatives(own, models) == [1] * 5
    strangers = np.concatenate([representations.relatives(rng_features(s), models) for s in range(40)])
    assert abs(strangers.mean()) < 0.05, "by chance"
    assert representations.relatives(own, np.arange(20)) == []
    assert representations.relatives(own, np.zeros(20)) == []


def rng_features(seed):
    return np.random.default_rng(seed).normal(size=(20, 3))


def test_twins_are_found_as_by_hand():
    x = rng_features(0)
    assert representations.twin_found(x, x) == pytest.approx([1] * 20)
    moved = rng_features(1)
    nearest = [int(np.argmin([np.linalg.norm(one - other) for other in x])) for one in moved]
    expected = [((i == found) - 0.05) / 0.95 for i, found in enumerate(nearest)]
    np.testing.assert_allclose(representations.twin_found(x, moved), expected)
    assert representations.twin_found(x[:1], x[:1]) == []


def test_change_is_in_units_of_the_distance_between_networks():
    x, moved = rng_features(0), rng_features(1)
    pairs = [np.sum((a - b) ** 2) for i, a in enumerate(x) for b in x[:i]]
    expected = [np.linalg.norm(a - b) / np.sqrt(np.mean(pairs)) for a, b in zip(x, moved, strict=True)]
    np.testing.assert_allclose(representations.change(x, moved), expected)
    np.testing.assert_allclose(representations.change(10 * x, 10 * moved), expected)
    assert not representations.change(x, x).any()


def test_shuffled_twins_are_the_same_functions(twins):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    for other in (twins.moved.raw, twins.moved.aligned, twins.again):
        assert not other.weights.equal(twins.own.aligned.weights)
        torch.testing.assert_close(other.module(3)(x), twins.own.raw.module(3)(x), atol=1e-5, rtol=1e-5)
    distance = (twins.again.weights - twins.own.aligned.weights).norm(dim=1)
    assert distance.mean() < (twins.moved.aligned.weights - twins.own.aligned.weights).norm(dim=1).mean()


def test_only_what_a_zoo_can_answer_is_asked():
    zoo = made()
    found, left = representations.answerable(zoo)
    assert list(found) == ["accuracy", "accuracy, last snapshots", "log step", "activation"]
    assert left[0] == "gap: the zoo has no fact 'gap'"
    one = zoo.filter(ways.last_rows(zoo))
    one = one.derived(one.weights, gap=np.ones(len(one)))
    found, left = representations.answerable(one)
    assert list(found) == ["accuracy", "activation"]
    assert {
        "log step: the same for all networks",
        "accuracy, last snapshots: one snapshot of each model",
        "gap: the same for all networks",
    } <= set(left)


def test_one_comparison_is_probes_and_distances(parts, twins):
    seen, unseen = parts
    targets = {"accuracy": Target("test_accuracy"), "activation": Target("activation")}
    asked = ways.of_weights(seen, 5)
    entries = representations.compare(asked, seen, unseen, targets, twins, other=unseen, seeds=(0, 1))
    assert [e.name for e in entries] == [way.name for way in asked]
    for way, entry in zip(asked, entries, strict=True):
        x, apart = way.of(seen), way.of(unseen)
        probes = properties.probe(x, seen.raw, targets, seeds=(0, 1), other=(apart, unseen.raw))
        assert entry.probes["accuracy"].scores == probes["accuracy"].scores
        assert entry.elsewhere == pytest.approx(probes["accuracy"].scores["other r2"]), "the same zoo, the same score"
        assert entry.numbers == x.shape[1]
        assert bool(entry.again) == way.aligned
        assert len(entry.twins) == len(entry.change) == len(unseen.raw) / SNAPSHOTS
    by_name = {e.name: e for e in entries}
    assert max(by_name["statistics s(W)"].change) < 1e-3 < min(by_name["raw weights"].change)
    assert by_name["statistics s(W)"].twins == pytest.approx([1] * len(twins.again))
    assert len(by_name["raw weights"].relatives) == 12
    assert np.mean(by_name["raw weights"].relatives) > 0.9, "snapshots of one line"
    columns, rows = representations.table(entries)
    assert {len(row) for row in rows} == {len(columns) + 1}
    assert columns[2:] == ["accuracy", "activation", "elsewhere", "relatives", "twins", "change", "aligned again"]


def entry(**scores):
    """An entry of probes with these scores on the networks set aside."""
    probes = {name: Probe(Target(name), classes, found, (None,)) for name, (classes, found) in scores.items()}
    return representations.Entry("PCA", 3, 0.002, probes, [], [], [0.5, 1.0], [0.2, 0.4], [])


def test_everything_is_told_on_one_scale():
    number = (), {"other r2": [0.25, 0.75]}
    category = ("a", "b"), {"other accuracy": [60.0, 40.0], "other majority": [40.0, 40.0]}
    answers = entry(gap=number, init=category).answers()
    assert list(answers) == ["gap", "init", "twins"]
    assert answers["gap"][0] == 0.5
    assert answers["init"][0] == pytest.approx((1 / 3 + 0) / 2)
    row = entry(gap=number).row()
    assert row["cpu_ms"] == 2
    assert row["change"] == pytest.approx(0.3)
    assert row["gap +-"] == pytest.approx(answers["gap"][1])
    assert entry(gap=((), {"other r2": [0.25]})).row()["gap +-"] is None, "one split"


# ---- your own networks -------------------------------------------------------------------------------------------

CLASS = """
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate, self.say = nn.Linear(64, 9), nn.Linear(64, 9), nn.Linear(9, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.say(self.value(x) * self.gate(x).sigmoid())

def gated():
    return Gated()
"""


def test_checkpoints_of_an_unknown_architecture_go_through(digits, tmp_path, monkeypatch):
    (tmp_path / "somebodys_code.py").write_text(CLASS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name, folder = "somebodys_code:gated", tmp_path / "checkpoints"
    folder.mkdir()
    trained = zoo.train(name, digits, 24, zoo.Config(epochs=1, lr=(1e-2, 1e-3, 1e-4), batch=100))
    for i in range(len(trained)):
        save_file(trained.module(i).state_dict(), folder / f"{i:02}.safetensors")

    nets, x = own.load(folder, name, digits), digits.train[0][:8]
    both, order = ways.networks(nets, x)
    seen, unseen = both.split((0.7, 0.3), 0)
    config = sane.preset("ours", seen.aligned, iterations=2, z=8, dim=24, heads=2, blocks=1)
    model = sane.train(seen.aligned, config, x=x)
    k = len(seen.raw) - 1
    flow = weight_flow.train(seen.aligned, weight_flow.preset("ours", seen.aligned, components=k, iterations=2))
    asked = [*ways.of_weights(seen, k), *ways.of_embedder("SANE", model, ["mean", "layers"]), ways.of_flow(flow)]
    targets, left_out = representations.answerable(seen.aligned)
    assert list(targets) == ["accuracy", "gap"]
    assert "log step: the zoo has no fact 'step'" in left_out
    twins = representations.twins(unseen, order.reference, x)
    entries = {e.name: e for e in representations.compare(asked, seen, unseen, targets, twins)}
    assert list(entries["SANE, mean"].answers()) == ["accuracy", "gap", "twins"], "no snapshots, no relatives"
    assert entries["statistics s(W), tensors"].answers()["accuracy"][0] > 0.5, "the learning rate shows in the weights"
    assert np.mean(entries["raw weights"].change) > 0.1 > np.max(entries["statistics s(W), tensors"].change)


# ---- SWAT-NN's networks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    form = Form(width=4, depth=2)
    start = swat_stream.draw(form, swat_stream.Stream(), 30, torch.Generator().manual_seed(0))
    table = cornn.table(["himmelblau"])
    return table, perceptrons.trained(form, start, table, (5, 60), Config(batch=100, lr=0.05))


def test_perceptrons_know_what_they_leave_unexplained(small):
    table, nets = small
    x, y = (part.double() for part in table.test)
    form, parts = from_zoo(nets.raw)
    outputs = evaluate(form, parts.to(torch.float64), x)[..., 0]
    expected = (outputs - y[:, 0]).square().mean(1) / y.var(correction=0)
    np.testing.assert_allclose(nets.raw.facts["fvu"], expected, rtol=1e-4)
    steps = nets.raw.facts["step"]
    assert np.median(nets.raw.facts["fvu"][steps == 60]) < np.median(nets.raw.facts["fvu"][steps == 5])
    np.testing.assert_array_equal(nets.raw.facts["model"], np.tile(np.arange(30), 2))
    with pytest.raises(ValueError, match="sphere, ridge; expected one"):
        perceptrons.trained(form, parts, cornn.table(["sphere", "ridge"]), (1,), Config())


def test_swat_is_blind_to_order_and_signs_and_statistics_are_not_to_signs(small):
    table, nets = small
    twins = perceptrons.twins(nets, seed=3)
    form, _ = from_zoo(nets.raw)
    outputs = [evaluate(form, from_zoo(zoo)[1], table.test[0]) for zoo in (nets.raw, twins.moved.raw, twins.again)]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[2], outputs[0], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(perceptrons.rows(twins.again), perceptrons.rows(nets.aligned), atol=1e-5)
    model = swat_nn.untrained(swat_nn.Config(form=form, z=8, dim=24, heads=2, blocks=1))
    for way in perceptrons.of_swat("SWAT-NN", model):
        np.testing.assert_allclose(way.of(twins.moved), way.of(twins.own), atol=1e-4)
    statistics = next(way for way in ways.of_weights(nets, 4) if way.name == "statistics s(W)")
    changed = representations.change(statistics.of(twins.own), statistics.of(twins.moved))
    unsigned = replace(nets.raw, weights=nets.raw.weights.abs())
    assert changed.max() > 0.05
    np.testing.assert_allclose(
        properties.weight_statistics(replace(twins.moved.raw, weights=twins.moved.raw.weights.abs())),
        properties.weight_statistics(unsigned),
        atol=1e-5,
    )

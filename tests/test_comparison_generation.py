"""Ways of making networks side by side: what the numbers of a table are, and that anybody's networks go through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsnotebook import evaluation, symmetry, zoo
from wsnotebook.comparisons import generation, generators, own
from wsnotebook.evaluation import Comparison, Novelty
from wsnotebook.layout import Layout
from wsnotebook.methods import controls, sane, weight_flow

TRAINING = zoo.Config(epochs=4, batch=64, lr=2e-2)
SANE = sane.Config(iterations=0, dim=12, heads=2, blocks=1, z=64, batch=4, held_out=0.2)
FLOW = {"5 iterations": weight_flow.Config(hidden=8, iterations=5, batch=4)}


@pytest.fixture(scope="module")
def small(digits):
    return digits.first(train=320, validation=150, test=150)


@pytest.fixture(scope="module")
def task(small, tmp_path_factory):
    """The task of twelve networks of a user's own class, read from a folder of checkpoints."""
    folder = tmp_path_factory.mktemp("somebody")
    (folder / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSNOTEBOOK_CACHE", str(folder))
        trained = zoo.train("squeezed:squeezed", small, 12, TRAINING)
        for i in range(12):
            save_file(trained.module(i).state_dict(), folder / "runs" / f"{i:02d}.safetensors")
        nets = own.alike(own.load(folder / "runs", "squeezed:squeezed", small))
        assert np.allclose(nets.facts["test_accuracy"], trained.facts["test_accuracy"])
        yield generation.task(nets, small)


def test_somebodys_networks_go_through_everything(task):
    ways = generators.without_training(task.zoo)
    ways["weight flow"] = generators.flows(task.zoo, FLOW)
    ways |= generators.of_sane(task.zoo, task.data, SANE, FLOW)
    ways = {method: dict(list(dials.items())[:2]) for method, dials in ways.items()}  # for speed
    entries = [generation.the_zoo(task.test), *generation.compare(ways, task, n=6, seeds=2)]
    entries.append(generation.from_scratch(task, 3, replace(TRAINING, seed=99)))
    by = {entry.method: entry.measures() for entry in entries}
    assert by["closed-form flow"]["copies (%)"] == [100, 100]
    assert max(by["closed-form flow"]["nearest (zoo's = 1)"]) < 0.01
    assert by["closed-form flow"]["error overlap"] == pytest.approx([1, 1], abs=0.05)
    assert by["from scratch"]["copies (%)"] == [0]
    assert by["from scratch"]["accuracy (%)"][0] == pytest.approx(task.zoo.facts["test_accuracy"].mean(), abs=20)
    columns, rows = generation.table(entries)
    assert {len(row) for row in rows} == {len(columns) + 1}
    assert len(generation.markdown(columns, rows).splitlines()) == 2 + len(entries)
    assert {entry.trained > 0 for entry in entries if entry.method.startswith("weight flow")} == {True}


def test_the_zoos_own_row_is_each_network_against_the_others(task):
    found = generation.the_zoo(task.test).measures()
    assert found["accuracy (%)"] == [pytest.approx(task.zoo.facts["test_accuracy"].mean())]
    distance = evaluation.leave_one_out(task.zoo, task.test.moments).distance
    assert found["nearest (zoo's = 1)"] == [pytest.approx(distance.mean() / np.median(distance))]
    novel = distance > np.median(distance)
    good = task.zoo.facts["test_accuracy"] > np.quantile(task.zoo.facts["test_accuracy"], 0.05)
    assert found["novel and accurate (%)"] == [pytest.approx(100 * (novel & good).mean())]


def test_shortfall_by_hand():
    made = Comparison(np.array([45.0, 90.0, 99.0]), np.array([1.0, 3.0, 5.0]), *[np.zeros(3)] * 3)
    found = Novelty(made, made, distance_above=4.0, accuracy_above=90.0)
    assert generation.shortfall(found) == pytest.approx(((0.75 + 0.5) + 0.25 + 0) / 3)


def given(nets):
    """A way that draws these networks, and knows nothing else."""
    return lambda _: (lambda n, seed: nets.made(nets.weights[:n]), 0.0)


def test_the_setting_is_that_with_most_novel_and_accurate_else_nearest_to_it(task):
    copies, broken = task.zoo.filter(range(6)), controls.noise(task.zoo, 6, 3.0)
    state = {name: tensor.clone() for name, tensor in copies.layout.unflatten(copies.weights).items()}
    state["look.weight"][:, 0] *= 100  # a channel of ReLU, and what reads it: the same functions, far away
    state["look.bias"][:, 0] *= 100
    state["say.weight"][..., :9] /= 100
    rescaled = copies.made(copies.layout.flatten(state))
    dials = {"copies": given(copies), "broken": given(broken), "rescaled": given(rescaled)}
    assert generation.best_setting(dials, task, 6) == "rescaled"
    dials = {"copies": given(copies), "between": given(controls.interpolations(task.zoo, 6, t=0.05))}
    each = {s: generation.measured("", "", [fit(0)[0](6, 0)], task.validation).found[0] for s, fit in dials.items()}
    assert {found.joint for found in each.values()} == {0}
    least = min(each, key=lambda setting: generation.shortfall(each[setting]))
    assert generation.best_setting(dials, task, 6) == least


def test_an_ensembles_gain_is_over_its_own_members(task):
    few = task.zoo.filter([0, 1, 2])
    votes = torch.stack([few.module(i)(task.data.test[0]).softmax(-1) for i in range(3)]).double().mean(0)
    together = 100 * float((votes.argmax(1) == task.data.test[1]).double().mean())
    gain = generation.measured("", "", [few], task.test).measures()["ensemble gain"][0]
    assert gain == pytest.approx(together - few.facts["test_accuracy"].mean())


def test_latents_as_a_zoo_come_back_as_the_networks(task):
    model = sane.train(task.zoo, SANE, x=task.images[:1])
    rows = generators.latents(model, task.zoo)
    assert rows.layout.d == model.embed(task.zoo)[0].numel()
    back = generators.decoded(model, rows)
    assert torch.allclose(back.weights, task.zoo.weights, atol=1e-4)  # z is as wide as the widest row: nothing is lost
    assert back.layout == task.zoo.layout


def test_a_permuted_copy_is_still_a_copy_after_training(task):
    arms = {
        "copy": task.zoo.filter(range(4)),
        "permuted": symmetry.permute(task.zoo.filter(range(4)), x=task.images[:1]),
    }
    tuned, found = generation.after_training(arms, task, (0, 10), TRAINING)
    assert tuned.test["copy"][0] == pytest.approx(task.zoo.facts["test_accuracy"][:4])
    unit = np.median(task.test.comparison.distance)
    for own_ones in found.values():
        assert own_ones[0].generated.distance.max() < 0.01 * unit
        assert own_ones[1].generated.distance.min() > 0
        assert own_ones[0].joint == 0


def test_ways_keep_the_zoos_mean_where_they_must(task):
    few = generators.without_training(task.zoo)
    several = {
        method: dials.popitem()[1](0)[0](400, 3) for method, dials in few.items() if method != "closed-form flow"
    }
    spread = task.zoo.weights.std(0).mean()
    for method, nets in several.items():
        assert (nets.weights.mean(0) - task.zoo.weights.mean(0)).abs().mean() < 0.2 * spread, method
    assert all(isinstance(nets.layout, Layout) and len(nets) == 400 for nets in several.values())


def test_a_small_zoo_has_no_way_without_a_setting(task):
    assert min(map(len, generators.without_training(task.zoo.filter(range(3))).values())) >= 1


def test_the_gaussian_is_that_of_the_controls(task):
    draw, _ = generators.without_training(task.zoo)["Gaussian of PCA, with remainder"][
        "8 components, 0.7 as wide, remainder 0.8"
    ](0)
    expected = controls.pca_gaussian(task.zoo, 5, 8, 0.7, 0.8, seed=4)
    assert torch.equal(draw(5, 4).weights, expected.weights)

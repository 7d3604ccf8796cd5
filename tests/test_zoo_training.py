"""A zoo trained whole at once is the zoo trained one network at a time, however it is cut up or interrupted."""

import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsnotebook import engines, evaluation, networks, training, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods.properties import last_snapshots

FAST = zoo.Config(epochs=1, batch=100, lr=3e-3)


def loop(network, x, y, rows, optimiser, lr, decay):
    """The straightforward formulation: one PyTorch network, one step after another."""
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.get(optimiser)
    options = {"lr": lr, "weight_decay": decay}
    if make is None:
        options |= {"momentum": 0.9, "nesterov": True}
    steps = (make or torch.optim.SGD)(network.parameters(), **options)
    network.train()
    for batch in rows:
        loss = F.cross_entropy(network(x[batch[batch >= 0]]), y[batch[batch >= 0]])
        steps.zero_grad()
        loss.backward()
        steps.step()
    return network


@pytest.mark.parametrize("order", ["shared", "own"])
@pytest.mark.parametrize("engine", ["stacked", "single", "lanes"])
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("name", ["mlp-64-16-12-10", "cnn-tiny"])
def test_an_engine_trains_each_network_as_a_plain_loop_does(digits, engine, optimiser, name, order):
    if engine == "lanes":
        pytest.importorskip("numba")
        if name.startswith("mlp"):
            pytest.skip("MLPs are quicker stacked")
    x, y = digits.train
    rows = torch.randint(len(x), (3, 20, 10), generator=torch.Generator().manual_seed(0))  # (k, steps, batch)
    rows[:, -1, 6:] = -1
    rows = rows if order == "own" else rows[0]
    lr, decay = torch.tensor([1e-3, 1e-3, 3e-3]), torch.tensor([0.0, 0.01, 0.01])
    if optimiser == "sgd":
        lr = lr * 10
    nets = [networks.build(name, seed=i) for i in range(3)]
    layout = Layout.of(nets[0])
    weights = torch.stack([layout.flatten(net.state_dict()) for net in nets])
    settings = {"optimiser": optimiser, "lr": lr, "weight_decay": decay, "dropout": torch.zeros(3)}
    trainer = engines.make(engine, networks.build(name), weights, seeds=torch.arange(3), **settings)
    trainer.run(x, y, rows, torch.ones(20))
    for i, net in enumerate(nets):
        own = rows[i] if order == "own" else rows
        wanted = layout.flatten(loop(net, x, y, own, optimiser, lr[i].item(), decay[i].item()).state_dict())
        assert (trainer.weights[i] - wanted).abs().max() < 1e-4
        accuracy, loss = trainer.score(*digits.test)
        score = training.score(net, digits.test)
        assert accuracy[i] == pytest.approx(100 - score.error, abs=0.5)
        assert loss[i] == pytest.approx(score.loss, abs=1e-3)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("engine", "name", "frozen"),
    [
        ("stacked", "mlp-64-16-12-10", {"fc1.weight", "fc1.bias"}),
        ("stacked", "cnn-tiny", {"conv1.weight", "conv1.bias", "fc1.bias"}),
        ("single", "mlp-64-16-12-10", {"fc2.weight"}),
        ("single", "resnet-8", {"conv.weight", "bn.weight", "bn.bias"}),
    ],
)
def test_frozen_parameters_keep_their_bits_and_the_others_learn_as_in_a_plain_loop(
    digits, engine, name, frozen, optimiser
):
    (x, y), build = digits.train, lambda seed: networks.build_for(digits, name, seed=seed).double()
    rows = torch.randint(len(x), (2, 10, 16), generator=torch.Generator().manual_seed(0))  # (k, steps, batch)
    nets, template = [build(0), build(1)], build(2)
    layout = Layout.of(template, exclude=COUNTERS)
    weights = torch.stack([layout.flatten(net.state_dict()) for net in nets])
    lr, decay = torch.tensor([1e-3, 1e-3]).double(), torch.tensor([0.1, 0.3]).double()
    settings = {"optimiser": optimiser, "lr": lr, "weight_decay": decay, "dropout": torch.zeros(2)}
    trainer = engines.make(engine, template, weights, seeds=torch.arange(2), frozen=frozen, **settings)
    trainer.run(x.double(), y, rows, torch.ones(10))
    for i, net in enumerate(nets):
        start, ours = layout.unflatten(weights[i]), layout.unflatten(trainer.weights[i])
        for parameter in frozen:
            net.get_parameter(parameter).requires_grad_(False)
        wanted = loop(net, x.double(), y, rows[i], optimiser, lr[i].item(), decay[i].item()).state_dict()
        for tensor in layout.names:
            assert torch.equal(ours[tensor], start[tensor]) == (tensor in frozen)
            torch.testing.assert_close(ours[tensor], wanted[tensor], rtol=0, atol=1e-9)
    assert all(parameter.requires_grad for parameter in template.parameters())


@pytest.mark.parametrize("network", ["mlp-64-8-10", "cnn-tiny", "resnet-8"])
def test_a_zoo_freezes_what_its_patterns_name(digits, tmp_path, network):
    last = "fc.*" if network == "resnet-8" else "fc2.*"
    config = zoo.Config(epochs=1, batch=200, weight_decay=0.1, snapshots=(0,), frozen=(last, "*.bias"))
    one = zoo.train(network, digits, 2, config, folder=tmp_path)
    before, after = (one.layout.unflatten(one.weights[one.facts["epoch"] == epoch]) for epoch in (0, 1))
    for name in one.layout.names:
        frozen = name.startswith(last[:-1]) or name.endswith(".bias")
        assert torch.equal(before[name], after[name]) == frozen, name


def test_stacked_dropout_does_not_depend_on_the_neighbours(digits):
    x, y = digits.train
    net = networks.build("cnn-tiny", dropout=0.3)
    layout = Layout.of(net)
    weights = torch.stack([layout.flatten(networks.build("cnn-tiny", seed=i).state_dict()) for i in range(4)])
    rows = torch.arange(100).view(10, 10)

    def run(which):
        full = lambda value: torch.full((len(which),), value)  # noqa: E731
        settings = {"optimiser": "adam", "lr": full(1e-3), "weight_decay": full(0.0), "dropout": full(0.3)}
        trainer = engines.make("stacked", net, weights[which], seeds=torch.tensor(which), **settings)
        trainer.run(x, y, rows, torch.ones(10))
        return trainer.weights

    assert (run([0, 1, 2, 3])[[1, 3]] - run([1, 3])).abs().max() < 1e-5
    assert (run([0, 1])[0] - run([1, 0])[1]).abs().max() < 1e-5


def test_dropout_keeps_the_expectation_and_drops_the_share():
    drop = engines.stacked.Dropout(torch.tensor([0.0, 0.5]), torch.tensor([1, 2]))
    factors = drop(200, (50,))
    assert (factors[0] == 1).all()
    assert abs((factors[1] == 0).float().mean() - 0.5) < 0.02
    assert set(factors[1].unique().tolist()) == {0.0, 2.0}


def test_a_plan_goes_through_the_grid_evenly():
    config = zoo.Config(lr=(1e-3, 1e-2), init=("he", "xavier", "normal"), seed=5)
    models = zoo.plan(config, 12)
    pairs = [(m.lr, m.init) for m in models]
    assert all(pairs.count(pair) == 2 for pair in pairs)
    assert [m.seed for m in models] == list(range(5, 17))
    assert zoo.plan(config, 5) == models[:5]


def same(a, b):
    assert torch.equal(a.weights, b.weights)
    assert list(a.facts) == list(b.facts)
    for name, values in a.facts.items():
        assert np.array_equal(values, b.facts[name]), name


@pytest.mark.parametrize("network", ["mlp-64-8-10", "cnn-tiny", "resnet-8"])
def test_a_zoo_is_the_same_however_it_is_sharded(digits, tmp_path, network):
    n = 3 if network == "resnet-8" else 40
    config = zoo.Config(epochs=1, batch=200, lr=(1e-3, 3e-3), snapshots=(2,))
    whole = zoo.train(network, digits, n, config, folder=tmp_path / "a", shard=64)
    same(whole, zoo.train(network, digits, n, config, folder=tmp_path / "b", shard=1))
    with ThreadPoolExecutor(1) as executor:
        same(whole, zoo.train(network, digits, n, config, folder=tmp_path / "c", executor=executor))
    assert whole.facts["step"].tolist() == [2, 6] * n


def test_processes_train_the_same_zoo(digits, tmp_path):
    one = zoo.train("mlp-64-8-10", digits, 20, FAST, folder=tmp_path / "a")
    with ProcessPoolExecutor(2) as executor:
        same(one, zoo.train("mlp-64-8-10", digits, 20, FAST, folder=tmp_path / "b", executor=executor))


def test_processes_go_on_from_ones_own_networks(digits, tmp_path):
    parents = zoo.train("squeezed:squeezed", digits, 2, FAST, folder=tmp_path / "parents")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        there = zoo.train("squeezed:squeezed", digits, 2, FAST, start=parents, folder=tmp_path / "a", executor=executor)
    same(there, zoo.train("squeezed:squeezed", digits, 2, FAST, start=parents, folder=tmp_path / "b"))


def test_an_interrupt_takes_back_the_shards_that_have_not_begun(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "GROUP", 1)

    class Interrupted(Executor):
        def __init__(self):
            self.futures = []

        def submit(self, *task):
            self.futures.append(Future())
            if len(self.futures) == 3:
                self.futures[0].set_exception(KeyboardInterrupt())
            return self.futures[-1]

    executor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        zoo.train("mlp-64-8-10", digits, 3, FAST, folder=tmp_path, shard=1, executor=executor)
    assert [future.cancelled() for future in executor.futures] == [False, True, True]


def test_without_numba_cnns_are_stacked_and_the_zoo_says_so(digits, tmp_path, monkeypatch):
    pytest.importorskip("numba")
    compiled = zoo.train("cnn-tiny", digits, 2, FAST, folder=tmp_path / "a")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    plain = zoo.train("cnn-tiny", digits, 2, FAST, folder=tmp_path / "b")
    assert (compiled.provenance["engine"], plain.provenance["engine"]) == ("lanes", "stacked")
    assert (compiled.weights - plain.weights).abs().max() < 1e-4
    assert engines.choose(networks.build("cnn-small"), "cuda") == "stacked"


def test_facts_are_what_the_network_scores(digits, tmp_path):
    config = zoo.Config(epochs=2, batch=100, activation=("relu", "tanh"), snapshots=(0, 3))
    one = zoo.train("mlp-64-8-10", digits, 4, config, folder=tmp_path)
    for i in range(len(one)):
        for part in ("train", "validation", "test"):
            score = training.score(one.module(i), getattr(digits, part))
            assert one.facts[f"{part}_accuracy"][i] == pytest.approx(100 - score.error)
            assert one.facts[f"{part}_loss"][i] == pytest.approx(score.loss, rel=1e-4)
    started = one.filter(one.facts["step"] == 0)
    first = networks.build("mlp-64-8-10", seed=int(started.facts["seed"][2]))
    assert torch.equal(started.weights[2], one.layout.flatten(first.state_dict()))
    assert np.allclose(one.facts["gap"], one.facts["train_accuracy"] - one.facts["test_accuracy"])


def test_a_schedule_a_shift_and_a_longer_run_are_followed(digits, tmp_path):
    plain = zoo.train("mlp-64-8-10", digits, 2, FAST, folder=tmp_path / "a")
    for i, change in enumerate(({"schedule": "cosine"}, {"shift": 1}, {"epochs": 2}, {"dropout": 0.2})):
        config = zoo.Config(**{"epochs": 1, "batch": 100, "lr": 3e-3} | change)
        other = zoo.train("mlp-64-8-10", digits, 2, config, folder=tmp_path / str(i))
        assert not torch.equal(plain.weights, other.weights)
        assert other.weights.isfinite().all()


KILLED = """
import sys, torch
from wsnotebook import datasets, zoo
torch.set_num_threads(1)
print("ready", flush=True)
zoo.train("mlp-64-8-10", datasets.load("digits"), 96, zoo.Config(epochs=12, batch=20), folder=sys.argv[1])
"""


def test_a_killed_run_goes_on_and_ends_equal(digits, tmp_path):
    config, draw = zoo.Config(epochs=12, batch=20), random.Random(0)
    wanted = zoo.train("mlp-64-8-10", digits, 96, config, folder=tmp_path / "whole")
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "killed"], stdout=subprocess.PIPE)
        run.stdout.readline()
        time.sleep(draw.uniform(0.2, 1.2))
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
    same(wanted, zoo.train("mlp-64-8-10", digits, 96, config, folder=tmp_path / "killed"))
    assert sorted(path.suffix for path in (tmp_path / "killed").iterdir() if not path.name.startswith(".")) == [
        ".safetensors"
    ]


@pytest.fixture
def trained_shards(monkeypatch):
    """The shards that are trained; before the second there is an interrupt, once."""
    calls, real = [], zoo.training._train_shard

    def fail_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(zoo.training, "_train_shard", fail_at_the_second)
    return calls


def test_shards_that_are_there_are_not_trained_again(digits, tmp_path, trained_shards):
    with pytest.raises(KeyboardInterrupt):
        zoo.train("mlp-64-8-10", digits, 48, FAST, folder=tmp_path / "a")
    same(
        zoo.train("mlp-64-8-10", digits, 48, FAST, folder=tmp_path / "a"),
        zoo.train("mlp-64-8-10", digits, 48, FAST, folder=tmp_path / "b"),
    )
    assert len(trained_shards) == 2 + 2 + 3


DAMAGE = {"torn": lambda content: content[:-9], "flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1])}


@pytest.mark.parametrize("name", ["shard-16-0", "zoo"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_zoo_that_is_kept_is_set_aside_and_trained_again(digits, tmp_path, trained_shards, name, damage):
    with pytest.raises(KeyboardInterrupt):
        zoo.train("mlp-64-8-10", digits, 32, FAST, folder=tmp_path)
    if name == "zoo":
        zoo.train("mlp-64-8-10", digits, 32, FAST, folder=tmp_path)
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(broken := DAMAGE[damage](path.read_bytes()))
    with pytest.warns(RuntimeWarning, match=rf"{name}.safetensors: .*set aside as {name}.safetensors.damaged"):
        again = zoo.train("mlp-64-8-10", digits, 32, FAST, folder=tmp_path)
    same(again, zoo.train("mlp-64-8-10", digits, 32, FAST, folder=tmp_path / "other"))
    assert path.with_name(f"{path.name}.damaged").read_bytes() == broken


@pytest.mark.parametrize("network", ["mlp-64-8-10", "cnn-tiny", "resnet-8"])
def test_a_zoo_that_starts_from_networks_goes_on_from_them(digits, tmp_path, network):
    config = zoo.Config(epochs=1, batch=200, snapshots=(0,))
    parents = zoo.train(network, digits, 3, config, folder=tmp_path / "a").filter([5, 1, 3])  # models 2, 0, 1
    children = zoo.train(network, digits, 3, config, start=parents, folder=tmp_path / "b")
    started = children.filter(children.facts["step"] == 0)
    assert torch.equal(started.weights, parents.weights)
    assert started.facts["parent"].tolist() == [2, 0, 1]
    ended = children.filter(children.facts["step"] > 0)
    assert (ended.facts["train_loss"] < started.facts["train_loss"]).all()
    again = zoo.train(network, digits, 3, config, start=parents)
    other = zoo.train(network, digits, 3, config, start=parents.filter([1, 0, 2]))
    assert torch.equal(again.weights, children.weights)
    assert not torch.equal(again.weights, other.weights)
    with pytest.raises(ValueError, match="start: 3 x .*, expected 4 x"):
        zoo.train(network, digits, 4, config, start=parents)


def test_children_keep_their_parents_activation(digits, tmp_path):
    config = zoo.Config(epochs=1, batch=200, activation=("relu", "tanh"))
    parents = zoo.train("mlp-64-8-10", digits, 4, config, folder=tmp_path / "a")
    children = zoo.train("mlp-64-8-10", digits, 4, FAST, start=parents, folder=tmp_path / "b")
    assert children.facts["activation"].tolist() == parents.facts["activation"].tolist()


def test_networks_of_unknown_activation_go_on_with_the_ones_that_are_asked_for(digits, tmp_path):
    parents = zoo.train("mlp-64-8-10", digits, 2, zoo.Config(epochs=0))
    config = zoo.Config(epochs=0, activation=("relu", "tanh"))
    children = zoo.train("mlp-64-8-10", digits, 2, config, start=parents, folder=tmp_path)
    assert "activation" not in parents.facts
    assert children.facts["activation"].tolist() == [model.activation for model in zoo.plan(config, 2)]


def test_what_a_start_knows_of_its_networks_counts_as_their_weights_do(digits):
    kinds = [zoo.train("mlp-64-8-10", digits, 2, zoo.Config(epochs=0, activation=kind)) for kind in ("relu", "tanh")]
    assert torch.equal(kinds[0].weights, kinds[1].weights)
    starts = [*kinds, kinds[1].derived(kinds[1].weights, model=np.array([7, 8]))]
    children = [zoo.train("mlp-64-8-10", digits, 2, FAST, start=start) for start in starts]
    assert [one.facts["activation"][0] for one in children] == ["relu", "tanh", "tanh"]
    assert [one.facts["parent"].tolist() for one in children] == [[0, 1], [0, 1], [7, 8]]


def test_a_network_of_ones_own_that_was_edited_is_trained_again(digits, tmp_path, monkeypatch):
    (tmp_path / "edited_network.py").write_text(
        "from torch import nn\nf = nn.ReLU\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), f(), nn.Linear(8, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = zoo.train("edited_network:make", digits, 2, FAST)
    monkeypatch.setattr("edited_network.f", nn.Tanh)
    assert not torch.equal(zoo.train("edited_network:make", digits, 2, FAST).weights, before.weights)


def test_networks_that_diverge_are_left_out_and_named(digits, tmp_path):
    config = zoo.Config(epochs=1, batch=100, optimiser="sgd", lr=(0.01, 1e30), activation="relu")
    for snapshots in ((), (0, 1)):
        asked = replace(config, snapshots=snapshots)
        lost = [model.number for model in zoo.plan(asked, 4) if model.lr > 1]
        for _ in ("trained", "loaded"):
            with pytest.warns(RuntimeWarning, match="2 of 4 networks diverged") as told:
                one = zoo.train("mlp-64-8-10", digits, 4, asked, folder=tmp_path / str(snapshots))
            assert str(told[0].message).endswith(f"left out from there on: {lost}")
            assert one.provenance["diverged"] == lost
            assert set(one.facts["model"][one.facts["step"] > 1].tolist()) == {0, 1, 2, 3} - set(lost)
            assert (set(lost) <= set(one.facts["model"].tolist())) == (0 in snapshots)
            assert set(one.facts["step"][last_snapshots(one)].tolist()) == {one.facts["step"].max()}


def test_what_cannot_be_trained_is_said_before_any_work(digits, tmp_path):
    def train(network="mlp-64-8-10", n=2, **config):
        zoo.train(network, digits, n, zoo.Config(**config), folder=tmp_path / "none")

    with pytest.raises(ValueError, match="n=0"):
        train(n=0)
    with pytest.raises(ValueError, match="optimiser='lion'"):
        train(optimiser=("adam", "lion"))
    with pytest.raises(ValueError, match="lr=-1"):
        train(lr=-1)
    with pytest.raises(ValueError, match="increasing steps"):
        train(snapshots=(4, 2))
    with pytest.raises(ValueError, match="after the last step"):
        train(snapshots=(10_000,))
    with pytest.raises(ValueError, match="activation='swish'"):
        train(activation="swish")
    with pytest.raises(ValueError, match="chosen for mlp"):
        train("resnet-8", activation="relu")
    with pytest.raises(ValueError, match="does not take"):
        train("mlp-65-8-10")
    with pytest.raises(ValueError, match=r"'conv\*' is no parameter's name or pattern; they are fc1.weight, fc1.bias"):
        train(frozen=("fc1.*", "conv*"))
    with pytest.raises(ValueError, match="nothing to train"):
        train(frozen=("*.weight", "*.bias"))
    with pytest.raises(ValueError, match="expected a tuple"):
        train(frozen="fc1.*")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_a_recipe_names_what_exists(name):
    recipe = zoo.recipe(name)
    assert len(zoo.plan(recipe.config, recipe.n)) == recipe.n
    model = zoo.plan(recipe.config, 1)[0]
    assert isinstance(networks.build(recipe.network, activation=model.activation, dropout=model.dropout), nn.Module)


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match="mlp_mnist"):
        zoo.recipe("mlp_mnst")


def test_transformed_images_under_an_old_name_are_other_data(digits):
    (x, y), plain = digits.train, zoo.train("mlp-64-8-10", digits, 1, FAST)
    turned = zoo.train("mlp-64-8-10", replace(digits, train=(x.mT, y)), 1, FAST)
    assert not torch.equal(plain.weights, turned.weights)


def test_a_second_call_loads_what_the_cache_holds(digits, monkeypatch):
    one = zoo.train("mlp-64-8-10", digits, 3, FAST)
    monkeypatch.setattr(zoo.training, "_train_shard", None)
    same(one, zoo.train("mlp-64-8-10", digits, 3, FAST))
    assert math.isfinite(os.path.getsize(next(training.cache_folder().rglob("zoo.safetensors"))))


def test_training_accuracy_is_of_the_rows_that_are_scored(digits, tmp_path):
    config = zoo.Config(epochs=1, batch=64, scored=50)
    nets = zoo.train("mlp-64-8-10", digits, 3, config, folder=tmp_path)
    x, y = digits.train
    expected = evaluation.report(nets, (x[:50], y[:50])).accuracy
    assert nets.facts["train_accuracy"] == pytest.approx(expected)
    assert not np.allclose(expected, evaluation.report(nets, digits.train).accuracy)
    with pytest.raises(ValueError, match="scored"):
        zoo.Config(scored=0)

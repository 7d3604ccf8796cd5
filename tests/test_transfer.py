"""Transfer: every arm is trained in the same way, frozen in the same places, and none depends on the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wsnotebook import evaluation, networks, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import controls
from wsnotebook.methods.transfer import fine_tuning, layers, transfer

NETWORK = "mlp-64-12-8-10"
CONFIG = zoo.Config(batch=100, lr=3e-3, weight_decay=0.1)
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def moved(digits):
    """The digits one pixel to the right."""
    parts = {part: (getattr(digits, part)[0].roll(1, 3), getattr(digits, part)[1]) for part in PARTS}
    return replace(digits, name="digits, moved", **parts)


@pytest.fixture(scope="module")
def parity(digits):
    """The digits as two classes, even and odd."""
    parts = {part: (getattr(digits, part)[0], getattr(digits, part)[1] % 2) for part in PARTS}
    return replace(digits, name="digits, even or odd", classes=("even", "odd"), **parts)


@pytest.fixture(scope="module")
def arms(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    config = zoo.Config(epochs=3, batch=50, lr=3e-3)
    trained = zoo.train(NETWORK, digits, 4, config, folder=folder / "trained")
    random = zoo.train(NETWORK, digits, 3, replace(config, epochs=0, seed=50), folder=folder / "random")
    return {"zoo": trained, "random": random, "Gaussian": controls.gaussian(trained, 3)}


def tensors(one, epoch):
    rows = one.filter(one.facts["epoch"] == epoch)
    return rows.layout.unflatten(rows.weights)


@pytest.mark.parametrize("share", [0, 0.4, 0.7])
def test_the_first_layers_keep_their_bits_in_every_arm_and_the_others_learn(arms, moved, share):
    result = transfer(arms, moved, (0, 2), config=CONFIG, share=share)
    wanted = {0: (), 0.4: ("fc1.weight", "fc1.bias"), 0.7: ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    assert result.frozen == wanted[share]
    for name, arm in arms.items():
        before, after = tensors(result.zoos[name], 0), tensors(result.zoos[name], 2)
        start = arm.layout.unflatten(arm.weights)
        for tensor in arm.layout.names:
            assert torch.equal(before[tensor], start[tensor])
            assert torch.equal(after[tensor], start[tensor]) == (tensor in result.frozen)
    assert all(name in repr(result) for name in result.frozen or ["nothing"])


@pytest.mark.parametrize(("network", "frozen"), [("cnn-tiny", 1), ("resnet-8", 4)])  # of 4, of 10 layers
def test_convolutions_freeze_with_their_norms_whose_statistics_go_on(digits, parity, network, frozen):
    arm = zoo.train(network, digits, 2, zoo.Config(epochs=0))
    result = transfer({"random": arm}, parity, (0, 1), config=CONFIG, head="fresh")
    before, after = (tensors(result.zoos["random"], epoch) for epoch in (0, 1))
    assert list(result.frozen) == sum(layers(arm.layout)[:frozen], [])
    for tensor in arm.layout.names:
        assert torch.equal(before[tensor], after[tensor]) == (tensor in result.frozen), tensor


def test_epoch_0_is_plain_evaluation_on_the_other_data(arms, moved):
    result = transfer(arms, moved, (0,))
    for name, arm in arms.items():
        for part in ("validation", "test"):
            wanted = evaluation.report(arm, getattr(moved, part)).accuracy
            np.testing.assert_allclose(getattr(result, part)[name], wanted[None], atol=1e-6)


def test_an_arm_has_the_same_curve_alone_beside_others_and_twice(arms, moved):
    together = transfer({**arms, "again": arms["random"]}, moved, (0, 1, 3), config=CONFIG)
    alone = transfer({"random": arms["random"]}, moved, (0, 1, 3), config=CONFIG)
    for name in ("random", "again"):
        assert torch.equal(together.zoos[name].weights, alone.zoos["random"].weights)
        assert np.array_equal(together.test[name], alone.test["random"])
    assert together.test["zoo"].shape == (3, 4)


def test_networks_of_the_same_number_see_the_same_minibatches(arms, moved):
    one = arms["zoo"]
    rows = [transfer({"": one.filter(rows)}, moved, (1,), config=CONFIG).zoos[""] for rows in ([2, 2], [0, 2])]
    torch.testing.assert_close(rows[0].weights[1], rows[1].weights[1], rtol=0, atol=1e-5)
    assert (rows[0].weights[0] - rows[0].weights[1]).abs().max() > 1e-3


def test_epochs_are_places_in_one_run(arms, moved):
    often, once = (transfer(arms, moved, epochs, config=CONFIG) for epochs in ((0, 1, 2), (2,)))
    for name in arms:
        assert np.array_equal(often.test[name][-1:], once.test[name])


def test_a_fresh_head_is_the_same_in_all_arms_and_none_that_they_began_with(arms, digits, parity):
    for data in (parity, digits):
        result = transfer(arms, data, (0, 1), config=CONFIG, head="fresh")
        before = {name: tensors(one, 0) for name, one in result.zoos.items()}
        for name, arm in arms.items():
            start = arm.layout.unflatten(arm.weights)
            for tensor in arm.layout.names:
                if tensor.startswith("fc3"):
                    assert torch.equal(before[name][tensor][:3], before["zoo"][tensor][:3])
                else:
                    assert torch.equal(before[name][tensor], start[tensor])
        head = before["zoo"]["fc3.weight"]
        assert head.shape == (4, len(data.classes), 8)
        assert not torch.equal(head[0], head[1])
    began = networks.build(NETWORK, seed=0).fc3.weight
    assert not torch.equal(head[0], began)


def test_few_shots_are_so_many_rows_of_every_class_drawn_by_the_seed(arms, moved, monkeypatch):
    seen, train = [], zoo.train

    def watched(network, data, *rest, **settings):
        seen.append(data)
        return train(network, data, *rest, **settings)

    monkeypatch.setattr(zoo, "train", watched)

    results = [transfer(arms, moved, (0,), shots=3, seed=seed) for seed in (0, 0, 1)]
    assert "3 a class" in results[0].dataset
    draws = [{row.numpy().tobytes(): int(label) for row, label in zip(*data.train, strict=True)} for data in seen]
    everything = {row.numpy().tobytes(): int(label) for row, label in zip(*moved.train, strict=True)}
    for data, draw in zip(seen, draws, strict=True):
        assert data.test is moved.test
        assert data.train[1].bincount().tolist() == [3] * 10
        assert len(draw) == 30
        assert draw.items() <= everything.items()
    assert all(draw == draws[0] for draw in draws[:6])  # three arms, two times
    assert draws[6] != draws[0]


def test_a_network_that_diverges_is_nan_and_the_others_are_not(arms, moved):
    broken = arms["zoo"].derived(arms["zoo"].weights.clone())
    broken.weights[1] *= 1e30
    with pytest.warns(RuntimeWarning, match="diverged"):
        result = transfer({"": broken}, moved, (1,), config=replace(CONFIG, optimiser="sgd"))
    assert np.isnan(result.test[""][0]).tolist() == [False, True, False, False]


def test_a_table_has_the_means_of_every_arm_and_epoch(arms, moved):
    result = transfer(arms, moved, (0, 1), config=CONFIG)
    text = evaluation.markdown(result.columns, result.rows("validation")).splitlines()
    assert text[0].split(" | ")[1:] == ["epoch 0", "epoch 1 |"]
    for line, (arm, values) in zip(text[2:], result.validation.items(), strict=True):
        assert line.startswith(f"| {arm} | {values[0].mean():.2f} ± ")
    with pytest.raises(ValueError, match="part='train'"):
        result.rows("train")


@pytest.mark.parametrize("name", ["mlp-64-12-8-10", "cnn-tiny", "resnet-8", "wrn-10-1", "vit-tiny"])
def test_layers_are_the_parameters_in_order_and_each_has_a_matrix_or_kernel(name):
    network = networks.build(name)
    layout = Layout.of(network, exclude=COUNTERS)
    found = layers(layout)
    assert sum(found, []) == [name for name, _ in network.named_parameters()]
    kinds = dict(zip(layout.names, layout.kinds, strict=True))
    for layer in found:
        owners = {name.rpartition(".")[0] for name in layer if kinds[name] == "weight"}
        assert len(owners) == 1


def test_a_norm_belongs_to_the_layer_before_it():
    network = torch.nn.Sequential(
        torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 4)
    )
    first = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert layers(Layout.of(network)) == [first, ["3.weight", "3.bias"]]


def test_fine_tuning_by_whole_passes_is_transfer_with_nothing_frozen(arms, digits):
    length = -(-len(digits.train[0]) // CONFIG.batch)
    by_steps = fine_tuning(arms, digits, (0, length, 3 * length), config=CONFIG)
    by_epochs = transfer(arms, digits, (0, 1, 3), config=CONFIG, share=0)
    for name in arms:
        assert np.array_equal(by_steps.test[name], by_epochs.test[name])
        assert np.array_equal(by_steps.validation[name], by_epochs.validation[name])
    assert by_steps.frozen == by_epochs.frozen == ()
    assert by_steps.columns == ["0 steps", f"{length} steps", f"{3 * length} steps"]
    np.testing.assert_allclose(by_steps.epochs, by_epochs.epochs, rtol=0.1)


@pytest.mark.parametrize(("steps", "rows"), [((0, 3), 300), ((2, 5, 25), 900), ((0,), None)])
def test_fine_tuning_goes_through_as_many_rows_as_its_steps_need(arms, digits, monkeypatch, steps, rows):
    seen, train = [], zoo.train

    def watched(network, data, *rest, **settings):
        seen.append(data.train[1])
        return train(network, data, *rest, **settings)

    monkeypatch.setattr(zoo, "train", watched)
    result = fine_tuning(arms, digits, steps, config=CONFIG)
    for labels in seen:
        assert torch.equal(labels, seen[0])
        assert len(labels) == (rows or len(digits.train[0]))
    for name, arm in arms.items():
        assert result.test[name].shape == (len(steps), len(arm))
        assert result.zoos[name].facts["step"].tolist() == list(steps) * len(arm)
        assert not np.isnan(result.test[name]).any()
    if steps[0] == 0:
        for name, arm in arms.items():
            np.testing.assert_allclose(
                result.test[name][0], evaluation.report(arm, digits.test).accuracy, rtol=0, atol=1e-6
            )


def test_what_cannot_be_is_said(arms, moved, parity, digits):
    other = zoo.train("mlp-64-9-8-10", digits, 1, zoo.Config(epochs=0))
    wide = replace(digits, **{part: (getattr(digits, part)[0].repeat(1, 1, 2, 1), digits.test[1]) for part in PARTS})
    for wrong, named in (
        (lambda: transfer({}, moved), "arms: none"),
        (lambda: transfer({**arms, "narrow": other}, moved), r"arms\['narrow'\]: mlp-64-9-8-10"),
        (lambda: transfer(arms, moved, share=1.0), "share=1.0"),
        (lambda: transfer(arms, moved, share=-0.1), "share=-0.1"),
        (lambda: transfer(arms, moved, ()), "increasing"),
        (lambda: transfer(arms, moved, (1, 0)), "increasing"),
        (lambda: transfer(arms, moved, (0, 0.5)), "whole numbers"),
        (lambda: transfer(arms, moved, head="new"), "head='new'"),
        (lambda: transfer(arms, moved, shots=0), "shots=0"),
        (lambda: transfer(arms, moved, shots=10_000), "rarest class"),
        (lambda: transfer(arms, parity), "pass head='fresh'"),
        (lambda: fine_tuning(arms, parity, config=CONFIG), "pass head='fresh'"),
        (lambda: fine_tuning({}, moved, config=CONFIG), "arms: none"),
        (lambda: fine_tuning(arms, moved, (10, 5), config=CONFIG), r"steps=\(10, 5\): expected increasing"),
        (lambda: transfer(arms, wide), r"does not take rows of shape \(1, 16, 8\)"),
    ):
        with pytest.raises(ValueError, match=named):
            wrong()

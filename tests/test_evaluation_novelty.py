"""Laws of distances and of novelty: a copy is never new, nor is noise."""

import numpy as np
import pytest
import torch
from test_evaluation_reports import batch_norm, make
from torch.nn import functional as F

from wsnotebook import evaluation, training
from wsnotebook.evaluation import distances


@pytest.fixture
def split(digits):
    return tuple(t[::5] for t in digits.validation)


@pytest.fixture(scope="module")
def trained(digits):
    zoo = make("mlp-64-12-10", 6)
    config = training.Config(epochs=10, batch=64, lr=5e-3)
    states = [training.train(zoo.module(i), digits, config).state for i in range(len(zoo))]
    return zoo.derived(torch.stack([zoo.layout.flatten(state) for state in states]))


def brute(a, b, moments):
    return ((a[:, None].double() - b.double()).square() * moments).sum(-1).sqrt()


@pytest.mark.parametrize("block", [distances.BLOCK, 100])
def test_nearest_is_the_least_of_all_distances(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    zoo, other = make("mlp-64-12-10", 4), make("mlp-64-12-10", 7, seed=50)
    weighted = torch.rand(zoo.layout.d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 8
    for moments in (None, weighted):
        every = brute(zoo.weights, other.weights, 1 if moments is None else moments)
        found = evaluation.nearest(zoo, other, moments)
        assert (found.index == every.argmin(1).numpy()).all()
        assert found.distance == pytest.approx(every.min(1).values.numpy(), rel=1e-9)
        own = brute(zoo.weights, zoo.weights, 1 if moments is None else moments).fill_diagonal_(torch.inf)
        found = evaluation.leave_one_out(zoo, moments)
        assert (found.index == own.argmin(1).numpy()).all()
        assert found.distance == pytest.approx(own.min(1).values.numpy(), rel=1e-9)


def test_a_copy_is_at_distance_zero_however_large_the_weights():
    zoo = make("mlp-64-12-10", 5)
    zoo = zoo.derived(1e4 + zoo.weights)
    found = evaluation.nearest(zoo.filter([3, 1]), zoo)
    assert found.index.tolist() == [3, 1]
    assert (found.distance == 0).all()


def test_snapshots_of_one_model_are_not_each_others_neighbours():
    zoo = make("mlp-64-12-10", 3).filter([0, 0, 1, 2])
    zoo = zoo.derived(zoo.weights, model=np.array([7, 7, 1, 2]))
    assert (evaluation.leave_one_out(zoo).distance > 0).all()
    with pytest.raises(ValueError, match="at least two models"):
        evaluation.leave_one_out(zoo.filter([0, 1]))


def test_running_statistics_do_not_count():
    zoo = batch_norm(2)
    statistic = torch.tensor([kind == "statistic" for kind in zoo.layout.kinds])[zoo.layout.tensor_index()]
    moved = zoo.derived(zoo.weights + 100 * statistic)
    assert (evaluation.nearest(moved, zoo).distance == 0).all()


def test_moments_are_the_mean_squares_of_what_each_weight_multiplies(split):
    zoo, x = make("cnn-tiny", 2, activation="tanh"), split[0]
    moments = zoo.layout.unflatten(evaluation.input_moments(zoo, x, reference=1))
    network, h, seen = zoo.module(1), x, {}
    with torch.no_grad():
        for name, layer in network.named_children():
            seen[name], h = h.double(), layer(h)
    patches = F.unfold(seen["conv2"].square(), 2).mean((0, 2))  # (in kernel kernel,)
    expected = {
        "conv1.weight": F.unfold(seen["conv1"].square(), 3).mean((0, 2)),
        "conv2.weight": patches,
        "fc1.weight": seen["fc1"].square().mean(0),
        "fc2.weight": seen["fc2"].square().mean(0),
    }
    for name, values in expected.items():
        for row in moments[name].flatten(1):
            torch.testing.assert_close(row, values, rtol=1e-4, atol=1e-7)
    assert all((moments[name] == 1).all() for name in moments if name.endswith("bias"))


def test_moments_of_norms_are_one_and_of_statistics_zero(split):
    zoo = batch_norm(1)
    moments = zoo.layout.unflatten(evaluation.input_moments(zoo, split[0]))
    for name, kind in zip(zoo.layout.names, zoo.layout.kinds, strict=True):
        if kind in ("norm", "statistic"):
            assert (moments[name] == (kind == "norm")).all(), name
    inputs = F.unfold(split[0].double().square(), 3, padding=1).mean((0, 2))  # zeros at the border count
    torch.testing.assert_close(moments["conv.weight"][0].flatten(), inputs, rtol=1e-4, atol=1e-7)


def test_weights_of_an_input_that_is_always_zero_do_not_count(split):
    x = split[0].clone()
    x[:, 0, 2, 3] = 0  # input 19
    zoo = make("mlp-64-12-10", 3)
    moments = evaluation.input_moments(zoo, x)
    moved = zoo.layout.unflatten(zoo.weights.clone())
    moved["fc1.weight"][:, :, 19] += 100
    moved = zoo.derived(zoo.layout.flatten(moved))
    assert (evaluation.nearest(moved, zoo, moments).distance == 0).all()
    assert (evaluation.nearest(moved, zoo).distance > 100).all()


def test_distances_say_what_does_not_fit(split):
    zoo = make("mlp-64-12-10", 2)
    with pytest.raises(ValueError, match="one layout"):
        evaluation.nearest(zoo, make("mlp-64-13-10", 2))
    with pytest.raises(ValueError, match="at least one network"):
        evaluation.nearest(zoo, zoo.filter([]))
    for bad in (torch.ones(3), -torch.ones(zoo.layout.d), torch.full((zoo.layout.d,), torch.nan)):
        with pytest.raises(ValueError, match="moments"):
            evaluation.nearest(zoo, zoo, bad)
    with pytest.raises(ValueError, match="no rows"):
        evaluation.input_moments(zoo, split[0][:0])


def test_the_overlap_of_errors_is_that_of_sets():
    rng = np.random.default_rng(0)
    e, f = rng.random((5, 40)) < 0.2, rng.random((4, 40)) < 0.3
    e[0] = f[1] = False  # without errors: equal
    e[1] = f[2]  # the same ones
    excluded = rng.random((5, 4)) < 0.4
    excluded[:, 0] = False
    sets = [[set(np.flatnonzero(row)) for row in errors] for errors in (e, f)]
    every = np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in sets[1]] for a in sets[0]])
    assert evaluation.error_iou(e, f) == pytest.approx(every.max(1))
    assert evaluation.error_iou(e, f)[:2].tolist() == [1, 1]
    assert evaluation.error_iou(e, f, excluded) == pytest.approx(np.where(excluded, -1, every).max(1))


def test_overlap_and_disagreement_say_what_does_not_fit():
    e = np.zeros((2, 5), bool)
    with pytest.raises(ValueError, match="expected bool"):
        evaluation.error_iou(e, e[:, :4])
    with pytest.raises(ValueError, match="expected bool"):
        evaluation.error_iou(e, e.astype(int))
    with pytest.raises(ValueError, match="left in"):
        evaluation.error_iou(e, e, np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="same shape"):
        evaluation.disagreement(e, e[:1])


def test_copies_and_noise_are_never_novel_and_accurate(trained, split):
    copies = evaluation.novelty(trained.filter([4, 0, 0]), evaluation.reference(trained, split))
    assert copies.joint == 0
    assert (copies.generated.distance == 0).all()
    assert copies.generated.index.tolist() == [4, 0, 0]
    assert (copies.generated.error_iou == 1).all()
    assert (copies.generated.disagreement == 0).all()
    noise = evaluation.novelty(
        make("mlp-64-12-10", 4, seed=99), evaluation.reference(trained, split), distance_times=0.5
    )
    assert (noise.generated.distance > noise.distance_above).all()
    assert noise.joint == 0


def test_novelty_is_its_parts(trained, split):
    born = trained.derived(trained.weights + 0.05 * torch.randn(trained.weights.shape))
    moments = evaluation.input_moments(trained, split[0])
    found = evaluation.novelty(
        born, evaluation.reference(trained, split, moments), distance_times=0.5, accuracy_quantile=0.5
    )
    near, others = evaluation.nearest(born, trained, moments), evaluation.leave_one_out(trained, moments)
    own, reference = evaluation.report(born, split), evaluation.report(trained, split)
    assert found.distance_above == pytest.approx(np.median(others.distance) / 2)
    assert found.accuracy_above == pytest.approx(np.median(reference.accuracy))
    joint = (near.distance > found.distance_above) & (own.accuracy > found.accuracy_above)
    assert found.joint == pytest.approx(100 * joint.mean())
    different = (own.predictions != reference.predictions[near.index]).mean(1)
    assert found.generated.disagreement == pytest.approx(100 * different)
    assert (found.reference.distance == others.distance).all()
    assert (
        found.reference.error_iou == evaluation.error_iou(reference.errors, reference.errors, np.eye(6, dtype=bool))
    ).all()
    assert "training zoo" in repr(found)


def test_the_reference_is_what_a_second_training_zoo_would_give(trained, split):
    found = evaluation.novelty(trained, evaluation.reference(trained, split), distance_times=0.0, accuracy_quantile=0.0)
    assert found.joint == 0  # each is a copy of itself
    worst = found.reference.accuracy.min()
    assert found.reference_joint == pytest.approx(100 * (found.reference.accuracy > worst).mean())
    with pytest.raises(ValueError, match="accuracy_quantile"):
        evaluation.novelty(trained, evaluation.reference(trained, split), accuracy_quantile=5)

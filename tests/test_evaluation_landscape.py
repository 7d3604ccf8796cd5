"""Laws of the scores between networks."""

import numpy as np
import pytest
import torch
from test_evaluation_reports import batch_norm, make, mixed

from wsnotebook import evaluation, memory


@pytest.fixture
def split(digits):
    return tuple(t[::5] for t in digits.validation)


@pytest.mark.parametrize("weights", [memory.PORTION, 3000])  # all at once, or a few networks at a time
def test_lines_end_at_their_networks_and_bend_as_the_networks_between_say(weights, split, monkeypatch):
    monkeypatch.setattr(memory, "PORTION", weights)
    zoo = make("mlp-64-12-10", 4)
    zoo = zoo.derived(3 * zoo.weights)
    path = evaluation.interpolate(zoo, [0, 1, 2], [3, 2, 2], split, points=5)
    own = evaluation.report(zoo, split)
    for values, ends in ((path.loss, own.loss), (path.accuracy, own.accuracy)):
        assert values[:, 0] == pytest.approx(ends[[0, 1, 2]])
        assert values[:, -1] == pytest.approx(ends[[3, 2, 2]])
    for p, (i, j) in enumerate(((0, 3), (1, 2))):
        between = [torch.lerp(zoo.weights[i], zoo.weights[j], t) for t in (0, 0.25, 0.5, 0.75, 1)]
        scores = evaluation.report(zoo.filter([i] * 5).derived(torch.stack(between)), split)
        assert path.loss[p] == pytest.approx(scores.loss, rel=1e-5)
        chord = [(1 - t) * own.loss[i] + t * own.loss[j] for t in path.t]
        assert path.barrier[p] == pytest.approx(max(scores.loss - chord), abs=1e-6)
        chord = [(1 - t) * own.accuracy[i] + t * own.accuracy[j] for t in path.t]
        assert path.accuracy_barrier[p] == pytest.approx(max(chord - scores.accuracy))
        assert path.midpoint_accuracy[p] == scores.accuracy[2]
    assert path.barrier[2] == path.accuracy_barrier[2] == 0  # i == j
    assert (path.barrier >= 0).all()


def test_recalibration_on_a_line_is_that_of_each_network_on_it(digits, split):
    zoo, x = batch_norm(2), digits.train[0][:64]
    path = evaluation.interpolate(zoo, 0, 1, split, points=3, recalibrate=x)
    between = zoo.filter([0, 0, 1]).derived(torch.stack([zoo.weights[0], zoo.weights.mean(0), zoo.weights[1]]))
    expected = evaluation.report(evaluation.recalibrated(between, x), split)
    assert path.loss[0] == pytest.approx(expected.loss, rel=1e-4)
    assert not np.allclose(path.loss, evaluation.interpolate(zoo, 0, 1, split, points=3).loss)


def test_a_line_says_what_is_wrong(split):
    zoo = make("mlp-64-12-10", 3)
    with pytest.raises(ValueError, match="odd"):
        evaluation.interpolate(zoo, 0, 1, split, points=4)
    with pytest.raises(ValueError, match="pairs"):
        evaluation.interpolate(zoo, [0, 1], [2], split)
    with pytest.raises(ValueError, match="row numbers from 0 to 2"):
        evaluation.interpolate(zoo, 0, 3, split)
    with pytest.raises(ValueError, match="activations"):
        evaluation.interpolate(mixed(), 0, 1, split)


@pytest.mark.parametrize("weights", [memory.PORTION, 3000])
def test_a_plane_goes_through_its_networks(weights, split, monkeypatch):
    monkeypatch.setattr(memory, "PORTION", weights)
    zoo = make("mlp-64-12-10", 3)
    a, b, c = zoo.weights
    c = a + (c - a) - ((c - a) @ (b - a)) / ((b - a) @ (b - a)) * (b - a)  # a right angle, so that c is on the grid
    zoo = zoo.derived(torch.stack([a, b, c]))
    own = evaluation.report(zoo, split)
    plane = evaluation.plane(zoo, (0, 1, 2), split, points=3, margin=0)
    assert plane.corners[1] == pytest.approx([float((b - a).norm()), 0])
    assert plane.corners[2] == pytest.approx([0, float((c - a).norm())], abs=1e-4)
    for grid, values in ((plane.loss, own.loss), (plane.accuracy, own.accuracy)):
        assert [grid[0, 0], grid[0, 2], grid[2, 0]] == pytest.approx(values, rel=1e-5)
    middle = evaluation.interpolate(zoo, [0, 1], [1, 2], split, points=3)
    assert plane.loss[0] == pytest.approx(middle.loss[0], rel=1e-5)
    assert plane.loss[1, 1] == pytest.approx(middle.loss[1, 1], rel=1e-5)


def test_a_planes_coordinates_are_distances_in_weight_space(split):
    zoo = make("mlp-64-12-10", 4)
    plane = evaluation.plane(zoo, (2, 0, 3), split, points=4, margin=0.5)
    for i, j, p, q in ((2, 0, 0, 1), (2, 3, 0, 2), (0, 3, 1, 2)):
        distance = float((zoo.weights[i] - zoo.weights[j]).norm())
        assert np.linalg.norm(plane.corners[p] - plane.corners[q]) == pytest.approx(distance, rel=1e-5)
    low, high = plane.corners.min(0), plane.corners.max(0)
    assert [plane.x[0], plane.y[0]] == pytest.approx(low - 0.5 * (high - low))
    assert [plane.x[-1], plane.y[-1]] == pytest.approx(high + 0.5 * (high - low))


def test_a_plane_of_batch_norm_networks_needs_training_images(digits, split):
    zoo, x = batch_norm(3), digits.train[0][:32]
    with pytest.raises(ValueError, match="training images"):
        evaluation.plane(zoo, (0, 1, 2), split)
    plane = evaluation.plane(zoo, (0, 1, 2), split, points=2, margin=0, recalibrate=x)
    own = evaluation.report(evaluation.recalibrated(zoo, x), split)
    assert plane.loss[0] == pytest.approx(own.loss[:2], rel=1e-3)


def test_a_plane_says_what_is_wrong(split):
    zoo = make("mlp-64-12-10", 3)
    zoo = zoo.derived(torch.stack([zoo.weights[0], zoo.weights[1], zoo.weights[:2].mean(0)]))
    for rows in ((0, 1, 2), (0, 0, 1), (0, 1, 1)):
        with pytest.raises(ValueError, match="one line"):
            evaluation.plane(zoo, rows, split)
    with pytest.raises(ValueError, match="three rows"):
        evaluation.plane(zoo, (0, 1), split)
    with pytest.raises(ValueError, match="activations"):
        evaluation.plane(mixed(), (0, 1, 2), split)

"""Laws of a zoo's pictures: what is drawn are the networks' own numbers, and every axis says what it shows."""

import functools
import tempfile
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.markers import CARETDOWN
from matplotlib.patches import Rectangle
from sklearn.decomposition import PCA

from wsnotebook import datasets, evaluation, plots, symmetry, zoo
from wsnotebook.evaluation.memorisation import Comparison
from wsnotebook.plots import landscape
from wsnotebook.plots import zoo as pictures

STEPS = (0, 10, 20)


@functools.cache
def tiny_zoo():
    """Six networks trained on the digits for two epochs, with three snapshots besides the last step."""
    config = zoo.Config(epochs=2, lr=(3e-3, 1e-2), init=("he", "xavier"), snapshots=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        return zoo.train("mlp-64-16-10", datasets.load("digits"), 6, config, folder=folder)


@functools.cache
def aligned_zoo():
    return symmetry.align(tiny_zoo(), reference=0).zoo


@pytest.fixture
def trained():
    return tiny_zoo()


@pytest.fixture
def aligned():
    return aligned_zoo()


@pytest.fixture
def last(trained):
    """Rows of the networks at the end of their training."""
    return np.flatnonzero(trained.facts["step"] == trained.facts["step"].max())


# ---- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(9, 40), (40, 9), (7, 7), (3, 500)])
def test_the_embedding_is_principal_component_analysis(n, d):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(n)) @ torch.diag(torch.linspace(3, 0.1, d)) + 5
    scores, shares = plots.embedding(rows)
    expected = PCA(2, svd_solver="full").fit(rows.double().numpy())
    signs = np.sign((scores * expected.transform(rows.double().numpy())).sum(0))
    np.testing.assert_allclose(scores * signs, expected.transform(rows.double().numpy()), atol=1e-6)
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_, rtol=1e-6)
    assert (scores.max(0) >= -scores.min(0)).all(), "signs are settled: the largest entry is positive"


def test_an_embedding_is_the_same_in_portions(monkeypatch):
    rows = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    whole = plots.embedding(rows)
    monkeypatch.setattr(pictures, "BLOCK", 5 * 30)
    for part, expected in zip(plots.embedding(rows), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-9, atol=1e-12)


def test_two_networks_lie_on_a_line_and_one_nowhere():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    scores, shares = plots.embedding(rows)
    np.testing.assert_allclose(np.abs(scores), [[2.5, 0], [2.5, 0]], atol=1e-7)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-12)
    with pytest.raises(ValueError, match="1 rows, expected at least two networks"):
        plots.embedding(rows[:1])


def test_an_unknown_fact_is_answered_by_the_known_ones(trained):
    for function in (plots.zoo_scatter, plots.zoo_curves):
        with pytest.raises(ValueError, match=r"unknown fact 'accuracy'; this zoo has PC1, PC2, model, .*gap"):
            function(trained, "accuracy")
    with pytest.raises(ValueError, match="unknown fact 'PC1 aligned'"):
        plots.zoo_scatter(trained, "PC1 aligned")
    with pytest.raises(ValueError, match="aligned: 2 networks, expected the same 24"):
        plots.zoo_scatter(trained, aligned=trained.filter([0, 1]))


def test_facts_are_labelled_with_their_units(trained):
    found = pictures.columns(trained, ["train_accuracy", "test_loss", "lr", "gap", "PC1"])
    labels = [column.label for column in found.values()]
    assert labels[:4] == [
        "training accuracy (%)",
        "test loss (nats)",
        "learning rate",
        "training minus test accuracy (points)",
    ]
    assert "% of variance" in labels[4]
    np.testing.assert_array_equal(found["lr"].values, trained.facts["lr"])


def test_rare_kinds_are_others():
    names = np.array([f"file {i}" for i in range(20)] + ["common"] * 5)
    labels, index = pictures.kinds(names)
    assert len(labels) == len(pictures.PALETTE)
    assert labels[-1] == "others"
    assert {labels[i] for i in index[20:]} == {"common"}
    assert [labels[i] if labels[i] != "others" else name for i, name in zip(index, names, strict=True)] == list(names)


def test_snapshots_give_every_networks_row_at_every_step(trained):
    steps, rows = pictures.snapshots(trained)
    assert (steps[:3].tolist(), rows.shape) == (list(STEPS), (4, 6))
    assert sorted(rows.ravel()) == list(range(24))
    for step, here in zip(steps, rows, strict=True):
        assert (trained.facts["step"][here] == step).all()
        assert trained.facts["model"][here].tolist() == list(range(6))


def test_networks_of_different_length_keep_their_nearest_row_and_twins_are_two(trained):
    gone = trained.filter((trained.facts["model"] != 2) | (trained.facts["step"] == 10))
    steps, rows = pictures.snapshots(gone)
    (only,) = np.flatnonzero(gone.facts["model"] == 2)
    assert (rows[:, 2] == only).all()
    both = zoo.concat([trained, symmetry.permute(trained)])
    steps, rows = pictures.snapshots(both)
    assert sorted(rows.ravel()) == list(range(48))
    assert all(len(set(both.facts["model"][path])) == 1 for path in rows.T)


# ---- networks ------------------------------------------------------------------------------------------------------


def points(axes):
    return np.concatenate([part.get_offsets() for part in axes.collections if isinstance(part, PathCollection)])


def test_every_row_is_a_point_in_its_colour(trained):
    figure = plots.zoo_scatter(trained, "test_accuracy", "gap", "lr")
    axes, bar = figure.axes
    np.testing.assert_allclose(points(axes), np.column_stack([trained.facts["test_accuracy"], trained.facts["gap"]]))
    (drawn,) = axes.collections
    np.testing.assert_allclose(drawn.get_array(), trained.facts["lr"])
    assert (axes.get_xlabel(), bar.get_ylabel()) == ("test accuracy (%)", "learning rate")
    assert figure._suptitle.get_text().startswith("6 networks, 24 snapshots")


def test_strings_have_a_colour_and_a_marker_each(trained, aligned):
    figure = plots.zoo_scatter(trained, "PC1 aligned", "PC2 aligned", "init", aligned)
    (axes,) = figure.axes
    ways, *groups = axes.collections
    assert isinstance(ways, LineCollection), "snapshots are joined in weight space"
    assert len(ways.get_segments()) == 6
    assert [group.get_label() for group in groups] == ["he", "xavier"]
    scores = plots.embedding(aligned.weights)[0]
    for group in groups:
        np.testing.assert_allclose(group.get_offsets(), scores[trained.facts["init"] == group.get_label()])
    assert not np.array_equal(groups[0].get_paths()[0].vertices, groups[1].get_paths()[0].vertices)
    assert len({tuple(group.get_facecolor()[0]) for group in groups}) == 2


def test_curves_are_the_facts_over_the_steps_and_their_median(trained):
    axes = plots.zoo_curves(trained, "test_accuracy").axes[0]
    (curves,) = axes.collections
    drawn = {tuple(map(tuple, segment)) for segment in curves.get_segments()}
    expected = set()
    for model in range(6):
        rows = trained.facts["model"] == model
        expected.add(tuple(zip(trained.facts["step"][rows], trained.facts["test_accuracy"][rows], strict=True)))
    assert drawn == expected
    (median,) = axes.lines
    heights = trained.facts["test_accuracy"].reshape(6, 4)
    np.testing.assert_allclose(median.get_ydata(), np.median(heights, axis=0))
    by = plots.zoo_curves(trained, "test_accuracy", "init").axes[0]
    for line in by.lines:
        rows = (trained.facts["init"] == line.get_label()).reshape(6, 4)[:, 0]
        np.testing.assert_allclose(line.get_ydata(), np.median(heights[rows], axis=0))
    numbers = plots.zoo_curves(trained, "validation_loss", "lr")
    (curves,) = numbers.axes[0].collections
    np.testing.assert_allclose(curves.get_array(), trained.facts["lr"].reshape(6, 4)[:, 0])


def test_curves_need_numbers_at_several_steps(trained, last):
    with pytest.raises(ValueError, match=r"fact='test_loss' at 1 steps: .*snapshots"):
        plots.zoo_curves(trained.filter(last), "test_loss")
    with pytest.raises(ValueError, match="fact='init' at 4 steps: expected numbers"):
        plots.zoo_curves(trained, "init")


def test_the_frame_shows_one_step_and_the_chosen_networks(trained):
    rows = pictures.snapshots(trained)[1][1]
    figure = plots.zoo_frame(trained, "PC1", "PC2", "init", "test_loss", step=10, chosen=rows[[4, 0]])
    left, right = figure.axes
    scores = plots.embedding(trained.weights)[0]
    np.testing.assert_allclose(np.sort(points(left), 0), np.sort(scores[rows], 0))
    rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in left.lines]
    np.testing.assert_allclose(rings, scores[rows[[4, 0]]])
    chosen = {line.get_label(): line.get_ydata() for line in right.lines}
    np.testing.assert_allclose(chosen["network 1"], trained.facts["test_loss"][trained.facts["model"] == 4])
    low, high = left.get_xlim()
    assert low < scores[:, 0].min() < scores[:, 0].max() < high, "the frame holds all steps"


# ---- between networks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(digits):
    rows = np.flatnonzero(tiny_zoo().facts["step"] == tiny_zoo().facts["step"].max())
    zoos = {"raw": tiny_zoo(), "aligned": aligned_zoo()}
    return {label: evaluation.interpolate(z, rows[:3], rows[3:], digits.test, 5) for label, z in zoos.items()}


@pytest.fixture(scope="module")
def planes(digits):
    rows = tuple(np.flatnonzero(tiny_zoo().facts["step"] == tiny_zoo().facts["step"].max())[:3])
    zoos = {"raw": tiny_zoo(), "aligned": aligned_zoo()}
    return {label: evaluation.plane(z, rows, digits.test, 6) for label, z in zoos.items()}


def test_barriers_are_the_mean_over_pairs_in_a_band(paths):
    left, right = plots.barriers(paths).axes
    for axes, measure in ((left, "accuracy"), (right, "loss")):
        lines = {line.get_label(): line for line in axes.lines}
        for (label, path), band in zip(paths.items(), axes.collections, strict=True):
            values = getattr(path, measure)
            np.testing.assert_allclose(lines[label].get_ydata(), values.mean(0))
            np.testing.assert_array_equal(lines[label].get_xdata(), path.t)
            heights = band.get_paths()[0].vertices[:, 1]
            assert heights.min() == pytest.approx(np.quantile(values, 0.1, axis=0).min())
            assert heights.max() == pytest.approx(np.quantile(values, 0.9, axis=0).max())


def test_planes_share_one_scale_and_mark_the_networks(planes):
    figure = plots.loss_planes(planes, accuracies=(91.25, 80.0, 70.0))
    *both, _ = figure.axes
    levels = landscape.loss_levels(planes.values())
    for axes, (label, plane) in zip(both, planes.items(), strict=True):
        assert axes.get_title(loc="left") == label
        np.testing.assert_allclose([line.get_xydata()[0] for line in axes.lines], plane.corners)
        assert [text.get_text() for text in axes.texts] == ["1: 91.2 %", "2: 80.0 %", "3: 70.0 %"]
        np.testing.assert_allclose(axes.collections[0].levels, levels)
    assert levels[0] == pytest.approx(min(plane.loss.min() for plane in planes.values()))
    assert [text.get_text() for text in plots.loss_planes({"": planes["raw"]}).axes[0].texts] == ["1", "2", "3"]


def test_a_plane_of_equal_losses_has_levels(planes):
    flat = replace(planes["raw"], loss=np.full_like(planes["raw"].loss, 2.3))
    levels = landscape.loss_levels([flat])
    assert (np.diff(levels) > 0).all()
    plots.loss_planes({"": flat}).draw_without_rendering()


def test_the_frame_of_a_path_marks_the_networks_at_t(paths, trained, aligned, last, digits):
    one = {label: replace(path, accuracy=path.accuracy[:1], loss=path.loss[:1]) for label, path in paths.items()}
    mixed = [torch.lerp(z.weights[last[0]], z.weights[last[3]], 0.25) for z in (trained, aligned)]
    report = evaluation.report(trained.filter([0, 0]).derived(torch.stack(mixed)), digits.test)
    left, middle, right = plots.path_frame(one, 0.25, report).axes
    for axes, values in ((left, report.accuracy), (middle, report.loss)):
        marks = [line.get_xydata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(marks, [[0.25, value] for value in values])
    np.testing.assert_allclose([bar.get_height() for bar in right.patches], report.per_class.ravel())


def test_distances_leave_the_reference_out():
    before, after = np.array([0.0, 4.0, 6.0, 8.0]), np.array([0.0, 3.0, 3.0, 5.0])
    figure = plots.distances(before, after)
    heights = np.reshape([bar.get_height() for bar in figure.axes[0].patches], (2, -1)).sum(1)
    np.testing.assert_array_equal(heights, [3, 3])
    assert "3 networks closer: median 6 to 3 (-50 %)" in figure._suptitle.get_text()
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [6, 3]
    with pytest.raises(ValueError, match="no distance above 0"):
        plots.distances(np.zeros(1), np.zeros(1))


def test_novelty_is_in_units_of_the_zoos_own_distances(aligned, last, digits):
    training, other = aligned.filter(last[:4]), aligned.filter(last[4:])
    rows = {"held out": evaluation.novelty(other, evaluation.reference(training, digits.test))}
    rows["copies"] = evaluation.novelty(training, evaluation.reference(training, digits.test))
    axes = plots.novelty(rows).axes[0]
    cloud, *series = axes.lines
    reference = rows["copies"].reference
    np.testing.assert_allclose(np.median(cloud.get_xdata()), 1)
    np.testing.assert_array_equal(cloud.get_ydata(), reference.accuracy)
    np.testing.assert_allclose(
        series[0].get_xdata() * np.median(reference.distance), rows["held out"].generated.distance
    )
    np.testing.assert_array_equal(series[1].get_xdata(), 0)
    (shaded,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    inside = (cloud.get_xdata() > shaded.get_x()) & (cloud.get_ydata() > shaded.get_y())
    assert 100 * inside.mean() == rows["copies"].reference_joint
    right, top = shaded.get_x() + shaded.get_width(), shaded.get_y() + shaded.get_height()
    for line in axes.lines:
        assert (line.get_xdata() <= right).all()
        assert (line.get_ydata() <= top).all()


def test_of_several_seeds_novelty_draws_the_first_and_counts_all(aligned, last, digits):
    training = evaluation.reference(aligned.filter(last[:4]), digits.test)
    seeds = [evaluation.novelty(aligned.filter(rows), training) for rows in (last[4:], last[:4], last[2:6])]
    figure = plots.novelty({"flow": seeds, "copies": seeds[1]})
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), seeds[0].generated.accuracy)
    mean, half = evaluation.interval([each.joint for each in seeds])
    (legend,) = figure.legends
    assert legend.get_texts()[1].get_text() == f"flow ({mean:.0f} ± {half:.0f} %)"
    assert figure.get_suptitle().endswith("; 3 seeds, the first drawn")


def test_a_network_far_below_all_others_is_a_caret_and_leaves_them_room():
    spread = Comparison(np.linspace(90, 95, 200), np.linspace(1, 2, 200), *3 * [np.zeros(200)])
    made = replace(spread, accuracy=np.r_[10.0, 20.0, np.linspace(90, 95, 198)])
    axes = plots.novelty({"made": evaluation.Novelty(made, spread, 1.0, 91.0)}).axes[0]
    _, near, below = axes.lines
    assert len(near.get_xdata()) == 199
    assert (below.get_marker(), below.get_ydata().tolist()) == (CARETDOWN, [20.0])
    assert 10 < axes.get_ylim()[0] <= 20


@pytest.mark.parametrize("function", [plots.barriers, plots.loss_planes, plots.novelty])
def test_nothing_to_draw(function):
    with pytest.raises(ValueError, match="is empty: pass {label: evaluation"):
        function({})


def test_axes_are_labelled_and_settings_left_alone(trained, paths, planes, last, digits):
    settings = dict(matplotlib.rcParams)
    some = trained.filter(last)
    figures = [
        plots.zoo_scatter(trained),
        plots.zoo_curves(trained),
        plots.barriers(paths),
        plots.loss_planes({"": planes["raw"]}),
        plots.distances(np.array([1.0, 2.0]), np.array([0.5, 1.0])),
        plots.novelty({"same": evaluation.novelty(some, evaluation.reference(some, digits.test))}),
    ]
    assert dict(matplotlib.rcParams) == settings
    for figure in figures:
        assert figure.get_figwidth() <= 7
        assert all(axes.get_ylabel() for axes in figure.axes)
        assert all(axes.get_xlabel() for axes in figure.axes if axes.get_label() != "<colorbar>")

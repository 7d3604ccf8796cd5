"""Laws of SANE's pictures: what is drawn are the results' own numbers."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from wsnotebook import plots
from wsnotebook.methods.latent_maps import LayerSpread, Trajectories
from wsnotebook.methods.properties import Probe, Target


def number(*r2):
    return Probe(Target("gap"), (), {"r2": list(r2), "tau": [0.5] * len(r2)}, (None,) * len(r2))


def category(*accuracy):
    scores = {"accuracy": list(accuracy), "majority": [40.0] * len(accuracy)}
    return Probe(Target("init"), ("he", "xavier"), scores, (None,) * len(accuracy))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_properties_draws_means_and_intervals():
    results = {
        "s(W)": {"gap": number(0.5, 0.7), "init": category(80.0, 90.0)},
        "SANE, mean": {"gap": number(0.8, 0.8), "init": category(95.0, 95.0)},
        "SANE, all": {"gap": number(-7.0, -9.0), "init": category(41.0, 39.0)},
    }
    figure = plots.properties(results)
    gap, init = figure.axes
    assert (gap.get_title(loc="left"), init.get_title(loc="left")) == ("gap", "init")
    assert [label.get_text() for label in gap.get_yticklabels()] == list(results)
    assert texts(gap) == ["0.60", "0.80", "-8"]
    assert texts(init) == ["85", "95", "40"]
    for axes, target, low, high in ((gap, "gap", -0.25, 1), (init, "init", 0, 100)):
        reference, *drawn = axes.lines
        assert reference.get_xdata()[0] == (0 if target == "gap" else 40)
        for row, (probes, line, point) in enumerate(zip(results.values(), drawn[::2], drawn[1::2], strict=True)):
            mean, half = probes[target].interval()
            np.testing.assert_allclose(line.get_xdata(), [max(mean - half, low), min(mean + half, high)])
            np.testing.assert_allclose(point.get_xdata(), [max(mean, low)])
            assert set(line.get_ydata()) == set(point.get_ydata()) == {row}
    colours = [line.get_color() for line in gap.lines[1::2]]
    assert colours[0] != colours[1] == colours[2], "a colour for an embedder"
    assert "(2 splits by model)" in figure.get_suptitle()


def test_properties_of_one_split_and_of_many_targets():
    figure = plots.properties({"W": {f"target {i}": number(0.3) for i in range(5)}})
    assert [axes.axison for axes in figure.axes] == [True] * 5 + [False]
    assert "(1 split by model)" in figure.get_suptitle()
    figure.canvas.draw()


@pytest.mark.parametrize("results", [{}, {"W": {}}, {"W": {"gap": number(1.0)}, "s(W)": {"init": category(1.0)}}])
def test_results_that_make_no_picture(results):
    with pytest.raises(ValueError, match="all for the same targets"):
        plots.properties(results)


@pytest.mark.parametrize("layers", [2, 30])
def test_the_spread_has_a_line_for_each_group(layers):
    names = tuple(f"block{i}.weight" for i in range(layers))
    deviation = np.random.default_rng(0).uniform(1, 2, (3, layers))
    spread = LayerSpread(names, "test_accuracy", ((10.0, 50.04), (51.0, 80.0), (81.0, 90.0)), deviation)
    figure = plots.layer_spread(spread)
    (axes,) = figure.axes
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], deviation)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["10 – 50", "51 – 80", "81 – 90"]
    assert figure.legends[0].get_title().get_text() == "test accuracy (%)"
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks[0] == "block0"
    assert len(ticks) <= 12


def test_trajectories_join_a_models_snapshots():
    rng = np.random.default_rng(0)
    ways = {4: np.array([0, 2, 5]), 9: np.array([3, 1])}
    found = Trajectories(rng.normal(size=(7, 2)), np.array([0.5, 0.25]), "gap", rng.uniform(size=7), ways)
    figure = plots.latent_trajectories(found)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), found.points)
    lines = [part for part in axes.collections if isinstance(part, LineCollection)]
    ends = [part for part in axes.collections if isinstance(part, PathCollection)]
    for line, rows in zip(lines, ways.values(), strict=True):
        expected = [found.points[[a, b]] for a, b in zip(rows, rows[1:], strict=False)]
        np.testing.assert_allclose(line.get_segments(), expected)
    for drawn, rows in zip(ends, ([0, 3], [5, 1]), strict=True):
        np.testing.assert_allclose(drawn.get_offsets(), found.points[rows])
        np.testing.assert_allclose(drawn.get_array(), found.values[rows])
    assert axes.get_xlabel() == "axis 1 (50 % of variance)"
    assert figure.axes[1].get_ylabel() == "gap (points)"
    assert "2 models" in figure.get_suptitle()


def test_training_shows_the_histories_numbers():
    history = {
        "iteration": [0, 50, 100],
        "loss": [np.nan, 0.9, 0.5],
        "reconstruction": [np.nan, 0.8, 0.4],
        "contrast": [np.nan, 3.0, 1.0],
        "validation_loss": [0.9, 0.7, 0.456],
        "cpu_seconds": [0.0, 2.0, 4.0],
    }
    figure = plots.sane_training({"ours": history, "again": history})
    left, right = figure.axes
    drawn = [line.get_ydata() for line in left.lines if len(line.get_ydata()) == 3]
    np.testing.assert_array_equal(drawn, [history["reconstruction"], history["validation_loss"]] * 2)
    np.testing.assert_array_equal([line.get_ydata() for line in right.lines], [history["contrast"]] * 2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours (4 CPU-s)", "again (4 CPU-s)"]
    assert "error of 0.46, 0.46" in figure.get_suptitle()
    with pytest.raises(ValueError, match="histories is empty"):
        plots.sane_training({})


def test_properties_of_the_other_zoo():
    probe = number(0.5, 0.7)
    probe.scores["other r2"] = [0.1, 0.1]
    (axes,) = plots.properties({"W": {"gap": probe}}, other=True).axes[:1]
    assert texts(axes) == ["0.10"]

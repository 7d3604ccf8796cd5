"""Pictures of the comparison of generators show the numbers of its table."""

import numpy as np
import pytest

from wsnotebook import plots, zoo
from wsnotebook.comparisons import generation
from wsnotebook.methods import controls
from wsnotebook.methods.transfer import Transfer
from wsnotebook.plots import methods
from wsnotebook.plots.comparison_generation import FILLS, looks


@pytest.fixture(scope="module")
def entries(digits):
    small = digits.first(train=300, validation=100, test=150)
    task = generation.task(zoo.train("mlp-64-6-10", small, 8, zoo.Config(epochs=3, lr=5e-3)), small)
    made = {
        "noise, small": [controls.noise(task.zoo, 5, 0.05, seed) for seed in range(3)],
        "averages": [controls.averages(task.zoo, 5, 2, seed) for seed in range(3)],
        "weight flow, public recipe": [controls.gaussian(task.zoo, 5)],
    }
    return [generation.the_zoo(task.test)] + [generation.measured(m, "", nets, task.test) for m, nets in made.items()]


def test_a_methods_variants_share_colour_and_marker_and_differ_in_filling():
    found = looks(["SANE, kde", "weight flow", "SANE, joint", "noise, small", "noise, large"])
    for method, look in found.items():
        assert (look["color"], look["marker"]) == methods.style(method)
    assert found["SANE, kde"]["fillstyle"] != found["SANE, joint"]["fillstyle"]
    assert found["noise, small"]["alpha"] != found["noise, large"]["alpha"]
    with pytest.raises(ValueError, match="leave some"):
        looks([f"SANE, {i}" for i in range(len(FILLS) + 1)])
    with pytest.raises(ValueError, match="no colour"):
        looks(["alchemy"])


def test_points_are_the_tables_means_and_the_box_the_zoos_middle(entries):
    figure = plots.generation({"strangers": entries, "again": entries})
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == ["strangers", "again"]
    axes = figure.axes[0]
    points = {
        line.get_label(): line.get_xydata()[0]
        for line in axes.lines
        if line.get_label() in dict.fromkeys(e.method for e in entries)
    }
    for entry in entries[1:]:
        measures = entry.measures()
        expected = np.mean(measures["nearest (zoo's = 1)"]), np.mean(measures["accuracy (%)"])
        assert points[entry.method] == pytest.approx(expected)
    own, (box,) = entries[0].found[0].reference, axes.patches
    near = own.distance / np.median(own.distance)
    assert [box.get_x(), box.get_x() + box.get_width()] == pytest.approx(np.quantile(near, [0.05, 0.95]))
    assert [box.get_y(), box.get_y() + box.get_height()] == pytest.approx(np.quantile(own.accuracy, [0.05, 0.95]))
    best = max(entries[1:], key=lambda e: np.mean(e.measures()["novel and accurate (%)"]))
    joint = np.mean(best.measures()["novel and accurate (%)"])
    assert (f"{best.method}, {joint:.0f} %" if joint else "nobody") in figure.get_suptitle()
    with pytest.raises(ValueError, match="panels is empty"):
        plots.generation({})


def test_curves_are_means_over_an_arms_networks(entries):
    test = {
        "averages": np.array([[50.0, 70.0], [80.0, 90.0]]),
        "from scratch": np.array([[10.0, 12.0], [60.0, np.nan]]),
    }
    tuned = Transfer("some", (0.0, 0.5), (), "keep", test, test, {}, steps=(0, 7))
    found = {arm: [entries[1].found[0], entries[2].found[0]] for arm in test}
    left, right = plots.generation_training(tuned, found).axes
    assert left.lines[0].get_ydata().tolist() == [60, 85]
    assert left.lines[1].get_ydata().tolist() == [11, 60]
    near = [each.generated.distance.mean() / np.median(each.reference.distance) for each in found["averages"]]
    assert right.lines[0].get_ydata() == pytest.approx(near)
    assert [label.get_text() for label in left.get_xticklabels()] == ["0", "7"]

"""Laws of the pictures of representations: what is drawn are the entries' numbers, and the frames are the best."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from wsnotebook import plots
from wsnotebook.comparisons.representations import Entry
from wsnotebook.methods.properties import Probe, Target


def entry(name, r2, twins, change=(0.5, 0.7), again=()):
    probe = Probe(Target("test_accuracy"), (), {"other r2": list(r2)}, (None,) * len(r2))
    return Entry(name, 3, 0.001, {"accuracy": probe}, [], [], list(twins), list(change), list(again))


ENTRIES = [
    entry("raw weights", (-0.4, -0.6), (0.0, 0.0)),
    entry("statistics s(W)", (0.8, 0.9), (1.0, 1.0), change=(0.0, 0.0)),
    entry("SANE, mean", (0.7, 0.7), (1.0, 1.0), change=(0.4, 0.6), again=(0.1, 0.3)),
]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_matrix_has_every_answer_and_frames_the_best():
    figure = plots.knowledge(ENTRIES)
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[-0.5, 0], [0.85, 1], [0.7, 1]])
    assert texts(axes)[::2] == ["-0.50", "0.00", "0.85", "1.00", "0.70", "1.00"]
    assert texts(axes)[1::2] == [f"± {half:.2f}" for e in ENTRIES for _, half in e.answers().values()]
    frames = sorted(tuple(patch.get_center()) for patch in axes.patches if isinstance(patch, Rectangle))
    np.testing.assert_allclose(frames, [(0, 1), (1, 1), (1, 2)])
    assert [label.get_text() for label in axes.get_yticklabels()] == [e.name for e in ENTRIES]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["accuracy", "twins"]
    assert figure.get_suptitle() == "statistics s(W): best, or as good, at 2 of 2 questions (framed)"


def test_what_nobody_knows_has_no_frame():
    figure = plots.knowledge([entry("PCA", (0.01,), (0.5, 0.5)), entry("raw weights", (-0.2,), (0.2, 0.2))])
    (axes,) = figure.axes
    assert [patch.get_center()[0] for patch in axes.patches] == [1]
    assert texts(axes).count("± 0.00") == 2, "one split has no interval"


def test_changes_are_drawn_from_the_blind_to_those_that_see():
    figure = plots.invariance(ENTRIES)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["statistics s(W)", "SANE, mean", "raw weights"]
    drawn = {
        (round(float(line.get_xdata()[0]), 6), int(line.get_ydata()[0])) for line in left.lines if len(line.get_xdata())
    }
    assert {(0.0, 0), (0.5, 1), (0.2, 1), (0.6, 2)} <= drawn
    known = [container.lines[0].get_xdata()[0] for container in right.containers]
    np.testing.assert_allclose(known, [0.85, 0.7, -0.5])
    assert figure.get_suptitle() == "Blind to the order of units: statistics s(W)"
    assert plots.invariance(ENTRIES[:1], "twins").get_suptitle() == "Nothing here is blind to the order of units"


def test_entries_that_make_no_picture():
    with pytest.raises(ValueError, match="different questions or none"):
        plots.knowledge([])
    other = Entry("PCA", 3, 0.001, {}, [], [], [1.0, 1.0], [0.1], [])
    with pytest.raises(ValueError, match="2 with different questions"):
        plots.knowledge([ENTRIES[0], other])
    with pytest.raises(ValueError, match="question='gap': not asked; asked were accuracy, twins"):
        plots.invariance(ENTRIES, "gap")
    with pytest.raises(ValueError, match="no colour"):
        plots.knowledge([entry("telepathy", (0.5,), (1.0, 1.0))])

"""Laws of weight flow's pictures: what is drawn are the path's own coordinates and the histories' own numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA

from wsnotebook import plots
from wsnotebook.methods.transfer import Transfer
from wsnotebook.plots import flow as pictures
from wsnotebook.plots.flow import Scores


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * torch.linspace(3, 0.5, shape[-1]) + 2


def history(validation=0.5):
    return {
        "iteration": [0, 100, 200, 300],
        "loss": [0.9, 0.6, 0.4, 0.3],
        "validation_loss": [0.9, 0.7, validation, 0.6] if np.isfinite(validation) else [validation] * 4,
        "velocity": [0.1, 0.5, 0.7, 0.8],
        "cpu_seconds": [0.0, 1.0, 2.0, 3.0],
    }


def test_the_plane_is_that_of_the_landmarks_principal_components():
    landmarks, path = points(9, 5), points(4, 3, 5, seed=1)
    plane = pictures.projection(landmarks)
    expected = PCA(2, svd_solver="full").fit(landmarks.double().numpy())
    signs = np.sign((plane.directions * expected.components_.T).sum(0))
    placed = expected.transform(path.double().numpy().reshape(-1, 5)).reshape(4, 3, 2)
    np.testing.assert_allclose(plane(path) * signs, placed, atol=1e-6)
    for label, share in zip(plane.labels, expected.explained_variance_ratio_, strict=True):
        assert f"({100 * share:.3g} % of" in label


def test_two_landmarks_span_a_line_and_one_nothing():
    plane = pictures.projection(torch.tensor([[-1.0], [3.0]]))
    np.testing.assert_allclose(np.abs(plane(torch.tensor([[5.0]]))), [[4.0, 0.0]])
    assert plane.labels[0].startswith("PC1 (100 %")
    with pytest.raises(ValueError, match="1 rows, expected at least two training networks"):
        pictures.projection(torch.zeros(1, 3))


def test_filters_lie_side_by_side_blue_to_red():
    filters = np.zeros((2, 3, 4))
    filters[0, 1, 2], filters[1, 2, 0] = 5.0, -1.0
    image = np.asarray(pictures.filter_strip(filters, 1.0).convert("RGB")).astype(int)
    assert image.shape == (3, 4 + 1 + 4, 3)
    red, blue, white = image[1, 2], image[2, 5], image[0, 0]
    assert red[0] > 1.5 * red[2]
    assert blue[2] > 1.5 * blue[0]
    assert white.min() > 240
    others = np.full((3, 9), True)
    others[1, 2] = others[2, 5] = False
    assert (image[others] == white).all()
    half = np.asarray(pictures.filter_strip(filters / 10, 1.0).convert("RGB"))
    assert white[0] - 60 < half[1, 2, 0] <= 255, "half of the range is paler than its end"
    assert (half[1, 2] != image[1, 2]).any()


def test_training_shows_the_histories_numbers():
    figure = plots.flow_training({"ours": history(), "paper": history(np.nan)})
    left, right = figure.axes
    drawn = [line.get_ydata().tolist() for line in left.lines if len(line.get_ydata()) == 4]
    assert drawn == [history()["loss"], history()["validation_loss"], history()["loss"]], "no held-out, no line"
    assert [line.get_ydata().tolist() for line in right.lines] == [history()["velocity"]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "paper"]
    with pytest.raises(ValueError, match="histories is empty"):
        plots.flow_training({})


@pytest.mark.parametrize("strip", [None, pictures.filter_strip(np.zeros((2, 8, 8)), 1.0)])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_frame_shows_the_path_at_its_step(step, strip):
    landmarks, path = points(9, 5), points(4, 6, 5, seed=1)
    t = np.arange(4) / 3
    scores = Scores(t, np.array([10.0, 20.0, 60.0, 90.0]), np.array([4.0, 3.0, 2.0, 1.0]), np.zeros(4, int))
    here = Scores(*(part[[step]] for part in scores))
    figure = plots.flow_frame(path, landmarks, step, 1, scores, here, (95.0, 3.5), strip)
    left, top, low = figure.axes[:3]
    plane = pictures.projection(landmarks)
    grey, particles, way, chosen = (line.get_xydata() for line in left.lines)
    np.testing.assert_allclose(grey, plane(landmarks))
    np.testing.assert_allclose(particles, plane(path[step]))
    np.testing.assert_allclose(way, plane(path[: step + 1, 1]))
    np.testing.assert_allclose(chosen, plane(path[step, 1:2]))
    np.testing.assert_allclose(left.collections[0].get_segments()[4], plane(path[: step + 1, 4]))
    for axes, values, level in ((top, scores.accuracy, 95.0), (low, scores.distance, 3.5)):
        typical, curve, mark = (line.get_ydata() for line in axes.lines)
        np.testing.assert_array_equal(typical, [level, level])
        np.testing.assert_array_equal(curve, values)
        np.testing.assert_array_equal(mark, values[[step]])
    assert len(figure.axes) == (3 if strip is None else 4)
    assert f"particle 1 has {here.accuracy[0]:.1f} %" in figure.get_suptitle()
    (x0, x1), (y0, y1) = left.get_xlim(), left.get_ylim()
    every = plane(path).reshape(-1, 2)
    assert ((every > [x0, y0]) & (every < [x1, y1])).all(), "the frame suits every step"


def test_asked_and_made_draws_the_medians_and_says_how_far_off_they_are():
    asked, made = np.repeat([80.0, 90.0], 3), np.array([70.0, 82.0, 95.0, 80.0, 87.0, 99.0])
    figure = plots.asked_and_made(asked, made, np.array([85.0, 88.0]))
    line = {each.get_label(): each for each in figure.axes[0].lines}
    assert line["median"].get_ydata().tolist() == [82.0, 87.0]
    assert line["a generated network"].get_ydata().tolist() == made.tolist()
    assert "within 3.0 points" in figure.get_suptitle(), "the farthest median, not a typical one"
    with pytest.raises(ValueError, match=r"asked \(6,\), made \(2,\)"):
        plots.asked_and_made(asked, made[:2], made)


def test_transfers_draw_each_arms_means_and_intervals():
    values = {"a": np.array([[10.0, 12.0], [50.0, 54.0]]), "b": np.array([[10.0, 10.0], [90.0, 90.0]])}
    found = Transfer("other", (0, 5), (), "keep", values, values, {})
    figure = plots.transfers({"frozen": found, "free": found})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["frozen", "free"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    assert lines["a"].tolist() == [11.0, 52.0]
    assert lines["b"].tolist() == [10.0, 90.0]
    low, high = (edge(figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]) for edge in (min, max))
    half = stats.t.ppf(0.975, 1)  # of two values 2 apart; twice it of two values 4 apart
    assert low == pytest.approx(11 - half)
    assert high == pytest.approx(52 + 2 * half)
    (steps,) = plots.transfers({"here": replace(found, epochs=(0.0, 0.1), steps=(0, 100))}).axes
    assert [label.get_text() for label in steps.get_xticklabels()] == ["0", "100"]
    assert (steps.get_xlabel(), figure.axes[0].get_xlabel()) == tuple(
        f"{unit} (not to scale)" for unit in ("steps", "epochs")
    )
    with pytest.raises(ValueError, match="panels is empty"):
        plots.transfers({})


def test_an_arm_looks_the_same_in_every_panel_and_is_in_the_legend_once():
    two = np.array([[10.0, 12.0]])
    left = Transfer("other", (0,), (), "keep", {}, {"a": two, "b": two, "c": two}, {})
    right = Transfer("other", (0,), (), "keep", {}, {"c": two, "d": two}, {})
    figure = plots.transfers({"left": left, "right": right})
    looks = [{line.get_label(): (line.get_color(), line.get_marker()) for line in axes.lines} for axes in figure.axes]
    assert looks[0]["c"] == looks[1]["c"]
    assert len({*looks[0].values(), *looks[1].values()}) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c", "d"]

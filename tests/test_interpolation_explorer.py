"""Laws of the interpolation explorer: what it shows at t is what evaluation says of the network there."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from shown import asks_for_nothing
from test_plots_zoo import aligned_zoo, tiny_zoo

from wsnotebook import evaluation, networks, zoo
from wsnotebook.explorers import interpolation
from wsnotebook.explorers import zoo as zoo_explorer
from wsnotebook.layout import COUNTERS, Layout

LAST = [3, 7, 11, 15, 19, 23]  # rows of the tiny zoo's networks at the end of training


@pytest.fixture
def zoos():
    return {"raw": tiny_zoo(), "aligned": aligned_zoo()}


@pytest.fixture
def explorer(zoos, digits):
    return interpolation.Explorer(zoos, digits.test)


def drawn(explorer):
    return {trace.name: (np.array(trace.x), np.array(trace.y)) for trace in explorer.plot.data}


def text_of(explorer):
    return re.sub("<[^>]*>", " ", explorer.readout.value)


def score(network, split):
    """Accuracy (%) and loss of a module, straightforwardly."""
    x, y = split
    with torch.no_grad():
        logits = network.double()(x.double())
    return 100 * float((logits.argmax(1) == y).double().mean()), float(torch.nn.functional.cross_entropy(logits, y))


@pytest.mark.parametrize("t", [0.0, 0.31, 0.5, 1.0])
@pytest.mark.parametrize("label", ["raw", "aligned"])
def test_the_slider_shows_the_network_at_t(explorer, zoos, digits, t, label):
    explorer.t.value = t
    weights = torch.lerp(zoos[label].weights[LAST[0]], zoos[label].weights[LAST[1]], t)
    mixed = zoos[label].filter([LAST[0]]).derived(weights[None])
    accuracy, loss = score(mixed.module(0), digits.test)
    shown = drawn(explorer)
    np.testing.assert_allclose(np.ravel(shown[f"{label} accuracy at t"]), [t, accuracy])
    np.testing.assert_allclose(np.ravel(shown[f"{label} loss at t"]), [t, loss], rtol=1e-5)
    classes, bars = shown[f"{label} classes at t"]
    np.testing.assert_array_equal(classes, range(10))
    np.testing.assert_allclose(bars, evaluation.report(mixed, digits.test).per_class[0])
    assert f"{label}  {accuracy:.2f} %, {loss:.3f} nats" in text_of(explorer)
    assert f"t  {t:.2f}" in text_of(explorer)


def test_the_ends_are_the_networks_themselves(explorer, zoos):
    for label, trained in zoos.items():
        _, accuracy = drawn(explorer)[f"{label} accuracy"]
        _, loss = drawn(explorer)[f"{label} loss"]
        np.testing.assert_allclose(accuracy[[0, -1]], tiny_zoo().facts["test_accuracy"][LAST[:2]], rtol=1e-5)
        np.testing.assert_allclose(loss[[0, -1]], trained.facts["test_loss"][LAST[:2]], rtol=1e-4)


def test_the_curves_are_those_of_the_chosen_pair_and_computed_once(explorer, zoos, digits, monkeypatch):
    computed, interpolate = [], evaluation.interpolate

    def counted(zoo, i, j, split, **options):
        computed.append((i, j))
        return interpolate(zoo, i, j, split, **options)

    monkeypatch.setattr(evaluation, "interpolate", counted)
    explorer.first.value = LAST[4]
    path = interpolate(zoos["aligned"], LAST[4], LAST[1], digits.test, 21)
    np.testing.assert_allclose(drawn(explorer)["aligned accuracy"], (path.t, path.accuracy[0]))
    np.testing.assert_allclose(drawn(explorer)["aligned loss"], (path.t, path.loss[0]))
    assert f"{path.accuracy_barrier[0]:.2f} points, {path.barrier[0]:.3f} nats" in text_of(explorer)
    explorer.first.value = LAST[0]
    explorer.first.value = LAST[4]
    explorer.t.value = 0.1
    assert computed == [(LAST[4], LAST[1])] * 2, "a zoo each, and the first pair was there already"


def test_large_splits_are_thinned_evenly(zoos, digits, monkeypatch):
    monkeypatch.setattr(interpolation, "ROWS", 100)
    x, y = interpolation.Explorer(zoos, digits.test).split
    assert len(x) == len(y) == 100
    assert torch.equal(x[0], digits.test[0][0])
    assert torch.equal(x[-1], digits.test[0][-1])


def test_a_step_is_one_message_with_marks_and_bars(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.t.value = 0.7
    (message,) = sent
    assert list(message["trace_indexes"]) == list(range(4, 10))
    assert not message["relayout_data"]


def test_planes_need_a_third_network_and_mark_t(explorer, zoos, digits):
    explorer.mode.value = "plane"
    assert explorer.plot is None
    assert "choose a third" in text_of(explorer)
    explorer.t.value = 0.25
    explorer.third.value = LAST[2]
    for k, trained in enumerate(zoos.values()):
        plane = evaluation.plane(trained, tuple(LAST[:3]), digits.test, interpolation.GRID)
        contour, _, corners, mark = explorer.plot.data[4 * k : 4 * k + 4]
        low, high = explorer.plot.layout.coloraxis.cmin, explorer.plot.layout.coloraxis.cmax
        np.testing.assert_allclose(contour.z, np.clip(np.log10(plane.loss), low, high), rtol=1e-5)
        np.testing.assert_allclose(np.column_stack([corners.x, corners.y]), plane.corners)
        accuracies = trained.facts["test_accuracy"][LAST[:3]]
        assert list(corners.text) == [f"{i}: {value:.1f} %" for i, value in enumerate(accuracies, 1)]
        np.testing.assert_allclose((mark.x[0], mark.y[0]), 0.75 * plane.corners[0] + 0.25 * plane.corners[1])
    explorer.t.value = 1.0
    np.testing.assert_allclose(explorer.plot.data[3].x[0], explorer.plot.data[2].x[1])
    assert "t  1.00" in text_of(explorer)
    explorer.mode.value = "line"
    np.testing.assert_allclose(drawn(explorer)["raw accuracy at t"][0], [1.0])
    assert explorer.plot in explorer.view.children


def test_it_follows_a_zoo_explorer(zoos, digits):
    picked = zoo_explorer.Explorer(zoos["raw"], zoos["aligned"])
    explorer = interpolation.Explorer(zoos, digits.test, picked)
    assert explorer.rows == picked.selected == LAST[:2]
    picked.second.value = 5
    assert explorer.rows == [LAST[0], LAST[5]]
    assert "second  model 5, step 34" in text_of(explorer)
    picked.step.value = 0
    path = evaluation.interpolate(zoos["raw"], 0, 20, digits.test, 21)
    np.testing.assert_allclose(drawn(explorer)["raw loss"][1], path.loss[0])
    assert explorer.first not in [child for box in explorer.view.children for child in getattr(box, "children", [])]


def test_between_activations_there_is_nothing(digits):
    kinds = np.array(["relu", "tanh", "relu"])
    mixed = tiny_zoo().filter(LAST[:3])
    mixed = mixed.derived(mixed.weights, activation=kinds)
    explorer = interpolation.Explorer({"raw": mixed}, digits.test)
    assert explorer.rows == [0, 2], "it begins with two that go together"
    explorer.second.value = 1
    assert "different activations (relu, tanh)" in text_of(explorer)
    assert explorer.plot is None
    explorer.t.value = 0.3
    explorer.second.value = 2
    assert "raw accuracy" in drawn(explorer)


def test_batch_norm_is_recalibrated(digits):
    modules = [networks.build("resnet-8", classes=10, channels=1, seed=seed) for seed in range(2)]
    layout = Layout.of(modules[0], exclude=COUNTERS)
    rows = torch.stack([layout.flatten(module.state_dict()) for module in modules])
    trained = zoo.Zoo(rows, layout, {}, "resnet-8", {"build": {"classes": 10, "channels": 1}})
    x = digits.train[0][:64].view(-1, 1, 8, 8)
    split = (digits.test[0][:32].view(-1, 1, 8, 8), digits.test[1][:32])
    explorer = interpolation.Explorer({"raw": trained}, split, recalibrate=x)
    middle = trained.filter([0]).derived(trained.weights.mean(0, keepdim=True))
    expected = evaluation.report(evaluation.recalibrated(middle, x), split).loss
    np.testing.assert_allclose(drawn(explorer)["raw loss at t"][1], expected, rtol=1e-4)


def test_zoos_that_do_not_fit(zoos, digits):
    with pytest.raises(ValueError, match=r"zoos\['aligned'\]: .* has not the same networks"):
        interpolation.Explorer(zoos | {"aligned": aligned_zoo().filter([0, 1])}, digits.test)
    with pytest.raises(ValueError, match="has not the same networks"):
        interpolation.Explorer(zoos, digits.test, zoo_explorer.Explorer(tiny_zoo().filter(LAST)))
    with pytest.raises(ValueError, match="zoos: 0 of them, expected 1 to 4"):
        interpolation.Explorer({}, digits.test)
    with pytest.raises(ValueError, match="they hold one network"):
        interpolation.Explorer({"raw": tiny_zoo().filter([0])}, digits.test)


def test_one_bundle_for_every_reader(explorer, zoos, digits):
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    report = explorer.report(0.5)
    assert data["text/plain"].startswith(
        "Interpolation explorer: first model 0, step 34; second model 1, step 34; t 0.50"
    )
    assert f"aligned {report.accuracy[1]:.2f} %, {report.loss[1]:.3f} nats" in data["text/plain"]
    again = interpolation.Explorer(zoos, digits.test)._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])
    explorer.third.value, explorer.mode.value = LAST[2], "plane"
    assert len(explorer.figure().axes) == 3


def test_the_page_holds_the_whole_line_and_asks_for_nothing(explorer, tmp_path):
    explorer.t.value = 0.3
    path = explorer.to_html(tmp_path / "line.html")
    assert [file.name for file in tmp_path.iterdir()] == ["line.html"]
    page = path.read_text()
    assert 'value="6"' in page, "it begins at t"
    ((moving, frames),) = re.findall(r"^const moving = (.*), frames = (.*);$", page, re.M)
    moving, frames = json.loads(moving), json.loads(frames)
    assert len(frames) == 21
    for k in (0, 6, 20):
        explorer.t.value = k / 20
        assert frames[k]["text"] == explorer.readout.value
        for place, index in enumerate(moving):
            for key in ("x", "y"):
                stored = np.frombuffer(base64.b64decode(frames[k]["data"][key][place]["bdata"]), "<f4")
                np.testing.assert_array_equal(stored, np.float32(explorer.plot.data[index][key]))
    asks_for_nothing(page, 200_000)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "line.html")

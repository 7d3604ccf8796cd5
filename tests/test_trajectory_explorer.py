"""Laws of the trajectory explorer: what it shows at t is the path at t, scored by evaluation."""

import base64
import functools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shown import asks_for_nothing, drawn, opened, text_of
from sklearn.decomposition import PCA
from test_plots_zoo import tiny_zoo

from wsnotebook import evaluation, networks, zoo
from wsnotebook.explorers import trajectory
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods.closed_form_flow import ClosedForm
from wsnotebook.methods.sampling import times
from wsnotebook.methods.weight_flow import Config, train


@functools.cache
def trained():
    """The tiny zoo's six networks at the end of their training."""
    return tiny_zoo().filter(tiny_zoo().facts["step"] == tiny_zoo().facts["step"].max())


@functools.cache
def flows():
    config = Config(hidden=16, blocks=1, time_features=8, batch=16, iterations=100)
    told = {fact: train(told_zoo(), replace(config, condition=fact)) for fact in ("size", "kind")}
    return {"closed form": ClosedForm(trained()), "learned": train(trained(), config)} | told


@functools.cache
def told_zoo():
    """The same with a number and a category of each."""
    size = trained().weights.norm(dim=1).numpy()
    return trained().made(trained().weights, size=size, kind=np.where(size > np.median(size), "large", "small"))


@pytest.fixture(params=["closed form", "learned"])
def flow(request):
    return flows()[request.param]


@pytest.fixture
def explorer(flow, digits):
    return trajectory.Explorer(flow, trained(), digits.test, n=7, seed=3)


@pytest.mark.parametrize("step", [0, 17, 25, 50])
def test_the_slider_draws_the_path_at_t(explorer, flow, step):
    explorer.t.value = step
    path = flow.sample(7, steps=50, seed=3, trajectory=True)
    assert torch.equal(explorer.path, path)
    weights = PCA(2, svd_solver="full").fit(trained().weights.double().numpy())  # not coordinates: they keep distances
    signs = np.sign((drawn(explorer)["training networks"] * weights.transform(trained().weights.numpy())).sum(0))

    def placed(z):
        return weights.transform(flow.coordinates.decode(z).double().numpy()) * signs

    shown = drawn(explorer)
    np.testing.assert_allclose(
        shown["training networks"], placed(flow.coordinates.encode(trained().weights)), atol=1e-4
    )
    np.testing.assert_allclose(shown["particles"], placed(path[step]), atol=1e-4)
    np.testing.assert_allclose(shown["chosen"], placed(path[step, :1]), atol=1e-4)
    np.testing.assert_allclose(shown["chosen way"], placed(path[: step + 1, 0]), atol=1e-4)
    ways = shown["ways"].reshape(7, step + 2, 2)
    assert np.isnan(ways[:, -1]).all(), "the ways are not joined"
    np.testing.assert_allclose(ways[4, :-1], placed(path[: step + 1, 4]), atol=1e-4)
    t = float(times(50)[step])
    assert shown["accuracy at t"][0, 0] == shown["distance at t"][0, 0] == pytest.approx(t)
    assert f"t {t:.3f}" in text_of(explorer)


@pytest.mark.parametrize("solver", ["rk4", "euler"])
def test_at_the_end_are_the_sampled_networks(explorer, flow, digits, solver):
    explorer.solver.value, explorer.steps.value, explorer.particle.value = solver, 12, 2
    sampled = flow.sample(7, steps=12, solver=solver, seed=3)
    report, near = evaluation.report(sampled, digits.test), evaluation.nearest(sampled, trained())
    shown = drawn(explorer)
    for name in ("accuracy", "accuracy at t"):
        np.testing.assert_allclose(shown[name][-1], [1, report.accuracy[2]])
    for name in ("distance", "distance at t"):
        np.testing.assert_allclose(shown[name][-1], [1, near.distance[2]], rtol=1e-4, atol=1e-5)
    assert f"accuracy {report.accuracy[2]:.1f} %" in text_of(explorer)
    assert f"which is model {trained().facts['model'][near.index[2]]}" in text_of(explorer)
    assert len(shown["accuracy"]) == 13


def test_the_mark_lies_on_the_curve(explorer):
    explorer.t.value = 20
    for name in ("accuracy", "distance"):
        curve, mark = drawn(explorer)[name], drawn(explorer)[f"{name} at t"][0]
        assert len(curve) == 21
        np.testing.assert_allclose(curve[8], mark)


def test_medians_of_the_training_networks(explorer, digits):
    accuracy = np.median(evaluation.report(trained(), digits.test).accuracy)
    distance = np.median(evaluation.leave_one_out(trained()).distance)
    shown = drawn(explorer)
    np.testing.assert_allclose(shown["training networks' accuracy"], [[0, accuracy], [1, accuracy]])
    np.testing.assert_allclose(shown["training networks' distance"], [[0, distance], [1, distance]])


def test_more_euler_steps_come_closer_to_rk4(explorer):
    explorer.steps.value = 100
    exact = explorer.path[-1]
    explorer.solver.value = "euler"
    errors = []
    for steps in (5, 20, 80):
        explorer.steps.value = steps
        errors.append(float((explorer.path[-1] - exact).norm(dim=1).median()))
    assert errors[0] > errors[1] > errors[2]


def test_paths_and_scores_are_computed_once(explorer, flow, monkeypatch):
    computed, sample, report = [], type(flow).sample, evaluation.report
    monkeypatch.setattr(
        type(flow), "sample", lambda *a, **k: computed.append((k["solver"], k["steps"])) or sample(*a, **k)
    )
    monkeypatch.setattr(evaluation, "report", lambda *a: computed.append("report") or report(*a))
    explorer.solver.value = "euler"
    assert computed == [("euler", 50), "report", "report"], "the path, the mark and the curve"
    explorer.solver.value = "rk4"
    explorer.solver.value = "euler"
    assert len(computed) == 3


def test_a_step_is_one_message(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    for control, value in ((explorer.t, 15), (explorer.particle, 4), (explorer.solver, "euler"), (explorer.steps, 9)):
        control.value = value
        (message,) = sent
        assert list(message["trace_indexes"]) == trajectory.MOVING
        arrays = [array for values in message["restyle_data"].values() for array in values]
        assert all(memoryview(array).c_contiguous for array in arrays), "others cannot be sent"
        sent.clear()


def test_a_key_is_a_step_of_the_path(explorer):
    explorer.t.value = 40
    for steps, step in ((10, 8), (100, 80), (1, 1)):
        explorer.steps.value = steps
        assert (explorer.t.min, explorer.t.max, explorer.t.step) == (0, steps, 1)
        assert explorer.step == step, "the same share of the way"
        assert drawn(explorer)["accuracy at t"][0, 0] == pytest.approx(float(times(steps)[step]))


def test_a_click_chooses_a_particle(explorer):
    explorer._clicked(None, SimpleNamespace(point_inds=[5]), None)
    assert explorer.particle.value == 5
    shown = drawn(explorer)
    np.testing.assert_array_equal(shown["chosen"], shown["particles"][[5]])
    explorer._clicked(None, SimpleNamespace(point_inds=[]), None)
    assert explorer.particle.value == 5


def test_the_filters_are_the_chosen_particles_first_layer(explorer, flow):
    explorer.particle.value = 3
    first = flow.sample(7, steps=50, seed=3).module(3).state_dict()
    weights = next(iter(first.values())).view(-1, 8, 8).numpy()
    order = np.argsort(-np.linalg.norm(weights.reshape(len(weights), -1), axis=1))[:8]
    expected = trajectory.pictures.filter_strip(weights[order], np.abs(weights[order]).max()).convert("RGB")
    shown = opened(explorer.plot.layout.images[0].source).convert("RGB")
    np.testing.assert_array_equal(np.asarray(shown)[::4, ::4], np.asarray(expected))
    before = explorer.plot.layout.images[0].source
    explorer.t.value = 25
    assert explorer.plot.layout.images[0].source != before


def test_no_filters_where_no_images_are_seen(flow, digits):
    flat = (digits.test[0].flatten(1), digits.test[1])
    explorer = trajectory.Explorer(flow, trained(), flat, n=2)
    assert not explorer.plot.layout.images
    explorer.t.value = 25
    assert len(explorer.figure().axes) == 3


def test_a_plot_that_is_drawn_late_catches_up_with_its_filters(explorer, monkeypatch):
    explorer.t.value = 10
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.plot._js2py_traceDeltas = {"trace_deltas": [], "trace_edit_id": -1}
    assert sent[-1]["relayout_data"]["images[0].source"] == explorer.plot.layout.images[0].source


def test_large_splits_are_thinned_evenly(flow, digits, monkeypatch):
    monkeypatch.setattr(trajectory, "ROWS", 100)
    x, y = trajectory.Explorer(flow, trained(), digits.test, n=2).split
    assert len(x) == len(y) == 100
    assert torch.equal(x[[0, -1]], digits.test[0][[0, -1]])


def test_batch_norm_is_recalibrated(digits, monkeypatch):
    monkeypatch.setattr(trajectory, "STEPS", 3)
    modules = [networks.build("resnet-8", classes=10, channels=1, seed=seed) for seed in range(3)]
    layout = Layout.of(modules[0], exclude=COUNTERS)
    rows = torch.stack([layout.flatten(module.state_dict()) for module in modules])
    several = zoo.Zoo(rows, layout, {}, "resnet-8", {"build": {"classes": 10, "channels": 1}})
    x = digits.train[0][:32].view(-1, 1, 8, 8)
    split = (digits.test[0][:32].view(-1, 1, 8, 8), digits.test[1][:32])
    flow = ClosedForm(several)
    explorer = trajectory.Explorer(flow, several, split, n=2, recalibrate=x)
    sampled = evaluation.recalibrated(flow.sample(2, steps=3), x)
    np.testing.assert_allclose(drawn(explorer)["accuracy at t"][0, 1], evaluation.report(sampled, split).accuracy[0])
    assert explorer.plot.layout.images, "3 x 3 kernels of images"


def test_what_does_not_fit(digits):
    flow = flows()["closed form"]
    other = networks.build("mlp-64-8-10")
    layout = Layout.of(other)
    stranger = zoo.Zoo(layout.flatten(other.state_dict())[None], layout, {}, "mlp-64-8-10", {})
    with pytest.raises(ValueError, match="not of the flow's architecture, mlp-64-16-10"):
        trajectory.Explorer(flow, stranger, digits.test)
    with pytest.raises(ValueError, match="n=0: expected a number of networks from 1 up"):
        trajectory.Explorer(flow, trained(), digits.test, n=0)


def test_one_bundle_for_every_reader(explorer, flow, digits):
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"].startswith(
        "Trajectory explorer: 7 particles, rk4, 50 steps; t 1.000; particle 0; accuracy"
    )
    again = trajectory.Explorer(flow, trained(), digits.test, n=7, seed=3)._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])


def stored_in(page):
    """The times, and the particles under each condition."""
    (stored,) = re.findall(r"^const all = (.*), at = id", page, re.M)
    stored = json.loads(stored)
    return stored["t"], stored["asked"]


@pytest.mark.parametrize(("fact", "value"), [("kind", "small"), ("size", None)])
def test_another_condition_is_another_path(digits, monkeypatch, fact, value):
    flow = flows()[fact]
    explorer = trajectory.Explorer(flow, told_zoo(), digits.test, n=4, seed=1)
    value = explorer.condition.max if value is None else value
    before, sent = drawn(explorer), []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.condition.value = value
    assert len(sent) == 1
    assert torch.equal(explorer.path, flow.sample(4, steps=50, seed=1, trajectory=True, condition=value))
    assert (drawn(explorer)["particles"] != before["particles"]).any()
    report = evaluation.report(flow.sample(4, steps=50, seed=1, condition=value), digits.test)
    np.testing.assert_allclose(drawn(explorer)["accuracy at t"][0, 1], report.accuracy[0])
    assert f", {fact} {value if fact == 'kind' else f'{value:.4g}'};" in explorer._text()


def test_the_control_of_the_condition_has_what_was_seen(digits):
    kind, size = (trajectory.Explorer(flows()[fact], told_zoo(), digits.test, n=2) for fact in ("kind", "size"))
    assert kind.condition.options == ("large", "small")
    sizes = told_zoo().facts["size"]
    assert (size.condition.min, size.condition.max) == pytest.approx((sizes.min(), sizes.max()))
    assert trajectory.Explorer(flows()["learned"], trained(), digits.test, n=2).condition is None


@pytest.mark.parametrize(("fact", "many"), [("kind", 2), ("size", 6)])
def test_the_page_holds_several_conditions(digits, tmp_path, fact, many):
    explorer = trajectory.Explorer(flows()[fact], told_zoo(), digits.test, n=2)
    explorer.condition.value = "small" if fact == "kind" else explorer.condition.min * 1.01
    page = explorer.to_html(tmp_path / "flow.html").read_text()
    _, stored = stored_in(page)
    assert len(stored) == many
    assert 'at("asked").value = 1;' in page, "it begins with the chosen one"
    assert f"<label >{fact} <select" in page
    places = np.column_stack([axis[20] for axis in stored[1]["places"]])
    np.testing.assert_allclose(places, drawn(explorer)["particles"], rtol=1e-4, atol=1e-4)
    assert stored[0]["places"] != stored[1]["places"]
    assert stored[1]["accuracy"][0] == pytest.approx(explorer.curves(0).accuracy.tolist(), abs=1e-2)


def test_the_page_holds_all_particles_and_asks_for_nothing(explorer, tmp_path):
    explorer.t.value, explorer.particle.value, explorer.steps.value = 15, 2, 40
    path = explorer.to_html(tmp_path / "flow.html")
    assert [file.name for file in tmp_path.iterdir()] == ["flow.html"]
    page = path.read_text()
    assert 'value="6"' in page, "it begins at t"
    assert "rk4, 40 steps" in page
    assert "<label hidden>" in page, "nothing to ask for"
    t, (stored,) = stored_in(page)
    for stop in (0, 6, 20):
        explorer.t.value = 2 * stop
        shown = drawn(explorer)
        places = np.column_stack([axis[stop] for axis in stored["places"]])
        np.testing.assert_allclose(places, shown["particles"], rtol=1e-4, atol=1e-4)
        for name in ("accuracy", "distance"):
            at = [t[stop], stored[name][2][stop]]
            np.testing.assert_allclose(at, shown[f"{name} at t"][0], rtol=1e-4, atol=1e-4)
        live = opened(explorer.plot.layout.images[0].source).convert("RGB")
        small = opened(stored["strips"][2][stop]).convert("RGB")
        np.testing.assert_array_equal(np.asarray(small), np.asarray(live)[::4, ::4])
    asks_for_nothing(page, 500_000)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "flow.html")

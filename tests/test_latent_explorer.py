"""Laws of the latent explorer: a walk's places are latents, and what it shows there is what these decode to."""

import base64
import functools
import json
import re
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shown import asks_for_nothing, drawn, opened, text_of
from sklearn.decomposition import PCA

from wsnotebook import datasets, evaluation, networks, zoo
from wsnotebook.explorers import latent
from wsnotebook.explorers.latent import MOVING, RANDOM, REACH, TOWARDS
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.plots.latent import weight_picture
from wsnotebook.zoo.value import Zoo

GRADIENT = "gradient of validation_accuracy by a probe"


@functools.cache
def nets():
    """Sixteen small CNNs of two activations, each at three steps of its training on the digits."""
    config = zoo.Config(epochs=2, lr=3e-3, activation=("tanh", "relu"), snapshots=(0, 20))
    with tempfile.TemporaryDirectory() as folder:
        return zoo.train("cnn-tiny", datasets.load("digits"), 16, config, folder=folder)


@functools.cache
def embedder():
    return layer_pca(nets(), 6)


@pytest.fixture
def explorer(digits):
    return latent.Explorer(embedder(), nets(), digits.test)


def latents(networks=None):
    """(n, r z) of networks that a walk decoded (LayerPCA gives back what it decodes), or of the zoo's."""
    return embedder().embed(nets() if networks is None else networks).flatten(1).double().numpy()


def direction(explorer, start):
    """The direction of which the name starts so."""
    return next(name for name in explorer.direction.options if name.startswith(start))


def forget(explorer, monkeypatch):
    """A list of the messages that are sent from now on."""
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    return sent


# ---- where walks go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["axis 1", "axis 3", "gradient", TOWARDS, RANDOM])
def test_the_middle_of_the_slider_is_the_decoded_start(explorer, way):
    explorer.start.value = 7
    explorer.direction.value = direction(explorer, way)
    start = embedder().decode(embedder().embed(nets().filter([7])), nets().filter([7]))
    torch.testing.assert_close(explorer.networks.weights[REACH], start.weights[0])
    assert set(explorer.networks.facts["activation"]) == {nets().facts["activation"][7]}
    shown = drawn(explorer)
    for name in ("here", "start"):
        np.testing.assert_allclose(shown[name], shown["zoo"][[7]], atol=1e-4)
    assert shown["accuracy here"][0, 0] == 0


@pytest.mark.parametrize("i", [1, 2, 3, 4, 5])
def test_an_axis_changes_its_coordinate_and_no_other(explorer, i):
    explorer.direction.value = direction(explorer, f"axis {i}")
    pca = PCA(15, svd_solver="full").fit(latents())
    places, start = pca.transform(latents(explorer.networks)), pca.transform(latents())[[explorer.start.value]]
    expected = np.zeros((2 * REACH + 1, 15))
    expected[:, i - 1] = np.linspace(-3, 3, 2 * REACH + 1) * pca.transform(latents()).std(0)[i - 1]
    signs = np.sign((places - start)[-1, i - 1])
    np.testing.assert_allclose(signs * (places - start), expected, atol=2e-3)
    np.testing.assert_allclose(explorer.walk.far, np.linspace(-3, 3, 2 * REACH + 1), atol=1e-6)
    assert f"{100 * pca.explained_variance_ratio_[i - 1]:.3g} % of variance" in explorer.direction.value


def test_the_plane_is_that_of_the_first_two_axes(explorer):
    expected = PCA(2, svd_solver="full").fit_transform(latents())
    shown = drawn(explorer)["zoo"]
    np.testing.assert_allclose(shown * np.sign((shown * expected).sum(0)), expected, atol=1e-3)
    explorer.direction.value = RANDOM
    pca = PCA(2, svd_solver="full").fit(latents())
    way, placed = drawn(explorer)["way"], pca.transform(latents(explorer.networks))
    np.testing.assert_allclose(way * np.sign((way * placed).sum(0)), placed, atol=2e-3)


def test_towards_another_network_ends_in_what_its_latents_decode_to(explorer):
    explorer.direction.value = TOWARDS
    other = explorer.other.options[3][1]
    explorer.other.value, explorer.far.value = other, REACH
    decoded = embedder().decode(embedder().embed(nets().filter([other])), nets().filter([other]))
    torch.testing.assert_close(explorer.networks.weights[-1], decoded.weights[0])
    np.testing.assert_allclose(drawn(explorer)["here"], drawn(explorer)["zoo"][[other]], atol=1e-4)
    ends = latents(explorer.networks)
    np.testing.assert_allclose(ends[REACH + 5], (ends[REACH] + ends[-1]) / 2, atol=2e-3)
    np.testing.assert_allclose(ends[0], 2 * ends[REACH] - ends[-1], atol=2e-3)
    assert explorer.walk.far[[0, REACH, -1]].tolist() == [-1, 0, 1]
    assert f"+1 of the way to network {nets().facts['model'][other]}" in text_of(explorer)


def test_the_gradient_is_where_the_probe_rises_fastest(explorer):
    explorer.direction.value = GRADIENT
    z, (probe,) = latents(explorer.networks), explorer.probe.models
    np.testing.assert_allclose(explorer.walk.predicted, probe.predict(z), rtol=1e-3)
    step = z[-1] - z[REACH]
    rise = explorer.walk.predicted[-1] - explorer.walk.predicted[REACH]
    assert rise == pytest.approx(np.linalg.norm(step) * np.linalg.norm(probe.coefficients), rel=1e-3)
    unit = step / np.linalg.norm(step)
    assert np.linalg.norm(step) == pytest.approx(3 * (latents() @ unit).std(), rel=1e-3)


def test_a_random_walk_stays_among_the_zoos_directions(explorer):
    explorer.direction.value = RANDOM
    z = latents(explorer.networks)
    centred = latents() - latents().mean(0)
    left = z - latents().mean(0)
    left = left - left @ np.linalg.pinv(centred) @ centred
    assert np.abs(left).max() < 5e-3
    steps = np.diff(z, axis=0)
    expected = np.sqrt((centred**2).sum(1).mean() / REACH)  # of each step
    assert np.sqrt((steps**2).sum(1).mean()) == pytest.approx(expected, rel=0.3)
    first = explorer.networks
    explorer.seed.value = 5
    assert not torch.equal(explorer.networks.weights[0], first.weights[0])
    torch.testing.assert_close(explorer.networks.weights[REACH], first.weights[REACH])
    explorer.seed.value = 0
    assert torch.equal(explorer.networks.weights, first.weights)


# ---- what is shown there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [-REACH, 0, 4])
def test_the_readout_is_the_evaluation_of_the_decoded_network(explorer, digits, far):
    explorer.start.value, explorer.far.value = 4, far
    network = explorer.networks.filter([REACH + far])
    report, near = evaluation.report(network, digits.test), evaluation.nearest(network, nets())
    own = evaluation.report(nets().filter([4]), digits.test).accuracy[0]
    said, shown = text_of(explorer), drawn(explorer)
    assert f"accuracy {report.accuracy[0]:.1f} %" in said
    facts = nets().facts
    name = f"network {facts['model'][near.index[0]]}, step {facts['step'][near.index[0]]}"
    assert f"nearest {name}, at {near.distance[0]:.4g}" in said
    np.testing.assert_allclose(shown["accuracy here"], [[0.3 * far, report.accuracy[0]]], atol=1e-6)
    np.testing.assert_allclose(shown["accuracy"][REACH + far], shown["accuracy here"][0])
    np.testing.assert_allclose(shown["the start itself"][:, 1], own)


def test_the_confusion_matrix_counts_rows(explorer, digits):
    explorer.far.value = 3
    x, y = digits.test
    predicted = explorer.networks.module(REACH + 3)(x.view(-1, 1, 8, 8)).argmax(1)
    expected = np.zeros((10, 10), int)
    for label, prediction in zip(y.tolist(), predicted.tolist(), strict=True):
        expected[label, prediction] += 1
    confusion = explorer.walk.confusion
    np.testing.assert_array_equal(confusion[REACH + 3], expected)
    (trace,) = [trace for trace in explorer.plot.data if trace.name == "confusion"]
    for prediction, label, text in zip(trace.x, trace.y, trace.text, strict=True):
        assert text == (str(expected[int(label), int(prediction)] or latent.BLANK))
    accuracy = 100 * np.trace(confusion, axis1=1, axis2=2) / len(y)
    np.testing.assert_allclose(accuracy, explorer.walk.accuracy)
    shade = np.asarray(opened(explorer.plot.layout.images[0].source).convert("L")).astype(int)
    zoom = len(shade) // 10
    darkest = np.unravel_index(shade[::zoom, ::zoom].argmin(), (10, 10))
    assert expected[darkest] == expected.max()


def test_the_pictures_are_the_networks_weights_and_what_the_nearest_lacks(explorer):
    explorer.layer.value, explorer.far.value = "fc1.weight", -4
    own, start = (explorer.networks.module(k).fc1.weight.detach().numpy() for k in (REACH - 4, REACH))
    nearest = nets().module(explorer.walk.nearest[REACH - 4]).fc1.weight.detach().numpy()
    assert [note.text for note in explorer.plot.layout.annotations] == [
        "first-layer filters",
        "fc1.weight",
        "minus the nearest's",
    ]
    for image, values in zip(explorer.plot.layout.images[2:], (own, own - nearest), strict=True):
        shown = np.asarray(opened(image.source).convert("RGB"))
        zoom = len(shown) // len(own)
        expected = weight_picture(values, np.abs(start).max()).convert("RGB")
        np.testing.assert_array_equal(shown[::zoom, ::zoom], np.asarray(expected))
    before = explorer.plot.layout.images[1].source
    explorer.far.value = 6
    assert explorer.plot.layout.images[1].source != before, "the filters"


def test_no_filters_where_no_images_are_seen(digits):
    modules = [networks.build("mlp-64-6-10", seed=seed) for seed in range(12)]
    layout = Layout.of(modules[0])
    rows = torch.stack([layout.flatten(module.state_dict()) for module in modules])
    several = Zoo(rows, layout, {"size": rows.norm(dim=1).numpy()}, "mlp-64-6-10", {})
    flat = (digits.test[0].flatten(1), digits.test[1])
    explorer = latent.Explorer(layer_pca(several, 4), several, flat, fact="size")
    assert [note.text for note in explorer.plot.layout.annotations] == ["fc2.weight", "minus the nearest's"]
    assert len(explorer.plot.layout.images) == 3
    assert re.search(r"from network \d+;", explorer._text())
    assert len(explorer.figure().axes) == 6


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_is_one_message(explorer, monkeypatch):
    sent = forget(explorer, monkeypatch)
    changes = {"far": 5, "direction": RANDOM, "seed": 3, "start": 2, "layer": "conv2.weight"}
    for control, value in changes.items():
        getattr(explorer, control).value = value
        (message,) = sent
        assert list(message["trace_indexes"]) == MOVING
        arrays = [
            array for values in message["restyle_data"].values() for array in values if isinstance(array, np.ndarray)
        ]
        assert all(memoryview(array).c_contiguous for array in arrays), "others cannot be sent"
        sent.clear()


def test_along_a_walk_nothing_is_computed_anew(explorer, monkeypatch):
    evaluated = []
    report = evaluation.report
    monkeypatch.setattr(evaluation, "report", lambda *a: evaluated.append(len(a[0])) or report(*a))
    for far in (-7, 3, 10):
        explorer.far.value = far
    assert evaluated == []
    explorer.direction.value = GRADIENT
    explorer.seed.value, explorer.far.value = 9, 1
    assert evaluated == [2 * REACH + 1, 1], "the walk and its start; the seed is of no matter"
    explorer.direction.value = explorer.direction.options[0]
    assert len(evaluated) == 2


def test_a_click_chooses_the_start(explorer):
    explorer._clicked(None, SimpleNamespace(point_inds=[9]), None)
    assert explorer.start.value == 9
    np.testing.assert_allclose(drawn(explorer)["start"], drawn(explorer)["zoo"][[9]], atol=1e-4)
    explorer._clicked(None, SimpleNamespace(point_inds=[]), None)
    assert explorer.start.value == 9


def test_the_other_network_has_the_starts_activation(explorer, monkeypatch):
    kinds = nets().facts["activation"]
    explorer.direction.value = TOWARDS
    for kind in ("tanh", "relu"):
        sent = forget(explorer, monkeypatch)
        explorer.start.value = int(np.flatnonzero(kinds == kind)[-1])
        assert len(sent) == 1
        offered = [row for _, row in explorer.other.options]
        assert offered == np.flatnonzero(kinds == kind).tolist()
        assert explorer.other.value in offered
    kept = offered[2]
    explorer.other.value = kept
    explorer.start.value = offered[0]
    assert explorer.other.value == kept


def test_only_the_choices_that_matter_are_open(explorer):
    for way, other, seed in ((RANDOM, True, False), (TOWARDS, False, True), (GRADIENT, True, True)):
        explorer.direction.value = way
        assert (explorer.other.disabled, explorer.seed.disabled) == (other, seed)


def test_a_plot_that_is_drawn_late_catches_up(explorer, monkeypatch):
    explorer.far.value = -3
    sent = forget(explorer, monkeypatch)
    explorer.plot._js2py_traceDeltas = {"trace_deltas": [], "trace_edit_id": -1}
    for i, image in enumerate(explorer.plot.layout.images):
        assert sent[-1]["relayout_data"][f"images[{i}].source"] == image.source


def test_large_splits_are_thinned_evenly(digits, monkeypatch):
    monkeypatch.setattr(latent, "ROWS", 100)
    x, y = latent.Explorer(embedder(), nets(), digits.test).split
    assert len(x) == len(y) == 100
    assert torch.equal(x[[0, -1]], digits.test[0][[0, -1]])


def test_batch_norm_is_recalibrated(digits):
    modules = [networks.build("resnet-8", classes=10, channels=1, seed=seed) for seed in range(10)]
    layout = Layout.of(modules[0], exclude=COUNTERS)
    rows = torch.stack([layout.flatten(module.state_dict()) for module in modules])
    build = {"build": {"classes": 10, "channels": 1}}
    several = Zoo(rows, layout, {"size": rows.norm(dim=1).numpy()}, "resnet-8", build)
    x = digits.train[0][:32].view(-1, 1, 8, 8)
    split = (digits.test[0][:32].view(-1, 1, 8, 8), digits.test[1][:32])
    pca = layer_pca(several, 2)
    explorer = latent.Explorer(pca, several, split, fact="size", recalibrate=x)
    start = several.filter([explorer.start.value])
    expected = evaluation.recalibrated(pca.decode(pca.embed(start), start), x)
    assert explorer.walk.accuracy[REACH] == evaluation.report(expected, split).accuracy[0]
    torch.testing.assert_close(explorer.networks.weights[REACH], expected.weights[0], rtol=1e-4, atol=1e-5)
    assert len(explorer.plot.layout.images) == 4, "3 x 3 kernels of images"


def test_what_does_not_fit(digits):
    with pytest.raises(ValueError, match="unknown fact 'charm'"):
        latent.Explorer(embedder(), nets(), digits.test, fact="charm")
    with pytest.raises(ValueError, match="fact 'activation' is of strings; expected one of numbers"):
        latent.Explorer(embedder(), nets(), digits.test, fact="activation")
    with pytest.raises(ValueError, match="nothing to predict"):
        latent.Explorer(embedder(), nets(), digits.test, fact="dropout")
    other = networks.build("mlp-64-8-10")
    layout = Layout.of(other)
    rows = layout.flatten(other.state_dict()).repeat(5, 1)
    stranger = Zoo(rows, layout, {"validation_accuracy": np.arange(5.0)}, "mlp-64-8-10", {})
    with pytest.raises(ValueError, match="another architecture"):
        latent.Explorer(embedder(), stranger, digits.test)


# ---- readers without a kernel ----------------------------------------------------------------------------------------


def test_one_bundle_for_every_reader(explorer, digits):
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"].startswith(f"Latent explorer: {len(nets())} networks; axis 1 (")
    again = latent.Explorer(embedder(), nets(), digits.test)._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])


def test_the_page_holds_all_directions_and_asks_for_nothing(explorer, tmp_path):
    explorer.start.value, explorer.direction.value, explorer.far.value = 5, GRADIENT, 7
    path = explorer.to_html(tmp_path / "latent.html")
    assert [file.name for file in tmp_path.iterdir()] == ["latent.html"]
    page = path.read_text()
    assert 'value="7"' in page, "it begins where the slider is"
    (stored,) = re.findall(r"^const all = (.*), at = id", page, re.M)
    stored = json.loads(stored)
    assert stored["moving"] == MOVING
    for way, data in zip(explorer.direction.options, stored["ways"], strict=True):
        explorer.direction.value = way
        for far in (-REACH, 2):
            explorer.far.value, frame = far, data["frames"][far + REACH]
            for trace, x, y in zip(explorer.plot.data[1:], frame["x"], frame["y"], strict=True):
                np.testing.assert_allclose(np.stack([x, y]), np.stack([trace.x, trace.y]), rtol=1e-4, atol=1e-4)
            assert frame["facts"] == explorer.readout.value
            assert frame["text"][-1] == list(explorer.plot.data[-1].text)
            for image, shown in zip(frame["images"], explorer.plot.layout.images, strict=True):
                small, live = (np.asarray(opened(source).convert("RGB")) for source in (image, shown.source))
                zoom = len(live) // len(small)
                np.testing.assert_array_equal(live[::zoom, ::zoom], small)
        assert data["layout"]["xaxis2.title.text"] == explorer.walk.unit
    chosen = explorer.direction.options.index(GRADIENT)
    assert f'at("direction").value = {chosen};' in page
    asks_for_nothing(page, 1_500_000)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "latent.html")

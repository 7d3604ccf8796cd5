"""Laws of the mixture explorer: it shows what the static numbers say, live or afterwards, with or without a kernel."""

import base64
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from shown import asks_for_nothing
from test_plots import EPOCHS, thinned, tiny_run

from wsnotebook import datasets, networks, plots
from wsnotebook.explorers import common, mixture
from wsnotebook.methods import soft_weight_sharing as sws

LAYERS = ("all layers", "fc1.weight", "fc2.weight")


@pytest.fixture(scope="module")
def result():
    return tiny_run()


@pytest.fixture
def explorer(result):
    return mixture.Explorer(result)


def so_far(result, epoch):
    """What `compress` hands to `watch` after this epoch."""
    rows = epoch + 1
    history = {name: values[:rows] for name, values in result.history.items()}
    parts = {"history": history, "mixtures": result.mixtures[:rows], "trace": result.trace[:rows]}
    return replace(result, **parts, assign="", compressed=None, finished=False)


def drawn(explorer):
    return {trace.name: (np.array(trace.x), np.array(trace.y)) for trace in explorer.plot.data}


def draw_in_a_browser(explorer):
    """What a browser sends when it has drawn the plot for the first time."""
    explorer.plot._js2py_traceDeltas = {"trace_deltas": [], "trace_edit_id": -1}


# ---- a finished result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 2, EPOCHS])
@pytest.mark.parametrize("layer", LAYERS)
def test_controls_show_the_numbers_of_their_epoch_and_layer(result, explorer, epoch, layer):
    explorer.slider.value, explorer.layer.value = epoch, layer
    f = plots.frame(result, epoch, None if layer == "all layers" else layer)
    shown = drawn(explorer)
    weights = result.layout.d if layer == "all layers" else result.layout.sizes[result.layout.names.index(layer)]
    assert shown["weights"][1].sum() == pytest.approx(weights)
    np.testing.assert_allclose(shown["weights"][1], f.counts, atol=1e-5)
    np.testing.assert_allclose(shown["mixture"], (f.grid, f.components.sum(0)))
    chosen = [list(f.before).index(x) for x in shown["points"][0][:5]]
    np.testing.assert_array_equal(shown["points"][1][:5], f.after[chosen])
    assert set(shown["points"][0]) <= set(f.before)
    assert len(shown["points"][0]) == min(mixture.POINTS, len(f.before))
    np.testing.assert_allclose(shown["spike band"][1], 2 * f.sigmas[0] * np.array([-1, -1, 1, 1]))


def test_components_add_up_to_the_mixture(explorer):
    shown = drawn(explorer)
    x, total = shown["mixture"]
    pieces = [shown["spike at zero"]]
    x_free, y_free = shown["other components"]
    ends = np.nonzero(np.isnan(x_free))[0]
    assert len(ends) == len(explorer.result.mixture.means) - 1 or len(ends) == explorer.result.config.components - 1
    for start, end in zip([0, *ends[:-1] + 1], ends, strict=True):
        pieces.append((x_free[start:end], y_free[start:end]))
    added = sum(np.interp(x, *piece, left=0, right=0) for piece in pieces)
    np.testing.assert_allclose(added, total, atol=0.01 * total.max())
    width = plots.frame(explorer.result).width
    assert np.trapezoid(total, x) / width == pytest.approx(explorer.result.layout.d, rel=0.02)


def test_scale_changes_the_axis_and_no_epoch_does(explorer):
    ranges = set()
    for epoch in range(EPOCHS + 1):
        explorer.slider.value = epoch
        ranges.add(
            (explorer.plot.layout.xaxis.range, explorer.plot.layout.yaxis.range, explorer.plot.layout.yaxis2.range)
        )
    assert len(ranges) == 1
    assert explorer.plot.layout.yaxis.type == "log"
    explorer.scale.value = "linear"
    assert explorer.plot.layout.yaxis.type == "linear"
    low, high = explorer.plot.layout.yaxis.range
    assert (low, high) == (0, pytest.approx(1.05 * plots.top(explorer.result)))
    explorer.layer.value = LAYERS[2]
    assert explorer.plot.layout.yaxis.range[1] == pytest.approx(1.05 * plots.top(explorer.result, LAYERS[2]))


def test_the_readout_names_the_epochs_numbers(result, explorer):
    explorer.slider.value = 2
    text = re.sub("<[^>]*>", "", explorer.readout.value)
    assert f"epoch 2 of {EPOCHS}" in text
    assert f"validation error {result.history['validation_error'][2]:.2f} %" in text
    assert f"{result.history['spike_sigma'][2]:.3g}" in text
    assert f"weights in the spike {plots.frame(result, 2).spike_percent:.1f} %" in text
    assert "tau 0.03" in text
    assert "times smaller" not in text
    explorer.slider.value = EPOCHS
    assert f"{result.compressed.ratio:.1f} times smaller" in explorer.readout.value


def test_what_was_moved_before_the_browser_drew_is_sent_again(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.slider.value = 1
    expected = drawn(explorer)
    sent.clear()
    draw_in_a_browser(explorer)
    assert len(sent[-1]["restyle_data"]["x"]) == len(explorer.plot.data)
    assert set(sent[-1]["relayout_data"]) >= {"xaxis.range", "yaxis.range", "yaxis.type"}
    for name, (x, y) in drawn(explorer).items():
        np.testing.assert_array_equal((x, y), expected[name])


def test_every_step_sends_all_traces(explorer, monkeypatch):
    draw_in_a_browser(explorer)
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.slider.value = 1
    (message,) = sent
    for key in ("x", "y"):
        assert [len(values) for values in message["restyle_data"][key]] == [len(t[key]) for t in explorer.plot.data]


# ---- while it trains -----------------------------------------------------------------------------------------------


def test_watching_follows_the_training(result):
    live = mixture.Explorer()
    assert live.layer.options == ("all layers",)
    assert live.stop.disabled
    for epoch in range(EPOCHS + 1):
        assert not live.watch(so_far(result, epoch))
        assert (live.slider.value, live.slider.max, live.play.max) == (epoch, epoch, epoch)
        assert live.stop.disabled == (epoch == EPOCHS)
        assert f"epoch <b>{epoch} of {EPOCHS}</b>" in live.readout.value
    assert live.layer.options == LAYERS


def test_a_slider_moved_back_stays_where_it_is(result):
    live = mixture.Explorer()
    live.watch(so_far(result, 0))
    live.watch(so_far(result, 1))
    live.slider.value = 0
    live.watch(so_far(result, 2))
    assert (live.slider.value, live.slider.max) == (0, 2)
    live.slider.value = 2
    live.watch(so_far(result, 3))
    assert live.slider.value == 3
    live.watch(so_far(result, 0))
    assert (live.slider.value, live.slider.max) == (0, 0), "another run starts at its beginning"


def test_a_live_plot_waits_for_a_browser(result):
    live = mixture.Explorer()
    live.watch(so_far(result, 0))
    live.watch(so_far(result, 1))
    assert live.plot.data[0].y is None, "no browser: the plot is as it was built"
    draw_in_a_browser(live)
    for name, (x, y) in drawn(mixture.Explorer(so_far(result, 1))).items():
        np.testing.assert_array_equal((x, y), drawn(live)[name])
    live.watch(so_far(result, 2))
    assert drawn(live)["weights"][1].sum() == pytest.approx(result.layout.d)
    np.testing.assert_array_equal(drawn(live)["mixture"], drawn(mixture.Explorer(so_far(result, 2)))["mixture"])


def test_stop_ends_the_training_and_keeps_what_is_there(result):
    live, data, network = mixture.Explorer(), datasets.load("digits"), networks.build("mlp-64-32-10")

    def press_at_one(result):
        if len(result.trace) == 2:
            assert not live.stop.disabled
            live.stop.click()
            assert live.stop.disabled
        return live.watch(result)

    stopped = sws.compress(network, data, replace(result.config, epochs=50), watch=press_at_one)
    assert (len(stopped.trace), stopped.finished) == (2, False)
    assert stopped.compressed.sizes.bits < stopped.compressed.sizes.original_bits
    assert live.stop.disabled
    assert live.watch(stopped) is None
    assert f"{stopped.compressed.ratio:.1f} times smaller" in live.readout.value
    assert not live.watch(so_far(result, 0)), "the button does not stop the next run"
    assert not live.stop.disabled


LOOP = """
import sys, time
sys.path.insert(0, {folder!r})
from test_plots import tiny_run
from test_mixture_explorer import so_far
from wsnotebook.explorers import mixture
live, result = mixture.Explorer(), tiny_run()
live.watch(so_far(result, 0)), live.watch(so_far(result, 1))
print("IDS", live.stop.comm.comm_id, live.slider.comm.comm_id)
"""
WAIT = """
start = time.time()
while time.time() - start < 60 and not live.watch(so_far(result, 2)):
    time.sleep(0.05)
print("DONE", time.time() - start < 60, live.slider.value)
"""


@pytest.mark.timeout(180)
def test_controls_answer_while_a_cell_runs(request):
    """As JupyterLab does it: the controls' messages go to a subshell, while the main shell is busy."""
    manager = pytest.importorskip("jupyter_client.manager")
    kernel, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=120)
    try:
        if "kernel subshells" not in client.kernel_info(reply=True, timeout=60)["content"]["supported_features"]:
            pytest.skip("this ipykernel has no subshells: controls answer when the cell ends")
        client.execute(LOOP.format(folder=str(request.path.parent)))
        stop, slider = printed(client, "IDS")
        client.control_channel.send(client.session.msg("create_subshell_request"))
        subshell = client.get_control_msg(timeout=60)["content"]["subshell_id"]
        client.execute(WAIT)
        time.sleep(0.5)
        for comm, data in (
            (slider, {"method": "update", "state": {"value": 0}, "buffer_paths": []}),
            (stop, {"method": "custom", "content": {"event": "click"}}),
        ):
            message = client.session.msg("comm_msg", {"comm_id": comm, "data": data})
            message["header"]["subshell_id"] = subshell
            client.shell_channel.send(message)
        assert printed(client, "DONE") == ["True", "0"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def printed(client, word):
    """The rest of the first line that the kernel prints beginning with the word."""
    while True:
        message = client.get_iopub_msg(timeout=120)
        assert message["msg_type"] != "error", "\n".join(message["content"]["traceback"])
        text = message["content"].get("text", "")
        if message["msg_type"] == "stream" and text.startswith(word):
            return text.split()[1:]


# ---- in the notebook, and without one ------------------------------------------------------------------------------


def test_one_bundle_for_every_reader(result, explorer, monkeypatch):
    published = []
    monkeypatch.setattr(
        common, "publish_display_data", lambda data, metadata, **how: published.append((data, metadata))
    )
    explorer._ipython_display_()
    ((data, metadata),) = published
    assert metadata == {"image/png": {"alt": data["text/plain"]}}
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.view.model_id
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    again = mixture.Explorer(result)._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])
    error, ratio = result.history["validation_error"][-1], result.compressed.ratio
    assert data["text/plain"].startswith(
        f"Mixture explorer: all layers, epoch {EPOCHS} of {EPOCHS}, validation error {error:.2f} %"
    )
    assert data["text/plain"].endswith(f"file {ratio:.1f} times smaller")


def test_a_live_view_leaves_the_last_picture_in_the_notebook(result, monkeypatch):
    published = []
    monkeypatch.setattr(common, "publish_display_data", lambda data, metadata, **how: published.append((data, how)))
    live = mixture.Explorer()
    live.watch(result)
    assert not published, "never shown: nothing to bring up to date"
    live = mixture.Explorer()
    live._ipython_display_()
    for epoch in range(EPOCHS + 1):
        live.watch(so_far(result, epoch))
    live.watch(result)
    (first, shown), (last, updated) = published
    assert first["text/plain"] == "Mixture explorer: waiting for the training below"
    assert updated == {**shown, "update": True}
    assert last["text/plain"] == mixture.Explorer(result)._repr_mimebundle_()["text/plain"]


def test_the_static_twin_is_as_the_controls_say(result, explorer):
    explorer.slider.value, explorer.layer.value, explorer.scale.value = 1, LAYERS[1], "linear"
    left, right = explorer.figure().axes
    assert left.get_yscale() == "linear"
    assert left.patches[0].get_data().values.sum() == result.layout.sizes[0]
    assert right.get_ylabel() == "weight at epoch 1"
    left, right = explorer.figure(epoch=3, layer="all layers", log=True).axes
    assert left.get_yscale() == "log"
    assert left.patches[0].get_data().values.sum() == result.layout.d
    assert right.get_ylabel() == "weight at epoch 3"


def constants(page):
    (line,) = re.findall(r"^const epochs = (.*), texts = (.*), axes = (.*), frames = (.*);$", page, re.M)
    return [json.loads(part) for part in line]


def test_the_page_holds_every_epoch_of_every_layer(result, explorer, tmp_path):
    path = explorer.to_html(tmp_path / "mixture.html")
    assert [file.name for file in tmp_path.iterdir()] == ["mixture.html"]
    page = path.read_text()
    assert explorer.to_html(tmp_path / "again.html").read_text() == page
    epochs, texts, axes, frames = constants(page)
    assert epochs == list(range(EPOCHS + 1))
    assert set(frames) == set(texts) == {f"{layer}/{epoch}" for layer in range(3) for epoch in epochs}
    assert [set(part) for part in axes] == [{"log", "linear"}] * 3
    assert re.findall("<option value=(.)>(.*?)</option>", page) == [(str(i), name) for i, name in enumerate(LAYERS)]
    for layer, name in enumerate(LAYERS):
        explorer.slider.value, explorer.layer.value = 3, name
        for trace, stored in zip(explorer.plot.data, frames[f"{layer}/3"], strict=True):
            for key in ("x", "y"):
                assert stored[key]["dtype"] == "f4"
                numbers = np.frombuffer(base64.b64decode(stored[key]["bdata"]), "<f4")
                np.testing.assert_array_equal(numbers, np.float32(trace[key]))
        assert texts[f"{layer}/3"] == explorer.readout.value


def test_the_page_asks_for_nothing(explorer, tmp_path):
    page = explorer.to_html(tmp_path / "mixture.html").read_text()
    asks_for_nothing(page)


def test_a_long_run_gives_a_short_page(explorer, tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "HTML_EPOCHS", 3)
    epochs, _, _, frames = constants(explorer.to_html(tmp_path / "mixture.html").read_text())
    assert epochs == [0, EPOCHS // 2, EPOCHS]
    assert len(frames) == 9


def test_a_page_that_cannot_be_written(explorer, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "mixture.html")
    with pytest.raises(ValueError, match="the explorer has no result yet"):
        mixture.Explorer().to_html(tmp_path / "mixture.html")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_many_followed_weights_are_thinned_for_the_scatter(result, monkeypatch):
    monkeypatch.setattr(mixture, "POINTS", 10)
    explorer = mixture.Explorer(thinned(result))
    assert len(explorer.plot.data[-1].x) == 10
    assert drawn(explorer)["weights"][1].sum() == pytest.approx(result.layout.d)

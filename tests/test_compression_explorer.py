"""Laws of the compression explorer: a file is shown as it was measured, by slider, click and page alike."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from shown import asks_for_nothing, text_of
from test_plots_comparison_compression import entry, tried

from wsnotebook.explorers import compression
from wsnotebook.plots import comparison_compression as pictures


@pytest.fixture(scope="module")
def entries():
    return {"n": tried(), "m": [entry("as trained", 77, 3.0, case="m"), entry("low rank", 33, 3.5, case="m")]}


@pytest.fixture
def explorer(entries):
    return compression.Explorer(entries)


def traces(explorer):
    return {trace.name: trace for trace in explorer.plot.data}


def numbers(values):
    if isinstance(values, dict):
        values = np.frombuffer(base64.b64decode(values["bdata"]), "<f4")
    return np.float32(values)


@pytest.mark.parametrize("k", range(5))
def test_the_slider_goes_through_the_files_by_size(explorer, entries, k):
    explorer.slider.value = k
    e = sorted(entries["n"], key=lambda e: e.bytes)[k]
    assert explorer.chosen is e
    limit, ring = pictures.top(entries["n"]), traces(explorer)["chosen"]
    assert (ring.x[0], ring.y[0]) == (e.bytes, min(e.test.error, limit))
    told = text_of(explorer)
    for part in (f"{e.bytes:,}", f"{e.test.error:.2f} %", "1.5", "40 of 45"):
        assert part in told
    assert "<b>" not in told
    assert ("&lt;b&gt;" in explorer.readout.value) == (e.setting == "<b>")


def test_the_right_half_is_the_files_weights_or_its_map(explorer, entries):
    for k, e in enumerate(sorted(entries["n"], key=lambda e: e.bytes)):
        explorer.slider.value = k
        drawn, layout = traces(explorer), explorer.plot.layout
        shares = e.method == "SuperWeights"
        assert (layout.xaxis3.visible, layout.xaxis2.visible) == (shares, not shares)
        if shares:
            assert np.isfinite(np.array(drawn["clusters"].z, float)).sum() == sum(map(len, e.shown.plan.clusters))
            assert len(drawn["weights"].x) == 0
        else:
            w = pictures.weights(e)
            np.testing.assert_allclose(drawn["weights"].y, np.maximum(w.counts, compression.NONE))
            np.testing.assert_allclose(drawn["mixture"].x, w.grid)
            assert sorted(set(np.array(drawn["codebooks"].x))) == w.centres.tolist()
            assert not drawn["clusters"].z


def test_every_file_of_the_network_is_a_point_and_another_network_has_its_own(explorer, entries):
    for name in ("m", "n"):
        explorer.network.value = name
        own = sorted(entries[name], key=lambda e: e.bytes)
        points = [
            (t.name, *p)
            for t in explorer.plot.data[: len(explorer.methods)]
            for p in zip(t.customdata, t.x, strict=True)
        ]
        assert sorted(points) == sorted((e.method, k, e.bytes) for k, e in enumerate(own))
        assert explorer.chosen is own[0]
        assert explorer.plot.layout.yaxis.range[1] == pytest.approx(pictures.top(own))


def test_a_click_chooses(explorer):
    (index,) = [i for i, t in enumerate(explorer.plot.data) if t.name == "SuperWeights"]
    points = SimpleNamespace(trace_index=index, point_inds=[0], xs=[], ys=[])
    explorer.plot.data[index]._dispatch_on_click(points, None)
    assert explorer.chosen.method == "SuperWeights"


def test_a_step_is_one_message(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.slider.value = 2
    assert len(sent) == 1


def test_one_bundle_for_every_reader(explorer, entries):
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["image/png"] == compression.Explorer(entries)._repr_mimebundle_()["image/png"]
    assert data["text/plain"].startswith("Compression explorer: files 5 of n, 2 of m; method SuperWeights, then")


def test_the_page_holds_every_file_and_asks_for_nothing(explorer, entries, tmp_path):
    page = explorer.to_html(tmp_path / "compression.html").read_text()
    assert explorer.to_html(tmp_path / "again.html").read_text() == page
    (line,) = re.findall(r"^const networks = (.*), at = id", page, re.M)
    for stored, name in zip(json.loads(line), entries, strict=True):
        explorer.network.value = name
        for k, file in enumerate(stored["files"]):
            explorer.slider.value = k
            assert file["text"] == explorer.readout.value
            shown = [*stored["points"], stored["rings"][k], *file["traces"]]
            for values, trace in zip(shown, explorer.plot.data, strict=True):
                for key in set(values) & {"x", "y"}:
                    np.testing.assert_array_equal(numbers(values[key]), np.float32(trace[key]))
    asks_for_nothing(page, 400_000)

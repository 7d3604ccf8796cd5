"""Laws of the zoo explorer: each network is there at every step, and the chosen ones stay chosen, kernel or none."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from shown import asks_for_nothing
from test_plots_zoo import STEPS, aligned_zoo, tiny_zoo

from wsnotebook import plots
from wsnotebook.explorers import zoo as explorers
from wsnotebook.plots import zoo as pictures


@pytest.fixture
def trained():
    return tiny_zoo()


@pytest.fixture
def explorer():
    return explorers.Explorer(tiny_zoo(), aligned_zoo())


def drawn(explorer):
    return {trace.name: trace for trace in explorer.plot.data}


def xy(trace):
    return np.column_stack([trace.x, trace.y])


def click(explorer, network):
    """What a browser sends for a click on a network's point."""
    points = SimpleNamespace(trace_index=explorers.STILL, point_inds=[network], xs=[], ys=[])
    explorer.plot.data[explorers.STILL]._dispatch_on_click(points, None)


def draw_in_a_browser(explorer):
    """What a browser sends when it has drawn the plot for the first time."""
    explorer.plot._js2py_traceDeltas = {"trace_deltas": [], "trace_edit_id": -1}


@pytest.mark.parametrize("step", range(len(STEPS) + 1))
def test_the_step_moves_every_network_to_its_row(explorer, trained, step):
    explorer.step.value = step
    rows = pictures.snapshots(trained)[1][step]
    shown, scores = drawn(explorer), plots.embedding(trained.weights)[0]
    np.testing.assert_allclose(xy(shown["networks"]), scores[rows])
    np.testing.assert_allclose(shown["networks"].marker.color, trained.facts["validation_accuracy"][rows])
    np.testing.assert_allclose(xy(shown["chosen"]), scores[rows[:2]])
    assert explorer.selected == rows[:2].tolist()
    assert set(shown["step"].x) == {trained.facts["step"][rows[0]]}
    ranges = explorer.plot.layout.xaxis.range, explorer.plot.layout.yaxis.range
    for (low, high), values in zip(ranges, scores.T, strict=True):
        assert low < values.min() < values.max() < high, "the frame is the same at every step"


def test_the_lists_choose_axes_colours_and_curves(explorer, trained):
    explorer.x.value, explorer.y.value, explorer.colour.value = "PC2 aligned", "test_loss", "lr"
    explorer.curve.value = "test_accuracy"
    rows, shown = pictures.snapshots(trained)[1], drawn(explorer)
    here = rows[-1]
    across = plots.embedding(aligned_zoo().weights)[0][here, 1]
    np.testing.assert_allclose(xy(shown["networks"]), np.column_stack([across, trained.facts["test_loss"][here]]))
    np.testing.assert_allclose(shown["networks"].marker.color, trained.facts["lr"][here])
    assert explorer.plot.layout.coloraxis.showscale
    assert explorer.plot.layout.coloraxis.colorbar.title.text == "learning rate"
    heights = trained.facts["test_accuracy"][rows]
    np.testing.assert_allclose(shown["median"].y, np.median(heights, axis=1))
    others = np.array(shown["all networks"].y)
    np.testing.assert_allclose(others[~np.isnan(others)], heights.T.ravel())
    np.testing.assert_allclose(shown["second"].y, heights[:, 1])
    assert explorer.plot.layout.yaxis2.title.text == "test accuracy (%)"


def test_strings_are_coloured_by_kind_with_a_key(explorer, trained):
    explorer.colour.value = "init"
    kinds = trained.facts["init"][pictures.snapshots(trained)[1][-1]]
    shown = drawn(explorer)["networks"].marker
    looks = dict(zip(kinds, zip(shown.color, shown.symbol, strict=True), strict=True))
    assert [looks[kind] for kind in kinds] == list(zip(shown.color, shown.symbol, strict=True))
    assert len(set(looks.values())) == 2
    assert not explorer.plot.layout.coloraxis.showscale
    assert all(f"{looks[kind][0]}'" in explorer.key.value and f"</b> {kind}" in explorer.key.value for kind in looks)


def test_a_logarithmic_fact_has_its_own_numbers_at_the_ticks():
    wide = tiny_zoo().derived(tiny_zoo().weights, size=np.geomspace(0.1, 1000, 24))
    explorer = explorers.Explorer(wide)
    explorer.colour.value = explorer.curve.value = "size"
    scale = explorer.plot.layout.coloraxis
    np.testing.assert_allclose(
        drawn(explorer)["networks"].marker.color, np.log10(wide.facts["size"][explorer.rows[-1]])
    )
    np.testing.assert_allclose(
        [float(text) for text in scale.colorbar.ticktext], 10 ** np.array(scale.colorbar.tickvals)
    )
    axis = explorer.plot.layout.yaxis2
    assert axis.type == "log"
    assert axis.range[0] < -1 < 3 < axis.range[1]
    explorer.curve.value = "test_accuracy"
    assert (axis.type, axis.tickvals) == ("linear", None)


def test_a_choice_is_kept_and_read_out(explorer, trained):
    explorer.second.value, explorer.third.value = 4, 2
    explorer.step.value = 1
    rows = pictures.snapshots(trained)[1][1][[0, 4, 2]]
    assert explorer.selected == rows.tolist()
    cells = [re.findall("<td.*?>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", explorer.readout.value)[1:]]
    heads = re.findall("<th style='padding.*?>(.*?)</th>", explorer.readout.value)
    assert "optimiser" not in heads, "what all networks share is not repeated"
    assert [row[heads.index("model (number)")] for row in cells] == ["0", "4", "2"]
    expected = [f"{value:.4g}" for value in trained.facts["test_loss"][rows]]
    assert [row[heads.index("test loss (nats)")] for row in cells] == expected
    assert (
        list(drawn(explorer)["third"].y) == trained.facts["validation_accuracy"][trained.facts["model"] == 2].tolist()
    )


def test_clicks_take_turns_and_no_network_is_chosen_twice(explorer):
    for network in (3, 5, 1):
        click(explorer, network)
    assert (explorer.first.value, explorer.second.value, explorer.third.value) == (3, 5, 1)
    click(explorer, 5)
    assert (explorer.first.value, explorer.second.value, explorer.third.value) == (5, 3, 1)
    explorer.third.value = explorers.NOBODY
    assert len(explorer.selected) == 2
    explorer.third.value = 5
    assert explorer.third.value == 5
    assert len(set(explorer.selected)) == 3


def test_listeners_hear_of_the_selection(explorer):
    heard = []
    explorer.on_select(heard.append)
    explorer.first.value = 5
    explorer.step.value = 0
    assert heard == [[23, 7], [20, 4]]
    assert heard[-1] == explorer.selected


def test_it_begins_at_the_step_that_is_asked_for(trained):
    assert explorers.Explorer(trained, at=10).selected == [1, 5]
    with pytest.raises(ValueError, match=r'at=11: expected "last" or one of the steps 0, 10, 20'):
        explorers.Explorer(trained, at=11)
    with pytest.raises(ValueError, match="zoo: 2 networks, expected at least three"):
        explorers.Explorer(trained.filter(trained.facts["model"] < 2))
    with pytest.raises(ValueError, match="aligned: 3 networks"):
        explorers.Explorer(trained, aligned_zoo().filter([0, 1, 2]))


def test_a_zoo_without_facts_or_snapshots_can_be_explored(trained):
    bare = trained.filter(np.arange(3, 24, 4))
    bare = type(bare)(bare.weights, bare.layout, {}, bare.network, bare.provenance)
    explorer = explorers.Explorer(bare)
    assert explorer.selected == [0, 1]
    np.testing.assert_allclose(xy(drawn(explorer)["networks"]), plots.embedding(bare.weights)[0])
    assert "Zoo explorer: 6 networks" in explorer._repr_mimebundle_()["text/plain"]


def test_a_step_is_one_message_with_what_moves(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.step.value = 1
    (message,) = sent
    assert list(message["trace_indexes"]) == list(range(explorers.STILL, len(explorer.plot.data)))
    assert not message["relayout_data"]


def test_what_was_chosen_before_the_browser_drew_is_sent_again(explorer, monkeypatch):
    explorer.step.value, explorer.colour.value = 0, "init"
    before = xy(drawn(explorer)["networks"])
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    draw_in_a_browser(explorer)
    np.testing.assert_array_equal(sent[-1]["restyle_data"]["x"][explorers.STILL], before[:, 0])
    assert sent[-1]["relayout_data"]["coloraxis.showscale"] is False
    np.testing.assert_array_equal(xy(drawn(explorer)["networks"]), before)
    assert isinstance(sent[-1]["relayout_data"]["xaxis.range"], list), "plotly cannot read a tuple back"
    sent.clear()
    draw_in_a_browser(explorer)
    assert not sent


def test_one_bundle_for_every_reader(explorer, trained):
    explorer.step.value = 1
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    first, second = trained.facts["validation_accuracy"][explorer.selected]
    assert data["text/plain"] == (
        f"Zoo explorer: 6 networks at step 10; validation accuracy (%), first model 0: {first:.4g}, "
        f"second model 1: {second:.4g}"
    )
    again = explorers.Explorer(tiny_zoo(), aligned_zoo(), at=10)._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])


def constants(page):
    (line,) = re.findall(r"^const zoo = (.*);$", page, re.M)
    return json.loads(line)


def test_the_page_holds_every_step_and_asks_for_nothing(explorer, trained, tmp_path):
    explorer.step.value, explorer.third.value = 2, 5
    path = explorer.to_html(tmp_path / "zoo.html")
    assert [file.name for file in tmp_path.iterdir()] == ["zoo.html"]
    page = path.read_text()
    assert explorer.to_html(tmp_path / "again.html").read_text() == page
    data = constants(page)
    assert data["chosen"] == {
        "step": 2, "x": "PC1", "y": "PC2", "colour": "validation_accuracy", "curve": "validation_accuracy",
        "first": 0, "second": 1, "third": 5, "turn": "first",
    }  # fmt: skip
    assert data["rows"] == pictures.snapshots(trained)[1].tolist()
    assert set(data["columns"]) == {*trained.facts, "PC1", "PC2", "PC1 aligned", "PC2 aligned"}
    for name, column in explorer.columns.items():
        stored = data["columns"][name]
        if column.numeric:
            np.testing.assert_allclose(stored["values"], column.values, rtol=1e-5)
            assert stored["axes"]["xaxis"]["title.text"] == column.label
        else:
            assert stored["values"] == column.values.tolist()
            assert len(stored["colours"]) == len(trained)
    asks_for_nothing(page, 200_000)


def test_a_fact_cannot_end_the_script(tmp_path):
    names = np.array([f"</script><b>{i}" for i in range(24)])
    hostile = tiny_zoo().derived(tiny_zoo().weights, file=names)
    explorer = explorers.Explorer(hostile)
    page = explorer.to_html(tmp_path / "zoo.html").read_text()
    assert constants(page)["columns"]["file"]["values"] == names.tolist()
    assert "</script><b>" not in page
    assert "<b>3" not in explorer.readout.value


def test_a_page_that_cannot_be_written(tmp_path, explorer):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "zoo.html")


@pytest.mark.parametrize("name", ["DATASET", "@KEY@", "LAST"])
def test_facts_may_be_called_what_they_like(trained, tmp_path, name):
    zoo = trained.derived(trained.weights, **{name: np.arange(len(trained))})
    page = explorers.Explorer(zoo).to_html(tmp_path / "zoo.html").read_text()
    options = re.findall(r"<option[^>]*>([^<]*)</option>", page)
    assert options.count(name) == 4, "two axes, the colour and the curves"

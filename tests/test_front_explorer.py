"""Laws of the front explorer: every trial is there once, and a chosen one's mixture is its own, kernel or none."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from shown import asks_for_nothing
from test_plots import thinned, tiny_run

from wsnotebook import plots
from wsnotebook.plots import tuning as pictures

pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'wsnotebook[tune]'")
from wsnotebook import tuning
from wsnotebook.explorers import front

TRAINED, ALLOWANCE = 2.0, 0.5
SETTINGS = {"tau": 0.0123456, "assign": "ml"}


def trial(number, ratio, error, state="complete", reason=""):
    drop = None if error is None else error - TRAINED
    return tuning.Trial(number, SETTINGS, state, ratio, error, drop, 4, reason, ())


TRIALS = [
    trial(0, 20.0, 1.9),
    trial(1, 30.0, 2.4),
    trial(2, 25.0, 2.6),
    trial(3, 40.0, 3.0),
    trial(4, 15.0, 80.0),
    trial(5, 28.0, 2.5, "pruned", "worse than the median at epoch 4"),
    trial(6, None, None, "failed", "ValueError: it <broke>"),
]
FRONT = [0, 1, 3]


@pytest.fixture(scope="module")
def results():
    """A result for each complete trial: two different ones by turns."""
    one, other = tiny_run(), thinned(tiny_run())
    return {t.number: (one, other)[t.number % 2] for t in TRIALS if t.state == "complete"}


@pytest.fixture
def loaded():
    return []


@pytest.fixture
def explorer(results, loaded):
    def load(trial):
        loaded.append(trial.number)
        return results[trial.number]

    return front.Explorer(TRIALS, load, ALLOWANCE)


def drawn(explorer):
    return {trace.name: (np.array(trace.x), np.array(trace.y)) for trace in explorer.plot.data}


def click(explorer, group, number):
    """What a browser sends for a click on a trial's point."""
    (index,) = [i for i, trace in enumerate(explorer.plot.data) if trace.name == group]
    trace = explorer.plot.data[index]
    points = SimpleNamespace(trace_index=index, point_inds=[list(trace.customdata).index(number)], xs=[], ys=[])
    explorer.plot.data[index]._dispatch_on_click(points, None)


def test_every_trial_with_numbers_stands_in_one_group(explorer):
    shown = {trace.name: list(trace.customdata) for trace in explorer.plot.data[:3]}
    assert shown == {"on the front": FRONT, "complete": [2, 4], "ended early": [5]}
    assert shown["on the front"] == [t.number for t in tuning.front(TRIALS)]
    limit = explorer.plot.layout.yaxis.range[1]
    for name, numbers in shown.items():
        x, y = drawn(explorer)[name]
        np.testing.assert_array_equal(x, [TRIALS[i].ratio for i in numbers])
        np.testing.assert_array_equal(y, [min(TRIALS[i].error, limit) for i in numbers])
    assert 3.0 < limit < 80.0, "the front is inside, the ruined network at the edge"


def test_the_reference_lines_are_the_trained_networks_error_and_the_allowance(explorer):
    heights = [shape.y0 for shape in explorer.plot.layout.shapes]
    assert heights == pytest.approx([TRAINED, TRAINED + ALLOWANCE])
    assert [note.text for note in explorer.plot.layout.annotations] == ["trained network", "allowance"]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_the_slider_shows_the_mixture_of_its_trial(explorer, results, number):
    explorer.slider.value = number
    f, shown = plots.frame(results[number]), drawn(explorer)
    np.testing.assert_array_equal(shown["chosen"], ([TRIALS[number].ratio], [TRIALS[number].error]))
    np.testing.assert_allclose(shown["weights"][1], f.counts, atol=1e-5)
    np.testing.assert_allclose(shown["mixture"], (f.grid, f.components.sum(0)))
    assert explorer.plot.layout.xaxis2.range == pytest.approx((-f.limit, f.limit))
    assert explorer.plot.layout.yaxis2.type == "log"
    assert explorer.plot.layout.yaxis.type != "log"
    text = re.sub("<[^>]*>", "", explorer.readout.value)
    assert f"trial {number}" in text
    assert f"{TRIALS[number].error:.2f} %" in text
    assert "tau 0.0123" in text
    assert "assign ml" in text


def test_it_begins_at_the_best_and_walks_by_ratio(explorer, loaded):
    assert explorer.chosen == tuning.best(TRIALS, ALLOWANCE) == TRIALS[1]
    assert loaded == [1]
    order = [number for _, number in explorer.slider.options]
    assert order == [4, 0, 2, 1, 3]
    for index in (0, 1, 2, 3, 4, 0):
        explorer.slider.index = index
    assert sorted(loaded) == [0, 1, 2, 3, 4], "each is loaded once, when it is wanted"


def test_a_click_chooses_and_one_on_an_ended_trial_tells_its_facts(explorer):
    click(explorer, "on the front", 3)
    assert explorer.slider.value == 3
    click(explorer, "complete", 2)
    assert explorer.slider.value == 2
    click(explorer, "ended early", 5)
    assert explorer.slider.value == 2
    assert "worse than the median at epoch 4 after 4 epochs" in explorer.readout.value


def test_a_step_is_one_message_with_all_moving_traces(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.slider.value = 3
    (message,) = sent
    assert len(message["restyle_data"]["x"]) == len(message["trace_indexes"]) == 5


def test_one_bundle_for_every_reader(explorer, results):
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    again = front.Explorer(TRIALS, lambda t: results[t.number], ALLOWANCE)._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])
    assert data["text/plain"].startswith("Front explorer: 7 trials, 3 on the front; trial 1, ratio 30.0")


def test_the_static_twin_shows_the_chosen_trial(explorer, results):
    left, right = explorer.figure(3).axes
    assert right.patches[0].get_data().values.sum() == pytest.approx(results[3].layout.d)
    (ring,) = [line for line in left.lines if line.get_label() == "trial 3"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([40.0], [3.0])
    assert explorer.figure()._suptitle.get_text().startswith("Trial 1: 30.0 times smaller, validation error 2.40 %")


def constants(page):
    (line,) = re.findall(r"^const numbers = (.*), moving = (.*), frames = (.*);$", page, re.M)
    return [json.loads(part) for part in line]


def test_the_page_holds_the_fronts_mixtures_and_asks_for_nothing(explorer, tmp_path):
    path = explorer.to_html(tmp_path / "front.html")
    assert [file.name for file in tmp_path.iterdir()] == ["front.html"]
    page = path.read_text()
    assert explorer.to_html(tmp_path / "again.html").read_text() == page
    numbers, moving, frames = constants(page)
    assert numbers == FRONT
    assert set(frames) == {"0", "1", "3"}
    for number in numbers:
        explorer.slider.value = number
        frame = frames[str(number)]
        assert frame["text"] == explorer.readout.value
        for place, index in enumerate(moving):
            for key in ("x", "y"):
                stored = frame["data"][key][place]
                if isinstance(stored, dict):
                    stored = np.frombuffer(base64.b64decode(stored["bdata"]), "<f4")
                np.testing.assert_array_equal(np.float32(stored), np.float32(explorer.plot.data[index][key]))
    assert 'value="1"' in page, "it begins at the chosen one"
    asks_for_nothing(page, 3_000_000)


def test_without_a_complete_trial_there_is_nothing_to_explore(tmp_path, explorer):
    with pytest.raises(ValueError, match="none is complete"):
        front.Explorer(TRIALS[5:], lambda t: None)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "front.html")


# ---- the static pictures -------------------------------------------------------------------------------------------


def test_trials_are_drawn_once_each_with_the_chosen_one_ringed():
    figure = plots.trials(TRIALS, tuning.front(TRIALS), ALLOWANCE, TRIALS[1])
    (axes,) = figure.axes
    limit = axes.get_ylim()[1]
    markers = [line for line in axes.lines if line.get_marker() in ("o", "s", "X", "^") and line.get_markersize() == 7]
    points = sorted((x, y) for line in markers for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert points == sorted((t.ratio, min(t.error, limit)) for t in TRIALS if t.error is not None)
    with pytest.raises(ValueError, match="none has an error to draw"):
        plots.trials(TRIALS[6:], [], ALLOWANCE)


def test_saved_epochs_are_those_that_ended_trials_did_not_run():
    found = [trial(0, 1.0, 2.0), trial(1, 1.0, 2.0, "pruned"), trial(2, None, None, "failed")]
    assert plots.saved_epochs(found, 10) == (6, 30)
    reported = [tuning.Trial(**vars(t) | {"reports": ((2, 20.0, 3.0), (4, 21.0, 2.0))}) for t in found[:2]]
    figure = plots.pruning([*reported, found[2]], 10)
    assert figure._suptitle.get_text() == "Pruning saved 6 of 30 epochs (20 %)"
    assert [bar.get_width() for bar in figure.axes[1].patches] == [4, 4, 4, 6, 6, 6]


def test_an_ablation_has_a_column_a_factor_and_a_point_a_run():
    rows = [
        {
            "factor": factor,
            "value": value,
            "seed": seed,
            "ratio": 10.0 + seed,
            "error": 2.0 + seed,
            "condensed": seed == 0,
        }
        for factor, values in (("tau", (0.1, 0.2)), ("hyper-priors", ("none", "both")))
        for value in values
        for seed in (0, 1)
    ]
    rows[-1]["error"] = 9.0  # in the last column
    figure = plots.ablation(rows, rows[0])
    assert figure.axes[2].get_ylim()[1] > 9
    assert len(figure.axes) == 4
    upper = figure.axes[0]
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["0.1", "0.2"]
    points = [line for line in upper.lines if line.get_marker() == "o"]
    assert [line.get_ydata()[0] for line in points] == [10.0, 11.0, 10.0, 11.0]
    assert [line.get_markerfacecolor() for line in points] == [pictures.FRONT, "white"] * 2
    assert "goes from 2.0 %" in figure._suptitle.get_text()

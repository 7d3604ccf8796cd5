"""Laws of the search explorer: its surface is what the shown network computes, its graph has that one's non-zeros."""

import base64
import functools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from shown import asks_for_nothing, text_of

from wsnotebook import cornn
from wsnotebook.explorers import search
from wsnotebook.explorers.search import NEARER, PLACES, REPLAY, WALK
from wsnotebook.methods import latent_search, mlp_fitting, swat_nn
from wsnotebook.methods.mlp_matrix import Form, evaluate, hardened, non_zeros
from wsnotebook.methods.mlp_modules import network
from wsnotebook.methods.swat_stream import Stream
from wsnotebook.plots.search import OFF

FORM = Form(width=4, depth=2)
NAMES = ("mccormick", "ridge")


@functools.cache
def table():
    return cornn.table(("sphere", *NAMES))


@functools.cache
def swat():
    config = swat_nn.Config(FORM, Stream(), z=16, dim=24, heads=2, blocks=1, points=32, iterations=100, lr=1e-2)
    return swat_nn.train(config)


@functools.cache
def found(**changes):
    """Two functions, depths 1 and 2; in the second half activations and masks are hard."""
    tuning = mlp_fitting.Config(steps=40, batch=64, lr=0.01)
    config = latent_search.Config(depths=(1, 2), steps=60, tuned=2, budgets=(12, 8), training=tuning, tuning=tuning)
    return latent_search.search(latent_search.latent(swat()), cornn.table(NAMES), replace(config, **changes))


@functools.cache
def paper():
    """As the paper has it, but that the second half is hard: small weights and masks fade, thresholds are learned."""
    names = ("threshold", "gate", "refined", "relative")
    of_paper = {name: getattr(latent_search.preset("paper"), name) for name in names}
    return found(**of_paper, threshold_lr=0.03)


@pytest.fixture
def explorer():
    return search.Explorer(found(), table(), swat())


def soft(explorer):
    """How many of the lane's frames are of the search itself."""
    lane = explorer.lane.value
    return len(explorer.found.replay(lane)) - int((explorer.found.facts["lane"] == lane).sum())


def trace(explorer, name):
    (found,) = [trace for trace in explorer.plot.data if trace.name == name]
    return found


def drawn(explorer, name):
    """A trace's points, (n, 2)."""
    return np.column_stack([trace(explorer, name).x, trace(explorer, name).y]).astype(float)


def expected_surface(parts):
    """A network on the grid, point by point."""
    surface = np.empty((25, 25))
    x = torch.cat([part[0] for part in (table().train, table().validation, table().test)])
    across, up = (torch.linspace(float(x[:, k].min()), float(x[:, k].max()), 25) for k in (0, 1))
    for row, b in enumerate(up):
        points = torch.stack([across, b.expand(25)], 1)
        surface[row] = evaluate(FORM, parts, points)[0, :, 0].detach()
    return surface


def over_grid(values):
    return np.reshape(values, (25, 25))


def segments(explorer):
    """Lines of weights that are drawn."""
    return sum(len(trace.x) // 3 for trace in explorer.plot.data if trace.name.startswith("weights"))


def rings(explorer):
    return sum(len(trace.x) for trace in explorer.plot.data if trace.name.startswith("biases"))


def forget(explorer, monkeypatch):
    """A list of the messages that are sent from now on."""
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    return sent


# ---- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("searched", [found, paper], ids=["ours", "paper"])
@pytest.mark.parametrize("function", NAMES)
@pytest.mark.parametrize("place", ["start", "soft", "hard", "hardened", "trained", "pruned"])
def test_the_surface_is_what_the_frames_network_computes(searched, function, place):
    explorer = search.Explorer(searched(), table())
    explorer.function.value = function
    n = soft(explorer)
    explorer.time.value = {"start": 0, "soft": n // 4, "hard": n - 2, "hardened": n, "trained": n + 1}.get(place, n + 2)
    frame = searched().replay(explorer.lane.value)[explorer.time.value]
    learned, true = trace(explorer, "learned"), explorer.view_now().surface.true
    surface, room = expected_surface(frame.parts), np.ptp(true) / 4
    np.testing.assert_allclose(over_grid(learned.z), surface.clip(true.min() - room, true.max() + room), atol=1e-5)
    np.testing.assert_allclose(over_grid(learned.intensity), surface - true, atol=1e-5)
    x, y = table().validation
    computed = evaluate(FORM, frame.parts, x)[0, :, 0]
    error = float((computed - y[:, table().names.index(function)]).square().mean())
    assert error == pytest.approx(float(frame.error), rel=1e-3), "what is drawn has the error that is told"


def test_the_true_surface_is_the_formula(explorer):
    for name in NAMES:
        explorer.function.value = name
        surface = explorer.view_now().surface
        function, (low, high) = cornn.FUNCTIONS[name], (f(cornn.values(name)[:3750]) for f in (np.min, np.max))
        ends = [(np.add(axis, 1) / 2)[:, None] for axis in (surface.x, surface.y)]
        x, y = (a + (b - a) * u.astype(float) for (a, b), u in zip(function.domain, ends, strict=True))
        expected = 2 * (function.formula(x.T, y) - low) / (high - low) - 1
        np.testing.assert_allclose(surface.true, expected, atol=0.03)
        mesh = trace(explorer, "true")
        there = ~np.isnan(mesh.z)
        across = np.searchsorted(surface.x, mesh.x[there]), np.searchsorted(surface.y, mesh.y[there])
        np.testing.assert_allclose(mesh.z[there], surface.true[across[1], across[0]])


def test_the_surface_is_whole(explorer):
    """Its triangles lie over the grid without a gap or an overlap, each with the corners of one cell."""
    learned, surface = trace(explorer, "learned"), explorer.view_now().surface
    np.testing.assert_array_equal(over_grid(learned.x), np.tile(surface.x, (25, 1)))
    np.testing.assert_array_equal(over_grid(learned.y), np.tile(surface.y[:, None], (1, 25)))
    triangles = np.stack([learned.i, learned.j, learned.k], 1)
    rows, columns = np.divmod(triangles, 25)
    cells, counts = np.unique(np.stack([rows.min(1), columns.min(1)], 1), axis=0, return_counts=True)
    assert len(cells) == 24**2
    assert (counts == 2).all()
    assert (np.ptp(rows, axis=1) == 1).all()
    assert (np.ptp(columns, axis=1) == 1).all()
    assert len(np.unique(np.sort(triangles, 1), axis=0)) == len(triangles)
    halves = np.sort(triangles.reshape(2, -1, 3), 2).swapaxes(0, 1)  # of each cell
    assert all(len(np.intersect1d(*two)) == 2 for two in halves), "they share the diagonal"


@pytest.mark.parametrize("searched", [found, paper], ids=["ours", "paper"])
def test_lines_and_rings_are_the_non_zeros(searched):
    explorer = search.Explorer(searched(), table())
    for function in NAMES:
        explorer.function.value = function
        for time in range(explorer.time.max + 1):
            explorer.time.value = time
            frame = searched().replay(explorer.lane.value)[time]
            assert segments(explorer) + rings(explorer) == int(frame.non_zeros)
            shown = drawn_kinds(explorer)
            assert f"non-zeros {int(frame.non_zeros)}" in text_of(explorer)
            np.testing.assert_allclose(drawn(explorer, "error here"), [[time, float(frame.error)]])
            np.testing.assert_allclose(drawn(explorer, "non-zeros here"), [[time, int(frame.non_zeros)]])
            assert sum(shown.values()) == FORM.width * int(frame.parts.depth)


def drawn_kinds(explorer):
    return {kind: len(trace(explorer, kind).x) for kind in (*FORM.activations, OFF)}


def test_the_graph_is_the_plain_network(explorer):
    explorer.time.value = soft(explorer) + 1
    frame = found().replay(explorer.lane.value)[explorer.time.value]
    module, shown = network(FORM, frame.parts, 0), drawn_kinds(explorer)
    kinds = torch.cat([module.get_buffer(f"activation{i + 1}") for i in range(module.hidden)])
    for kind, number in zip(FORM.activations, range(3), strict=True):
        assert shown[kind] == int((kinds == number).sum())
    weights = torch.cat([parameter.flatten() for name, parameter in module.named_parameters() if "weight" in name])
    assert segments(explorer) == int((weights != 0).sum())
    for sign in (-1, 1):
        lines = sum(len(t.x) // 3 for t in explorer.plot.data if t.name.startswith(f"weights {sign:+d}"))
        assert lines == int((weights.sign() == sign).sum())
    ends = trace(explorer, "ends")
    assert [text.strip() for text in ends.text] == ["x1", "x2", "y"]


def test_the_readout_tells_stage_and_temperature(explorer):
    n, config = soft(explorer), found().config
    for time, words in ((0, "soft"), (n - 1, f"iteration {config.steps} of {config.steps}, hard")):
        explorer.time.value = time
        frame = found().frames[time]
        assert words in text_of(explorer)
        assert f"temperature {frame.temperature:.2f}" in text_of(explorer)
        error = float(frame.take(frame.number == explorer.lane.value).error)
        constant = float(table().validation[1][:, table().names.index("mccormick")].var(unbiased=False))
        assert f"error {error:.3g}FVU {error / constant:.2g}" in text_of(explorer)
    for time, words in ((n, "hardened"), (n + 1, "trained on"), (n + 2, "pruned to ")):
        if time <= explorer.time.max:
            explorer.time.value = time
            assert f"mccormick {words}" in text_of(explorer)


def test_lanes_are_those_with_frames_the_strongest_penalty_and_the_best_first(explorer):
    facts, kept = found().facts, set(found().frames[-1].number.tolist())
    for function in NAMES:
        explorer.function.value = function
        rows = found().rows(function).tolist()
        numbers = [lane for _, lane in explorer.lane.options]
        assert set(numbers) == {int(facts["lane"][row]) for row in rows} & kept
        own = [[row for row in rows if facts["lane"][row] == n] for n in numbers]
        order = [(-float(facts["penalty"][r[0]]), min(float(facts["validation"][row]) for row in r)) for r in own]
        assert order == sorted(order)
        assert explorer.lane.value == numbers[0]


def test_another_lane_is_shown_at_the_same_time(explorer):
    explorer.time.value = 5
    for _, lane in explorer.lane.options:
        explorer.lane.value = lane
        assert explorer.time.value == 5
        assert explorer.play.max == explorer.time.max == len(found().replay(lane)) - 1
    explorer.time.value = explorer.time.max
    explorer.function.value = "ridge"
    assert explorer.time.value <= explorer.time.max
    assert text_of(explorer).startswith("ridge")


# ---- between two networks --------------------------------------------------------------------------------------------


def test_a_way_starts_and_ends_at_what_the_networks_decode_to(explorer):
    explorer.mode.value = WALK
    for far, end in ((0.0, explorer.start.value), (1.0, explorer.end.value)):
        explorer.far.value = far
        one = found().parts.take([end])
        expected = hardened(FORM, swat().decode(swat().embed(one), one.depth), found().config.threshold)
        torch.testing.assert_close(evaluate(FORM, explorer.decoded([far]), table().test[0]),
                                   evaluate(FORM, expected, table().test[0]), atol=1e-4, rtol=1e-4)  # fmt: skip
        assert segments(explorer) + rings(explorer) == int(non_zeros(FORM, expected))
        own = float(found().facts["validation"][end])
        assert f"the nearer end itself {own:.3g}" in text_of(explorer)


def test_the_middle_of_a_way_is_the_mean_of_its_latents(explorer):
    explorer.mode.value, explorer.far.value = WALK, 0.5
    ends = [explorer.start.value, explorer.end.value]
    for depth in (1, 2):
        explorer.depth.value = depth
        z = swat().embed(found().parts.take(ends)).mean(0, keepdim=True)
        expected = hardened(FORM, swat().decode(z, torch.tensor([depth])), found().config.threshold)
        true = explorer.view_now().surface.true
        room = np.ptp(true) / 4
        expected = expected_surface(expected).clip(true.min() - room, true.max() + room)
        np.testing.assert_allclose(over_grid(trace(explorer, "learned").z), expected, atol=1e-4)


def test_curves_of_a_way_are_its_networks(explorer):
    explorer.mode.value = WALK
    parts = explorer.decoded(np.linspace(0, 1, PLACES))
    names = [found().names[found().facts["function"][row]] for row in (explorer.start.value, explorer.end.value)]
    assert names == list(NAMES), "from one function to the other"
    x, y = table().validation
    for name, curve in zip(names, ("error", "other error"), strict=True):
        targets = y[:, table().names.index(name)]
        expected = (evaluate(FORM, parts, x)[..., 0] - targets).square().mean(1)
        np.testing.assert_allclose(drawn(explorer, curve)[:, 1], expected, rtol=1e-3)
    np.testing.assert_allclose(drawn(explorer, "non-zeros")[:, 1], non_zeros(FORM, parts))
    assert explorer.depth.value == NEARER
    depths = found().parts.depth[[explorer.start.value, explorer.end.value]]
    assert parts.depth.tolist() == [int(depths[int(k > PLACES // 2)]) for k in range(PLACES)]
    explorer.mode.value = REPLAY
    assert len(trace(explorer, "other error").x) == 0


def test_without_an_autoencoder_there_is_the_replay_alone():
    explorer = search.Explorer(found(), table())
    assert explorer.mode not in explorer.view.children
    assert "trained on" in explorer._text()


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_is_one_message(explorer, monkeypatch):
    sent = forget(explorer, monkeypatch)
    changes = {"time": 3, "function": "ridge", "mode": WALK, "far": 0.7, "depth": 1}
    changes |= {"end": explorer.end.options[0][1]}
    for control, value in changes.items():
        getattr(explorer, control).value = value
        (message,) = sent
        arrays = [a for values in message["restyle_data"].values() for a in values if isinstance(a, np.ndarray)]
        assert all(memoryview(array).c_contiguous for array in arrays), "others cannot be sent"
        sent.clear()


def test_only_the_controls_of_what_is_shown_are_seen(explorer):
    def seen():
        return [row.layout.display for row in explorer.view.children[1:5]]

    assert seen() == ["flex", "flex", "none", "none"]
    explorer.mode.value = WALK
    assert seen() == ["none", "none", "flex", "flex"]


def test_a_plot_that_is_drawn_late_catches_up(explorer, monkeypatch):
    explorer.time.value = 2
    sent = forget(explorer, monkeypatch)
    explorer.plot._js2py_traceDeltas = {"trace_deltas": [], "trace_edit_id": -1}
    z = sent[-1]["restyle_data"]["z"]
    place = [trace.name for trace in explorer.plot.data].index("learned")
    np.testing.assert_array_equal(z[place], explorer.plot.data[place].z)
    assert sent[-1]["relayout_data"]["scene.zaxis.range"] == list(explorer.plot.layout.scene.zaxis.range)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="table: has no 'mccormick', which was searched for; it has sphere"):
        search.Explorer(found(), cornn.table(["sphere"]))
    with pytest.raises(ValueError, match=r"swat: of Form\(.*width=7.*expected Form\(.*width=4"):
        search.Explorer(found(), table(), swat_nn.untrained(swat_nn.Config(dim=8, heads=1, blocks=0)))
    with pytest.raises(ValueError, match="needs networks of 2 inputs and 1 output"):
        search.Explorer(replace(found(), form=Form(3, 1, 4, 2)), table())
    with pytest.raises(ValueError, match="found: has no frames to replay; search with"):
        search.Explorer(replace(found(), frames=[]), table())


# ---- readers without a kernel ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [REPLAY, WALK])
def test_the_static_twin_shows_the_same(explorer, mode):
    explorer.mode.value, explorer.time.value, explorer.far.value = mode, 7, 0.3
    true, learned, net, errors, count = [axes for axes in explorer.figure().axes if axes.get_label() != "<colorbar>"]
    np.testing.assert_allclose(learned.images[0].get_array() - true.images[0].get_array(),
                               over_grid(trace(explorer, "learned").intensity), atol=1e-6)  # fmt: skip
    assert len(net.collections[0].get_segments()) == segments(explorer)
    np.testing.assert_allclose(errors.lines[0].get_ydata(), drawn(explorer, "error")[:, 1])
    np.testing.assert_allclose(count.lines[0].get_ydata(), drawn(explorer, "non-zeros")[:, 1])
    for axes, name in ((errors, "error here"), (count, "non-zeros here")):
        np.testing.assert_allclose(axes.lines[-1].get_xydata(), drawn(explorer, name))


def test_one_bundle_for_every_reader(explorer):
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"].startswith("Search explorer: Found(")
    again = search.Explorer(found(), table(), swat())._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])


def unpacked(values):
    return np.frombuffer(base64.b64decode(values["bdata"]), "<f4")


def test_the_page_holds_the_functions_lanes_and_the_way_and_asks_for_nothing(explorer, tmp_path):
    explorer.function.value, explorer.time.value = "ridge", 4
    path = explorer.to_html(tmp_path / "search.html")
    assert [file.name for file in tmp_path.iterdir()] == ["search.html"]
    page = path.read_text()
    (stored,) = re.findall(r"^const all = (.*), at = id", page, re.M)
    *lanes, way = json.loads(stored)
    for (_, lane), frames in zip(explorer.lane.options, lanes, strict=True):
        explorer.lane.value = lane
        assert len(frames) == explorer.time.max + 1
        for k in (0, explorer.time.max):
            explorer.time.value = k
            same(explorer, frames[k])
    explorer.mode.value = WALK
    for k in (0, 13, PLACES - 1):
        explorer.far.value = k / (PLACES - 1)
        if abs(explorer.far.value - k / (PLACES - 1)) < 1e-9:
            same(explorer, way[k])
    assert 'at("time").value = 4;' in page, "it begins where the slider is"
    asks_for_nothing(page, 4_000_000)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "search.html")


def same(explorer, stored):
    """The page's frame is what the explorer shows."""
    assert stored["facts"] == explorer.readout.value
    for shown, values in zip(explorer.plot.data, stored["traces"], strict=True):
        for name, value in values.items():
            if name == "text":
                assert value == list(shown.text)
            else:
                expected = np.asarray(shown[name], float).ravel()
                np.testing.assert_allclose(unpacked(value), expected, rtol=1e-5, atol=1e-5)

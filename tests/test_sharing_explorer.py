"""Laws of the sharing explorer: it groups as the method does, spends no more than the budget, and tells the truth."""

import base64
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from shown import asks_for_nothing, text_of
from test_plots_superweights import similar

from wsnotebook import networks
from wsnotebook.explorers import sharing as explorers
from wsnotebook.explorers import sharing_figure as drawing
from wsnotebook.methods.superweight_baselines import thinned
from wsnotebook.methods.superweight_ensembles import anytime
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweight_sharing import clusters, fitting
from wsnotebook.methods.superweight_training import Config, Result
from wsnotebook.methods.superweights import Bank

X = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def members():
    return [thinned(networks.build(f"wrn-{d}-1", channels=1, seed=d + s), 0.25) for d, s in ((16, 0), (10, 0), (10, 1))]


@pytest.fixture(scope="module")
def found(members):
    return similar(allocate(members, X, clusters=3))


@pytest.fixture(scope="module")
def rows(digits):
    return digits.first(validation=50).validation


def explored(members, found, rows, budget=20_000, threshold=0.2, config=None, **options):
    config = config or Config(templates=3, threshold=threshold)
    limits = {"threshold": threshold, "linkage": config.linkage, "most": config.templates}
    threshold, plan = fitting(found, members, X, budget, **limits, **options)
    model = Bank(members, plan, seed=2)
    return explorers.Explorer(Result(model, {}, found, threshold, True), config, anytime(model, rows))


@pytest.fixture(scope="module")
def made(members, found, rows):
    return explored(members, found, rows)


@pytest.fixture
def explorer(made):
    """As it was made."""
    controls = {control: control.value for control in (made.threshold, made.budget, *made.members)}
    yield made
    for control, value in controls.items():
        control.value = value


def drawn(explorer):
    return {trace.name: trace for trace in explorer.plot.data}


def named(clusters):
    return sorted(sorted(str(layer) for layer in cluster) for cluster in clusters)


def xy(trace):
    return np.column_stack([trace.x, trace.y]).tolist()


def cells(trace, members):
    """{(member, layer): (colour, text)} of the map that is drawn, layers in their networks' order."""
    seen = {}
    for m, network in enumerate(members):
        names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
        for column, name in enumerate(names):
            assert f"{m}:{name}<br>" in trace.customdata[m][column]
            seen[m, name] = trace.z[m][column], trace.text[m][column]
        assert all(value is None for value in trace.z[m][len(names) :])
    return seen


# ---- who shares ------------------------------------------------------------------------------------------------------


def test_it_begins_with_what_was_trained(explorer):
    trained = explorer.result.plan
    assert explorer.plan.clusters == trained.clusters
    assert explorer.plan.templates == trained.templates
    assert explorer.plan.budget == trained.budget == explorer.budget.value
    assert explorer.threshold.value == explorer.result.threshold


@pytest.mark.parametrize("threshold", [-math.inf, -1.0, 0.0, 0.14, 0.3, 0.52, 1.0])
def test_the_map_is_of_the_methods_clusters(explorer, members, found, threshold):
    explorer.threshold.value, explorer.budget.value = threshold, explorers.NONE
    if threshold == -math.inf:
        kernels = {layer.shape[2:] for layer in found.layers}
        wanted = [[layer for layer in found.layers if layer.shape[2:] == kernel] for kernel in kernels]
    else:
        wanted = clusters(found, threshold)
    assert named(explorer.plan.clusters) == named(wanted)
    seen = cells(drawn(explorer)["clusters"], members)
    assert len(seen) == len(found.layers)
    for g, cluster in enumerate(explorer.plan.clusters):
        looks = {seen[layer.member, layer.name] for layer in cluster}
        assert len({colour for colour, _ in looks}) == 1
        assert all(text.startswith(f"<b>{g}</b>") for _, text in looks)
    colours = {colour for colour, _ in seen.values()}
    assert len(colours) == min(21, len(wanted)), "different clusters have different colours"
    assert f"clusters {len(wanted)} of {len(found.layers)} layers" in text_of(explorer)


@pytest.mark.parametrize("counted", ["all", "bank"])
def test_every_setting_is_the_plan_that_a_training_would_have(members, found, rows, counted):
    """Over all budgets and a few thresholds: `allocate`, from the networks, has the same or the same objection."""
    explorer = explored(members, found, rows, 12_000, counted=counted)
    impossible = 0
    for threshold in (-1.0, 0.1, explorer.result.threshold, 0.4):
        explorer.threshold.value = threshold
        for _, budget in explorer.budget.options:
            explorer.budget.value = budget
            options = {"clusters": clusters(found, threshold), "sharing": "own", "counted": counted, "most": 3}
            try:
                wanted = allocate(members, X, budget or None, **options)
            except ValueError as error:
                (needed,) = re.findall(r"need at least ([\d,]*\d)", str(error))
                assert explorer.plan is None
                assert f"impossible, they need at least {needed}" in text_of(explorer)
                assert not any(drawn(explorer)[name].x for name in drawing.PARTS), "nothing is shown to fit"
                impossible += 1
                continue
            assert named(explorer.plan.clusters) == named(wanted.clusters)
            assert explorer.plan.sizes == wanted.sizes
            total = wanted.sizes["shared"]
            assert f"parameters {total:,} ({100 * total / wanted.sizes['separate']:.1f} %)" in text_of(explorer)
            assert f"saved {wanted.sizes['separate'] - total:,} of" in text_of(explorer)
            widths = [drawn(explorer)[name].x[0] for name in drawing.PARTS]
            np.testing.assert_allclose(sum(widths), 100 * total / wanted.sizes["separate"])
            counted_width = sum(widths) if counted == "all" else widths[0]
            if budget:
                assert counted_width <= drawn(explorer)["budget"].x[0] + 1e-9, "the budget is never exceeded"
    assert impossible > 4


def test_an_impossible_budget_names_the_highest_threshold_that_fits(explorer, found):
    budget = explorer.budgets[5]
    explorer.threshold.value, explorer.budget.value = 1.0, budget
    (needed,) = re.findall(r"need at least ([\d,]*\d)", text_of(explorer))
    place = 100 * int(needed.replace(",", "")) / explorer.result.plan.sizes["separate"]
    np.testing.assert_allclose(xy(drawn(explorer)["needed"]), [[place, 0]])
    assert explorer.plot.layout.xaxis2.range[1] > place
    (fits,) = re.findall(r"but threshold (\S+) fits", text_of(explorer))
    explorer.threshold.value = float(fits)
    assert explorer.plan.sizes["shared"] <= budget
    assert not drawn(explorer)["needed"].x
    while explorer.threshold.index + 1 < len(explorer.thresholds):
        explorer.threshold.index += 1
        assert explorer.plan is None


def test_a_budget_for_which_nothing_is_left_says_so(explorer):
    explorer.budget.index = 0
    assert explorer.plan is None
    assert "no threshold fits" in text_of(explorer)


def test_the_cells_tell_the_similarity_to_their_cluster(explorer, found):
    explorer.threshold.value = 0.0
    place = {str(layer): n for n, layer in enumerate(found.layers)}
    told = {}
    for row in drawn(explorer)["clusters"].customdata:
        told |= {text.split("<br>")[0]: text.split("<br>")[2] for text in row if text}
    for g, cluster in enumerate(explorer.plan.clusters):
        for layer in map(str, cluster):
            others = [found.matrix[place[layer], place[str(other)]] for other in cluster if str(other) != layer]
            wanted = f"similarity to it {np.mean(others):.2f}" if others else "alone in it"
            assert told[layer] == f"cluster {g}, {wanted}"


def test_the_coefficients_are_the_trained_banks(explorer):
    explorer.threshold.value = 0.8
    own = drawn(explorer)["mixes"]
    bank, plan = explorer.result.model, explorer.result.plan
    seen = sorted(value for row in own.z for value in row if value is not None)
    used = [bank.coefficients[s][list(plan.rows[g][r])] for s, (g, r) in enumerate(plan.superweights)]
    np.testing.assert_allclose(seen, sorted(torch.cat([part.flatten() for part in used]).tolist()), atol=6e-5)


# ---- ensembles -------------------------------------------------------------------------------------------------------


def test_members_make_the_ensemble_and_move_its_point(explorer, rows):
    x, y = rows
    networks = [explorer.result.model.member(m).eval() for m in range(3)]
    for on in [(0,), (1, 2), (0, 1, 2), (2,)]:
        for m, switch in enumerate(explorer.members):
            switch.value = m in on
        with torch.no_grad():
            mean = torch.stack([networks[m](x).double().softmax(-1) for m in on]).mean(0)
        accuracy = 100 * (mean.argmax(-1) == y).double().mean().item()
        scaled = (mean.log() / explorer.ensembles.temperature[explorer.chosen]).log_softmax(-1)
        nll = -scaled[range(len(y)), y].mean().item()
        macs = sum(explorer.result.plan.macs[m] for m in on)
        np.testing.assert_allclose(xy(drawn(explorer)["accuracy here"]), [[macs, accuracy]])
        np.testing.assert_allclose(xy(drawn(explorer)["nll here"]), [[macs, nll]], rtol=1e-5)
        assert f"members {' + '.join(map(str, on))}" in text_of(explorer)
        assert f"MACs a row {macs:,}" in text_of(explorer)
        assert f"validation accuracy {accuracy:.2f} %" in text_of(explorer)
        every = explorer.ensembles.validation["accuracy"][explorer.ensembles.macs <= macs].max()
        told = text_of(explorer).split("best at this cost ")[1]
        assert told == "these members" or f"{every:.2f} %" in told


def test_no_member_is_no_ensemble(explorer):
    for switch in explorer.members:
        switch.value = False
    assert explorer.chosen is None
    assert not drawn(explorer)["accuracy here"].x
    assert "none is chosen" in text_of(explorer)
    explorer.figure()


# ---- how it is shown -------------------------------------------------------------------------------------------------


def test_a_step_is_one_message_with_what_moves(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.threshold.value = 0.6
    explorer.members[0].value = not explorer.members[0].value
    assert [list(message["trace_indexes"]) for message in sent] == [drawing.MOVING] * 2


def test_what_was_chosen_before_the_browser_drew_is_sent_again(members, found, rows, monkeypatch):
    explorer = explored(members, found, rows)
    explorer.threshold.value = 0.6
    sent = []
    monkeypatch.setattr(explorer.plot, "_send_update_msg", lambda **message: sent.append(message))
    explorer.plot._js2py_traceDeltas = {"trace_deltas": [], "trace_edit_id": -1}
    (z,) = [message["restyle_data"]["z"][0] for message in sent if "z" in message["restyle_data"]][-1:]
    np.testing.assert_array_equal(np.array(z, float), np.array(drawn(explorer)["clusters"].z, float))


def test_one_bundle_for_every_reader(explorer, members, found, rows):
    explorer.threshold.value = 0.3
    data = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"].startswith("Sharing explorer: 33 layers of 3 members, threshold 0.3, budget ")
    assert f"clusters {len(clusters(found, 0.3))} of 33 layers" in data["text/plain"]
    again = explored(members, found, rows)
    again.threshold.value = 0.3
    assert again._repr_mimebundle_()["text/plain"] == data["text/plain"]
    assert again._repr_mimebundle_()["image/png"] == data["image/png"]


def constants(page):
    (line,) = re.findall(r"^const all = (.*), at = .*;$", page, re.M)
    return json.loads(line)


def test_the_page_holds_every_setting_and_asks_for_nothing(explorer, tmp_path):
    page = explorer.to_html(tmp_path / "sharing.html").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["sharing.html"]
    assert explorer.to_html(tmp_path / "again.html").read_text() == page
    asks_for_nothing(page, 1_000_000)
    assert (
        f'id="cut" type="range" min="0" max="{len(explorer.thresholds) - 1}" value="{explorer.threshold.index}"' in page
    )
    all = constants(page)
    for cut in range(0, len(explorer.thresholds), 9):
        for limit in (3, 9, len(explorer.budgets)):
            explorer.threshold.index, explorer.budget.index = cut, limit
            switch = explorer.members[limit % 3]
            switch.value = not switch.value
            group = all["groups"][all["partition"][cut]]
            on = " ".join(str(m) for m, switch in enumerate(explorer.members) if switch.value)
            stored = group["budgets"][limit], all["ensembles"][on]
            assert "".join(part["facts"] for part in stored) == explorer.readout.value
            assert all["thresholds"][cut] == explorer.threshold.label
            assert all["limits"][limit] == explorer.budget.label
            traces = [group["cells"], *stored[0]["bar"], *stored[1]["places"]]
            for number, trace in zip(all["moving"], traces, strict=True):
                live = explorer.plot.data[number]
                for name, values in trace.items():
                    assert list(map(np.ravel, [live[name]]))[0].tolist() == np.ravel(values).tolist()
            assert stored[0]["end"] == explorer.plot.layout.xaxis2.range[1]


def test_what_cannot_be_explored(members, explorer, rows):
    result, config, ensembles = explorer.result, explorer.config, explorer.ensembles
    with pytest.raises(ValueError, match=r"not compared \(groups='depth'"):
        explorers.Explorer(replace(result, similarities=None), replace(config, groups="depth"), ensembles)
    other = Bank(members, result.plan)
    with pytest.raises(ValueError, match="ensembles: of another model"):
        explorers.Explorer(result, config, anytime(other, rows))


def test_a_page_that_cannot_be_written(tmp_path, explorer):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        explorer.to_html(tmp_path / "file" / "sharing.html")

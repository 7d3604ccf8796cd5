"""Laws of SWAT-NN's pictures: what is drawn are the networks' own weights, and the arms' own errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from test_mlp_matrix import FORMS
from test_mlp_matrix import drawn as random_networks

from wsnotebook import cornn, plots
from wsnotebook.methods import latent_search, mlp_fitting
from wsnotebook.methods.mlp_arms import BUDGETS, at_budgets
from wsnotebook.methods.mlp_controls import Control
from wsnotebook.methods.mlp_matrix import Form, non_zeros
from wsnotebook.methods.mlp_modules import network
from wsnotebook.methods.swat_nn import Report
from wsnotebook.plots.search import ABOVE, BELOW, INPUT, OFF, OUTPUT, graph

NAMES = ("ridge", "sphere", "adjiman")


@pytest.fixture(scope="module")
def table():
    return cornn.table(NAMES)


def control(seed=0, names=NAMES, counts=(9, 13, 25, 40)):
    """Any numbers: errors that fall with non-zeros, unlike on validation and test rows."""
    rng = np.random.default_rng(seed)
    count = torch.tensor([counts] * len(names))
    validation, test = (torch.from_numpy(rng.lognormal(-3, 1, count.shape)) for _ in range(2))
    return Control(names, None, count, validation, test)


@pytest.fixture(scope="module")
def found(table):
    tuning = mlp_fitting.Config(steps=20, batch=64)
    config = latent_search.Config(
        depths=(1,), steps=20, tuned=1, restarts=1, budgets=(12, 8), training=tuning, tuning=tuning
    )
    return latent_search.search(latent_search.direct(Form(width=5, depth=1)), table, config)


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_has_the_plain_networks_weights_biases_and_units(form):
    parts = random_networks(form)
    for i in range(len(parts.depth)):
        drawn, module = graph(form, parts, i), network(form, parts, i)
        assert len(drawn.weights) + np.count_nonzero(drawn.biases) == int(non_zeros(form, parts)[i])
        own = np.concatenate([layer.weight.detach().numpy().ravel() for layer in linears(module)])
        np.testing.assert_array_equal(np.sort(drawn.weights), np.sort(own[own != 0]))
        assert (drawn.kinds == INPUT).sum() == form.inputs
        assert (drawn.kinds == OUTPUT).sum() == form.outputs
        assert len(drawn.kinds) == form.inputs + int(parts.depth[i]) * form.width + form.outputs
        on = ~np.isin(drawn.kinds, (INPUT, OUTPUT, OFF))
        assert on.sum() == int((parts.masks[i] > 0).sum())
        assert not (drawn.kinds[drawn.edges] == OFF).any(), "no weight of a unit that is off"
        across = drawn.places[drawn.edges][:, :, 0]
        np.testing.assert_allclose(np.diff(across)[:, 0], 1 / (int(parts.depth[i]) + 1), err_msg="to the next layer")
        assert len(np.unique(drawn.places, axis=0)) == len(drawn.places)


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def test_a_graph_computes_what_the_network_computes():
    """Unit by unit, along its edges."""
    form = Form(width=3, depth=2, activations=("tanh", "identity"))
    parts, x = random_networks(form, 12), torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for i in range(12):
        drawn = graph(form, parts, i)
        values = np.zeros((len(drawn.kinds), len(x)))
        values[:2] = x.T
        for unit in range(2, len(drawn.kinds)):
            into = drawn.edges[:, 1] == unit
            z = drawn.weights[into] @ values[drawn.edges[into, 0]] + drawn.biases[unit]
            values[unit] = {"tanh": np.tanh(z), OFF: 0 * z}.get(drawn.kinds[unit], z)
        np.testing.assert_allclose(values[-1], network(form, parts, i)(x)[:, 0].detach(), atol=1e-5)


def test_a_units_place_does_not_depend_on_the_others():
    form = FORMS[0]
    parts = random_networks(form, 1)
    fewer = parts._replace(masks=parts.masks * (torch.arange(form.rows) != 1))
    one, other = graph(form, parts, 0), graph(form, fewer, 0)
    np.testing.assert_array_equal(one.places, other.places)
    assert (other.kinds == OFF).sum() > (one.kinds == OFF).sum()


def test_network_graph_draws_signs_and_sizes():
    form = FORMS[0]
    parts = random_networks(form)
    figure = plots.network_graph(form, parts, 7)
    (axes,) = figure.axes
    drawn = graph(form, parts, 7)
    lines = axes.collections[0]
    np.testing.assert_array_equal(lines.get_segments(), drawn.places[drawn.edges])
    colours = [to_hex(colour).upper() for colour in lines.get_colors()]
    assert colours == [ABOVE if weight > 0 else BELOW for weight in drawn.weights]
    order = np.abs(drawn.weights).argsort()
    assert (np.diff(np.array(lines.get_linewidths())[order]) >= 0).all(), "wider for larger weights"
    assert figure.get_suptitle().startswith(f"{int(non_zeros(form, parts)[7])} non-zeros")
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert set(drawn.kinds) - {INPUT, OUTPUT} <= named


# ---- arms ------------------------------------------------------------------------------------------------------------


def test_networks_are_chosen_on_validation_rows(found):
    arms = {"control": control(), "found": found}
    for arm in arms.values():
        for name in NAMES:
            errors = at_budgets(arm, name)
            assert errors.shape == (1, len(BUDGETS))
            if arm is found:
                rows = arm.rows(name)
                count, validation, test = (arm.facts[fact][rows] for fact in ("non_zeros", "validation", "test"))
            else:
                row = NAMES.index(name)
                count, validation, test = arm.non_zeros[row], arm.validation[row], arm.test[row]
            for budget, error in zip(BUDGETS, errors[0], strict=True):
                allowed = [(float(v), float(t)) for c, v, t in zip(count, validation, test, strict=True) if c <= budget]
                assert error == min(allowed)[1] if allowed else np.isnan(error)
    several = at_budgets([control(1), control(2)], "ridge")
    np.testing.assert_array_equal(several, np.concatenate([at_budgets(control(seed), "ridge") for seed in (1, 2)]))


def test_fronts_draw_medians_ranges_and_least_squares(found, table):
    arms = {"several": [control(1), control(2), control(3)], "one": control(4), "search": found}
    figure = plots.fronts(arms, table, ["sphere", "ridge"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["sphere", "ridge"]
    for axes, name in zip(figure.axes, ("sphere", "ridge"), strict=True):
        median = np.full(len(BUDGETS), np.nan)
        errors = at_budgets(arms["several"], name)
        median[1:] = np.median(errors[:, 1:], axis=0)
        lines = {line.get_label(): line for line in axes.lines}
        np.testing.assert_allclose(lines["several"].get_ydata(), median)
        np.testing.assert_allclose(lines["one"].get_ydata(), at_budgets(arms["one"], name)[0])
        assert len(axes.collections) == 1, "a band, of the arm with several runs"
        for fit, values in cornn.controls(table).items():
            assert lines[f"{fit} fit"].get_ydata()[0] == pytest.approx(float(values[NAMES.index(name)]), abs=1e-12)
        low, high = axes.get_ylim()
        assert low > 1e-9, "sphere is quadratic: that fit would press all others together"
        drawn = np.concatenate([lines[arm].get_ydata() for arm in arms])
        assert low < np.nanmin(drawn) < np.nanmax(drawn) < high
    assert any("quadratic fit" in text.get_text() for text in figure.axes[0].texts)
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= set(arms)


def test_wins_are_ratios_at_equal_non_zeros(table):
    first, other = control(1), control(2, counts=(12, 30, 60, 70))
    twice = replace(first, test=2 * first.test)
    figure = plots.wins({"own": first, "twice": twice, "other": other}, table)
    axes = figure.axes[0]
    logs = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(np.exp(logs[:, 0]), 2)
    for row, name in enumerate(NAMES):
        both = [(a, b) for a, b in zip(at_budgets(first, name)[0], at_budgets(other, name)[0], strict=True)
                if not np.isnan(a + b)]  # fmt: skip
        assert np.exp(logs[row, 1]) == pytest.approx(np.prod([b / a for a, b in both]) ** (1 / len(both)))
    assert [text.get_text() for text in axes.texts[::2]] == ["2"] * 3
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    assert "twice: 3 of 3" in figure.get_suptitle()
    assert f"other: {(logs[:, 1] > 0).sum()} of 3" in figure.get_suptitle()


def test_wins_of_all_functions_have_three_columns():
    table = cornn.table()
    figure = plots.wins({name: control(seed, table.names) for seed, name in enumerate("abcde")}, table)
    named = [label.get_text() for axes in figure.axes[:3] for label in axes.get_yticklabels()]
    assert named == list(table.names)


@pytest.mark.parametrize("draw", [plots.fronts, plots.wins])
def test_arms_that_make_no_picture(draw, table):
    with pytest.raises(ValueError, match="arms is empty"):
        draw({}, table)
    with pytest.raises(ValueError, match="arm 'b': has no function 'adjiman'; it has ridge"):
        draw({"a": control(), "b": control(names=("ridge",))}, table, ["ridge", "adjiman"])


def test_wins_need_another_arm(table):
    with pytest.raises(ValueError, match="'own' alone"):
        plots.wins({"own": control()}, table)


# ---- the autoencoder, and compression --------------------------------------------------------------------------------


def test_training_draws_the_history():
    rng = np.random.default_rng(0)
    names = ("loss", "functional", "parameters", "fvu_1", "fvu_2", "cpu_seconds")
    history = {"iteration": [0, 50, 100]} | {name: rng.uniform(0.1, 1, 3).tolist() for name in names}
    left, right = plots.swat_training(history).axes
    for line, name in zip(left.lines, names[:3], strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([history["iteration"], history[name]]))
    for line, name in zip(right.lines, ("fvu_1", "fvu_2"), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), history[name])


def test_the_depth_report_has_its_medians():
    depth = torch.tensor([1, 1, 1, 2, 2])  # none of depth 3
    fvu = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) + 0.01
    report = Report(depth, fvu, fvu[:, 0] / 2)
    axes = plots.depth_report(report).axes[0]
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    table = report.table()
    expected = {(column, row): f"{table[row, column]:.2g}" for row in range(2) for column in range(3)}
    plain = {(4, row): f"{report.plain[depth == row + 1].median():.2g}" for row in range(2)}
    assert texts == expected | plain


def test_compression_draws_every_pair_and_the_curves():
    rng = np.random.default_rng(0)
    target = rng.normal(size=50)
    outputs = {f"{n}": (torch.from_numpy(target), target + n) for n in (0.1, 0.2, 0.3)}
    curves = {"split": ([30, 10], [0.1, 0.4])}
    figure = plots.compression(outputs, curves)
    *scatters, last = figure.axes[:4]
    for axes, (label, (a, b)) in zip(scatters, outputs.items(), strict=True):
        assert axes.get_title(loc="left") == label
        np.testing.assert_allclose(axes.lines[1].get_xydata(), np.column_stack([a, b]))
        assert axes.texts[0].get_text() == f"FVU {float(label) ** 2 / target.var():.2g}"
    np.testing.assert_array_equal(last.lines[0].get_xydata(), [[10, 0.4], [30, 0.1]])
    with pytest.raises(ValueError, match="outputs or curves is empty"):
        plots.compression({}, curves)

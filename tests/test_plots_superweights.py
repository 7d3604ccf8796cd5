"""Laws of SuperWeights' pictures: what is drawn is the plan, the similarities, the bank's coefficients, the scores."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from wsnotebook import evaluation, networks, plots
from wsnotebook.methods.superweight_baselines import Separate, thinned
from wsnotebook.methods.superweight_clusters import Layer
from wsnotebook.methods.superweight_ensembles import anytime, member_logits
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweight_similarities import Similarities
from wsnotebook.methods.superweights import Bank
from wsnotebook.plots import superweights as pictures


@pytest.fixture(scope="module")
def members():
    """Two small wide residual networks, with kernels of 1 and 3."""
    return [thinned(networks.build(f"wrn-{d}-1", channels=1, seed=d), 0.25) for d in (16, 10)]


@pytest.fixture(scope="module")
def plan(members):
    return allocate(members, torch.zeros(1, 1, 8, 8), clusters=6)


@pytest.fixture(scope="module")
def bank(members, plan):
    return Bank(members, plan, seed=1, noise=0.3)


def perceptrons(model):
    nets = [
        networks.build(name, seed=seed) for seed, name in enumerate(("mlp-64-24-10", "mlp-64-16-10", "mlp-64-8-10"))
    ]
    x = torch.zeros(1, 64)
    return Bank(nets, allocate(nets, x)) if model == "bank" else Separate(nets, allocate(nets, x, clusters=[]))


def similar(plan, seed=0):
    """Any numbers; kernels of different sizes are not compared."""
    layers = tuple(layer for cluster in plan.clusters for layer in cluster)
    matrix = np.random.default_rng(seed).uniform(-0.5, 1, (len(layers), len(layers)))
    matrix = (matrix + matrix.T) / 2
    matrix[[[a.shape[2:] != b.shape[2:] for b in layers] for a in layers]] = np.nan
    np.fill_diagonal(matrix, 1)
    initial = [g for g, cluster in enumerate(plan.clusters) for _ in cluster]
    return Similarities(layers, matrix, np.ones(len(layers)), tuple(initial))


# ---- who shares ------------------------------------------------------------------------------------------------------


def test_a_map_has_every_layer_in_its_networks_order_with_its_cluster(members, plan):
    figure = plots.sharing_map(members, plan)
    (axes,) = figure.axes
    colours = np.asarray(axes.images[0].get_array())
    written = [(round(t.get_position()[1] + 0.01), t.get_position()[0], t.get_text()) for t in axes.texts]
    cells = {(row, column): text for row, column, text in written[::2]}
    sizes = {(row, column): text for row, column, text in written[1::2]}
    own = {(layer.member, layer.name): g for g, cluster in enumerate(plan.clusters) for layer in cluster}
    looks = {}
    for m, network in enumerate(members):
        convolutions = [(name, c) for name, c in network.named_modules() if isinstance(c, torch.nn.Conv2d)]
        for column, (name, module) in enumerate(convolutions):
            g = own[m, name]
            assert cells[m, column] == str(g)
            o, i, k, _ = module.weight.shape
            assert sizes[m, column] == f"{o}×{i}\n{k}×{k}"
            assert looks.setdefault(g, to_hex(colours[m, column])) == to_hex(colours[m, column])
        np.testing.assert_array_equal(colours[m, len(convolutions) :], 1)
    assert len(cells) == len(own)
    assert len(set(looks.values())) == len(plan.clusters), "a colour each"
    share = 100 * plan.sizes["shared"] / plan.sizes["separate"]
    assert f"{share:.1f} %" in figure.get_suptitle()


def test_colours_are_distinct():
    assert len(set(pictures.TINTS)) == len(pictures.TINTS) == 21


def test_a_cluster_keeps_its_colour_when_another_is_divided():
    layers = [Layer(0, str(n), (2, 2)) for n in range(12)]
    whole = [layers[:5], layers[5:9], layers[9:]]
    divided = [layers[:1], layers[1:5], layers[5:9], layers[9:]]
    before, after = pictures.grouped(layers, whole), pictures.grouped(layers, divided, whole)
    np.testing.assert_array_equal(after.tint[1:], before.tint[1:])
    assert after.tint[0] not in before.tint
    np.testing.assert_array_equal(after.cluster, np.repeat(range(4), [1, 4, 4, 3]))
    many = pictures.grouped(layers, [[layer] for layer in layers], whole)
    assert len(set(many.tint)) == 12
    more = [Layer(0, str(n), (2, 2)) for n in range(40)]
    alone = [[layer] for layer in more]
    assert len(set(pictures.grouped(more, alone).tint)) == 21
    halves = pictures.grouped(more, [more[:21], more[21:]], alone)
    assert len(set(halves.tint)) == 2, "not the same one because it is 21 clusters on"
    merged = pictures.grouped(layers, [layers[:9], layers[9:]], whole)
    assert set(merged.tint[:9]) == {0}, "that of the largest part"
    assert set(merged.tint[9:]) == {2}


def test_a_plan_without_clusters_has_no_map(members):
    with pytest.raises(ValueError, match="plan: no cluster"):
        plots.sharing_map(members, allocate(members, torch.zeros(1, 1, 8, 8), clusters=[]))


def test_similarities_are_drawn_cluster_by_cluster(plan):
    found = similar(plan)
    clusters = [cluster[::-1] for cluster in plan.clusters[::-1]]
    figure = plots.similarities(found, clusters)
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    names = [label.get_text() for label in axes.get_yticklabels()]
    place = {str(layer): n for n, layer in enumerate(found.layers)}
    for row, a in enumerate(names):
        np.testing.assert_allclose(shown[row], [found.matrix[place[a], place[b]] for b in names])
    frames = [patch.get_bbox() for patch in axes.patches if not patch.get_fill()]
    starts = np.cumsum([0, *map(len, clusters)])
    assert [(box.x0 + 0.5, box.x1 + 0.5) for box in frames] == list(zip(starts, starts[1:], strict=False))
    inside = [
        found.matrix[place[str(a)], place[str(b)]]
        for cluster in clusters for a in cluster for b in cluster if a != b
    ]  # fmt: skip
    assert f"similarity {np.mean(inside):.2f} within" in figure.get_suptitle()


def test_coefficients_are_those_that_layers_use(bank):
    figure = plots.coefficients(bank)
    axes = figure.axes[0]
    shown, plan = np.ma.filled(axes.images[0].get_array(), np.nan), bank.plan
    rows = {label.get_text(): n for n, label in enumerate(axes.get_yticklabels())}
    columns = pictures.mixes(bank).columns
    seen = np.full(shown.shape, np.nan)
    for s, (g, r) in enumerate(plan.superweights):
        for user, position in enumerate(plan.users(g, r)):
            for k in range(plan.templates[g][r]):
                place = rows[str(plan.clusters[g][position])], columns.index(f"{r}.{k}")
                seen[place] = bank.coefficients[s][plan.rows[g][r][user], k].item()
    np.testing.assert_allclose(shown, seen)
    assert {"0.0", "0.1", "1.0"} <= set(columns)
    assert f"{sum(map(len, bank.coefficients))} coefficient vectors" in figure.get_suptitle()


# ---- what it is worth ------------------------------------------------------------------------------------------------


def test_anytime_joins_what_validation_rows_choose(digits):
    arms = {}
    for arm in ("bank", "separate"):
        found = anytime(perceptrons(arm), digits.validation)
        arms[arm] = found, found.scores(member_logits(found.model, digits.test[0]), digits.test[1])
    figure = plots.anytime(arms)
    for axes, measure in zip(figure.axes, ("accuracy", "nll"), strict=True):
        for n, (found, scores) in enumerate(arms.values()):
            dots, line = axes.lines[2 * n : 2 * n + 2]
            np.testing.assert_array_equal(dots.get_xydata(), np.column_stack([found.macs, scores[measure]]))
            front = [s for s in range(7) if all(  # dearer ones are better on validation rows
                found.macs[t] > found.macs[s] or t == s
                or found.validation["accuracy"][t] < found.validation["accuracy"][s] for t in range(7)
            )]  # fmt: skip
            assert sorted(line.get_xdata()) == sorted(found.macs[front])
            np.testing.assert_array_equal(line.get_ydata(), scores[measure][found.front])
        assert axes.get_xscale() == "log"
        assert all(axes.get_xticklabels())
    with pytest.raises(ValueError, match="arms is empty"):
        plots.anytime({})


@pytest.mark.parametrize("macs", [[3e5, 5e5], [3.4e6, 4.4e6], [8e5, 4e6], [2e3, 9e8], [1e6, 1e6]])
def test_an_axis_of_costs_has_some_ticks_in_its_range(macs):
    ticks = pictures.costs(np.array(macs))
    assert 2 < len(ticks) < 25
    assert all(0.9 * macs[0] <= tick <= 1.1 * macs[1] for tick in ticks)
    units = {"k": 1e3, "M": 1e6}
    for tick, text in ticks.items():
        number, unit = text.split("\N{NO-BREAK SPACE}")
        assert float(number) * units[unit] == pytest.approx(tick)


def test_budgets_are_means_with_intervals_over_runs():
    runs = {"accuracy": [90.0, 91.0, 93.0], "nll": [0.3, 0.25, 0.28]}
    other = {"accuracy": [94.0, 93.0, 93.5], "nll": [0.2, 0.21, 0.25]}
    figure = plots.budgets({"bank": {50: other, 25: runs}, "thin": {40: {"accuracy": [88.0], "nll": [0.4]}}})
    for axes, measure in zip(figure.axes, runs, strict=True):
        bank, thin = axes.containers
        wanted = [evaluation.interval(own[measure]) for own in (runs, other)]
        np.testing.assert_allclose(bank.lines[0].get_xydata(), [(25, wanted[0][0]), (50, wanted[1][0])])
        bars = [segment[:, 1] for segment in bank.lines[2][0].get_segments()]
        np.testing.assert_allclose(bars, [(mean - half, mean + half) for mean, half in wanted])
        assert not thin.has_yerr, "one run has no interval"
        assert thin.lines[0].get_xdata().tolist() == [40]
    with pytest.raises(ValueError, match="arms is empty"):
        plots.budgets({})


# ---- the explorer's twin ---------------------------------------------------------------------------------------------


def view(members, bank, **changes):
    plan = bank.plan
    parts = {name: plan.sizes[name] for name in pictures.PARTS}
    drawn = pictures.grouped(pictures.ordered(members, plan.clusters), plan.clusters)
    values = {
        "map": drawn, "parts": parts, "least": 9_000, "budget": 20_000,
        "separate": plan.sizes["separate"], "mixes": pictures.mixes(bank),
        "macs": np.array([100_000, 200_000, 300_000]), "accuracy": np.array([80.0, 90.0, 92.0]),
        "nll": np.array([0.5, 0.3, 0.31]), "front": [0, 1, 2], "chosen": 1, "facts": {"clusters": "6"},
        "members": {"members": "1"},
    }  # fmt: skip
    return pictures.View(**values | changes)


def test_a_frame_shows_parameters_budget_and_the_chosen_ensemble(members, bank):
    figure = plots.sharing_frame(view(members, bank))
    _, bar, mixed, accuracy, nll = (axes for axes in figure.axes if axes.get_label() != "<colorbar>")
    percent = 100 / bank.plan.sizes["separate"]
    widths = [patch.get_width() for patch in bar.patches]
    np.testing.assert_allclose(widths, [bank.plan.sizes[name] * percent for name in pictures.PARTS])
    np.testing.assert_allclose(np.cumsum(widths)[:-1], [patch.get_x() for patch in bar.patches][1:])
    assert set(bar.lines[0].get_xdata()) == {20_000 * percent}
    np.testing.assert_array_equal(
        np.ma.filled(mixed.images[0].get_array(), np.nan), np.ma.filled(pictures.mixes(bank).values, np.nan)
    )
    assert accuracy.lines[-1].get_xydata().tolist() == [[200_000, 90]]
    assert nll.lines[-1].get_xydata().tolist() == [[200_000, 0.3]]
    assert figure.get_suptitle() == "clusters 6\nmembers 1"


def test_a_frame_of_an_impossible_budget_shows_what_is_needed(members, bank):
    figure = plots.sharing_frame(view(members, bank, parts=None, chosen=None, budget=5_000))
    _, bar, _, *panels = (axes for axes in figure.axes if axes.get_label() != "<colorbar>")
    assert not bar.patches
    assert bar.lines[-1].get_xdata()[0] == pytest.approx(100 * 9_000 / bank.plan.sizes["separate"])
    assert [len(axes.lines) for axes in panels] == [2, 2], "no member is chosen"


def test_sizes_of_layers():
    assert pictures.size(SimpleNamespace(shape=(3, 4, 5, 5)), " ") == "3×4 5×5"
    assert pictures.size(SimpleNamespace(shape=(3, 4)), " ") == "3×4"

"""Pictures of SuperWeights: who shares with whom, how similar layers are, how they mix templates, and what it is worth.

A cluster has a number and a colour wherever it is drawn; colours repeat after 21, numbers do not.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, product
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator
from torch import nn

from wsnotebook.evaluation import interval
from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.flow import CHOSEN, LANDMARK, LOOKS

_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#56B4E9")  # Okabe and Ito
TINTS = tuple(
    tuple(np.add(np.multiply(1 - share, to_rgb(hue)), share * towards))
    for (share, towards), hue in product(((0, 0), (0.55, 1), (0.5, 0)), _HUES)
)  # as they are, lighter, darker
PARTS = {"templates": "#0072B2", "coefficients": "#E69F00", "private": "#999999"}  # of a bank's parameters
UNUSED = "#dddddd"  # where there is no coefficient
SEVERAL = 18  # columns of a map from which labels stand upright


# ---- the numbers behind the pictures -------------------------------------------------------------------------------


class Map(NamedTuple):
    """n layers that share, in places that do not depend on how they are grouped."""

    layers: list  # (n) of `superweight_clusters.Layer`
    column: np.ndarray  # (n,) place in its own network
    cluster: np.ndarray  # (n,) number of its cluster
    tint: np.ndarray  # (n,) number of the cluster's colour

    @property
    def shape(self) -> tuple[int, int]:
        """Members and columns."""
        return 1 + max(layer.member for layer in self.layers), 1 + int(self.column.max())

    def grid(self, values: np.ndarray) -> np.ndarray:
        """(members, columns) of (n,) values, nan where a member has no layer."""
        grid = np.full(self.shape, np.nan)
        grid[[layer.member for layer in self.layers], self.column] = values
        return grid


def ordered(networks: Sequence[nn.Module], clusters: Sequence[Sequence]) -> list:
    """The clusters' layers, member by member in the order of their modules."""
    place = {(m, name): (m, n) for m, own in enumerate(networks) for n, (name, _) in enumerate(own.named_modules())}
    layers = [layer for cluster in clusters for layer in cluster]
    return sorted(layers, key=lambda layer: place[layer.member, layer.name])


def grouped(layers: Sequence, clusters: Sequence[Sequence], like: Sequence[Sequence] | None = None) -> Map:
    """The map of these clusters of layers, which `ordered` has put in order.

    like: clusters of the same layers, of which each takes the colour of the one with which it has most in common.
    """
    members = [layer.member for layer in layers]
    column = np.array([members[:n].count(member) for n, member in enumerate(members)])
    number = {layer: g for g, cluster in enumerate(clusters) for layer in cluster}
    cluster = np.array([number[layer] for layer in layers])
    return Map(list(layers), column, cluster, _tints(clusters, like or clusters)[cluster])


def _tints(clusters: Sequence[Sequence], like: Sequence[Sequence]) -> np.ndarray:
    """(clusters,) numbers of colours; no two clusters have one as long as there are enough."""
    known = [set(cluster) for cluster in like]
    common = np.array([[len(own.intersection(cluster)) for own in known] for cluster in clusters])
    tints = np.full(len(clusters), -1)
    for g, own in zip(*np.unravel_index(np.argsort(-common, axis=None, kind="stable"), common.shape), strict=True):
        tint = own % len(TINTS)
        if common[g, own] and tints[g] < 0 and tint not in tints:
            tints[g] = tint
    free = np.setdiff1d(range(len(TINTS)), tints)
    rest = np.flatnonzero(tints < 0)
    tints[rest] = np.resize(free if len(free) else range(len(TINTS)), len(rest))
    return tints


class Mixes(NamedTuple):
    """Coefficients of n layers, cluster by cluster."""

    layers: list  # (n)
    cluster: np.ndarray  # (n,)
    columns: list[str]  # (c) "increment.template"
    values: np.ndarray  # (n, c) nan where the layer's cluster has no such template, or the layer does not use it


def mixes(bank) -> Mixes:
    """Of a `superweights.Bank`."""
    plan = bank.plan
    widths = [max(k[r] for k in plan.templates if r < len(k)) for r in range(max(map(len, plan.templates)))]
    first = np.cumsum([0, *map(len, plan.clusters)])
    start = np.cumsum([0, *widths])
    values = np.full((first[-1], start[-1]), np.nan)
    for (g, r), vectors in zip(plan.superweights, bank.coefficients, strict=True):
        own = vectors.detach().cpu().numpy()[list(plan.rows[g][r])]  # (users, K)
        values[first[g] + np.array(plan.users(g, r)), start[r] : start[r] + own.shape[1]] = own
    columns = [f"{r}.{k}" for r, width in enumerate(widths) for k in range(width)]
    cluster = np.repeat(np.arange(len(plan.clusters)), list(map(len, plan.clusters)))
    return Mixes([layer for own in plan.clusters for layer in own], cluster, columns, values)


class View(NamedTuple):
    """What the sharing explorer shows."""

    map: Map
    parts: dict[str, int] | None  # parameters, by `PARTS`; None: the budget is too small for these clusters
    least: int  # what they need
    budget: int | None
    separate: int  # parameters of separate networks
    mixes: Mixes  # of the bank as it was trained
    macs: np.ndarray  # (s,) of every ensemble of members
    accuracy: np.ndarray  # (s,) % of validation rows
    nll: np.ndarray  # (s,) nats, on the same
    front: list[int]  # the best of the ensembles at their cost
    chosen: int | None  # the one that is shown; None: no member is chosen
    facts: dict[str, str]  # what the readout says of the sharing
    members: dict[str, str]  # ... and of the ensemble


# ---- who shares ----------------------------------------------------------------------------------------------------


@styled
def sharing_map(networks: Sequence[nn.Module], plan) -> Figure:
    """Which layers share: a row a member, a column a layer in order; colour and number are those of its cluster.

    networks: the plan's, which know the order of their layers. Below each number outputs x inputs, and the kernel.
    Raises ValueError for a plan in which nothing is shared.
    """
    if not plan.clusters:
        raise ValueError("plan: no cluster; its networks are separate, and there is nothing to draw")
    drawn = grouped(ordered(networks, plan.clusters), plan.clusters)
    figure = Figure(figsize=(7, 1.1 + 0.62 * drawn.shape[0]))
    _map(figure.subplots(), drawn)
    sizes = plan.sizes
    share = 100 * sizes["shared"] / sizes["separate"]
    text = f"{len(drawn.layers)} layers in {len(plan.clusters)} clusters: {share:.1f} % of the separate networks' "
    figure.suptitle(text + "parameters", x=0.01, ha="left")
    return figure


def _map(axes, drawn: Map, sizes: bool = True) -> None:
    rgb = np.stack([drawn.grid(np.array(TINTS)[drawn.tint, channel]) for channel in range(3)], -1)
    axes.imshow(np.nan_to_num(rgb, nan=1.0), aspect="auto")
    upright = drawn.shape[1] >= SEVERAL
    for layer, column, cluster, tint in zip(*drawn, strict=True):
        ink = "white" if np.dot(TINTS[tint], (0.299, 0.587, 0.114)) < 0.5 else INK
        look = {"ha": "center", "color": ink}
        y = layer.member - 0.24 if sizes else layer.member
        axes.text(column, y, cluster, va="center", fontsize=8, fontweight="bold", **look)
        if sizes:
            label = size(layer, " " if upright else "\n")
            rotation = 90 if upright else 0
            axes.text(column, layer.member + 0.18, label, va="center", fontsize=5, rotation=rotation, **look)
    members, columns = drawn.shape
    axes.set_yticks(range(members), [f"member {m}" for m in range(members)])
    axes.set_xlabel("layer", loc="left")
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, members), minor=True)
    axes.grid(which="minor", color="white", lw=1.5)
    axes.set_axisbelow(False)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def size(layer, between: str) -> str:
    """Outputs x inputs of a layer, and its kernel if it has one."""
    parts = [layer.shape[:2], layer.shape[2:]]
    return between.join("\N{MULTIPLICATION SIGN}".join(map(str, part)) for part in parts if part)


@styled
def similarities(found, clusters: Sequence[Sequence]) -> Figure:
    """How similar the gradients of any two layers are, of `superweight_similarities.Similarities`, cluster by cluster.

    clusters: of these layers; framed. Hatched: kernels of different sizes, which are not compared.
    """
    place = {layer: n for n, layer in enumerate(found.layers)}
    layers = [layer for cluster in clusters for layer in cluster]
    order = [place[layer] for layer in layers]
    values, n = found.matrix[np.ix_(order, order)], len(order)
    figure = Figure(figsize=(6.4, 5.4))
    axes = figure.subplots()
    axes.add_patch(Rectangle((-0.5, -0.5), n, n, fc="#eeeeee", ec="white", hatch="////", lw=0, zorder=0))
    image = axes.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-1, vmax=1)
    start = -0.5
    for cluster in clusters:
        axes.add_patch(Rectangle((start, start), len(cluster), len(cluster), fill=False, ec="black", lw=1.4))
        start += len(cluster)
    _cluster_ticks(axes, np.repeat(np.arange(len(clusters)), list(map(len, clusters))))
    if n <= 60:
        axes.set_yticks(range(n), map(str, layers), fontsize=5)
    axes.set(xlabel="cluster")
    figure.colorbar(image, ax=axes, label="similarity of gradients", shrink=0.8)
    same = np.concatenate([np.full(len(cluster), g) for g, cluster in enumerate(clusters)])
    other = ~np.eye(n, dtype=bool) & ~np.isnan(values)
    means = [values[pairs & other] for pairs in (same[:, None] == same, same[:, None] != same)]
    told = [f"{pairs.mean().round(2) + 0.0:.2f}" if len(pairs) else "(no pairs)" for pairs in means]
    figure.suptitle(f"Mean similarity {told[0]} within clusters, {told[1]} between them", x=0.01, ha="left")
    return figure


def _cluster_ticks(axes, cluster: np.ndarray, axis: str = "x") -> None:
    """A cluster's number in the middle of its layers."""
    middles = [float(np.flatnonzero(cluster == g).mean()) for g in range(cluster.max() + 1)]
    getattr(axes, f"set_{axis}ticks")(middles, range(len(middles)), fontsize=7 if len(middles) <= 16 else 4.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@styled
def coefficients(bank) -> Figure:
    """How much of each template every layer has, cluster by cluster; grey: it does not use the template.

    Columns are increments and templates of the layer's own cluster.
    """
    own = mixes(bank)
    figure = Figure(figsize=(7, min(9.0, 1.3 + 0.13 * len(own.layers))))
    axes = figure.subplots()
    image = _mixes(axes, own)
    axes.set_yticks(range(len(own.layers)), map(str, own.layers), fontsize=5)
    for g in range(own.cluster.max() + 1):
        middle = float(np.flatnonzero(own.cluster == g).mean())
        axes.text(len(own.columns) - 0.4, middle, f"cluster {g}", va="center", fontsize=7)
    figure.colorbar(image, ax=axes, label="coefficient", shrink=0.7, pad=0.1)
    vectors = sum(len(part) for part in bank.coefficients)
    uses = sum(len(rows) for cluster in bank.plan.rows for rows in cluster)
    figure.suptitle(f"{uses} mixes of templates, by {vectors} coefficient vectors", x=0.01, ha="left")
    return figure


def _mixes(axes, own: Mixes):
    limit = max(1.0, float(np.nanmax(np.abs(own.values))))
    image = axes.imshow(np.ma.masked_invalid(own.values), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_facecolor(UNUSED)
    for row in np.flatnonzero(np.diff(own.cluster)):
        axes.axhline(row + 0.5, color=INK, lw=0.8)
    starts = [n for n, name in enumerate(own.columns) if name.endswith(".0")]
    for column in starts[1:]:
        axes.axvline(column - 0.5, color=LANDMARK, lw=0.8, ls=":")
    axes.set_xticks(starts, range(len(starts)), fontsize=7)
    axes.set_xlabel("increment, and its templates side by side")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


# ---- what it is worth ----------------------------------------------------------------------------------------------


@styled
def anytime(arms: Mapping) -> Figure:
    """Test accuracy and NLL of all ensembles of members over their MACs; lines join those that validation rows choose.

    arms: {name: (`superweight_ensembles.Anytime`, its `scores` on the test rows)}. Raises ValueError for no arms.
    """
    if not arms:
        raise ValueError("arms is empty: pass {name: (anytime(model, validation), its scores on the test rows)}")
    figure, looks = Figure(figsize=(7, 3.6)), _looks(arms)
    panels = figure.subplots(1, 2)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for arm, (found, scores) in arms.items():
            colour, marker = looks[arm]
            values = scores[measure]
            axes.plot(found.macs, values, marker, color=colour, ms=3, alpha=0.35, mec="none")
            axes.plot(found.macs[found.front], values[found.front], color=colour, marker=marker, ms=5, label=arm)
        axes.set(ylabel=f"test {label}")
        _cost_axis(axes, np.concatenate([found.macs for found, _ in arms.values()]))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("All ensembles of members; joined: the best at their cost on validation rows", x=0.01, ha="left")
    return figure


@styled
def budgets(arms: Mapping) -> Figure:
    """Accuracy and NLL of all members together over the parameters they have, as a share of separate networks'.

    arms: {name: {share in %: {"accuracy": one number a run, "nll": the same}}}. Means, and 95 % intervals over runs.
    Raises ValueError for no arms.
    """
    if not arms:
        raise ValueError('arms is empty: pass {name: {share in %: {"accuracy": [a number a run], "nll": [...]}}}')
    figure, looks = Figure(figsize=(7, 3.4)), _looks(arms)
    panels = figure.subplots(1, 2)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for arm, own in arms.items():
            colour, marker = looks[arm]
            shares = sorted(own)
            middle, half = np.array([interval(list(own[share][measure])) for share in shares]).T
            half = None if np.isnan(half).all() else np.nan_to_num(half)
            look = {"color": colour, "marker": marker, "ms": 5, "lw": 1.5, "capsize": 3, "label": arm}
            axes.errorbar(shares, middle, half, **look)
        axes.set(xlabel="parameters (% of separate networks')", ylabel=label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("All members together, by what they may have in parameters", x=0.01, ha="left")
    return figure


MEASURES = {"accuracy": "accuracy (%)", "nll": "NLL (nats)"}
ARMS = ("bank", "gradient groups", "random groups", "hard slices", "thin", "independent")  # those of a study


def _looks(arms: Mapping) -> dict[str, tuple[str, str]]:
    """{arm: (colour, marker)}: a study's arms have the same in every picture, others one each."""
    return dict(zip(dict.fromkeys([*ARMS, *arms]), cycle(LOOKS), strict=False))


@styled
def sharing_frame(view: View) -> Figure:
    """Who shares, the parameters, the trained bank's coefficients, and the chosen ensemble: the explorer's twin."""
    figure = Figure(figsize=(7, 6))
    grid = figure.add_gridspec(4, 2, height_ratios=(6, 1.2, 4, 4), width_ratios=(5, 4))
    _map(figure.add_subplot(grid[0, :]), view.map, sizes=False)
    _bar(figure.add_subplot(grid[1, :]), view)
    axes = figure.add_subplot(grid[2:, 0])
    image = _mixes(axes, view.mixes)
    _cluster_ticks(axes, view.mixes.cluster, "y")
    axes.set(ylabel="layers, by cluster as trained")
    figure.colorbar(image, ax=axes, label="coefficient")
    for row, (measure, label) in enumerate(MEASURES.items()):
        axes, values = figure.add_subplot(grid[2 + row, 1]), getattr(view, measure)
        axes.plot(view.macs, values, ".", color=LANDMARK, ms=5)
        axes.plot(view.macs[view.front], values[view.front], "-", color=PARTS["templates"], lw=1.2)
        if view.chosen is not None:
            axes.plot(view.macs[view.chosen], values[view.chosen], "o", color=CHOSEN, ms=8, mec=INK, zorder=5)
        axes.set(ylabel=label)
        _cost_axis(axes, view.macs)
    lines = ["; ".join(f"{name} {value}" for name, value in facts.items()) for facts in (view.facts, view.members)]
    figure.suptitle("\n".join(fill(line, 110) for line in lines), x=0.01, ha="left", fontsize=8)
    return figure


def _cost_axis(axes, macs: np.ndarray) -> None:
    ticks = costs(macs)
    axes.set(xscale="log", xlabel="MACs a row")
    axes.set_xticks(list(ticks), ticks.values())
    axes.minorticks_off()


def costs(macs: np.ndarray) -> dict[float, str]:
    """What stands at an axis of MACs: {number: its text}, as few to a decade as give three."""
    low, high = 0.9 * float(np.min(macs)), 1.1 * float(np.max(macs))
    for subs in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), np.arange(10, 100) / 10):
        values = [float(value) for value in LogLocator(subs=subs).tick_values(low, high) if low <= value <= high]
        if len(values) > 2:
            break
    written = EngFormatter(sep="\N{NO-BREAK SPACE}", useMathText=False)  # plotly has no mathtext
    return {value: written(value) for value in values}


def _bar(axes, view: View) -> None:
    start, percent = 0.0, 100 / view.separate
    for name, number in (view.parts or {}).items():
        axes.barh(0, number * percent, left=start, color=PARTS[name], label=name)
        start += number * percent
    if view.budget is not None:
        axes.axvline(view.budget * percent, color=CHOSEN, lw=2, label="budget")
    if view.parts is None:
        axes.plot([view.least * percent], [0], "x", color=INK, ms=7, label="needed at least")
    axes.set(xlim=(0, max(103.0, start, 1.03 * view.least * percent)), yticks=[], ylim=(-0.5, 0.5))
    axes.set_xlabel("parameters (% of separate networks')", labelpad=1)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=4, fontsize=7)

"""Pictures of a search for small perceptrons: one as a graph, and a place of its search.

These are made of the numbers in `View`; `explorers.search` computes them.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation

from wsnotebook.methods.mlp_matrix import Form, Parts, hardened
from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.flow import CHOSEN, LANDMARK

BELOW, ABOVE = "#0072B2", "#D55E00"  # weights and biases below and above 0
UNIT_LOOKS = {  # colour and marker of each of `networks.UNITS`
    "sigmoid": ("#009E73", "o"),
    "tanh": ("#E69F00", "s"),
    "leaky_relu": ("#CC79A7", "^"),
    "relu": ("#56B4E9", "v"),
    "gelu": ("#F0E442", "D"),
    "sin": ("#000000", "P"),
    "identity": ("#999999", "X"),
}
OFF, INPUT, OUTPUT = "off", "input", "output"  # kinds of units beside these
STEPS, WIDTHS = (0.5, 2.0), (1.0, 2.2, 4.5)  # sizes of weights that part the lines' widths, and these in pixels


# ---- the numbers behind the pictures -------------------------------------------------------------------------------


class Graph(NamedTuple):
    """A perceptron of u units, inputs and outputs among them, in places that do not depend on which of them are on."""

    places: np.ndarray  # (u, 2) in [0, 1]: across by layer, down by number
    kinds: np.ndarray  # (u,) str: activation, OFF, INPUT or OUTPUT
    names: list[str]  # (u) as "layer 1, unit 3: tanh"
    biases: np.ndarray  # (u,)
    edges: np.ndarray  # (e, 2) from unit, to unit
    weights: np.ndarray  # (e,) none is 0


class Surface(NamedTuple):
    """A function of two variables over a grid, and what a network makes of it."""

    x: np.ndarray  # (g,)
    y: np.ndarray  # (g,)
    true: np.ndarray  # (g, g) at [y, x]
    learned: np.ndarray  # (g, g)


class Curves(NamedTuple):
    """Networks at p places, of a search or on a way, and the one that is shown."""

    label: str  # of the places
    x: np.ndarray  # (p,)
    errors: dict[str, np.ndarray]  # (p,) mean squares on validation rows
    non_zeros: np.ndarray  # (p,)
    constant: float  # error of the best constant
    plain: float  # place from which networks are plain
    here: tuple[float, float, float]  # place, error and non-zeros that are shown
    ticks: dict[float, str]  # names of some places


class View(NamedTuple):
    """What the search explorer shows."""

    surface: Surface
    graph: Graph
    curves: Curves
    facts: dict[str, str]  # what its readout says


def graph(form: Form, parts: Parts, i: int) -> Graph:
    """Network i, as it is when hardened."""
    one = hardened(form, parts.take([i]))
    weights, biases, activations, masks, depth = (part[0].detach() for part in one)
    sizes = [form.inputs, *[form.width] * int(depth), form.outputs]
    first = np.cumsum([0, *sizes])
    edges, values, places, kinds, names, every = [], [], [], [], [], [np.zeros(form.inputs)]
    for layer, size in enumerate(sizes):
        across = np.full(size, layer / (len(sizes) - 1))
        places.append(np.stack([across, 0.5 + ((size - 1) / 2 - np.arange(size)) / max(sizes)], 1))
        if layer == 0:
            kinds += [INPUT] * size
            names += [f"input {unit}" for unit in range(1, size + 1)]
            continue
        place = layer - 1 if layer <= depth else form.depth
        to, start = weights[place, :size, : sizes[layer - 1]].nonzero().unbind(1)
        edges.append(np.stack([first[layer - 1] + start.numpy(), first[layer] + to.numpy()], 1))
        values.append(weights[place, to, start].numpy())
        every.append(biases[place, :size].numpy())
        if layer > depth:
            kinds += [OUTPUT] * size
            names += [f"output {unit}" for unit in range(1, size + 1)]
            continue
        best = activations[place].argmax(-1).tolist()
        kinds += [form.activations[k] if on else OFF for k, on in zip(best, masks[place, :size] > 0, strict=False)]
        names += [f"layer {layer}, unit {unit}: {kind}" for unit, kind in enumerate(kinds[-size:], start=1)]
    return Graph(
        np.concatenate(places),
        np.array(kinds),
        names,
        np.concatenate(every),
        np.concatenate(edges),
        np.concatenate(values),
    )


def line_widths(weights: np.ndarray) -> np.ndarray:
    """Which of WIDTHS a weight has: (e,) of (e,)."""
    return np.digitize(np.abs(weights), STEPS)


# ---- one network, and its search -----------------------------------------------------------------------------------


@styled
def network_graph(form: Form, parts: Parts, i: int = 0) -> Figure:
    """Network i, hardened, as a graph: its inputs left, a column of units for each layer, and its outputs right."""
    drawn = graph(form, parts, i)
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    _graph(axes, drawn)
    figure.legend(handles=_graph_key(drawn), loc="outside lower center", ncols=4)
    weights, biases = len(drawn.weights), np.count_nonzero(drawn.biases)
    figure.suptitle(f"{weights + biases} non-zeros: {weights} weights and {biases} biases", x=0.01, ha="left")
    return figure


@styled
def search_frame(view: View) -> Figure:
    """A place of a search, or of a way between networks: surfaces, the network, and how it got there.

    The static twin of the search explorer.
    """
    surface, curves = view.surface, view.curves
    figure = Figure(figsize=(7, 4.8))
    top, bottom = figure.add_gridspec(2, 1, height_ratios=(6, 5))
    true, learned, net = (figure.add_subplot(place) for place in top.subgridspec(1, 3, width_ratios=(1, 1, 1.5)))
    ends = surface.true.min(), surface.true.max()
    sides = surface.x[0], surface.x[-1], surface.y[0], surface.y[-1]
    for axes, values, title in ((true, surface.true, "true"), (learned, surface.learned, "learned")):
        look = {"vmin": ends[0], "vmax": ends[1], "extent": sides, "aspect": "auto", "origin": "lower"}
        image = axes.imshow(values, cmap="viridis", **look)
        axes.set(title=title, xlabel="x1")
        axes.locator_params(nbins=4)
    true.set_ylabel("x2", labelpad=0)
    learned.set_yticklabels([])
    figure.colorbar(image, ax=[true, learned], location="bottom", aspect=50, pad=0.02, shrink=0.9)
    _graph(net, view.graph)
    net.legend(handles=_graph_key(view.graph, lines=False), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3)
    errors, count = (figure.add_subplot(place) for place in bottom.subgridspec(1, 2))
    for (name, values), (colour, dashes) in zip(curves.errors.items(), ERROR_LOOKS, strict=False):
        errors.plot(curves.x, values, color=colour, ls=dashes, label=name)
    errors.axhline(curves.constant, color=LANDMARK, ls=":", lw=1.2, label="the best constant")
    errors.set(yscale="log", ylabel="error on validation rows")
    errors.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1, 0.4)))  # only within a decade
    errors.legend(loc="best")
    count.plot(curves.x, curves.non_zeros, color=CHOSEN)
    count.set(ylabel="non-zeros", ylim=(0, None))
    for axes, value in ((errors, curves.here[1]), (count, curves.here[2])):
        axes.plot(curves.here[0], value, "o", color=CHOSEN, ms=8, mec=INK, zorder=5, clip_on=False)
        axes.axvspan(curves.plain, curves.x[-1], color=LANDMARK, alpha=0.15, lw=0)
        axes.set(xlabel=curves.label, xlim=curves.x[[0, -1]])
        axes.set_xticks(list(curves.ticks), list(curves.ticks.values()))
    facts = [f"{name} {value}" for name, value in view.facts.items()]
    figure.suptitle(f"{', '.join(facts[:2])}\n{', '.join(facts[2:])}", x=0.01, ha="left")
    return figure


ERROR_LOOKS = (CHOSEN, "-"), (BELOW, "--")  # of the first and the second error


def _graph(axes, drawn: Graph) -> None:
    """The graph alone, without axes."""
    colours = np.where(drawn.weights > 0, ABOVE, BELOW)
    widths = 0.7 * np.array(WIDTHS)[line_widths(drawn.weights)]
    axes.add_collection(LineCollection(drawn.places[drawn.edges], colors=colours, linewidths=widths, alpha=0.75))
    for kind in dict.fromkeys(drawn.kinds):
        rows = drawn.kinds == kind
        biases = drawn.biases[rows]
        face, marker = UNIT_LOOKS.get(kind, ("white", "o"))
        rest = "#cccccc" if kind == OFF else face if kind in UNIT_LOOKS else INK
        look = {"edgecolors": np.where(biases > 0, ABOVE, np.where(biases < 0, BELOW, rest)), "zorder": 3}
        size, line = (18, 1) if kind == OFF else (85, 2)
        axes.scatter(*drawn.places[rows].T, s=size, c=face, marker=marker, linewidths=line, **look)
    for prefix, kind, side in (("x", INPUT, "right"), ("y", OUTPUT, "left")):
        rows = np.flatnonzero(drawn.kinds == kind)
        for number, (x, y) in enumerate(drawn.places[rows], start=1):
            name = f"{prefix}{number if len(rows) > 1 else ''}"
            axes.text(x + (0.05 if side == "left" else -0.05), y, name, ha=side, va="center", fontsize=9)
    axes.set(xlim=(-0.12, 1.12), ylim=(0, 1))
    axes.set_axis_off()


def _graph_key(drawn: Graph, lines: bool = True) -> list[Line2D]:
    """Handles of the kinds of units that are on, and of what lines and rims mean."""
    kinds = [kind for kind in UNIT_LOOKS if kind in drawn.kinds]
    handles = []
    for kind in kinds:
        colour, marker = UNIT_LOOKS[kind]
        handles.append(Line2D([], [], color=colour, marker=marker, ls="", ms=7, label=kind))
    handles.append(Line2D([], [], color="white", marker="o", ls="", ms=4, mec="#cccccc", label="off"))
    if lines:
        for colour, side in ((BELOW, "below 0"), (ABOVE, "above 0")):
            handles.append(Line2D([], [], color=colour, lw=2, label=f"weight {side} (rim: bias)"))
    return handles

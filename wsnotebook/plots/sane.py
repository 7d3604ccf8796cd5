"""Pictures of SANE: how the autoencoder learned, what its latents tell of networks, and how networks lie in them."""

from collections.abc import Mapping
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.flow import LANDMARK, LOOKS

FLOOR = -0.25  # R2 below it is drawn there, as a triangle; the number is beside it


@styled
def properties(results: Mapping, *, other: bool = False) -> Figure:
    """R2, or the share of categories that is right, a panel a target; {features: `methods.properties.probe`'s answer}.

    Means over splits with 95 % intervals; dotted: 0, or the most frequent category's share. other: of the other zoo
    that was scored. Raises ValueError for no results, and features probed for different targets.
    """
    targets = [list(probes) for probes in results.values()]
    if not targets or not targets[0] or any(names != targets[0] for names in targets):
        raise ValueError(
            f"results: {dict(zip(results, targets, strict=True))}: expected {{features: probe(...)}}, "
            "all for the same targets"
        )
    across, down = min(3, len(targets[0])), -(-len(targets[0]) // 3)
    figure = Figure(figsize=(7, 0.7 + down * (0.75 + 0.19 * len(results))))
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, target in zip(panels.flat, targets[0], strict=False):
        _panel(axes, target, {name: probes[target] for name, probes in results.items()}, "other " * other)
    for axes in panels.flat[len(targets[0]) :]:
        axes.set_axis_off()
    panels[0, 0].set_yticks(range(len(results)), list(results))
    panels[0, 0].set_ylim(len(results) - 0.5, -0.5)
    splits = len(next(iter(results.values()))[targets[0][0]].models)
    title = f"What features of weights tell of networks not seen ({splits} split{'s' * (splits > 1)} by model)"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _panel(axes, title: str, probes: Mapping, prefix: str) -> None:
    """One target: a row for each feature. prefix: of the names of the scores."""
    categories = bool(next(iter(probes.values())).classes)
    low, high = (0, 100) if categories else (FLOOR, 1)
    reference = np.mean([np.mean(probe.scores[f"{prefix}majority"]) for probe in probes.values()]) if categories else 0
    axes.axvline(reference, color=INK, lw=0.9, ls=":")
    families = list(dict.fromkeys(name.partition(",")[0] for name in probes))  # "SANE, mean" is of SANE
    for row, (name, probe) in enumerate(probes.items()):
        colour, marker = LOOKS[families.index(name.partition(",")[0]) % len(LOOKS)]
        mean, half = probe.interval(prefix + probe.measure)
        at = max(mean, low)
        axes.plot([max(mean - half, low), min(mean + half, high)], [row, row], color=colour, lw=2.2, alpha=0.5)
        axes.plot(at, row, marker if mean >= low else "<", color=colour, ms=5, clip_on=False)
        digits = 0 if categories or mean < -1 else 2
        axes.text(
            1.06,
            row,
            f"{round(mean, digits) + 0.0:.{digits}f}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
    axes.set(title=title, xlim=(low, high), xlabel="right (%)" if categories else "R\N{SUPERSCRIPT TWO}")
    axes.tick_params(axis="y", length=0)


@styled
def layer_spread(spread) -> Figure:
    """How far latents scatter from layer to layer, by groups of networks; of `methods.latent_maps.layer_spread`."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    places = np.arange(len(spread.layers))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(spread.groups)))
    for (low, high), values, shade, (_, marker) in zip(spread.groups, spread.deviation, shades, cycle(LOOKS)):
        label = f"{low:.3g} \N{EN DASH} {high:.3g}"
        axes.plot(places, values, color=shade, marker=marker, ms=5, label=label)
    few = places[:: -(-len(places) // 12)]
    names = [spread.layers[i].removesuffix(".weight") for i in few]
    axes.set_xticks(few, names, rotation=30 if len(few) > 6 else 0, ha="right" if len(few) > 6 else "center")
    axes.set(xlabel="layer, from input to output", ylabel="deviation of latents", ylim=(0, None))
    figure.legend(title=_named(spread.fact), loc="outside right center")
    figure.suptitle("How far the latents of each layer's rows scatter", x=0.01, ha="left")
    return figure


@styled
def latent_trajectories(found) -> Figure:
    """Models' ways through latent space while they train, coloured by a fact; of `methods.latent_maps.trajectories`.

    A circle is a model's first snapshot, a diamond its last; grey: all the zoo's networks.
    """
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    axes.plot(*found.points.T, ".", color=LANDMARK, ms=3, alpha=0.5, mew=0, label="a network of the zoo")
    shown = np.concatenate(list(found.ways.values()))
    norm = Normalize(found.values[shown].min(), found.values[shown].max())
    width = 1.8 if len(found.ways) <= 12 else 0.7
    for rows in found.ways.values():
        pairs = np.stack([found.points[rows[:-1]], found.points[rows[1:]]], 1)  # (s - 1, 2, 2)
        values = (found.values[rows[:-1]] + found.values[rows[1:]]) / 2
        axes.add_collection(LineCollection(pairs, array=values, cmap="viridis", norm=norm, linewidths=width, zorder=2))
    for end, marker, label in ((0, "o", "first snapshot"), (-1, "D", "last snapshot")):
        rows = [rows[end] for rows in found.ways.values()]
        look = {"s": 9 * width, "edgecolors": "white", "linewidths": 0.4, "zorder": 3}
        drawn = axes.scatter(
            *found.points[rows].T, c=found.values[rows], cmap="viridis", norm=norm, marker=marker, **look
        )
        axes.plot([], [], marker, color=INK, ms=4, label=label)
    figure.colorbar(drawn, ax=axes, label=_named(found.fact), pad=0.02)
    labels = [f"axis {i} ({100 * share:.3g} % of variance)" for i, share in enumerate(found.shares, start=1)]
    axes.set(xlabel=labels[0], ylabel=labels[1])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"Training of {len(found.ways)} models, through the space of mean latents", x=0.01, ha="left")
    return figure


@styled
def sane_training(histories: Mapping) -> Figure:
    """How {label: Sane.history} learned: reconstruction of training and held-out networks (left), and contrast.

    Errors are per standardised weight: 1 is as good as the layers' means. Raises ValueError for no histories.
    """
    if not histories:
        raise ValueError("histories is empty: pass {label: sane.history}")
    figure = Figure(figsize=(7, 3.2))
    left, right = figure.subplots(1, 2)
    for (label, history), (colour, marker) in zip(histories.items(), cycle(LOOKS), strict=False):
        iteration = history["iteration"]
        look = {"color": colour, "marker": marker, "ms": 4, "markevery": max(1, len(iteration) // 8)}
        left.plot(iteration, history["reconstruction"], color=colour, lw=1.2, alpha=0.6)
        left.plot(iteration, history["validation_loss"], ls="--", **look)
        right.plot(iteration, history["contrast"], label=f"{label} ({history['cpu_seconds'][-1]:.0f} CPU-s)", **look)
    left.axhline(1, color=INK, lw=0.9, ls=":")
    left.plot([], [], color=INK, lw=1.2, alpha=0.6, label="training, augmented")
    left.plot([], [], color=INK, ls="--", label="held-out networks")
    left.plot([], [], color=INK, lw=0.9, ls=":", label="the layers' means")
    left.legend(loc="best")
    left.set(ylabel="mean square error per weight")
    right.set(ylabel="contrast (nats)")
    for axes in (left, right):
        axes.set(xlabel="iteration", xlim=(0, None), ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    ends = ", ".join(f"{history['validation_loss'][-1]:.2f}" for history in histories.values())
    figure.suptitle(f"Held-out networks come back with an error of {ends} of the weights' variance", x=0.01, ha="left")
    return figure


def _named(fact: str) -> str:
    """A fact with its unit."""
    unit = {"accuracy": " (%)", "loss": " (nats)", "gap": " (points)"}.get(fact.rpartition("_")[2], "")
    return fact.replace("_", " ") + unit

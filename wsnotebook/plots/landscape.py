"""Pictures of what lies between networks: barriers, planes of loss, and the distances that alignment shortens."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter

from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.zoo import PICKED

LOOKS = (("#999999", "-", "o"), ("#009E73", "--", "s"), ("#CC79A7", "-.", "^"), ("#E69F00", ":", "D"))  # a label each


@styled
def barriers(paths: Mapping) -> Figure:
    """Accuracy and loss along straight lines between networks: mean over the pairs, and the band of 10 to 90 %.

    paths: {label: evaluation.Path}, such as raw and aligned. Dashed: the straight line between the ends' means.
    Raises ValueError for no paths.
    """
    if not paths:
        raise ValueError("paths is empty: pass {label: evaluation.interpolate(...)}")
    figure = Figure(figsize=(7, 3.3))
    both = figure.subplots(1, 2)
    for axes, measure, unit in zip(both, ("accuracy", "loss"), ("%", "nats"), strict=True):
        for (label, path), (colour, dashes, marker) in zip(paths.items(), cycle(LOOKS), strict=False):
            values = getattr(path, measure)  # (p, points)
            mean = values.mean(0)
            axes.fill_between(path.t, *np.quantile(values, (0.1, 0.9), axis=0), color=colour, alpha=0.18)
            axes.plot(path.t[[0, -1]], mean[[0, -1]], color=INK, lw=0.9, ls=(0, (4, 3)), zorder=1)
            axes.plot(path.t, mean, color=colour, ls=dashes, lw=2, label=label)
            axes.plot(path.t[[0, -1]], mean[[0, -1]], marker, color=colour, ms=6, mec="white", clip_on=False, zorder=5)
        axes.set(xlabel="t: (1 - t) first + t second", ylabel=f"{measure} ({unit})", xlim=(0, 1))
    pairs = f"{len(values)} pairs of networks" if len(values) > 1 else "two networks"
    figure.suptitle(f"Along straight lines between {pairs}: mean and the middle 80 %", x=0.01, ha="left")
    handles, labels = both[0].get_legend_handles_labels()
    handles.append(both[0].plot([], [], color=INK, lw=0.9, ls=(0, (4, 3)))[0])
    figure.legend(handles, [*labels, "straight line between the ends"], loc="outside lower center", ncols=5)
    return figure


@styled
def loss_planes(planes: Mapping, accuracies: Sequence[float] = ()) -> Figure:
    """Loss on planes through the same three networks, such as raw and aligned, on one scale: {label: evaluation.Plane}.

    Coordinates are distances in weight space. accuracies: the three networks', %, which are written beside them.
    Raises ValueError for no planes.
    """
    if not planes:
        raise ValueError("planes is empty: pass {label: evaluation.plane(...)}")
    levels = loss_levels(planes.values())
    names = [f"{number}: {accuracy:.1f} %" for number, accuracy in zip("123", accuracies, strict=False)] or list("123")
    figure = Figure(figsize=(7, 3.4) if len(planes) > 1 else (5, 3.8), layout="compressed")
    for axes, (label, plane) in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes.items(), strict=True):
        norm = LogNorm(levels[0], levels[-1])
        loss = np.clip(plane.loss, levels[0], None)
        drawn = axes.contourf(plane.x, plane.y, loss, levels, norm=norm, cmap="viridis_r", extend="max")
        axes.contour(plane.x, plane.y, loss, levels[1:-1:2], colors="white", linewidths=0.4, alpha=0.6)
        place = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "weight": "bold"}
        for name, look, (x, y) in zip(names, PICKED, plane.corners, strict=True):
            axes.plot(x, y, "o", color=look, ms=8, mec="white", mew=1.2)
            note = axes.annotate(name, (x, y), (0, 8 if y else -15), color=INK, **place)
            note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        axes.set(title=label, xlabel="distance (weights, L2)", aspect="equal")
    figure.axes[0].set_ylabel("distance (weights, L2)")
    bar = figure.colorbar(drawn, ax=figure.axes, label="loss (nats)", pad=0.02, ticks=levels[::2])
    bar.ax.yaxis.set_major_formatter("{x:.2g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def loss_levels(planes) -> np.ndarray:
    """(12,) levels of loss, evenly spread on a logarithmic scale; the highest tenth of all points lies above them."""
    loss = np.concatenate([plane.loss.ravel() for plane in planes])
    low, high = max(loss.min(), 1e-3), np.quantile(loss, 0.9)
    return np.geomspace(low, max(high, 1.5 * low), 12)


@styled
def distances(before: np.ndarray, after: np.ndarray) -> Figure:
    """How far networks (n,) are from the reference before and after alignment; the reference itself (0) is left out.

    Raises ValueError when there is no other network.
    """
    others = np.asarray(before) > 0
    if not others.any():
        raise ValueError("before: no distance above 0; expected networks besides the reference")
    parts = {"before": np.asarray(before)[others], "after alignment": np.asarray(after)[others]}
    figure = Figure(figsize=(7, 2.9))
    axes = figure.subplots()
    edges = np.linspace(0, 1.02 * max(part.max() for part in parts.values()), 41)
    for (label, part), (colour, dashes, _) in zip(parts.items(), LOOKS, strict=False):
        axes.hist(part, edges, color=colour, alpha=0.7, label=label)
        axes.axvline(np.median(part), color=INK, lw=1.2, ls=dashes)
    axes.set(xlabel="distance to the reference (weights, L2); lines: medians", ylabel="networks", xlim=(0, edges[-1]))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    first, second = map(np.median, parts.values())
    title = f"Alignment brings {others.sum()} networks closer: median {first:.3g} to {second:.3g}"
    figure.suptitle(f"{title} ({100 * (second / first - 1):+.0f} %)", x=0.01, ha="left")
    axes.legend(loc="upper left")
    return figure


@styled
def path_frame(paths: Mapping, t: float, report) -> Figure:
    """One place on the line between two networks: accuracy and loss marked on the way, accuracy of each class there.

    The static twin of the interpolation explorer. paths: {label: evaluation.Path} of one pair. report:
    evaluation.Report of the networks at t, one a label.
    """
    figure = Figure(figsize=(7, 3))
    *both, right = figure.subplots(1, 3, width_ratios=(4, 4, 5))
    classes, width = np.arange(report.per_class.shape[1]), 0.8 / len(paths)
    for k, ((label, path), (colour, dashes, marker)) in enumerate(zip(paths.items(), cycle(LOOKS), strict=False)):
        for axes, measure in zip(both, ("accuracy", "loss"), strict=True):
            axes.plot(path.t, getattr(path, measure)[0], color=colour, ls=dashes, lw=2, label=label)
            axes.plot(t, getattr(report, measure)[k], marker, color=colour, ms=8, mec=INK, zorder=5, clip_on=False)
        right.bar(classes - 0.4 + width * (k + 0.5), report.per_class[k], width, color=colour)
    both[0].set(xlabel="t", ylabel="accuracy (%)", xlim=(0, 1), ylim=(0, 102))
    both[1].set(xlabel="t", ylabel="loss (nats)", xlim=(0, 1))
    both[1].set_ylim(0)
    right.set(xlabel="class", ylabel=f"accuracy at t = {t:.2f} (%)", ylim=(0, 102), xticks=classes)
    accuracies = ", ".join(f"{label} {value:.1f} %" for label, value in zip(paths, report.accuracy, strict=True))
    figure.suptitle(f"(1 - t) first + t second at t = {t:.2f}: {accuracies}", x=0.01, ha="left")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure

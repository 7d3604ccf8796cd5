"""Pictures of a zoo: where its networks lie, how they trained, and how new generated ones are.

Numbers are coloured by viridis, strings by Okabe and Ito's palette and a marker each.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy import linalg
from torch import Tensor

from wsnotebook.evaluation import Novelty, mean_and_half_width
from wsnotebook.plots.common import INK, styled

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")  # the last: others
MARKERS = "os^DvPX."
PICKED = ("#D55E00", "#0072B2", "#009E73")  # the first, second and third chosen network
NAMES = {"lr": "learning rate", "gap": "training minus test accuracy (points)", "model": "model (number)"}
BLOCK = 2**24  # numbers of a block of weights in float64


# ---- the numbers behind the pictures -------------------------------------------------------------------------------


class Column(NamedTuple):
    """A fact, or a principal component of the weights, of every network."""

    values: np.ndarray  # (n,) float64 or strings
    label: str  # with the unit

    @property
    def numeric(self) -> bool:
        return self.values.dtype.kind == "f"

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number, those that are not known (nan) left out."""
        return float(np.nanmin(self.values)), float(np.nanmax(self.values))

    @property
    def log(self) -> bool:
        """Whether the numbers span so much that a logarithmic scale shows them better."""
        return self.numeric and "%" not in self.label and 0 < 10 * self.ends[0] <= self.ends[1]


def embedding(weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) the first two principal components of the rows of weights (n, d), and their shares of the variance (2,).

    Exact, through the smaller of the rows' and the columns' products. Signs are such that the largest entry is
    positive. Raises ValueError for fewer than two rows.
    """
    n, d = weights.shape
    if n < 2:
        raise ValueError(f"weights: {n} rows, expected at least two networks to compare")

    def centred(block: Tensor) -> np.ndarray:
        return (block - block.mean(0, dtype=torch.float64)).cpu().numpy()

    blocks = weights.detach().cpu().split(max(1, BLOCK // n), dim=1)
    if n <= d:
        products = sum(part @ part.T for part in map(centred, blocks))  # (n, n)
    else:
        whole = centred(weights.detach().cpu())
        products = whole.T @ whole  # (d, d)
    last = len(products) - 1
    values, vectors = linalg.eigh(products, subset_by_index=(max(0, last - 1), last))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    scores = vectors * np.sqrt(values) if n <= d else whole @ vectors
    scores = np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
    scores = scores * np.where(np.take_along_axis(scores, np.abs(scores).argmax(0)[None], 0) < 0, -1, 1)
    return scores, np.pad(values, (0, 2 - len(values))) / max(np.trace(products), np.finfo(float).tiny)


def choices(zoo, aligned=None) -> list[str]:
    """The names that `columns` takes: principal components, and the zoo's facts."""
    spaces = ("", " aligned") if aligned is not None else ("",)
    return [f"{name}{space}" for space in spaces for name in ("PC1", "PC2")] + list(zoo.facts)


def columns(zoo, names: Sequence[str], aligned=None) -> dict[str, Column]:
    """The named facts of a zoo's rows; PC1 and PC2 are principal components of its weights.

    aligned: the same networks after alignment, whose components are "PC1 aligned" and "PC2 aligned".
    Raises ValueError for an unknown name, and when the two zoos' rows differ in number.
    """
    if aligned is not None and len(aligned) != len(zoo):
        raise ValueError(f"aligned: {len(aligned)} networks, expected the same {len(zoo)} as the zoo's, in its order")
    known = choices(zoo, aligned)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown fact {unknown[0]!r}; this zoo has {', '.join(known)}")
    found = {name: _fact(zoo, name) for name in names if name in zoo.facts}
    for space, source in {"": zoo, " aligned": aligned}.items():
        components = (f"PC1{space}", f"PC2{space}")
        if set(components) & set(names):
            scores, shares = embedding(source.weights)
            for name, values, share in zip(components, scores.T, shares, strict=True):
                found[name] = Column(values, f"{name} ({100 * share:.3g} % of variance)")
    return {name: found[name] for name in names}


def _fact(zoo, name: str) -> Column:
    """Labelled with its unit: accuracies are in %, losses in nats."""
    values = zoo.facts[name]
    values = values.astype(float) if values.dtype.kind in "iuf" else values.astype(str)
    text = NAMES.get(name) or name.replace("train_", "training ").replace("_", " ")
    unit = {"accuracy": " (%)", "loss": " (nats)"}.get(text.rpartition(" ")[2], "")
    return Column(values, text + unit)


def kinds(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(names, index (n,)) of the strings, at most as many as PALETTE: the rarest are "others" then."""
    names, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(names) <= len(PALETTE) - 1:
        return names.tolist(), index
    kept = np.sort(np.argsort(-counts, kind="stable")[: len(PALETTE) - 1])
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    return [*names[kept].tolist(), "others"], place[index]


def snapshots(zoo) -> tuple[np.ndarray, np.ndarray]:
    """(steps (s,), rows (s, m)): each network's row at every step that was kept, or its nearest one before, or first.

    A network is what shares the fact "model"; rows that share the step too are several networks.
    """
    n = len(zoo)
    _, model = np.unique(zoo.facts.get("model", np.arange(n)), return_inverse=True)
    steps, step = np.unique(zoo.facts.get("step", np.zeros(n, int)), return_inverse=True)
    order = np.lexsort((step, model))
    place = np.arange(n)
    first = np.r_[True, (np.diff(model[order]) != 0) | (np.diff(step[order]) != 0)]
    twin = np.empty(n, int)
    twin[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    _, network = np.unique(np.stack([model, twin]), axis=1, return_inverse=True)
    rows = np.full((len(steps), network.max() + 1), -1)
    rows[step, network] = place
    for s in range(1, len(steps)):
        rows[s] = np.where(rows[s] < 0, rows[s - 1], rows[s])
    for s in reversed(range(len(steps) - 1)):
        rows[s] = np.where(rows[s] < 0, rows[s + 1], rows[s])
    return steps, rows


# ---- where networks lie and how they trained -----------------------------------------------------------------------


@styled
def zoo_scatter(zoo, x: str = "PC1", y: str = "PC2", colour: str = "validation_accuracy", aligned=None) -> Figure:
    """Every row of a zoo as a point; in weight space a network's snapshots are joined.

    x, y, colour, aligned: as `columns` takes them. Raises ValueError for an unknown fact.
    """
    across, up, tint = _columns(zoo, (x, y, colour), aligned)
    steps, rows = snapshots(zoo)
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    if len(steps) > 1 and x.startswith("PC") and y.startswith("PC"):
        axes.add_collection(LineCollection(_joined(across, up, rows), colors="#cccccc", linewidths=0.6, zorder=1))
    _points(figure, axes, across, up, tint)
    many = f", {len(zoo)} snapshots" if len(zoo) > rows.shape[1] else ""
    figure.suptitle(f"{rows.shape[1]} networks{many}: {_plain(tint.label)}", x=0.01, ha="left")
    return figure


@styled
def zoo_curves(zoo, fact: str = "validation_accuracy", by: str | None = None) -> Figure:
    """A fact of each network over the training steps; thick the median, of each kind if `by` is a fact of strings.

    by: the fact that colours them, as each network has it at the end. Raises ValueError for an unknown or unsuitable
    fact, and for a zoo without snapshots.
    """
    names = (fact,) if by is None else (fact, by)
    height, *tint = _columns(zoo, names)
    steps, rows = snapshots(zoo)
    if len(steps) < 2 or not height.numeric:
        raise ValueError(
            f"fact={fact!r} at {len(steps)} steps: expected numbers at several; train with zoo.Config(snapshots=...)"
        )
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    _curves(figure, axes, zoo, height, rows, *tint)
    end, start = np.median(height.values[rows[[-1, 0]]], axis=1)
    unit = " %" if "%" in height.label else ""
    title = f"Median {_plain(height.label)} of {rows.shape[1]} networks: from {start:.3g} to {end:.3g}{unit}"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def zoo_frame(
    zoo, x: str, y: str, colour: str, fact: str, *, aligned=None, step: int | None = None, chosen: Sequence[int] = ()
) -> Figure:
    """The networks at one step (None: the last) with the chosen rows marked, and the chosen ones' curves of a fact.

    The static twin of the zoo explorer. x, y, colour, aligned: as `columns` takes them.
    """
    across, up, tint, height = _columns(zoo, (x, y, colour, fact), aligned)
    steps, rows = snapshots(zoo)
    here = rows[-1 if step is None else np.searchsorted(steps, step)]
    figure = Figure(figsize=(7, 3.7))
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    _points(figure, left, across, up, tint, here, key="lower left")
    left.set(xlim=limits(across), ylim=limits(up))
    _curves(figure, right, zoo, height, rows)
    for row, look, number in zip(chosen, PICKED, "123", strict=False):
        at = across.values[row], up.values[row]
        left.plot(*at, "o", ms=11, mfc="none", mec=look, mew=2)
        note = left.annotate(number, at, (7, 6), textcoords="offset points", color=look, weight="bold", zorder=6)
        note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        (network,) = np.nonzero((rows == row).any(0))[0]
        path = rows[:, network]
        right.plot(_steps(zoo)[path], height.values[path], "o-", ms=3, color=look, lw=1.8, label=f"network {number}")
    if len(steps) > 1:
        right.axvline(_steps(zoo)[here].max(), color=INK, lw=1, ls=":")
    if len(chosen):
        right.legend(loc="best")
    figure.suptitle(f"{rows.shape[1]} networks at step {_steps(zoo)[here].max():,}", x=0.01, ha="left")
    return figure


def limits(column: Column) -> tuple[float, float]:
    """Ends of an axis that suits every step."""
    low, high = column.ends
    room = 0.06 * (high - low) or max(0.06 * abs(high), 0.5)
    return low - room, high + room


def _columns(zoo, names: Sequence[str], aligned=None) -> list[Column]:
    found = columns(zoo, names, aligned)
    return [found[name] for name in names]


def _steps(zoo) -> np.ndarray:
    return zoo.facts.get("step", np.zeros(len(zoo), int))


def _plain(label: str) -> str:
    return label.partition(" (")[0]


def _joined(across: Column, up: Column, rows: np.ndarray) -> np.ndarray:
    """(m, s, 2) each network's way."""
    return np.stack([across.values[rows.T], up.values[rows.T]], axis=-1)


def _points(figure, axes, across: Column, up: Column, tint: Column, rows=slice(None), key="right center") -> None:
    """These rows as points, with the key to their colours, which is the whole zoo's."""
    x, y = across.values[rows], up.values[rows]
    size = 34 if len(x) <= 150 else 16 if len(x) <= 1500 else 7
    look = {"s": size, "linewidths": 0.4, "edgecolors": "white", "zorder": 2}
    if tint.numeric:
        colours = matplotlib.colormaps["viridis"].with_extremes(bad="#cccccc")
        drawn = axes.scatter(x, y, c=tint.values[rows], cmap=colours, norm=_norm(tint), plotnonfinite=True, **look)
        bar = figure.colorbar(drawn, ax=axes, label=tint.label, pad=0.02)
        _plain_ticks(bar.ax, tint)
    else:
        names, index = kinds(tint.values)
        for i, name in enumerate(names):
            part = index[rows] == i
            axes.scatter(x[part], y[part], color=PALETTE[i], marker=MARKERS[i], label=name, **look)
        figure.legend(title=_plain(tint.label), loc=f"outside {key}", ncols=1 if key == "right center" else 8)
    axes.set(xlabel=across.label, ylabel=up.label)
    axes.locator_params(nbins=6)


def _norm(column: Column) -> Normalize:
    return (LogNorm if column.log else Normalize)(*column.ends)


def _plain_ticks(axes, column: Column) -> None:
    if column.log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _curves(figure, axes, zoo, height: Column, rows: np.ndarray, tint: Column | None = None) -> None:
    """All networks faint, their medians strong."""
    lines = _joined(Column(_steps(zoo).astype(float), ""), height, rows)  # (m, s, 2)
    faint = {"linewidths": 0.8, "alpha": max(0.15, min(0.8, 15 / len(lines)))}
    steps = lines[..., 0].max(0)
    groups = {"median": (np.full(len(lines), True), INK)}
    if tint is None:
        axes.add_collection(LineCollection(lines, colors="#999999", **faint))
    elif tint.numeric:
        drawn = LineCollection(lines, array=tint.values[rows[-1]], cmap="viridis", norm=_norm(tint), **faint)
        axes.add_collection(drawn)
        solid = matplotlib.cm.ScalarMappable(drawn.norm, drawn.cmap)
        _plain_ticks(figure.colorbar(solid, ax=axes, label=tint.label, pad=0.02).ax, tint)
    else:
        names, index = kinds(tint.values[rows[-1]])
        groups = {name: (index == i, PALETTE[i]) for i, name in enumerate(names)}
        for part, colour in groups.values():
            axes.add_collection(LineCollection(lines[part], colors=colour, **faint))
    for (name, (part, colour)), dashes in zip(groups.items(), cycle(("-", "--", "-.", ":")), strict=False):
        axes.plot(steps, np.median(lines[part, :, 1], axis=0), color=colour, ls=dashes, lw=2.2, label=name)
    title = "median" if tint is None or tint.numeric else f"median by {_plain(tint.label)}"
    if tint is not None:
        figure.legend(title=None if title == "median" else title, loc="outside lower center", ncols=4)
    axes.autoscale_view()
    axes.set(xlabel="training step", ylabel=height.label)
    if height.log:
        axes.set_yscale("log")
        _plain_ticks(axes, height)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


# ---- generated networks --------------------------------------------------------------------------------------------


@styled
def novelty(rows: Mapping) -> Figure:
    """Accuracy of generated networks against their distance to the nearest training network: novel is to the right.

    rows: {label: evaluation.Novelty} against one training zoo, or {label: several of them, one a seed}, of which the
    first is drawn and all are counted. The grey cloud: the zoo's own networks, each left out in turn. Distances are in
    units of that cloud's median; shaded is novel and accurate; carets below: the last hundredth. Raises ValueError for
    no rows.
    """
    if not rows:
        raise ValueError("rows is empty: pass {label: evaluation.novelty(...)}")
    rows = {label: [row] if isinstance(row, Novelty) else list(row) for label, row in rows.items()}
    first, joints = next(iter(rows.values()))[0], {label: [row.joint for row in each] for label, each in rows.items()}
    told = {label: f"{mean_and_half_width(own, 0)} %" for label, own in joints.items()}
    unit = np.median(first.reference.distance)
    figure = Figure(figsize=(7, 3.8))
    axes = figure.subplots()
    axes.plot(
        first.reference.distance / unit, first.reference.accuracy, ".", color="#aaaaaa", ms=6, zorder=2,
        label=f"training zoo ({first.reference_joint:.0f} %)",
    )  # fmt: skip
    hollow = {"ls": "", "mfc": "none", "mew": 0.9, "zorder": 3, "clip_on": False}  # each cloud shows through others
    floor = np.quantile(np.concatenate([row.generated.accuracy for row, *_ in rows.values()]), 0.01, method="lower")
    for (label, (row, *_)), colour, marker in zip(rows.items(), cycle(PALETTE), cycle(MARKERS), strict=False):
        distance, accuracy = row.generated.distance / unit, row.generated.accuracy
        low = accuracy < floor
        text = f"{label} ({told[label]})"
        axes.plot(distance[~low], accuracy[~low], marker, color=colour, ms=4.5, label=text, **hollow)
        if low.any():
            axes.plot(distance[low], np.full(low.sum(), floor), marker=CARETDOWN, color=colour, ms=5, **hollow)
    axes.autoscale_view()
    left, right = min(0, axes.get_xlim()[0]), axes.get_xlim()[1]
    low, high = axes.get_ylim()
    corner = (first.distance_above / unit, first.accuracy_above)
    right, high = max(right, 1.1 * corner[0]), min(max(high, corner[1] + 1), 101)
    axes.add_patch(
        Rectangle(corner, right - corner[0], high - corner[1], color="#56B4E9", alpha=0.2, zorder=0, label="the region")
    )
    axes.set(xlim=(left, right), ylim=(low, high), ylabel="accuracy (%)")
    axes.set_xlabel("distance to the nearest training network (zoo's median = 1)")
    figure.legend(title="novel and accurate", loc="outside right center")
    best = max(joints, key=lambda label: np.mean(joints[label]))
    most = f"at most {told[best]} ({best})" if any(joints[best]) else "none of these"
    seeds = max(map(len, rows.values()))
    several = f"; {seeds} seeds, the first drawn" if seeds > 1 else ""
    figure.suptitle(f"Novel and accurate: {most}{several}", x=0.01, ha="left")
    return figure

"""Pictures of any network: how it trained, what its filters look like, what it weighs and how well it does."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from wsnotebook.plots.common import ARROW, INK, styled

PARTS = {  # of a compressed tensor: label, colour
    "row": ("row pointers", "#56B4E9"),
    "column": ("column gaps", "#009E73"),
    "value": ("values", "#E69F00"),
    "codebook": ("codebook", "#CC79A7"),
}


@styled
def training_curves(runs: Mapping) -> Figure:
    """Loss and validation error over the epochs; of a regression, losses alone.

    runs: one history, which also shows the validation loss; or {label: history, or list of histories (seeds)}, one
    colour a label. Raises ValueError when there is no history.
    """
    if not runs:
        raise ValueError("runs is empty: pass a history (result.history) or {label: history}")
    groups = {"": [runs]} if "epoch" in runs else {k: [h] if isinstance(h, Mapping) else h for k, h in runs.items()}
    regression = None in next(iter(groups.values()))[0]["validation_error"]
    unit, judged, judged_unit = ("MSE", "loss", "MSE") if regression else ("nats", "error", "%")

    def curves(field):
        return {label: [(h["epoch"], h[field]) for h in part] for label, part in groups.items()}

    losses = curves("loss")
    if "epoch" in runs:
        losses = {"training": losses[""], "validation": curves("validation_loss")[""]}
    figure = Figure(figsize=(7, 2.9))
    axes = figure.subplots(1, 2)
    _curves(axes[0], losses, "Loss", f"loss ({unit})" if "epoch" in runs else f"training loss ({unit})")
    _curves(axes[1], curves(f"validation_{judged}"), f"Validation {judged}", f"validation {judged} ({judged_unit})")
    return figure


def _curves(axes, groups: dict, title: str, unit: str) -> None:
    """One colour a label, named at the curves' right end; logarithmic when the values span more than a factor of 20."""
    ends = []
    for (label, curves), entry in zip(groups.items(), cycle(matplotlib.rcParams["axes.prop_cycle"]), strict=False):
        for x, y in curves:
            axes.plot(x, y, label=label, lw=1.5 if len(curves) == 1 else 0.8, **entry)
        ends.append((np.mean([y[-1] for _, y in curves]), label, entry["color"]))
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    axes.set(title=title, xlabel="epoch", ylabel=unit, xmargin=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.06 * max(values.max(), 1e-9))
    height = axes.transData + axes.transAxes.inverted()
    at = -1.0
    for y, label, colour in sorted(ends):  # pushed apart where names would overlap
        at = max(height.transform((0, y))[1], at + 0.075)
        axes.text(1.015, at, label, color=colour, va="center", fontsize=8, transform=axes.transAxes)


@styled
def layer_sizes(sizes) -> Figure:
    """Per tensor: the share of weights that are not zero (left), and what bits each original weight costs (right)."""
    layers = sizes.layers
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(layers)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    names = [layer.name for layer in layers]
    kept = [100 * layer.nonzeros / layer.weights for layer in layers]
    left.bar_label(left.barh(names, kept, color="#999999"), fmt=" {:.1f}", fontsize=8, color=INK)
    left.set(xlabel="non-zero weights (%)", xlim=(0, 118), xticks=range(0, 101, 25))
    start = np.zeros(len(layers))
    for part, (label, colour) in PARTS.items():
        bits = np.array([getattr(layer, f"{part}_bits") / layer.weights for layer in layers])
        right.barh(names, bits, left=start, color=colour, label=label)
        start = start + bits
    for y, total in enumerate(start):
        right.text(total, y, f" {total:.2f}", va="center", fontsize=8, color=INK)
    right.set(xlabel="bits per weight (uncompressed: 32)", xlim=(0, 1.15 * start.max()))
    left.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    before, after = (
        f"{b / 8000:,.{0 if b > 8e5 else 1 if b > 8e4 else 2}f} kB" for b in (sizes.original_bits, sizes.bits)
    )
    title = (
        f"{sizes.nonzero_percent:.1f} % non-zero; {before} {ARROW} {after}, {sizes.ratio:.1f} times smaller (weights)"
    )
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def filters(states: Mapping[str, Mapping], name: str, image_shape: tuple[int, int] | None = None) -> Figure:
    """One tensor's filters in several states, a row each, on one symmetric colour scale.

    states: {label: state dict}. name: a kernel (out, in, h, w), averaged over its inputs, or a matrix (out, c * h * w)
    whose rows are images; image_shape: their (h, w). At most 10 filters, the strongest (norm) of the first state.
    Raises ValueError for a tensor that is not there or does not have that shape.
    """
    images = {label: _images(state, name, image_shape, label) for label, state in states.items()}
    first = next(iter(images.values()))
    order = np.argsort(-np.linalg.norm(first.reshape(len(first), -1), axis=1), kind="stable")[:10]
    limit = max(np.abs(part[order]).max() for part in images.values())
    figure = Figure(figsize=(7, 0.6 + 0.57 * len(images)))
    grid = figure.subplots(len(images), len(order), squeeze=False)
    for row, (label, part) in zip(grid, images.items(), strict=True):
        for axes, unit in zip(row, order, strict=True):
            drawn = axes.imshow(part[unit], cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axes, unit in zip(grid[0], order, strict=True):
        axes.set_title(f"{unit}", loc="center", fontsize=8, pad=3)
    figure.colorbar(drawn, ax=grid, label="weight", fraction=0.03, pad=0.01)
    figure.suptitle(f"{name}: {len(order)} of {len(first)} filters, strongest first", x=0.01, ha="left")
    return figure


def _images(state: Mapping, name: str, image_shape: tuple[int, int] | None, label: str) -> np.ndarray:
    """(out, h, w) averaged over inputs or channels."""
    if name not in state:
        raise ValueError(f"state {label!r} has no tensor {name!r}; it has {', '.join(state) or 'none'}")
    tensor = state[name].detach().cpu().numpy()
    if tensor.ndim == 4:
        return tensor.mean(1)
    if tensor.ndim != 2 or image_shape is None or tensor.shape[1] % math.prod(image_shape):
        raise ValueError(
            f"{name} has shape {tensor.shape} and image_shape={image_shape}: expected a kernel (out, in, h, w), "
            "or a matrix (out, c * h * w) with image_shape=(h, w)"
        )
    return tensor.reshape(len(tensor), -1, *image_shape).mean(1)


@styled
def front(
    groups: Mapping[str, Sequence],
    reference: tuple[str, float],
    split: str,
    published: Mapping[str, tuple[float, float]] | None = None,
    joined: bool = False,
) -> Figure:
    """Error against the file's ratio: {label: [(ratio, error in %), ...]}, a colour a label; lower right is better.

    reference: (label, error in %) of the network that nothing was taken from, drawn as a line. split: whose error.
    published: {label: (ratio, error)} from the literature, hollow and named, for those ratios are counts and not files.
    joined: the points of a group are one sweep, in order.
    """
    published = published or {}
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    colours = cycle(entry["color"] for entry in matplotlib.rcParams["axes.prop_cycle"])
    for (label, points), colour, marker in zip(groups.items(), colours, cycle("os^DvP"), strict=False):
        ratios, errors = zip(*points, strict=True)
        look = {"marker": marker, "ms": 7, "mec": "white", "alpha": 0.8, "lw": 1, "ls": "-" if joined else ""}
        axes.plot(ratios, errors, label=label, color=colour, **look)
    axes.axhline(reference[1], color=INK, lw=1, ls="--", label=f"{reference[0]} (ratio 1)")
    for label, (ratio, error) in published.items():
        axes.plot(ratio, error, "o", ms=6, mfc="none", mec=INK)
        axes.annotate(label, (ratio, error), (5, 4), textcoords="offset points", fontsize=8, color=INK)
    if published:
        axes.plot([], [], "o", ms=6, mfc="none", mec=INK, label="published (counted, no file)")
    axes.set(xlabel="compression ratio (float32 bytes of all parameters over the file's)", ylabel=f"{split} error (%)")
    ratios = [ratio for points in groups.values() for ratio, _ in points] + [ratio for ratio, _ in published.values()]
    axes.set_xlim(0, 1.1 * max(ratios))
    axes.margins(y=0.15)
    figure.legend(loc="outside right center")
    return figure


BYTES = {  # of a compressed network: colour
    "ids of the weights": "#56B4E9",
    "codebooks, biases and all else": "#E69F00",
    "header": "#CC79A7",
}


@styled
def file_sizes(sizes: Mapping[str, Mapping[str, float]]) -> Figure:
    """One network stored in several ways, a bar each: {way: {part: bytes}}, the parts being those of BYTES."""
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(sizes)))
    axes = figure.subplots()
    start = np.zeros(len(sizes))
    for part, colour in BYTES.items():
        widths = np.array([parts.get(part, 0) for parts in sizes.values()])
        axes.barh(list(sizes), widths, left=start, color=colour, label=part)
        start = start + widths
    for y, total in enumerate(start):
        axes.text(total, y, f" {total:,.0f}", va="center", fontsize=8, color=INK)
    axes.set(xlabel="bytes", xlim=(0, 1.12 * start.max()))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4)
    return figure

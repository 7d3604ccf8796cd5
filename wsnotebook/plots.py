"""A result in, a matplotlib Figure out. Every function returns a new Figure and touches no global state.

One colour code everywhere: the spike at zero is blue, the other components are vermillion, the weights are grey.
The pictures are those of Ullrich, Meeds and Welling 2017, figures 1 to 4, read epoch by epoch.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image
from scipy.special import ndtr
from tqdm.auto import tqdm

from wsnotebook.datasets import replacing

STYLE = Path(__file__).with_name("style.mplstyle")
SPIKE, OTHER, WEIGHTS, INK = "#0072B2", "#D55E00", "#A6A6A6", "#333333"
DASHES = (0, (4, 3))
SIGMA, PLUS_MINUS, ARROW = "\N{GREEK SMALL LETTER SIGMA}", "\N{PLUS-MINUS SIGN}", "\N{RIGHTWARDS ARROW}"
BINS = 119  # odd: one bin is centred on zero
GIF_FRAMES = 60  # more epochs than this are thinned
PARTS = {  # of a compressed tensor: label, colour
    "row": ("row pointers", "#56B4E9"),
    "column": ("column gaps", "#009E73"),
    "value": ("values", "#E69F00"),
    "codebook": ("codebook", "#CC79A7"),
}


def _styled(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with style.context(STYLE):
            return function(*args, **kwargs)

    return wrapped


# ---- the numbers behind a picture of the mixture -------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """What one epoch's picture shows, for one tensor or all: the numbers that figures, GIF and explorer share.

    Curves are expected numbers of weights in a bin of this width centred at the grid's points: the mixture's density
    averaged over the bin, times the number of weights. So they lie on the bars' scale however narrow a component gets.
    """

    epoch: int
    before: np.ndarray  # (m,) the followed weights at epoch 0
    after: np.ndarray  # (m,) ... now
    share: np.ndarray  # (m,) how many of the network's weights each of them stands for
    limit: float  # all weights of all epochs lie within +-limit
    edges: np.ndarray  # (BINS + 1,) the same at every epoch
    counts: np.ndarray  # (BINS,) weights in each bin; sums to the number of weights
    grid: np.ndarray  # (g,) dense where a component is
    components: np.ndarray  # (J, g) expected counts; component 0 is the spike
    means: np.ndarray  # (J,)
    sigmas: np.ndarray  # (J,)
    pis: np.ndarray  # (J,)

    @property
    def width(self) -> float:
        """Of a bin, in units of the weights."""
        return self.edges[1] - self.edges[0]

    @property
    def floor(self) -> float:
        """Where a logarithmic axis of counts starts: below one weight, low enough to see components of 0.1 %."""
        return min(0.5, 1e-5 * self.share.sum())

    @property
    def spike_percent(self) -> float:
        """Share of the weights within two standard deviations of the spike, %."""
        return 100 * self.share[np.abs(self.after) <= 2 * self.sigmas[0]].sum() / self.share.sum()


def frame(result, epoch: int = -1, layer: str | None = None) -> Frame:
    """The numbers behind one epoch's picture of a soft weight-sharing result.

    epoch: 0 is before retraining, -1 the last. layer: name of a clustered tensor, None for all of them.
    Raises ValueError for an epoch or a layer that is not there.
    """
    rows = len(result.trace)
    if not -rows <= epoch < rows:
        raise ValueError(f"epoch={epoch}: the result has epochs 0 to {rows - 1} (or -1 for the last)")
    epoch %= rows
    chosen = _chosen(result, layer)
    trace = result.trace.numpy()[:, chosen].astype(float)
    share = _shares(result)[chosen]
    limit = 1.04 * np.abs(trace).max()
    edges = np.linspace(-limit, limit, BINS + 1)
    counts, _ = np.histogram(trace[epoch], edges, weights=share)
    means, sigmas, pis = _numbers(result.mixtures[epoch])
    width = edges[1] - edges[0]
    z = np.linspace(-5.5, 5.5, max(25, 600 // len(means)) | 1)
    grid = np.clip(np.unique(means[:, None] + (sigmas[:, None] + width / 11) * z), -limit, limit)
    components = share.sum() * _expected(means, sigmas, pis, grid, width)
    return Frame(epoch, trace[0], trace[epoch], share, limit, edges, counts, grid, components, means, sigmas, pis)


def top(result, layer: str | None = None) -> float:
    """The tallest bar or curve over all epochs: a counts axis that ends here suits every epoch."""
    chosen = _chosen(result, layer)
    trace, share = result.trace.numpy()[:, chosen].astype(float), _shares(result)[chosen]
    limit = 1.04 * np.abs(trace).max()
    width = 2 * limit / BINS
    bins = np.minimum(((trace + limit) / width).astype(int), BINS - 1) + BINS * np.arange(len(trace))[:, None]
    tallest = np.bincount(bins.ravel(), np.tile(share, len(trace))).max()
    for mixture in result.mixtures:
        means, sigmas, pis = _numbers(mixture)
        tallest = max(tallest, share.sum() * _expected(means, sigmas, pis, means, width).sum(0).max())
    return tallest


def _chosen(result, layer: str | None) -> np.ndarray:
    """(m,) which followed weights belong to the layer."""
    names = result.layout.names
    if layer is not None and layer not in names:
        raise ValueError(f"layer={layer!r}: the clustered tensors are {', '.join(names)} (or None for all)")
    index = result.sample_layer.numpy()
    return np.full(len(index), True) if layer is None else index == names.index(layer)


def _shares(result) -> np.ndarray:
    """(m,) how many of the network's weights each followed one stands for."""
    index = result.sample_layer.numpy()
    return (np.array(result.layout.sizes) / np.bincount(index))[index]


def _numbers(mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """means, sigmas, pis, (J,) each."""
    return tuple(part.detach().cpu().double().numpy() for part in (mixture.means, mixture.sigmas, mixture.pis))


def _expected(means, sigmas, pis, x, width) -> np.ndarray:
    """(J, g) probability that a weight comes from component j and falls in a bin of this width centred at x (g,)."""
    above, below = ((x + side * width / 2 - means[:, None]) / sigmas[:, None] for side in (1, -1))
    return pis[:, None] * (ndtr(above) - ndtr(below))


# ---- soft weight-sharing -------------------------------------------------------------------------------------------


@_styled
def mixture_dynamics(result) -> Figure:
    """Every component's mean (line) and two standard deviations (band) over the epochs; strong is a large proportion.

    The ticks on the right are the merged means that quantised weights take.
    """
    epochs = np.array(result.history["epoch"])
    means, sigmas, pis = (np.stack(part) for part in zip(*map(_numbers, result.mixtures), strict=True))  # (epochs, J)
    limit = 1.04 * float(result.trace.abs().max())
    figure = Figure(figsize=(7, 3.6))
    axes = figure.add_subplot(xlabel="epoch", ylabel="weight value", ylim=(-limit, limit))
    axes.set_xlim(epochs[0], max(epochs[-1], 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    strength = _strength(pis)
    for j in reversed(range(means.shape[1])):
        colour, mean, reach = (OTHER if j else SPIKE), means[:, j], 2 * sigmas[:, j]
        opacity = 0.04 + 0.14 * strength[:, j].mean() if j else 0.4
        axes.fill_between(epochs, mean - reach, mean + reach, color=colour, alpha=opacity, lw=0)
        points = np.column_stack([epochs, mean])
        segments = np.stack([points[:-1], points[1:]], axis=1)
        shades = [_pale(colour, 0.45 + 0.55 * strong) for strong in strength[1:, j]]
        axes.add_collection(
            LineCollection(segments, colors=shades, linewidths=0.6 + 1.6 * strength[1:, j], capstyle="round")
        )
    merged = _numbers(result.mixture)[0]
    for mean in merged:
        place = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        axes.plot([1.01, 1.03], [mean, mean], color=OTHER if mean else SPIKE, lw=2, **place)
    note = f"{len(merged)} values after merging"
    axes.text(1.045, 0.5, note, rotation=270, va="center", transform=axes.transAxes, fontsize=8, color=INK)
    axes.set_title(f"The components settle: spike {SIGMA} {sigmas[0, 0]:.3g} {ARROW} {sigmas[-1, 0]:.3g}")
    figure.legend(handles=_key(lines=True, bands=True), loc="outside lower center", ncols=4)
    return figure


@_styled
def before_after(result, epoch: int = -1, layer: str | None = None) -> Figure:
    """Each followed weight at epoch 0 (across) against its value now (up), over the components' bands of two sigma."""
    f = frame(result, epoch, layer)
    figure = Figure(figsize=(6.2, 3.9), layout="compressed")
    _scatter(figure.add_subplot(), f)
    figure.suptitle(_heading(result, f, layer), x=0.01, ha="left")
    figure.legend(handles=_key(f, points=True, bands=True), loc="outside right center")
    return figure


@_styled
def histogram(result, epoch: int = -1, layer: str | None = None) -> Figure:
    """The weights' histogram with the mixture and its components, on a linear and a logarithmic scale."""
    f = frame(result, epoch, layer)
    figure = Figure(figsize=(7, 3.4))
    for log, axes in enumerate(figure.subplots(1, 2)):
        _bars(axes, f)
        _counts_axes(axes, f, bool(log), top(result, layer))
    figure.suptitle(_heading(result, f, layer), x=0.01, ha="left")
    figure.legend(handles=_key(f, bars=True, lines=True), loc="outside lower center", ncols=4)
    return figure


@_styled
def mixture_frame(result, epoch: int = -1, layer: str | None = None, log: bool = True) -> Figure:
    """One epoch in one picture: histogram with mixture (left), weights before and now (right). The explorer's twin."""
    f = frame(result, epoch, layer)
    figure = Figure(figsize=(7, 3.7))
    left, right = figure.subplots(1, 2)
    _bars(left, f)
    _counts_axes(left, f, log, top(result, layer))
    _scatter(right, f)
    figure.suptitle(_heading(result, f, layer), x=0.01, ha="left")
    figure.legend(handles=_key(f, bars=True, lines=True, bands=True), loc="outside lower center", ncols=4)
    return figure


@_styled
def animate(result, path: str | Path, fps: float = 5) -> Path:
    """Write the frames of `mixture_frame` over the epochs as a GIF (at most 60, evenly thinned) and return its path.

    Axes stay the same, the last frame stays two seconds. Raises OSError when the path cannot be written.
    """
    last = len(result.trace) - 1
    epochs = np.unique(np.linspace(0, last, min(last + 1, GIF_FRAMES)).round().astype(int))
    figure, frames = mixture_frame(result), []
    figure.set_dpi(110)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the last epoch's layout for all
    left, right = figure.axes
    with replacing(path) as part:
        for epoch in tqdm(epochs, desc="GIF", unit="frame", leave=False):
            f = frame(result, int(epoch))
            for axes in figure.axes:  # keep the axes, ticks and layout: they are the same, and cost most of the time
                for artist in [*axes.lines, *axes.patches, *axes.collections]:
                    artist.remove()
            _bars(left, f)
            _scatter(right, f)
            figure.texts[0].set_text(_heading(result, f))
            frames.append(_pixels(figure))
        plain = {"dither": Image.Dither.NONE}
        palette = frames[-1].quantize(64, method=Image.Quantize.MAXCOVERAGE, **plain)  # keeps white white
        frames = [image.quantize(palette=palette, **plain) for image in frames]
        times = [round(1000 / fps)] * (len(frames) - 1) + [2000]
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return Path(path)


def _heading(result, f: Frame, layer: str | None = None) -> str:
    error = result.history["validation_error"][f.epoch]
    where = f"{layer}, epoch" if layer else "Epoch"
    return (
        f"{where} {f.epoch} of {result.config.epochs}: validation error {error:.2f} %, spike {SIGMA} {f.sigmas[0]:.3g}"
    )


def _bars(axes, f: Frame) -> None:
    axes.stairs(f.counts, f.edges, fill=True, color=WEIGHTS, label="weights")
    axes.plot(f.grid, f.components.sum(0), color=INK, lw=1.1, label="mixture")
    for j in reversed(range(len(f.means))):
        axes.plot(f.grid, f.components[j], color=OTHER if j else SPIKE, lw=1.2, label=f"component {j}")


def _counts_axes(axes, f: Frame, log: bool, highest: float) -> None:
    axes.set(xlabel="weight value", ylabel=f"weights in a bin of {f.width:.2g}", xlim=(-f.limit, f.limit))
    axes.set(yscale="log", ylim=(f.floor, 2 * highest)) if log else axes.set(ylim=(0, 1.05 * highest))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,.10g}")


def _scatter(axes, f: Frame) -> None:
    strength = _strength(f.pis)
    for j in [*(np.argsort(strength[1:], kind="stable") + 1), 0]:  # the strong over the weak, the spike over all
        low, high = f.means[j] - 2 * f.sigmas[j], f.means[j] + 2 * f.sigmas[j]
        shade = _pale(OTHER, 0.12 + 0.3 * strength[j]) if j else _pale(SPIKE, 0.4)
        axes.axhspan(low, high, color=shade, lw=0, label=f"band {j}")
        axes.axhline(f.means[j], color=OTHER if j else SPIKE, lw=0.6, alpha=0.3 + 0.7 * strength[j], label=f"mean {j}")
    span = (-f.limit, f.limit)
    axes.plot(span, span, color=INK, lw=0.8, ls=DASHES, label="unchanged")
    axes.scatter(f.before, f.after, s=3, color=INK, alpha=0.35, lw=0, rasterized=True, label="weights")
    axes.set(xlabel="weight at epoch 0", ylabel=f"weight at epoch {f.epoch}", xlim=span, ylim=span, aspect="equal")


def _strength(pis: np.ndarray) -> np.ndarray:
    """(..., J) in [0, 1]: 1 for the spike, the others by the square root of their proportion against the largest."""
    strength = np.sqrt(pis / pis[..., 1:].max())
    strength[..., 0] = 1
    return strength


def _pale(colour: str, opacity: float) -> np.ndarray:
    """The colour as it looks on white at this opacity, but opaque: what overlaps does not add up."""
    return 1 - opacity * (1 - np.array(to_rgb(colour)))


def _key(f: Frame | None = None, bars=False, points=False, lines=False, bands=False) -> list:
    """Legend entries for what is drawn. They stand outside the axes, so they never cover data."""
    followed = f" ({len(f.after):,} of {round(f.share.sum()):,})" if f and len(f.after) < round(f.share.sum()) else ""
    band = f" ({PLUS_MINUS}2{SIGMA})" if bands else ""
    key = [Patch(color=WEIGHTS, label=f"weights{followed}")] if bars else []
    if points:
        key.append(Line2D([], [], marker="o", ls="", ms=3, color=INK, label=f"weights{followed}"))
        key.append(Line2D([], [], color=INK, lw=0.8, ls=DASHES, label="unchanged"))
    if lines and bars:
        key.append(Line2D([], [], color=INK, lw=1.1, label="mixture"))
    for colour, label in ((SPIKE, "spike at zero"), (OTHER, "other components")):
        key.append(
            Line2D([], [], color=colour, label=label + band)
            if lines
            else Patch(color=_pale(colour, 0.4), label=label + band)
        )
    return key


def _pixels(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# ---- any network ---------------------------------------------------------------------------------------------------


@_styled
def training_curves(runs: Mapping) -> Figure:
    """Loss and validation error over the epochs.

    runs: one history, which also shows the validation loss; or {label: history, or list of histories (seeds)}, one
    colour a label. Raises ValueError when there is no history.
    """
    if not runs:
        raise ValueError("runs is empty: pass a history (result.history) or {label: history}")
    if "epoch" in runs:
        curves = {"training": [(runs["epoch"], runs["loss"])], "validation": [(runs["epoch"], runs["validation_loss"])]}
        errors = {"": [(runs["epoch"], runs["validation_error"])]}
    else:
        groups = {label: [part] if isinstance(part, Mapping) else part for label, part in runs.items()}
        curves = {label: [(h["epoch"], h["loss"]) for h in part] for label, part in groups.items()}
        errors = {label: [(h["epoch"], h["validation_error"]) for h in part] for label, part in groups.items()}
    figure = Figure(figsize=(7, 2.9))
    left, right = figure.subplots(1, 2)
    _curves(left, curves, "Loss", "loss (nats)" if "epoch" in runs else "training loss (nats)")
    _curves(right, errors, "Validation error", "validation error (%)")
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


@_styled
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


@_styled
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


@_styled
def front(groups: Mapping[str, Sequence], reference: tuple[str, float], split: str) -> Figure:
    """Error against compression ratio: {label: [(ratio, error in %), ...]}, a colour a label; lower right is better.

    reference: (label, error in %) of the network that nothing was taken from, drawn as a line. split: whose error.
    """
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    colours = cycle(entry["color"] for entry in matplotlib.rcParams["axes.prop_cycle"])
    for (label, points), colour, marker in zip(groups.items(), colours, cycle("os^DvP"), strict=False):
        ratios, errors = zip(*points, strict=True)
        axes.plot(ratios, errors, marker, ms=7, alpha=0.8, mec="white", label=label, color=colour)
    axes.axhline(reference[1], color=INK, lw=1, ls="--", label=f"{reference[0]} (ratio 1)")
    axes.set(xlabel="compression ratio (32-bit weights over the paper's count)", ylabel=f"{split} error (%)")
    axes.set_xlim(0, 1.1 * max(ratio for points in groups.values() for ratio, _ in points))
    axes.margins(y=0.15)
    figure.legend(loc="outside right center")
    return figure

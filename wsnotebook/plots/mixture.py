"""The pictures of soft weight-sharing, and the numbers behind them: those of Ullrich et al. 2017, epoch by epoch.

Figures, GIF and explorer share one `Frame` an epoch. The spike at zero is blue, the other components are vermillion.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image
from scipy.special import ndtr
from tqdm.auto import tqdm

from wsnotebook.datasets import replacing
from wsnotebook.plots.common import ARROW, INK, OTHER, PLUS_MINUS, SIGMA, SPIKE, WEIGHTS, styled

DASHES = (0, (4, 3))
BINS = 119  # odd: one bin is centred on zero
GIF_FRAMES = 60  # more epochs than this are thinned


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
    trace = result.trace.cpu().numpy()[:, chosen].astype(float)
    share = _shares(result)[chosen]
    limit = 1.04 * np.abs(trace).max()
    edges = np.linspace(-limit, limit, BINS + 1)
    counts, _ = np.histogram(trace[epoch], edges, weights=share)
    means, sigmas, pis = _numbers(_mixtures(result, layer)[epoch])
    width = edges[1] - edges[0]
    z = np.linspace(-5.5, 5.5, max(25, 600 // len(means)) | 1)
    grid = np.clip(np.unique(means[:, None] + (sigmas[:, None] + width / 11) * z), -limit, limit)
    components = share.sum() * _expected(means, sigmas, pis, grid, width)
    return Frame(epoch, trace[0], trace[epoch], share, limit, edges, counts, grid, components, means, sigmas, pis)


def top(result, layer: str | None = None) -> float:
    """The tallest bar or curve over all epochs: a counts axis that ends here suits every epoch."""
    chosen = _chosen(result, layer)
    trace, share = result.trace.cpu().numpy()[:, chosen].astype(float), _shares(result)[chosen]
    limit = 1.04 * np.abs(trace).max()
    width = 2 * limit / BINS
    bins = np.minimum(((trace + limit) / width).astype(int), BINS - 1) + BINS * np.arange(len(trace))[:, None]
    tallest = np.bincount(bins.ravel(), np.tile(share, len(trace))).max()
    for mixture in _mixtures(result, layer):
        means, sigmas, pis = _numbers(mixture)
        tallest = max(tallest, share.sum() * _expected(means, sigmas, pis, means, width).sum(0).max())
    return tallest


def _chosen(result, layer: str | None) -> np.ndarray:
    """(m,) which followed weights belong to the layer."""
    names = result.layout.names
    if layer is not None and layer not in names:
        raise ValueError(f"layer={layer!r}: the clustered tensors are {', '.join(names)} (or None for all)")
    index = result.sample_layer.cpu().numpy()
    return np.full(len(index), True) if layer is None else index == names.index(layer)


def _mixtures(result, layer: str | None) -> tuple:
    """The mixtures by epoch that a layer's weights come from: its own, or the one of all."""
    return result.layer_mixtures.get(layer, result.mixtures)


def _shares(result) -> np.ndarray:
    """(m,) how many of the network's weights each followed one stands for."""
    index = result.sample_layer.cpu().numpy()
    return (np.array(result.layout.sizes) / np.bincount(index))[index]


def _numbers(mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """means, sigmas, pis, (J,) each."""
    return tuple(part.detach().cpu().double().numpy() for part in (mixture.means, mixture.sigmas, mixture.pis))


def _expected(means, sigmas, pis, x, width) -> np.ndarray:
    """(J, g) probability that a weight comes from component j and falls in a bin of this width centred at x (g,)."""
    above, below = ((x + side * width / 2 - means[:, None]) / sigmas[:, None] for side in (1, -1))
    return pis[:, None] * (ndtr(above) - ndtr(below))


# ---- soft weight-sharing -------------------------------------------------------------------------------------------


@styled
def mixture_dynamics(result, layer: str | None = None) -> Figure:
    """Every component's mean (line) and two standard deviations (band) over the epochs; strong is a large proportion.

    The ticks on the right are the merged means that quantised weights take. layer: whose mixture, when each tensor has
    its own; None: the one of all.
    """
    _chosen(result, layer)
    mixtures, epochs = _mixtures(result, layer), np.array(result.history["epoch"])
    means, sigmas, pis = (np.stack(part) for part in zip(*map(_numbers, mixtures), strict=True))  # (epochs, J)
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
    merged = _numbers(mixtures[-1].merged(result.config.merge))[0]
    for mean in merged:
        place = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        axes.plot([1.01, 1.03], [mean, mean], color=OTHER if mean else SPIKE, lw=2, **place)
    note = f"{len(merged)} values after merging"
    axes.text(1.045, 0.5, note, rotation=270, va="center", transform=axes.transAxes, fontsize=8, color=INK)
    axes.set_title(f"The components settle: spike {SIGMA} {sigmas[0, 0]:.3g} {ARROW} {sigmas[-1, 0]:.3g}")
    figure.legend(handles=key_of(lines=True, bands=True), loc="outside lower center", ncols=4)
    return figure


@styled
def before_after(result, epoch: int = -1, layer: str | None = None) -> Figure:
    """Each followed weight at epoch 0 (across) against its value now (up), over the components' bands of two sigma."""
    f = frame(result, epoch, layer)
    figure = Figure(figsize=(6.2, 3.9), layout="compressed")
    _scatter(figure.add_subplot(), f)
    figure.suptitle(_heading(result, f, layer), x=0.01, ha="left")
    figure.legend(handles=key_of(f, points=True, bands=True), loc="outside right center")
    return figure


@styled
def histogram(result, epoch: int = -1, layer: str | None = None) -> Figure:
    """The weights' histogram with the mixture and its components, on a linear and a logarithmic scale."""
    f = frame(result, epoch, layer)
    figure = Figure(figsize=(7, 3.4))
    for log, axes in enumerate(figure.subplots(1, 2)):
        bars(axes, f)
        counts_axes(axes, f, bool(log), top(result, layer))
    figure.suptitle(_heading(result, f, layer), x=0.01, ha="left")
    figure.legend(handles=key_of(f, bars=True, lines=True), loc="outside lower center", ncols=4)
    return figure


@styled
def mixture_frame(result, epoch: int = -1, layer: str | None = None, log: bool = True) -> Figure:
    """One epoch in one picture: histogram with mixture (left), weights before and now (right). The explorer's twin."""
    f = frame(result, epoch, layer)
    figure = Figure(figsize=(7, 3.7))
    left, right = figure.subplots(1, 2)
    bars(left, f)
    counts_axes(left, f, log, top(result, layer))
    _scatter(right, f)
    figure.suptitle(_heading(result, f, layer), x=0.01, ha="left")
    figure.legend(handles=key_of(f, bars=True, lines=True, bands=True), loc="outside lower center", ncols=4)
    return figure


@styled
def animate(result, path: str | Path, fps: float = 5) -> Path:
    """Write the frames of `mixture_frame` over the epochs as a GIF (at most 60, evenly thinned) and return its path.

    Axes stay the same, the last frame stays two seconds. Raises OSError when the path cannot be written.
    """
    last = len(result.trace) - 1
    epochs = np.unique(np.linspace(0, last, min(last + 1, GIF_FRAMES)).round().astype(int))
    figure, frames = mixture_frame(result), []
    canvas = FigureCanvasAgg(figure)  # one for all frames: it remembers the sizes of their texts
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
            bars(left, f)
            _scatter(right, f)
            figure.texts[0].set_text(_heading(result, f))
            canvas.draw()
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
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


def bars(axes, f: Frame) -> None:
    axes.stairs(f.counts, f.edges, fill=True, color=WEIGHTS, label="weights")
    axes.plot(f.grid, f.components.sum(0), color=INK, lw=1.1, label="mixture")
    for j in reversed(range(len(f.means))):
        axes.plot(f.grid, f.components[j], color=OTHER if j else SPIKE, lw=1.2, label=f"component {j}")


def counts_axes(axes, f: Frame, log: bool, highest: float) -> None:
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


def key_of(f: Frame | None = None, bars=False, points=False, lines=False, bands=False) -> list:
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

"""The pictures of compressed networks side by side: files against errors, and what is in one file."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.markers import CARETUP
from matplotlib.ticker import NullFormatter

from wsnotebook.evaluation import interval
from wsnotebook.layout import Layout
from wsnotebook.plots import mixture
from wsnotebook.plots.common import INK, OTHER, WEIGHTS, styled
from wsnotebook.plots.methods import style
from wsnotebook.plots.superweights import TINTS, Map, grouped, ordered

THEN = ", then "  # in a method's name: another method's work goes on; drawn hollow
DOUBTFUL = 8.0  # points above the trained network's error where an axis of errors ends


class Weights(NamedTuple):
    """The weights in a file: their histogram, and what they were drawn to."""

    edges: np.ndarray  # (bins + 1,)
    counts: np.ndarray  # (bins,) weights
    grid: np.ndarray  # (g,) where the mixture is known; empty without one
    mixture: np.ndarray  # (g,) expected counts
    centres: np.ndarray  # (k,) different values of all codebooks; empty without codebooks


def weights(entry) -> Weights:
    """Of a `comparisons.compression.Entry`: with soft weight-sharing the retrained weights, else those in its file."""
    shown, none = entry.shown, np.empty(0)
    if hasattr(shown, "mixtures"):
        f = mixture.frame(shown)
        centres = np.unique(np.concatenate([b.cpu().numpy() for b in shown.compressed.clustered.codebooks.values()]))
        return Weights(f.edges, f.counts, f.grid, f.components.sum(0), centres)
    layout = Layout.of(entry.model, kinds=("weight",))
    values = layout.flatten(entry.model.state_dict()).detach().cpu().numpy().astype(float)
    limit = 1.04 * max(float(np.abs(values).max()), 1e-6)
    edges = np.linspace(-limit, limit, mixture.BINS + 1)
    books = shown.clustered.codebooks.values() if hasattr(shown, "clustered") else []
    centres = np.unique(np.concatenate([b.cpu().numpy() for b in books])) if books else none
    return Weights(edges, np.histogram(values, edges)[0], none, none, centres)


def sharing(entry) -> Map | None:
    """Which layers of a bank share; None for an entry that is of no bank."""
    plan = getattr(entry.shown, "plan", None)
    return grouped(ordered(entry.shown.members, plan.clusters), plan.clusters) if plan else None


def top(entries: Sequence) -> float:
    """Where an axis of test errors (%) ends: at all of them, or `DOUBTFUL` points above the trained network's."""
    own = min(e.test.error for e in entries if e.method == "as trained")
    return own + 1.08 * (min(max(e.test.error for e in entries), own + DOUBTFUL) - own)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (bytes, error) that no other is better than in one and as good in the other, smallest file first."""
    best, lowest = [], np.inf
    for size, error in sorted(points):
        if error < lowest:
            best.append((size, error))
            lowest = error
    return best


@styled
def compression_fronts(panels: Mapping[str, tuple[Sequence, Mapping]], allowance: float) -> Figure:
    """Test error against the file's bytes, a panel a network; lower left is better.

    panels: {network: (all entries of the first seed, {method: the chosen setting's entries, one a seed})}. Faint: every
    setting tried; strong: chosen on validation rows within `allowance` points, bars being 95 % intervals over seeds.
    Hollow: soft weight-sharing of what the method made. Carets at the upper edge: errors beyond the axis, in words what
    was chosen.
    """
    figure = Figure(figsize=(3.6 * len(panels), 4.1))
    labels = {}
    for axes, (name, (entries, chosen)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        limit = top(entries)
        for e in entries:
            colour, marker = style(e.method)
            faint = {"color": colour, "alpha": 0.3, "ms": 4, "mec": "none", "ls": "", "clip_on": False}
            beyond = {"marker": CARETUP, "mec": colour} if e.test.error > limit else {"marker": marker}
            axes.plot(e.bytes, min(e.test.error, limit), **faint | beyond)
        means, far = [], []
        for method, own in chosen.items():
            colour, marker = style(method)
            size, (error, half) = np.mean([e.bytes for e in own]), interval([e.test.error for e in own])
            means.append((size, error))
            inside = error < limit
            look = {
                "color": colour,
                "ms": 8,
                "mec": colour if THEN in method or marker == "*" else "white",
                "ls": "",
                "clip_on": False,
            }
            look |= {"mfc": "white" if THEN in method else colour, "zorder": 4}
            if inside and half > 0:
                axes.errorbar(size, error, half, color=colour, lw=1.2, capsize=2, zorder=3)
            labels[method] = axes.plot(size, min(error, limit), marker, label=method, **look)[0]
            if error > limit:
                far.append((size, f"{error:.0f} %", colour))
        k, last = 0, 0.0
        for size, text, colour in sorted(far):
            k, last = k + 1 if size < 2 * last else 0, size  # a line lower than a close one
            below = {"xytext": (7, -3 - 9 * k), "textcoords": "offset points", "va": "top", "fontsize": 7}
            axes.annotate(f"↑ {text}", (size, limit), color=colour, **below)
        steps = [point for point in front(means) if point[1] < limit]
        axes.step([size for size, _ in steps], [error for _, error in steps], where="post", color=INK, lw=0.8, zorder=1)
        own = [e.test.error for e in chosen["as trained"]]
        axes.axhline(np.mean(own), color=INK, lw=0.8, ls="--", zorder=0)
        axes.set(xscale="log", xlabel="bytes of the file")
        axes.set_ylim(None, limit)
        axes.margins(x=0.08)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{name}\n{verdict(chosen, allowance)}", loc="left", fontsize=8)
    figure.axes[0].set_ylabel("test error (%)")
    figure.legend(handles=list(labels.values()), loc="outside lower center", ncols=4, fontsize=7)
    return figure


def verdict(chosen: Mapping, allowance: float) -> str:
    """Which method's file is the smallest of those that validation rows allow, and how much smaller than float32."""
    bound = max(e.validation.error for e in chosen["as trained"]) + allowance
    able = {m: own for m, own in chosen.items() if own[0].validation.error <= bound}
    best = min(able, key=lambda method: able[method][0].bytes)
    whole = 4 * sum(p.numel() for p in chosen["as trained"][0].model.parameters())
    ratio = whole / np.mean([e.bytes for e in able[best]])
    return f"within {allowance:g} points: {best}, {ratio:.0f} times smaller"


@styled
def compression_frame(entries: Sequence, chosen) -> Figure:
    """All entries of a network with one ringed (left), and the weights in its file, or who shares in it (right)."""
    figure = Figure(figsize=(7.4, 3.8))
    left, right = figure.subplots(1, 2)
    limit, labels = top(entries), {}
    for e in entries:
        colour, marker = style(e.method)
        look = {
            "color": colour,
            "mec": colour if THEN in e.method or marker == "*" else "white",
            "ls": "",
            "clip_on": False,
        }
        look |= {"mfc": "white" if THEN in e.method else colour}
        labels[e.method] = left.plot(e.bytes, min(e.test.error, limit), marker, ms=7, label=e.method, **look)[0]
    ring = {"mfc": "none", "mec": INK, "mew": 1.5, "clip_on": False, "ls": ""}
    left.plot(chosen.bytes, min(chosen.test.error, limit), "o", ms=14, **ring)
    left.set(xscale="log", xlabel="bytes of the file", ylabel="test error (%)")
    left.margins(x=0.08)
    drawn = sharing(chosen)
    if drawn:
        _layers(right, drawn)
    else:
        _histogram(right, weights(chosen))
    figure.suptitle(heading(chosen), x=0.01, ha="left", fontsize=9)
    figure.legend(handles=list(labels.values()), loc="outside lower center", ncols=4, fontsize=7)
    return figure


def heading(e) -> str:
    """One line of what an entry is."""
    return f"{e.method} ({e.setting}): {e.bytes:,} bytes, test error {e.test.error:.2f} %"


def _histogram(axes, drawn: Weights) -> None:
    keys = [axes.stairs(drawn.counts, drawn.edges, fill=True, color=WEIGHTS, label="weights")]
    if len(drawn.grid):
        keys += axes.plot(drawn.grid, drawn.mixture, color=INK, lw=1.1, label="mixture")
    for centre in drawn.centres:
        tick = axes.axvline(centre, 0, 0.05, color=OTHER, lw=1, label="values of codebooks")
    keys += [tick] if len(drawn.centres) else []
    axes.legend(handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=7)
    axes.set(yscale="log", ylim=(0.5, 2 * drawn.counts.max()), xlabel="weight value", ylabel="weights in a bin")


def _layers(axes, drawn: Map) -> None:
    """A row a member, a column a layer; colours and numbers are clusters, and layers of one may share."""
    rgb = np.stack([drawn.grid(np.array(TINTS)[drawn.tint, channel]) for channel in range(3)], -1)
    axes.imshow(np.nan_to_num(rgb, nan=1.0), aspect="auto")
    for layer, column, cluster in zip(drawn.layers, drawn.column, drawn.cluster, strict=True):
        box = {"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1}
        axes.text(column, layer.member, cluster, ha="center", va="center", fontsize=8, color=INK, bbox=box)
    axes.set_yticks(range(drawn.shape[0]), [f"member {m}" for m in range(drawn.shape[0])])
    axes.set(xlabel="layer that shares, in order; numbers: clusters", xticks=[])
    axes.spines[:].set_visible(False)

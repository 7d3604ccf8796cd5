"""Pictures of latents: how a network becomes rows, tokens and latents; what a walk among latents decodes to; samples.

The pictures of a walk are made of the numbers in `Walk`; `explorers.latent` computes them.
"""

from collections.abc import Mapping
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.methods.tokens import Tokens
from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.flow import CHOSEN, COLOURS, LANDMARK, filter_strip
from wsnotebook.plots.zoo import PALETTE, Column

SIDES = 64, 256  # rows and columns of a layer that are drawn, at most
PADDING, PAINTS = "#e4e4e4", np.array([to_rgb(colour) for colour in PALETTE[:-2]])  # of layers, in turn
NAMED = 16  # layers in the legend, and tokens whose positions are named, at most
PAINTED = 0.55  # of the colour map: darker, and the numbers on it could not be read
NUMBERED = 12  # classes, at most, whose confusion matrix has numbers


# ---- the numbers behind the pictures -------------------------------------------------------------------------------


class Landmarks(NamedTuple):
    """The zoo's networks in the plane of the first two principal axes of their latents."""

    places: np.ndarray  # (n, 2)
    labels: tuple[str, str]  # of the axes
    fact: Column  # that colours them


class Walk(NamedTuple):
    """p places on a way through the latents, and the networks that they decode to."""

    direction: str
    unit: str  # of how far
    far: np.ndarray  # (p,) 0 at the start
    places: np.ndarray  # (p, 2) in the plane of the landmarks
    accuracy: np.ndarray  # (p,) %
    own: float  # accuracy of the start itself, before it was embedded
    predicted: np.ndarray  # (p,) the fact, by the probe
    confusion: np.ndarray  # (p, classes, classes) rows of each label (down) and prediction (across)
    distance: np.ndarray  # (p,) to the nearest network of the zoo, in weight space
    nearest: np.ndarray  # (p,) the row of that


def limits(walk: Walk, landmarks: Landmarks) -> tuple[np.ndarray, np.ndarray]:
    """Ends (2,), (2,) of the plane's axes that suit every place of the walk."""
    every = np.concatenate([walk.places, landmarks.places])
    room = np.maximum(0.05 * np.ptp(every, axis=0), 1e-6)
    return every.min(0) - room, every.max(0) + room


def confusion_picture(counts: np.ndarray) -> Image.Image:
    """A confusion matrix (classes, classes), white where there is nothing."""
    image = Image.fromarray(np.ceil((COLOURS - 1) * counts / max(counts.max(), 1)).astype(np.uint8))
    image.putpalette(matplotlib.colormaps["Blues"](np.linspace(0, PAINTED, COLOURS), bytes=True)[:, :3].tobytes())
    return image


def weight_picture(weights: np.ndarray, limit: float) -> Image.Image:
    """A layer's matrix (out, in), blue below zero and red above; of a large one 64 rows and 256 columns, evenly."""
    rows, columns = (
        np.linspace(0, n - 1, min(n, most)).astype(int) for n, most in zip(weights.shape, SIDES, strict=True)
    )
    return filter_strip(weights[None, rows][..., columns], limit)


# ---- a place of a walk ---------------------------------------------------------------------------------------------


@styled
def latent_frame(walk: Walk, k: int, landmarks: Landmarks, images: Mapping[str, Image.Image]) -> Figure:
    """Place k of a walk: where it is in the latents, what its network is worth and confuses, and its weights.

    The static twin of the latent explorer. images: {caption: picture} of its weights, at most three.
    """
    figure = Figure(figsize=(7, 3 + 1.4 * bool(images)))
    grid = figure.add_gridspec(1 + bool(images), 3, width_ratios=(7, 5, 5), height_ratios=(5, 2)[: 1 + bool(images)])
    plane, curve, matrix = (figure.add_subplot(grid[0, column]) for column in range(3))
    dots = plane.scatter(*landmarks.places.T, c=landmarks.fact.values, s=9, linewidths=0, cmap="viridis")
    figure.colorbar(dots, ax=plane, label=landmarks.fact.label, location="top", aspect=40, pad=0.02)
    plane.plot(*walk.places.T, color=CHOSEN, lw=1.4)
    plane.plot(*walk.places[walk.far == 0].T, "o", mfc="white", mec=CHOSEN, ms=6)
    plane.plot(*walk.places[k], "o", color=CHOSEN, ms=8, mec=INK, zorder=5)
    low, high = limits(walk, landmarks)
    plane.set(xlabel=landmarks.labels[0], ylabel=landmarks.labels[1], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    curve.axhline(walk.own, color=LANDMARK, lw=1.2, ls=":", label="the start, not embedded")
    curve.plot(walk.far, walk.accuracy, color=CHOSEN, lw=1.8, label="decoded")
    curve.plot(walk.far[k], walk.accuracy[k], "o", color=CHOSEN, ms=8, mec=INK, zorder=5, clip_on=False)
    curve.set(xlabel=walk.unit, ylabel="accuracy (%)", xlim=walk.far[[0, -1]], ylim=(0, 102))
    curve.legend(loc="best")
    _confusion(matrix, walk.confusion[k])
    for column, (caption, image) in enumerate(images.items()):
        axes = figure.add_subplot(grid[1, column])
        axes.imshow(np.asarray(image.convert("RGB")), aspect="equal" if "filters" in caption else "auto")
        axes.set_title(caption, fontsize=8, pad=3)
        axes.set(xticks=[], yticks=[], anchor="N")
    at = f"{walk.direction}, {walk.far[k]:+.2g}: {walk.accuracy[k]:.1f} %"
    figure.suptitle(f"{at} (the start, decoded, {walk.accuracy[walk.far == 0][0]:.1f} %)", x=0.01, ha="left")
    return figure


def _confusion(axes, counts: np.ndarray) -> None:
    axes.imshow(np.asarray(confusion_picture(counts).convert("RGB")))
    if len(counts) <= NUMBERED:
        for label, prediction in np.argwhere(counts):
            axes.text(prediction, label, counts[label, prediction], ha="center", va="center", fontsize=6, color=INK)
        axes.set(xticks=range(len(counts)), yticks=range(len(counts)))
    axes.set(xlabel="predicted", ylabel="label")


# ---- how a network becomes latents (the seed's figure 1) -----------------------------------------------------------


@styled
def token_layout(of) -> Figure:
    """A network as rows of weights, as tokens with their positions, as latents, and as rows again.

    of: `Tokens`, or an embedder (`sane.Sane`, `LayerPCA`), of which a network is really embedded and decoded: then
    weights and latents are blue below zero and red above. Colours are layers, in tokens every other row is paler.
    """
    of, embedder = (of, None) if isinstance(of, Tokens) else (of.standardised.tokens, of)
    panels = _panels(of, embedder)
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots(1, len(panels), width_ratios=(4, 4, 2, 4)[: len(panels)])
    for ax, (title, (image, layers)) in zip(axes, panels.items(), strict=True):
        ax.imshow(image, aspect="auto", extent=(0, 1, len(image), 0))
        if layers is not None:
            stripe = PAINTS[layers % len(PAINTS)][:, None]
            ax.imshow(stripe, aspect="auto", extent=(-0.07, -0.03, len(image), 0))
        ax.set(title=title, xticks=[], yticks=[], xlim=(0 if layers is None else -0.07, 1))
        ax.spines[:].set_visible(False)
    _name_positions(axes[1], of)
    for ax, other, word in zip(axes, axes[1:], ("cut", "embed", "decode"), strict=False):
        ends = {"xyA": (0.6, -0.03), "xyB": (0.4, -0.03), "coordsA": ax.transAxes, "coordsB": other.transAxes}
        figure.add_artist(ConnectionPatch(**ends, arrowstyle="-|>", mutation_scale=8, lw=0.8, color=INK))
        ax.annotate(word, (1, -0.045), xycoords="axes fraction", ha="center", va="top", fontsize=8)
    names = [Patch(color=paint, label=name) for name, paint in zip(of.layers, cycle(PAINTS), strict=False)]
    if len(names) > NAMED:
        names[NAMED - 1 :] = [Patch(alpha=0, label=f"and {len(names) - NAMED + 1} more")]
    figure.legend(handles=[*names, Patch(color=PADDING, label="padding")], loc="outside lower center", ncols=4)
    real = 100 * len(of.places) / (len(of) * of.width)
    title = f"{len(of.places):,} weights in {len(of)} tokens of {of.width}: {real:.0f} % weights, the rest padding"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _panels(of: Tokens, embedder) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """{title: (image (h, w, 3), layer (h,) of each of its rows if these are rows of weights)}."""
    rows, layer = _row_entries(of), of.rows[:, 0].cpu().numpy()
    owner = np.empty(len(of.places), int)  # the row of each entry
    owner[rows[rows >= 0]] = np.nonzero(rows >= 0)[0]
    colours = PAINTS[layer[owner] % len(PAINTS)]
    tinted = np.where(owner[:, None] % 2, 0.4 + 0.6 * colours, colours)
    cut = {f"{len(of)} tokens of {of.width}": (_painted(_token_entries(of), tinted), None)}
    if embedder is None:
        return {f"{len(rows)} rows": (_painted(rows, colours, "white"), layer)} | cut
    network = embedder.standardised.like.filter([0])
    z = embedder.embed(network)
    before, after = (embedder.standardised.encode(some.weights)[0] for some in (network, embedder.decode(z, network)))
    return {
        f"{len(rows)} rows": (_painted(rows, _signed(before, before), "white"), layer),
        **cut,
        f"latents of {z.shape[2]}": (_signed(z[0], z[0]), layer),
        "decoded": (_painted(rows, _signed(after, before), "white"), layer),
    }


def _row_entries(of: Tokens) -> np.ndarray:
    """(r, columns) which entries each row (or part of one) has; -1 beyond them."""
    every = torch.arange(len(of.places))[None]
    parts = [block.of(every)[0] for block in of.blocks]  # (rows, columns) each
    most = max(part.shape[1] for part in parts)
    table = torch.cat([F.pad(part, (0, most - part.shape[1]), value=-1) for part in parts])
    return table[of.window(0, len(of)).rows.argsort().cpu()].numpy()


def _token_entries(of: Tokens) -> np.ndarray:
    """(s, width) which entries each token has; -1 is padding."""
    table = np.full(len(of) * of.width, -1)
    table[of.slots.cpu()] = np.arange(len(of.slots))
    return table.reshape(len(of), of.width)


def _painted(entries: np.ndarray, colours: np.ndarray, rest: str = PADDING) -> np.ndarray:
    """Places of entries (h, w) and their colours (e, 3) -> (h, w, 3)."""
    return np.vstack([colours, to_rgb(rest)])[entries]  # -1 is the last


def _signed(values: Tensor, reference: Tensor) -> np.ndarray:
    """Blue below zero, red above, as strong as most of the reference: (..., 3)."""
    limit = max(float(np.quantile(np.abs(reference.cpu().numpy()), 0.98)), np.finfo(np.float32).tiny)
    return matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * values.cpu().numpy() / limit)[..., :3]


def _name_positions(axes, of: Tokens) -> None:
    """The position of each token, or of as many as there is room for."""
    every = -(-len(of) // NAMED)
    positions = of.positions[::every].tolist()
    axes.set_yticks([n + 0.5 for n, *_ in positions], [", ".join(map(str, position)) for position in positions])
    axes.tick_params(axis="y", length=0, labelsize=6, pad=2)
    axes.set_ylabel("position: token, layer, row", fontsize=7, labelpad=1)

"""Pictures of weight flow: how the velocity was learned, and how particles of noise become networks."""

from collections.abc import Mapping
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from wsnotebook.evaluation import interval
from wsnotebook.plots.common import INK, styled

LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#333333", "X"),
)  # a label each
LANDMARK, PARTICLE, CHOSEN = "#999999", "#0072B2", "#D55E00"
COLOURS = 33  # of filters: few, so that their images are small


# ---- the numbers behind the pictures -------------------------------------------------------------------------------


class Scores(NamedTuple):
    """Networks at p places of a path."""

    t: np.ndarray  # (p,) from noise (0) to weights (1)
    accuracy: np.ndarray  # (p,) %
    distance: np.ndarray  # (p,) to the nearest training network
    nearest: np.ndarray  # (p,) the row of that network


class Projection(NamedTuple):
    """The plane of the first two principal components of the training networks' coordinates."""

    mean: np.ndarray  # (k,)
    directions: np.ndarray  # (k, 2) orthonormal; the second is zero where there is only one
    labels: tuple[str, str]  # of the axes, with the shares of the training networks' variance

    def __call__(self, z: Tensor) -> np.ndarray:
        """Coordinates (..., k) -> (..., 2) float64."""
        return (z.cpu().numpy().astype(float) - self.mean) @ self.directions


def projection(landmarks: Tensor) -> Projection:
    """Of training networks' coordinates (m, k). Raises ValueError for fewer than two."""
    if len(landmarks) < 2:
        raise ValueError(f"landmarks: {len(landmarks)} rows, expected at least two training networks")
    z = landmarks.cpu().numpy().astype(float)
    _, values, directions = np.linalg.svd(z - z.mean(0), full_matrices=False)
    shares = 100 * values**2 / max((values**2).sum(), np.finfo(float).tiny)
    first = np.zeros((z.shape[1], 2))
    first[:, : len(directions[:2])] = directions[:2].T
    labels = [f"PC{i} ({share:.3g} % of the zoo's variance)" for i, share in enumerate([*shares, 0.0][:2], start=1)]
    return Projection(z.mean(0), first, tuple(labels))


def filter_strip(filters: np.ndarray, limit: float) -> Image.Image:
    """Filters (f, h, w) side by side, blue below zero and red above; `limit` is where the colours end."""
    f, h, w = filters.shape
    strip = np.zeros((h, f, w + 1))
    strip[..., :w] = np.moveaxis(filters, 0, 1) / limit
    middle = (COLOURS - 1) / 2
    image = Image.fromarray(np.round(middle + middle * strip.reshape(h, -1)[:, :-1].clip(-1, 1)).astype(np.uint8))
    image.putpalette(matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, COLOURS), bytes=True)[:, :3].tobytes())
    return image


# ---- the pictures --------------------------------------------------------------------------------------------------


@styled
def flow_training(histories: Mapping) -> Figure:
    """Training and validation loss, and the size of the velocity, of {label: Flow.history}, over the iterations.

    Losses are relative to standing still (1), sizes to the target's. Raises ValueError for no histories.
    """
    if not histories:
        raise ValueError("histories is empty: pass {label: flow.history}")
    figure = Figure(figsize=(7, 3.2))
    left, right = figure.subplots(1, 2)
    for (label, history), (colour, marker) in zip(histories.items(), cycle(LOOKS), strict=False):
        iteration, validation = history["iteration"], history["validation_loss"]
        left.plot(iteration, history["loss"], color=colour, lw=1.2, alpha=0.6)
        look = {"color": colour, "marker": marker, "ms": 4, "markevery": max(1, len(iteration) // 8)}
        if np.isfinite(validation).any():
            left.plot(iteration, validation, ls="--", lw=1.8, **look)
        right.plot(iteration, history["velocity"], label=label, lw=1.8, **look)
    left.axhline(1, color=INK, lw=0.9, ls=":")
    left.plot([], [], color=INK, lw=1.2, alpha=0.6, label="training")
    if any(np.isfinite(history["validation_loss"]).any() for history in histories.values()):
        left.plot([], [], color=INK, lw=1.8, ls="--", label="held-out networks")
    left.plot([], [], color=INK, lw=0.9, ls=":", label="standing still")
    left.legend(loc="best")
    left.set(ylabel="loss (standing still = 1)")
    right.set(ylabel="size of the velocity (target's = 1)")
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=100)  # runs of very different lengths
        axes.set(xlabel="iteration", xlim=(0, None), ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle("How close the velocity comes to its target, and how large it is", x=0.01, ha="left")
    return figure


@styled
def asked_and_made(asked: np.ndarray, made: np.ndarray, trained: np.ndarray) -> Figure:
    """Generated networks: the accuracy that the flow was told against the one that they have, both (n,) in %.

    trained: the accuracies of the training networks. Raises ValueError for shapes that differ, or no networks.
    """
    if not len(asked) or np.shape(asked) != np.shape(made):
        raise ValueError(f"asked {np.shape(asked)}, made {np.shape(made)}: expected the same shape (n,), n from 1 up")
    levels = np.unique(asked)
    middle = [np.median(made[asked == level]) for level in levels]
    figure = Figure(figsize=(7, 3.4))
    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(5, 2))
    axes.plot(levels, levels, color=INK, lw=0.9, ls=":", label="as asked")
    axes.plot(asked, made, "o", color=PARTICLE, ms=4, alpha=0.35, mec="none", label="a generated network")
    axes.plot(levels, middle, "s-", color=CHOSEN, ms=6, lw=1.6, label="median")
    axes.set(xlabel="accuracy asked for (%)", ylabel="accuracy made (%)")
    side.hist(trained, bins=30, orientation="horizontal", color=LANDMARK)
    side.set(xlabel="training networks")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    off = np.abs(np.array(middle) - levels).max()
    figure.suptitle(f"Told an accuracy, the flow's median comes within {off:.1f} points of it", x=0.01, ha="left")
    return figure


@styled
def transfers(panels: Mapping) -> Figure:
    """Accuracy over further training, an arm each, in panels {title: `methods.transfer.transfer` or `fine_tuning`}.

    Lines are means over an arm's networks, bands 95 % intervals. Raises ValueError for no panels.
    """
    if not panels:
        raise ValueError("panels is empty: pass {title: transfer(...)}")
    arms = dict.fromkeys(arm for found in panels.values() for arm in found.test)
    looks, lines = dict(zip(arms, cycle(LOOKS), strict=False)), {}
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, found) in zip(axes, panels.items(), strict=True):
        places, names = np.arange(len(found.epochs)), found.steps or found.epochs
        for arm, values in found.test.items():
            colour, marker = looks[arm]
            middle, half = np.array([interval(epoch.tolist()) for epoch in values]).T
            (lines[arm],) = ax.plot(places, middle, color=colour, marker=marker, ms=5, lw=1.6, label=arm)
            ax.fill_between(places, middle - half, middle + half, color=colour, alpha=0.2, lw=0)
        unit = "steps" if found.steps else "epochs"
        ax.set(title=title, xlabel=f"{unit} (not to scale)", xticks=places, xticklabels=names)
    axes[0].set(ylabel="test accuracy (%)")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3)
    figure.suptitle("Accuracy over further training, by what the networks start as", x=0.01, ha="left")
    return figure


@styled
def flow_frame(
    path: Tensor,
    landmarks: Tensor,
    step: int,
    chosen: int,
    scores: Scores,
    here: Scores,
    typical: tuple[float, float],
    strip: Image.Image | None = None,
) -> Figure:
    """Particles and their ways after `step` steps (left); the chosen one's accuracy and nearest training network.

    The static twin of the trajectory explorer. path (steps + 1, n, k), landmarks (m, k): coordinates of particles and
    of the training networks. scores: of the chosen particle along the path; here: at the step alone. typical: the
    training networks' median accuracy (%), and median distance to their nearest other. strip: the chosen one's filters.
    """
    plane = projection(landmarks)
    ways, points = plane(path[: step + 1]), plane(landmarks)  # (step + 1, n, 2), (m, 2)
    figure = Figure(figsize=(7, 3.7 if strip is None else 4.6))
    grid = figure.add_gridspec(
        2 if strip is None else 3, 2, width_ratios=(5, 4), height_ratios=(5, 5, 2)[: 3 - (strip is None)]
    )
    left = figure.add_subplot(grid[:2, 0])
    left.plot(*points.T, ".", color=LANDMARK, ms=5, label="training networks")
    left.add_collection(LineCollection(ways.swapaxes(0, 1), colors=PARTICLE, linewidths=0.7, alpha=0.35))
    left.plot(*ways[-1].T, "o", color=PARTICLE, ms=4.5, mec="white", mew=0.4, label="particles")
    left.plot(*ways[:, chosen].T, color=CHOSEN, lw=1.6)
    left.plot(*ways[-1, chosen], "o", color=CHOSEN, ms=8, mec="white", mew=1, label=f"particle {chosen}")
    low, high = limits(path, landmarks)
    left.set(xlabel=plane.labels[0], ylabel=plane.labels[1], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    handles, labels = left.get_legend_handles_labels()
    handles.append(Line2D([], [], color=LANDMARK, lw=1, ls=":"))
    figure.legend(handles, [*labels, "training networks' median"], loc="outside lower left", ncols=4)
    parts = (("accuracy", "accuracy (%)"), ("distance", "distance to nearest"))
    for row, ((name, label), level) in enumerate(zip(parts, typical, strict=True)):
        axes = figure.add_subplot(grid[row, 1])
        axes.axhline(level, color=LANDMARK, lw=1, ls=":")
        axes.plot(scores.t, getattr(scores, name), color=CHOSEN, lw=1.8)
        axes.plot(here.t, getattr(here, name), "o", color=CHOSEN, ms=7, mec=INK, zorder=5, clip_on=False)
        axes.set(xlim=(0, 1), ylabel=label, xlabel="t: noise (0) to weights (1)" if row else "")
        axes.set_ylim(0, 102 if name == "accuracy" else None)
    if strip is not None:
        axes = figure.add_subplot(grid[2, :])
        axes.imshow(np.asarray(strip.convert("RGB")))
        axes.set_title(f"first-layer filters of particle {chosen}", fontsize=8, pad=3)
        axes.set_axis_off()
    at = f"t = {here.t[0]:.2f}: particle {chosen} has {here.accuracy[0]:.1f} %, {here.distance[0]:.3g} from the nearest"
    figure.suptitle(f"{at} training network", x=0.01, ha="left")
    return figure


def limits(path: Tensor, landmarks: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ends (2,), (2,) of the axes that suit every step."""
    plane = projection(landmarks)
    every = np.concatenate([plane(path).reshape(-1, 2), plane(landmarks)])
    low, high = every.min(0), every.max(0)
    room = np.maximum(0.05 * (high - low), 1e-6)
    return low - room, high + room

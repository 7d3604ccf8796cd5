"""Pictures of what SWAT-NN is worth: arms of a search side by side, how its autoencoder learned, and compression."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from wsnotebook import cornn
from wsnotebook.methods.mlp_arms import BUDGETS, FLOOR, at_budgets, log_ratios, runs, verdict
from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.flow import LANDMARK, LOOKS
from wsnotebook.plots.search import ABOVE, BELOW

REFERENCES = {"constant": ":", "affine": "-.", "quadratic": "--"}
HEIGHT = 18  # functions of one column of the map of wins
FACTOR = 4.0  # ratio of errors at which its colours end


# ---- what the search is worth --------------------------------------------------------------------------------------


@styled
def fronts(
    arms: Mapping, table: cornn.Table, names: Sequence[str] | None = None, budgets: Sequence[int] = BUDGETS
) -> Figure:
    """Test error of {arm: `Found`, `Control` or several of these} over non-zeros, a panel a function (None: all).

    Networks are chosen on validation rows; of several runs the median, and the range as a band. Grey: least squares
    fits. Raises ValueError for no arms, or a function that an arm has not.
    """
    names = _checked(arms, table, names)
    references = cornn.controls(table)
    across, down = min(3, len(names)), -(-len(names) // 3)
    figure = Figure(figsize=(7, 0.8 + 1.9 * down))
    panels = figure.subplots(down, across, squeeze=False, sharex=True)
    for axes, name in zip(panels.flat, names, strict=False):
        values = {arm: at_budgets(own, name, budgets) for arm, own in arms.items()}
        for (arm, errors), (colour, marker) in zip(values.items(), cycle(LOOKS), strict=False):
            median = _over_runs(np.nanmedian, errors)
            axes.plot(budgets, median, color=colour, marker=marker, ms=4, lw=1.3, label=arm)
            if len(errors) > 1:
                low, high = _over_runs(np.nanmin, errors), _over_runs(np.nanmax, errors)
                axes.fill_between(budgets, low, high, color=colour, alpha=0.15, lw=0)
        drawn = np.concatenate([errors.ravel() for errors in values.values()])
        own = {fit: float(error[table.names.index(name)]) for fit, error in references.items()}
        low, high = np.nanmin(drawn) / 2, max(np.nanmax(drawn), own["constant"]) * 1.5
        for fit, dashes in REFERENCES.items():
            axes.axhline(own[fit], color=LANDMARK, lw=1.2, ls=dashes, zorder=1, label=f"{fit} fit")
        beyond = [fit for fit in REFERENCES if own[fit] < low]
        if beyond:
            note = f"{beyond[0]} fit: {own[beyond[0]]:.0e}"
            axes.text(0.03, 0.04, note, transform=axes.transAxes, fontsize=7, color=INK)
        axes.set(title=name, xscale="log", yscale="log", ylim=(low, high))
        shown = [budget for budget in budgets if budget in (7, 14, 30, 80)] or list(budgets)
        axes.set_xticks(shown, [str(budget) for budget in shown])
        axes.minorticks_off()
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    for axes in panels[-1]:
        axes.set_xlabel("non-zeros, at most")
    for axes in panels[:, 0]:
        axes.set_ylabel("test error")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
def wins(
    arms: Mapping, table: cornn.Table, names: Sequence[str] | None = None, budgets: Sequence[int] = BUDGETS
) -> Figure:
    """How many times larger every other arm's test error is than the first's, at equal non-zeros: a cell a function.

    Geometric means over the budgets that both arms meet, and over runs; arms as in `fronts`. Blue: the first is
    better; bold: the paired 95 % interval over runs says so (or the opposite). Raises ValueError for less than two
    arms, or a function that an arm has not.
    """
    names = _checked(arms, table, names)
    first, *others = arms
    if not others:
        raise ValueError(f"arms: {first!r} alone, expected one or more others to compare it with")
    ratios = [[log_ratios(arms[first], arms[other], name, budgets) for other in others] for name in names]
    logs = np.array([[_mean(own) for own in row] for row in ratios])  # (functions, others)
    sure = np.array([[verdict(own) for own in row] for row in ratios])
    across = -(-len(names) // HEIGHT)
    figure = Figure(figsize=(7, 1.8 + 0.19 * min(len(names), HEIGHT)))
    panels = figure.subplots(1, across, squeeze=False)[0]
    limit = np.log(FACTOR)
    for k, axes in enumerate(panels):
        own = slice(k * HEIGHT, (k + 1) * HEIGHT)
        image = axes.imshow(logs[own], cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), value in np.ndenumerate(logs[own]):
            ink = "white" if abs(value) > 0.6 * limit else INK
            text = "" if np.isnan(value) else f"{np.exp(value):.2g}" if value < np.log(100) else ">100"
            weight = "bold" if sure[own][row, column] else "normal"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink, fontweight=weight)
        axes.set_yticks(range(len(names[own])), names[own], fontsize=7)
        axes.set_xticks(range(len(others)), others, fontsize=7, rotation=40, ha="left", rotation_mode="anchor")
        axes.set_ylim(min(len(names), HEIGHT) - 0.5, -0.5)
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panels, location="bottom", aspect=60, pad=0.02, shrink=0.6)
    ticks = [1 / FACTOR, FACTOR**-0.5, 1, FACTOR**0.5, FACTOR]
    bar.set_ticks(np.log(ticks), labels=[f"{tick:g}" for tick in ticks])
    bar.set_label(f"test error over that of {first!r}, at equal non-zeros")
    figure.suptitle(_outcome(first, others, logs, sure, len(runs(arms[first]))), x=0.01, ha="left")
    return figure


def _outcome(first: str, others: list[str], logs: np.ndarray, sure: np.ndarray, n: int) -> str:
    if n == 1:
        counts = [f"{(own > 0).sum()} of {(~np.isnan(own)).sum()}" for own in logs.T]
        head = f"Functions on which {first!r} has the lower error than"
    else:
        counts = [f"{(own > 0).sum()} / {(own == 0).sum()} / {(own < 0).sum()}" for own in sure.T]
        head = f"Functions on which {first!r} wins / ties / loses, by {n} seeds, against"
    named = [f"{other}: {count}" for other, count in zip(others, counts, strict=True)]
    return "\n".join([head, *("; ".join(named[i : i + 3]) for i in range(0, len(named), 3))])


def _checked(arms: Mapping, table: cornn.Table, names: Sequence[str] | None) -> list[str]:
    if not arms:
        raise ValueError("arms is empty: pass {name: a search's Found, or a Control}")
    names = list(table.names if names is None else names)
    for arm, own in arms.items():
        for run in runs(own):
            missing = [name for name in names if name not in run.names or name not in table.names]
            if missing:
                raise ValueError(f"arm {arm!r}: has no function {missing[0]!r}; it has {', '.join(run.names)}")
    return names


def _over_runs(measure, errors: np.ndarray) -> np.ndarray:
    """(budgets,) of (runs, budgets); NaN where no run has a network."""
    found = ~np.isnan(errors).all(0)
    return np.where(found, measure(np.where(found, errors, 0), axis=0), np.nan)


def _mean(ratios: np.ndarray) -> float:
    return float(np.nanmean(ratios)) if not np.isnan(ratios).all() else np.nan


# ---- the autoencoder, and compression ------------------------------------------------------------------------------


@styled
def swat_training(history: Mapping) -> Figure:
    """How an autoencoder learned, of `Swat.history`: its loss, and how held-out networks of each depth come back."""
    figure = Figure(figsize=(7, 3.2))
    left, right = figure.subplots(1, 2)
    iteration = np.array(history["iteration"])
    for name, colour, dashes in (("loss", INK, "-"), ("functional", ABOVE, "--"), ("parameters", BELOW, ":")):
        left.plot(iteration, history[name], color=colour, ls=dashes, label=name)
    left.set(ylabel="loss, and its two parts", yscale="log")
    left.legend(loc="best")
    depths = [name for name in history if name.startswith("fvu_")]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(depths)))
    for name, shade, (_, marker) in zip(depths, shades, cycle(LOOKS), strict=False):
        every = max(1, len(iteration) // 8)
        label = f"depth {name.removeprefix('fvu_')}"
        right.plot(iteration, history[name], color=shade, marker=marker, ms=4, markevery=every, label=label)
    right.axhline(1, color=LANDMARK, lw=1.2, ls=":", label="a constant")
    right.set(ylabel="median FVU of held-out networks", yscale="log")
    right.legend(loc="best", ncols=2)
    for axes in (left, right):
        axes.set(xlabel="iteration", xlim=(0, None))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    ends = ", ".join(f"{history[name][-1]:.3g}" for name in depths)
    title = f"After {history['cpu_seconds'][-1]:.0f} CPU-s, depth by depth {ends} of the variance is not explained"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def depth_report(report) -> Figure:
    """Median FVU of networks of each depth (rows) decoded at each depth (columns), and hardened; of `Swat.report`."""
    table = report.table().cpu().numpy()
    depths = range(1, len(table) + 1)
    plain = [report.plain[report.depth == d] for d in depths]
    plain = np.array([float(part.median()) if len(part) else np.nan for part in plain])
    values = np.column_stack([table, plain])
    figure = Figure(figsize=(0.8 * len(table) + 2.6, 0.5 * len(table) + 1.5))
    axes = figure.subplots()
    gap = np.column_stack([table, np.full(len(table), np.nan), plain])
    image = axes.imshow(np.maximum(gap, 1e-4), cmap="viridis_r", norm=LogNorm(0.01, 1), aspect="auto")
    at = [*range(len(table)), len(table) + 1]
    for row, own in enumerate(values):
        for column, value in zip(at, own, strict=True):
            if not np.isnan(value):
                ink = "white" if value > 0.05 else INK
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(at, [*depths, "own, plain"])
    axes.set_yticks(range(len(table)), depths)
    axes.set(xlabel="decoded at depth", ylabel="own depth")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="median FVU", extend="both", pad=0.03)
    return figure


@styled
def compression(outputs: Mapping, curves: Mapping) -> Figure:
    """Original and compressed outputs, {label: (target (m,), output (m,))}, and {label: (non_zeros, error)} beside.

    Raises ValueError for nothing to draw.
    """
    if not outputs or not curves:
        raise ValueError("outputs or curves is empty: pass {label: (target, output)} and {label: (non_zeros, error)}")
    across = 2 if len(outputs) in (1, 3) else 3
    down = -(-(len(outputs) + 1) // across)
    figure = Figure(figsize=(7, 0.5 + 2.4 * down))
    panels = figure.subplots(down, across, squeeze=False)
    *scatters, last = panels.flat[: len(outputs) + 1]
    for axes, (label, pair) in zip(scatters, outputs.items(), strict=True):
        target, output = (np.ravel(torch.as_tensor(values).cpu().numpy()).astype(float) for values in pair)
        ends = [min(target.min(), output.min()), max(target.max(), output.max())]
        axes.plot(ends, ends, color=INK, lw=0.9, ls=":")
        axes.plot(target, output, ".", color=BELOW, ms=3, mew=0, alpha=0.5, rasterized=True)
        fvu = np.mean((output - target) ** 2) / max(target.var(), np.finfo(float).tiny)
        axes.text(0.03, 0.97, f"FVU {fvu:.2g}", transform=axes.transAxes, va="top", fontsize=8)
        axes.set(title=label, xlabel="original", ylabel="compressed", aspect="equal")
    for (label, (count, error)), (colour, marker) in zip(curves.items(), cycle(LOOKS), strict=False):
        order = np.argsort(count)
        count, error = np.asarray(count)[order], np.maximum(np.asarray(error)[order], FLOOR)
        last.plot(count, error, color=colour, marker=marker, ms=4, label=label)
    last.set(xlabel="non-zeros", ylabel=f"error, at least {FLOOR:g}", yscale="log")
    last.legend(loc="best")
    for axes in panels.flat[len(outputs) + 1 :]:
        axes.set_axis_off()
    return figure

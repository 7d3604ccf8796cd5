"""The pictures of a search for settings: its trials and their front, what pruning saved, and ablations."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.mixture import bars, counts_axes, frame, key_of, top

FRONT, COMPLETE, PRUNED = "#009E73", "#999999", "#CC79A7"
GROUPS = {"on the front": (FRONT, "o"), "complete": (COMPLETE, "s"), "ended early": (PRUNED, "X")}  # colour, marker


def grouped(trials: Sequence, front: Sequence) -> dict[str, list]:
    """The trials that have numbers, as GROUPS names them."""
    best = [trial.number for trial in front]
    rest = [trial for trial in trials if trial.number not in best and trial.error is not None]
    complete = [trial for trial in rest if trial.state == "complete"]
    pruned = [trial for trial in rest if trial.state == "pruned"]
    return dict(zip(GROUPS, (list(front), complete, pruned), strict=True))


def highest(trials: Sequence, front: Sequence, allowance: float) -> float:
    """Where an axis of errors (%) ends: above front and allowance, at most 5 points over the trained network."""
    trained = reference(trials)
    tallest = max([trained + 3 * allowance, *(trial.error for trial in front)])
    return trained + 1.15 * (min(tallest, trained + 5) - trained)


def reference(trials: Sequence) -> float:
    """The trained network's validation error, %. Raises ValueError when no trial has a number."""
    measured = [trial for trial in trials if trial.error is not None]
    if not measured:
        raise ValueError("trials: none has an error to draw; their `reason` says why")
    return measured[0].error - measured[0].drop


@styled
def trials(trials: Sequence, front: Sequence, allowance: float, chosen=None) -> Figure:
    """Every trial's validation error against its compression ratio; lower right is better.

    front: those of `trials` that no other beats. allowance: drop that is accepted, percentage points. chosen: a trial
    to ring. Errors beyond the axis stand at its edge, as triangles.
    """
    figure = Figure(figsize=(7, 3.4))
    _scatter(figure.subplots(), trials, front, allowance, chosen)
    figure.legend(loc="outside right center")
    if chosen is not None:
        figure.suptitle(_heading(chosen), x=0.01, ha="left")
    return figure


@styled
def trial_frame(trials: Sequence, front: Sequence, allowance: float, chosen, result) -> Figure:
    """All trials with one of them ringed (left), and the weights and mixture it ended with (right)."""
    figure = Figure(figsize=(7, 3.7))
    left, right = figure.subplots(1, 2)
    _scatter(left, trials, front, allowance, chosen)
    f = frame(result)
    bars(right, f)
    counts_axes(right, f, True, top(result))
    figure.suptitle(_heading(chosen), x=0.01, ha="left")
    handles, labels = left.get_legend_handles_labels()
    key = key_of(f, bars=True, lines=True)
    figure.legend(
        [*handles, *key], [*labels, *(entry.get_label() for entry in key)], loc="outside lower center", ncols=4
    )
    return figure


def _heading(trial) -> str:
    return (
        f"Trial {trial.number}: {trial.ratio:.1f} times smaller, validation error {trial.error:.2f} % "
        f"({trial.drop:+.2f} points)"
    )


def _scatter(axes, trials: Sequence, front: Sequence, allowance: float, chosen) -> None:
    trained, limit = reference(trials), highest(trials, front, allowance)
    axes.step([t.ratio for t in front], [t.error for t in front], where="post", color=FRONT, lw=1)
    for (label, (colour, marker)), group in zip(GROUPS.items(), grouped(trials, front).values(), strict=True):
        inside = [t for t in group if t.error <= limit]
        beyond = [t.ratio for t in group if t.error > limit]
        faint = 0.45 if label == "ended early" else 0.9
        style = {"color": colour, "alpha": faint, "mec": "white"}
        axes.plot([], [], marker, ms=7, label=label, **style)
        for ratios, errors, shape in (
            ([t.ratio for t in inside], [t.error for t in inside], marker),
            (beyond, [limit] * len(beyond), "^"),
        ):
            if ratios:  # an empty line that is not clipped would stand in the figure's corner, and take room there
                axes.plot(ratios, errors, shape, ms=7, clip_on=False, **style)
    if chosen is not None:
        at = ([chosen.ratio], [min(chosen.error, limit)])
        axes.plot(*at, "o", ms=13, mfc="none", mec=INK, mew=1.5, clip_on=False, label=f"trial {chosen.number}")
    if any(trial.error is not None and trial.error > limit for trial in trials):
        axes.plot([], [], "^", ms=7, color="#bbbbbb", mec="white", label="beyond the axis")
    axes.axhline(trained, color=INK, lw=1, ls="--", label="trained network")
    axes.axhline(trained + allowance, color=INK, lw=1, ls=":", label="allowance")
    lowest = min([trained, *(t.error for t in trials if t.error is not None)])
    axes.set(xlabel="compression ratio of the file", ylabel="validation error (%)")
    axes.set_ylim(max(0, lowest - 0.1 * (limit - lowest)), limit)
    axes.margins(x=0.08)


@styled
def pruning(trials: Sequence, epochs: int) -> Figure:
    """What the pruner saw, the quantised network's error over the epochs (left), and the epochs of every trial (right).

    epochs: of a trial that runs to its end.
    """
    figure = Figure(figsize=(7, 3.2))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for trial in trials:
        if not trial.reports:
            continue
        ended = trial.state == "pruned"
        looks = [(epoch, error) for epoch, _, error in trial.reports]
        at, errors = zip(*looks, *([] if ended else [(trial.epochs, trial.error)]), strict=True)
        left.plot(at, errors, "o-", color=PRUNED if ended else COMPLETE, lw=1.2, ms=4, zorder=2 + ended, clip_on=False)
        if ended:
            left.plot(at[-1], errors[-1], "X", color=PRUNED, mec="white", ms=8, zorder=4, clip_on=False)
    left.set(xlabel="epoch", ylabel="validation error, quantised (%)", xlim=(0, epochs))
    _wide(left)
    run = [trial.epochs for trial in trials]
    at = range(len(trials))
    colours = [PRUNED if trial.state == "pruned" else COMPLETE for trial in trials]
    right.barh(at, run, color=colours, height=0.7)
    right.barh(at, [epochs - n for n in run], left=run, color="none", edgecolor="#bbbbbb", lw=0.6, height=0.7)
    right.set(xlabel="epochs run", ylabel="trial", xlim=(0, epochs))
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.invert_yaxis()
    saved, whole = saved_epochs(trials, epochs)
    figure.suptitle(f"Pruning saved {saved} of {whole} epochs ({100 * saved / whole:.0f} %)", x=0.01, ha="left")
    for colour, label in ((COMPLETE, "ran to its end"), (PRUNED, "ended by the pruner")):
        left.plot([], [], color=colour, lw=3, label=label)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def saved_epochs(trials: Sequence, epochs: int) -> tuple[int, int]:
    """(epochs that pruned trials did not run, epochs of all trials had none been pruned)."""
    return sum(epochs - trial.epochs for trial in trials if trial.state == "pruned"), epochs * len(trials)


@styled
def ablation(rows: Sequence[Mapping], own: Mapping) -> Figure:
    """Ratio (above) and validation error (below) with one factor changed at a time, a column for each.

    rows: as `ablation.sweep` gives them; a point a seed, a line through the means. Open points: the spike had not
    condensed. own: the row of the preset's own settings, drawn as a line.
    """
    factors = list(dict.fromkeys(row["factor"] for row in rows))
    figure = Figure(figsize=(7, 3.9))
    grid = figure.subplots(2, len(factors), sharey="row", sharex="col", squeeze=False)
    for column, factor in zip(grid.T, factors, strict=True):
        chosen = [row for row in rows if row["factor"] == factor]
        values = list(dict.fromkeys(map(_name, (row["value"] for row in chosen))))
        for axes, measure in zip(column, ("ratio", "error"), strict=True):
            groups = [[row for row in chosen if _name(row["value"]) == value] for value in values]
            means = [statistics.fmean(row[measure] for row in group) for group in groups]
            axes.plot(range(len(values)), means, color="#bbbbbb", lw=1.2, zorder=1)
            for x, group in enumerate(groups):
                for row in group:
                    fill = FRONT if row["condensed"] else "white"
                    axes.plot(x, row[measure], "o", ms=6, mfc=fill, mec=FRONT, mew=1.2, clip_on=False)
            axes.set_xticks(range(len(values)), values)
            axes.set_xlim(-0.5, len(values) - 0.5)
        column[0].set_title(factor)
        column[1].tick_params(axis="x", rotation=30 if max(map(len, values)) > 5 else 0)
    for line, measure in zip(grid, ("ratio", "error"), strict=True):
        for axes in line:
            axes.axhline(own[measure], color=INK, lw=1, ls=":", zorder=0)
    grid[0, 0].set(ylabel="ratio of the file", ylim=(0, 1.08 * max(row["ratio"] for row in rows)))
    grid[1, 0].set_ylabel("validation error (%)")
    _wide(*grid[1])
    worst = max(rows, key=lambda row: row["error"])
    title = f"The error goes from {own['error']:.1f} % (dotted: the preset's own settings) to {worst['error']:.1f} %"
    figure.suptitle(f"{title}, with {worst['factor']} {_name(worst['value'])}", x=0.01, ha="left")
    return figure


def _name(value) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, int | float) else str(value)


def _wide(axes, *sharing) -> None:
    """A logarithmic axis of errors when they span more than a factor of 20; never below a tenth of a per cent."""
    lines = [line for one in (axes, *sharing) for line in one.lines]
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in lines] or [np.ones(1)])
    if drawn.max() > 20 * max(drawn.min(), 0.1):
        axes.set_yscale("log")
        axes.set_ylim(max(0.8 * drawn.min(), 0.1), min(100, 1.25 * drawn.max()))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.08 * max(drawn.max(), 1e-9))

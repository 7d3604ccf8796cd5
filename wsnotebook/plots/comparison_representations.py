"""Pictures of what representations of networks know: a matrix of all answers, and what the order of units does."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.methods import style

SHADES = "YlGnBu"  # of 0 to 1; light below
DARK = 0.5  # from here on white text
FRAME = "#F0027F"
TIE = 0.005  # answers that differ by less are equally good, and below it nothing is known
BLIND = 0.01  # of the distance to another network: less is rounding


@styled
def knowledge(entries: Sequence) -> Figure:
    """A row for each representation, a column a question, 0: it knows nothing, 1: everything; framed: the best.

    entries: of `comparisons.representations.compare`. Raises ValueError for none, and for different questions.
    """
    answers = [entry.answers() for entry in entries]
    if not answers or any(list(other) != list(answers[0]) for other in answers):
        raise ValueError(f"entries: {len(answers)} with different questions or none; expected one comparison's")
    questions = list(answers[0])
    means = np.array([[mean for mean, _ in each.values()] for each in answers])  # (entries, questions)
    figure = Figure(figsize=(7, 1.3 + 0.34 * len(entries)))
    axes = figure.subplots()
    axes.imshow(means, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    for (row, column), mean in np.ndenumerate(means):
        half = list(answers[row].values())[column][1]
        ink = "white" if mean > DARK else INK
        axes.text(column, row - 0.14, f"{round(mean, 2) + 0.0:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
        if np.isfinite(half):
            axes.text(column, row + 0.3, f"± {half:.2f}", ha="center", va="center", fontsize=6, color=ink)
    best = (means >= means.max(0) - TIE) & (means > 10 * TIE)  # (entries, questions)
    for row, column in np.argwhere(best):
        axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, ec=FRAME, lw=1.6))
    beside = offset_copy(axes.get_yaxis_transform(), figure, x=-8, units="points")
    for row, entry in enumerate(entries):
        colour, marker = style(entry.name)
        axes.plot(0, row, marker, color=colour, ms=6, clip_on=False, transform=beside)
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
    axes.tick_params(axis="y", length=0, pad=14)
    axes.set_xticks(range(len(questions)), questions, rotation=35, ha="left", rotation_mode="anchor")
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.set(xlim=(-0.5, len(questions) - 0.5), ylim=(len(entries) - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    first = int(best.sum(1).argmax())
    title = f"{entries[first].name}: best, or as good, at {best[first].sum()} of {len(questions)} questions (framed)"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def invariance(entries: Sequence, question: str | None = None) -> Figure:
    """How far features move when units change places (left) and what they know (right); question: None is the first.

    Open: brought back by alignment. Sorted by how far they are moved in the end. Raises ValueError for a question that
    was not asked.
    """
    question = question or next(iter(entries[0].answers()))
    if question not in entries[0].answers():
        raise ValueError(f"question={question!r}: not asked; asked were {', '.join(entries[0].answers())}")
    entries = sorted(entries, key=lambda entry: np.mean(entry.again or entry.change))
    figure = Figure(figsize=(7.6, 1.2 + 0.24 * len(entries)))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, entry in enumerate(entries):
        colour, marker = style(entry.name)
        change, (known, half) = np.mean(entry.change), entry.answers()[question]
        if entry.again:
            left.plot([np.mean(entry.again), change], [row, row], color=colour, lw=0.9)
            left.plot(np.mean(entry.again), row, marker, color=colour, mfc="white", ms=6)
        left.plot(change, row, marker, color=colour, ms=6, clip_on=False)
        right.errorbar(known, row, xerr=np.nan_to_num(half), fmt=marker, color=colour, ms=6, elinewidth=1.2)
    left.axvline(1, color=INK, lw=0.9, ls=":")
    for places, label in (("", "units shuffled"), ("white", "then aligned again")):
        left.plot([], [], "o", color=INK, mfc=places or INK, ms=5, label=label)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    left.set_yticks(range(len(entries)), [entry.name for entry in entries])
    left.set(xlim=(-0.04, None), ylim=(len(entries) - 0.5, -0.5), title="change (1: as far as another network)")
    right.set(title=f"what is known of {question}", xlim=(min(0, *right.get_xlim()), 1))
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    blind = [entry.name for entry in entries if np.mean(entry.change) < BLIND]
    title = (
        "Nothing here is blind to the order of units"
        if not blind
        else f"Blind to the order of units: {'; '.join(blind)}"
    )
    figure.suptitle(title, x=0.01, ha="left")
    return figure

"""Pictures of ways to make networks: which are new and good, and what further training makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wsnotebook.evaluation import interval
from wsnotebook.plots.common import INK, styled
from wsnotebook.plots.methods import style

if TYPE_CHECKING:
    from wsnotebook.comparisons.generation import Entry
    from wsnotebook.evaluation import Novelty
    from wsnotebook.methods.transfer import Transfer

FILLS = ("full", "none", "left", "bottom", "right", "top")  # variants of a method, in their order
UNFILLED = "x1+"  # markers of lines alone


def looks(methods: Sequence[str]) -> dict[str, dict]:
    """{method: how its points are drawn}: a method's colour and marker, its variants told apart by their filling.

    Raises ValueError for a method without a style, and more variants of one than there are fillings.
    """
    seen, found = Counter(), {}
    for method in methods:
        colour, marker = style(method)
        k = seen[colour, marker]
        if k == len(FILLS):
            raise ValueError(f"methods: more than {len(FILLS)} are drawn as {method!r}; leave some of its variants out")
        seen[colour, marker] += 1
        filling = {"alpha": 1 / (1 + k)} if marker in UNFILLED else {"fillstyle": FILLS[k]}
        found[method] = {"color": colour, "marker": marker, "mfcalt": "white", "mew": 1.3} | filling
    return found


@styled
def generation(panels: Mapping[str, Sequence[Entry]]) -> Figure:
    """Accuracy against distance to the nearest training network, a point for each way, in panels {title: entries}.

    An entry is the mean over its generators, with 95 % intervals if there are several. The first entry of a panel is
    the zoo itself, each network left out in turn: the box holds the middle 90 % of its networks, and is where a
    generator's should be. Raises ValueError for no panels, and what `looks` does.
    """
    if not panels:
        raise ValueError("panels is empty: pass {title: [generation.the_zoo(...), *generation.compare(...)]}")
    drawn = looks(list(dict.fromkeys(entry.method for _, *entries in panels.values() for entry in entries)))
    figure, handles = Figure(figsize=(7, 5.6)), {}
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, (itself, *entries)) in zip(axes, panels.items(), strict=True):
        handles["the zoo itself"] = _box(ax, itself)
        for entry in entries:
            accuracy, near = (interval(own) for own in list(entry.measures().values())[:2])
            ax.errorbar(
                near[0], accuracy[0], np.nan_to_num(accuracy[1]), np.nan_to_num(near[1]),
                ecolor=drawn[entry.method]["color"], elinewidth=1, fmt="none", zorder=2,
            )  # fmt: skip
            (handles[entry.method],) = ax.plot(
                near[0], accuracy[0], ls="", ms=8, zorder=3, clip_on=False, label=entry.method, **drawn[entry.method]
            )
        ax.set(title=title, xlabel="distance to the nearest (zoo's = 1)")
        ax.set_xlim(left=-0.04)
    axes[0].set(ylabel="test accuracy (%)")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    figure.suptitle(_said(panels), x=0.01, ha="left")
    return figure


def _box(ax: Axes, itself: Entry) -> Rectangle:
    """The middle 90 % of the zoo's own networks in both measures."""
    own = itself.found[0].reference
    low, high = np.quantile(np.stack([own.distance / np.median(own.distance), own.accuracy]), (0.05, 0.95), axis=1)
    return ax.add_patch(Rectangle(low, *(high - low), facecolor="#56B4E9", edgecolor=INK, lw=0.9, alpha=0.35, zorder=1))


def _said(panels: Mapping[str, Sequence[Entry]]) -> str:
    """Who comes first in each panel, by the share of novel and accurate networks."""
    parts = []
    for title, (_, *entries) in panels.items():
        joint = {
            e.method: np.mean(e.measures()["novel and accurate (%)"]) for e in entries if e.method != "from scratch"
        }
        best = max(joint, key=joint.get)
        parts.append(f"{title}: {f'{best}, {joint[best]:.0f} %' if joint[best] else 'nobody'}")
    return "Novel and accurate. " + "; ".join(parts)


@styled
def generation_training(tuned: Transfer, found: Mapping[str, Sequence[Novelty]]) -> Figure:
    """Over further training, by what networks start as: test accuracy, and distance to the nearest training network.

    tuned, found: of `generation.after_training`, their arms being methods. Lines are means over an arm's networks; the
    dotted ones are the least that counts as accurate, or as novel. Raises what `looks` does.
    """
    drawn, places = looks(list(found)), np.arange(len(tuned.epochs))
    figure = Figure(figsize=(7, 4.4))
    left, right = figure.subplots(1, 2)
    for arm, look in drawn.items():
        near = [np.mean(each.generated.distance) / np.median(each.reference.distance) for each in found[arm]]
        left.plot(places, np.nanmean(tuned.test[arm], 1), lw=1.3, ms=7, label=arm, **look)
        right.plot(places, near, lw=1.3, ms=7, **look)
    any_arm = next(iter(found.values()))[0]
    left.axhline(any_arm.accuracy_above, color=INK, lw=0.9, ls=":")
    right.axhline(any_arm.distance_above / np.median(any_arm.reference.distance), color=INK, lw=0.9, ls=":")
    left.set(ylabel="test accuracy (%)")
    right.set(ylabel="distance to the nearest (zoo's = 1)", ylim=(0, None))
    for ax in (left, right):
        ax.set(xlabel="steps (not to scale)", xticks=places, xticklabels=tuned.steps or tuned.epochs)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    most = {arm: max(each.joint for each in own) for arm, own in found.items()}
    best = max(most, key=most.get)
    said = f"at most {most[best]:.0f} % novel and accurate ({best})" if most[best] else "nobody is novel and accurate"
    figure.suptitle(f"Trained on: {said}", x=0.01, ha="left")
    return figure

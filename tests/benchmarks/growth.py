"""How CPU time grows with size, drawn: log-log panels, each formulation's exponent in the legend."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from measured import Curve, exponent

from wsnotebook.plots.common import styled
from wsnotebook.plots.methods import GREY

OURS = "#009E73", "#CC79A7"  # the straightforward formulation is grey
COLUMNS = 4


@styled
def growth(curves: Sequence[Curve]) -> Figure:
    """A panel for each curve; the exponent b of CPU time ~ size^b is fitted to the larger half of the sizes."""
    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(11, 2.75 * rows))
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, curve in zip(panels, curves, strict=False):
        *ours, plain = curve.series
        looks = dict(zip(ours, zip(OURS, "o^", strict=True), strict=False)) | {plain: (GREY, "s")}
        for name, points in curve.series.items():
            colour, marker = looks[name]
            label = f"{name}: n$^{{{exponent(larger(points)):.2f}}}$"
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, label=label)
        axes.set(xscale="log", yscale="log", title=curve.title, xlabel=curve.size, ylabel="CPU time (ms)")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** (0.2 * len(curve.series)))  # room for the legend
        axes.legend(loc="upper left", handlelength=1.2)
    for axes in panels[len(curves) :]:
        axes.remove()
    return figure


def larger(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """The larger half of a curve's points, two at least: small sizes are all overhead."""
    return points[min(len(points) // 2, len(points) - 2) :]

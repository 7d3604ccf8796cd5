"""The interpolation explorer: what lies on the straight line between two networks, before and after alignment.

The network at t is computed when the slider asks for it. With a third network the plane through them can be shown.
`plots.path_frame` and `plots.loss_planes` are the static twins.
"""

import html
from collections.abc import Mapping
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure
from torch import Tensor

from wsnotebook import evaluation, plots
from wsnotebook.explorers import zoo as zoo_explorer
from wsnotebook.explorers.common import (
    AXIS,
    LAYOUT,
    Displayed,
    Plot,
    buttons,
    chooser,
    legend,
    packed,
    readout,
    write_page,
)
from wsnotebook.plots import landscape
from wsnotebook.plots.common import INK
from wsnotebook.plots.zoo import PICKED, snapshots

ROWS = 2000  # of the split, at most: a step of the slider scores that many
POINTS = 21  # on the line
GRID = 15  # points a side of the plane


class Explorer(Displayed):
    """Accuracy, loss and per-class accuracy along the line between two networks, in each of several zoos.

    zoos: {label: Zoo} with the same networks in the same rows, such as raw and aligned. split: (x, y) to score on, of
    which 2,000 rows are used. picked: a zoo explorer on the same rows, whose choice is followed. recalibrate: training
    images, for batch norm's statistics. Raises ValueError for zoos that do not fit together, and when the first two
    networks have different activations.
    """

    def __init__(
        self,
        zoos: Mapping,
        split: tuple[Tensor, Tensor],
        picked: zoo_explorer.Explorer | None = None,
        recalibrate: Tensor | None = None,
    ):
        self.zoos, self.picked, self.recalibrate = dict(zoos), picked, recalibrate
        if not 1 <= len(self.zoos) <= len(landscape.LOOKS):
            raise ValueError(
                f"zoos: {len(self.zoos)} of them, expected 1 to 4, such as {{'raw': zoo, 'aligned': aligned}}"
            )
        first = next(iter(self.zoos.values()))
        for label, other in self.zoos.items():
            if (len(other), other.layout) != (len(first), first.layout) or picked and len(picked.zoo) != len(other):
                raise ValueError(f"zoos[{label!r}]: {other!r} has not the same networks as the others, row by row")
        if len(first) < 2:
            raise ValueError("zoos: they hold one network, expected at least two to go between")
        rows = np.linspace(0, len(split[0]) - 1, min(len(split[0]), ROWS)).round().astype(int)
        self.split = tuple(part[torch.from_numpy(rows)] for part in split)
        self._paths, self._planes = {}, {}  # by the rows of the networks
        last = snapshots(first)[1][-1]
        kinds = first.facts.get("activation", np.zeros(len(first)))
        partner = next((row for row in last[1:] if kinds[row] == kinds[last[0]]), last[1])
        names = [(_name(first, row), int(row)) for row in last]
        self.first, self.second = chooser("first", names, int(last[0])), chooser("second", names, int(partner))
        self.third = chooser("third", [("none", zoo_explorer.NOBODY), *names], zoo_explorer.NOBODY)
        tip = "place on the line: the arrow keys move it"
        self.t = widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="t", tooltip=tip)
        self.t.layout.width = "420px"
        self.mode = buttons("show", ("line", "plane"))
        self.readout, self.key = widgets.HTML(self._facts()), widgets.HTML(_key(self.zoos))
        self.plot, self._is_line = Plot(self._line_picture()), True  # None while there is nothing to show
        lists = [self.first, self.second, self.third] if picked is None else []
        boxes = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in (lists, [self.t, self.mode]) if row]
        self._controls = [*boxes, self.readout]
        self.view = widgets.VBox([*self._controls, self.plot, self.key])
        self.t.observe(lambda change: self._move(), "value")
        for control in (self.mode, self.first, self.second, self.third):
            control.observe(lambda change: self._draw(), "value")
        if picked is not None:
            picked.on_select(lambda rows: self._draw())

    @property
    def rows(self) -> list[int]:
        """Row numbers of the two or three networks."""
        if self.picked is not None:
            return self.picked.selected
        return [
            control.value for control in (self.first, self.second, self.third) if control.value != zoo_explorer.NOBODY
        ]

    def report(self, t: float | None = None) -> evaluation.Report:
        """Of the networks at t, by default the slider's, one for each zoo in order."""
        i, j = self.rows[:2]
        t = self.t.value if t is None else t
        weights = torch.stack([torch.lerp(zoo.weights[i], zoo.weights[j], t) for zoo in self.zoos.values()])
        mixed = next(iter(self.zoos.values())).filter([i] * len(weights)).derived(weights)
        if self.recalibrate is not None:
            mixed = evaluation.recalibrated(mixed, self.recalibrate)
        return evaluation.report(mixed, self.split)

    def paths(self) -> dict[str, evaluation.Path]:
        """Scores along the line, in each zoo. Raises ValueError for networks of different activations."""
        pair = tuple(self.rows[:2])
        if pair not in self._paths:
            options = {"points": POINTS, "recalibrate": self.recalibrate}
            self._paths[pair] = {
                label: evaluation.interpolate(zoo, *pair, self.split, **options) for label, zoo in self.zoos.items()
            }
        return self._paths[pair]

    def loss_planes(self) -> dict[str, evaluation.Plane]:
        """Scores on the plane, in each zoo. Raises ValueError for networks that span none."""
        three = tuple(self.rows)
        if len(three) < 3:
            raise ValueError("the plane needs three networks: choose a third")
        if three not in self._planes:
            options = {"points": GRID, "recalibrate": self.recalibrate}
            self._planes[three] = {
                label: evaluation.plane(zoo, three, self.split, **options) for label, zoo in self.zoos.items()
            }
        return self._planes[three]

    def figure(self) -> Figure:
        """The static twin of what is shown."""
        if self.mode.value == "plane" and len(self.rows) == 3:
            return plots.loss_planes(self.loss_planes(), self._corners())
        return plots.path_frame(self.paths(), self.t.value, self.report())

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network: 21 points of the line that is shown. Returns its path.

        Raises OSError when it cannot be written.
        """
        frames = []
        for t in next(iter(self.paths().values())).t:
            report = self.report(float(t))
            data = {key: list(map(packed, values)) for key, values in self._moving(t, report).items()}
            frames.append({"data": data, "text": self._facts(t, report)})
        values = {"FRAMES": frames, "MOVING": self._places()}
        values |= {"LAST": POINTS - 1, "START": round(self.t.value * (POINTS - 1))}
        parts = {"KEY": _key(self.zoos)}
        return write_page(path, "Interpolation explorer", STYLE, BODY, self._line_picture(), values, parts)

    def _text(self) -> str:
        facts = self._numbers(self.t.value, self.report())
        return f"Interpolation explorer: {'; '.join(f'{name} {value}' for name, value in facts.items())}"

    def _numbers(self, t: float, report: evaluation.Report) -> dict[str, str]:
        """What the readout and the text say, rounded."""
        zoo = next(iter(self.zoos.values()))
        facts = {slot: _name(zoo, row) for slot, row in zip(("first", "second"), self.rows, strict=False)}
        facts["t"] = f"{t:.2f}"
        scores = zip(self.paths().items(), report.accuracy, report.loss, strict=True)
        for (label, path), accuracy, loss in scores:
            barrier = f"barriers {path.accuracy_barrier[0]:.2f} points, {path.barrier[0]:.3f} nats"
            facts[label] = f"{accuracy:.2f} %, {loss:.3f} nats ({barrier})"
        return facts

    def _facts(self, t: float | None = None, report: evaluation.Report | None = None) -> str:
        facts = self._numbers(self.t.value if t is None else t, report or self.report())
        return readout({html.escape(name): html.escape(value) for name, value in facts.items()})

    # ---- drawing: a step of the slider moves what `_moving` gives, in one message ----

    def _draw(self) -> None:
        """Other networks, or line instead of plane; what cannot be shown is said."""
        old, plane = self.plot, self.mode.value == "plane"
        try:
            if plane:
                self.plot = Plot(self._plane_picture())
            elif self._is_line:
                self._update_line(old)
            else:
                self.plot = Plot(self._line_picture())
            self._is_line = not plane
            self.readout.value = self._facts()
        except ValueError as error:
            self.plot, self._is_line = None, False
            self.readout.value = readout({"nothing to show:": html.escape(str(error))})
        self.view.children = [*self._controls, *([self.plot, self.key] if self.plot else [])]
        if old is not None and old is not self.plot:
            old.close()

    def _move(self) -> None:
        """Bring what is at t up to the slider."""
        if self.plot is None:
            return
        report = self.report()
        self.readout.value = self._facts(report=report)
        if self._is_line:
            self.plot.plotly_update(self._moving(self.t.value, report), {}, self._places())
        else:
            self.plot.plotly_update(self._place_on_planes(), {}, self._marks())

    def _line_picture(self) -> go.Figure:
        figure = go.Figure(_line_traces(list(self.zoos)), LAYOUT | LINE_LAYOUT)
        self._update_line(figure)
        return figure

    def _update_line(self, figure: go.Figure) -> None:
        paths, moving = self.paths(), self._moving(self.t.value, self.report())
        curves = {"x": [path.t for path in paths.values() for _ in range(2)]}
        curves["y"] = [values[0] for path in paths.values() for values in (path.accuracy, path.loss)]
        highest = 1.06 * max(path.loss.max() for path in paths.values())
        figure.plotly_update({key: curves[key] + moving[key] for key in curves}, {"yaxis2.range": [0, highest]})

    def _places(self) -> list[int]:
        """Of the traces that move with t."""
        return list(range(2 * len(self.zoos), 5 * len(self.zoos)))

    def _moving(self, t: float, report: evaluation.Report) -> dict[str, list[np.ndarray]]:
        """x and y of the marks and bars: accuracy, loss, accuracy of each class, a zoo after the other."""
        classes = np.arange(report.per_class.shape[1])
        scores = zip(report.accuracy, report.loss, report.per_class, strict=True)
        return {
            "x": [x for _ in self.zoos for x in (np.array([t]), np.array([t]), classes)],
            "y": [y for accuracy, loss, bars in scores for y in (np.array([accuracy]), np.array([loss]), bars)],
        }

    def _corners(self) -> np.ndarray:
        """(3,) % accuracies of the networks."""
        networks = next(iter(self.zoos.values())).filter(self.rows)
        networks = networks if self.recalibrate is None else evaluation.recalibrated(networks, self.recalibrate)
        return evaluation.report(networks, self.split).accuracy

    def _plane_picture(self) -> go.Figure:
        planes = self.loss_planes()
        levels = np.log10(landscape.loss_levels(planes.values()))
        names = [f"{number}: {accuracy:.1f} %" for number, accuracy in zip("123", self._corners(), strict=True)]
        figure = go.Figure(layout=LAYOUT | {"height": 430, "margin": {"l": 60, "r": 15, "t": 30, "b": 45}})
        for k, (label, plane) in enumerate(planes.items()):
            figure.add_traces(_plane_traces(plane, levels, names, k))
            start, width = k / len(planes), 0.86 / len(planes)
            place, across, up = str(k + 1), AXIS | {"title": {"text": "distance (weights, L2)"}}, AXIS
            across = across | {"domain": [start, start + width], "anchor": f"y{place}", "constrain": "domain"}
            up = up | {
                "title": {"text": "" if k else "distance (weights, L2)"},
                "anchor": f"x{place}",
                "scaleanchor": f"x{place}",
                "constrain": "domain",
            }
            figure.update_layout({f"xaxis{place}": across, f"yaxis{place}": up})
            note = {"text": label, "x": start, "y": 1.02, "xref": "paper", "yref": "paper", "font": {"size": 14}}
            figure.add_annotation(note | {"showarrow": False, "xanchor": "left", "yanchor": "bottom"})
        figure.plotly_update(self._place_on_planes(), {}, self._marks())
        bar = {"title": {"text": "loss (nats)", "side": "right"}, "thickness": 12, "outlinewidth": 0}
        bar |= {"tickvals": levels[::2], "ticktext": [f"{10**level:.2g}" for level in levels[::2]]}
        scale = {"colorscale": "Viridis", "reversescale": True, "cmin": levels[0], "cmax": levels[-1], "colorbar": bar}
        return figure.update_layout(coloraxis=scale)

    def _marks(self) -> list[int]:
        """Places of the marks at t among the planes' traces."""
        return list(range(3, 4 * len(self.zoos), 4))

    def _place_on_planes(self) -> dict[str, list[np.ndarray]]:
        """x and y of the mark at t in each plane."""
        corners = [plane.corners for plane in self.loss_planes().values()]
        places = [first + self.t.value * (second - first) for first, second, _ in corners]
        return {"x": [place[:1] for place in places], "y": [place[1:] for place in places]}


def _name(zoo, row: int) -> str:
    parts = [f"{fact} {zoo.facts[fact][row]}" for fact in ("model", "step") if fact in zoo.facts]
    return ", ".join(parts) or f"row {row}"


def _looks(labels) -> list[tuple[str, str, str, str]]:
    """(label, colour, dash, symbol) of each zoo."""
    looks = zip(landscape.LOOKS, DASHES, SYMBOLS, strict=True)
    return [(label, colour, dash, symbol) for label, ((colour, *_), dash, symbol) in zip(labels, looks, strict=False)]


def _line_traces(labels: list[str]) -> list[dict]:
    """The curves of every zoo, then what moves."""
    still, moving = [], []
    for label, colour, dash, symbol in _looks(labels):
        for axis, measure in enumerate(("accuracy", "loss"), start=1):
            trace = {"type": "scatter", "xaxis": f"x{axis}", "yaxis": f"y{axis}", "name": f"{label} {measure}"}
            still.append(trace | {"mode": "lines", "line": {"color": colour, "width": 2.5, "dash": dash}})
            mark = {"color": colour, "size": 12, "symbol": symbol, "line": {"color": INK, "width": 1.5}}
            moving.append(trace | {"mode": "markers", "marker": mark, "name": f"{label} {measure} at t"})
        bars = {"type": "bar", "xaxis": "x3", "yaxis": "y3", "name": f"{label} classes at t"}
        moving.append(bars | {"marker": {"color": colour, "line": {"width": 0}}})
    return still + moving


def _plane_traces(plane: evaluation.Plane, levels: np.ndarray, names: list[str], k: int) -> list[dict]:
    """Loss, the line between the first two networks, the networks, and the mark at t."""
    axes = {"xaxis": f"x{k + 1}", "yaxis": f"y{k + 1}", "hoverinfo": "skip"}
    loss = np.clip(np.log10(np.maximum(plane.loss, 1e-12)), levels[0], levels[-1])
    hover = [
        [f"loss {a:.3g} nats<br>accuracy {b:.1f} %" for a, b in zip(*row, strict=True)]
        for row in zip(plane.loss, plane.accuracy, strict=True)
    ]
    contours = {"start": levels[0], "end": levels[-1], "size": levels[1] - levels[0]}
    x, y = plane.corners.T
    return [
        axes
        | {
            "type": "contour",
            "x": plane.x,
            "y": plane.y,
            "z": loss,
            "contours": contours,
            "coloraxis": "coloraxis",
            "line": {"width": 0.4, "color": "white"},
            "text": hover,
            "hoverinfo": "text",
        },
        axes | {"type": "scatter", "mode": "lines", "x": x[:2], "y": y[:2], "line": {"color": INK, "dash": "dash"}},
        axes
        | {
            "type": "scatter",
            "mode": "markers+text",
            "x": x,
            "y": y,
            "text": names,
            "textposition": ["bottom center", "bottom center", "top center"],
            "textfont": {"size": 13, "weight": 700, "shadow": "0 0 3px white, 0 0 3px white, 0 0 3px white"},
            "marker": {"size": 13, "color": PICKED, "line": {"color": "white", "width": 2}},
        },
        axes
        | {
            "type": "scatter",
            "mode": "markers",
            "marker": {"size": 13, "symbol": "diamond", "color": "white", "line": {"color": INK, "width": 2}},
        },
    ]


def _key(labels) -> str:
    """The legend; plotly's own would be drawn anew at every step."""
    style = "display: inline-block; width: 22px; vertical-align: middle; margin-right: 5px; border-top: 3px"
    borders = {"solid": "solid", "dash": "dashed", "dashdot": "dashed", "dot": "dotted"}
    items = [
        f"<span style='{style} {borders[dash]} {colour}'></span>{html.escape(label)}"
        for label, colour, dash, _ in _looks(labels)
    ]
    return legend([*items, "weights: (1 - t) first + t second"])


DASHES, SYMBOLS = ("solid", "dash", "dashdot", "dot"), ("circle", "square", "triangle-up", "diamond")
_T = {"title": {"text": "t", "standoff": 8}, "range": [-0.03, 1.03]}
_PERCENT = AXIS | {"range": [0, 103]}
LINE_LAYOUT = {
    "margin": {"l": 60, "r": 15, "t": 32, "b": 45},
    "barmode": "group",
    "xaxis": AXIS | _T | {"domain": [0, 0.25]},
    "yaxis": _PERCENT | {"title": {"text": "accuracy (%)"}},
    "xaxis2": AXIS | _T | {"domain": [0.34, 0.59], "anchor": "y2"},
    "yaxis2": AXIS | {"anchor": "x2", "title": {"text": "loss (nats)"}},
    "xaxis3": AXIS | {"domain": [0.68, 1], "anchor": "y3", "dtick": 1, "title": {"text": "class", "standoff": 8}},
    "yaxis3": _PERCENT | {"anchor": "x3", "title": {"text": "accuracy at t (%)"}},
}

STYLE = "#t { width: 24em; vertical-align: middle }"

BODY = """
<label>t, from the first network to the second
<input id="t" type="range" min="0" max="@LAST@" value="@START@"></label>
<div id="facts"></div>
@DRAWN@
@KEY@
<script>
const moving = @MOVING@, frames = @FRAMES@;
const at = id => document.getElementById(id);
function show() {
  const frame = frames[at("t").value];
  at("facts").innerHTML = frame.text;
  Plotly.restyle(at("plot"), frame.data, moving);
}
at("t").oninput = show;
show();
</script>
"""

"""The zoo explorer: every network as a point, at any step of its training; the chosen ones' curves and facts beside it.

Left any two facts or principal components of the weights, in a frame that is the same at every step; right a fact over
the steps. A click on a point, or the lists, choose two or three networks (`plots.zoo_frame` is the static twin).
"""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from wsnotebook import plots
from wsnotebook.explorers.common import (
    AXIS,
    LAYOUT,
    Displayed,
    Plot,
    buttons,
    chooser,
    html_options,
    legend,
    write_page,
)
from wsnotebook.plots import zoo as pictures
from wsnotebook.plots.common import INK
from wsnotebook.plots.zoo import PALETTE, PICKED, Column

NOBODY = -1  # as the third network
SLOTS = ("first", "second", "third")
HOVER = 12  # facts in a hover, at most


class Explorer(Displayed):
    """A zoo's networks, two or three of which are chosen. Its rows may be snapshots of their training.

    aligned: the same rows after alignment, whose principal components can then be shown as well. at: the step to begin
    with, or "last". Raises ValueError for fewer than three networks, another aligned zoo, or a step that was not kept.
    """

    def __init__(self, zoo, aligned=None, at: int | Literal["last"] = "last"):
        self.zoo, self.aligned = zoo, aligned
        self.columns = pictures.columns(zoo, pictures.choices(zoo, aligned), aligned)
        self.steps, self.rows = pictures.snapshots(zoo)  # (s,), (s, networks)
        if self.rows.shape[1] < 3:
            raise ValueError(f"zoo: {self.rows.shape[1]} networks, expected at least three to choose from")
        if at != "last" and at not in self.steps:
            raise ValueError(f'at={at!r}: expected "last" or one of the steps {", ".join(map(str, self.steps))}')
        self._listeners, self._hovers = [], {}
        facts = zoo.facts
        self._varying = [name for name, values in facts.items() if name == "step" or (values != values[0]).any()]
        numeric = [name for name, column in self.columns.items() if column.numeric]
        preferred = "validation_accuracy" if "validation_accuracy" in numeric else numeric[-1]
        start = len(self.steps) - 1 if at == "last" else int(np.searchsorted(self.steps, at))
        steps = [(f"{step:,}", k) for k, step in enumerate(self.steps)]
        tip = "training step: the arrow keys move it"
        self.step = widgets.SelectionSlider(options=steps, value=start, description="step", tooltip=tip)
        self.step.layout.width = "420px"
        self.x, self.y = (chooser(name, numeric, component) for name, component in (("x", "PC1"), ("y", "PC2")))
        self.colour = chooser("colour", list(self.columns), preferred)
        self.curve = chooser("curves", numeric, preferred)
        names = [(f"model {name}", i) for i, name in enumerate(self._names())]
        self.first, self.second = chooser("first", names, 0), chooser("second", names, 1)
        self.third = chooser("third", [("none", NOBODY), *names], NOBODY)
        self.turn = buttons("a click is", SLOTS)
        self.readout, self.key = widgets.HTML(self._table()), widgets.HTML(self._key())
        self.plot = Plot(self._picture())
        for control in (self.step, self.x, self.y, self.colour):
            control.observe(lambda change: self._draw(), "value")
        self.curve.observe(lambda change: self._draw(still=True), "value")
        for control in (self.first, self.second, self.third):
            control.observe(self._chosen, "value")
        self.plot.data[STILL].on_click(self._clicked)
        lists = [self.x, self.y, self.colour, self.curve], [self.first, self.second, self.third, self.turn]
        boxes = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in lists]
        self.view = widgets.VBox([self.step, *boxes, self.plot, self.key, self.readout])

    @property
    def selected(self) -> list[int]:
        """Row numbers of the two or three chosen networks at the shown step."""
        networks = (self.first.value, self.second.value, self.third.value)
        return [int(self.rows[self.step.value, network]) for network in networks if network != NOBODY]

    def on_select(self, listener: Callable[[list[int]], None]) -> None:
        """Call the listener with `selected` whenever the selection or the step changes."""
        self._listeners.append(listener)

    def figure(self) -> Figure:
        """The static twin of what is shown."""
        step = int(self.steps[self.step.value])
        shown = (self.x.value, self.y.value, self.colour.value, self.curve.value)
        return plots.zoo_frame(self.zoo, *shown, aligned=self.aligned, step=step, chosen=self.selected)

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network: all steps, facts and networks. Returns its path.

        Raises OSError when it cannot be written.
        """
        names = list(self.columns)
        chosen = {name: getattr(self, name).value for name in ("step", "x", "y", "colour", "curve", *SLOTS)}
        data = {
            "columns": {name: _stored(column) for name, column in self.columns.items()},
            "rows": self.rows.tolist(),
            "steps": self._step_of_rows().tolist(),
            "varying": self._varying,
            "chosen": chosen | {"turn": self.turn.value},
            "picked": PICKED,
            "still": STILL,
            "hover": HOVER,
            "labels": [f"{step:,}" for step in self.steps],
        }
        numeric = [name for name in names if self.columns[name].numeric]
        parts = {
            "KEY": legend(list(RIGHT_KEY)),
            "NUMERIC": _named_options(numeric),
            "EVERY": _named_options(names),
            "NETWORKS": html_options([f"model {name}" for name in self._names()]),
        }
        values = {"LAST": len(self.steps) - 1, "DATA": data}
        return write_page(path, "Zoo explorer", STYLE, BODY, self._picture(), values, parts)

    def _text(self) -> str:
        step = f"{self.steps[self.step.value]:,}"
        fact, picked = self.columns[self.curve.value], zip(SLOTS, self.selected, strict=False)
        values = [f"{slot} model {self._models()[row]}: {_written(fact.values[row])}" for slot, row in picked]
        chosen = f"{fact.label}, {', '.join(values)}"
        return f"Zoo explorer: {self.rows.shape[1]} networks at step {step}; {chosen}"

    def _names(self) -> list[str]:
        """Of each network."""
        return self._models()[self.rows[-1]].astype(str).tolist()

    def _models(self) -> np.ndarray:
        return self.zoo.facts.get("model", np.arange(len(self.zoo)))

    def _chosen(self, change) -> None:
        """A network is chosen once: who takes another's gives it his own."""
        for other in (self.first, self.second, self.third):
            if other is not change.owner and other.value == change.new:
                other.value = change.old if change.old != NOBODY else self._free()
        self._draw()

    def _free(self) -> int:
        taken = (self.first.value, self.second.value, self.third.value)
        return next(i for i in range(self.rows.shape[1]) if i not in taken)

    def _clicked(self, trace, points, state) -> None:
        if points.point_inds:
            slot = self.turn.value
            self.turn.value = SLOTS[(SLOTS.index(slot) + 1) % len(SLOTS)]
            getattr(self, slot).value = int(points.point_inds[0])

    def _draw(self, still: bool = False) -> None:
        """Bring plot, key and readout up to the controls, in one message; still: the traces that seldom change too."""
        self.readout.value, self.key.value = self._table(), self._key()
        self._update(self.plot, still)
        for listener in self._listeners:
            listener(self.selected)

    def _picture(self) -> go.Figure:
        figure = go.Figure(TRACES, LAYOUT | AXES)
        self._update(figure, still=True)
        return figure

    def _update(self, figure: go.Figure, still: bool) -> None:
        traces = (self._still() if still else []) + self._moving()
        data = {key: [trace[key] for trace in traces] for key in traces[0]}
        figure.plotly_update(data, self._axes(), list(range(len(TRACES)))[-len(traces) :])

    def _still(self) -> list[dict]:
        """All networks' curves, and their median."""
        fact, steps = self.columns[self.curve.value], self._step_of_rows()
        curves = np.stack([steps[self.rows.T], fact.values[self.rows.T]])  # (2, networks, s)
        x, y = np.pad(curves, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan).reshape(2, -1)
        median = np.median(fact.values[self.rows], axis=1)
        return [_values(x, y, colour="#999999"), _values(steps[self.rows].max(1), median)]

    def _moving(self) -> list[dict]:
        """The points, the rings, the chosen networks' curves, and the line at the step that is shown."""
        across, up, tint, fact = (self.columns[c.value] for c in (self.x, self.y, self.colour, self.curve))
        here, chosen, steps = self.rows[self.step.value], self.selected, self._step_of_rows()
        traces = [
            _values(across.values[here], up.values[here], self._hover(here), *_coloured(tint, here)),
            _values(across.values[chosen], up.values[chosen], list("123"), list(PICKED), "circle-open"),
        ]
        for slot, colour in zip((self.first, self.second, self.third), PICKED, strict=True):
            path = self.rows[:, [] if slot.value == NOBODY else slot.value].ravel()
            traces.append(_values(steps[path], fact.values[path], colour=colour))
        return [*traces, _values([int(steps[here].max())] * 2, _ends(fact))]

    def _axes(self) -> dict[str, object]:
        """{property path: value} of what the lists choose, the same at every step."""
        across, up, tint, fact = (self.columns[c.value] for c in (self.x, self.y, self.colour, self.curve))
        parts = {"xaxis": _axis(across), "yaxis": _axis(up), "yaxis2": _height(fact), "coloraxis": _scale(tint)}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}

    def _step_of_rows(self) -> np.ndarray:
        return self.zoo.facts.get("step", np.zeros(len(self.zoo), int))

    def _hover(self, rows: np.ndarray) -> list[str]:
        """What sets each network apart."""
        k = self.step.value
        if k not in self._hovers:
            written = [[f"{name} {_written(v)}" for v in self.zoo.facts[name][rows]] for name in self._varying[:HOVER]]
            self._hovers[k] = ["<br>".join(map(html.escape, parts)) for parts in zip(*written, strict=True)]
        return self._hovers[k]

    def _table(self) -> str:
        """The chosen networks' facts, as far as they differ anywhere in the zoo."""
        head = "".join(f"<th {CELL}>{html.escape(self.columns[name].label)}</th>" for name in self._varying)
        body = ""
        for number, colour, row in zip("123", PICKED, self.selected, strict=False):
            cells = "".join(
                f"<td {CELL}>{html.escape(_written(self.zoo.facts[name][row]))}</td>" for name in self._varying
            )
            body += f"<tr><th style='color: {colour}'>{number}</th>{cells}</tr>"
        return (
            f"<div role='status' aria-live='polite' style='{TABLE}'><table><tr><th></th>{head}</tr>{body}</table></div>"
        )

    def _key(self) -> str:
        """The colours of a fact of strings, and what the right half's lines are."""
        return legend([*_kinds_key(self.columns[self.colour.value]), *RIGHT_KEY])


def _named_options(names: list[str]) -> str:
    return "".join(f"<option>{html.escape(name)}</option>" for name in names)


def _stored(column: Column) -> dict:
    """A column as the page needs it: six digits a number."""
    every = np.arange(len(column.values))
    colours, symbols = _coloured(column, every)
    if column.numeric:
        axes = {"xaxis": _axis(column), "yaxis": _axis(column), "yaxis2": _height(column), "coloraxis": _scale(column)}
        values = _short(column.values)
        colours = _short(colours) if column.log else None
    else:
        axes, values = {"coloraxis": _scale(column)}, column.values.tolist()
    looks = {"colours": colours, "symbols": symbols, "key": legend(_kinds_key(column))}
    ends = _ends(column) if column.numeric else None
    return looks | {"label": column.label, "values": values, "axes": axes, "ends": ends}


def _short(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _kinds_key(column: Column) -> list[str]:
    """What the colours of strings mean."""
    names = [] if column.numeric else pictures.kinds(column.values)[0]
    looks = zip(names, PALETTE, GLYPHS, strict=False)
    return [f"<b style='color: {colour}'>{glyph}</b> {html.escape(name)}" for name, colour, glyph in looks]


def _written(value) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _values(x, y, text=None, colour=INK, symbol="circle") -> dict:
    return {"x": x, "y": y, "text": text, "marker.color": colour, "marker.symbol": symbol}


def _coloured(column: Column, rows: np.ndarray) -> tuple:
    """Colours and symbols of the points."""
    if column.numeric:
        return (np.log10(column.values[rows]) if column.log else column.values[rows]), "circle"
    index = pictures.kinds(column.values)[1][rows]
    return [PALETTE[i] for i in index], [SYMBOLS[i] for i in index]


def _axis(column: Column) -> dict:
    return {"title.text": column.label, "range": list(pictures.limits(column))}


def _height(column: Column) -> dict:
    """The axis of the curves. Its type stands first, as a new type changes the range."""
    if not column.log:
        return {"type": "linear"} | _axis(column) | _ticks(column)
    low, high = np.log10(column.ends).tolist()
    room = 0.05 * (high - low)
    return {"type": "log"} | _axis(column) | {"range": [low - room, high + room]} | _ticks(column)


def _ends(column: Column) -> list[float]:
    """Of the axis of the curves, in the fact's unit."""
    ends = _height(column)["range"]
    return [10**end for end in ends] if column.log else ends


def _scale(column: Column) -> dict:
    """Of the colours; a fact of strings has none."""
    if not column.numeric:
        return {"showscale": False}
    low, high = np.log10(column.ends).tolist() if column.log else column.ends
    ticks = {f"colorbar.{name}": value for name, value in _ticks(column).items()}
    if column.log:
        ticks["colorbar.tickvals"] = np.log10(ticks["colorbar.tickvals"]).tolist()
    return {"showscale": True, "colorbar.title.text": column.label, "cmin": low, "cmax": high} | ticks


def _ticks(column: Column) -> dict:
    """1, 2 and 5 of each decade on a logarithmic scale."""
    if not column.log:
        return {"tickmode": "auto", "tickvals": None, "ticktext": None}
    low, high = column.ends
    values = [v for v in LogLocator(subs=(1, 2, 5)).tick_values(low, high) if low <= v <= high]
    return {"tickmode": "array", "tickvals": values, "ticktext": [f"{value:g}" for value in values]}


SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "circle")
GLYPHS = tuple("\u25cf\u25a0\u25b2\u25c6\u25bc\u271a\u2716\u25cf")
_LINE = "display: inline-block; width: 22px; vertical-align: middle; margin-right: 5px"
RIGHT_KEY = (
    f"<span style='{_LINE}; height: 3px; background: {INK}'></span>median",
    f"<span style='{_LINE}; height: 1px; background: #999999'></span>all networks",
    *(
        f"<b style='color: {colour}'>{number}</b> {slot}"
        for number, colour, slot in zip("123", PICKED, SLOTS, strict=True)
    ),
)
CELL = "style='padding: 0 0.5em; text-align: right'"
TABLE = "overflow-x: auto; font-size: 12px; line-height: 1.5; font-variant-numeric: tabular-nums"
STILL = 2  # traces that the step does not move
_LINES = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "xaxis": "x2", "yaxis": "y2"}
_CHOSEN = _LINES | {"mode": "lines+markers", "marker": {"size": 5}}
TRACES = (
    _LINES | {"name": "all networks", "line": {"color": "rgba(120, 120, 120, 0.3)", "width": 1}},
    _LINES | {"name": "median", "line": {"color": INK, "width": 3}},
    {
        "type": "scatter",
        "mode": "markers",
        "name": "networks",
        "marker": {"size": 9, "coloraxis": "coloraxis", "line": {"color": "white", "width": 0.7}},
        "hovertemplate": "%{text}<extra></extra>",
    },
    {
        "type": "scatter",
        "mode": "markers+text",
        "name": "chosen",
        "hoverinfo": "skip",
        "textposition": "top right",
        "textfont": {"size": 14, "weight": 700},
        "marker": {"size": 17, "line": {"width": 2.5}},
    },
    *(
        _CHOSEN | {"name": slot, "line": {"color": colour, "width": 2.5}}
        for slot, colour in zip(SLOTS, PICKED, strict=True)
    ),
    _LINES | {"name": "step", "line": {"color": INK, "width": 1, "dash": "dot"}},
)
AXES = {
    "height": 400,
    "clickmode": "event",
    "hoverlabel": {"bgcolor": "white"},
    "xaxis": AXIS | {"domain": [0, 0.44], "title": {"standoff": 8}},
    "yaxis": AXIS,
    "xaxis2": AXIS | {"domain": [0.64, 1], "anchor": "y2", "title": {"text": "training step", "standoff": 8}},
    "yaxis2": AXIS | {"anchor": "x2"},
    "coloraxis": {
        "colorscale": "Viridis",
        "colorbar": {"x": 0.45, "xanchor": "left", "thickness": 12, "outlinewidth": 0, "title": {"side": "right"}},
    },
}

STYLE = """
body { max-width: 72em }
form { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; align-items: center; margin-bottom: 0.4em }
#step { width: 20em; vertical-align: middle }
select { max-width: 14em }
fieldset { border: 0; padding: 0; margin: 0 }
table { border-collapse: collapse } th, td { padding: 0 0.6em; text-align: right; border-bottom: 1px solid #dddddd }
"""

BODY = """
<form>
<label>step <input id="step" type="range" min="0" max="@LAST@"> <output id="label"></output></label>
<label>x <select id="x">@NUMERIC@</select></label>
<label>y <select id="y">@NUMERIC@</select></label>
<label>colour <select id="colour">@EVERY@</select></label>
<label>curves <select id="curve">@NUMERIC@</select></label>
<label>first <select id="first">@NETWORKS@</select></label>
<label>second <select id="second">@NETWORKS@</select></label>
<label>third <select id="third"><option value="-1">none</option>@NETWORKS@</select></label>
<fieldset>a click is
<label><input type="radio" name="turn" value="first"> first</label>
<label><input type="radio" name="turn" value="second"> second</label>
<label><input type="radio" name="turn" value="third"> third</label></fieldset>
</form>
@DRAWN@
<div id="kinds"></div>
@KEY@
<div id="facts"></div>
<script>
const zoo = @DATA@;
const at = id => document.getElementById(id), form = document.querySelector("form");
const slots = ["first", "second", "third"], chosen = Object.assign({}, zoo.chosen);
const take = (values, rows) => rows.map(row => values[row]);
const escaped = text => new Option(text).innerHTML;
const written = value => escaped(typeof value === "number" ? String(Number(value.toPrecision(4))) : value);
const look = (x, y, text = null, colour = "#333333", symbol = "circle") =>
  ({x, y, text, "marker.color": colour, "marker.symbol": symbol});
function still() {
  const fact = zoo.columns[chosen.curve].values, x = [], y = [];
  zoo.rows[0].forEach((_, i) => {
    zoo.rows.forEach(rows => { x.push(zoo.steps[rows[i]]); y.push(fact[rows[i]]); });
    x.push(null); y.push(null);
  });
  const middle = rows => {
    const sorted = take(fact, rows).sort((a, b) => a - b), half = (sorted.length - 1) / 2;
    return (sorted[Math.floor(half)] + sorted[Math.ceil(half)]) / 2;
  };
  const steps = zoo.rows.map(rows => Math.max(...take(zoo.steps, rows)));
  return [look(x, y, null, "#999999"), look(steps, zoo.rows.map(middle))];
}
function moving() {
  const [x, y, colour, fact] = ["x", "y", "colour", "curve"].map(name => zoo.columns[chosen[name]]);
  const here = zoo.rows[chosen.step];
  const text = here.map(row =>
    zoo.varying.slice(0, zoo.hover).map(name => name + " " + written(zoo.columns[name].values[row])).join("<br>"));
  const picked = slots.filter(slot => chosen[slot] >= 0).map(slot => here[chosen[slot]]);
  const symbols = typeof colour.symbols === "string" ? colour.symbols : take(colour.symbols, here);
  const step = Math.max(...take(zoo.steps, here));
  return [
    look(take(x.values, here), take(y.values, here), text, take(colour.colours || colour.values, here), symbols),
    look(take(x.values, picked), take(y.values, picked), ["1", "2", "3"], zoo.picked, "circle-open"),
    ...slots.map((slot, i) => {
      const path = chosen[slot] < 0 ? [] : zoo.rows.map(rows => rows[chosen[slot]]);
      return look(take(zoo.steps, path), take(fact.values, path), null, zoo.picked[i]);
    }),
    look([step, step], fact.ends),
  ];
}
function axes() {
  const layout = {};
  for (const [axis, name] of [["xaxis", "x"], ["yaxis", "y"], ["yaxis2", "curve"], ["coloraxis", "colour"]])
    for (const [key, value] of Object.entries(zoo.columns[chosen[name]].axes[axis])) layout[axis + "." + key] = value;
  return layout;
}
function table() {
  const here = zoo.rows[chosen.step], cell = (tag, text) => "<" + tag + ">" + text + "</" + tag + ">";
  const head = zoo.varying.map(name => cell("th", escaped(zoo.columns[name].label))).join("");
  const rows = slots.map((slot, i) => chosen[slot] < 0 ? "" :
    cell("tr", "<th style='color: " + zoo.picked[i] + "'>" + (i + 1) + "</th>" +
      zoo.varying.map(name => cell("td", written(zoo.columns[name].values[here[chosen[slot]]]))).join("")));
  return "<div role='status' aria-live='polite' style='TABLE'><table>" + cell("tr", "<th></th>" + head) +
    rows.join("") + "</table></div>";
}
function show(whole) {
  for (const name of ["step", "x", "y", "colour", "curve", ...slots]) at(name).value = chosen[name];
  form.elements.turn.value = chosen.turn;
  at("label").textContent = zoo.labels[chosen.step];
  at("kinds").innerHTML = zoo.columns[chosen.colour].key;
  at("facts").innerHTML = table();
  const traces = whole ? [...still(), ...moving()] : moving(), data = {};
  for (const key of Object.keys(traces[0])) data[key] = traces.map(trace => trace[key]);
  Plotly.update(at("plot"), data, axes(), traces.map((_, i) => i + (whole ? 0 : zoo.still)));
}
function choose(slot, network) {
  const other = slots.find(name => name !== slot && chosen[name] === network && network >= 0);
  if (other) {
    const taken = slots.map(name => chosen[name]);
    chosen[other] = chosen[slot] >= 0 ? chosen[slot] : zoo.rows[0].findIndex((_, i) => !taken.includes(i));
  }
  chosen[slot] = network;
  show(false);
}
at("step").oninput = () => { chosen.step = Number(at("step").value); show(false); };
for (const name of ["x", "y", "colour", "curve"])
  at(name).onchange = () => { chosen[name] = at(name).value; show(name === "curve"); };
for (const slot of slots) at(slot).onchange = () => choose(slot, Number(at(slot).value));
form.elements.turn.forEach(button => button.onchange = () => { chosen.turn = button.value; });
at("plot").on("plotly_click", event => {
  const point = event.points.find(point => point.curveNumber === zoo.still);
  if (!point) return;
  const slot = chosen.turn;
  chosen.turn = slots[(slots.indexOf(slot) + 1) % slots.length];
  choose(slot, point.pointNumber);
});
show(true);
</script>
""".replace("TABLE", TABLE)

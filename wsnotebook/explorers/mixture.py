"""The mixture explorer: a slider over the epochs of soft weight-sharing, while it trains or afterwards.

Left the weights' histogram under the mixture, right every weight before and now: `plots.mixture_frame`, which gives
the numbers and is the static twin. After training, `Explorer(result)`. While training, show `live = Explorer()`, then
run `result = compress(..., watch=live.watch)` in another cell, and last `live.watch(result)`.
"""

import threading
import uuid
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from wsnotebook import plots
from wsnotebook.explorers.common import (
    AXIS,
    LAYOUT,
    Displayed,
    FigureWidget,
    buttons,
    html_options,
    legend,
    packed,
    readout,
    write_page,
)
from wsnotebook.plots.common import INK, OTHER, SIGMA, SPIKE, WEIGHTS
from wsnotebook.plots.mixture import Frame

POINTS = 600  # weights drawn in the scatter, evenly spread over the followed ones: much of a step's time goes there
HTML_EPOCHS = 60  # more than this are thinned in `to_html`
NONE = 1e-6  # weights in an empty bin: a logarithm needs some
ALL = "all layers"


class Explorer(Displayed):
    """Histogram, components and before/after scatter of a soft weight-sharing result, epoch by epoch.

    Without a result it waits for one: pass `watch` to `compress`. Its widgets are slider, play, stop, layer, scale,
    readout and plot; `view` holds them.
    """

    def __init__(self, result=None):
        self.result, self._live = result, result is None
        self._lock, self._setting, self._stopped = threading.RLock(), False, False
        self._display_id, self._shown = uuid.uuid4().hex, False  # in the notebook
        self._drawn, self._missed = False, False  # by a browser
        last = len(result.trace) - 1 if result else 0
        tip = "epoch of retraining: the arrow keys move it"
        self.slider = widgets.IntSlider(last, 0, last, description="epoch", tooltip=tip, layout={"width": "340px"})
        self.play = widgets.Play(value=last, min=0, max=last, interval=400, tooltip="play the epochs")
        self.layer = widgets.Dropdown(options=self._layers(), description="layer", layout={"width": "240px"})
        self.scale = buttons("counts", ["log", "linear"])
        self.stop = widgets.Button(description="Stop and keep", icon="stop", disabled=self._live)
        self.stop.tooltip = "end training after this epoch; what is there is quantised and kept"
        self.readout = widgets.HTML(self._facts())
        self.plot = FigureWidget(_picture(result, ALL, last, "log"))
        widgets.jslink((self.play, "value"), (self.slider, "value"))
        for control in (self.slider, self.layer, self.scale):
            control.observe(lambda change: self._setting or self._draw(), "value")
        self.stop.on_click(lambda button: self._ask_to_stop())
        self.plot.observe(self._on_drawn, "_js2py_traceDeltas")
        rows = [self.play, self.slider, *([self.stop] if self._live else [])], [self.layer, self.scale]
        boxes = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        self.view = widgets.VBox([*boxes, self.readout, self.plot, widgets.HTML(_key())])
        self._unbind()

    def watch(self, result) -> bool | None:
        """Show the result so far, at its last epoch unless the slider was moved back; True when stop was pressed.

        For `compress(watch=...)`, called after every epoch. Called once more with the finished result, it puts the
        last picture and its text into the notebook.
        """
        with self._lock:  # the controls' messages come in on another thread while a cell runs
            last = len(result.trace) - 1
            follow = self.result is None or last == 0 or self.slider.value == self.slider.max
            self.result, self._setting = result, True
            self.slider.max = self.play.max = last
            if follow:
                self.slider.value = last
            if self.layer.options != self._layers():
                self.layer.options = self._layers()
            self._setting = False
            self._draw()
            stopped, self._stopped = self._stopped, False
            self.stop.description = "Stop and keep"
            self.stop.disabled = stopped or result.compressed is not None or last >= result.config.epochs
            self._unbind()
        if result.compressed and self._shown:
            self._publish(transient={"display_id": self._display_id}, update=True)
        return stopped or None

    def figure(self, epoch: int | None = None, layer: str | None = None, log: bool | None = None) -> Figure:
        """The static twin, as `plots.mixture_frame`; what is None is as the controls say."""
        if self.result is None:
            figure = Figure(figsize=(7, 1), dpi=100)
            figure.text(0.5, 0.5, "The mixture appears here while the training below runs.", ha="center", va="center")
            return figure
        epoch = self.slider.value if epoch is None else epoch
        log = self.scale.value == "log" if log is None else log
        return plots.mixture_frame(self.result, epoch, _tensor(layer or self.layer.value), log)

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network: every layer, at most 60 epochs. Returns its path.

        Raises ValueError while there is no result, OSError when the path cannot be written.
        """
        if self.result is None:
            raise ValueError(
                "the explorer has no result yet, so there is nothing to write: train with watch=live.watch"
            )
        last = len(self.result.trace) - 1
        epochs = np.unique(np.linspace(0, last, min(last + 1, HTML_EPOCHS)).round().astype(int)).tolist()
        frames, texts, axes = {}, {}, []
        for i, layer in enumerate(self._layers()):
            axes.append({scale: axis_ranges(self.result, layer, scale) for scale in self.scale.options})
            for epoch in epochs:
                f = plots.frame(self.result, epoch, _tensor(layer))
                frames[f"{i}/{epoch}"] = [
                    {key: packed(values) for key, values in trace.items()} for trace in trace_arrays(f)
                ]
                texts[f"{i}/{epoch}"] = readout(_facts(self.result, f))
        parts = {"KEY": _key(), "OPTIONS": html_options(self._layers())}
        values = {"EPOCHS": epochs, "TEXTS": texts, "AXES": axes, "FRAMES": frames, "LAST": len(epochs) - 1}
        figure = _picture(self.result, ALL, last, "log")
        return write_page(path, "Mixture explorer", STYLE, BODY, figure, values, parts)

    def _ipython_display_(self) -> None:
        self._shown = True
        self._publish(transient={"display_id": self._display_id})

    def _text(self) -> str:
        text = "waiting for the training below"
        if self.result is not None:
            facts = _facts(self.result, self._frame())
            text = f"{self.layer.value}, {', '.join(f'{name} {value}' for name, value in facts.items())}"
        return f"Mixture explorer: {text}"

    def _layers(self) -> tuple[str, ...]:
        return (ALL, *self.result.layout.names) if self.result else (ALL,)

    def _frame(self) -> Frame:
        return plots.frame(self.result, self.slider.value, _tensor(self.layer.value))

    def _facts(self) -> str:
        if not self.result:
            return "Waiting for the first epoch of training."
        return readout(_facts(self.result, self._frame()))

    def _ask_to_stop(self) -> None:
        self._stopped, self.stop.disabled, self.stop.description = True, True, "Stopping ..."

    def _draw(self) -> None:
        """Bring readout and plot up to the controls.

        A browser that has not drawn the plot yet misses what is sent to it, so a live plot waits until one has; without
        a browser it stays as it was built. x and y of all traces go together, as it keeps only the last it was sent.
        """
        with self._lock:
            self.readout.value = self._facts()
            if self.result is None or (self._live and not self._drawn):
                return
            self._missed = not self._drawn
            arrays = trace_arrays(self._frame())
            data = {key: [trace[key] for trace in arrays] for key in ("x", "y")}
            self.plot.plotly_update(data, axis_ranges(self.result, self.layer.value, self.scale.value))

    def _on_drawn(self, change) -> None:
        """The browser tells of its first drawing: send it what it missed."""
        with self._lock:
            if self._drawn or not change["new"]:
                return
            self._drawn = True
            if self._missed:  # what is the same as before is not sent
                axes = axis_ranges(self.result, self.layer.value, self.scale.value)
                self.plot.plotly_update({"x": None, "y": None}, dict.fromkeys(axes))
            self._draw()

    def _unbind(self) -> None:
        """Let the controls answer while a cell runs.

        JupyterLab sends their messages to a subshell of the kernel. ipykernel 7.4 has them wait for the shell that last
        sent something to the control, unless it knows of none. Other versions take no notice.
        """
        for widget in (self.slider, self.play, self.layer, self.scale, self.stop, self.plot):
            vars(widget.comm).pop("_reply_subshell_id", None)


# ---- the plotly figure: traces in drawing order, and the numbers of one epoch in the same order ---------------------

_CURVE = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
_RIGHT = {"xaxis": "x2", "yaxis": "y2"}
_FILL = {"type": "scatter", "mode": "none", "hoverinfo": "skip", "fill": "toself"} | _RIGHT
TRACES = (
    _CURVE | {"name": "weights", "line": {"shape": "hvh", "width": 0}, "fill": "tozeroy", "fillcolor": WEIGHTS},
    _CURVE | {"name": "mixture", "line": {"color": INK, "width": 1.5}},
    _CURVE | {"name": "other components", "line": {"color": OTHER, "width": 1.7}},
    _CURVE | {"name": "spike at zero", "line": {"color": SPIKE, "width": 1.7}},
    _FILL | {"name": "bands", "fillcolor": "rgba(213, 94, 0, 0.3)"},
    _FILL | {"name": "spike band", "fillcolor": "rgba(0, 114, 178, 0.35)"},
    _CURVE | _RIGHT | {"name": "means", "line": {"color": OTHER, "width": 0.8}},
    _CURVE | _RIGHT | {"name": "unchanged", "line": {"color": INK, "width": 1, "dash": "dash"}},
    _RIGHT
    | {"type": "scatter", "mode": "markers", "name": "points", "marker": {"color": INK, "size": 4, "opacity": 0.5}},
)
KEY = {"weights": (WEIGHTS, 10), "mixture": (INK, 2), "spike at zero": (SPIKE, 3), "other components": (OTHER, 3)}
AXES = {
    "xaxis": AXIS | {"domain": [0, 0.46], "title": {"text": "weight value", "standoff": 8}},
    "yaxis": AXIS | {"tickformat": ","},
    "xaxis2": AXIS | {"domain": [0.58, 1], "anchor": "y2", "title": {"text": "weight at epoch 0", "standoff": 8}},
    "yaxis2": AXIS | {"anchor": "x2", "title": {"text": "weight now"}},
}


def _picture(result, layer: str, epoch: int, scale: str) -> go.Figure:
    """The figure in the state to be shown; empty while there is no result."""
    if result is None:
        return go.Figure(TRACES, LAYOUT | AXES)
    arrays = trace_arrays(plots.frame(result, epoch, _tensor(layer)))
    figure = go.Figure([trace | values for trace, values in zip(TRACES, arrays, strict=True)], LAYOUT | AXES)
    return figure.update_layout(axis_ranges(result, layer, scale))


def trace_arrays(f: Frame) -> list[dict[str, np.ndarray]]:
    """x and y of every trace at one epoch. Several curves in one trace are parted by nan."""
    side, free = f.limit, range(1, len(f.means))
    pieces = [_piece(f, j) for j in range(len(f.means))]
    curves = [(f.grid[piece], f.components[j, piece]) for j, piece in enumerate(pieces)]
    chosen = np.linspace(0, len(f.after) - 1, min(POINTS, len(f.after))).round().astype(int)
    corners, ends = np.array([-side, side, side, -side]), np.array([-side, side])
    return [
        {"x": (f.edges[1:] + f.edges[:-1]) / 2, "y": np.maximum(f.counts, NONE)},
        {"x": f.grid, "y": f.components.sum(0)},
        {"x": _parted(x for x, _ in curves[1:]), "y": _parted(y for _, y in curves[1:])},
        {"x": curves[0][0], "y": curves[0][1]},
        {"x": _parted(corners for _ in free), "y": _parted(_band(f, j) for j in free)},
        {"x": corners, "y": _band(f, 0)},
        {"x": _parted(ends for _ in free), "y": _parted([f.means[j]] * 2 for j in free)},
        {"x": ends, "y": ends},
        {"x": f.before[chosen], "y": f.after[chosen]},
    ]


def _piece(f: Frame, j: int) -> np.ndarray:
    """About 50 places in the grid that draw one component's bell."""
    near = np.nonzero(np.abs(f.grid - f.means[j]) <= 5.5 * f.sigmas[j] + f.width)[0]
    return np.append(near[:: 1 + len(near) // 50], near[-1:])


def _band(f: Frame, j: int) -> np.ndarray:
    return f.means[j] + 2 * f.sigmas[j] * np.array([-1, -1, 1, 1])


def _parted(pieces) -> np.ndarray:
    return np.concatenate([np.append(piece, np.nan) for piece in pieces])


def axis_ranges(result, layer: str, scale: str) -> dict[str, object]:
    """{property path: value} of the layout that depends on layer and scale, the same at every epoch."""
    f, highest = plots.frame(result, 0, _tensor(layer)), plots.top(result, _tensor(layer))
    log = {"type": "log", "range": [np.log10(f.floor), np.log10(2 * highest)], "tickmode": "linear", "dtick": 1}
    counts = (
        log if scale == "log" else {"type": "linear", "range": [0, 1.05 * highest], "tickmode": "auto", "dtick": None}
    )
    wide = [-f.limit, f.limit]
    ranges = {"xaxis.range": wide, "xaxis2.range": wide, "yaxis2.range": wide}
    title = {"yaxis.title.text": f"weights in a bin of {f.width:.2g}"}
    return ranges | title | {f"yaxis.{name}": value for name, value in counts.items()}


def _facts(result, f: Frame) -> dict[str, str]:
    """What the readout and the text say, rounded."""
    history, last = result.history, len(result.trace) - 1
    facts = {
        "epoch": f"{f.epoch} of {result.config.epochs}",
        "validation error": f"{history['validation_error'][f.epoch]:.2f} %",
        f"spike {SIGMA}": f"{f.sigmas[0]:.3g}",
        "weights in the spike": f"{f.spike_percent:.1f} %",
        "tau": f"{history['tau'][f.epoch]:.3g}",
    }
    if result.compressed and f.epoch == last:
        facts["file"] = f"{result.compressed.ratio:.1f} times smaller"
    return facts


def _key() -> str:
    """The legend; plotly's own would be drawn anew at every step."""
    line = "display: inline-block; width: 22px; vertical-align: middle; margin-right: 5px"
    items = [f"<span style='{line}; height: {h}px; background: {c}'></span>{name}" for name, (c, h) in KEY.items()]
    return legend([*items, f"bands: \N{PLUS-MINUS SIGN}2{SIGMA}", "dashed: unchanged"])


def _tensor(layer: str) -> str | None:
    return None if layer == ALL else layer


STYLE = """
form { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; align-items: center; margin-bottom: 0.4em }
#epoch { width: 20em; vertical-align: middle }
fieldset { border: 0; padding: 0; margin: 0 }
button { min-width: 5em }
"""

BODY = """
<form>
<button id="play" type="button">Play</button>
<label>epoch <input id="epoch" type="range" min="0" max="@LAST@" value="@LAST@"></label>
<label>layer <select id="layer">@OPTIONS@</select></label>
<fieldset>counts
<label><input type="radio" name="scale" value="log" checked> log</label>
<label><input type="radio" name="scale" value="linear"> linear</label></fieldset>
</form>
<div id="facts"></div>
@DRAWN@
@KEY@
<script>
const epochs = @EPOCHS@, texts = @TEXTS@, axes = @AXES@, frames = @FRAMES@;
const at = id => document.getElementById(id), form = document.querySelector("form");
let timer = null;
function show() {
  const name = at("layer").value + "/" + epochs[at("epoch").value];
  at("facts").innerHTML = texts[name];
  Plotly.restyle(at("plot"), {x: frames[name].map(trace => trace.x), y: frames[name].map(trace => trace.y)});
}
function pause() { clearInterval(timer); timer = null; at("play").textContent = "Play"; }
function step() {
  if (at("epoch").value === at("epoch").max) return pause();
  at("epoch").value++;
  show();
}
at("play").onclick = () => {
  if (timer) return pause();
  if (at("epoch").value === at("epoch").max) at("epoch").value = 0;
  at("play").textContent = "Pause";
  show();
  timer = setInterval(step, 400);
};
at("epoch").oninput = () => { pause(); show(); };
const rescale = () => Plotly.relayout(at("plot"), axes[at("layer").value][form.elements.scale.value]);
at("layer").onchange = () => { show(); rescale(); };
form.elements.scale.forEach(button => button.onchange = rescale);
at("facts").innerHTML = texts["0/" + epochs[at("epoch").value]];
</script>
"""

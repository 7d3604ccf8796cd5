"""The compression explorer: every file of a comparison as a point; what is in the chosen one's beside it.

Left bytes and test error of one network's files; right the histogram of the chosen file's weights with its mixture and
codebooks, or for a bank of SuperWeights who shares with whom (`plots.compression_frame` is the static twin). Choose a
file by the slider (arrow keys), or click on its point; hovering tells its settings.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.basedatatypes import Undefined

from wsnotebook.explorers.common import (
    AXIS,
    LAYOUT,
    RING,
    Displayed,
    Plot,
    chooser,
    html_options,
    legend,
    packed,
    readout,
    write_page,
)
from wsnotebook.explorers.sharing_figure import CLUSTERS
from wsnotebook.plots import comparison_compression as pictures
from wsnotebook.plots.common import INK, OTHER, WEIGHTS
from wsnotebook.plots.methods import style


class Explorer(Displayed):
    """Files of several networks, {network: entries of `comparisons.compression`}, and what is in the chosen one.

    Its widgets are network, slider, readout and plot; `view` holds them.
    """

    def __init__(self, entries: Mapping[str, Sequence]):
        self.entries = {name: sorted(own, key=lambda e: e.bytes) for name, own in entries.items()}
        self.methods = list(dict.fromkeys(e.method for own in self.entries.values() for e in own))
        first = next(iter(self.entries))
        self.network = chooser("network", list(self.entries), first)
        tip = "files, the smallest first: the arrow keys move it"
        self.slider = widgets.SelectionSlider(options=self._options(), description="file", tooltip=tip)
        self.slider.layout.width = "520px"
        self.readout = widgets.HTML(readout(_facts(self.chosen)))
        self.plot = Plot(self._picture())
        self.network.observe(self._on_network, "value")
        self.slider.observe(lambda change: self._draw(), "value")
        for trace in self.plot.data[: len(self.methods)]:
            trace.on_click(self._clicked)
        controls = widgets.HBox([self.network, self.slider], layout={"flex_flow": "row wrap"})
        self.view = widgets.VBox([controls, self.readout, self.plot, widgets.HTML(self._key())])

    @property
    def chosen(self):
        """The entry that is shown."""
        return self.entries[self.network.value][self.slider.value]

    def figure(self, network: str | None = None, k: int | None = None) -> Figure:
        """The static twin, for file k of a network, the smallest being 0; None: what is shown."""
        own = self.entries[network or self.network.value]
        return pictures.compression_frame(own, own[self.slider.value if k is None else k])

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network, with all files. Returns its path.

        Raises OSError when it cannot be written.
        """
        shown = {}
        for name, own in self.entries.items():
            files = []
            for e in own:
                traces = [{k: packed(v) if k in "xy" else v for k, v in trace.items()} for trace in self._inside(e)]
                files.append({"traces": traces, "axes": _axes(e), "text": readout(_facts(e))})
            points = [{k: list(v) for k, v in trace.items()} for trace in self._points(own)]
            rings = [{k: list(v) for k, v in self._ring(e).items()} for e in own]
            shown[name] = {"points": points, "rings": rings, "range": _range(own), "files": files}
        last = len(self.entries[self.network.value]) - 1
        values = {"NETWORKS": list(shown.values()), "LAST": last, "AT": self.slider.value}
        parts = {"KEY": self._key(), "OPTIONS": html_options(list(self.entries))}
        return write_page(path, "Compression explorer", STYLE, BODY, go.Figure(self._picture()), values, parts)

    def _text(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in _facts(self.chosen).items())
        count = ", ".join(f"{len(own)} of {name}" for name, own in self.entries.items())
        return f"Compression explorer: files {count}; {facts}"

    def _options(self) -> list[tuple[str, int]]:
        return [(f"{e.bytes:,} bytes", k) for k, e in enumerate(self.entries[self.network.value])]

    def _on_network(self, change) -> None:
        self.slider.options = self._options()  # a browser may then ask for the number it was at
        self._draw()

    def _clicked(self, trace, points, state) -> None:
        if points.point_inds:
            self.slider.value = int(trace.customdata[points.point_inds[0]])

    def _draw(self) -> None:
        """Bring readout and plot up to the controls, in one message."""
        own, e = self.entries[self.network.value], self.chosen
        self.readout.value = readout(_facts(e))
        traces = [*self._points(own), self._ring(e), *self._inside(e)]
        keys = dict.fromkeys(key for trace in traces for key in trace)
        data = {key: [trace.get(key, Undefined) for trace in traces] for key in keys}
        self.plot.plotly_update(data, _axes(e) | {"yaxis.range": _range(own)}, list(range(len(traces))))

    def _picture(self) -> dict:
        own, e = self.entries[self.network.value], self.chosen
        looks = [_look(method) for method in self.methods]
        traces = [look | values for look, values in zip(looks, self._points(own), strict=True)]
        traces.append(RING | self._ring(e))
        traces += [trace | values for trace, values in zip(INSIDE, self._inside(e), strict=True)]
        figure = go.Figure(traces, LAYOUT | AXES)
        return figure.update_layout(_axes(e) | {"yaxis.range": _range(own)})

    def _points(self, own: Sequence) -> list[dict]:
        """Of every method, those of this network; errors beyond the axis stand on its edge."""
        limit, traces = pictures.top(own), []
        for method in self.methods:
            some = [(k, e) for k, e in enumerate(own) if e.method == method]
            told = ["<br>".join(f"{n} {html.escape(v)}" for n, v in _facts(e).items()) for _, e in some]
            traces.append(
                {
                    "x": [e.bytes for _, e in some],
                    "y": [min(e.test.error, limit) for _, e in some],
                    "customdata": [k for k, _ in some],
                    "text": told,
                }
            )
        return traces

    def _ring(self, e) -> dict:
        return {"x": [e.bytes], "y": [min(e.test.error, pictures.top(self.entries[e.case]))]}

    def _inside(self, e) -> list[dict]:
        """Histogram, mixture, codebooks; or the map of who shares, the others then being empty."""
        drawn = pictures.sharing(e)
        if drawn:
            z = [[None if np.isnan(v) else int(v) for v in row] for row in drawn.grid(drawn.tint)]
            names = np.full(drawn.shape, "", dtype=object)
            for layer, column, cluster in zip(drawn.layers, drawn.column, drawn.cluster, strict=True):
                names[layer.member, column] = f"{html.escape(str(layer))}<br>cluster {cluster}"
            text = [["" if np.isnan(v) else str(int(v)) for v in row] for row in drawn.grid(drawn.cluster)]
            return [*[{"x": [], "y": []}] * 3, {"z": z, "text": text, "customdata": names.tolist()}]
        w = pictures.weights(e)
        sticks = np.stack([np.full(len(w.centres), 0.5), np.full(len(w.centres), 0.8), np.full(len(w.centres), np.nan)])
        lines = [
            ((w.edges[1:] + w.edges[:-1]) / 2, np.maximum(w.counts, NONE)),
            (w.grid, np.maximum(w.mixture, NONE)),
            (np.repeat(w.centres, 3), sticks.T.ravel()),
        ]
        drawn = [{"x": x, "y": y} if len(x) else {"x": [], "y": []} for x, y in lines]  # Lab draws no empty array
        return [*drawn, {"z": [], "text": [], "customdata": []}]

    def _key(self) -> str:
        """The legend; plotly's own would be drawn anew at every step."""
        glyph = {"circle": "\u25cf", "square": "\u25a0", "star": "\u2605", "triangle-down": "\u25bc", "x": "\u2716"}
        glyph |= {"diamond-tall": "\u2666", "triangle-left": "\u25c0", "triangle-right": "\u25b6"}
        glyph |= {"circle-open": "\u25cb", "square-open": "\u25a1", "triangle-down-open": "\u25bd"}
        items = [f"<b style='color: {style(m)[0]}'>{glyph[_symbol(m)]}</b> {html.escape(m)}" for m in self.methods]
        line = "display: inline-block; width: 22px; vertical-align: middle; margin-right: 5px; height:"
        bars = {"weights": (WEIGHTS, 10), "mixture": (INK, 2), "values of codebooks": (OTHER, 3)}
        items += [f"<span style='{line} {h}px; background: {c}'></span>{name}" for name, (c, h) in bars.items()]
        return legend(items)


SYMBOLS = {
    "*": "star", "o": "circle", "s": "square", "v": "triangle-down", "X": "x", "d": "diamond-tall",
    "<": "triangle-left", ">": "triangle-right",
}  # fmt: skip
NONE = 1e-6  # weights in an empty bin: a logarithm needs some
_LINE = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "xaxis": "x2", "yaxis": "y2"}
INSIDE = [
    _LINE | {"name": "weights", "line": {"shape": "hvh", "width": 0}, "fill": "tozeroy", "fillcolor": WEIGHTS},
    _LINE | {"name": "mixture", "line": {"color": INK, "width": 1.5}},
    _LINE | {"name": "codebooks", "line": {"color": OTHER, "width": 2}},
    CLUSTERS | {"xaxis": "x3", "yaxis": "y3"},
]
_RIGHT = [0.58, 1]
AXES = {
    "xaxis": AXIS
    | {
        "domain": [0, 0.46],
        "type": "log",
        "dtick": "D2",
        "tickformat": "~s",
        "title": {"text": "bytes of the file", "standoff": 8},
    },
    "yaxis": AXIS | {"title": {"text": "test error (%)"}},
    "xaxis2": AXIS | {"domain": _RIGHT, "anchor": "y2", "title": {"text": "weight value", "standoff": 8}},
    "yaxis2": AXIS
    | {"anchor": "x2", "type": "log", "dtick": "D2", "tickformat": ",", "title": {"text": "weights in a bin"}},
    "xaxis3": {
        "domain": _RIGHT,
        "anchor": "y3",
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "showticklabels": False,
    },
    "yaxis3": {"anchor": "x3", "showgrid": False, "zeroline": False, "autorange": "reversed", "dtick": 1},
    "clickmode": "event",
    "plot_bgcolor": "rgba(0, 0, 0, 0)",  # else the map's ground, even of no map, hides the histogram
}
AXES["xaxis3"]["title"] = {"text": "layer that shares; numbers: clusters", "standoff": 8}
AXES["yaxis3"]["title"] = {"text": "member"}


def _symbol(method: str) -> str:
    return SYMBOLS[style(method)[1]] + ("-open" if pictures.THEN in method else "")


def _look(method: str) -> dict:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": method,
        "marker": {
            "color": style(method)[0],
            "symbol": _symbol(method),
            "size": 11,
            "line": {"color": "white", "width": 1},
        },
        "hovertemplate": "%{text}<extra></extra>",
        "cliponaxis": False,
    } | (
        {"marker": {"color": style(method)[0], "symbol": _symbol(method), "size": 11}}
        if pictures.THEN in method
        else {}
    )


def _range(own: Sequence) -> list[float]:
    """Of the axis of test errors."""
    limit = pictures.top(own)
    lowest = min(e.test.error for e in own)
    return [max(0.0, lowest - 0.1 * (limit - lowest)), limit]


def _axes(e) -> dict:
    """{property path: value} of the right half's axes: a histogram's, or a map's."""
    shares = pictures.sharing(e) is not None
    seen = {f"{axis}{n}.visible": shares == (n == 3) for n in (2, 3) for axis in ("xaxis", "yaxis")}
    if shares:
        return seen
    w = pictures.weights(e)
    return seen | {
        "xaxis2.range": [w.edges[0], w.edges[-1]],
        "yaxis2.range": np.log10([0.5, 2 * w.counts.max()]).tolist(),
    }


def _facts(e) -> dict[str, str]:
    """What the readout, the hover and the text say, rounded."""
    return {
        "method": html.escape(e.method),
        "setting": html.escape(e.setting),
        "bytes": f"{e.bytes:,}",
        "validation error": f"{e.validation.error:.2f} %",
        "test error": f"{e.test.error:.2f} %",
        "NLL": f"{e.test.loss:.3f} nats",
        "CPU-seconds": f"{e.cpu_seconds:.1f}",
        "products": f"{e.nonzero_macs:,} of {e.macs:,}",
    }


STYLE = "#file { width: 24em; vertical-align: middle }\nform { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em }"

BODY = """
<form>
<label>network <select id="network">@OPTIONS@</select></label>
<label>file, the smallest first <input id="file" type="range" min="0" max="@LAST@" value="@AT@"></label>
</form>
<div id="facts" role="status" aria-live="polite"></div>
@DRAWN@
@KEY@
<script>
const networks = @NETWORKS@, at = id => document.getElementById(id);
function show() {
  const own = networks[at("network").value];
  at("file").max = own.files.length - 1;
  const k = at("file").value, file = own.files[k];
  at("facts").innerHTML = file.text;
  const traces = [...own.points, own.rings[k], ...file.traces], update = {};
  for (const name of ["x", "y", "z", "text", "customdata"]) update[name] = traces.map(trace => trace[name]);
  Plotly.update(at("plot"), update, {...file.axes, "yaxis.range": own.range});
}
at("file").oninput = show;
at("network").onchange = () => { at("file").value = 0; show(); };
at("plot").on("plotly_click", event => {
  const k = event.points[0].customdata;
  if (Number.isInteger(k)) { at("file").value = k; show(); }
});
show();
</script>
"""

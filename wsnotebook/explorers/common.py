"""What explorers have in common: how they are shown in a notebook and written as a page, and how plots look."""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from IPython.display import publish_display_data
from PIL import Image
from plotly.basedatatypes import Undefined
from plotly.offline import get_plotlyjs

from wsnotebook.datasets import replacing
from wsnotebook.plots.common import INK, compact_png

AXIS = {"showline": True, "linecolor": "#666666", "ticks": "outside", "zeroline": False, "showgrid": False}
LAYOUT = {
    "template": "none",
    "autosize": True,
    "height": 360,
    "margin": {"l": 70, "r": 15, "t": 10, "b": 45},
    "font": {"family": "DejaVu Sans, Verdana, sans-serif", "size": 12, "color": INK},
    "showlegend": False,
    "hovermode": "closest",
    "modebar": {"remove": ["select2d", "lasso2d", "zoomin2d", "zoomout2d", "autoscale2d"]},
}
ROW = "display: flex; flex-wrap: wrap; gap: 0 1.6em; font-variant-numeric: tabular-nums"
RING = {  # around the point that is chosen
    "type": "scatter",
    "mode": "markers",
    "name": "chosen",
    "hoverinfo": "skip",
    "cliponaxis": False,
    "marker": {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}},
}


class Displayed:
    """An explorer in a notebook. It has `view` (the widgets), `figure()` (the static twin) and `_text()`."""

    def _ipython_display_(self) -> None:
        self._publish()

    def _publish(self, **how) -> None:
        data = self._repr_mimebundle_()
        publish_display_data(data, {"image/png": {"alt": data["text/plain"]}}, **how)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """The widget; its static twin for readers without a kernel; a text for nbval and for who cannot see it."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.view.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": view,
            "image/png": base64.b64encode(compact_png(self.figure())).decode(),
            "text/plain": self._text(),
        }


class FigureWidget(go.FigureWidget):
    """plotly's, of which a browser first hears when it is whole: a slow one draws it empty if told of it before.

    anywidget gives the plot's script two seconds to start in the browser, and then drops all that is sent to it later.
    """

    def __init__(self, figure: go.Figure):
        self._whole = False
        super().__init__(figure)
        self._whole = True
        self.open()

    def open(self) -> None:
        if self._whole:
            super().open()


class Plot(FigureWidget):
    """A plot that catches up: a browser that has not drawn it yet misses the updates that it is sent."""

    def __init__(self, figure: go.Figure):
        super().__init__(figure)
        self._drawn, self._missed = False, ({}, {})  # names of what was updated in traces and layout, in order
        self.observe(self._on_drawn, "_js2py_traceDeltas")

    def plotly_update(self, restyle_data, relayout_data, trace_indexes=None) -> None:
        if not self._drawn:
            for names, update in zip(self._missed, (restyle_data, relayout_data), strict=True):
                names.update(dict.fromkeys(update))
        super().plotly_update(restyle_data, relayout_data, trace_indexes)

    def _on_drawn(self, change) -> None:
        """The browser tells of its first drawing: send it what it missed."""
        if self._drawn or not change["new"]:
            return
        self._drawn = True
        data = {name: [_property(trace, name) for trace in self.data] for name in self._missed[0]}
        layout = {name: _list(self.layout[name]) for name in self._missed[1]}
        if data or layout:
            nothing = {name: [v if v is Undefined else None for v in values] for name, values in data.items()}
            self.plotly_update(nothing, dict.fromkeys(layout))  # what is the same as before is not sent
            self.plotly_update(data, layout)


def _property(trace: Any, name: str) -> Any:
    """What the trace has of this name; Undefined for one of a kind that has not."""
    return _list(trace[name]) if name in trace else Undefined


def _list(value: Any) -> Any:
    """plotly gives tuples, and takes lists."""
    return list(value) if isinstance(value, tuple) else value


def write_page(
    path: str | Path,
    title: str,
    style: str,
    body: str,
    figure: go.Figure,
    values: dict[str, Any],
    parts: dict[str, str],
) -> Path:
    """Write a page that needs neither kernel nor network, whole or not at all, and return its path.

    body: in it @DRAWN@ stands for the figure, whose element is #plot, @NAME@ for the value of that name as JSON, or for
    the part of that name, which is HTML. Raises OSError when the path cannot be written.
    """
    config = {"displaylogo": False, "responsive": True}
    drawn = figure.to_html(config, full_html=False, include_plotlyjs=True, div_id="plot")
    texts = {name: json.dumps(value, separators=(",", ":")) for name, value in values.items()}
    texts = {name: text.replace("<", "\\u003c") for name, text in texts.items()}  # so that no text ends the script
    body = filled(body.strip(), texts | parts | {"DRAWN": drawn})
    page = filled(PAGE, {"TITLE": title, "STYLE": style.strip(), "BODY": body})
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")
    return Path(path)


def beside_plotly(page: str) -> str:
    """A page of `write_page`, for a folder of several: it reads plotly.js from the file PLOTLY beside it."""
    return page.replace(f">{get_plotlyjs()}</script>", f' src="{PLOTLY}"></script>')


def filled(text: str, parts: dict[str, str]) -> str:
    """The text with each @NAME@ replaced by its part, in one pass: what is put in is not looked through."""
    return re.sub("@([A-Z]+)@", lambda found: parts[found[1]], text)


PLOTLY = "plotly.min.js"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.6 "DejaVu Sans", Verdana, sans-serif; color: light-dark(#333333, #e6e6e6) }
body { max-width: 62em; margin: 1em auto; padding: 0 1em; background: light-dark(white, #17191c) }
h1 { font-size: 1.3em; margin: 0.4em 0 }
#plot { min-width: 46rem }
div:has(> #plot) { overflow-x: auto }
:focus-visible { outline: 3px solid light-dark(#0b5cad, #8ab8ff); outline-offset: 2px }
@STYLE@
</style>
</head>
<body>
<h1>@TITLE@</h1>
@BODY@
</body>
</html>
"""


def packed(values: np.ndarray) -> dict[str, str]:
    """As plotly.js reads arrays out of JSON: four bytes a number."""
    return {"dtype": "f4", "bdata": base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()}


def readout(facts: dict[str, str]) -> str:
    items = "".join(f"<span>{name} <b>{value}</b></span>" for name, value in facts.items())
    return f"<div role='status' aria-live='polite' style='{ROW}'>{items}</div>"


def legend(items: Sequence[str]) -> str:
    """What a plot's colours mean, on the plot's white paper whatever the theme, as they are chosen for that."""
    paper = f"background: white; color: {INK}; padding: 2px 8px"
    return f"<div style='{ROW}; {paper}'>{''.join(f'<span>{item}</span>' for item in items)}</div>"


def chooser(name: str, options: list, value) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, value=value, description=name, layout={"width": "250px"})


def buttons(name: str, options: Sequence[str]) -> widgets.ToggleButtons:
    row = {"display": "flex", "grid_gap": "8px"}
    return widgets.ToggleButtons(options=options, description=name, layout=row, style={"button_width": "72px"})


def html_options(names: list[str]) -> str:
    """Of a select element; their values are their places."""
    return "".join(f"<option value={i}>{html.escape(name)}</option>" for i, name in enumerate(names))


def image_source(image: Image.Image) -> str:
    """As a browser reads an image out of a text."""
    data = io.BytesIO()
    image.save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()

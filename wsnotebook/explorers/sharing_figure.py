"""The sharing explorer's plotly figure: traces in drawing order, and what a view has in them, in the same order."""

import html

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import Undefined

from wsnotebook.explorers.common import AXIS, LAYOUT, legend, readout
from wsnotebook.plots.common import INK
from wsnotebook.plots.flow import CHOSEN, LANDMARK
from wsnotebook.plots.superweights import MEASURES, PARTS, SEVERAL, TINTS, UNUSED, View, costs, size

MOVING = [0, 1, 2, 3, 4, 5, 10, 11]  # places of the traces that the controls change
MEMBER = 46  # pixels of a row of the map
EMPTY = {"x": [], "y": []}


def facts(told: dict[str, str]) -> str:
    """A line of the readout."""
    return readout({html.escape(name): html.escape(value) for name, value in told.items()})


def cells(view: View, similar: np.ndarray) -> dict:
    """The map: colours, what is written in its cells, and what they tell. similar: (n,) to the layer's own cluster."""
    drawn = view.map
    grid = drawn.grid(drawn.tint)
    written, told = (np.full(drawn.shape, "", dtype=object) for _ in range(2))
    for layer, column, cluster, own in zip(drawn.layers, drawn.column, drawn.cluster, similar, strict=True):
        brief = f"<b>{cluster}</b>" if drawn.shape[1] >= SEVERAL else f"<b>{cluster}</b><br>{size(layer, ' ')}"
        written[layer.member, column] = brief
        alone = "alone in it" if np.isnan(own) else f"similarity to it {own:.2f}"
        told[layer.member, column] = (
            f"{html.escape(str(layer))}<br>{size(layer, ', kernel ')}<br>cluster {cluster}, {alone}"
        )
    z = [[None if np.isnan(value) else int(value) for value in row] for row in grid]
    return {"z": z, "text": written.tolist(), "customdata": told.tolist()}


def bar(view: View) -> list[dict]:
    """Parameters by kind in % of separate networks', the budget, and what is needed where that is too small."""
    percent = 100 / view.separate
    parts = [{"x": [view.parts[name] * percent], "y": [0]} if view.parts else EMPTY for name in PARTS]
    budget = EMPTY if view.budget is None else {"x": [view.budget * percent] * 2, "y": [-0.5, 0.5]}
    return [*parts, budget, EMPTY if view.parts else {"x": [view.least * percent], "y": [0]}]


def places(view: View) -> list[dict]:
    """The chosen ensemble in both panels."""
    if view.chosen is None:
        return [EMPTY, EMPTY]
    here = [float(view.macs[view.chosen])]
    return [{"x": here, "y": [float(getattr(view, measure)[view.chosen])]} for measure in MEASURES]


def end(view: View) -> float:
    """Of the axis of parameters, %."""
    return 1.05 * max(100, 100 * max(sum((view.parts or {}).values()), view.least) / view.separate)


def update(figure: go.Figure, view: View, similar: np.ndarray) -> None:
    """Show this view in one message; what a kind of trace has not stays undefined."""
    traces = [cells(view, similar), *bar(view), *places(view)]
    keys = dict.fromkeys(key for trace in traces for key in trace)
    data = {key: [trace.get(key, Undefined) for trace in traces] for key in keys}
    figure.plotly_update(data, {"xaxis2.range": [0, end(view)]}, MOVING)


def picture(view: View, similar: np.ndarray) -> go.Figure:
    """The figure that shows this view: the map on top, under it the parameters, and three panels below."""
    (members, columns), own = view.map.shape, view.mixes
    height = 470 + MEMBER * members
    top = 1 - MEMBER * members / (height - 60)  # of the bar's part of the figure
    low = top - 0.27  # of the panels'
    layout = {
        "height": height,
        "xaxis.range": [-0.5, columns - 0.5],
        "yaxis": _ticks({m: f"member {m}" for m in range(members)}) | {"range": [members - 0.5, -0.5]},
        "yaxis3": _ticks({float(np.flatnonzero(own.cluster == g).mean()): g for g in np.unique(own.cluster)}),
        "xaxis3": _ticks({n: name[:-2] for n, name in enumerate(own.columns) if name.endswith(".0")}),
    }
    across = _ticks(costs(view.macs)) | {"range": np.log10([0.9 * view.macs.min(), 1.1 * view.macs.max()]).tolist()}
    layout |= {"xaxis4": across, "xaxis5": across}
    domains = (top, 1), (top - 0.1, top - 0.04), (0, low), (0.54 * low, low), (0, 0.46 * low)
    layout |= {f"yaxis{n or ''}.domain": domain for n, domain in zip(("", 2, 3, 4, 5), domains, strict=True)}
    figure = go.Figure(_traces(view), LAYOUT | LOOK)
    figure.update_layout(layout)
    for row in np.flatnonzero(np.diff(own.cluster)).tolist():
        figure.add_shape(_BORDER | {"y0": row + 0.5, "y1": row + 0.5})
    update(figure, view, similar)
    return figure


def _ticks(texts: dict) -> dict:
    return {"tickmode": "array", "tickvals": list(texts), "ticktext": [str(text) for text in texts.values()]}


def _traces(view: View) -> list[dict]:
    own = view.mixes
    limit = max(1.0, float(np.nanmax(np.abs(own.values))))
    drawn = [[None if np.isnan(value) else round(float(value), 4) for value in row] for row in own.values]
    told = [[f"{html.escape(str(layer))}<br>template {name}" for name in own.columns] for layer in own.layers]
    traces = [CLUSTERS]
    for name, colour in PARTS.items():
        traces.append(_PART | {"name": name, "marker": {"color": colour}})
    traces += [
        _LINE | _SIZES | {"name": "budget", "line": {"color": CHOSEN, "width": 3}},
        _MARK | _SIZES | {"name": "needed", "marker": {"symbol": "x", "size": 11, "color": INK}, "cliponaxis": False},
    ]
    mixed = {"z": drawn, "customdata": told, "zmin": -limit, "zmax": limit}
    for measure, panel in zip(MEASURES, _PANELS, strict=True):
        values, front = getattr(view, measure), view.front
        every = {"x": view.macs.tolist(), "y": values.tolist()}
        best = {"x": view.macs[front].tolist(), "y": values[front].tolist()}
        traces += [
            _MARK | panel | every | {"name": f"ensembles' {measure}", "marker": {"color": LANDMARK, "size": 6}},
            _LINE | panel | best | {"name": f"best {measure}", "line": {"color": "#0072B2", "width": 1.5}},
        ]
    traces += [_HERE | panel | {"name": f"{measure} here"} for measure, panel in zip(MEASURES, _PANELS, strict=True)]
    return [*traces, MIXED | mixed]


def key() -> str:
    """The legend; plotly's own would be drawn anew at every step."""
    parts = [f"<b style='color: {colour}'>\u25a0</b> {name}" for name, colour in PARTS.items()]
    return legend([
        "parameters:", *parts, f"<b style='color: {CHOSEN}'>\u2503</b> budget", "\u2716 needed at least",
        f"<b style='color: {LANDMARK}'>\u25cf</b> ensembles, joined: the best at their cost",
        f"<b style='color: {CHOSEN}'>\u25cf</b> the chosen members", 
        "heat map: coefficients of the trained bank, templates side by side",
    ])  # fmt: skip


_STEPS = [
    [end, "rgb({:.0f},{:.0f},{:.0f})".format(*(255 * channel for channel in tint))]
    for n, tint in enumerate(TINTS)
    for end in (n / len(TINTS), (n + 1) / len(TINTS))
]
CLUSTERS = {
    "type": "heatmap",
    "name": "clusters",
    "colorscale": _STEPS,
    "zmin": -0.5,
    "zmax": len(TINTS) - 0.5,
    "showscale": False,
    "xgap": 2,
    "ygap": 2,
    "texttemplate": "%{text}",
    "hovertemplate": "%{customdata}<extra></extra>",
    "hoverongaps": False,
}
MIXED = {
    "type": "heatmap",
    "name": "mixes",
    "xaxis": "x3",
    "yaxis": "y3",
    "colorscale": "RdBu",
    "reversescale": True,
    "hovertemplate": "%{customdata}: %{z:.3f}<extra></extra>",
    "hoverongaps": False,
    "colorbar": {"x": 0.425, "xanchor": "left", "y": 0, "yanchor": "bottom", "len": 0.4, "thickness": 10},
}
_SIZES = {"xaxis": "x2", "yaxis": "y2"}
_PART = _SIZES | {"type": "bar", "orientation": "h", "width": 1, "hovertemplate": "%{fullData.name} %{x:.2f} %"}
_PANELS = {"xaxis": "x4", "yaxis": "y4"}, {"xaxis": "x5", "yaxis": "y5"}
_LINE = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
_MARK = {"type": "scatter", "mode": "markers", "hoverinfo": "skip"}
_HERE = _MARK | {"cliponaxis": False, "marker": {"color": CHOSEN, "size": 13, "line": {"color": INK, "width": 1.5}}}
_PANEL = {"xref": "x3 domain", "x0": 0, "x1": 1}
_BORDER = _PANEL | {"type": "line", "yref": "y3", "line": {"color": INK, "width": 1}}
_UNDER = _PANEL | {"type": "rect", "yref": "y3 domain", "y0": 0, "y1": 1, "line": {"width": 0}, "layer": "below"}
_BARE = {"showgrid": False, "zeroline": False, "ticks": "", "fixedrange": True}
_WIDE, _SIDE = {"domain": [0, 1]}, {"domain": [0.62, 1], "type": "log"}
LOOK = {
    "margin": {"l": 80, "r": 15, "t": 10, "b": 50},
    "barmode": "stack",
    "hoverlabel": {"bgcolor": "white"},
    "xaxis": _BARE | _WIDE | {"anchor": "y", "showticklabels": False},
    "yaxis": _BARE,
    "xaxis2": AXIS | _WIDE | {"anchor": "y2", "title": {"text": "parameters (% of separate networks')", "standoff": 4}},
    "yaxis2": _BARE | {"range": [-0.5, 0.5], "visible": False},
    "xaxis3": _BARE | {"domain": [0, 0.42], "anchor": "y3", "title": {"text": "increment", "standoff": 6}},
    "yaxis3": _BARE | {"anchor": "x3", "autorange": "reversed", "title": {"text": "layers, by cluster"}},
    "xaxis4": AXIS | _SIDE | {"anchor": "y4", "showticklabels": False},
    "yaxis4": AXIS | {"anchor": "x4", "title": {"text": MEASURES["accuracy"], "standoff": 6}},
    "xaxis5": AXIS | _SIDE | {"anchor": "y5", "title": {"text": "MACs a row", "standoff": 6}},
    "yaxis5": AXIS | {"anchor": "x5", "title": {"text": MEASURES["nll"], "standoff": 6}},
    "shapes": [_UNDER | {"fillcolor": UNUSED}],
}

"""The search explorer's plotly figure: traces in drawing order, and what a view has in them, in the same order."""

import html

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import Undefined

from wsnotebook.explorers.common import AXIS, LAYOUT, legend, packed, readout
from wsnotebook.methods.mlp_matrix import Form
from wsnotebook.plots.common import INK
from wsnotebook.plots.flow import CHOSEN, LANDMARK
from wsnotebook.plots.search import ABOVE, BELOW, INPUT, OFF, OUTPUT, UNIT_LOOKS, WIDTHS, Surface, View, line_widths

MESH = 3  # of the grid's lines every third is drawn of the true surface
LIMIT = 0.5  # error at which the surface's colours end, in units of half the target's range


def facts(view: View) -> str:
    """The readout."""
    return readout({html.escape(name): html.escape(value) for name, value in view.facts.items()})


def _arrays(form: Form, view: View) -> list[dict]:
    """What changes of every trace. Several lines in one trace are parted by nan."""
    surface, net, curves = view.surface, view.graph, view.curves
    x, y, z = _mesh(surface)
    learned = surface.learned.clip(*_heights(surface))
    traces = [{"x": x, "y": y, "z": z}, {"z": learned.ravel(), "intensity": (surface.learned - surface.true).ravel()}]
    lines = net.places[net.edges]  # (e, 2, 2)
    for sign, width in EDGES:
        traces.append(_points(_parted(lines[(np.sign(net.weights) == sign) & (line_widths(net.weights) == width)])))
    traces += [_points(net.places[np.sign(net.biases) == sign]) for sign in (-1, 1)]
    for kind in (*form.activations, OFF):
        rows = np.flatnonzero(net.kinds == kind)
        traces.append(_points(net.places[rows]) | {"text": [net.names[row] for row in rows]})
    rows = np.flatnonzero(np.isin(net.kinds, (INPUT, OUTPUT)))
    traces.append(_points(net.places[rows]) | {"text": _end_names(form)})
    first, *second = curves.errors.values()
    ends, place = np.array([curves.x[0], curves.x[-1]], float), np.array([curves.here[0]], float)
    rising = np.asarray(curves.x, float)
    nothing = np.array([])
    traces += [
        {"x": ends, "y": np.full(2, curves.constant)},
        {"x": rising, "y": first},
        {"x": rising, "y": second[0]} if second else {"x": nothing, "y": nothing},
        {"x": place, "y": np.array([curves.here[1]])},
        {"x": rising, "y": curves.non_zeros.astype(float)},
        {"x": place, "y": np.array([curves.here[2]], float)},
    ]
    return traces


def _layout(view: View) -> dict:
    """What of the layout changes with lane, way and function."""
    curves, low_high = view.curves, [float(end) for end in _heights(view.surface)]
    drawn = np.log10([*np.concatenate([*curves.errors.values()]), curves.constant])
    ends = [float(curves.x[0]), float(curves.x[-1])]
    layout = {
        "scene.zaxis.range": low_high,
        "yaxis2.dtick": 1 if np.ptp(drawn) > 1.7 else "D2",
        "yaxis2.range": [float(drawn.min()) - 0.15, float(drawn.max()) + 0.15],
        "yaxis3.range": [0, 1.1 * float(curves.non_zeros.max()) + 1],
    }
    for i, name in enumerate(("xaxis2", "xaxis3")):
        layout |= {
            f"{name}.range": ends,
            f"{name}.title.text": curves.label,
            f"{name}.tickvals": list(curves.ticks),
            f"{name}.ticktext": list(curves.ticks.values()),
            f"shapes[{i}].x0": min(curves.plain, ends[1]),
            f"shapes[{i}].x1": ends[1],
        }
    return layout


def update(figure: go.Figure, form: Form, view: View) -> None:
    """Show this view in one message; what a kind of trace has not stays undefined."""
    arrays = _arrays(form, view)
    keys = dict.fromkeys(key for trace in arrays for key in trace)
    data = {key: [trace.get(key, Undefined) for trace in arrays] for key in keys}
    figure.plotly_update(data, _layout(view), list(range(len(arrays))))


def picture(form: Form, view: View) -> go.Figure:
    """The figure that shows this view."""
    figure = go.Figure(_traces(form, view.surface), LAYOUT | LOOK)
    update(figure, form, view)
    return figure


def page_frame(form: Form, view: View) -> dict:
    """A view as the page stores it."""
    traces = [
        {key: value if key == "text" else packed(value) for key, value in trace.items()}
        for trace in _arrays(form, view)
    ]
    return {"traces": traces, "layout": _layout(view), "facts": facts(view)}


def _heights(surface: Surface) -> tuple[float, float]:
    """Ends of the vertical axis: those of the true surface, and a quarter of its height beyond them."""
    low, high = surface.true.min(), surface.true.max()
    return low - (high - low) / 4, high + (high - low) / 4


def _mesh(surface: Surface) -> np.ndarray:
    """Lines over the true surface: (3, points)."""
    points = np.stack([*np.meshgrid(surface.x, surface.y), surface.true], 2)  # (g, g, 3)
    lines = np.concatenate([points[::MESH], points.swapaxes(0, 1)[::MESH]])
    return np.ascontiguousarray(_parted(lines).T)


def _triangles(surface: Surface) -> dict[str, np.ndarray]:
    """A surface over the grid: the places (g g) of its corners, and which three are a triangle (2 (g - 1)^2)."""
    x, y = np.meshgrid(surface.x, surface.y)
    number = np.arange(x.size).reshape(x.shape)
    a, b, c, d = (corner.ravel() for corner in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    corners = zip("ijk", ((a, d), (b, c), (c, b)), strict=True)
    return {"x": x.ravel(), "y": y.ravel()} | {name: np.concatenate(both) for name, both in corners}


def _parted(lines: np.ndarray) -> np.ndarray:
    """Lines (n, points, d) one after the other: (n * (points + 1), d)."""
    return np.pad(lines, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, lines.shape[2])


def _points(points: np.ndarray) -> dict[str, np.ndarray]:
    x, y = np.ascontiguousarray(points.T)  # others cannot be sent
    return {"x": x, "y": y}


def _end_names(form: Form) -> list[str]:
    return [f"x{i}{SPACE}" for i in range(1, form.inputs + 1)] + [f"{SPACE}y"]


SPACE = 2 * "\u00a0"  # between a unit's ring and its name
EDGES = [(sign, width) for sign in (-1, 1) for width in range(len(WIDTHS))]
SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "P": "cross",
    "X": "x",
}
GLYPHS = {"o": "\u25cf", "s": "\u25a0", "^": "\u25b2", "v": "\u25bc", "D": "\u25c6", "P": "\u271a", "X": "\u2716"}
_LINE = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
_MARK = {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "cliponaxis": False}
_ERROR, _COUNT = {"xaxis": "x2", "yaxis": "y2"}, {"xaxis": "x3", "yaxis": "y3"}
_HERE = _MARK | {"marker": {"color": CHOSEN, "size": 12, "line": {"color": INK, "width": 1.5}}}
SURFACE = {  # a mesh: a surface trace would be refined by plotly.js at every step, to 36 times the corners
    "type": "mesh3d",
    "name": "learned",
    "colorscale": [[0, BELOW], [0.5, "#f2f2f2"], [1, ABOVE]],
    "cmin": -LIMIT,
    "cmax": LIMIT,
    "opacity": 0.9,
    "hoverinfo": "skip",
    "colorbar": {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "top",
        "len": 0.44,
        "thickness": 8,
        "title": {"text": "learned minus true", "side": "top"},
    },
}


def _traces(form: Form, surface: Surface) -> list[dict]:
    mesh = {"type": "scatter3d", "mode": "lines", "hoverinfo": "skip", "line": {"color": INK, "width": 2}}
    traces = [mesh | {"name": "true"}, SURFACE | _triangles(surface)]
    for sign, width in EDGES:
        line = {"color": _colour(sign), "width": WIDTHS[width]}
        traces.append(_LINE | {"name": f"weights {sign:+d} {width}", "line": line, "opacity": 0.75})
    for sign in (-1, 1):
        ring = {"symbol": "circle-open", "size": 23, "color": _colour(sign), "line": {"width": 2.5}}
        traces.append(_MARK | {"name": f"biases {sign:+d}", "marker": ring})
    named = _MARK | {"hoverinfo": None, "hovertemplate": "%{text}<extra></extra>"}
    for kind in form.activations:
        colour, marker = UNIT_LOOKS[kind]
        look = {"color": colour, "size": 15, "symbol": SYMBOLS[marker], "line": {"color": "white", "width": 1}}
        traces.append(named | {"name": kind, "marker": look})
    off = {"color": "white", "size": 7, "line": {"color": "#bbbbbb", "width": 1.2}}
    ends = {"color": "white", "size": 15, "line": {"color": INK, "width": 1.5}}
    sides = ["middle left"] * form.inputs + ["middle right"]
    traces += [
        named | {"name": OFF, "marker": off},
        _MARK | {"name": "ends", "mode": "markers+text", "marker": ends, "textposition": sides},
        _LINE | _ERROR | {"name": "constant", "line": {"color": LANDMARK, "width": 1.5, "dash": "dot"}},
        _LINE | _ERROR | {"name": "error", "hoverinfo": "y", "line": {"color": CHOSEN, "width": 2.5}},
        _LINE
        | _ERROR
        | {"name": "other error", "hoverinfo": "y", "line": {"color": BELOW, "width": 2, "dash": "dash"}},
        _HERE | _ERROR | {"name": "error here"},
        _LINE | _COUNT | {"name": "non-zeros", "hoverinfo": "y", "line": {"color": CHOSEN, "width": 2.5}},
        _HERE | _COUNT | {"name": "non-zeros here"},
    ]
    return traces


def _colour(sign: int) -> str:
    return ABOVE if sign > 0 else BELOW


def key(form: Form) -> str:
    """The legend; plotly's own would be drawn anew at every step."""
    kinds = [(*UNIT_LOOKS[kind], kind) for kind in form.activations]
    items = [f"<span><b style='color: {colour}'>{GLYPHS[marker]}</b> {kind}</span>" for colour, marker, kind in kinds]
    colours = "".join(
        f"<b style='color: {_colour(sign)}'>\u25ac \u25cb</b> {side} 0 " for sign, side in ((-1, "below"), (1, "above"))
    )
    return legend([
        *items, "<b style='color: #bbbbbb'>\u25cb</b> off", f"weights (lines) and biases (rings): {colours}",
        "mesh: the true function", "dotted: the best constant", "dashed: error on the function at the end of a walk",
    ])  # fmt: skip


_BARE = {"visible": False, "fixedrange": True}
_BAND = {
    "type": "rect",
    "y0": 0,
    "y1": 1,
    "fillcolor": LANDMARK,
    "opacity": 0.15,
    "line": {"width": 0},
    "layer": "below",
}
_AXIS3 = {"showbackground": False, "gridcolor": "#dddddd", "zeroline": False, "nticks": 5}
LOOK = {
    "height": 620,
    "margin": {"l": 70, "r": 15, "t": 10, "b": 45},
    "hoverlabel": {"bgcolor": "white"},
    "scene": {
        "domain": {"x": [0, 0.48], "y": [0.34, 0.95]},
        "xaxis": _AXIS3 | {"title": {"text": "x1"}},
        "yaxis": _AXIS3 | {"title": {"text": "x2"}},
        "zaxis": _AXIS3 | {"title": {"text": "y"}},
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.8},
        "camera": {"eye": {"x": 1.25, "y": -1.55, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.12}},
        "uirevision": "kept",
    },
    "xaxis": _BARE | {"domain": [0.5, 1], "range": [-0.12, 1.12]},
    "yaxis": _BARE | {"domain": [0.37, 1], "range": [-0.04, 1.04]},
    "xaxis2": AXIS | {"domain": [0, 0.43], "anchor": "y2", "tickmode": "array", "title": {"standoff": 8}},
    "yaxis2": AXIS
    | {
        "domain": [0, 0.28],
        "anchor": "x2",
        "type": "log",
        "exponentformat": "power",
        "title": {"text": "validation error"},
    },
    "xaxis3": AXIS | {"domain": [0.57, 1], "anchor": "y3", "tickmode": "array", "title": {"standoff": 8}},
    "yaxis3": AXIS | {"domain": [0, 0.28], "anchor": "x3", "title": {"text": "non-zeros", "standoff": 6}},
    "shapes": [_BAND | {"xref": "x2", "yref": "y2 domain"}, _BAND | {"xref": "x3", "yref": "y3 domain"}],
}  # fmt: skip

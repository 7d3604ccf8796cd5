"""The trajectory explorer: particles of noise that a flow carries to networks, at any time of the way.

Left the particles in the plane of the training networks' first two principal components; right what the chosen one's
network is worth, and how far it is from the nearest training network: 0 is a copy. Solver, number of steps, and what a
conditional flow is told are changed live. `plots.flow_frame` is the static twin.
"""

import html
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from wsnotebook import evaluation, plots
from wsnotebook.explorers.common import (
    AXIS,
    LAYOUT,
    Displayed,
    Plot,
    buttons,
    chooser,
    html_options,
    image_source,
    legend,
    readout,
    write_page,
)
from wsnotebook.methods.closed_form_flow import ClosedForm
from wsnotebook.methods.conditions import Conditions
from wsnotebook.methods.sampling import times
from wsnotebook.methods.weight_flow import Flow
from wsnotebook.plots import flow as pictures
from wsnotebook.plots.common import INK
from wsnotebook.plots.flow import CHOSEN, LANDMARK, PARTICLE, Scores

ROWS = 1000  # of the split, at most: a step of the slider scores that many
POINTS = 21  # of the curves, and of the page's slider
FILTERS = 8  # the chosen particle's strongest at the end
ASKED = 5  # values of a number, of which the page has the particles
STEPS = 50  # of the solver, to begin with
SOLVERS = ("rk4", "euler")
ZOOM, NEAREST = 4, Image.Resampling.NEAREST  # pixels a weight of the filters; the page leaves it to the browser


class Explorer(Displayed):
    """n particles of a flow, on their way from noise (t = 0) to networks (t = 1).

    zoo: the networks that the flow was trained on. split: (x, y) to score on, of which 1,000 rows are used. seed: of
    the noise. recalibrate: training images, for batch norm's statistics. Raises ValueError for a zoo of another
    architecture or of one model, and what `flow.sample` does.
    """

    def __init__(
        self,
        flow: Flow | ClosedForm,
        zoo,
        split: tuple[Tensor, Tensor],
        n: int = 32,
        seed: int = 0,
        recalibrate: Tensor | None = None,
    ):
        like = flow.coordinates.like
        if (zoo.network, zoo.layout) != (like.network, like.layout):
            raise ValueError(f"zoo: {zoo!r} is not of the flow's architecture, {like.network} with d={like.layout.d}")
        self.flow, self.zoo, self.n, self.seed, self.recalibrate = flow, zoo, n, seed, recalibrate
        rows = np.linspace(0, len(split[0]) - 1, min(len(split[0]), ROWS)).round().astype(int)
        self.split = tuple(part[torch.from_numpy(rows)] for part in split)
        self.landmarks = flow.coordinates.encode(zoo.weights)  # (m, k)
        self.plane = pictures.projection(self.landmarks)
        accuracy, others = evaluation.report(zoo, self.split).accuracy, evaluation.leave_one_out(zoo).distance
        self.typical = float(np.median(accuracy)), float(np.median(others))
        self._paths, self._scores = {}, {}  # by solver, steps and condition, and by these, particle and steps
        self.condition = _asker(getattr(flow, "conditions", None))
        tip = "from noise (t = 0) to weights (t = 1): the arrow keys move it by a step of the solver"
        self.t = widgets.IntSlider(STEPS, max=STEPS, description="t", tooltip=tip, readout=False)
        self.t.layout.width = "420px"
        self.solver = buttons("solver", SOLVERS)
        tip = "steps of the solver: the arrow keys change them"
        self.steps = widgets.IntSlider(STEPS, min=1, max=100, description="steps", tooltip=tip, continuous_update=False)
        self.particle = chooser("particle", list(range(self.path.shape[1])), 0)
        self.readout, self.key = widgets.HTML(self._facts()), widgets.HTML(_key(self.typical))
        self.plot = Plot(self._picture())
        asked = [self.condition] if self.condition else []
        for control in (self.t, self.solver, self.particle, *asked):
            control.observe(self._draw, "value")
        self.steps.observe(self._resteps, "value")
        self.plot.data[PARTICLES].on_click(self._clicked)
        boxes = [
            widgets.HBox(row, layout={"flex_flow": "row wrap"})
            for row in ([self.t, self.particle, *asked], [self.solver, self.steps])
        ]
        self.view = widgets.VBox([*boxes, self.readout, self.plot, self.key])

    @property
    def path(self) -> Tensor:
        """(steps + 1, n, k) the particles' coordinates at all times, by the solver and all else that is chosen."""
        return self._path(self.asked)

    @property
    def asked(self) -> float | str | None:
        """The condition that is chosen; None for a flow without."""
        return self.condition.value if self.condition else None

    @property
    def step(self) -> int:
        """The number of steps that the path has gone."""
        return self.t.value

    def networks(self, z: Tensor):
        """Coordinates (p, k) -> their networks, as a zoo."""
        made = self.flow.coordinates.zoo(z)
        return made if self.recalibrate is None else evaluation.recalibrated(made, self.recalibrate)

    def scores(self, steps: np.ndarray, particle: int | None = None, asked: float | str | None = None) -> Scores:
        """Of a particle after each of these numbers of steps; None: the particle and the condition that are chosen."""
        particle, asked = self.particle.value if particle is None else particle, self.asked if asked is None else asked
        key = self.solver.value, self.steps.value, asked, particle, *steps
        if key not in self._scores:
            networks = self.networks(self._path(asked)[torch.as_tensor(steps), particle])
            near = evaluation.nearest(networks, self.zoo)
            accuracy = evaluation.report(networks, self.split).accuracy
            t = times(self.steps.value).numpy()[np.asarray(steps)]
            self._scores[key] = Scores(t, accuracy, near.distance, near.index)
        return self._scores[key]

    def curves(self, particle: int | None = None, asked: float | str | None = None) -> Scores:
        """Scores at 21 times of the path, or at all if it has fewer."""
        return self.scores(self._stops(), particle, asked)

    def figure(self) -> Figure:
        """The static twin of what is shown."""
        i, step = self.particle.value, self.step
        strip = next(iter(self._strips(i, [step], self.asked)), None)
        scores = self.curves(), self._here(), self.typical
        return plots.flow_frame(self.path, self.landmarks, step, i, *scores, strip)

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network: all particles at 21 times of the path. Returns its path.

        Of a conditional flow it has every category, or five numbers from the smallest to the largest and the chosen
        one. The solver and its steps are those that are chosen. Raises OSError when it cannot be written.
        """
        stops, asked = self._stops(), _asked(self.condition)
        data = {
            "t": _short(times(self.steps.value).numpy()[stops]),
            "asked": [self._page_data(value, stops) for value in asked],
            "typical": self.typical[1],
            "moving": MOVING,
            "particles": PARTICLES,
        }
        parts = {
            "KEY": _key(self.typical),
            "NETWORKS": html_options([str(i) for i in range(self.n)]),
            "HOW": self._how(),
            "HIDDEN": "" if self.condition else "hidden",
            "FACT": self._fact(),
            "VALUES": html_options([_named(value) for value in asked]),
        }
        values = {
            "LAST": len(stops) - 1,
            "START": int(np.abs(stops - self.step).argmin()),
            "CHOSEN": self.particle.value,
            "TOLD": asked.index(self.asked),
            "DATA": data,
        }
        return write_page(path, "Trajectory explorer", STYLE, BODY, self._picture(), values, parts)

    def _page_data(self, asked: float | str | None, stops: np.ndarray) -> dict:
        """What the page shows of all particles under a condition."""
        path, every = self._path(asked), [self.curves(i, asked) for i in range(self.n)]
        places = self.plane(path[torch.from_numpy(stops)])  # (stops, n, 2)
        return {
            "places": [_short(places[..., axis]) for axis in (0, 1)],
            "ends": _short(np.stack(pictures.limits(path, self.landmarks), 1)),
            "accuracy": [_short(scores.accuracy) for scores in every],
            "distance": [_short(scores.distance) for scores in every],
            "nearest": [self._models()[scores.nearest].tolist() for scores in every],
            "strips": [[image_source(strip) for strip in self._strips(i, stops, asked)] for i in range(self.n)],
        }

    def _path(self, asked: float | str | None) -> Tensor:
        """(steps + 1, n, k), kept; asked: the condition."""
        key = self.solver.value, self.steps.value, asked
        if key not in self._paths:
            options = {"solver": key[0], "steps": key[1], "seed": self.seed, "trajectory": True}
            told = {"condition": asked} if self.condition else {}
            self._paths[key] = self.flow.sample(self.n, **options, **told)
        return self._paths[key]

    def _fact(self) -> str:
        return html.escape(self.condition.description if self.condition else "")

    def _text(self) -> str:
        facts = "; ".join(f"{name} {value}" for name, value in self._numbers().items())
        told = f", {self.condition.description} {_named(self.asked)}" if self.condition else ""
        return f"Trajectory explorer: {self.n} particles, {self._how()}{told}; {facts}"

    def _how(self) -> str:
        return f"{self.solver.value}, {self.steps.value} steps"

    def _numbers(self) -> dict[str, str]:
        """What the readout and the text say, rounded."""
        here = self._here()
        return {
            "t": f"{here.t[0]:.3f}",
            "particle": str(self.particle.value),
            "accuracy": f"{here.accuracy[0]:.1f} %",
            "distance to the nearest": f"{here.distance[0]:.4g}",
            "which is model": str(self._models()[here.nearest[0]]),
        }

    def _facts(self) -> str:
        return readout({name: html.escape(value) for name, value in self._numbers().items()})

    def _models(self) -> np.ndarray:
        return self.zoo.facts.get("model", np.arange(len(self.zoo)))

    def _stops(self) -> np.ndarray:
        """(p,) the numbers of steps at which curves are scored."""
        steps = self.steps.value
        return np.linspace(0, steps, min(steps + 1, POINTS)).round().astype(int)

    def _here(self) -> Scores:
        """The chosen particle's at the step that is shown."""
        return self.scores([self.step])

    def _strips(self, particle: int, steps: np.ndarray, asked: float | str | None) -> list[Image.Image]:
        """The first layer's filters after each of these numbers of steps; none when it does not see images."""
        layout, shape = self.zoo.layout, tuple(self.split[0].shape[1:])
        name = layout.names[layout.kinds.index("weight")]
        seen = layout.shapes[layout.names.index(name)]
        if len(seen) == 2 and len(shape) == 3 and seen[1] == np.prod(shape):
            seen = (seen[0], *shape)
        if len(seen) != 4:
            return []
        ends = self._path(asked)[:, particle][[*steps, -1]]
        filters = layout.unflatten(self.flow.coordinates.decode(ends))[name].view(-1, *seen).mean(2).cpu().numpy()
        strongest = np.argsort(-np.square(filters[-1]).sum((1, 2)), kind="stable")[:FILTERS]
        filters = filters[:, strongest]  # (p + 1, f, h, w)
        limit = max(np.abs(filters[-1]).max(), np.finfo(np.float32).tiny)
        return [pictures.filter_strip(part, limit) for part in filters[:-1]]

    # ---- drawing: whatever changes is sent in one message ----

    def _clicked(self, trace, points, state) -> None:
        if points.point_inds:
            self.particle.value = int(points.point_inds[0])

    def _resteps(self, change) -> None:
        """Of a path of other steps show the same share, drawn once."""
        self.t.unobserve(self._draw, "value")
        self.t.max, self.t.value = change["new"], round(self.t.value * change["new"] / change["old"])
        self.t.observe(self._draw, "value")
        self._draw()

    def _draw(self, change=None) -> None:
        self.readout.value = self._facts()
        self._update(self.plot)

    def _picture(self) -> go.Figure:
        figure = go.Figure(TRACES, LAYOUT | AXES)
        x, y = self.plane(self.landmarks).T
        levels = [[level, level] for level in self.typical]
        figure.plotly_update({"x": [x, [0, 1], [0, 1]], "y": [y, *levels]}, {}, [0, 1, 2])
        figure.update_layout({"xaxis.title.text": self.plane.labels[0], "yaxis.title.text": self.plane.labels[1]})
        figure.data[PARTICLES].text = [f"particle {i}" for i in range(self.n)]
        if self._strips(0, [0], self.asked):
            figure.add_layout_image(STRIP)
            figure.add_annotation(CAPTION)
            figure.update_layout({"height": 590, "margin.b": 180})
        self._update(figure)
        return figure

    def _update(self, figure: go.Figure) -> None:
        """Bring everything that moves up to the controls: traces, the ends of the axes, and the filters."""
        i, curves, here = self.particle.value, self.curves(), self._here()
        ways = self.plane(self.path[: self.step + 1])  # (step + 1, n, 2)
        tails = np.pad(ways.swapaxes(0, 1), ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, 2)
        places = [part.T.copy() for part in (tails, ways[-1], ways[:, i], ways[-1, [i]])]  # only whole arrays are sent
        values = [curves.accuracy, here.accuracy, curves.distance, here.distance]
        data = {"x": [x for x, _ in places] + [curves.t, here.t] * 2, "y": [y for _, y in places] + values}
        low, high = pictures.limits(self.path, self.landmarks)
        layout = {f"{name}.range": list(ends) for name, *ends in zip(("xaxis", "yaxis"), low, high, strict=True)}
        layout["yaxis3.range"] = [0, 1.06 * max(*curves.distance, *here.distance, self.typical[1])]
        for strip in self._strips(i, [self.step], self.asked):
            layout["images[0].source"] = image_source(strip.resize((ZOOM * strip.width, ZOOM * strip.height), NEAREST))
        figure.plotly_update(data, layout, MOVING)


def _asker(conditions: Conditions | None) -> widgets.Widget | None:
    """The control of what a flow is told: a category, or a number as large as the training networks' are."""
    if conditions is None:
        return None
    if conditions.categories:
        control = chooser(conditions.fact, list(conditions.categories), conditions.categories[0])
        control.style.description_width = "initial"
        return control
    low, high = float(conditions.seen.min()), float(conditions.seen.max())
    middle, step = float(np.linspace(low, high, ASKED)[ASKED // 2]), (high - low) / 40
    options = {"readout_format": ".4g", "continuous_update": False, "style": {"description_width": "initial"}}
    return widgets.FloatSlider(middle, min=low, max=high, step=step, description=conditions.fact, **options)


def _asked(control: widgets.Widget | None) -> list:
    """The conditions that the page has."""
    if control is None:
        return [None]
    if isinstance(control, widgets.Dropdown):
        return list(control.options)
    return sorted({control.value, *np.linspace(control.min, control.max, ASKED).tolist()})


def _named(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(values: np.ndarray) -> list:
    """Five digits a number."""
    return [_short(part) for part in values] if values.ndim > 1 else [float(f"{value:.5g}") for value in values]


def _key(typical: tuple[float, float]) -> str:
    """The legend; plotly's own would be drawn anew at every step."""
    dots = [(LANDMARK, "training networks"), (PARTICLE, "particles"), (CHOSEN, "the chosen one: click another")]
    items = [f"<span><b style='color: {colour}'>\u25cf</b> {name}</span>" for colour, name in dots]
    return legend([*items, f"dotted: the training networks' medians, {typical[0]:.1f} % and {typical[1]:.3g}"])


PARTICLES, MOVING = 4, list(range(3, 11))  # places among the traces
_MARK = {"type": "scatter", "mode": "markers", "hoverinfo": "skip"}
_LINE = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
_TOP, _LOW = {"xaxis": "x2", "yaxis": "y2"}, {"xaxis": "x3", "yaxis": "y3"}
_TYPICAL = _LINE | {"line": {"color": LANDMARK, "width": 1.5, "dash": "dot"}}
_CURVE = _LINE | {"line": {"color": CHOSEN, "width": 2.5}, "hoverinfo": "x+y"}
_HERE = _MARK | {"cliponaxis": False, "marker": {"color": CHOSEN, "size": 12, "line": {"color": INK, "width": 1.5}}}
TRACES = (
    _MARK | {"name": "training networks", "marker": {"color": LANDMARK, "size": 5}},
    _TYPICAL | _TOP | {"name": "training networks' accuracy"},
    _TYPICAL | _LOW | {"name": "training networks' distance"},
    _LINE | {"name": "ways", "line": {"color": "rgba(0, 114, 178, 0.3)", "width": 1}},
    _MARK
    | {
        "name": "particles",
        "marker": {"color": PARTICLE, "size": 9, "line": {"color": "white", "width": 0.7}},
        "hovertemplate": "%{text}<extra></extra>",
        "hoverinfo": None,
    },
    _LINE | {"name": "chosen way", "line": {"color": CHOSEN, "width": 2.5}},
    _MARK | {"name": "chosen", "marker": {"color": CHOSEN, "size": 14, "line": {"color": "white", "width": 1.5}}},
    _CURVE | _TOP | {"name": "accuracy"},
    _HERE | _TOP | {"name": "accuracy at t"},
    _CURVE | _LOW | {"name": "distance"},
    _HERE | _LOW | {"name": "distance at t"},
)
_T = AXIS | {"domain": [0.62, 1], "range": [-0.02, 1.02]}
AXES = {
    "height": 430,
    "clickmode": "event",
    "hoverlabel": {"bgcolor": "white"},
    "xaxis": AXIS | {"domain": [0, 0.5], "title": {"standoff": 8}},
    "yaxis": AXIS,
    "xaxis2": _T | {"anchor": "y2", "showticklabels": False},
    "yaxis2": AXIS | {"domain": [0.54, 1], "anchor": "x2", "range": [0, 103], "title": {"text": "accuracy (%)"}},
    "xaxis3": _T | {"anchor": "y3", "title": {"text": "t: noise (0) to weights (1)", "standoff": 8}},
    "yaxis3": AXIS | {"domain": [0, 0.46], "anchor": "x3", "title": {"text": "distance to nearest"}},
}
_BELOW = {"xref": "paper", "yref": "paper", "x": 0, "xanchor": "left"}
STRIP = _BELOW | {"y": -0.24, "yanchor": "top", "sizex": 1, "sizey": 0.2, "sizing": "contain", "source": ""}
CAPTION = _BELOW | {"y": -0.17, "yanchor": "top", "showarrow": False, "text": "first-layer filters of the chosen one"}

STYLE = """
#plot image { image-rendering: pixelated }
#t { width: 24em; vertical-align: middle }
form { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; align-items: center }
"""

BODY = """
<form>
<label>t, from noise to weights <input id="t" type="range" min="0" max="@LAST@" value="@START@"></label>
<label>particle <select id="particle">@NETWORKS@</select></label>
<label @HIDDEN@>@FACT@ <select id="asked">@VALUES@</select></label>
<span>@HOW@</span>
</form>
<div id="facts" role="status" aria-live="polite"></div>
@DRAWN@
@KEY@
<script>
const all = @DATA@, at = id => document.getElementById(id);
at("particle").value = @CHOSEN@;
at("asked").value = @TOLD@;
function show() {
  const k = Number(at("t").value), i = Number(at("particle").value), flow = all.asked[at("asked").value];
  const [across, up] = flow.places;
  const ways = places => flow.accuracy.flatMap((_, j) => [...places.slice(0, k + 1).map(row => row[j]), null]);
  const sides = places => [ways(places), places[k], places.slice(0, k + 1).map(row => row[i]), [places[k][i]]];
  const accuracy = flow.accuracy[i], distance = flow.distance[i];
  const layout = {"yaxis3.range": [0, 1.06 * Math.max(...distance, all.typical)]};
  [layout["xaxis.range"], layout["yaxis.range"]] = flow.ends;
  if (flow.strips[i].length) layout["images[0].source"] = flow.strips[i][k];
  at("facts").innerHTML = `t <b>${all.t[k].toFixed(3)}</b>, particle <b>${i}</b>: accuracy ` +
    `<b>${accuracy[k].toFixed(1)} %</b>, distance <b>${distance[k].toPrecision(4)}</b> to the nearest, ` +
    `which is model <b>${flow.nearest[i][k]}</b>`;
  Plotly.update(at("plot"), {
    x: [...sides(across), all.t, [all.t[k]], all.t, [all.t[k]]],
    y: [...sides(up), accuracy, [accuracy[k]], distance, [distance[k]]],
  }, layout, all.moving);
}
at("t").oninput = at("particle").onchange = at("asked").onchange = show;
at("plot").on("plotly_click", event => {
  const point = event.points.find(point => point.curveNumber === all.particles);
  if (!point) return;
  at("particle").value = point.pointNumber;
  show();
});
show();
</script>
"""

"""The search explorer: replay how a small perceptron is found, or go through latent space from one to another.

Above the learned surface over the true one's mesh, and the network as a graph: its edges, units and activations appear
and vanish. Below error and non-zeros. `plots.search_frame` is the static twin.
"""

import html
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from wsnotebook import plots
from wsnotebook.cornn import Table
from wsnotebook.explorers import search_figure as drawing
from wsnotebook.explorers.common import Displayed, Plot, buttons, chooser, html_options, write_page
from wsnotebook.methods.latent_lanes import Frame
from wsnotebook.methods.latent_search import Found
from wsnotebook.methods.mlp_fitting import errors
from wsnotebook.methods.mlp_matrix import Parts, concat, evaluate, hardened, non_zeros, units
from wsnotebook.methods.swat_nn import Swat
from wsnotebook.plots.search import Curves, Surface, View, graph

GRID = 25  # places of a surface on each side
NEIGHBOURS = 16  # rows of the table, from which a place of the true surface is interpolated
PLACES = 21  # of a way, in its curves and on a page
REPLAY, WALK = "replay", "walk"  # what is shown
NEARER = "that of the nearer end"  # depth on a way
STAGES = "hardened", "trained on", "pruned to {}, trained on"  # of plain networks


class Lane(NamedTuple):
    """k frames of a lane, the last of them plain networks."""

    frames: list[Frame]
    soft: int  # how many are of the search
    parts: Parts  # (k) networks, hardened: what is drawn as a graph
    surfaces: np.ndarray  # (k, g, g) what the frames' networks compute
    names: list[str]  # (k) of their stages


class Way(NamedTuple):
    """Through latent space from one network that was found to another."""

    start: int  # rows of the networks
    end: int
    depth: int | str  # that all are decoded at, or NEARER


class Explorer(Displayed):
    """The networks that a search has found, on functions of two variables, and how each was found.

    table: what was searched on. swat: the autoencoder, by which networks can be embedded and walked between; without
    it there is the replay alone. Raises ValueError for networks of other than two inputs and one output, a search that
    trained no lane on, functions that the table has not, and an autoencoder of another form.
    """

    def __init__(self, found: Found, table: Table, swat: Swat | None = None):
        form = found.form
        if (form.inputs, form.outputs) != (2, 1):
            raise ValueError(f"found: {form}; a surface needs networks of 2 inputs and 1 output")
        if missing := [name for name in found.names if name not in table.names]:
            raise ValueError(f"table: has no {missing[0]!r}, which was searched for; it has {', '.join(table.names)}")
        if not found.frames or not len(found.frames[-1].number):
            raise ValueError("found: has no frames to replay; search with steps=1 and tuned=1, or more")
        if swat and swat.config.form != form:
            raise ValueError(f"swat: of {swat.config.form}, expected {form} as the networks that were found")
        self.found, self.table, self.swat = found, table.to("cpu"), swat
        x = torch.cat([part[0] for part in (self.table.train, self.table.validation, self.table.test)])  # (m, 2)
        self.grid = [torch.linspace(low, high, GRID) for low, high in zip(x.amin(0), x.amax(0), strict=True)]
        self._inputs = torch.cartesian_prod(*self.grid[::-1]).flip(1)  # (g g, 2): row y, column x
        self._true = self._interpolated(x)
        self._replay = lru_cache(32)(self._replayed)
        self._embedded = lru_cache(32)(lambda row: swat.embed(found.parts.take([row])).cpu())  # (1, H, z)
        self._walked = lru_cache(1)(lambda way: self._scored(self.decoded(np.linspace(0, 1, PLACES), way), way))
        self.mode = buttons("show", (REPLAY, WALK))
        self.function = chooser("function", list(found.names), found.names[0])
        lanes = self._lanes()
        self.lane = chooser("lane", lanes, lanes[0][1])
        last = len(self._replay(self.lane.value).frames) - 1
        trained = min(last, self._replay(self.lane.value).soft + 1)
        tip = "time of the search, then its plain networks: the arrow keys move it"
        self.time = widgets.IntSlider(trained, max=last, description="time", tooltip=tip, readout=False)
        self.play = widgets.Play(value=trained, max=last, interval=300, tooltip="replay the search")
        widgets.jslink((self.play, "value"), (self.time, "value"))
        options = self._networks()
        self.start = chooser("from", options, options[0][1])
        self.end = chooser("to", options, options[-1][1])
        tip = "share of the way, 0 is the start: the arrow keys move it"
        self.far = widgets.FloatSlider(0, min=0, max=1, step=0.02, description="far", tooltip=tip, readout=False)
        depths = [NEARER, *range(1, form.depth + 1)]
        self.depth = chooser("depth", depths, NEARER)
        for control, width in {self.time: 340, self.far: 340, self.lane: 440, self.start: 330, self.end: 330}.items():
            control.layout.width = f"{width}px"
        view = self.view_now()
        self.readout = widgets.HTML(drawing.facts(view))
        self.plot = Plot(drawing.picture(form, view))
        rows = [self.play, self.time], [self.function, self.lane], [self.far, self.depth], [self.start, self.end]
        self._rows = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        self._show_controls()
        self.function.observe(self._other_function, "value")
        self.lane.observe(self._other_lane, "value")
        for control in (self.mode, self.time, self.start, self.end, self.far, self.depth):
            control.observe(self._draw, "value")
        modes = [self.mode] if swat else []
        key = widgets.HTML(drawing.key(form))
        self.view = widgets.VBox([*modes, *self._rows, self.readout, self.plot, key])

    def view_now(self) -> View:
        """What the controls ask for."""
        return self._replay_view(self.time.value) if self.mode.value == REPLAY else self._walk_view(self.far.value)

    def figure(self) -> Figure:
        """The static twin of what is shown."""
        return plots.search_frame(self.view_now())

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network: all lanes of the function that is chosen.

        With an autoencoder also the way that is chosen, at 21 places. Raises OSError when it cannot be written.
        """
        lanes = [lane for _, lane in self.lane.options]
        scenes = {name: [self._replay_view(k, lane) for k in range(len(self._replay(lane).frames))]
                  for name, lane in self.lane.options}  # fmt: skip
        chosen, k = lanes.index(self.lane.value), self.time.value
        if self.swat:
            names = {row: name for name, row in self.start.options}
            walk = [self._walk_view(far) for far in np.linspace(0, 1, PLACES)]
            scenes[f"{names[self.start.value]} to {names[self.end.value]}"] = walk
            if self.mode.value == WALK:
                chosen, k = len(lanes), round(self.far.value * (PLACES - 1))
        form = self.found.form
        parts = {
            "KEY": drawing.key(form),
            "SCENES": html_options(list(scenes)),
            "FUNCTION": html.escape(self.function.value),
        }
        data = [[drawing.page_frame(form, view) for view in views] for views in scenes.values()]
        values = {"DATA": data, "CHOSEN": chosen, "TIME": k}
        return write_page(path, "Search explorer", STYLE, BODY, drawing.picture(form, self.view_now()), values, parts)

    def _text(self) -> str:
        facts = "; ".join(f"{name} {value}" for name, value in self.view_now().facts.items())
        return f"Search explorer: {self.found!r}; {facts}"

    # ---- replay ----

    def _lanes(self) -> list[tuple[str, int]]:
        """(label, number) of the function's lanes that have frames: of the strongest penalty and lowest error first."""
        facts, kept = self.found.facts, self.found.frames[-1].number
        rows = self.found.rows(self.function.value)
        rows = rows[torch.isin(facts["lane"][rows], kept)]
        rows = rows[facts["validation"][rows].argsort(stable=True)]
        named = {}
        for row in rows[facts["penalty"][rows].argsort(descending=True, stable=True)].tolist():
            of = f"depth {self.found.parts.depth[row]}, penalty {facts['penalty'][row]:.3g}"
            label = f"{of}, restart {facts['restart'][row]}: error down to {facts['validation'][row]:.2g}"
            named.setdefault(int(facts["lane"][row]), label)
        return [(label, lane) for lane, label in named.items()]

    def _replayed(self, lane: int) -> "Lane":
        found, frames = self.found, self.found.replay(lane)
        stages = found.facts["stage"][found.facts["lane"] == lane].tolist()
        soft, steps, names = len(frames) - len(stages), found.config.steps, []
        for frame in frames[:soft]:
            hard = frame.iteration / steps >= found.config.straight
            names.append(f"iteration {frame.iteration} of {steps}, {'hard' if hard else 'soft'}")
        names += [STAGES[min(stage, 2)].format((0, 0, *found.config.budgets)[stage]) for stage in stages]
        drawn = concat([frame.plain(found.form) for frame in frames])
        return Lane(frames, soft, drawn, self._surfaces(concat([frame.parts for frame in frames])), names)

    def _replay_view(self, k: int, number: int | None = None) -> View:
        lane, function = self._replay(self.lane.value if number is None else number), self.function.value
        constant, soft, frames = self._constant(function), lane.soft, lane.frames
        count = np.array([int(frame.non_zeros) for frame in frames])
        error = np.array([float(frame.error) for frame in frames])
        parts = lane.parts.take([k])
        curves = Curves(
            label="iteration, then plain networks (grey)",
            x=np.arange(len(frames)),
            errors={function: error},
            non_zeros=count,
            constant=constant,
            plain=soft - 0.5,
            here=(k, float(error[k]), int(count[k])),
            ticks={place: str(frames[place].iteration) for place in (0, soft // 2, soft - 1)},
        )
        facts = {
            function: lane.names[k],
            "temperature": f"{frames[k].temperature:.2f}" if k < soft else "\N{EN DASH}",
            "error": f"{error[k]:.3g}",
            "FVU": f"{error[k] / constant:.2g}",
            "non-zeros": str(count[k]),
            "units": self._units(parts),
        }
        return View(self._surface(function, lane.surfaces[k]), graph(self.found.form, parts, 0), curves, facts)

    # ---- a way between two networks ----

    def _networks(self) -> list[tuple[str, int]]:
        """(label, row) of each function's front, from many non-zeros on."""
        found = self.found
        return [
            (f"{name}: {found.facts['non_zeros'][row]} non-zeros, depth {found.parts.depth[row]}", row)
            for name in found.names
            for row in found.front(name).flip(0).tolist()
        ]

    @torch.no_grad()
    def decoded(self, far: np.ndarray, way: "Way | None" = None) -> Parts:
        """Plain networks at these shares (p,) of a way; None: the one that is chosen."""
        way = way or self._chosen_way()
        share = torch.as_tensor(far, dtype=torch.float32)
        z = torch.lerp(*(self._embedded(row) for row in way[:2]), share[:, None, None])
        depth = self.found.parts.depth[list(way[:2])][(share > 0.5).long()]
        depth = depth if way.depth == NEARER else torch.full_like(depth, way.depth)
        return hardened(self.found.form, self.swat.decode(z, depth).to("cpu"), self.found.config.threshold)

    def _chosen_way(self) -> "Way":
        return Way(self.start.value, self.end.value, self.depth.value)

    def _scored(self, parts: Parts, way: "Way") -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Errors on the functions of the way's ends, and non-zeros, of p networks: (p,) each."""
        x, y = self.table.validation
        scores = {}
        for name in map(self._function_of, way[:2]):
            column = y[:, self.table.names.index(name), None, None].expand(-1, len(parts.depth), 1)
            scores[name] = errors(self.found.form, parts, (x, column)).numpy()
        return scores, non_zeros(self.found.form, parts).numpy()

    def _function_of(self, row: int) -> str:
        return self.found.names[int(self.found.facts["function"][row])]

    def _walk_view(self, far: float) -> View:
        way = self._chosen_way()
        parts, nearer = self.decoded(np.array([far]), way), way[int(far > 0.5)]
        function = self._function_of(nearer)
        scores, count = self._walked(way)
        here, own = self._scored(parts, way)
        curves = Curves(
            label="share of the way",
            x=np.linspace(0, 1, PLACES),
            errors=scores,
            non_zeros=count,
            constant=self._constant(function),
            plain=1.0,
            here=(far, float(here[function][0]), int(own[0])),
            ticks={0.0: "0", 0.5: "0.5", 1.0: "1"},
        )
        facts = {
            "share of the way": f"{far:.2f}",
            f"error on {function}": f"{here[function][0]:.3g}",
            "the nearer end itself": f"{self.found.facts['validation'][nearer]:.3g}",
            "non-zeros": str(own[0]),
            "units": self._units(parts),
        }
        return View(self._surface(function, self._surfaces(parts)[0]), graph(self.found.form, parts, 0), curves, facts)

    # ---- surfaces ----

    def _interpolated(self, x: Tensor) -> np.ndarray:
        """(functions, g, g): the table's targets at the grid, between its rows x (m, 2)."""
        y = torch.cat([part[1] for part in (self.table.train, self.table.validation, self.table.test)]).numpy()
        columns = [self.table.names.index(name) for name in self.found.names]
        between = RBFInterpolator(x.numpy(), y[:, columns], neighbors=NEIGHBOURS)
        return between(self._inputs.numpy()).T.reshape(-1, GRID, GRID)

    @torch.no_grad()
    def _surfaces(self, parts: Parts) -> np.ndarray:
        """(n, g, g) of n networks."""
        return evaluate(self.found.form, parts, self._inputs)[..., 0].view(-1, GRID, GRID).numpy()

    def _surface(self, function: str, learned: np.ndarray) -> Surface:
        return Surface(*(axis.numpy() for axis in self.grid), self._true[self.found.names.index(function)], learned)

    def _constant(self, function: str) -> float:
        return float(self.table.validation[1][:, self.table.names.index(function)].var(unbiased=False))

    def _units(self, parts: Parts) -> str:
        """Hidden units that are on, layer by layer, of one plain network."""
        return " + ".join(map(str, units(parts)[0, : int(parts.depth[0])].tolist()))

    # ---- drawing: whatever changes is sent in one message ----

    def _show_controls(self) -> None:
        for row, mode in zip(self._rows, (REPLAY, REPLAY, WALK, WALK), strict=True):
            row.layout.display = "flex" if mode == self.mode.value else "none"

    def _other_function(self, change) -> None:
        options = self._lanes()
        self.lane.unobserve(self._other_lane, "value")
        self.lane.options, self.lane.value = options, options[0][1]
        self.lane.observe(self._other_lane, "value")
        self._other_lane()

    def _other_lane(self, change=None) -> None:
        """Its frames may be more or fewer, as it was pruned more or less often."""
        last = len(self._replay(self.lane.value).frames) - 1
        self.time.unobserve(self._draw, "value")
        self.time.max = self.play.max = last  # a later time becomes the last
        self.time.observe(self._draw, "value")
        self._draw()

    def _draw(self, change=None) -> None:
        self._show_controls()
        view = self.view_now()
        self.readout.value = drawing.facts(view)
        drawing.update(self.plot, self.found.form, view)


STYLE = """
#time { width: 24em; vertical-align: middle }
form { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; align-items: center }
"""

BODY = """
<form>
<label>lane of @FUNCTION@, or walk <select id="scene">@SCENES@</select></label>
<label>time, or share of the way <input id="time" type="range" min="0" value="0"></label>
</form>
<div id="facts" role="status" aria-live="polite"></div>
@DRAWN@
@KEY@
<script>
const all = @DATA@, at = id => document.getElementById(id);
function show() {
  const frames = all[at("scene").value];
  at("time").max = frames.length - 1;
  const frame = frames[at("time").value], update = {};
  for (const name of ["x", "y", "z", "intensity", "text"]) update[name] = frame.traces.map(trace => trace[name]);
  at("facts").innerHTML = frame.facts;
  Plotly.update(at("plot"), update, {...frame.layout});
}
at("scene").value = @CHOSEN@;
at("time").max = all[@CHOSEN@].length - 1;
at("time").value = @TIME@;
at("time").oninput = at("scene").onchange = show;
show();
</script>
"""

"""The front explorer: every trial of a search as a point; the chosen one's weights and mixture beside it.

Left ratio and validation error with the front, right the histogram and the mixture that the trial ended with
(`plots.trial_frame` is the static twin). Choose a trial by the slider (arrow keys), or click on its point.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as widgets
import plotly.graph_objects as go
from matplotlib.figure import Figure

from wsnotebook import plots, tuning
from wsnotebook.explorers import mixture
from wsnotebook.explorers.common import LAYOUT, RING, Displayed, Plot, legend, packed, readout, write_page
from wsnotebook.plots import tuning as pictures
from wsnotebook.plots.common import INK

ON_FRONT, COMPLETE, ENDED = pictures.GROUPS


class Explorer(Displayed):
    """Ratio and error of a search's trials, and the mixture of the chosen one. Needs one complete trial at least.

    load: a complete trial in, its `soft_weight_sharing.Result` out, as `tuning.result_of` does. allowance: the drop
    that is drawn as accepted, percentage points. Its widgets are slider, readout and plot; `view` holds them.
    """

    def __init__(self, trials: Sequence[tuning.Trial], load: Callable, allowance: float = 0.5):
        self.trials, self.load, self.allowance = list(trials), load, allowance
        self.front = tuning.front(self.trials)
        self._results = {}
        best = tuning.best(self.trials, allowance)
        complete = sorted((t for t in self.trials if t.state == "complete"), key=lambda t: (t.ratio, t.number))
        options = [(f"{t.ratio:.1f}x, {t.error:.2f} %", t.number) for t in complete]
        tip = "complete trials, the largest file first: the arrow keys move it"
        self.slider = widgets.SelectionSlider(options=options, value=best.number, description="trial", tooltip=tip)
        self.slider.layout.width = "420px"
        self.readout = widgets.HTML(self._facts(best))
        self.plot = Plot(self._picture())
        self.slider.observe(lambda change: self._draw(), "value")
        for trace in self.plot.data[: len(pictures.GROUPS)]:
            trace.on_click(self._clicked)
        self.view = widgets.VBox([self.slider, self.readout, self.plot, widgets.HTML(_key())])

    @property
    def chosen(self) -> tuning.Trial:
        """The trial that is shown."""
        return self._trial(self.slider.value)

    def figure(self, number: int | None = None) -> Figure:
        """The static twin for the trial of this number; None: the one that is shown."""
        trial = self.chosen if number is None else self._trial(number)
        return plots.trial_frame(self.trials, self.front, self.allowance, trial, self._result(trial))

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network, with the mixtures of the front's trials.

        Returns its path. Raises OSError when it cannot be written.
        """
        frames = {}
        for trial in self.front:
            traces = [{key: packed(values) for key, values in trace.items()} for trace in self._right(trial)]
            data = {key: [self._ring(trial)[key], *(trace[key] for trace in traces)] for key in ("x", "y")}
            frames[trial.number] = {"data": data, "axes": self._axes(trial), "text": self._facts(trial)}
        at = self.front.index(self.chosen) if self.chosen in self.front else len(self.front) - 1
        figure = self._picture(self.front[at])
        moving = list(range(len(pictures.GROUPS), len(figure.data)))
        values = {"NUMBERS": [t.number for t in self.front], "MOVING": moving, "FRAMES": frames}
        values |= {"LAST": len(self.front) - 1, "CHOSEN": at}
        return write_page(path, "Front explorer", STYLE, BODY, figure, values, {"KEY": _key()})

    def _text(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in _facts(self.chosen).items())
        return f"Front explorer: {len(self.trials)} trials, {len(self.front)} on the front; {facts}"

    def _trial(self, number: int) -> tuning.Trial:
        return next(trial for trial in self.trials if trial.number == number)

    def _result(self, trial: tuning.Trial):
        if trial.number not in self._results:
            self._results[trial.number] = self.load(trial)
        return self._results[trial.number]

    def _clicked(self, trace, points, state) -> None:
        """A complete trial is shown; one that ended early has no mixture, only its facts."""
        if not points.point_inds:
            return
        trial = self._trial(int(trace.customdata[points.point_inds[0]]))
        if trial.state == "complete":
            self.slider.value = trial.number
        else:
            self.readout.value = self._facts(trial)

    def _draw(self) -> None:
        """Bring readout and plot up to the slider, in one message."""
        trial, first = self.chosen, len(pictures.GROUPS)
        self.readout.value = self._facts(trial)
        traces = [self._ring(trial), *self._right(trial)]
        data = {key: [trace[key] for trace in traces] for key in ("x", "y")}
        self.plot.plotly_update(data, self._axes(trial), list(range(first, first + len(traces))))

    def _picture(self, trial: tuning.Trial | None = None) -> go.Figure:
        """The figure with this trial shown, by default the chosen one: the groups, the ring, then the right half."""
        trial = trial or self.chosen
        limit, trained = pictures.highest(self.trials, self.front, self.allowance), pictures.reference(self.trials)
        groups = pictures.grouped(self.trials, self.front)
        traces = [_points(label, group, limit) for label, group in groups.items()]
        traces.append(RING | self._ring(trial))
        traces += [trace | RIGHT | values for trace, values in zip(mixture.TRACES[:4], self._right(trial), strict=True)]
        figure = go.Figure(traces, LAYOUT | mixture.AXES)
        lowest = min([trained, *(t.error for t in self.trials if t.error is not None)])
        for height, dash, text in (
            (trained, "dash", "trained network"),
            (trained + self.allowance, "dot", "allowance"),
        ):
            line = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": height, "y1": height}
            figure.add_shape(line | {"line": {"color": INK, "width": 1, "dash": dash}, "layer": "below"})
            note = {"xref": "x domain", "x": 0, "y": height, "text": text, "showarrow": False, "font": {"size": 11}}
            figure.add_annotation(note | {"xanchor": "left", "yanchor": "bottom"})
        return figure.update_layout(
            {
                "xaxis.title.text": "compression ratio of the file",
                "yaxis.title.text": "validation error (%)",
                "yaxis.range": [max(0, lowest - 0.1 * (limit - lowest)), limit],
                "yaxis.tickformat": ".1f",
                "yaxis2.tickformat": ",",
                "xaxis2.title.text": "weight value",
                "clickmode": "event",
            }
            | self._axes(trial)
        )

    def _ring(self, trial: tuning.Trial) -> dict:
        return {"x": [trial.ratio], "y": [min(trial.error, pictures.highest(self.trials, self.front, self.allowance))]}

    def _right(self, trial: tuning.Trial) -> list[dict]:
        """x and y of bars, mixture, free components and spike."""
        return mixture.trace_arrays(plots.frame(self._result(trial)))[:4]

    def _axes(self, trial: tuning.Trial) -> dict:
        """{property path: value} of the right half's axes."""
        axes = mixture.axis_ranges(self._result(trial), mixture.ALL, "log")
        return {name.replace("axis.", "axis2."): value for name, value in axes.items() if "axis2" not in name}

    def _facts(self, trial: tuning.Trial) -> str:
        return readout({name: html.escape(value) for name, value in _facts(trial).items()})


def _points(label: str, group: Sequence[tuning.Trial], limit: float) -> dict:
    """A group's trace: errors beyond the limit stand on it, as triangles."""
    colour, _ = pictures.GROUPS[label]
    return {
        "type": "scatter",
        "mode": "lines+markers" if label == ON_FRONT else "markers",
        "name": label,
        "line": {"color": colour, "width": 1, "shape": "hv"},
        "marker": {
            "color": colour,
            "size": 11,
            "symbol": ["triangle-up" if t.error > limit else SYMBOLS[label] for t in group],
            "line": {"color": "white", "width": 1},
            "opacity": 0.5 if label == ENDED else 0.9,
        },
        "x": [t.ratio for t in group],
        "y": [min(t.error, limit) for t in group],
        "customdata": [t.number for t in group],
        "text": ["<br>".join(f"{name} {html.escape(value)}" for name, value in _facts(t).items()) for t in group],
        "hovertemplate": "%{text}<extra></extra>",
        "cliponaxis": False,
    }


SYMBOLS = {ON_FRONT: "circle", COMPLETE: "square", ENDED: "x"}
GLYPHS = ("\N{BLACK CIRCLE}", "\N{BLACK SQUARE}", "\N{MULTIPLICATION X}")
RIGHT = {"xaxis": "x2", "yaxis": "y2"}


def _facts(trial: tuning.Trial) -> dict[str, str]:
    """What the readout, the hover and the text say, rounded."""
    state = {} if trial.state == "complete" else {trial.state: f"{trial.reason} after {trial.epochs} epochs"}
    facts = {
        "trial": f"{trial.number}",
        "ratio": f"{trial.ratio:.1f}",
        "validation error": f"{trial.error:.2f} %",
        "drop": f"{trial.drop:+.2f} points",
    }
    return facts | state | {name: _number(value) for name, value in trial.settings.items()}


def _number(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _key() -> str:
    """The legend of both halves; plotly's own would be drawn anew at every step."""
    glyphs = dict(zip(pictures.GROUPS, GLYPHS, strict=True))
    items = [f"<b style='color: {pictures.GROUPS[name][0]}'>{glyph}</b> {name}" for name, glyph in glyphs.items()]
    line = "display: inline-block; width: 22px; vertical-align: middle; margin-right: 5px"
    bars = [
        f"<span style='{line}; height: {h}px; background: {c}'></span>{name}" for name, (c, h) in mixture.KEY.items()
    ]
    return legend([*items, "\N{BLACK UP-POINTING TRIANGLE} beyond the axis", "<b>\N{LARGE CIRCLE}</b> shown", *bars])


STYLE = "#trial { width: 24em; vertical-align: middle }"

BODY = """
<label>trials on the front, smallest ratio first
<input id="trial" type="range" min="0" max="@LAST@" value="@CHOSEN@"></label>
<div id="facts"></div>
@DRAWN@
@KEY@
<script>
const numbers = @NUMBERS@, moving = @MOVING@, frames = @FRAMES@;
const at = id => document.getElementById(id);
function show() {
  const frame = frames[numbers[at("trial").value]];
  at("facts").innerHTML = frame.text;
  Plotly.update(at("plot"), frame.data, frame.axes, moving);
}
at("trial").oninput = show;
at("plot").on("plotly_click", event => {
  const place = numbers.indexOf(event.points[0].customdata);
  if (place >= 0) { at("trial").value = place; show(); }
});
at("facts").innerHTML = frames[numbers[at("trial").value]].text;
</script>
"""

"""The latent explorer: walk through the latents of a zoo's networks, and see what is decoded on the way.

A walk starts at a network and goes both ways: along a principal axis of the zoo's latents, along the gradient of a
linear probe, towards another network, or at random. All its places are decoded and scored at once; the slider looks
them up. `plots.latent_frame` is the static twin.
"""

import html
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor

from wsnotebook import evaluation, plots
from wsnotebook.explorers.common import (
    AXIS,
    LAYOUT,
    Displayed,
    Plot,
    chooser,
    html_options,
    image_source,
    legend,
    readout,
    write_page,
)
from wsnotebook.methods.properties import Target, probe
from wsnotebook.methods.tokens import Embedder
from wsnotebook.plots import latent as pictures
from wsnotebook.plots.common import INK
from wsnotebook.plots.flow import CHOSEN, LANDMARK, filter_strip
from wsnotebook.plots.latent import Landmarks, Walk
from wsnotebook.plots.zoo import columns
from wsnotebook.zoo.value import Zoo

ROWS = 500  # of the split, at most: a new walk scores 21 networks on them
REACH = 10  # places of a walk on each side of its start
AXES = 5  # principal axes, at most
DEVIATIONS = 3.0  # how far a walk along an axis or the gradient goes
FILTERS = 8  # the start's strongest
TOWARDS, RANDOM = "towards another network", "at random"  # the directions that need another choice
BLANK = "\u00a0"  # plotly loses points of no text
NEAREST, PIXELS = Image.Resampling.NEAREST, 256  # a notebook's pictures are as wide; the page leaves it to the browser


class Found(NamedTuple):
    """A walk, and what is decoded on it."""

    walk: Walk
    networks: Zoo  # (p) of them


class Explorer(Displayed):
    """Walks through the latents of a zoo's networks, by an embedder such as `sane.Sane` or `LayerPCA`.

    split: (x, y) to score on, of which 500 rows are used. fact: of numbers, that the probe reads off the latents.
    recalibrate: training images, for batch norm's statistics. Raises ValueError for a zoo of another architecture than
    the embedder's, an unknown fact or one of strings, and what `properties.probe` does.
    """

    def __init__(
        self,
        embedder: Embedder,
        zoo: Zoo,
        split: tuple[Tensor, Tensor],
        *,
        fact: str = "validation_accuracy",
        recalibrate: Tensor | None = None,
    ):
        self.embedder, self.zoo, self.fact, self.recalibrate = embedder, zoo, fact, recalibrate
        column = columns(zoo, [fact])[fact]
        if not column.numeric:
            raise ValueError(f"fact {fact!r} is of strings; expected one of numbers, for a probe to have a gradient")
        rows = np.linspace(0, len(split[0]) - 1, min(len(split[0]), ROWS)).round().astype(int)
        self.split = tuple(part[torch.from_numpy(rows)] for part in split)
        latents = embedder.embed(zoo).cpu()  # (n, r, z)
        self._shape, self.latents = latents.shape[1:], latents.flatten(1)  # (n, r z)
        self.probe = probe(self.latents, zoo, {fact: Target(fact)}, seeds=[0])[fact]
        pca = PCA(min(AXES, len(zoo) - 1), svd_solver="arpack", random_state=0).fit(self.latents.double().numpy())
        self.axes = pca.components_  # (k, r z) orthonormal rows, by falling variance
        shares = [f"{100 * share:.3g} % of variance" for share in pca.explained_variance_ratio_]
        labels = [f"latent axis {i} ({share})" for i, share in enumerate(shares[:2], start=1)]
        self._centre = pca.mean_
        self.landmarks = Landmarks(self.place(self.latents), tuple(labels), column)
        self._ways = {
            f"axis {i} ({share})": axis for i, (share, axis) in enumerate(zip(shares, self.axes, strict=True), start=1)
        }
        self._ways[f"gradient of {fact} by a probe"] = self.probe.models[0].coefficients
        self._found = {}  # by start, direction, and what else that needs
        self.start = chooser("start", self._options(range(len(zoo))), int(np.argsort(column.values)[len(zoo) // 2]))
        self.direction = chooser("direction", [*self._ways, TOWARDS, RANDOM], next(iter(self._ways)))
        self.start.tooltip = "where walks start; a click on a network in the picture chooses it, too"
        alike = self._alike()
        self.other = chooser("other", self._options(alike), int(alike[np.argmax(column.values[alike])]))
        self.seed = widgets.BoundedIntText(0, max=2**31 - 1, description="seed", layout={"width": "160px"})
        layout = zoo.layout
        layers = [name for name, shape, kind in zip(layout.names, layout.shapes, layout.kinds, strict=True)
                  if kind == "weight" and len(shape) > 1]  # fmt: skip
        self.layer = chooser("layer", layers, layers[-1])
        tip = "how far along the direction, 0 is the start: the arrow keys move it by a place"
        self.far = widgets.IntSlider(0, min=-REACH, max=REACH, description="far", tooltip=tip, readout=False)
        for control, width in {self.far: 420, self.direction: 350, self.start: 300, self.other: 300}.items():
            control.layout.width = f"{width}px"
        self.readout, self.key = widgets.HTML(self._facts(REACH)), widgets.HTML(_key())
        self.plot = Plot(self._picture())
        self._enable()
        self.start.observe(self._restart, "value")
        for control in (self.far, self.direction, self.other, self.seed, self.layer):
            control.observe(self._draw, "value")
        self.plot.data[0].on_click(self._clicked)
        boxes = [
            widgets.HBox(row, layout={"flex_flow": "row wrap"})
            for row in ([self.far, self.direction], [self.start, self.other, self.seed, self.layer])
        ]
        self.view = widgets.VBox([*boxes, self.readout, self.plot, self.key])

    @property
    def k(self) -> int:
        """The place on the walk that is shown."""
        return REACH + self.far.value

    @property
    def walk(self) -> Walk:
        """The walk that is chosen."""
        return self._walked(self.direction.value).walk

    @property
    def networks(self) -> Zoo:
        """What is decoded at its places."""
        return self._walked(self.direction.value).networks

    def place(self, latents: Tensor) -> np.ndarray:
        """Latents (n, r z) -> (n, 2) in the plane of the first two principal axes."""
        return (latents.double().numpy() - self._centre) @ self.axes[:2].T

    def figure(self) -> Figure:
        """The static twin of what is shown."""
        images = dict(zip(self._captions(), self._images(self._walked(self.direction.value), self.k), strict=True))
        return plots.latent_frame(self.walk, self.k, self.landmarks, images)

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network: the start that is chosen, and all directions from it.

        The other network, the seed and the layer are those that are chosen. Raises OSError when it cannot be written.
        """
        directions = list(self.direction.options)
        parts = {"KEY": _key(), "DIRECTIONS": html_options(directions)}
        data = {"ways": [self._page_data(direction) for direction in directions], "moving": MOVING}
        chosen = {"CHOSEN": directions.index(self.direction.value), "REACH": REACH, "FAR": self.far.value}
        return write_page(path, "Latent explorer", STYLE, BODY, self._picture(), chosen | {"DATA": data}, parts)

    def _page_data(self, direction: str) -> dict:
        found = self._walked(direction)
        frames = []
        for k in range(len(found.walk.far)):
            data = _moving(found.walk, k)
            frames.append({
                "x": [_short(x) for x in data["x"]], "y": [_short(y) for y in data["y"]], "text": data["text"],
                "images": list(map(image_source, self._every_image(found, k))), "facts": self._facts(k, direction),
            })  # fmt: skip
        return {"frames": frames, "layout": self._frame_of(found.walk)}

    def _text(self) -> str:
        facts = "; ".join(f"{name} {value}" for name, value in self._numbers(self.k, self.direction.value).items())
        return f"Latent explorer: {len(self.zoo)} networks; {self.direction.value}: {facts}"

    def _numbers(self, k: int, direction: str) -> dict[str, str]:
        """What the readout and the text say, rounded."""
        walk = self._walked(direction).walk
        return {
            "from": self._name(self.start.value),
            "far": f"{walk.far[k]:+.2g} {walk.unit}",
            "accuracy": f"{walk.accuracy[k]:.1f} %",
            f"{self.fact} by the probe": f"{walk.predicted[k]:.4g}",
            "nearest": f"{self._name(walk.nearest[k])}, at {walk.distance[k]:.4g}",
        }

    def _facts(self, k: int, direction: str | None = None) -> str:
        facts = self._numbers(k, direction or self.direction.value)
        return readout({html.escape(name): html.escape(value) for name, value in facts.items()})

    def _name(self, row: int) -> str:
        facts = self.zoo.facts
        step = f", step {facts['step'][row]}" if "step" in facts else ""
        return f"network {facts['model'][row] if 'model' in facts else row}{step}"

    def _options(self, rows) -> list[tuple[str, int]]:
        return [(f"{self._name(row)} ({self.landmarks.fact.values[row]:.4g})", int(row)) for row in rows]

    def _alike(self) -> np.ndarray:
        """Rows of the networks of the start's activation, which those on the way to them have."""
        kinds = self.zoo.facts.get("activation", np.zeros(len(self.zoo)))
        return np.flatnonzero(kinds == kinds[self.start.value])

    # ---- walks: their latents, and what these decode to ----

    def _walked(self, direction: str) -> Found:
        """The walk from the start that is chosen, kept."""
        key = self.start.value, direction, {TOWARDS: self.other.value, RANDOM: self.seed.value}.get(direction)
        if key not in self._found:
            self._found[key] = self._decoded(direction)
        return self._found[key]

    def _decoded(self, direction: str) -> Found:
        latents, far, unit = self._way(direction)
        start, z = self.zoo.filter([self.start.value]), latents.unflatten(1, self._shape).to(self.zoo.weights.device)
        networks = self.embedder.decode(z, self.zoo.filter([self.start.value] * len(far)))
        if self.recalibrate is not None:
            networks = evaluation.recalibrated(networks, self.recalibrate)
        report, near = evaluation.report(networks, self.split), evaluation.nearest(networks, self.zoo)
        walk = Walk(
            direction=direction,
            unit=unit,
            far=far,
            places=self.place(latents),
            accuracy=report.accuracy,
            own=float(evaluation.report(start, self.split).accuracy[0]),
            predicted=self.probe.models[0].predict(latents.double().numpy()),
            confusion=_confusion(report.predictions, self.split[1].cpu().numpy(), report.per_class.shape[1]),
            distance=near.distance,
            nearest=near.index,
        )
        return Found(walk, networks)

    def _way(self, direction: str) -> tuple[Tensor, np.ndarray, str]:
        """The latents of its places (p, r z), how far they are (p,), and the unit of that."""
        start, centred = self.latents[self.start.value], self.latents - self.latents.mean(0)
        if direction == RANDOM:  # each step is normal, with the zoo's covariance / REACH
            draws = torch.randn(2, REACH, len(centred), generator=torch.Generator().manual_seed(self.seed.value))
            back, on = (start + (draws @ centred / (len(centred) * REACH) ** 0.5).cumsum(1)).unbind()
            return torch.cat([back.flip(0), start[None], on]), np.arange(-REACH, REACH + 1), "steps"
        if direction == TOWARDS:
            end, reach, unit = self.latents[self.other.value], 1.0, f"of the way to {self._name(self.other.value)}"
        else:
            axis = torch.from_numpy(self._ways[direction] / np.linalg.norm(self._ways[direction]))
            deviation = (centred.double() @ axis).std(correction=0)
            end, reach = start + (DEVIATIONS * deviation * axis).float(), DEVIATIONS
            unit = "standard deviations of the zoo"
        share = torch.arange(-REACH, REACH + 1) / REACH
        return torch.lerp(start, end, share[:, None]), reach * share.double().numpy(), unit

    # ---- drawing: whatever changes is sent in one message ----

    def _clicked(self, trace, points, state) -> None:
        if points.point_inds:
            self.start.value = int(points.point_inds[0])

    def _restart(self, change) -> None:
        """From another start; the other network stays if it has that one's activation."""
        options = self._options(self._alike())
        if options != list(self.other.options):
            self.other.unobserve(self._draw, "value")
            self.other.options = options
            self.other.observe(self._draw, "value")
        self._draw()

    def _enable(self) -> None:
        """The choices that the direction asks for."""
        self.other.disabled, self.seed.disabled = (self.direction.value != asking for asking in (TOWARDS, RANDOM))

    def _draw(self, change=None) -> None:
        self._enable()
        self.readout.value = self._facts(self.k)
        self._update(self.plot)

    def _picture(self) -> go.Figure:
        figure = go.Figure(TRACES, LAYOUT | LOOK)
        fact = self.landmarks.fact
        x, y = self.landmarks.places.T
        figure.data[0].update(x=x, y=y, text=[name for name, _ in self._options(range(len(self.zoo)))])
        figure.data[0].marker.update(color=fact.values, colorbar=BAR | {"title": {"text": fact.label, "side": "top"}})
        across, up = self.landmarks.labels
        classes = self.walk.confusion.shape[1]
        square = {"x": -0.5, "y": -0.5, "sizex": classes, "sizey": classes}
        boxes = [square, *([FILTER_BOX] if len(self._captions()) == 3 else []), *WEIGHT_BOXES]
        places = [SQUARE] + [BELOW] * (len(boxes) - 1)
        dtick = 1 if classes <= pictures.NUMBERED else None
        figure.update_layout({
            "xaxis.title.text": across, "xaxis3.range": [-0.5, classes - 0.5], "xaxis3.dtick": dtick,
            "yaxis.title.text": up, "yaxis3.range": [classes - 0.5, -0.5], "yaxis3.dtick": dtick,
            "images": [place | box for place, box in zip(places, boxes, strict=True)],
            "annotations": [CAPTION | {"x": box["x"]} for box in boxes[1:]],
        })  # fmt: skip
        self._update(figure)
        return figure

    def _update(self, figure: go.Figure) -> None:
        """Bring everything that moves up to the controls: traces, axes, pictures and their captions."""
        found = self._walked(self.direction.value)
        layout = self._frame_of(found.walk)
        for i, image in enumerate(self._every_image(found, self.k)):
            zoom = max(1, PIXELS // image.width)
            layout[f"images[{i}].source"] = image_source(
                image.resize((zoom * image.width, zoom * image.height), NEAREST)
            )
        figure.plotly_update(_moving(found.walk, self.k), layout, MOVING)

    def _frame_of(self, walk: Walk) -> dict:
        """What of the layout a direction changes."""
        low, high = pictures.limits(walk, self.landmarks)
        ends = zip(("xaxis", "yaxis"), low.tolist(), high.tolist(), strict=True)
        layout = {f"{name}.range": [low, high] for name, low, high in ends}
        layout |= {"xaxis2.range": walk.far[[0, -1]].tolist(), "xaxis2.title.text": walk.unit}
        return layout | {f"annotations[{i}].text": caption for i, caption in enumerate(self._captions())}

    def _captions(self) -> list[str]:
        """Of the pictures below; filters only where images are seen."""
        seen = ["first-layer filters"] if self._filter_shape() else []
        return [*seen, self.layer.value, "minus the nearest's"]

    def _every_image(self, found: Found, k: int) -> list[Image.Image]:
        return [pictures.confusion_picture(found.walk.confusion[k]), *self._images(found, k)]

    def _images(self, found: Found, k: int) -> list[Image.Image]:
        """Of the weights at place k, one a caption."""
        decoded = self._tensor(found.networks, self.layer.value)  # (p, out, in)
        own = decoded[k].flatten(1)
        gap = own - self._tensor(self.zoo.filter([found.walk.nearest[k]]), self.layer.value)[0].flatten(1)
        limit = max(float(decoded[REACH].abs().max()), np.finfo(np.float32).tiny)
        images = [pictures.weight_picture(part.cpu().numpy(), limit) for part in (own, gap)]
        if shape := self._filter_shape():
            filters = self._tensor(found.networks, self.layer.options[0])[[k, REACH]].reshape(2, *shape).mean(2)
            order = filters[1].square().sum((1, 2)).argsort(descending=True, stable=True)[:FILTERS]
            limit = max(float(filters[1].abs().max()), np.finfo(np.float32).tiny)
            images.insert(0, filter_strip(filters[0, order].cpu().numpy(), limit))
        return images

    def _tensor(self, networks: Zoo, name: str) -> Tensor:
        """(n, *shape) that tensor of all networks."""
        return networks.layout.unflatten(networks.weights)[name]

    def _filter_shape(self) -> tuple[int, ...] | None:
        """(out, in, h, w) of the first layer; None when it does not see images."""
        layout, seen = self.zoo.layout, tuple(self.split[0].shape[1:])
        shape = layout.shapes[layout.names.index(self.layer.options[0])]
        if len(shape) == 2 and len(seen) == 3 and shape[1] == np.prod(seen):
            shape = (shape[0], *seen)
        return shape if len(shape) == 4 else None


def _confusion(predictions: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """(p, classes, classes) how many rows of each label (down) each of p networks predicts as what (across)."""
    place = (np.arange(len(predictions))[:, None] * classes + y) * classes + predictions
    counts = np.bincount(place.ravel(), minlength=len(predictions) * classes**2)
    return counts.reshape(-1, classes, classes)


def _moving(walk: Walk, k: int) -> dict[str, list]:
    """x, y and text of the traces that move."""
    counts, start = walk.confusion[k], len(walk.far) // 2
    label, prediction = np.indices(counts.shape).reshape(2, -1)
    numbers = [str(count or BLANK) for count in counts.ravel()] if len(counts) <= pictures.NUMBERED else ""
    x, y = walk.places.T.copy()  # only whole arrays are sent
    here, accuracy = walk.far[[k]], walk.accuracy
    return {
        "x": [x, x[[start]], x[[k]], walk.far[[0, -1]], walk.far, here, prediction],
        "y": [y, y[[start]], y[[k]], np.full(2, walk.own), accuracy, accuracy[[k]], label],
        "text": [""] * 6 + [numbers],
    }


def _short(values: np.ndarray) -> list[float]:
    """Five digits a number."""
    return [float(f"{value:.5g}") for value in values]


def _key() -> str:
    """The legend; plotly's own would be drawn anew at every step."""
    items = [
        f"<span><b style='color: {CHOSEN}'>\u25cb</b> the start, decoded</span>",
        f"<span><b style='color: {CHOSEN}'>\u25cf</b> the place that is shown</span>",
        "dotted: the start itself, not embedded",
        "weights: blue below zero, red above",
    ]
    return legend(items)


MOVING = list(range(1, 8))  # places among the traces
_MARK = {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "cliponaxis": False}
_LINE = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
_CURVE, _MATRIX = {"xaxis": "x2", "yaxis": "y2"}, {"xaxis": "x3", "yaxis": "y3"}
_HERE = _MARK | {"marker": {"color": CHOSEN, "size": 12, "line": {"color": INK, "width": 1.5}}}
TRACES = (
    _MARK
    | {
        "name": "zoo",
        "marker": {"size": 5, "colorscale": "Viridis"},
        "hoverinfo": None,
        "hovertemplate": "%{text}<extra></extra>",
    },
    _LINE | {"name": "way", "line": {"color": CHOSEN, "width": 2}},
    _MARK | {"name": "start", "marker": {"color": "white", "size": 10, "line": {"color": CHOSEN, "width": 2}}},
    _HERE | {"name": "here"},
    _LINE | _CURVE | {"name": "the start itself", "line": {"color": LANDMARK, "width": 1.5, "dash": "dot"}},
    _LINE | _CURVE | {"name": "accuracy", "hoverinfo": "x+y", "line": {"color": CHOSEN, "width": 2.5}},
    _HERE | _CURVE | {"name": "accuracy here"},
    _LINE | _MATRIX | {"name": "confusion", "mode": "text", "textfont": {"size": 10, "color": INK}},
)
_TOP = [0.44, 1]
LOOK = {
    "height": 560,
    "margin": {"l": 70, "r": 15, "t": 50, "b": 10},
    "clickmode": "event",
    "hoverlabel": {"bgcolor": "white"},
    "xaxis": AXIS | {"domain": [0, 0.35], "title": {"standoff": 8}},
    "yaxis": AXIS | {"domain": _TOP, "title": {"standoff": 4}},
    "xaxis2": AXIS | {"domain": [0.45, 0.68], "anchor": "y2", "title": {"standoff": 8}},
    "yaxis2": AXIS
    | {"domain": _TOP, "anchor": "x2", "range": [0, 103], "title": {"text": "accuracy (%)", "standoff": 4}},
    "xaxis3": AXIS | {"domain": [0.76, 1], "anchor": "y3", "constrain": "domain", "title": {"text": "predicted"}},
    "yaxis3": AXIS
    | {
        "domain": _TOP,
        "anchor": "x3",
        "scaleanchor": "x3",
        "constrain": "domain",
        "title": {"text": "label", "standoff": 4},
    },
}
BAR = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom", "len": 0.35, "thickness": 8}
SQUARE = {"xref": "x3", "yref": "y3", "layer": "below", "sizing": "stretch", "source": ""}  # the confusion matrix
BELOW = {"xref": "paper", "yref": "paper", "y": 0.24, "yanchor": "top", "sizey": 0.24, "source": ""}
FILTER_BOX = {"x": 0, "sizex": 0.35, "sizing": "contain"}
WEIGHT_BOXES = [{"x": x, "sizex": 0.26, "sizing": "stretch"} for x in (0.42, 0.74)]
CAPTION = {"xref": "paper", "yref": "paper", "y": 0.25, "yanchor": "bottom", "xanchor": "left", "showarrow": False}

STYLE = """
#plot image { image-rendering: pixelated }
#far { width: 24em; vertical-align: middle }
form { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; align-items: center }
"""

BODY = """
<form>
<label>far <input id="far" type="range" min="-@REACH@" max="@REACH@" value="@FAR@"></label>
<label>direction <select id="direction">@DIRECTIONS@</select></label>
</form>
<div id="facts"></div>
@DRAWN@
@KEY@
<script>
const all = @DATA@, at = id => document.getElementById(id);
at("direction").value = @CHOSEN@;
function show() {
  const way = all.ways[at("direction").value], frame = way.frames[Number(at("far").value) + @REACH@];
  const layout = {...way.layout};
  frame.images.forEach((image, i) => layout[`images[${i}].source`] = image);
  at("facts").innerHTML = frame.facts;
  Plotly.update(at("plot"), {x: frame.x, y: frame.y, text: frame.text}, layout, all.moving);
}
at("far").oninput = at("direction").onchange = show;
show();
</script>
"""

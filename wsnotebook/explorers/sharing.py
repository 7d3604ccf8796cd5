"""The sharing explorer: who shares in a bank of SuperWeights, regrouped as you go, and what its members give together.

Above the map of clusters, members by layers, and the parameters they take; threshold and budget cut them anew from the
stored similarities of gradients. Below the trained bank's coefficients, and accuracy and NLL of any ensemble of its
members over its MACs. `plots.sharing_frame` is the static twin.
"""

import html
import math
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from wsnotebook import plots
from wsnotebook.explorers import sharing_figure as drawing
from wsnotebook.explorers.common import Displayed, Plot, write_page
from wsnotebook.methods.superweight_clusters import depth_bins
from wsnotebook.methods.superweight_ensembles import Anytime
from wsnotebook.methods.superweight_plan import Plan
from wsnotebook.methods.superweight_sharing import clusters
from wsnotebook.methods.superweight_training import Config, Result
from wsnotebook.plots.superweights import PARTS, View, grouped, mixes, ordered

THRESHOLDS = np.arange(-50, 51) / 50
PERCENTAGES = range(5, 101, 5)  # of separate networks' parameters: budgets
NONE = 0  # as the budget: there is no limit


class Explorer(Displayed):
    """A trained bank, the similarities by which its layers were grouped, and the ensembles of its members.

    result: of `superweight_training.train` with this config. ensembles: `anytime` of its model, on validation rows.
    Parameters are counted as if no coefficient vector were shared, as budgets are.
    Raises ValueError for a result without similarities, and ensembles of another model.
    """

    def __init__(self, result: Result, config: Config, ensembles: Anytime):
        if result.similarities is None or result.threshold is None:
            raise ValueError(
                f"result: its layers were not compared (groups={config.groups!r}, finished={result.finished}); train "
                'with groups="gradient" or "random" to the end'
            )
        if ensembles.model is not result.model:
            raise ValueError("ensembles: of another model; expected anytime(result.model, dataset.validation)")
        self.result, self.config, self.ensembles = result, config, ensembles
        plan = result.plan
        self._layers = ordered(result.model.members, plan.clusters)
        self._mixes, self._separate = mixes(result.model), plan.sizes["separate"]
        self.thresholds = sorted({-math.inf, result.threshold, *THRESHOLDS.tolist()})
        self._bare, self._partition = self._partitions()  # ascending: few clusters first
        self.budgets = sorted({self._separate * share // 100 for share in PERCENTAGES} | {plan.budget or 0} - {0})
        options = [("kernels only" if t == -math.inf else f"{t:.3g}", t) for t in self.thresholds]
        tip = "similarity down to which clusters are merged: the arrow keys move it"
        self.threshold = _slider("threshold", options, result.threshold, tip)
        options = [(f"{100 * b / self._separate:.3g} %", b) for b in self.budgets] + [("no limit", NONE)]
        tip = "parameters, at most, in % of separate networks': the arrow keys move it"
        self.budget = _slider("budget", options, plan.budget or NONE, tip)
        best = ensembles.subsets[ensembles.best()].tolist()
        self.members = [_switch(m, on) for m, on in enumerate(best)]
        view = self.view_now()
        self.readout = widgets.HTML(_told(view), layout={"min_height": "112px"})  # four lines: the plot stays
        self.plot = Plot(drawing.picture(view, self._similar(view)))
        for control in (self.threshold, self.budget, *self.members):
            control.observe(self._draw, "value")
        sliders = widgets.HBox([self.threshold, self.budget], layout={"flex_flow": "row wrap"})
        row = widgets.HBox([widgets.Label("ensemble of"), *self.members], layout={"flex_flow": "row wrap"})
        self.view = widgets.VBox([sliders, row, self.readout, self.plot, widgets.HTML(drawing.key())])

    @property
    def plan(self) -> Plan | None:
        """Of the clusters at the threshold, with the templates that the budget allows; None: it is too small."""
        return self._plan(self._partition[self.thresholds.index(self.threshold.value)], self.budget.value or None)

    @property
    def chosen(self) -> int | None:
        """Number of the ensemble, in `ensembles.subsets`; None: no member is chosen."""
        on = [switch.value for switch in self.members]
        return self.ensembles.subsets.tolist().index(on) if any(on) else None

    def view_now(self) -> View:
        """What the controls ask for."""
        partition = self._partition[self.thresholds.index(self.threshold.value)]
        return self._view(partition, self.budget.value or None, self.chosen)

    def figure(self) -> Figure:
        """The static twin of what is shown."""
        return plots.sharing_frame(self.view_now())

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs neither kernel nor network: all thresholds, budgets and ensembles. Returns its path.

        Raises OSError when it cannot be written.
        """
        n, limits = len(self.members), [*self.budgets, None]
        groups, ensembles = [], {}
        for partition in range(len(self._bare)):
            views = [self._view(partition, budget, None) for budget in limits]
            told = [
                {"bar": drawing.bar(view), "end": drawing.end(view), "facts": drawing.facts(view.facts)}
                for view in views
            ]
            groups.append({"cells": drawing.cells(views[0], self._similar(views[0])), "budgets": told})
        for chosen in (None, *range(len(self.ensembles.macs))):
            view = self._view(0, None, chosen)
            on = [] if chosen is None else self.ensembles.subsets[chosen].nonzero().flatten().tolist()
            ensembles[" ".join(map(str, on))] = {"places": drawing.places(view), "facts": drawing.facts(view.members)}
        data = {
            "groups": groups,
            "partition": self._partition,
            "thresholds": [label for label, _ in self.threshold.options],
            "limits": [label for label, _ in self.budget.options],
            "ensembles": ensembles,
            "moving": drawing.MOVING,
        }
        switches = "".join(
            f"<label><input type='checkbox' value='{m}'{' checked' if self.members[m].value else ''}> "
            f"{html.escape(self.members[m].description)}</label>"
            for m in range(n)
        )
        view = self.view_now()
        values = {
            "LASTCUT": len(self.thresholds) - 1,
            "LASTLIMIT": len(self.budgets),
            "CUT": self.threshold.index,
            "LIMIT": self.budget.index,
            "DATA": data,
        }
        parts = {"SWITCHES": switches, "KEY": drawing.key()}
        figure = drawing.picture(view, self._similar(view))
        return write_page(path, "Sharing explorer", STYLE, BODY, figure, values, parts)

    def _text(self) -> str:
        view = self.view_now()
        facts = "; ".join(f"{name} {value}" for name, value in (view.facts | view.members).items())
        how = f"threshold {self.threshold.label}, budget {self.budget.label}"
        return f"Sharing explorer: {len(self._layers)} layers of {len(self.members)} members, {how}; {facts}"

    # ---- who shares ----

    def _partitions(self) -> tuple[list[Plan], list[int]]:
        """(bare plans, all different; the number of each threshold's)."""
        place = {layer: n for n, layer in enumerate(self._layers)}
        found, numbers = {}, []
        for threshold in self.thresholds:
            cut = clusters(self.result.similarities, threshold, self.config.linkage) if threshold > -math.inf else None
            cut = tuple(tuple(sorted(own, key=place.get)) for own in cut or depth_bins(self._layers, 1))
            numbers.append(found.setdefault(cut, len(found)))
        return [self.result.plan.regrouped(cut) for cut in found], numbers

    def _plan(self, partition: int, budget: int | None) -> Plan | None:
        return self._bare[partition].filled(budget, self.config.templates)

    def _view(self, partition: int, budget: int | None, chosen: int | None) -> View:
        one, plan, scores = self._bare[partition], self._plan(partition, budget), self.ensembles.validation
        sizes = plan and plan.sizes
        return View(
            map=grouped(self._layers, one.clusters, self.result.plan.clusters),
            parts=sizes and {name: sizes[name] for name in PARTS},
            least=one.least,
            budget=budget,
            separate=self._separate,
            mixes=self._mixes,
            macs=self.ensembles.macs,
            accuracy=scores["accuracy"],
            nll=scores["nll"],
            front=self.ensembles.front,
            chosen=chosen,
            facts=self._sharing_facts(one, plan, budget),
            members=self._ensemble_facts(chosen),
        )

    def _sharing_facts(self, one: Plan, plan: Plan | None, budget: int | None) -> dict[str, str]:
        facts = {"clusters": f"{len(one.clusters)} of {len(self._layers)} layers"}
        counted = "parameters" if one.counted == "all" else "templates' numbers"
        if plan is None:
            fits = [t for t, p in zip(self.thresholds, self._partition, strict=True) if self._bare[p].least <= budget]
            way = f"threshold {fits[-1]:.3g} fits" if fits else "no threshold fits either"
            way = "one cluster a kernel size fits" if fits == [-math.inf] else way
            needed = f"{one.least:,} ({100 * one.least / self._separate:.1f} %)"
            return facts | {"budget": f"{budget:,} {counted}: impossible, they need at least {needed}", "but": way}
        sizes, numbers = plan.sizes, [k for own in plan.templates for k in own]
        share = 100 * sizes["shared"] / self._separate
        return facts | {
            "SuperWeights": f"{len(numbers)}, each of {min(numbers)} to {max(numbers)} templates",
            "budget": "no limit" if budget is None else f"{budget:,} {counted}",
            "parameters": f"{sizes['shared']:,} ({share:.1f} %)",
            "saved": f"{self._separate - sizes['shared']:,} of {self._separate:,}",
        }

    def _similar(self, view: View) -> np.ndarray:
        """(n,) mean similarity of each layer to the others of its cluster; nan where it is alone."""
        of = self.result.similarities
        place = {layer: n for n, layer in enumerate(of.layers)}
        order = [place[layer] for layer in view.map.layers]
        same = view.map.cluster[:, None] == view.map.cluster
        np.fill_diagonal(same, False)
        count = same.sum(1)
        total = np.where(same, np.nan_to_num(of.matrix[np.ix_(order, order)]), 0).sum(1)
        return np.where(count, total / np.maximum(count, 1), np.nan)

    # ---- ensembles ----

    def _ensemble_facts(self, chosen: int | None) -> dict[str, str]:
        if chosen is None:
            return {"members": "none is chosen"}
        of, scores = self.ensembles, self.ensembles.validation
        best = of.best(of.macs[chosen])
        facts = {
            "members": self._named(chosen),
            "MACs a row": f"{of.macs[chosen]:,}",
            "validation accuracy": f"{scores['accuracy'][chosen]:.2f} %",
            "NLL": f"{scores['nll'][chosen]:.4f} nats",
        }
        other = "these members" if best == chosen else f"{self._named(best)}: {scores['accuracy'][best]:.2f} %"
        return facts | {"best at this cost": other}

    def _named(self, s: int) -> str:
        return " + ".join(map(str, self.ensembles.subsets[s].nonzero().flatten().tolist()))

    def _draw(self, change=None) -> None:
        view = self.view_now()
        self.readout.value = _told(view)
        drawing.update(self.plot, view, self._similar(view))


def _told(view: View) -> str:
    return drawing.facts(view.facts) + drawing.facts(view.members)


def _slider(name: str, options: list, value, tip: str) -> widgets.SelectionSlider:
    slider = widgets.SelectionSlider(options=options, value=value, description=name, tooltip=tip)
    slider.layout.width = "420px"
    return slider


def _switch(member: int, on: bool) -> widgets.ToggleButton:
    tip = "whether this member is in the ensemble: space turns it on and off"
    return widgets.ToggleButton(on, description=f"member {member}", tooltip=tip, layout={"width": "100px"})


STYLE = """
body { max-width: 72em }
form { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; align-items: center }
fieldset { border: 0; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: 0 1em }
#facts { min-height: 6.4em }
#cut, #limit { width: 18em; vertical-align: middle }
"""

BODY = """
<form>
<label>threshold <input id="cut" type="range" min="0" max="@LASTCUT@" value="@CUT@">
<output id="at_cut"></output></label>
<label>budget <input id="limit" type="range" min="0" max="@LASTLIMIT@" value="@LIMIT@">
<output id="at_limit"></output></label>
<fieldset><span>ensemble of</span>@SWITCHES@</fieldset>
</form>
<div id="facts" role="status" aria-live="polite"></div>
@DRAWN@
@KEY@
<script>
const all = @DATA@, at = id => document.getElementById(id);
function show() {
  const cut = at("cut").value, limit = at("limit").value;
  at("at_cut").textContent = all.thresholds[cut];
  at("at_limit").textContent = all.limits[limit];
  const group = all.groups[all.partition[cut]], share = group.budgets[limit];
  const on = [...document.querySelectorAll("input:checked")].map(box => box.value);
  const ensemble = all.ensembles[on.join(" ")];
  at("facts").innerHTML = share.facts + ensemble.facts;
  const traces = [group.cells, ...share.bar, ...ensemble.places], update = {};
  for (const name of ["z", "text", "customdata", "x", "y"]) update[name] = traces.map(trace => trace[name]);
  Plotly.update(at("plot"), update, {"xaxis2.range": [0, share.end]}, all.moving);
}
document.querySelector("form").oninput = show;
show();
</script>
"""

"""The sharing explorer in a real JupyterLab: keys regroup layers and change the budget, members join the ensemble.

The screenshots are kept in runs/screenshots/.
"""

from functools import partial

import driving
import pytest
from driving import kept, kept_in_the_dark, timed, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = [
    """import torch
from wsnotebook import datasets, networks
from wsnotebook.explorers import sharing
from wsnotebook.methods.superweight_ensembles import anytime
from wsnotebook.methods.superweight_training import Config, train

torch.set_num_threads(1)
digits = datasets.load("digits").first(train=300)
names = "wrn-16-1", "wrn-10-1", "wrn-10-1"
members = [networks.build_for(digits, name, seed=seed) for seed, name in enumerate(names)]
config = Config(epochs=2, batch=50, pretraining=1, bins=3, batches=4, threshold=0.3, lr=0.05)
result = train(members, digits, config, 180_000)
sharing.Explorer(result, config, anytime(result.model, digits.validation))"""
]
# what is shown: the readout, the map's numbers as they are drawn, the bar's boxes, and the chosen ensemble
SEEN = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: [...document.querySelectorAll('[role=status][aria-live=polite]')].map(line => line.textContent).join(' '),
    cells: [...plot.querySelectorAll('.heatmap-label')].map(text => text.textContent).join(' '),
    bars: [...plot.querySelectorAll('.barlayer path')].map(path => path.getAttribute('d')).filter(d => d).join(' '),
    place: JSON.stringify(plot.data.filter(t => t.name.endsWith(' here')).map(t => [values(t.x), values(t.y)])),
  };
}"""
changed = partial(driving.changed, seen=SEEN)


def test_keys_regroup_the_layers(page):
    before = page.evaluate(SEEN)
    assert before["cells"]
    assert before["bars"]
    kept(page, "sharing_trained")
    page.locator("[role=slider]").first.press("Home")
    after = changed(page, before, "cells")
    assert "clusters 2 of 33 layers" in after["readout"], "one for each kernel size"
    assert after["bars"] != before["bars"]
    assert after["place"] == before["place"]
    kept(page, "sharing_regrouped")


def test_keys_change_the_budget(page):
    before = page.evaluate(SEEN)
    timed(page, "sharing", "ArrowRight", "ArrowLeft", slider=1, presses=13)
    after = changed(page, before, "bars")
    assert after["readout"] != before["readout"]
    assert after["cells"] == before["cells"]


def test_an_impossible_budget_is_said_and_nothing_is_drawn(page):
    before = page.evaluate(SEEN)
    page.locator("[role=slider]").nth(1).press("Home")
    after = changed(page, before, "bars")
    assert "impossible" in after["readout"]
    assert after["bars"] == ""
    assert after["cells"] == before["cells"]
    kept(page, "sharing_impossible")


def test_members_join_by_the_keyboard(page):
    before = page.evaluate(SEEN)
    page.get_by_role("button", name="member 0", exact=True).press("Space")
    after = changed(page, before, "place")
    assert after["readout"] != before["readout"]
    page.get_by_role("button", name="member 1", exact=True).click()
    again = changed(page, after, "place")
    assert again["cells"] == before["cells"]
    kept(page, "sharing_members")


def test_it_is_readable_in_the_dark_and_walked_by_tab(page):
    kept_in_the_dark(page, "sharing_members")
    assert walked_by_tab(page)


def test_the_console_has_no_error(page):
    assert page.errors == []

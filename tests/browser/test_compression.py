"""The compression explorer in a real JupyterLab: keys, clicks and the network's menu change what is drawn.

The screenshots are kept in runs/screenshots/.
"""

from functools import partial

import driving
import pytest
from driving import click_point, kept, kept_in_the_dark, press, timed, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = [
    """from dataclasses import replace
from functools import partial
import torch
from wsnotebook import datasets, networks, training
from wsnotebook.comparisons import compression_recipes as recipes
from wsnotebook.comparisons.compression import Case, compared
from wsnotebook.explorers import compression
from wsnotebook.methods import codebook
from wsnotebook.methods.superweight_training import Config

torch.set_num_threads(1)
digits, how = datasets.load("digits"), training.Config(epochs=4, batch=64, lr=3e-3)
entries = {}
for name in ("mlp-64-24-24-10", "mlp-64-16-10"):
    network = networks.build_for(digits, name, seed=0)
    network.load_state_dict(training.train(network, digits, how).state)
    tuned, bank = codebook.Config(epochs=1), Config(epochs=2, batch=64, lr=0.05, groups="depth", bins=1)
    tried = {
        "as trained": [recipes.as_trained],
        "uniform grid": [partial(recipes.uniform, levels=n, fine_tune=tuned) for n in (5, 17)],
        "SuperWeights": [partial(recipes.superweights, percent=95, config=bank)] if "24" in name else [],
    }
    entries[name], _ = compared(Case(name, 0, digits, network, how, 1.0), tried)
compression.Explorer(entries)"""
]
# what is shown: the readout, the drawn histogram and map, the ring's place, and the points
SEEN = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  const lines = [...plot.querySelectorAll('.scatterlayer path.js-line, .scatterlayer path.js-fill')];
  return {
    readout: document.querySelector('[role=status][aria-live=polite]').textContent,
    weights: lines.map(path => path.getAttribute('d')).join(' '),
    map: [...plot.querySelectorAll('.heatmap-label')].map(text => text.textContent).join(' '),
    ring: JSON.stringify(plot.data.filter(t => t.name === 'chosen').map(t => [values(t.x), values(t.y)])),
    points: JSON.stringify(plot.data.filter(t => t.mode === 'markers' && t.name !== 'chosen').map(t => values(t.x))),
  };
}"""
changed = partial(driving.changed, seen=SEEN)


@pytest.fixture(scope="module")
def page(page):
    page.wait_for_selector(".scatterlayer path.js-fill", state="attached")  # drawn after the frame
    return page


def test_keys_go_through_the_files(page):
    before = page.evaluate(SEEN)
    assert "uniform grid" in before["readout"]
    assert before["weights"]
    assert not before["map"]
    press(page, "ArrowRight")
    after = changed(page, before, "ring")
    assert after["readout"] != before["readout"]
    assert after["weights"] != before["weights"]
    assert after["points"] == before["points"]
    kept(page, "compression_weights")


def test_a_bank_shows_who_shares(page):
    before = page.evaluate(SEEN)
    press(page, "ArrowRight")
    after = changed(page, before, "map")
    assert "SuperWeights" in after["readout"]
    assert after["map"] == "0 0"
    kept(page, "compression_sharing")
    press(page, "ArrowLeft")
    again = changed(page, after, "map")
    assert again["map"] == ""
    assert again["weights"] == before["weights"]


def test_a_click_chooses_the_file(page):
    before = page.evaluate(SEEN)
    click_point(page, "as trained")
    after = changed(page, before, "ring")
    assert "as trained" in after["readout"]


def test_another_network_has_its_own_files(page):
    before = page.evaluate(SEEN)
    page.get_by_label("network", exact=True).first.select_option("mlp-64-16-10")
    after = changed(page, before, "points")
    assert after["readout"] != before["readout"]
    assert after["weights"] != before["weights"]
    kept(page, "compression_network")
    timed(page, "compression", "ArrowLeft", "ArrowRight")


def test_it_is_readable_in_the_dark_and_walked_by_tab(page):
    kept_in_the_dark(page, "compression_network")
    assert walked_by_tab(page)


def test_the_console_has_no_error(page):
    assert page.errors == []

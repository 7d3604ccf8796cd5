"""The search explorer in a real JupyterLab: keys replay a search, and walk between two networks that it found.

The screenshots are kept in runs/screenshots/.
"""

from functools import partial

import driving
import pytest
from driving import kept, kept_in_the_dark, timed, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = [
    """import torch
from wsnotebook import cornn
from wsnotebook.explorers import search
from wsnotebook.methods import latent_search, mlp_fitting, swat_nn

torch.set_num_threads(1)
table = cornn.table(["mccormick", "ridge"])
swat = swat_nn.train(swat_nn.Config(iterations=150))
tuning = mlp_fitting.Config(steps=100, batch=64, lr=0.01)
config = latent_search.Config(depths=(1, 2), steps=60, tuned=2, training=tuning, tuning=tuning)
search.Explorer(latent_search.search(latent_search.latent(swat), table, config), table, swat)"""
]
# what is shown: the readout, and the numbers of every trace
SEEN = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: document.querySelector('[role=status][aria-live=polite]').textContent,
    data: JSON.stringify(plot.data.map(t => [values(t.x), values(t.y), values(t.z).flat()].map(v => v.slice(-60)))),
    learned: JSON.stringify(plot.data.find(t => t.name === 'learned').z),
    edges: [...plot.querySelectorAll('.xy .scatterlayer path.js-line')].map(p => p.getAttribute('d')).join(' '),
    canvas: document.querySelector('.js-plotly-plot .gl-container canvas') !== null,
    camera: Object.values(plot._fullLayout.scene._scene.getCamera().eye),
    left: Object.values(plot.layout.scene.camera.eye),
  };
}"""
changed = partial(driving.changed, seen=SEEN)


def turn(page):
    """Drag the surface a little to the left; where the camera was when the button was let go, which plotly keeps."""
    box = page.locator(".js-plotly-plot .gl-container canvas").first.bounding_box()
    x, y = box["x"] + 0.25 * box["width"], box["y"] + 0.35 * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1500)  # on a slow machine it still glides a little, and comes back at the next step
    return page.evaluate(SEEN)["left"]


def test_keys_replay_the_search(page):
    before = page.evaluate(SEEN)
    assert "trained on" in before["readout"]
    assert before["canvas"], "the surface is drawn by WebGL"
    kept(page, "search_trained")
    turned = turn(page)
    assert turned != pytest.approx(before["camera"])
    timed(page, "search, replay", "ArrowLeft", presses=20)
    after = changed(page, before)
    assert "iteration" in after["readout"]
    assert "soft" in after["readout"]
    assert after["learned"] != before["learned"]
    assert after["edges"] != before["edges"]
    assert after["camera"] == pytest.approx(turned), "the camera stays where the user turned it"
    kept(page, "search_soft")


def test_another_function_is_another_surface(page):
    before = page.evaluate(SEEN)
    page.get_by_label("function", exact=True).first.select_option("ridge")
    after = changed(page, before)
    assert after["readout"].startswith("ridge")
    kept(page, "search_ridge")


def test_keys_walk_between_networks(page):
    page.get_by_role("button", name="walk", exact=True).click()
    page.wait_for_timeout(1500)
    before = page.evaluate(SEEN)
    assert "share of the way 0.00" in before["readout"]
    timed(page, "search, walk", "ArrowRight", presses=10)
    after = changed(page, before, "learned")
    assert "share of the way 0.20" in after["readout"]
    kept(page, "search_walk")


def test_it_is_readable_in_the_dark_and_walked_by_tab(page):
    kept_in_the_dark(page, "search_walk")
    assert walked_by_tab(page)


def test_the_console_has_no_error(page):
    assert page.errors == []

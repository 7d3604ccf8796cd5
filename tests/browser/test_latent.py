"""The latent explorer in a real JupyterLab: keys walk, and another direction, start or layer redraws what is shown.

The screenshots are kept in runs/screenshots/.
"""

from functools import partial

import driving
import pytest
from driving import click_point, kept, kept_in_the_dark, press, timed, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = [
    """from wsnotebook import datasets, symmetry, zoo
from wsnotebook.explorers import latent
from wsnotebook.methods.layer_pca import layer_pca

digits = datasets.load("digits")
nets = zoo.train("cnn-tiny", digits, 24, zoo.Config(epochs=12, batch=32, lr=3e-3, snapshots=(0, 20, 100)))
nets = symmetry.align(nets, reference=0).zoo
latent.Explorer(layer_pca(nets, 16), nets, digits.validation)"""
]
# what is shown: the readout, the points and texts of every trace, the pictures' sizes, the drawn numbers
SEEN = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: document.querySelector('[role=status][aria-live=polite]').textContent,
    data: JSON.stringify(plot.data.map(t => [values(t.x).slice(0, 30), values(t.y).slice(0, 30), values(t.text)])),
    images: [...plot.querySelectorAll('image')].map(image => image.getAttribute('href')),
    numbers: [...plot.querySelectorAll('.textpoint text')].map(text => Number(text.textContent)),
  };
}"""
changed = partial(driving.changed, seen=SEEN)
ROWS = 360  # of the validation digits


def test_keys_walk(page):
    before = page.evaluate(SEEN)
    assert "far +0 standard deviations" in before["readout"]
    assert len(before["images"]) == 4, "the confusion matrix, filters, weights, what the nearest lacks"
    assert sum(before["numbers"]) == ROWS
    for _ in range(4):
        press(page, "ArrowRight")
    after = changed(page, before)
    assert "far +1.2 standard deviations" in after["readout"]
    assert all(one != other for one, other in zip(before["images"], after["images"], strict=True))
    assert sum(after["numbers"]) == ROWS, "every number of the confusion matrix is drawn"
    kept(page, "latent_axis")
    timed(page, "latent", "ArrowLeft")


@pytest.mark.parametrize("direction", ["towards another network", "at random"])
def test_another_direction_is_another_walk(page, direction):
    before = page.evaluate(SEEN)
    page.get_by_label("direction", exact=True).first.select_option(direction)
    after = changed(page, before)
    assert after["readout"] != before["readout"]
    assert sum(after["numbers"]) == ROWS
    kept(page, f"latent_{direction.split()[-1]}")


def test_another_layer_is_another_picture(page):
    before = page.evaluate(SEEN)
    page.get_by_label("layer", exact=True).first.select_option("fc1.weight")
    after = changed(page, before, "images")
    assert after["readout"] == before["readout"]
    assert after["images"][:2] == before["images"][:2]


def test_another_start_is_another_walk(page):
    before = page.evaluate(SEEN)
    page.get_by_label("start", exact=True).first.select_option(index=3)
    assert changed(page, before)["readout"] != before["readout"]


def test_a_click_starts_at_another_network(page):
    before = page.evaluate(SEEN)
    click_point(page, "zoo", 7)
    assert changed(page, before)["readout"] != before["readout"]


def test_it_is_readable_in_the_dark_and_walked_by_tab(page):
    kept_in_the_dark(page, "latent_start")
    assert walked_by_tab(page)


def test_the_console_has_no_error(page):
    assert page.errors == []

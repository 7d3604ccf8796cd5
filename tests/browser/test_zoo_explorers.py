"""The explorers of zoos in a real JupyterLab: keys move the pictures, a choice in the cloud is walked below."""

from pathlib import Path

import nbformat
import pytest
from driving import press, wait_idle

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CELLS = [
    """from wsnotebook import datasets, symmetry, zoo
from wsnotebook.explorers import interpolation
from wsnotebook.explorers import zoo as zoos

digits = datasets.load("digits")
raw = zoo.train("mlp-64-16-10", digits, 6, zoo.Config(epochs=3, batch=32, lr=3e-3, snapshots=(0, 10, 40)))
aligned = symmetry.align(raw, reference=3).zoo
cloud = zoos.Explorer(raw, aligned)
cloud""",
    'interpolation.Explorer({"raw": raw, "aligned": aligned}, digits.validation, picked=cloud)',
]
# what plot k and readout k show
SEEN = """k => {
  const plot = document.querySelectorAll('.js-plotly-plot')[k];
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: document.querySelectorAll('[role=status][aria-live=polite]')[k].textContent,
    data: JSON.stringify(plot.data.map(trace => [values(trace.x).slice(0, 80), values(trace.y).slice(0, 80)])),
  };
}"""


@pytest.fixture(scope="module")
def page(opened, notebooks):
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=python), notebooks / "zoo.ipynb")
    page = opened("zoo.ipynb")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 2")
    wait_idle(page)
    page.wait_for_timeout(1000)
    yield page
    page.screenshot(path=ROOT / "runs" / "screenshots" / "zoo_explorers.png", full_page=True)
    page.close()


@pytest.mark.parametrize(
    ("k", "key"), [(0, "ArrowLeft"), (1, "ArrowRight")], ids=["through training", "along the line"]
)
def test_keys_move_the_picture_and_the_readout(page, k, key):
    before = page.evaluate(SEEN, k)
    delays = [press(page, key, k) for _ in range(3)]
    after = page.evaluate(SEEN, k)
    assert before["data"] != after["data"]
    assert before["readout"] != after["readout"]
    print(f"key to picture: {sorted(delays)[1]:.0f} ms")


def test_another_network_in_the_cloud_is_another_walk(page):
    before = page.evaluate(SEEN, 1)
    page.get_by_label("second", exact=True).first.select_option(index=4)
    changed = "seen => document.querySelectorAll('[role=status][aria-live=polite]')[1].textContent !== seen"
    page.wait_for_function(changed, arg=before["readout"], timeout=20_000)
    assert page.evaluate(SEEN, 1)["data"] != before["data"]


def test_a_third_network_opens_the_plane(page):
    page.get_by_label("third", exact=True).first.select_option(index=3)
    wait_idle(page)
    page.get_by_role("button", name="plane").click()
    contours = (
        "() => [...document.querySelectorAll('.js-plotly-plot')].at(-1).data.filter(t => t.type === 'contour').length"
    )
    page.wait_for_function(f"() => ({contours})() === 2", timeout=20_000)
    page.wait_for_timeout(500)
    page.locator(".js-plotly-plot").last.scroll_into_view_if_needed()
    page.screenshot(path=ROOT / "runs" / "screenshots" / "loss_plane.png")

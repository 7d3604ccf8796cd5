"""Notebook 01 in a real JupyterLab and a real Chromium: run all, press the slider's keys, see the picture change.

The screenshot is kept in runs/screenshots/.
"""

import statistics
from pathlib import Path

import pytest
from driving import SEEN, press, wait_idle

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(opened):
    page = opened("01_soft_weight_sharing.ipynb")
    yield page
    page.close()


def test_the_slider_moves_the_picture(page):
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.wait_for_function("() => document.querySelector('[role=status]')?.textContent.includes('times smaller')")
    page.wait_for_timeout(500)
    end = page.evaluate(SEEN)
    delays = [press(page, "ArrowLeft") for _ in range(12)]
    back = page.evaluate(SEEN)
    for part in ("readout", "data", "path"):
        assert back[part] != end[part], f"{part} did not change"
    assert "epoch 30 of 30" in end["readout"]
    assert "epoch 18 of 30" in back["readout"]
    print(f"key to picture: median {statistics.median(delays):.0f} ms of {len(delays)}, longest {max(delays):.0f} ms")

    page.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
    page.screenshot(path=ROOT / "runs" / "screenshots" / "mixture_explorer.png")


def test_every_cell_ran_without_an_error(page):
    page.wait_for_function(
        """() => {
          const cells = window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code');
          return cells.every(cell => cell.model.executionCount !== null);
        }"""
    )
    wait_idle(page)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0

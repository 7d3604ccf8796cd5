"""Notebook 01 in a real JupyterLab and a real Chromium: run all, keys and clicks change the picture.

The screenshots are kept in runs/screenshots/.
"""

import pytest
from driving import SEEN, changed, kept, kept_in_the_dark, timed, wait_idle, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def page(opened):
    page = opened("01_soft_weight_sharing.ipynb")
    yield page
    page.close()


def test_every_cell_ran_without_an_error(page):
    page.wait_for_function(
        """() => {
          const cells = window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code');
          return cells.every(cell => cell.model.executionCount !== null);
        }"""
    )
    wait_idle(page)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0


def test_the_slider_moves_the_picture(page):
    page.wait_for_function("() => document.querySelector('[role=status]')?.textContent.includes('times smaller')")
    page.wait_for_timeout(500)
    end = page.evaluate(SEEN)
    timed(page, "mixture", "ArrowLeft")
    back = page.evaluate(SEEN)
    for part in ("readout", "data", "path"):
        assert back[part] != end[part], f"{part} did not change"
    assert "epoch 30 of 30" in end["readout"]
    assert "epoch 18 of 30" in back["readout"]
    kept(page, "mixture_explorer")


def test_a_click_draws_counts_on_an_even_scale(page):
    before = page.evaluate(SEEN)
    page.get_by_role("button", name="linear", exact=True).first.click()
    assert changed(page, before, "path")["data"] == before["data"]


def test_it_is_readable_in_the_dark_and_walked_by_tab(page):
    kept_in_the_dark(page, "mixture_explorer")
    assert walked_by_tab(page)


def test_the_console_has_no_error(page):
    assert page.errors == []

"""Pages of the app in a real Voila and a real Chromium: an explorer whose keys and clicks change it, and the tour.

The screenshot is kept in runs/screenshots/.
"""

import os
import re
import sys

import driving
import nbformat
import pytest
from driving import SEEN, changed, click_point, listen, new_page, served, timed

from wsnotebook import app

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELL = """from wsnotebook import datasets, zoo
from wsnotebook.explorers import zoo as zoos

how = zoo.Config(epochs=3, batch=32, lr=3e-3, snapshots=(0, 10, 40))
zoos.Explorer(zoo.train("mlp-64-16-10", datasets.load("digits"), 6, how))"""
SERVE = "from pathlib import Path; from wsnotebook import app; app.serve(Path(), {}, browser=False)"


@pytest.fixture(scope="module")
def visit(tmp_path_factory, chromium):
    """A function: the page of this name, with so many plots drawn. The app has one page more than its own."""
    folder = tmp_path_factory.mktemp("app")
    app.write(folder)
    nbformat.write(app.page("Small zoo", "Move the step.", CELL), folder / "small_zoo.ipynb")
    environment = os.environ | {"WSNOTEBOOK_CACHE": str(folder / "cache")}

    def visited(name, plots):
        page = new_page(chromium)
        page.route(re.compile("^https:"), lambda route: route.fulfill(body=""))  # Voila asks for a font
        listen(page)
        page.goto(address)
        page.goto(address + page.get_by_role("link", name=name).get_attribute("href"))
        drawn = "plots => document.querySelectorAll('.js-plotly-plot:has(.main-svg)').length >= plots"
        page.wait_for_function(drawn, arg=plots)
        page.wait_for_timeout(1000)
        return page

    with served(lambda port: [sys.executable, "-c", SERVE.format(port)], folder, environment) as address:
        yield visited


@pytest.fixture(scope="module")
def page(visit):
    page = visit("small_zoo", plots=1)
    yield page
    page.close()


def test_it_shows_title_and_explorer_but_no_code(page):
    assert page.get_by_role("heading", name="Small zoo").is_visible()
    assert "zoo.train" not in page.content()
    assert "Error" not in page.locator("body").inner_text()


def test_keys_move_the_picture_and_the_readout(page):
    before = page.evaluate(SEEN)
    timed(page, "zoo, in Voila", "ArrowLeft", "ArrowRight", presses=5)
    after = changed(page, before)
    assert after["readout"] != before["readout"]
    page.screenshot(path=driving.SCREENSHOTS / "voila_zoo.png", full_page=True)


def test_a_click_chooses_a_network(page):
    before = page.evaluate(SEEN)
    click_point(page, "networks", 4)
    assert changed(page, before)["readout"] != before["readout"]


def test_the_console_has_no_error(page):
    assert page.errors == []


def test_the_tour_shows_all_its_explorers_and_no_error(visit):
    page = visit("00_start_here", plots=6)
    text = page.locator("body").inner_text()
    assert page.get_by_role("heading", name="Start here").is_visible()
    assert "times smaller" in text
    assert not re.search(r"Error\b|Traceback", text)
    assert page.errors == []
    page.screenshot(path=driving.SCREENSHOTS / "voila_tour.png", full_page=True)
    page.close()

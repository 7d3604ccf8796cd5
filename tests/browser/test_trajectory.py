"""The trajectory explorer in a real JupyterLab: keys, solver, steps and condition redraw what is shown.

The screenshots are kept in runs/screenshots/.
"""

import driving
import pytest
from driving import SEEN, click_point, kept, kept_in_the_dark, timed, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = [
    """import numpy as np
from wsnotebook import datasets, zoo
from wsnotebook.explorers import trajectory
from wsnotebook.methods import weight_flow

digits = datasets.load("digits")
nets = zoo.train("mlp-64-16-10", digits, 12, zoo.Config(epochs=8, batch=32, lr=3e-3))
nets = nets.made(nets.weights, kind=np.where(np.arange(12) < 6, "even", "odd"))
flow = weight_flow.train(nets, weight_flow.Config(hidden=64, iterations=300, condition="kind"))
trajectory.Explorer(flow, nets, digits.validation, n=16)"""
]


def changed(page, before):
    """What is shown once its readout and its drawn data are others than before."""
    after = driving.changed(page, before)
    assert after["readout"] != before["readout"]
    return after


def test_keys_go_back_along_the_path(page):
    before = page.evaluate(SEEN)
    assert "t 1.000" in before["readout"]
    timed(page, "trajectory", "ArrowLeft", presses=15)
    after = changed(page, before)
    assert "t 0.845" in after["readout"], "35 of 50 steps, dense at both ends"
    assert after["path"] != before["path"]
    kept(page, "trajectory_explorer")


def test_another_solver_is_another_path(page):
    before = page.evaluate(SEEN)
    page.get_by_role("button", name="euler").first.click()
    changed(page, before)


def test_a_click_follows_another_particle(page):
    before = page.evaluate(SEEN)
    click_point(page, "particles", 5)
    assert changed(page, before)["path"] != before["path"]


def test_the_steps_are_changed_by_keys(page):
    before = page.evaluate(SEEN)
    page.locator("[role=slider]").nth(1).press("ArrowLeft")
    assert changed(page, before)["path"] != before["path"]


def test_another_condition_is_another_path(page):
    before = page.evaluate(SEEN)
    page.get_by_label("kind", exact=True).first.select_option("odd")
    assert changed(page, before)["path"] != before["path"]
    kept(page, "trajectory_condition")


def test_it_is_readable_in_the_dark_and_walked_by_tab(page):
    kept_in_the_dark(page, "trajectory_condition")
    assert walked_by_tab(page)


def test_the_console_has_no_error(page):
    assert page.errors == []

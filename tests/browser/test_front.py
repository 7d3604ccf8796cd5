"""The front explorer in a real JupyterLab: keys go through the trials, a click on a point chooses its trial.

The screenshots are kept in runs/screenshots/.
"""

import pytest
from driving import SEEN, changed, click_point, kept, kept_in_the_dark, timed, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = [
    """import torch
import warnings
from wsnotebook import datasets, evaluation, networks, training, tuning
from wsnotebook.explorers import front
from wsnotebook.methods import soft_weight_sharing as sws

torch.set_num_threads(1)
warnings.simplefilter("ignore")  # of priors that have not condensed: this is short
digits, network = datasets.load("digits"), networks.build("mlp-64-24-10", seed=0)
how = training.Config(epochs=8, batch=64, lr=3e-3)
network.load_state_dict(training.train(network, digits, how).state)
trained = evaluation.score(network, digits.validation).error
trials, results = [], {}
for number, tau in enumerate((0.003, 0.01, 0.03, 0.1)):
    config = sws.Config(components=5, tau=tau, init_sigma=0.1, lr_weights=2e-3, lr_means=1e-3,
                        lr_log_variances=5e-2, epochs=4, train_rest=True)
    results[number] = sws.compress(network, digits, config)
    file = results[number].compressed
    scores = file.ratio, file.error, file.error - trained
    trials.append(tuning.Trial(number, {"tau": tau}, "complete", *scores, 4, "", ()))
trials.append(tuning.Trial(4, {"tau": 1.0}, "pruned", 12.0, trained + 1, 1.0, 2, "worse than the median", ()))
front.Explorer(trials, lambda trial: results[trial.number], 5.0)"""
]


def test_keys_go_through_the_trials(page):
    page.locator("[role=slider]").first.press("Home")
    page.wait_for_timeout(800)
    before = page.evaluate(SEEN)
    timed(page, "front", "ArrowRight", "ArrowLeft", presses=11)
    after = changed(page, before)
    assert after["readout"] != before["readout"]
    assert after["path"] != before["path"]
    kept(page, "front_explorer")


def test_a_click_chooses_the_trial(page):
    before = page.evaluate(SEEN)
    click_point(page, "on the front", -1)
    after = changed(page, before)
    assert after["readout"] != before["readout"]


def test_a_click_on_a_trial_that_ended_early_says_why(page):
    before = page.evaluate(SEEN)
    click_point(page, "ended early")
    after = changed(page, before, "readout")
    assert "worse than the median" in after["readout"]
    assert after["data"] == before["data"]


def test_it_is_readable_in_the_dark_and_walked_by_tab(page):
    kept_in_the_dark(page, "front_explorer")
    assert walked_by_tab(page)


def test_the_console_has_no_error(page):
    assert page.errors == []

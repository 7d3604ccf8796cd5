"""Laws of comparing arms: at equal non-zeros, chosen on validation rows, judged by paired intervals over seeds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from test_plots_search import NAMES, control

from wsnotebook.methods import mlp_arms
from wsnotebook.methods.mlp_arms import BUDGETS, at_budgets, log_ratios, verdict


def times(arm, factor):
    return replace(arm, test=factor * arm.test)


def test_a_factor_comes_back_run_by_run():
    arms, factors = [control(seed) for seed in range(4)], (0.5, 1.0, 2.0, 4.0)
    others = [times(arm, factor) for arm, factor in zip(arms, factors, strict=True)]
    np.testing.assert_allclose(log_ratios(arms, others, "ridge"), np.log(factors))
    np.testing.assert_allclose(log_ratios(others, arms, "ridge"), -np.log(factors))


def test_ratios_are_of_the_budgets_that_both_meet():
    small, large = control(0), control(1, counts=(30, 40, 60, 75))
    met = [k for k, budget in enumerate(BUDGETS) if budget >= 30]
    own, theirs = (np.log(at_budgets(arm, "sphere")[0][met]) for arm in (small, large))
    assert log_ratios(small, large, "sphere")[0] == pytest.approx((theirs - own).mean())
    assert np.isnan(log_ratios(small, large, "sphere", (10, 20))).all(), "there is nothing to compare"


def test_errors_below_the_floor_are_equal():
    arm = times(control(), 1e-12)
    np.testing.assert_array_equal(log_ratios(arm, times(arm, 1e-3), "ridge"), [0])


def test_verdicts_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        ratios = rng.normal(rng.choice([-0.5, 0, 0.5]), 0.3, 5)
        p = stats.ttest_1samp(ratios, 0).pvalue
        assert verdict(ratios) == (int(np.sign(ratios.mean())) if p < 0.05 else 0)
        assert verdict(-ratios) == -verdict(ratios)
        seen.add(verdict(ratios))
    assert seen == {-1, 0, 1}
    assert verdict(np.array([2.0])) == 0, "one run says nothing"
    assert verdict(np.array([math.nan] * 3)) == 0


def test_the_table_counts_every_function_once():
    arms = {
        "own": [control(seed) for seed in range(5)],
        "worse": [times(control(seed), 2) for seed in range(5)],
        "better": [times(control(seed), 0.5) for seed in range(5)],
        "alike": [control(seed) for seed in range(5)],
    }
    columns, rows = mlp_arms.verdict_table(arms, NAMES)
    assert (columns[0], columns[-1]) == ("10 non-zeros", "all")
    cells = {name: own for name, *own in rows}
    assert set(cells["worse"]) == {"3 / 0 / 0"}
    assert set(cells["better"]) == {"0 / 0 / 3"}
    assert set(cells["alike"]) == {"0 / 3 / 0"}
    assert set(cells["worse than none"]) == {"0"}
    arms.pop("better")
    assert set(mlp_arms.verdict_table(arms, NAMES)[1][-1][1:]) == {"3"}


def test_arms_of_unlike_seeds_are_not_paired():
    with pytest.raises(ValueError, match="arms: 2 and 3 runs"):
        log_ratios([control(0)] * 2, [control(0)] * 3, "ridge")


def test_validation_alone_chooses():
    arm = control()
    other = replace(arm, test=torch.flip(arm.test, (1,)))
    for name in NAMES:
        count, validation, _ = arm.measured(name)
        for k, budget in enumerate(BUDGETS):
            allowed = (count <= budget).nonzero()[:, 0]
            if len(allowed):
                best = int(allowed[validation[allowed].argmin()])
                assert at_budgets(other, name)[0, k] == other.measured(name)[2][best]

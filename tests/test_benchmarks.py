"""The benchmarks' own arithmetic, and what the committed table of them may not hold."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/benchmarks"))
import growth  # noqa: E402
import measured  # noqa: E402

ROWS = json.loads((ROOT / "figures/benchmarks/hot_paths.json").read_text(encoding="utf-8"))["metrics"]["rows"]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_the_exponent_of_an_exact_power_law_is_found(power):
    assert measured.exponent((x, 7 * x**power) for x in (2, 3, 50, 1000)) == pytest.approx(power, abs=1e-12)


def test_what_small_sizes_cost_leaves_the_exponent_alone():
    points = [(2.0**k, max(100.0, 2.0**k)) for k in range(12)]
    assert measured.exponent(growth.larger(points)) == pytest.approx(1, abs=0.2)
    assert len(growth.larger(points[:2])) == len(growth.larger(points[:3])) == 2


def test_every_curve_has_a_panel_and_its_exponents():
    curve = measured.Curve("some", "weights", {"ours": [(1, 1), (2, 2)], "plain": [(1, 1), (2, 4), (4, 16)]})
    figure = growth.growth([curve] * 3)
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert legends == [["ours: n$^{1.00}$", "plain: n$^{2.00}$"]] * 3


def test_a_row_whose_results_differ_is_refused():
    def compared(difference):
        return measured.compared("some", "work", list, list, difference=lambda: difference, tolerance=0.1, repeats=1)

    assert compared(0.1).difference == 0.1
    for wrong in (0.2, float("nan")):
        with pytest.raises(SystemExit, match="some, work: the results differ by"):
            compared(wrong)


def test_both_run_equally_often_before_they_are_compared():
    runs = []
    row = measured.compared("some", "work", lambda: runs.append(0), lambda: runs.append(1), repeats=2)
    assert runs.count(0) == runs.count(1)
    assert row.difference is None


def test_promises_are_kept_or_not():
    row = measured.Row("some", "work", 6.0, 2.0, 3.0, (2.9, 3.1), 40.0, 2.0, 0.0, least=3, most_ms=2, less_memory=20)
    assert row.promises == {"3 x": True, "2 ms": True, "20 x less memory": True}
    assert not any(replace(row, ratio=2.9, ours_ms=2.1, ours_mib=2.1).promises.values())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_memory_is_that_of_the_peak_alone():
    held = torch.ones(2**22)  # 16 MiB, from before
    grown = measured.peak_mib(lambda: float((held + 1).sum() + (held + 2).sum()))
    assert 15 < grown < 25, "one of two temporaries at a time"


def test_a_promise_that_is_not_kept_is_explained():
    assert [row["what"] for row in ROWS if not all(row["promises"].values()) and not row["note"]] == []
    assert sum(bool(row["promises"]) for row in ROWS) > 10

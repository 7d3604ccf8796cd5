import math

import pytest
import torch
from torch import nn

from wsnotebook import evaluation


def test_score_is_the_mean_over_rows_whatever_the_batch():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    x, y = torch.randn(11, 3), torch.arange(11) % 4
    logits = network[0](x).detach()
    expected = 100 * float((logits.argmax(1) != y).float().mean())
    for batch in (1, 4, 11, 100):
        score = evaluation.score(network, (x, y), batch=batch)
        assert score.error == pytest.approx(expected)
        assert score.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
    assert network.training  # the mode is left as it was


def test_score_refuses_an_empty_split():
    with pytest.raises(ValueError, match="no rows"):
        evaluation.score(nn.Linear(3, 2), (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))


def test_interval_is_students():
    assert evaluation.interval([1.0, 3.0]) == pytest.approx(
        (2.0, 12.7062047), rel=1e-6
    )  # t(0.975, 1) * sqrt(2)/sqrt(2)
    mean, half = evaluation.interval([5.0])
    assert mean == 5.0
    assert math.isnan(half)
    with pytest.raises(ValueError, match="empty"):
        evaluation.interval([])


def test_interval_covers_the_truth_as_often_as_it_says():
    runs = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)).tolist()
    covered = [abs(mean) <= half for mean, half in map(evaluation.interval, runs)]
    assert 0.93 < sum(covered) / len(covered) < 0.97


def test_the_table_gives_mean_and_interval_of_each_measure():
    one = {"test_error": [2.0, 4.0], "nonzero_percent": [100.0, 100.0], "counted": [1.0, 1.0], "ratio": [1.0, 1.0]}
    two = {"test_error": [3.0], "nonzero_percent": [4.25], "counted": [64.04], "ratio": [60.0]}
    lines = evaluation.table({"trained": one, "shared": two}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| trained | 3.00 ± 12.71 | 100.00 ± 0.00 | 1.0 ± 0.0 | 1.0 ± 0.0 |"
    assert lines[3] == "| shared | 3.00 | 4.25 | 64.0 | 60.0 |"


def test_equal_runs_are_told_from_one_run():
    assert evaluation.mean_and_half_width([1.0], 2) == "1.00"
    assert evaluation.mean_and_half_width([1.0, 1.0, 1.0], 2) == "1.00 ± 0.00"

"""How good a network is: error and loss of one network, and intervals over repeated runs."""

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Score:
    """Error (% of rows whose largest logit is not the label) and loss (mean cross-entropy, nats)."""

    error: float
    loss: float


@torch.no_grad()
def score(network: nn.Module, split: tuple[Tensor, Tensor], batch: int = 2048) -> Score:
    """Score of a network on (x (n, ...), y (n,)), in evaluation mode; the network's mode is left as it was."""
    x, y = split
    if len(x) == 0:
        raise ValueError("split: no rows to score; expected at least one")
    training = network.training
    network.eval()
    wrong = loss = 0.0
    for xs, ys in zip(x.split(batch), y.split(batch), strict=True):
        logits = network(xs)  # (b, classes)
        wrong += (logits.argmax(1) != ys).sum()
        loss += F.cross_entropy(logits, ys, reduction="sum").double()
    network.train(training)
    return Score(error=100 * float(wrong) / len(x), loss=float(loss) / len(x))


def interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half-width) of Student's t interval for the mean of independent runs; half-width nan for one run."""
    n = len(values)
    if n == 0:
        raise ValueError("values: empty; expected one number a run")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)


COLUMNS = {  # of the table of compressed networks: heading, digits
    "test_error": ("test error (%)", 2),
    "nonzero_percent": ("not zero (%)", 2),
    "counted": ("paper's count: times smaller", 1),
    "ratio": ("file: times smaller", 1),
}


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Markdown table of repeated runs: {method: {measure: one number a run}}, the measures being those of COLUMNS.

    Each cell is the mean and the half-width of its 95 % interval; with one run, the number alone.
    """
    rows = [
        [method, *(mean_and_half_width(measures[name], digits) for name, (_, digits) in COLUMNS.items())]
        for method, measures in results.items()
    ]
    return markdown([heading for heading, _ in COLUMNS.values()], rows)


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: rows of a name and a text for every column."""
    lines = [" | ".join(["", *columns]), "|".join(["---"] + ["---:"] * len(columns)), *(map(" | ".join, rows))]
    return "\n".join(f"| {line} |" for line in lines)


def mean_and_half_width(values: list[float], digits: int) -> str:
    """As a table has it: the mean of repeated runs, and the half-width of its 95 % interval if there are several."""
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half > 0 else "")

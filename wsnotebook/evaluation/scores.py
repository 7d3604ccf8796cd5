"""How good a network is: error and loss of one network, and intervals over repeated runs."""

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Score:
    """Error (% of rows whose largest logit is not the label) and loss (mean cross-entropy, nats).

    In a regression: no error, and the mean square error as the loss.
    """

    error: float | None
    loss: float


def data_loss(outputs: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy (nats) of logits (n, classes) for labels y int64 (n,); square error for y float (n, outputs).

    reduction: "mean" or "sum" over y's numbers. Raises ValueError for numbers y of another shape than the outputs.
    """
    if not y.is_floating_point():
        return F.cross_entropy(outputs, y, reduction=reduction)
    if outputs.shape != y.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} for targets {tuple(y.shape)}: expected one output a target")
    return F.mse_loss(outputs, y, reduction=reduction)


@torch.no_grad()
def score(network: nn.Module, split: tuple[Tensor, Tensor], batch: int = 2048) -> Score:
    """Score of a network on (x (n, ...), y (n,)), in evaluation mode; the network's mode is left as it was.

    y float (n, outputs) is a regression's. Raises ValueError for no rows, or outputs of another shape than its y.
    """
    x, y = split
    if len(x) == 0:
        raise ValueError("split: no rows to score; expected at least one")
    training = network.training
    network.eval()
    regression, wrong, loss = y.is_floating_point(), 0.0, 0.0
    for xs, ys in zip(x.split(batch), y.split(batch), strict=True):
        outputs = network(xs)  # (b, classes), or (b, numbers to predict)
        wrong += 0 if regression else (outputs.argmax(1) != ys).sum()
        loss += data_loss(outputs, ys, "sum").double()
    network.train(training)
    return Score(error=None if regression else 100 * float(wrong) / len(x), loss=float(loss) / y.numel())


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
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")

"""Ensembles of a bank's members at every cost: all subsets, how they average, how good they are, and which to use.

Members' logits are computed once. Every non-empty subset of N members then is a row of weights (S, N), S = 2^N - 1, and
all subsets are scored together. What is chosen or fitted (weights, temperatures, the front) is so on validation rows.
"""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from wsnotebook.training import check_choice

RULES = ("probabilities", "logits", "fitted")
BLOCK = 2**23  # numbers in the log-probabilities of the subsets that are scored at a time
ROUNDS = 500  # of fitting weights by expectation-maximisation
SHARPEST = 20.0  # temperatures are within [1 / 20, 20]


@torch.no_grad()
def member_logits(model: nn.Module, x: Tensor, batch: int = 512) -> Tensor:
    """Logits (members, rows, classes) of a `superweights.Bank` or `superweight_baselines.Separate` in evaluation mode.

    Raises ValueError for logits that are not finite.
    """
    training = model.training
    model.eval()
    logits = torch.cat([torch.stack(model(rows)) for rows in x.split(batch)], 1)
    model.train(training)
    finite = logits.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(f"member {int(finite.int().argmin())} gives NaN or infinite logits: its weights are too large")
    return logits


def subsets(n: int) -> Tensor:
    """(2^n - 1, n) bool: every non-empty subset of n members, small ones first. Raises ValueError for n above 12."""
    if not 1 <= n <= 12:
        raise ValueError(f"n={n} members: expected 1 to 12 (there are 2^n - 1 subsets)")
    every = (torch.arange(1, 2**n)[:, None] >> torch.arange(n)) & 1
    return every[every.sum(1).argsort(stable=True)].bool()


def average(logits: Tensor, weights: Tensor, rule: str = "probabilities") -> Tensor:
    """Log-probabilities (S, rows, classes) float64 of weighted means of members' logits (N, rows, classes).

    weights: (S, N), rows sum to 1. rule: "logits" if these are averaged, else probabilities are.
    """
    members = logits.double() if rule == "logits" else logits.double().softmax(-1)
    mean = (weights.to(members) @ members.flatten(1)).view(len(weights), *logits.shape[1:])
    return mean.log_softmax(-1) if rule == "logits" else mean.clamp_min(1e-300).log()


def fitted_weights(logits: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
    """(S, N) weights of the members of each subset with the highest likelihood of the mean probability.

    chosen: (S, N) bool. Expectation-maximisation: w_m <- mean over rows of w_m p_m(y) / sum_k w_k p_k(y).
    """
    own = _of_label(logits.double().log_softmax(-1), y).exp().clamp_min(1e-300)  # (N, rows)
    weights = chosen.to(own) / chosen.sum(1, keepdim=True).to(own)
    for _ in range(ROUNDS):
        weights = weights * ((1 / (weights @ own)) @ own.T) / len(y)
    return weights / weights.sum(1, keepdim=True)


def temperatures(log_p: Tensor, y: Tensor) -> Tensor:
    """(S,) temperatures T at which softmax(log_p / T) has the least mean negative log-likelihood; log_p (S, rows, c).

    The loss is convex in 1 / T, which is found by bisecting its derivative, within [1 / 20, 20] (Guo et al. 2017).
    """
    low = log_p.new_full((len(log_p), 1, 1), -math.log(SHARPEST))  # of log 1 / T
    high, own = -low, _of_label(log_p, y).mean(1)[:, None, None]
    for _ in range(40):
        middle = (low + high) / 2
        expected = ((middle.exp() * log_p).softmax(-1) * log_p).sum(-1, keepdim=True).mean(1, keepdim=True)
        too_soft = expected < own  # the loss still falls with 1 / T
        low, high = torch.where(too_soft, middle, low), torch.where(too_soft, high, middle)
    return (-(low + high) / 2).exp().flatten()


def scores(log_p: Tensor, y: Tensor, bins: int = 15) -> dict[str, np.ndarray]:
    """{measure: (S,)} of log-probabilities (S, rows, classes) for labels (rows,), as `evaluation.report` has them.

    accuracy (%), nll (nats), ece (percentage points, equal bins of the largest probability), brier (0 to 2).
    """
    own, p = _of_label(log_p, y), log_p.exp()
    confidence, predicted = p.max(-1)  # (S, rows)
    right = (predicted == y).double()
    bin = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)  # (m / bins, (m + 1) / bins]
    gaps = torch.zeros(len(p), bins, dtype=p.dtype, device=p.device).scatter_add_(1, bin, right - confidence)
    values = {
        "accuracy": 100 * right.mean(1),
        "nll": -own.mean(1),
        "ece": 100 * gaps.abs().sum(1) / len(y),
        "brier": (p.square().sum(-1) - 2 * own.exp() + 1).mean(1),
    }
    return {name: value.cpu().numpy() for name, value in values.items()}


def _of_label(values: Tensor, y: Tensor) -> Tensor:
    return values.gather(-1, y.expand(len(values), -1)[..., None]).squeeze(-1)


def disagreement(logits: Tensor) -> np.ndarray:
    """(N, N) share of rows on which two members' predictions differ; logits (N, rows, classes)."""
    predicted = logits.argmax(-1)
    return (predicted[:, None] != predicted).double().mean(-1).cpu().numpy()


def accuracy_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(a - b, low, high) in percentage points: a paired bootstrap's 95 % over rows; a, b: (seeds, rows) bool, if right.

    A row is drawn with all its seeds, whose mean difference counts: the same row seen again is no new row. Rows with
    equal differences are drawn together, as counts of a multinomial. Raises ValueError for different shapes.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"a {a.shape}, b {b.shape}: expected (seeds, rows), the same for both")
    values, counts = np.unique((a - b).mean(0), return_counts=True)
    rows = counts.sum()
    drawn = np.random.default_rng(0).multinomial(rows, counts / rows, size=10_000)
    low, high = np.quantile(100 * drawn @ values / rows, [0.025, 0.975])
    return 100 * float(counts @ values) / rows, float(low), float(high)


# ---- anytime -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Anytime:
    """Every ensemble of a model's members, ready to predict under a budget; made by `anytime`."""

    model: nn.Module = field(repr=False)
    rule: str  # probabilities | logits | fitted (weights for the probabilities)
    subsets: Tensor  # (S, N) bool
    weights: Tensor  # (S, N) of the mean
    temperature: Tensor  # (S,) of the mean's log-probabilities
    macs: np.ndarray  # (S,) for a row, with the weights made before
    logits: Tensor = field(repr=False)  # (N, rows, classes) of the validation rows
    y: Tensor = field(repr=False)  # (rows,) their labels

    @cached_property
    def validation(self) -> dict[str, np.ndarray]:
        """`scores` of each on the validation rows."""
        return self.scores(self.logits, self.y)

    @property
    def front(self) -> list[int]:
        """Numbers of the subsets with a higher validation accuracy than all cheaper ones, cheap ones first."""
        return front(self.macs, self.validation["accuracy"])

    def log_probabilities(self, logits: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """(chosen subsets, rows, classes) from all members' logits (N, rows, classes)."""
        mean = average(logits, self.weights[chosen], self.rule)
        return (mean / self.temperature[chosen].to(mean)[:, None, None]).log_softmax(-1)

    def scores(self, logits: Tensor, y: Tensor) -> dict[str, np.ndarray]:
        """`scores` of every subset, and "disagreement", the mean over its pairs of members (nan for one member)."""
        blocks = torch.arange(len(self.macs)).split(max(1, BLOCK // logits[0].numel()))
        parts = [scores(self.log_probabilities(logits, part), y) for part in blocks]
        chosen = self.subsets.double().numpy()
        size = chosen.sum(1)
        pairs = np.where(size > 1, size * (size - 1), np.nan)
        differing = np.einsum("sn,nm,sm->s", chosen, disagreement(logits), chosen) / pairs
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} | {"disagreement": differing}

    def best(self, budget: float = math.inf) -> int:
        """Number of the subset of at most so many MACs a row that was best on validation rows.

        Raises ValueError when no member is that cheap.
        """
        within = [s for s in self.front if self.macs[s] <= budget]
        if not within:
            raise ValueError(f"budget={budget:,} MACs a row: the cheapest member needs {self.macs.min():,}")
        return within[-1]

    def predict(self, x: Tensor, budget: float = math.inf) -> Tensor:
        """Probabilities (rows, classes) of the best subset of at most `budget` MACs a row; only its members run."""
        return self.run(self.best(budget), x).exp()

    @torch.no_grad()
    def run(self, s: int, x: Tensor) -> Tensor:
        """Log-probabilities (rows, classes) of subset s."""
        members = self.subsets[s].nonzero().flatten()
        logits = torch.stack(self.model.eval()(x, members.tolist()))
        mean = average(logits, self.weights[s : s + 1, members], self.rule)[0]
        return (mean / self.temperature[s].to(mean)).log_softmax(-1)

    def seconds(self, x: Tensor, repeats: int = 5) -> np.ndarray:
        """(S,) wall seconds that each subset takes for the rows x, the least of so many runs in turn."""
        taken = np.full(len(self.macs), np.inf)
        self.run(len(taken) - 1, x)  # makes the weights
        for _ in range(repeats):
            for s in range(len(taken)):
                started = time.perf_counter()
                self.run(s, x).sum().item()  # waits for a GPU
                taken[s] = min(taken[s], time.perf_counter() - started)
        return taken


def anytime(
    model: nn.Module, validation: tuple[Tensor, Tensor], rule: str = "probabilities", *, scaled: bool = True
) -> Anytime:
    """All ensembles of the members of a Bank or Separate, fitted on validation (x, y).

    rule: of `RULES`. scaled: whether each subset gets a temperature of its own; else it is 1.
    """
    check_choice("rule", rule, RULES)
    x, y = validation
    logits = member_logits(model, x)
    chosen = subsets(len(logits)).to(x.device)
    weights = fitted_weights(logits, y, chosen) if rule == "fitted" else chosen / chosen.sum(1, keepdim=True)
    temperature = torch.ones(len(chosen), dtype=torch.float64)
    if scaled:
        blocks = weights.split(max(1, BLOCK // logits[0].numel()))
        temperature = torch.cat([temperatures(average(logits, part, rule), y) for part in blocks]).cpu()
    macs = (chosen.cpu().long() @ torch.tensor(model.plan.macs)).numpy()
    return Anytime(model, rule, chosen.cpu(), weights.cpu(), temperature, macs, logits, y)


def front(cost: np.ndarray, good: np.ndarray) -> list[int]:
    """Numbers of those that are better than all that cost as much or less, cheap ones first."""
    best, found = -math.inf, []
    for s in np.lexsort((-good, cost)).tolist():
        if good[s] > best:
            found.append(s)
            best = good[s]
    return found

"""Error against non-zeros: which network of an arm is taken at a budget, and how arms compare at equal non-zeros.

An arm is whatever has networks of several functions and sizes: `latent_search.Found`, `mlp_controls.Control`, or a list
of these, one a seed. Networks are taken by their validation errors and compared by their test errors.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.evaluation import interval

BUDGETS = (7, 10, 14, 20, 30, 50, 80)  # non-zeros, at most
FLOOR = 1e-6  # errors below count as this: a thousandth of the targets' range


def best_at(non_zeros: Tensor, errors: Tensor, budget: int) -> Tensor:
    """Which network has the lowest error of those with at most `budget` non-zeros: (...) of (..., n), n networks each.

    Of equal ones the one with fewest non-zeros, then the first. Raises ValueError where there is none.
    """
    within = (non_zeros <= budget) & errors.isfinite()
    if not within.any(-1).all():
        seen = int(non_zeros[~within.any(-1)].amin())
        raise ValueError(f"budget={budget}: some function has no network of so few non-zeros; the smallest has {seen}")
    at = non_zeros.argsort(dim=-1, stable=True)
    return at.gather(-1, torch.where(within, errors, torch.inf).gather(-1, at).argmin(-1, keepdim=True))[..., 0]


def front(non_zeros: Tensor, errors: Tensor) -> Tensor:
    """Bool (..., n): which of n networks none beats in non-zeros or error without losing in the other; of equals one.

    A network whose error is not finite is never among them.
    """
    errors = torch.where(errors.isfinite(), errors, torch.inf)
    at = errors.argsort(dim=-1, stable=True)
    at = at.gather(-1, non_zeros.gather(-1, at).argsort(dim=-1, stable=True))  # by non-zeros, then error, then place
    sorted_errors = errors.gather(-1, at)
    before = F.pad(sorted_errors, (1, 0), value=torch.inf).cummin(-1).values[..., :-1]
    return torch.zeros_like(at, dtype=torch.bool).scatter(-1, at, sorted_errors < before)


def runs(arm) -> Sequence:
    """Its runs, one a seed."""
    return arm if isinstance(arm, Sequence) else [arm]


def at_budgets(arm, function: str, budgets: Sequence[int] = BUDGETS) -> np.ndarray:
    """Test errors (runs, budgets) of the networks with so many non-zeros at most that are best on validation rows.

    NaN where there is no network.
    """
    found = np.full((len(runs(arm)), len(budgets)), np.nan)
    for row, run in enumerate(runs(arm)):
        count, validation, test = run.measured(function)
        for k, budget in enumerate(budgets):
            if ((count <= budget) & validation.isfinite()).any():
                found[row, k] = test[best_at(count, validation, budget)]
    return found


def log_ratios(first, other, function: str, budgets: Sequence[int] = BUDGETS) -> np.ndarray:
    """(runs,) logarithm of the other arm's test error over the first's, run by run; mean over the budgets both meet.

    NaN where there are none. Raises ValueError for arms of unlike numbers of runs.
    """
    if len(runs(first)) != len(runs(other)):
        raise ValueError(f"arms: {len(runs(first))} and {len(runs(other))} runs; pass one of the same seeds for each")
    own, theirs = (np.log(np.maximum(at_budgets(arm, function, budgets), FLOOR)) for arm in (first, other))
    ratio = theirs - own  # (runs, budgets)
    met = ~np.isnan(ratio)
    return np.where(met.any(1), np.where(met, ratio, 0).sum(1) / np.maximum(met.sum(1), 1), np.nan)


def verdict(ratios: np.ndarray) -> int:
    """1 where the first arm is better, -1 where the other is: by the paired 95 % interval of their log ratios; else 0.

    Of one run nothing can be said, so 0.
    """
    ratios = ratios[~np.isnan(ratios)]
    if len(ratios) < 2:
        return 0
    mean, half = interval(ratios.tolist())
    return int(mean > half) - int(mean < -half)


def verdicts(arms: Mapping, names: Sequence[str], budgets: Sequence[int] = BUDGETS) -> dict[str, list[int]]:
    """{other arm: verdict on each function}: is the first arm of {name: arm} better at equal non-zeros?"""
    first, *others = arms
    return {o: [verdict(log_ratios(arms[first], arms[o], name, budgets)) for name in names] for o in others}


def verdict_table(arms: Mapping, names: Sequence[str]) -> tuple[list[str], list[list]]:
    """(columns, rows): on how many functions the first arm wins / ties / loses, at each budget and over all of them.

    Last row: functions on which it is worse than no other arm.
    """
    first, *others = arms
    sets = {f"{budget} non-zeros": (budget,) for budget in BUDGETS if budget >= 10} | {"all": BUDGETS}
    rows = {other: [] for other in [*others, "worse than none"]}
    for budgets in sets.values():
        found = verdicts(arms, names, budgets)
        for other, own in found.items():
            rows[other].append(" / ".join(str(own.count(kind)) for kind in (1, 0, -1)))
        rows["worse than none"].append(str(sum(min(own) >= 0 for own in zip(*found.values(), strict=True))))
    return list(sets), [[other, *cells] for other, cells in rows.items()]

"""From noise to networks along a velocity field: the solvers of dx/dt = v(x, t) from t = 0 to 1."""

from collections.abc import Callable

import torch
from torch import Tensor

from wsnotebook.training import check_choice

SOLVERS = ("euler", "rk4", "adaptive")
TOLERANCE = 1e-5  # of the adaptive solver, relative and absolute in units of the zoo's deviations

Field = Callable[[Tensor, Tensor], Tensor]  # x (n, k), t () -> (n, k)


def times(steps: int, power: float = 2.0) -> Tensor:
    """(steps + 1,) float64 from 0 to 1: u^power / (u^power + (1 - u)^power) at u = i / steps; 1 spaces them evenly.

    Above 1 they are dense at both ends. Near t = source it is settled which network a sample will be: evenly spaced
    steps skip that when the source is small (Euler in 20 steps: all samples become the same network). Near 1 what is
    left of the source's noise fades within the last path_noise / source of the time: longer steps leave some of it.
    Raises ValueError for fewer than 1 step, or a power below 1.
    """
    if not isinstance(steps, int) or steps < 1 or not 1 <= power < float("inf"):
        raise ValueError(f"steps={steps!r}, power={power!r}: expected a whole number from 1 up, a number from 1 up")
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return 1 / (1 + (1 / u - 1) ** power)


@torch.no_grad()
def integrate(velocity: Field, x: Tensor, times: Tensor, solver: str = "rk4", unit: float = 1.0) -> Tensor:
    """The path (steps + 1, n, k) from x (n, k) through these times (steps + 1,).

    solver: euler (1 evaluation a step) | rk4 (4) | adaptive (torchdiffeq's dopri5, as many as it needs; `unit` is the
    size of a coordinate). Raises ValueError for an unknown solver, ImportError if torchdiffeq is not installed.
    """
    check_choice("solver", solver, SOLVERS)
    times = times.to(x)
    if solver == "adaptive":
        try:
            from torchdiffeq import odeint
        except ImportError:
            raise ImportError(
                "solver='adaptive' needs torchdiffeq: pip install 'wsnotebook[flow]'; 'rk4' needs nothing"
            ) from None
        return odeint(lambda t, x: velocity(x, t), x, times, rtol=TOLERANCE, atol=TOLERANCE * unit)
    path = [x]
    for t, then in zip(times[:-1], times[1:], strict=True):
        h, k1 = then - t, velocity(x, t)
        if solver == "euler":
            x = x + h * k1
        else:
            between = (t + then) / 2
            k2 = velocity(x + h / 2 * k1, between)
            k3 = velocity(x + h / 2 * k2, between)
            k4 = velocity(x + h * k3, then)
            x = x + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        path.append(x)
    return torch.stack(path)


def start(n: int, k: int, deviation: float, seed: int, device: torch.device) -> Tensor:
    """n points of the source (n, k), deviation * N(0, I). Raises ValueError for fewer than 1."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: expected a number of networks from 1 up")
    return deviation * torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(device)

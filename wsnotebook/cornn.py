"""CORNN: 54 functions of two variables to be learned from 5,000 noise-free points, all at the same places.

The benchmark "Continuous Optimisation of Regression tasks using Neural Networks" (2021, arXiv 2109.05606): functions of
the optimisation literature on uniform points, 3,750 to train and 1,250 to test, computed here from the formulas.

The benchmark's form is kept where it is not the literature's: styblinski-tang has 5^x for 5 x; goldstein-price 4 y for
48 y (so it can be negative); shubert lacks the factor j; qing has (y - 2)^2 for (y^2 - 2)^2; deckkers-aarts
1e5 (x^2 + y^2) for 1e5 x^2 + y^2; ackley-2 and ackley-3 the exponent 0.2, which many sources have as 0.02.

A low error may mean a flat function (easom: 0.0019 for a constant) or a quadratic one (sphere): read it beside
`controls`.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy import cos, exp, pi, sin, sqrt
from torch import Tensor

ROWS, TRAINING, VALIDATION = 5_000, 3_750, 750  # the last of the 3,750 training rows are ours to choose on


@dataclass(frozen=True)
class Function:
    """One function: its name in the literature, the domain of x and of y, and formula(x, y) over float64 arrays."""

    title: str
    domain: tuple[tuple[float, float], tuple[float, float]]
    formula: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _s(x, y):
    return x**2 + y**2


def _r(x, y):
    return sqrt(_s(x, y))


def _ackley(x, y):
    return -20 * exp(-0.2 * sqrt(_s(x, y) / 2)) - exp((cos(2 * pi * x) + cos(2 * pi * y)) / 2) + 20 + np.e


def _beale(x, y):
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _bird(x, y):
    return sin(x) * exp((1 - cos(y)) ** 2) + cos(y) * exp((1 - sin(x)) ** 2) + (x - y) ** 2


def _cross_in_tray(x, y):
    return -1e-4 * (abs(sin(x) * sin(y) * exp(abs(100 - _r(x, y) / pi))) + 1) ** 0.1


def _egg_holder(x, y):
    return -(y + 47) * sin(sqrt(abs(y + x / 2 + 47))) - x * sin(sqrt(abs(x - (y + 47))))


def _goldstein_price(x, y):
    a = 1 + (x + y + 1) ** 2 * (19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2)
    return a * (30 + (2 * x - 3 * y) ** 2 * (18 - 32 * x + 12 * x**2 + 4 * y - 36 * x * y + 27 * y**2))


def _keane(x, y):
    return -(sin(x - y) ** 2) * sin(x + y) ** 2 / np.maximum(_r(x, y), 1e-300)  # 0 at the origin


def _levi(x, y):
    bumps = (x - 1) ** 2 * (1 + sin(3 * pi * y) ** 2) + (y - 1) ** 2 * (1 + sin(2 * pi * y) ** 2)
    return sin(3 * pi * x) ** 2 + bumps


def _michalewicz(x, y):
    return -sin(x) * sin(x**2 / pi) ** 20 - sin(y) * sin(2 * y**2 / pi) ** 20


def _schaffer(x, y, wave):
    return 0.5 + (sin(wave) ** 2 - 0.5) / (1 + 0.001 * _s(x, y)) ** 2


def _shubert(x):
    return sum(cos((j + 1) * x + j) for j in range(1, 6))


def _shubert_3(x):
    return sum(j * sin((j + 1) * x + j) for j in range(1, 6))


def _styblinski_tang(x, y):
    return 0.5 * (x**4 - 16 * x**2 + 5**x + y**4 - 16 * y**2 + 5**y)


def _xin_she_yang_2(x, y):
    return (abs(x) + abs(y)) * exp(-(sin(x**2) + sin(y**2)))


def _xin_she_yang_3(x, y):
    return exp(-((x / 15) ** 10 + (y / 15) ** 10)) - 2 * exp(-_s(x, y)) * cos(x) ** 2 * cos(y) ** 2


def _xin_she_yang_4(x, y):
    valley = exp(-(sin(sqrt(abs(x))) ** 2 + sin(sqrt(abs(y))) ** 2))
    return (sin(x) ** 2 + sin(y) ** 2 - exp(-_s(x, y))) * valley


def _square(low, high):
    return (low, high), (low, high)


_TABLE = [
    ("Ackley", _square(-32, 32), _ackley),
    ("Ackley N.2", _square(-32, 32), lambda x, y: -200 * exp(-0.2 * _r(x, y))),
    ("Ackley N.3", _square(-32, 32), lambda x, y: -200 * exp(-0.2 * _r(x, y)) + 5 * exp(cos(3 * x) + sin(3 * y))),
    ("Ackley N.4", _square(-35, 35), lambda x, y: exp(-0.2) * _r(x, y) + 3 * (cos(2 * x) + sin(2 * y))),
    ("Adjiman", ((-1, 2), (-1, 1)), lambda x, y: cos(x) * sin(y) - x / (y**2 + 1)),
    ("Alpine N.1", _square(0, 10), lambda x, y: abs(x * sin(x) + 0.1 * x) + abs(y * sin(y) + 0.1 * y)),
    ("Alpine N.2", _square(0, 10), lambda x, y: sqrt(x) * sin(x) * sqrt(y) * sin(y)),
    ("Bartels Conn", _square(-500, 500), lambda x, y: abs(_s(x, y) + x * y) + abs(sin(x)) + abs(cos(y))),
    ("Beale", _square(-4.5, 4.5), _beale),
    ("Bird", _square(-2 * pi, 2 * pi), _bird),
    (
        "Bohachevsky N.1",
        _square(-100, 100),
        lambda x, y: x**2 + 2 * y**2 - 0.3 * cos(3 * pi * x) - 0.4 * cos(4 * pi * y) + 0.7,
    ),
    (
        "Bohachevsky N.2",
        _square(-100, 100),
        lambda x, y: x**2 + 2 * y**2 - 0.3 * cos(3 * pi * x) * cos(4 * pi * y) + 0.3,
    ),
    ("Booth", _square(-10, 10), lambda x, y: (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2),
    ("Brent", _square(-20, 0), lambda x, y: (x + 10) ** 2 + (y + 10) ** 2 + exp(-_s(x, y))),
    ("Brown", _square(-1, 1), lambda x, y: (x**2) ** (y**2 + 1) + (y**2) ** (x**2 + 1)),
    ("Bukin N.6", ((-15, -5), (-3, 3)), lambda x, y: 100 * sqrt(abs(y - 0.01 * x**2)) + 0.01 * abs(x + 10)),
    ("Cross-In-Tray", _square(-10, 10), _cross_in_tray),
    ("Deckkers-Aarts", _square(-20, 20), lambda x, y: 1e5 * _s(x, y) - _s(x, y) ** 2 + 1e-5 * _s(x, y) ** 4),
    ("Drop-Wave", _square(-5.2, 5.2), lambda x, y: -(1 + cos(12 * _r(x, y))) / (0.5 * _s(x, y) + 2)),
    ("Easom", _square(-50, 50), lambda x, y: -cos(x) * cos(y) * exp(-((x - pi) ** 2) - (y - pi) ** 2)),
    ("Egg Crate", _square(-5, 5), lambda x, y: _s(x, y) + 25 * (sin(x) ** 2 + sin(y) ** 2)),
    ("Egg Holder", _square(-512, 512), _egg_holder),
    ("Exponential", _square(-1, 1), lambda x, y: -exp(-_s(x, y) / 2)),
    ("Goldstein-Price", _square(-2, 2), _goldstein_price),
    ("Griewank", _square(-600, 600), lambda x, y: 1 + _s(x, y) / 4000 - cos(x) * cos(y / sqrt(2))),
    ("Himmelblau", _square(-6, 6), lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2),
    ("Holder-Table", _square(-10, 10), lambda x, y: -abs(sin(x) * cos(y) * exp(abs(1 - _r(x, y) / pi)))),
    ("Keane", _square(0, 10), _keane),
    ("Leon", _square(0, 10), lambda x, y: 100 * (y - x**3) ** 2 + (1 - x) ** 2),
    ("Levi N.13", _square(-10, 10), _levi),
    ("Matyas", _square(-10, 10), lambda x, y: 0.26 * _s(x, y) - 0.48 * x * y),
    ("McCormick", ((-1.5, 4), (-3, 3)), lambda x, y: sin(x + y) + (x - y) ** 2 - 1.5 * x + 2.5 * y + 1),
    ("Michalewicz", _square(0, pi), _michalewicz),
    ("Periodic", _square(-10, 10), lambda x, y: 1 + sin(x) ** 2 + sin(y) ** 2 - 0.1 * exp(-_s(x, y))),
    ("Qing", _square(-500, 500), lambda x, y: (x - 1) ** 2 + (y - 2) ** 2),
    ("Rastrigin", _square(-5.12, 5.12), lambda x, y: 20 + _s(x, y) - 10 * (cos(2 * pi * x) + cos(2 * pi * y))),
    ("Ridge", _square(-5, 5), lambda x, y: x + abs(y)),
    ("Rosenbrock", _square(-5, 10), lambda x, y: 100 * (y - x**2) ** 2 + (1 - x) ** 2),
    ("Salomon", _square(-100, 100), lambda x, y: 1 - cos(2 * pi * _r(x, y)) + 0.1 * _r(x, y)),
    ("Schaffer N.2", _square(-100, 100), lambda x, y: _schaffer(x, y, x**2 - y**2)),
    ("Schaffer N.3", _square(-100, 100), lambda x, y: _schaffer(x, y, cos(abs(x**2 - y**2)))),
    ("Schwefel 2.20", _square(-100, 100), lambda x, y: abs(x) + abs(y)),
    ("Schwefel 2.22", _square(-100, 100), lambda x, y: abs(x) + abs(y) + abs(x) * abs(y)),
    ("Schwefel 2.23", _square(-10, 10), lambda x, y: x**10 + y**10),
    ("Shubert", _square(-10, 10), lambda x, y: _shubert(x) * _shubert(y)),
    ("Shubert 3", _square(-10, 10), lambda x, y: _shubert_3(x) + _shubert_3(y)),
    ("Sphere", _square(-5.12, 5.12), _s),
    ("Styblinski-Tang", _square(-5, 5), _styblinski_tang),
    ("Sum Squares", _square(-10, 10), lambda x, y: x**2 + 2 * y**2),
    ("Three-Hump Camel", _square(-5, 5), lambda x, y: 2 * x**2 - 1.05 * x**4 + x**6 / 6 + x * y + y**2),
    ("Xin-She Yang N.2", _square(-2 * pi, 2 * pi), _xin_she_yang_2),
    ("Xin-She Yang N.3", _square(-2 * pi, 2 * pi), _xin_she_yang_3),
    ("Xin-She Yang N.4", _square(-10, 10), _xin_she_yang_4),
    ("Zakharov", _square(-5, 10), lambda x, y: _s(x, y) + (0.5 * x + y) ** 2 + (0.5 * x + y) ** 4),
]


def _slug(title: str) -> str:
    """As "ackley-2" for "Ackley N.2", "schwefel-2-20" for "Schwefel 2.20"."""
    return title.lower().replace(" n.", "-").replace(".", "-").replace(" ", "-")


FUNCTIONS = {_slug(row[0]): Function(*row) for row in _TABLE}


# ---- data: the same 5,000 places for every function ----------------------------------------------------------------


def design() -> np.ndarray:
    """The inputs of all functions, scaled from the domain: float64 (5000, 2) in [-1, 1]."""
    return 2 * _uniform() - 1


def _uniform() -> np.ndarray:
    """(5000, 2) in [0, 1], from NumPy's legacy Mersenne twister, whose stream is frozen: all x first, then all y."""
    return np.random.RandomState(0).rand(2, ROWS).T


def values(name: str) -> np.ndarray:
    """One function at the 5,000 places, in its own units: float64 (5000,). Raises ValueError for an unknown name."""
    if name not in FUNCTIONS:
        near = difflib.get_close_matches(str(name), FUNCTIONS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown CORNN function {name!r}{hint}; known are {', '.join(FUNCTIONS)}")
    function = FUNCTIONS[name]
    x, y = (low + (high - low) * u for (low, high), u in zip(function.domain, _uniform().T, strict=True))
    return function.formula(x, y)


@dataclass(frozen=True, eq=False)
class Table:
    """Several functions at once: each part is (x (n, 2), y (n, functions)), float32, y's columns in order of `names`.

    x in [-1, 1]; y scaled to [-1, 1] by the extremes of the 3,750 official training rows: test rows may leave it.
    """

    names: tuple[str, ...]
    train: tuple[Tensor, Tensor] = field(repr=False)  # 3,000 rows
    validation: tuple[Tensor, Tensor] = field(repr=False)  # 750, the rest of the official training rows
    test: tuple[Tensor, Tensor] = field(repr=False)  # the official 1,250

    def to(self, device: str | torch.device) -> "Table":
        """The same functions with their tensors on another device."""
        return Table(self.names, *(tuple(t.to(device) for t in p) for p in (self.train, self.validation, self.test)))


def table(names: Iterable[str] = FUNCTIONS) -> Table:
    """The functions of these names, by default all 54. Raises ValueError for an unknown name, or none."""
    names = tuple(names)
    if not names:
        raise ValueError("names: none given; expected some of cornn.FUNCTIONS")
    y = np.stack([values(name) for name in names], 1)  # (5000, functions)
    low, high = y[:TRAINING].min(0), y[:TRAINING].max(0)
    y = 2 * (y - low) / (high - low) - 1
    x, y = (torch.from_numpy(part.astype(np.float32)) for part in (design(), y))
    sizes = (TRAINING - VALIDATION, VALIDATION, ROWS - TRAINING)
    return Table(names, *zip(x.split(sizes), y.split(sizes), strict=True))


def controls(table: Table) -> dict[str, Tensor]:
    """What a network has to beat: test mean square error of the constant, affine and quadratic least squares fit.

    Each float64 (functions,), fitted to all 3,750 official training rows (train and validation: nothing is chosen).
    """
    x, y = (torch.cat(parts).double() for parts in zip(table.train, table.validation, strict=True))
    x_test, y_test = (part.double() for part in table.test)
    errors = {}
    for name, terms in (("constant", 1), ("affine", 3), ("quadratic", 6)):
        solution = torch.linalg.lstsq(_monomials(x)[:, :terms], y).solution  # (terms, functions)
        errors[name] = (_monomials(x_test)[:, :terms] @ solution - y_test).square().mean(0)
    return errors


def _monomials(x: Tensor) -> Tensor:
    """(n, 6): 1, x, y, x^2, x y, y^2."""
    a, b = x.unbind(1)
    return torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b], 1)

"""The passes over the weights that `mixture_prior` needs: exact, or through a table within a tolerance.

Both fill the gradient g_i = -d log p(w_i) / dw_i and return sum_i log p(w_i) and the sums N_j, M_j, V_j. Numba makes
them on a CPU when it is installed (extra `fast`); torch does it in blocks otherwise, and on a GPU.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

try:
    from wsnotebook.methods import mixture_kernel as kernel
except ImportError:  # numba is an extra
    kernel = None

COMPILED = kernel is not None  # which passes a CPU takes: numba's or torch's
NODES = 2**14  # of the grid, at most; and at most one for WEIGHTS_PER_NODE weights, or it would not pay
WEIGHTS_PER_NODE = 16
FINENESS = 128  # eighths of the narrowest sigma between nodes, before the tolerance
BLOCK = 2**17  # weights that torch passes take at a time


def exact_pass(w: Tensor, components: list[Tensor], gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the gradient (d,); sum_i log p(w_i), a scalar, and (N, M, V) (3, J), float64."""
    if not _compiled(w):
        return _blocked_moments(w, *components, gradient)
    sums = torch.zeros(3, len(components[0]), dtype=torch.float64)
    return torch.tensor(kernel.moments(*_arrays(w, *components, gradient, sums)), dtype=torch.float64), sums


def grid_pass(w: Tensor, components: list[Tensor], gradient: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The same within a tolerance > 0, through a table: cubic Hermite interpolation between nodes h apart.

    Nodes hold values and exact derivatives of g = -d log p / dw, log p and each r_j, r_j d_j, r_j d_j^2. A weight takes
    g from the cubic of its cell; a cell collects 1, t, t^2, t^3 of its weights, all that the sum of any cubic over them
    needs: the interpolants' sums are the loss and N, M, V.

    Error. A Hermite cubic of F is off by at most h^4 / 384 max |F^(4)|, and by Cauchy |F^(4)(x)| <= 24 B / rho^4 where
    |F - some cubic| <= B on the complex disc of radius rho about x. That disc lies within R = rho + h / 2 of the node
    nearest to x. There, up to a factor e^quadratic common to all, component j changes from its value at the node by
    e^u_j with, for a_j = -lambda_j d_j, slope S = sum_j r_j a_j and L = sum_j r_j lambda_j, all at the node,

        |u_j| <= v_j = |a_j - S| R + |lambda_j - L| R^2 / 2   and   sum_j r_j u_j = 0, hence
        |sum_j r_j e^u_j - 1| <= epsilon = sum_j r_j (e^v_j - 1 - v_j)

    So B = epsilon / (1 - epsilon) for log p, and for r_j z_j^m, m <= 2, with z_j = (|d_j| + R) / sigma_j, it is
    r_j (1 + z_j^2) (e^v_j - 1 + epsilon) / (1 - epsilon). With rho = h tolerance^(-1/4), g (one derivative on: 120 B /
    rho^5) is off by at most 5/16 tolerance B / rho, r_j z_j^m by tolerance B / 16. A cell is used where, at both nodes,

        epsilon <= 1/2,   5/16 B <= rho sqrt(L),   and   r_j (1 + z_j^2) (e^v_j - 5/2) <= 2 / d for every j;

    weights of other cells, and those outside the grid, nan included, get the exact pass. Hence

        |error of g_i| <= tolerance sqrt(L(w_i)), one standard deviation's pull of the components that hold the weight,
        |error of N_j, M_j / sigma_j, lambda_j V_j| <= tolerance (N_j + lambda_j V_j + 1),

    plus float32 rounding. The last has a factor 4 to spare: r_j and z_j at the node stand for those at the weight.
    """
    low, high, h = _extent(w, *components[:2], tolerance)
    if math.isnan(h):
        return exact_pass(w, components, gradient)
    rho = h * tolerance**-0.25
    x = (low + h * torch.arange(round((high - low) / h) + 1, dtype=torch.float64, device=w.device)).float()  # (G,)
    r, curve = _nodes(x, rho + h / 2, components)  # (J, G), (6, G)
    log_p, slope, bend, precision, epsilon, excess = curve
    sound = (epsilon <= 0.5) & (5 / 16 * epsilon / (1 - epsilon) <= rho * precision.sqrt()) & (excess * len(w) <= 2)

    table = w.new_full((len(x), 4), math.nan)  # one cell more: the outside
    g, dg = -slope, -h * bend
    rise = g.diff()
    cubics = torch.stack([g[:-1], dg[:-1], 3 * rise - 2 * dg[:-1] - dg[1:], dg[:-1] + dg[1:] - 2 * rise], 1)
    usable = sound[:-1] & sound[1:]
    table[:-1] = torch.where(usable[:, None], cubics, math.nan)
    deposit = _interpolate(w, low, h, table, gradient)  # (G, 4) float64
    left = F.pad(~usable, (0, 1), value=True)

    some_left = bool(deposit[left, 0].any())
    deposit[left] = 0
    m0, m1, m2, m3 = deposit.T
    after, before = (m0 - 3 * m2 + 2 * m3, m1 - 2 * m2 + m3), (3 * m2 - 2 * m3, m3 - m2)  # Hermite's weights
    mass, tilt = (a + b.roll(1) for a, b in zip(after, before, strict=True))  # (G,) on values, on h derivatives
    tilt *= h
    total = mass @ log_p.double() + tilt @ slope.double()
    sums = _node_sums(x, r, slope, mass, tilt, components)
    if some_left:
        rows = gradient.isnan().nonzero().squeeze(1)
        exact = gradient.new_empty(len(rows))
        extra = exact_pass(w[rows], components, exact)
        gradient[rows], total, sums = exact, total + extra[0], sums + extra[1]
    return total, sums


def _extent(w: Tensor, means: Tensor, precisions: Tensor, tolerance: float) -> tuple[float, float, float]:
    """First node, last node and h, or nan for no grid. h is a power of two: nodes are float32 numbers exactly."""
    most, reach = min(NODES, len(w) // WEIGHTS_PER_NODE), 8 * precisions.rsqrt()
    bounds = [*w.aminmax(), (means - reach).amin(), (means + reach).amax(), reach.amin()]
    low, high, first, last, narrowest = torch.stack(bounds).tolist()
    low, high = max(low, first), min(high, last)  # weights beyond the components' reach are left outside
    if most < 64 or not (low <= high and math.isfinite(low + high + narrowest)):
        return math.nan, math.nan, math.nan
    finest = (narrowest / FINENESS * tolerance**0.25, (high - low) / most, 2**-20 * max(-low, high))
    h = 2.0 ** math.ceil(math.log2(max(finest)))
    return h * math.floor(low / h), h * (math.floor(high / h) + 1), h


def _compiled(w: Tensor) -> bool:
    return COMPILED and w.device.type == "cpu"


def _arrays(*tensors: Tensor) -> list:
    return [tensor.numpy() for tensor in tensors]


def _nodes(x: Tensor, radius: float, components: list[Tensor]) -> tuple[Tensor, Tensor]:
    """r_jk (J, G) and (6, G): log p, its first two derivatives, L, epsilon, max_j r_j (1 + z_j^2) (e^v_j - 5/2)."""
    means, precisions, log_scales = (t[:, None] for t in components)
    if _compiled(x):
        r, curve = torch.empty(len(means), len(x)), torch.empty(6, len(x))
        kernel.nodes(*_arrays(x), np.float32(radius), *_arrays(*components, r, curve))
        return r, curve
    d = x - means
    log_r = log_scales - 0.5 * precisions * d**2
    log_p = log_r.logsumexp(0)
    log_r -= log_p
    r = log_r.clamp(min=-60).exp() - math.exp(-60)
    slope, precision = -(r * precisions * d).sum(0), (r * precisions).sum(0)
    c = -precisions * d - slope
    v = c.abs() * radius + (precisions - precision).abs() * radius**2 / 2
    grown = (log_r + v).clamp(-60, 60).exp()
    excess = ((grown - 2.5 * r) * (1 + precisions * (d.abs() + radius) ** 2)).amax(0)
    return r, torch.stack([log_p, slope, (r * c**2).sum(0) - precision, precision, (grown - r - r * v).sum(0), excess])


def _interpolate(w: Tensor, low: float, h: float, table: Tensor, gradient: Tensor) -> Tensor:
    """Fill the gradient (d,) from the cells' cubics (G, 4); the cells' sums of 1, t, t^2, t^3 (G, 4), float64."""
    deposit = table.new_zeros(table.shape, dtype=torch.float64)
    if _compiled(w):
        kernel.interpolate(*_arrays(w), np.float32(low), np.float32(h), *_arrays(table, gradient, deposit))
        return deposit
    outside, cubics = len(table) - 1, table.T.contiguous()
    for x, g in zip(w.split(BLOCK), gradient.split(BLOCK), strict=True):
        place = (x - low) / h
        cell = torch.where((place >= 0) & (place < outside), place, outside).long()
        t = (x - (low + h * cell)) / h
        g.zero_()
        for cubic in cubics.flip(0):
            g.mul_(t).add_(cubic.index_select(0, cell))
        power, t = torch.ones_like(x, dtype=torch.float64), t.double()
        for column in deposit.T:
            column.index_add_(0, cell, power)
            power *= t
    return deposit


def _node_sums(x: Tensor, r: Tensor, slope: Tensor, mass: Tensor, tilt: Tensor, components: list[Tensor]) -> Tensor:
    """(N, M, V) (3, J) of weights collected at the nodes: mass on values, tilt on derivatives, (G,) float64 each."""
    if _compiled(x):
        sums = torch.zeros(3, len(r), dtype=torch.float64)
        kernel.node_sums(*_arrays(x, *components[:2], r, slope, mass, tilt, sums))
        return sums
    means, precisions = (t.double()[:, None] for t in components[:2])
    d, tilted = x - means, r * tilt
    held = r * mass - (precisions * d + slope) * tilted  # r_j changes at the rate r_j (a_j - slope)
    return torch.stack([held.sum(1), (held * d + tilted).sum(1), ((held * d + 2 * tilted) * d).sum(1)])


def _blocked_moments(w: Tensor, means: Tensor, precisions: Tensor, log_scales: Tensor, gradient: Tensor):
    """`mixture_kernel.moments` by torch operations on (J, block) buffers."""
    block = 16_384 if w.device.type == "cpu" else 2**19
    mu, half, scale = means[:, None], -0.5 * precisions[:, None], log_scales[:, None]
    buffers = w.new_empty(2, len(means), min(block, len(w)))
    sums, total = w.new_zeros(3, len(means), dtype=torch.float64), w.new_zeros((), dtype=torch.float64)
    for x, g in zip(w.split(block), gradient.split(block), strict=True):
        d, r = buffers[:, :, : len(x)]  # (J, b) each
        torch.sub(x, mu, out=d)
        torch.mul(d, d, out=r).mul_(half).add_(scale)  # log of pi_j N(x; mu_j, s_j)
        top = r.amax(0)
        r.sub_(top).clamp_(min=-60).exp_()
        norm = r.sum(0)
        total += (top + norm.log()).sum(dtype=torch.float64)
        sums[0] += r.div_(norm).sum(1)
        sums[1] += r.mul_(d).sum(1)
        torch.mv(r.T, precisions, out=g)
        sums[2] += r.mul_(d).sum(1)
    return total, sums

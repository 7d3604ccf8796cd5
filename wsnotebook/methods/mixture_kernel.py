"""The mixture prior's passes, compiled: `moments` over the weights; `nodes`, `interpolate`, `node_sums` for the grid.

Needs numba (the `fast` extra). What makes them quick, besides never storing a (J, d) matrix: exponents are clamped at
-60 (e^-60 is nothing in float32, so it becomes 0, and underflow is slow), and the exponential and the running maximum
are written in arithmetic that a compiler turns into vector instructions.
"""

import numpy as np
from numba import njit

BLOCK = 256  # weights at a time: J x BLOCK floats stay in the first-level cache
CAREFUL = {"contract", "reassoc", "nsz", "arcp"}  # weights may be nan or infinite
FAST = CAREFUL | {"nnan", "ninf"}
f32, i32, f64 = np.float32, np.int32, np.float64


@njit(fastmath=FAST, inline="always")
def _exp(x):
    """exp(x) for -87 < x < 88, relative error below 3e-7: 2^k times a polynomial on [-ln2/2, ln2/2] (Cephes)."""
    k = i32(x * f32(1.44269504) - f32(0.5))
    r = x - f32(k) * f32(0.693359375) - f32(k) * f32(-2.12194440e-4)  # ln 2 in two parts
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + f32(1.0)
    return p * i32(i32(k + i32(127)) * i32(1 << 23)).view(f32)  # the exponent's bits are 2^k


@njit(fastmath=FAST, inline="always")
def _max(a, b):
    larger = f32(a > b)
    return larger * a + (f32(1) - larger) * b  # arithmetic, and exact however far a and b are apart


@njit(fastmath=FAST, error_model="numpy")
def _responsibilities(x, means, precisions, log_scales, terms, log_p, norm):
    """Fill terms (J, >= n) with r_ij and log_p (>= n,) with log p(x_i), for a block x (n,)."""
    n, top, nothing = x.size, log_p, _exp(f32(-60))
    for i in range(n):
        d = x[i] - means[0]
        top[i] = log_scales[0] - f32(0.5) * precisions[0] * d * d
        norm[i] = f32(0)
    for j in range(means.size):
        row, mean, half, scale = terms[j], means[j], f32(-0.5) * precisions[j], log_scales[j]
        for i in range(n):
            d = x[i] - mean
            term = scale + half * d * d
            row[i] = term
            top[i] = _max(top[i], term)
    for j in range(means.size):
        row = terms[j]
        for i in range(n):
            e = _exp(max(row[i] - top[i], f32(-60))) - nothing
            row[i] = e
            norm[i] += e
    for i in range(n):
        log_p[i] = top[i] + np.log(norm[i])
        norm[i] = f32(1) / norm[i]
    for j in range(means.size):
        row = terms[j]
        for i in range(n):
            row[i] *= norm[i]


@njit(fastmath=FAST, cache=True)
def moments(w, means, precisions, log_scales, gradient, sums):
    """Fill gradient (d,) = sum_j r_ij lambda_j (w_i - mu_j) and add sums (3, J) = sum_i r_ij (1, d_ij, d_ij^2).

    w (d,), means, precisions and log_scales = log(pi_j) - log(2 pi s_j) / 2, each (J,): float32.
    Returns sum_i log p(w_i).
    """
    terms, total = np.empty((means.size, BLOCK), f32), 0.0
    log_p, norm = np.empty(BLOCK, f32), np.empty(BLOCK, f32)
    for start in range(0, w.size, BLOCK):
        x, g = w[start : start + BLOCK], gradient[start : start + BLOCK]
        n = x.size
        _responsibilities(x, means, precisions, log_scales, terms, log_p, norm)
        for i in range(n):
            total += log_p[i]
            g[i] = f32(0)
        for j in range(means.size):
            row, mean, precision = terms[j], means[j], precisions[j]
            r0, r1, r2 = f32(0), f32(0), f32(0)
            for i in range(n):
                d = x[i] - mean
                r = row[i]
                rd = r * d
                g[i] += precision * rd
                r0 += r
                r1 += rd
                r2 += rd * d
            sums[0, j] += r0
            sums[1, j] += r1
            sums[2, j] += r2
    return total


@njit(fastmath=FAST, cache=True)
def nodes(x, radius, means, precisions, log_scales, terms, curve):
    """Fill, at nodes x (G,), terms (J, G) with r_jk and curve (6, G) with the rows of `mixture_passes._nodes`."""
    block, log_p, norm = np.empty((means.size, BLOCK), f32), np.empty(BLOCK, f32), np.empty(BLOCK, f32)
    v, grown, spread = np.empty(BLOCK, f32), np.empty(BLOCK, f32), f32(0.5) * radius * radius
    for start in range(0, x.size, BLOCK):
        stop = start + BLOCK
        y, value, slope, bend = x[start:stop], curve[0, start:stop], curve[1, start:stop], curve[2, start:stop]
        precision_mean, epsilon, excess = curve[3, start:stop], curve[4, start:stop], curve[5, start:stop]
        n = y.size
        _responsibilities(y, means, precisions, log_scales, block, log_p, norm)
        curve[:, start:stop] = f32(0)
        value[:] = log_p[:n]
        for j in range(means.size):
            row, mean, precision, kept = block[j], means[j], precisions[j], terms[j, start:stop]
            kept[:] = row[:n]
            for i in range(n):
                slope[i] -= row[i] * precision * (y[i] - mean)
            for i in range(n):
                precision_mean[i] += row[i] * precision
        for j in range(means.size):
            row, mean, precision, scale = block[j], means[j], precisions[j], log_scales[j]
            for i in range(n):
                c = precision * (mean - y[i]) - slope[i]
                v[i] = abs(c) * radius + abs(precision - precision_mean[i]) * spread
            for i in range(n):
                log_r = scale - f32(0.5) * precision * (y[i] - mean) ** 2 - value[i]
                grown[i] = _exp(min(max(log_r + v[i], f32(-60)), f32(60)))
            for i in range(n):
                c = precision * (mean - y[i]) - slope[i]
                bend[i] += row[i] * c * c
            for i in range(n):
                epsilon[i] += grown[i] - row[i] - row[i] * v[i]
            for i in range(n):
                z2 = precision * (abs(y[i] - mean) + radius) ** 2
                term = (grown[i] - f32(2.5) * row[i]) * (f32(1) + z2)
                excess[i] = _max(excess[i], term)
        for i in range(n):
            bend[i] -= precision_mean[i]


@njit(fastmath=CAREFUL, cache=True)
def interpolate(w, low, h, table, gradient, deposit):
    """One pass over the weights w (d,): the cells' cubics fill the gradient (d,), the cells collect the weights.

    table (C + 1, 4): a cell's cubic in t = (w - its first node) / h; deposit (C + 1, 4) += (1, t, t^2, t^3), float64: a
    float32 sum would stall. The last row takes what lies outside, nan included.
    """
    cells, inverse_h = f32(table.shape[0] - 1), f32(1) / h
    cell, place = np.empty(BLOCK, i32), np.empty(BLOCK, f32)
    for start in range(0, w.size, BLOCK):
        x, g = w[start : start + BLOCK], gradient[start : start + BLOCK]
        for i in range(x.size):
            p = (x[i] - low) * inverse_h
            cell[i] = i32(p if (p >= f32(0)) & (p < cells) else cells)
            place[i] = (x[i] - (low + f32(cell[i]) * h)) * inverse_h
        for i in range(x.size):
            t = place[i]
            a, c, u = table[cell[i]], deposit[cell[i]], f64(t)
            g[i] = ((a[3] * t + a[2]) * t + a[1]) * t + a[0]
            c[0] += 1.0
            c[1] += u
            c[2] += u * u
            c[3] += u * u * u


@njit(fastmath=FAST, cache=True)
def node_sums(x, means, precisions, terms, slope, mass, tilt, sums):
    """Add to sums (3, J) what `mixture_passes._node_sums` returns."""
    for j in range(means.size):
        mean, precision, row = f64(means[j]), f64(precisions[j]), terms[j]
        n, m, v = 0.0, 0.0, 0.0
        for k in range(x.size):
            d, r = x[k] - mean, f64(row[k])
            a, b = r * (mass[k] - (precision * d + slope[k]) * tilt[k]), r * tilt[k]
            n += a
            m += a * d + b
            v += (a * d + 2 * b) * d
        sums[0, j] += n
        sums[1, j] += m
        sums[2, j] += v

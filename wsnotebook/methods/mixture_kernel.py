"""One pass over the weights for the mixture prior, compiled: the sums of `mixture_prior`, a block in L1 at a time.

Needs numba (the `fast` extra). What makes it quick, besides never storing a (J, d) matrix: exponents are clamped at
-60 (a term of e^-60 is nothing in float32, and underflow is slow), and the exponential and the running maximum are
written in arithmetic that a compiler turns into vector instructions.
"""

import numpy as np
from numba import njit

BLOCK = 256  # weights at a time: J x BLOCK floats stay in the first-level cache
FAST = {"contract", "reassoc", "nsz", "arcp", "nnan", "ninf"}
f32, i32 = np.float32, np.int32


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


@njit(fastmath=FAST, cache=True)
def moments(w, means, precisions, log_scales, gradient, sums):
    """Fill gradient (d,) = sum_j r_ij lambda_j (w_i - mu_j) and add sums (3, J) = sum_i r_ij (1, d_ij, d_ij^2).

    w (d,), means, precisions and log_scales = log(pi_j) - log(2 pi s_j) / 2, each (J,): float32.
    Returns sum_i log p(w_i).
    """
    components, total = means.size, 0.0
    terms = np.empty((components, BLOCK), f32)
    top, norm = np.empty(BLOCK, f32), np.empty(BLOCK, f32)
    for start in range(0, w.size, BLOCK):
        x, g = w[start : start + BLOCK], gradient[start : start + BLOCK]
        n = x.size
        for i in range(n):
            d = x[i] - means[0]
            top[i] = log_scales[0] - f32(0.5) * precisions[0] * d * d
            norm[i] = f32(0)
            g[i] = f32(0)
        for j in range(components):
            row, mean, half, scale = terms[j], means[j], f32(-0.5) * precisions[j], log_scales[j]
            for i in range(n):
                d = x[i] - mean
                term = scale + half * d * d
                row[i] = term
                top[i] = f32(0.5) * (top[i] + term + abs(top[i] - term))  # the maximum, as arithmetic
        for j in range(components):
            row = terms[j]
            for i in range(n):
                e = _exp(max(row[i] - top[i], f32(-60)))
                row[i] = e
                norm[i] += e
        for i in range(n):
            total += top[i] + np.log(norm[i])
            norm[i] = f32(1) / norm[i]
        for j in range(components):
            row, mean, precision = terms[j], means[j], precisions[j]
            r0, r1, r2 = f32(0), f32(0), f32(0)
            for i in range(n):
                d = x[i] - mean
                r = row[i] * norm[i]  # the responsibility r_ij
                rd = r * d
                g[i] += precision * rd
                r0 += r
                r1 += rd
                r2 += rd * d
            sums[0, j] += r0
            sums[1, j] += r1
            sums[2, j] += r2
    return total

"""The compiled forward pass of `lanes` for scoring (numba, the `fast` extra): here the SIMD lanes hold images.

WIDTH images lie side by side, (channels, height, width, WIDTH), and so do the outputs of every layer, one after another
in one row. A weight is spread over a vector: rows of weights are read as they are, and no lane is padding, however few
the channels. A tile is 2 output channels at 4 positions, which are a cell where 2x2 pooling follows.
"""

import numpy as np
from numba import njit

from wsnotebook.engines.lane_kernels import activate
from wsnotebook.engines.vectors import WIDTH, choose, fma, load, spread, store

STAGE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "channels",  # of the input, and so are the next two
            "height",
            "width",
            "outputs",  # channels of the output
            "size",  # of the kernel; 0 for a linear layer
            "pooled",  # whether 2x2 maximum pooling follows
            "activation",
            "weight",  # where its weights start in a row of parameters; its biases follow
        )
    ]
)


@njit(inline="always")
def _convolve(a, row, stage, source, target, size):
    """A convolution's outputs, pooled, at a[target:] from its inputs at a[source:]; returns where they end."""
    h, w, outputs, taps = stage.height, stage.width, stage.outputs, stage.channels * size * size
    across, down, pooled, bias = w - size + 1, h - size + 1, stage.pooled, stage.weight + stage.outputs * taps
    positions = (down // 2) * (across // 2) if pooled else down * across
    for at in range(0, positions, 1 if pooled else 4):
        if pooled:
            p0 = 2 * (at // (across // 2) * w + at % (across // 2))
            p1, p2, p3 = p0 + 1, p0 + w, p0 + w + 1
        else:  # the last tile repeats its last position
            q1, q2, q3 = min(at + 1, positions - 1), min(at + 2, positions - 1), min(at + 3, positions - 1)
            p0, p1 = at // across * w + at % across, q1 // across * w + q1 % across
            p2, p3 = q2 // across * w + q2 % across, q3 // across * w + q3 % across
        for o in range(0, outputs, 2):
            other = min(o + 1, outputs - 1)  # of an odd number, the last tile repeats its last channel
            i, j = stage.weight + o * taps, stage.weight + other * taps
            u0, v0 = spread(row, bias + o), spread(row, bias + other)
            u1, u2, u3, v1, v2, v3 = u0, u0, u0, v0, v0, v0
            for channel in range(stage.channels):
                for line in range(size):
                    x = source + (channel * h + line) * w * WIDTH
                    for _ in range(size):
                        one, two = spread(row, i), spread(row, j)
                        x0, x1 = load(a, x + p0 * WIDTH), load(a, x + p1 * WIDTH)
                        x2, x3 = load(a, x + p2 * WIDTH), load(a, x + p3 * WIDTH)
                        u0, v0 = fma(x0, one, u0), fma(x0, two, v0)
                        u1, v1 = fma(x1, one, u1), fma(x1, two, v1)
                        u2, v2 = fma(x2, one, u2), fma(x2, two, v2)
                        u3, v3 = fma(x3, one, u3), fma(x3, two, v3)
                        i, j, x = i + 1, j + 1, x + WIDTH
            y, z = target + o * positions * WIDTH, target + other * positions * WIDTH
            if pooled:
                store(a, y + at * WIDTH, _largest(u0, u1, u2, u3))
                store(a, z + at * WIDTH, _largest(v0, v1, v2, v3))
            else:
                for q, u, v in ((at, u0, v0), (q1, u1, v1), (q2, u2, v2), (q3, u3, v3)):
                    store(a, y + q * WIDTH, u)
                    store(a, z + q * WIDTH, v)
    return target + outputs * positions * WIDTH


@njit(inline="always")
def _largest(v0, v1, v2, v3):
    """A pool cell's maximum, nan where one is, as PyTorch's."""
    left, right = choose(v0, v1, v0, v1), choose(v2, v3, v2, v3)
    return choose(left, right, left, right)


@njit(inline="always")
def _multiply(a, row, stage, source, target):
    """The same of a linear layer, 4 outputs at once; the last ones repeat the last."""
    inputs, last = stage.channels * stage.height * stage.width, stage.outputs - 1
    first, bias = stage.weight, stage.weight + stage.outputs * inputs
    for o in range(0, stage.outputs, 4):
        o1, o2, o3 = min(o + 1, last), min(o + 2, last), min(o + 3, last)
        v0, v1, v2, v3 = spread(row, bias + o), spread(row, bias + o1), spread(row, bias + o2), spread(row, bias + o3)
        for i in range(inputs):
            x, at = load(a, source + i * WIDTH), first + i
            v0 = fma(x, spread(row, at + o * inputs), v0)
            v1 = fma(x, spread(row, at + o1 * inputs), v1)
            v2 = fma(x, spread(row, at + o2 * inputs), v2)
            v3 = fma(x, spread(row, at + o3 * inputs), v3)
        for q, v in ((o, v0), (o1, v1), (o2, v2), (o3, v3)):
            store(a, target + q * WIDTH, v)
    return target + stage.outputs * WIDTH


@njit(error_model="numpy")
def _outputs(a, row, stage, source, target):
    """A layer's outputs, with the usual kernels known to the compiler, which unrolls them."""
    if stage.size == 5:
        return _convolve(a, row, stage, source, target, 5)
    if stage.size == 3:
        return _convolve(a, row, stage, source, target, 3)
    if stage.size > 0:
        return _convolve(a, row, stage, source, target, stage.size)
    return _multiply(a, row, stage, source, target)


@njit(cache=True, nogil=True, error_model="numpy")
def evaluate(stages, weights, images, start, stop, length, logits):
    """Fill logits (k, n, classes)[:, start:stop] for weights (k, d) and images (n, numbers of one).

    stages: STAGE records; length: numbers of one image and of all its layers' outputs.
    """
    first = images.shape[1] * WIDTH
    a, slope = np.empty(length * WIDTH, np.float32), np.empty(length * WIDTH, np.float32)
    for i in range(start, stop, WIDTH):
        for lane in range(WIDTH):
            image = images[min(i + lane, stop - 1)]
            for p in range(image.size):
                a[p * WIDTH + lane] = image[p]
        for model in range(len(weights)):
            source, target = 0, first
            for s in range(len(stages)):
                end = _outputs(a, weights[model], stages[s], source, target)
                activate(a[target:end], slope[target:end], stages[s].activation)
                source, target = target, end
            for lane in range(min(WIDTH, stop - i)):
                for c in range(logits.shape[2]):
                    logits[model, i + lane, c] = a[source + c * WIDTH + lane]

"""The compiled training of `lanes`: images forward, gradients back, the optimisers' update (numba, the `fast` extra).

The SIMD lanes hold a layer's channels. Activations lie channels last, (positions, channels) padded to whole vectors,
every layer's in one row, and a table says where. Forward, a vector is 8 output channels and a tile is 8 positions;
so it costs the same whether or not 2x2 pooling follows. Backward, only the maximum of each pool cell has a
gradient: per output number, the window it looked at is read again, whole vectors of its rows, which are contiguous.
A linear layer is a convolution whose kernel covers the image. What the padding of vectors holds never leaves it: a
lane of hidden numbers is one channel throughout.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from wsnotebook.engines.vectors import WIDTH, add, choose, fma, load, peek, splat, spread, store

PAIRS = 4  # pairs of windows side by side whose outputs grow at once in registers: two pool cells
CHUNKS = 6  # vectors of a kernel's gradient that grow at once: a 5x5 or 3x3 kernel on few channels
CAREFUL = {"contract", "nsz", "arcp"}  # weights may be nan or infinite; sums keep their order
f32, i32, u32, u64 = np.float32, np.int32, np.uint32, np.uint64
ACTIVATIONS = IDENTITY, RELU, TANH, SIGMOID, GELU = range(5)
OPTIMISERS = ADAM, ADAMW, SGD = range(3)

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            "channels",  # of the output
            "padded",  # the same, in whole vectors
            "positions",  # of the output, after pooling
            "pooled",  # whether 2x2 maximum pooling follows
            "activation",
            "dropout",  # whether dropout follows
            "source",  # where its input starts in a row of activations
            "target",  # where its output does
            "weight",  # where its weights start in a row of parameters
            "bias",
            "kernel",  # the same, in a row of weights laid out for the forward pass
            "stride",  # floats between two neighbouring input positions
            "width",  # of the kernel
            "line",  # its slice of `lines`: where a window's (row, channel) lines start, from the window's corner
            "lines",
            "pair",  # its slice of `pairs` (corners of a pair's first window) and of `slots` (where its output goes)
            "pairs",
            "chunk",  # its slice of `chunks`: where the vectors of a window's rows lie, from the corner
            "chunks",
            "grown",  # chunks, in whole CHUNKS
            "learns",  # whether any of its parameters does
        )
    ]
)


class Net(NamedTuple):
    """What the passes share: an architecture's tables, its models' weights and the scratch rows of one image."""

    layers: np.ndarray  # LAYER records
    lines: np.ndarray  # int64, and so are the next three
    pairs: np.ndarray
    slots: np.ndarray
    chunks: np.ndarray
    weights: np.ndarray  # (k, D)
    kernels: np.ndarray  # (k, number of numbers) for the forward pass
    order: np.ndarray  # where in a row of parameters each of those is
    learned: np.ndarray  # (s, 2) start and stop of the parts of a row of parameters that are not frozen
    a: np.ndarray  # activations of one image and one model, one layer after another
    slope: np.ndarray  # da / d(what it was before activation and dropout)
    where: np.ndarray  # the corner of the window that each number comes from, int32
    g: np.ndarray  # the loss's derivative


@njit(inline="always")
def _pool(v0, v1, v2, v3, p0, p2, stride, out, where, at):
    """Store a cell's maximum, and the corner of the first window with it."""
    c0, c1 = splat(i32(p0).view(f32)), splat(i32(p0 + stride).view(f32))  # bits that are only carried
    c2, c3 = splat(i32(p2).view(f32)), splat(i32(p2 + stride).view(f32))
    first, top = choose(v0, v1, c0, c1), choose(v0, v1, v0, v1)
    first, top = choose(top, v2, first, c2), choose(top, v2, top, v2)
    store(where, at, choose(top, v3, first, c3))
    store(out, at, choose(top, v3, top, v3))


@njit(inline="always")
def _affine(net, model, layer, width):
    """A layer's outputs, pooled, from its inputs, both in the row of activations; width: of the kernel."""
    a, where, pairs, slots = net.a, net.where, net.pairs, net.slots
    weights, row = net.kernels[model], net.weights[model]
    padded, bias, stride, source = layer.padded, layer.bias, layer.stride, layer.source
    first, last, pooled = layer.line, layer.line + layer.lines, layer.pooled
    for at in range(layer.pair, layer.pair + layer.pairs, PAIRS):
        p0, p1, p2, p3 = peek(pairs, at), peek(pairs, at + 1), peek(pairs, at + 2), peek(pairs, at + 3)
        s0, s1, s2, s3 = peek(slots, at), peek(slots, at + 1), peek(slots, at + 2), peek(slots, at + 3)
        w = layer.kernel
        for c in range(0, padded, WIDTH):
            v0 = load(row, bias + c)
            v1, v2, v3, v4, v5, v6, v7 = v0, v0, v0, v0, v0, v0, v0
            for line in range(first, last):
                x = source + peek(net.lines, line)
                x0, x1, x2, x3 = spread(a, x + p0), spread(a, x + p1), spread(a, x + p2), spread(a, x + p3)
                for _ in range(width):
                    x += stride
                    kernel = load(weights, w)
                    w += WIDTH
                    v0, x0 = fma(x0, kernel, v0), spread(a, x + p0)  # a pair's windows lie side by side
                    v1 = fma(x0, kernel, v1)
                    v2, x1 = fma(x1, kernel, v2), spread(a, x + p1)
                    v3 = fma(x1, kernel, v3)
                    v4, x2 = fma(x2, kernel, v4), spread(a, x + p2)
                    v5 = fma(x2, kernel, v5)
                    v6, x3 = fma(x3, kernel, v6), spread(a, x + p3)
                    v7 = fma(x3, kernel, v7)
            if pooled:
                _pool(v0, v1, v2, v3, p0, p1, stride, a, where, s0 + c)
                _pool(v4, v5, v6, v7, p2, p3, stride, a, where, s2 + c)
            else:
                store(a, s0 + c, v0)
                store(a, s0 + c + padded, v1)
                store(a, s1 + c, v2)
                store(a, s1 + c + padded, v3)
                store(a, s2 + c, v4)
                store(a, s2 + c + padded, v5)
                store(a, s3 + c, v6)
                store(a, s3 + c + padded, v7)


@njit(error_model="numpy")
def _outputs(net, model, layer):
    """`_affine`, with the usual widths known to the compiler, which unrolls them."""
    if layer.width == 5:
        _affine(net, model, layer, 5)
    elif layer.width == 3:
        _affine(net, model, layer, 3)
    elif layer.width == 2:
        _affine(net, model, layer, 2)
    else:
        _affine(net, model, layer, layer.width)


@njit(fastmath=CAREFUL, inline="always")
def _split_exp(x):
    """(p, s) with exp(x) = s (1 + p), for |x| < 87: s = 2^k, p = exp(r) - 1 on [-ln2/2, ln2/2] (Cephes)."""
    shifted = f32(x * f32(1.44269504) + f32(12582912))  # 1.5 2^23: k is in the low bits
    k = shifted - f32(12582912)
    r = x - k * f32(0.693359375) - k * f32(-2.12194440e-4)  # ln 2 in two parts
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return p * r * r + r, i32(i32(f32(shifted).view(i32) + i32(127)) << i32(23)).view(f32)


@njit(fastmath=CAREFUL, inline="always")
def _clamp(x, bound):
    x = bound if x > bound else x
    return -bound if x < -bound else x  # nan stays


@njit(fastmath=CAREFUL, error_model="numpy")
def activate(a, slope, kind):
    """a = activation(a) and slope = its derivative there."""
    if kind == IDENTITY:
        for i in range(a.size):
            slope[i] = f32(1)
    elif kind == RELU:
        for i in range(a.size):
            x = a[i]
            slope[i] = f32(1) if x > f32(0) else f32(0)
            a[i] = f32(0) if x < f32(0) else x
    elif kind == TANH:
        for i in range(a.size):
            p, s = _split_exp(f32(2) * _clamp(a[i], f32(10)))
            e = s * p + (s - f32(1))  # exp(2x) - 1, also next to 0
            y = e / (e + f32(2))
            slope[i] = f32(1) - y * y
            a[i] = y
    elif kind == SIGMOID:
        for i in range(a.size):
            p, s = _split_exp(-_clamp(a[i], f32(86)))
            y = f32(1) / (f32(1) + s + s * p)
            slope[i] = y * (f32(1) - y)
            a[i] = y
    else:  # GELU: x Phi(x), with Abramowitz and Stegun 7.1.26 for erfc, error 1.5e-7
        for i in range(a.size):
            x = a[i]
            z = _clamp(x, f32(13))
            p, s = _split_exp(f32(-0.5) * z * z)
            bell = s + s * p
            t = f32(1) / (f32(1) + f32(0.3275911 * 0.5**0.5) * abs(z))
            tail = f32(1.061405429)
            tail = tail * t + f32(-1.453152027)
            tail = tail * t + f32(1.421413741)
            tail = tail * t + f32(-0.284496736)
            tail = tail * t + f32(0.254829592)
            tail = f32(0.5) * tail * t * bell
            normal = tail if z < f32(0) else f32(1) - tail
            slope[i] = normal + z * bell * f32(0.3989422804)
            a[i] = x * normal


@njit(inline="always")
def _mix(x):
    """A 64-bit number's hash (splitmix64's finaliser, Steele et al. 2014)."""
    x = (x ^ (x >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> u64(27))) * u64(0x94D049BB133111EB)
    return x ^ (x >> u64(31))


@njit(fastmath=CAREFUL, error_model="numpy")
def _drop(a, slope, p, key):
    """Dropout: unit i is 0 where a hash of (key, i) says so, and otherwise grows by 1 / (1 - p)."""
    key, threshold, kept = u32(key), u32(p * 2.0**32), f32(1 / (1 - p))
    for i in range(a.size):
        h = u32(key + u32(u32(i) * u32(0x9E3779B9)))
        h = u32(u32(h ^ (h >> u32(16))) * u32(0x7FEB352D))  # Wellons' lowbias32
        h = u32(u32(h ^ (h >> u32(15))) * u32(0x846CA68B))
        h = u32(h ^ (h >> u32(16)))
        factor = kept if h >= threshold else f32(0)
        a[i] *= factor
        slope[i] *= factor


@njit(error_model="numpy")
def _forward(net, model, image, p, key):
    """An image through a model: fills the scratch rows a, slope and where. p: of dropout."""
    a, slope = net.a, net.slope
    a[: image.size] = image
    for l in range(net.layers.size):
        layer = net.layers[l]
        _outputs(net, model, layer)
        start = layer.target
        stop = start + layer.positions * layer.padded
        activate(a[start:stop], slope[start:stop], layer.activation)
        if layer.dropout and p > 0:
            _drop(a[start:stop], slope[start:stop], p, _mix(key + u64(l)))


@njit(error_model="numpy")
def _loss(z, y, gradient, rows):
    """Cross-entropy of logits z (classes,) in nats; gradient = its derivative / rows."""
    top = z[0]
    for c in range(z.size):
        top = max(top, z[c])
    total = 0.0
    for c in range(z.size):
        gradient[c] = np.exp(z[c] - top)
        total += gradient[c]
    for c in range(z.size):
        gradient[c] = gradient[c] / total / rows
    gradient[y] -= 1 / rows
    return np.log(total) - (z[y] - top)


@njit(error_model="numpy")
def _weight_gradient(a, g, where, layer, chunks, gradient):
    """Add to gradient what a layer's output gradients g say, window by window."""
    padded, source, target, first = layer.padded, layer.source, layer.target, layer.chunk
    for c in range(0, padded, WIDTH):
        v = load(gradient, layer.bias + c)
        for j in range(layer.positions):
            v = add(v, load(g, target + j * padded + c))
        store(gradient, layer.bias + c, v)
    at = layer.weight
    for c in range(layer.channels):
        for q in range(first, first + layer.grown, CHUNKS):
            q0, q1, q2 = peek(chunks, q), peek(chunks, q + 1), peek(chunks, q + 2)
            q3, q4, q5 = peek(chunks, q + 3), peek(chunks, q + 4), peek(chunks, q + 5)
            v0, v1, v2 = load(gradient, at), load(gradient, at + WIDTH), load(gradient, at + 2 * WIDTH)
            v3, v4, v5 = load(gradient, at + 3 * WIDTH), load(gradient, at + 4 * WIDTH), load(gradient, at + 5 * WIDTH)
            for j in range(layer.positions):
                s = target + j * padded + c
                e, x = spread(g, s), source + peek(where, s)
                v0 = fma(e, load(a, x + q0), v0)
                v1 = fma(e, load(a, x + q1), v1)
                v2 = fma(e, load(a, x + q2), v2)
                v3 = fma(e, load(a, x + q3), v3)
                v4 = fma(e, load(a, x + q4), v4)
                v5 = fma(e, load(a, x + q5), v5)
            for v in (v0, v1, v2, v3, v4, v5):
                store(gradient, at, v)
                at += WIDTH


@njit(error_model="numpy")
def _input_gradient(row, g, where, layer, chunks):
    """Add to g, at a layer's inputs, what its output gradients say."""
    padded, source, target, grown = layer.padded, layer.source, layer.target, layer.grown * WIDTH
    channels, first, last, weight = layer.channels, layer.chunk, layer.chunk + layer.chunks, layer.weight
    for j in range(layer.positions):
        for c in range(channels):
            s = target + j * padded + c
            e, x, w = spread(g, s), source + peek(where, s), weight + c * grown
            for q in range(first, last):
                at = x + peek(chunks, q)
                store(g, at, fma(e, load(row, w), load(g, at)))
                w += WIDTH


@njit(error_model="numpy")
def _backward(net, model, gradient):
    """Add an image's part to gradient (D,); the last layer's part of g is filled."""
    layers, g, first, last = net.layers, net.g, 0, net.layers.size - 1
    while not layers[first].learns:
        first += 1
    g[layers[0].target : layers[last].target] = f32(0)
    for l in range(last, first - 1, -1):
        layer = layers[l]
        for i in range(layer.target, layer.target + layer.positions * layer.padded):
            g[i] *= net.slope[i]
        if layer.learns:
            _weight_gradient(net.a, g, net.where, layer, net.chunks, gradient)
        if l > first:
            _input_gradient(net.weights[model], g, net.where, layer, net.chunks)


@njit(fastmath=CAREFUL, error_model="numpy")
def _update(optimiser, w, m, v, g, lr, decay, step):
    """A step of PyTorch's Adam, AdamW or SGD (Nesterov momentum 0.9) for a part of one model."""
    if optimiser == SGD:
        rate, decay = f32(lr), f32(decay)
        for i in range(w.size):
            e = g[i] + decay * w[i]
            m[i] = f32(0.9) * m[i] + e
            w[i] -= rate * (e + f32(0.9) * m[i])
        return
    shrink = f32(1 - lr * decay) if optimiser == ADAMW else f32(1)
    coupled = f32(decay) if optimiser == ADAM else f32(0)
    rate, root = f32(lr / (1 - 0.9**step)), f32((1 - 0.999**step) ** -0.5)
    for i in range(w.size):
        e = g[i] + coupled * w[i]
        m[i] += f32(0.1) * (e - m[i])
        v[i] = f32(0.999) * v[i] + f32(0.001) * e * e
        w[i] = shrink * w[i] - rate * m[i] / (np.sqrt(v[i]) * root + f32(1e-8))


@njit(error_model="numpy")
def _gather(images, row, out):
    """images[row] (channels, pixels) -> out, channels last."""
    channels, pixels = images.shape[1:]
    for p in range(pixels):
        for c in range(channels):
            out[p * channels + c] = images[row, c, p]


@njit(cache=True, error_model="numpy")
def train(net, m, v, optimiser, lr, decay, dropout, seeds, images, labels, rows, scale, step, losses):
    """Train every model for some steps after `step` earlier ones; adds each step's mean loss to losses (k,).

    net: as `lanes` builds it; images (n, channels, pixels), labels (n,); rows (1 or k, steps, batch), -1 for none.
    """
    last, models = net.layers[net.layers.size - 1], len(net.weights)
    z, e = net.a[last.target :][: last.channels], net.g[last.target :][: last.channels]
    gradient = np.zeros(net.weights.shape[1], f32)
    image = np.empty(images.shape[1] * images.shape[2], f32)
    for model in range(models):
        own = rows[min(model, len(rows) - 1)]  # (steps, batch)
        for s in range(len(own)):
            gradient[:] = f32(0)
            loss, i, n = 0.0, 0, (own[s] >= 0).sum()
            key = _mix(_mix(u64(seeds[model])) + u64(step + s))
            for row in own[s]:
                if row >= 0:
                    _gather(images, row, image)
                    _forward(net, model, image, dropout[model], _mix(key + u64(i)))
                    loss += _loss(z, labels[row], e, n)
                    _backward(net, model, gradient)
                    i += 1
            losses[model] += loss / n
            weights, rate = net.weights[model], lr[model] * scale[s]
            for a, b in net.learned:
                part = weights[a:b], m[model, a:b], v[model, a:b], gradient[a:b]
                _update(optimiser, *part, rate, decay[model], step + s + 1)
            for j in range(net.order.size):
                net.kernels[model, j] = weights[net.order[j]]

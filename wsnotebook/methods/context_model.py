"""The probability of every bit of a quantised matrix: is the weight zero, its sign, the bits of its magnitude's rank.

Adaptive counts of what was coded so far (columns, rows, neighbours, an earlier layer) give log odds, and logistic
mixing (PAQ: Mahoney 2005) weighs them; counts and weights learn after every row, in the encoder and in the decoder
alike. Both must get the same probability on every machine, so all of it is integer arithmetic: probabilities and counts
in units of 1/65536 (ONE), logarithms in units of 1/256 nat (UNIT).

Legend: R rows are coded a few at a time (b), their C columns at once; levels (R, C) are 0 for the codebook's centre,
1, 2, .. for the entries above it and -1, -2, .. for those below.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ONE, UNIT = 1 << 16, 256
TOP = 2838  # the largest log odds, those of 65535 : 1
E = 18518942588666869714


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """squash: log odds + TOP -> probability; logarithm: 10 bits below the leading one and its place -> log."""
    powers = [1 << 64]  # e^(k/256)
    while len(powers) < 8400:
        powers.append(powers[-1] * E >> 64)
    upper = [(power << 16) // (power + (1 << 64)) for power in powers[: TOP + 1]]
    places = ((1024 + np.arange(1024)) << np.arange(47)[:, None]).reshape(-1)
    logarithm = np.searchsorted(np.array([power >> 54 for power in powers]), places, side="right") - 1
    return np.array([ONE - p for p in upper[:0:-1]] + upper), logarithm


SQUASH, LOG = _tables()
PATTERN = np.array([[1, 2, 4, 8, 16, 32], [1] * 6])  # six neighbours -> which of them, and how many


def squash(z: np.ndarray) -> np.ndarray:
    """Log odds -> probability."""
    return SQUASH.take(z + TOP, mode="clip")


def log(n: np.ndarray) -> np.ndarray:
    """Logarithm of positive integers: a double holds them exactly, and its bits are the table's index."""
    return LOG[(n.astype(np.float64).view(np.int64) >> 42) - (1023 << 10)]


def log_ratio(a: int, b: int) -> int:
    """log(a / b) of two positive numbers."""
    i, j = a.bit_length() - 1, b.bit_length() - 1
    return int(LOG[(i << 10) + (a << 10 >> i) - 1024] - LOG[(j << 10) + (b << 10 >> j) - 1024])


class Mixer:
    """Log odds of a bit from a sum of features (k, ..), UNIT each, with weights (k,) that learn from the errors.

    A step is the gradient of the code length over its curvature of late (diagonal Newton, fading memory), so that it
    does not matter how many bits are coded at once.
    """

    def __init__(self, weights: tuple[float, ...], trust: float):
        self.weights = np.array([round(w * ONE) for w in weights])
        self.curvature = np.full(len(weights), round(trust * ONE))  # what we trust the first weights with

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return np.tensordot(self.weights, features, 1) >> 16

    def learn(self, features: np.ndarray, bits: np.ndarray, p: np.ndarray) -> None:
        """bits, p (..): what came, and the probability that it had of being a one."""
        f, p = features.reshape(len(features), -1), p.ravel()
        self.curvature += (f * f @ (p * (ONE - p) >> 16) >> 16) - (self.curvature >> 5) + 1
        step = (f @ (bits.ravel() * ONE - p)) * UNIT // self.curvature
        self.weights += np.minimum(np.maximum(step, -ONE // 8), ONE // 8)


class Counts:
    """How often something happened and how often it was expected to: two rows (2, places) of counts."""

    def __init__(self, places: int, prior: float):
        self.counts = np.zeros((2, places), np.int64)
        self.prior = round(prior * ONE)

    def ratio(self, at=slice(None)) -> np.ndarray:
        """log of happened over expected, with the prior added to both."""
        logs = log(self.counts[:, at] + self.prior)
        return logs[0] - logs[1]

    def add(self, at: np.ndarray, happened: np.ndarray, expected: np.ndarray) -> None:
        """Add amounts (..., n) at places (..., n); sums in a double are exact here."""
        places, shape = self.counts.shape[1], at.shape
        for row, amounts in zip(self.counts, (happened, expected), strict=True):
            row += np.bincount(at.ravel(), np.broadcast_to(amounts, shape).ravel(), places).astype(np.int64)


@dataclass(frozen=True)
class Frame:
    """How a tensor's levels are a matrix, and what is known of it beforehand.

    Rows are positions in planes, one after the other: pixels of an image, positions of a kernel; neighbours in a plane
    tell of each other. Planes of one row: the rows are unrelated. Links are small numbers that tell alike rows or
    columns from others: how much of an earlier layer leads to the same neuron.
    """

    rows: int
    columns: int
    above: int  # entries of the codebook above its centre
    below: int
    width: int = 1  # of a plane
    height: int = 1
    link_rows: np.ndarray | None = None  # (R,)
    link_columns: np.ndarray | None = None  # (C,)


def transmit(coder, frame: Frame, levels: np.ndarray | None = None) -> np.ndarray:
    """Code the levels (R, C), or decode them when `levels` is None; returns them.

    coder.code(probabilities of a one, bits) returns the bits (n,); a decoder's ignores those that it is given.
    """
    past = np.zeros((frame.rows + 1, frame.columns), np.int16)  # the last row stays zero
    if not frame.above + frame.below:  # one value: nothing to tell
        return past[:-1]
    mask, values, near = Mask(frame), Values(frame), Neighbours(frame)
    for rows, x, y, line in steps(frame):
        known = None if levels is None else levels[rows]
        near.look(past, rows, x, y, line)
        bits, expected = mask.code(coder, near, known)
        coded = values.code(coder, near, bits, known)
        near.add(bits, expected, coded)
        past[rows] = coded
    return past[:-1]


def steps(frame: Frame) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows (b,) that are coded at once, with x, y in their plane and a number of their line in it.

    Inside a plane they are those of one x + 2 y: left and upper neighbours, the upper right one too, come before. Of
    planes there are at once as many as an eighth of those before, within reason.
    """
    size, start = frame.width * frame.height, 0
    while start < frame.rows // size:
        planes = min(max(1, min(start // 8, 4096 // frame.columns)), frame.rows // size - start)
        for front in range(frame.width + 2 * frame.height - 2):
            y = np.arange(max(0, (front - frame.width + 2) // 2), min(frame.height, front // 2 + 1))
            x = front - 2 * y
            line = (np.arange(planes)[:, None] * frame.height + y).ravel()
            rows = ((start + np.arange(planes))[:, None] * size + y * frame.width + x).ravel()
            yield rows, np.tile(x, planes), np.tile(y, planes), line
        start += planes


class Neighbours:
    """What was coded around the current rows: levels next to them, and sums that fade with the distance.

    levels (6, b, C): left, up, up left, up right, two left, two up; zeros outside. sums (b, 2, 5, C), fast and slow
    fading: weights that are not zero, the expected number of those, positive ones, negative ones, magnitudes' ranks.
    """

    FADE = np.array([2, 3])[:, None, None]  # a step away counts 1 - 2^-2 or 1 - 2^-3 as much

    def __init__(self, frame: Frame):
        self.frame = frame
        self.lags = np.array([1, frame.width, frame.width + 1, frame.width - 1, 2, 2 * frame.width])[:, None]
        self.on_grid = frame.width * frame.height > 1

    def look(self, past: np.ndarray, rows: np.ndarray, x: np.ndarray, y: np.ndarray, line: np.ndarray) -> None:
        """Look at rows."""
        left, up, right = x > 0, y > 0, x < self.frame.width - 1
        inside = np.array([left, up, left & up, up & right, x > 1, y > 1])
        self.places = np.where(inside, rows - self.lags, -1)  # (6, b)
        self.rows, self.line, self.levels = rows, line, past[self.places]
        if not self.on_grid:
            return
        if not rows[0] % (self.frame.width * self.frame.height):  # new planes; the last line is outside
            shape = (len(rows) * self.frame.height + 1, 2, 5, self.frame.columns)
            self.along = np.zeros(shape, np.int64)  # sums along each line as far as it is coded
            self.last, self.before = np.zeros(shape, np.int64), np.zeros(shape, np.int64)  # ... with those above it
        above = np.where(up, line - 1, -1)
        along = self.along[line] * left[:, None, None, None]
        self.here = along - (along >> self.FADE)
        last = self.last[above]  # up right, or up at the end of the line
        self.up = np.where(right[:, None, None, None], self.before[above], last)
        self.up -= self.up >> self.FADE
        self.sums = self.here + last - (last >> self.FADE)

    def add(self, bits: np.ndarray, expected: np.ndarray, levels: np.ndarray) -> None:
        """The rows are coded: their bits, the expectation of those, their levels; (b, C) each."""
        if self.on_grid:
            ranks = np.maximum(np.abs(levels) - 1, 0)
            self.here += np.stack([bits * ONE, expected, (levels > 0) * ONE, (levels < 0) * ONE, ranks * ONE], 1)[
                :, None
            ]
            self.along[self.line] = self.here
            self.before[self.line] = self.last[self.line]
            self.last[self.line] = self.here + self.up


class Mask:
    """Which weights are zero. Rows go out in groups of columns, finer and finer, so that their density is known soon.

    Features: constant; density of all rows so far, of an earlier layer's alike rows, of the row to the left and of the
    row above, of the column, of this row so far; on a grid, which neighbours and how many there are, and faded sums.
    """

    def __init__(self, frame: Frame):
        self.frame = frame
        self.mixer = Mixer((-0.1, 0.95, 1, 0.2, 0.2, 1, 1, 0.65, 0.25, 0.4, 0.25)[: 11 if frame.width > 1 else 7], 80)
        self.columns, self.patterns = Counts(frame.columns, 2), Counts(64 + 7, 0.5)
        kinds = (frame.link_rows, frame.link_columns)
        self.links = [None if kind is None else Counts(int(kind.max()) + 1, 1) for kind in kinds]
        self.density = np.zeros(frame.rows + 1, np.int64)  # log odds of a row; the last one stays zero
        self.ones = self.zeros = 0
        step = 1
        while step < 16 and frame.columns >= 24 * step:
            step *= 2
        self.groups = [slice(0, None, step)]
        while step > 1:
            self.groups.append(slice(step // 2, None, step))
            step //= 2

    def code(self, coder, near: Neighbours, levels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Bits (b, C) and what was expected from densities alone."""
        shape = (len(near.rows), self.frame.columns)
        weights, f = self.mixer.weights, np.zeros((len(self.mixer.weights), *shape), np.int64)
        mean = log_ratio(2 * self.ones + 1, 2 * self.zeros + 40)
        rows = np.zeros((5, len(near.rows), 1), np.int64)
        rows[0], rows[1] = UNIT // 3, mean
        if self.links[0]:
            rows[2, :, 0] = self.links[0].ratio(self.frame.link_rows[near.rows])
        rows[3:, :, 0] = np.where(near.places[:2] < 0, 0, self.density[near.places[:2]] - mean)
        f[:5] = rows
        f[5] = self._column_ratio()
        if near.on_grid:
            pattern = np.tensordot(PATTERN, near.levels != 0, 1)
            pattern[1] += 64
            f[7:9] = self.patterns.ratio()[pattern]
            logs = log(near.sums[:, :, :2] + ONE // 2)
            f[9:] = (logs[:, :, 0] - logs[:, :, 1]).swapaxes(0, 1)
        start = np.tensordot(weights[1:5], rows[1:], 1) >> 16  # (b, 1)
        z, expected = self.mixer(f), squash(f[5] + start)
        bits, p = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        seen = due = gain = np.zeros((len(near.rows), 1), np.int64)
        for group in self.groups:
            f[6, :, group] = gain
            p[:, group] = squash(z[:, group] + (weights[6] * gain >> 16))
            known = None if levels is None else (levels[:, group] != 0).ravel()
            bits[:, group] = coder.code(p[:, group].ravel(), known).reshape(len(near.rows), -1)
            seen, due = seen + bits[:, group].sum(1, keepdims=True), due + expected[:, group].sum(1, keepdims=True)
            gain = log((seen + 2) * ONE) - log(due + 2 * ONE)
        self.mixer.learn(f, bits, p)

        density, happened = start + gain, bits.sum(0) * ONE
        self.density[near.rows] = density[:, 0]
        self.ones, self.zeros = self.ones + int(seen.sum()), self.zeros + bits.size - int(seen.sum())
        due = np.full(self.frame.columns, squash(density).sum())
        self.columns.counts += [happened, due]
        if self.links[0]:
            self.links[0].add(self.frame.link_rows[near.rows], seen[:, 0] * ONE, squash(f[5] + mean).sum(1))
        if self.links[1]:
            self.links[1].add(self.frame.link_columns, happened, due)
        expected = squash(f[5] + density)
        if near.on_grid:
            self.patterns.add(pattern, bits * ONE, expected)
        return bits, expected

    def _column_ratio(self) -> np.ndarray:
        """How much denser than the rows' density a column is; its prior is that of its link's columns."""
        if not self.links[1]:
            return self.columns.ratio()
        happened, expected = self.links[1].counts + ONE
        prior = (2 * happened * ONE // expected)[self.frame.link_columns]
        logs = log(self.columns.counts + [prior + 1, np.full(len(prior), 2 * ONE)])
        return logs[0] - logs[1]


class Values:
    """The levels of the weights that are not zero: sign first, then the rank of the magnitude from its highest bit."""

    def __init__(self, frame: Frame):
        self.frame = frame
        self.both = frame.above > 0 and frame.below > 0
        self.depth = (max(frame.above, frame.below, 1) - 1).bit_length()  # bits of a rank
        self.sign_mixer = Mixer((0, 0.1, 0, 0.8, 0.5), 10)  # constant, all, the column's, the pattern's, the sums'
        self.signs, self.patterns = Counts(frame.columns, 1), Counts(27, 1)
        # Features of a bit of the rank: its own share of ones; what the left neighbour adds; mean ranks of the column
        # and nearby against the mean of all
        self.rank_mixers = [Mixer((1.05, 0.25, 0.25, 0.35), 10) for _ in range(self.depth)]
        # Binary trees over the ranks: one a sign, and one a sign and size of the left neighbour
        self.trees = Counts((2 + 4 * 2) << self.depth, 0.4)
        self.ranks = Counts(frame.columns, 0)  # by column: sum of ranks, weights
        self.coded = 0

    def code(self, coder, near: Neighbours, bits: np.ndarray, levels: np.ndarray | None) -> np.ndarray:
        """Levels (b, C) that are zero where the bits are, in pieces that grow with what was learnt."""
        coded = np.zeros(bits.shape, np.int64)
        rows, columns = np.nonzero(bits)
        while len(rows):
            size = 32 + self.coded
            at, rows, columns = (rows[:size], columns[:size]), rows[size:], columns[size:]
            self.coded += len(at[0])
            known = None if levels is None else levels[at]
            around = near.sums[at[0], 0, 2:, at[1]].T if near.on_grid else np.zeros((3, len(at[0])), np.int64)
            nearby = near.levels[:, at[0], at[1]]
            if self.both:
                sign = self._signs(coder, at[1], nearby, around, None if levels is None else known > 0)
            else:
                sign = np.full(len(at[0]), self.frame.above > 0) * 1
            ranks = None if levels is None else np.abs(known) - 1
            ranks = self._ranks(coder, at[1], nearby[0], around, sign, ranks)
            coded[at] = np.where(sign, ranks + 1, -ranks - 1)
        return coded

    def _signs(self, coder, columns, nearby, around, signs) -> np.ndarray:
        """Signs (n,): 1 is positive. nearby (6, n): neighbours' levels; around (3, n): faded sums."""
        pattern = np.array([9, 3, 0, 1]) @ (np.sign(nearby[:4]) + 1)
        features = np.full((5, len(columns)), UNIT // 3)
        features[1] = log_ratio(*(int(n) for n in self.patterns.counts.sum(1) + ONE))
        features[2], features[3] = self.signs.ratio(columns), self.patterns.ratio(pattern)
        logs = log(around[:2] + ONE)
        features[4] = logs[0] - logs[1]
        p = squash(self.sign_mixer(features))
        signs = coder.code(p, signs)
        self.sign_mixer.learn(features, signs, p)
        self.signs.add(columns, signs * ONE, (1 - signs) * ONE)
        self.patterns.add(pattern, signs * ONE, (1 - signs) * ONE)
        return signs

    def _ranks(self, coder, columns, left, around, sign, ranks) -> np.ndarray:
        """Ranks (n,) of magnitudes, from 0. left (n,): levels of the left neighbours; sign (n,)."""
        frame, depth = self.frame, self.depth
        total, weights = (int(n) for n in self.ranks.counts.sum(1))
        mean = (total * UNIT + ONE) // (weights + ONE)
        sums = np.array([self.ranks.counts[0, columns], around[2]]) * UNIT + 2 * ONE * mean
        deviation = sums // (np.array([self.ranks.counts[1, columns], around[0] + around[1]]) + 2 * ONE) - mean
        left = np.abs(left)
        left = np.where(left, 1 + np.minimum((left - 1) * 3 // max(frame.above, frame.below), 2), 0)
        last, node = np.where(sign, frame.above, frame.below), np.ones(len(columns), np.int64)
        trees = np.array([sign, sign + 2 * left + 2]) << depth  # (2, n)
        visited, taken = [], []
        for bit in reversed(range(depth)):
            open_ = np.flatnonzero(((2 * node + 1) << bit) - (1 << depth) < last)  # where the bit can be one
            leaves = trees[:, open_] + node[open_]
            features = np.empty((4, len(open_)), np.int64)
            features[:2] = self.trees.ratio(leaves)
            features[1] -= features[0]
            features[2:] = deviation[:, open_]
            mixer = self.rank_mixers[bit]
            p = squash(mixer(features))
            ones = coder.code(p, None if ranks is None else ranks[open_] >> bit & 1)
            mixer.learn(features, ones, p)
            visited.append(leaves)
            taken.append(ones * ONE)
            node *= 2
            node[open_] += ones
        if depth:
            ones = np.concatenate(taken)
            self.trees.add(np.concatenate(visited, 1), ones, ONE - ones)
        ranks = node - (1 << depth)
        self.ranks.add(columns, ranks * ONE, np.full(len(columns), ONE))
        return ranks

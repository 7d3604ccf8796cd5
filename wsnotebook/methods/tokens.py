"""Tokens: a network as a sequence of its rows of weights, and back. The tables are made once a layout, for any zoo.

A layer's row is an output's weights and, behind them, its bias (Schuerholt et al. 2024, "SANE"). What has no rows (a
norm's scale, a class token, a running statistic) is one row. A row wider than a token is split; short rows may share
one (`pack`), so that a transformer has fewer tokens to work on: a small CNN's 48 rows are 15 tokens.

What we do differently from the public code: nothing that is learned is dropped, and a norm is two rows instead of a
token of two numbers for each channel. Most of a dense token may be padding, so networks are also given as their e real
numbers alone, `entries`, block by block: that is what the methods compute on.
"""

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from wsnotebook import memory
from wsnotebook.layout import Layout
from wsnotebook.zoo.value import Zoo

CONSTANT = 1e-8  # a layer that deviates less is not scaled


class Block(NamedTuple):
    """Tokens of one layer that have equally many columns: all of them, or the same part of every row."""

    layer: int
    tokens: range  # their places in the sequence
    columns: int  # real numbers in each
    rows: int  # that share each
    first: int  # of the len(tokens) * columns entries

    def of(self, entries: Tensor) -> Tensor:
        """Its rows (or parts of rows), out of networks' entries (n, e): (n, rows in all its tokens, columns of one)."""
        t = len(self.tokens)
        return entries[:, self.first : self.first + t * self.columns].unflatten(1, (t * self.rows, -1))


class Part(NamedTuple):
    """What a window has of a block."""

    block: int
    tokens: int
    columns: int  # numbers in each
    rows: int  # that share each


class Window(NamedTuple):
    """A stretch of w tokens of the sequence, with f entries in r rows; all block by block."""

    positions: Tensor  # (w, 3)
    parts: tuple[Part, ...]
    entries: Tensor  # (f,) int64
    token: Tensor  # (f,) int64 which of the stretch's tokens, in the sequence's order, each entry belongs to
    rows: Tensor  # (r,) int64 place of each among all rows


@dataclass(frozen=True, eq=False)
class Tokens:
    """How the d weights of a layout lie in a sequence of s tokens of `width` numbers. Made by `tokens`."""

    layout: Layout
    width: int
    layers: tuple[str, ...]  # the tensor that each layer is named by
    blocks: tuple[Block, ...]
    positions: Tensor  # (s, 3) int64: place in the sequence, layer, (first) output row
    rows: Tensor  # (r, 2) int64: layer and output row of each row (or part of one); several share a token if packed
    first_row: Tensor  # (s,) int64: the first of each token's rows
    places: Tensor  # (e,) int64: the place of each entry in the row of weights
    slots: Tensor  # (e,) int64: the place of each entry in the dense tokens, of s * width

    def __repr__(self) -> str:
        s, real = len(self), len(self.places) / (len(self) * self.width)
        return f"Tokens({s} x {self.width}, {len(self.layers)} layers, {100 * real:.1f} % real)"

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def mask(self) -> Tensor:
        """(s, width) bool: whether a weight is there, not padding."""
        real = torch.zeros(len(self) * self.width, dtype=torch.bool, device=self.slots.device)
        real[self.slots] = True
        return real.view(len(self), self.width)

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens with their tables on another device, which weights, entries and tokens are then on too."""
        tables = ("positions", "rows", "first_row", "places", "slots")
        return replace(self, **{name: getattr(self, name).to(device) for name in tables})

    def encode(self, weights: Tensor) -> Tensor:
        """Weights (n, d) -> tokens (n, s, width), padded by zeros."""
        self._check(weights)
        table = self.slots.new_full((len(self) * self.width,), self.layout.d)  # padding: the zero behind the weights
        table[self.slots] = self.places
        padded = torch.cat([weights, weights.new_zeros(len(weights), 1)], 1)
        return padded.index_select(1, table).view(-1, len(self), self.width)

    def decode(self, tokens: Tensor, rest: Tensor) -> Tensor:
        """Tokens (n, s, width) -> weights (n, d); what is in no token (statistics left out) comes from rest (d,)."""
        return self.weights(tokens.flatten(1).index_select(1, self.slots), rest)

    def entries(self, weights: Tensor) -> Tensor:
        """Weights (n, d) -> entries (n, e). Raises ValueError for another length."""
        self._check(weights)
        return weights.index_select(1, self.places)

    def weights(self, entries: Tensor, rest: Tensor) -> Tensor:
        """Entries (n, e) -> weights (n, d); what is no entry comes from rest (d,)."""
        return rest.to(entries).repeat(len(entries), 1).index_copy_(1, self.places, entries)

    def within(self, rows: Tensor, stretch: range) -> Tensor:
        """Which of these rows' tokens are in a stretch of the sequence: bool, as many as the rows."""
        ends = torch.cat([self.first_row, self.first_row.new_tensor([len(self.rows)])])
        return (rows >= ends[stretch.start]) & (rows < ends[stretch.stop])

    def window(self, start: int, stop: int) -> Window:
        """The tokens from `start` up to, not including, `stop`."""
        parts, entries, at, rows, columns, device = [], [], [], [], [], self.places.device
        for b, block in enumerate(self.blocks):
            here = _overlap(block.tokens, start, stop)
            if len(here):
                first = block.first + block.tokens.index(here[0]) * block.columns
                parts.append(Part(b, len(here), block.columns, block.rows))
                entries.append(torch.arange(first, first + len(here) * block.columns, device=device))
                at.append(torch.arange(here.start, here.stop, here.step, device=device))
                rows.append((self.first_row[at[-1], None] + torch.arange(block.rows, device=device)).flatten())
                columns.append(torch.full((len(here),), block.columns, device=device))
        at, entries = torch.cat(at), torch.cat(entries)
        token = (at - start).repeat_interleave(torch.cat(columns), output_size=len(entries))
        return Window(self.positions[at], tuple(parts), entries, token, torch.cat(rows))

    def _check(self, weights: Tensor) -> None:
        if weights.ndim != 2 or weights.shape[1] != self.layout.d:
            seen = tuple(weights.shape)
            raise ValueError(f"weights: shape {seen}, these tokens are of (n, {self.layout.d}): another architecture?")


def tokens(layout: Layout, width: int | None = None, *, statistics: bool = False, pack: int = 1) -> Tokens:
    """The tokens of a layout.

    width: numbers in a token; None: the widest row's, its bias included. statistics: running ones too. pack: rows, at
    most, that share a token; as many as fit and divide their layer's number of rows do.
    Raises ValueError for a width or pack below 1, and when nothing is left to tokenise.
    """
    layers = _layers(layout, statistics)
    if not layers:
        raise ValueError(f"layout: {', '.join(layout.names)} are running statistics alone; pass statistics=True")
    if width is None:
        width = max(rows.shape[1] for rows in layers.values())
    if width < 1 or pack < 1:
        raise ValueError(f"width={width}, pack={pack}: expected at least 1; width=None takes the widest row's")
    blocks, positions, places, slots, owners, counts = [], [], [], [], [], []
    start = first = 0
    for layer, rows in enumerate(layers.values()):
        together = max([k for k in range(1, pack + 1) if len(rows) % k == 0 and k * rows.shape[1] <= width], default=1)
        table = rows.reshape(-1, together * rows.shape[1])  # (t, columns)
        parts = table.split(width, 1)
        sequence = range(start, start + len(table) * len(parts))
        for p, part in enumerate(parts):
            at = sequence[p :: len(parts)]
            blocks.append(Block(layer, at, part.shape[1], together, first))
            places.append(part.flatten())
            slots.append((torch.tensor(at)[:, None] * width + torch.arange(part.shape[1])).flatten())
            first += part.numel()
        row = torch.arange(len(table)).repeat_interleave(len(parts)) * together
        positions.append(torch.stack([torch.tensor(sequence), torch.full_like(row, layer), row], 1))
        row = torch.arange(len(rows)).repeat_interleave(len(parts))
        owners.append(torch.stack([torch.full_like(row, layer), row], 1))
        counts.append(torch.full((len(sequence),), together))
        start = sequence.stop
    counts = torch.cat(counts)
    return Tokens(
        layout=layout,
        width=width,
        layers=tuple(layers),
        blocks=tuple(blocks),
        positions=torch.cat(positions),
        rows=torch.cat(owners),
        first_row=counts.cumsum(0) - counts,
        places=torch.cat(places),
        slots=torch.cat(slots),
    )


def _layers(layout: Layout, statistics: bool) -> dict[str, Tensor]:
    """{tensor: places (rows, columns) in the row of weights}, biases with the weights they belong to."""
    places = layout.unflatten(torch.arange(layout.d))
    biases = {}
    for name, table in places.items():
        bias = places.get(name.removesuffix("weight") + "bias") if name.endswith("weight") else None
        if bias is not None and table.ndim > 1 and bias.shape == table.shape[:1]:
            biases[name] = name.removesuffix("weight") + "bias"
    layers = {}
    for name, table, kind in zip(layout.names, places.values(), layout.kinds, strict=True):
        if name in biases.values() or (kind == "statistic" and not statistics):
            continue
        if not name.endswith("weight"):  # such as a table of positions (1, places, dim)
            table = table.view([size for size in table.shape if size > 1] or [1])
        rows = table.flatten(1) if table.ndim > 1 else table.view(1, -1)
        layers[name] = torch.cat([rows, places[biases[name]][:, None]], 1) if name in biases else rows
    return layers


def _overlap(places: range, start: int, stop: int) -> range:
    """Those of the places that are in start .. stop."""
    first, last = (min(max(-((places.start - at) // places.step), 0), len(places)) for at in (start, stop))
    return places[first:last]


# ---- standardised, layer by layer --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Standardised:
    """A zoo's networks as entries of mean 0 and deviation 1 in every layer. Fitted to a zoo by `standardise`."""

    tokens: Tokens
    mean: Tensor  # (e,) the layer's
    deviation: Tensor  # (e,) the layer's
    rest: Tensor  # (d,) mean of the zoo: what decoded networks have where nothing is tokenised
    like: Zoo  # a network of every activation: what the architecture of all is

    def encode(self, weights: Tensor) -> Tensor:
        """Weights (n, d) -> entries (n, e)."""
        return (self.tokens.entries(weights.to(self.mean)) - self.mean) / self.deviation

    def decode(self, entries: Tensor) -> Tensor:
        """Entries (n, e) -> weights (n, d)."""
        return self.tokens.weights(entries * self.deviation + self.mean, self.rest)

    def zoo(self, entries: Tensor, like: Zoo | None = None) -> Zoo:
        """Entries (n, e) -> networks, with the facts model, parent and activation (if there is one).

        like: the networks, row by row, that these come from: fact "parent", and their activations. None: from none.
        Running statistics that are not tokenised are the fitted zoo's mean: see `evaluation.recalibrated`.
        Raises ValueError when their numbers differ, and for like=None and a fitted zoo of several activations.
        """
        weights = self.decode(entries)
        if like is None:
            return self.like.made(weights)
        if len(like) != len(weights):
            raise ValueError(f"like: {len(like)} networks for {len(weights)} decoded ones; expected one for each")
        facts = {"model": np.arange(len(like)), "parent": like.facts.get("model", np.arange(len(like)))}
        facts |= {fact: like.facts[fact] for fact in ("activation",) if fact in like.facts}
        return replace(like, weights=weights, facts=facts)


class Embedder(Protocol):
    """What embeds networks and decodes them: `sane.Sane`, `layer_pca.LayerPCA`."""

    standardised: Standardised

    def embed(self, zoo: Zoo) -> Tensor: ...  # (n, r, z), one a row of weights

    def decode(self, z: Tensor, like: Zoo | None = None) -> Zoo: ...


def standardise(zoo: Zoo, tokens: Tokens) -> Standardised:
    """Fit means and deviations of a zoo's layers, over all networks and rows. Raises ValueError for an empty zoo."""
    if not len(zoo):
        raise ValueError("zoo: it holds no networks; expected at least one to standardise by")
    tokens = tokens.to(zoo.weights.device)
    layers = itertools.groupby(tokens.blocks, key=lambda block: block.layer)
    sizes = [sum(len(block.tokens) * block.columns for block in blocks) for _, blocks in layers]
    n, variance, mean = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)  # (layers,)
    for block in zoo.blocks():
        parts = tokens.entries(block.weights).split(sizes, 1)
        own = torch.stack([torch.stack(torch.var_mean(part.double(), correction=0)) for part in parts], 1)
        n += len(block)
        share, step = len(block) / n, own[1] - mean
        variance = (1 - share) * variance + share * own[0] + share * (1 - share) * step.square()
        mean = mean + share * step
    deviation = torch.where(variance.sqrt() > CONSTANT, variance.sqrt(), 1.0)
    mean, deviation = (each.float().repeat_interleave(tokens.places.new_tensor(sizes)) for each in (mean, deviation))
    _, kinds = np.unique(zoo.facts.get("activation", np.zeros(len(zoo))), return_index=True)
    return Standardised(tokens, mean, deviation, memory.mean(zoo.weights), zoo.filter(kinds))

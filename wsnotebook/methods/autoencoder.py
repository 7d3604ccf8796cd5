"""The autoencoder of tokens: a transformer to z numbers a row, another back, and a head for the contrast.

Schuerholt et al. 2024: pre-norm blocks without biases (GPT-2's, not causal), the same positions on both sides. What we
do differently: positions are waves, so they fit any length; the head pools over rows, so it takes any window; a token
of several rows has latents for each of them; and around both transformers goes a linear path, per-layer PCA there and
back (`LayerPCA`), which they correct where it loses something: a row of fewer than z numbers comes back as it was, and
the encoder has the rest of its latents to itself; of a longer row's it has an eighth. What the mean latent is to tell
(s(W)) has such a path too: principal components of the rows' moments go to latents that are free.

Tokens come as their real numbers alone, block by block (`tokens.Window`). A padded token (width,) times a matrix
(width, dim) is its real columns times the matrix's first rows: that is what is computed, so no padding is carried, nor
attended to. Attention does not mind the order of tokens; their positions say it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.methods.layer_pca import components
from wsnotebook.methods.tokens import Part, Standardised, Tokens, Window
from wsnotebook.zoo.value import Zoo

INIT = 0.02  # standard deviation of initial weights
WAVES = 10_000.0  # the longest wave of a position, in units of 2 pi places
MOMENTS = 6  # of a row, that the encoder is given beside its numbers
HEAD = 30  # width of the projection head
WHITE = 1e-4  # share of the largest variance below which a principal component of moments counts less
LOUD = 3.0  # size of a moment's principal component in the mean latent, times the number of layers
HIDDEN = 2**22  # numbers in a transformer's hidden layer that are worked on at once


class Autoencoder(nn.Module):
    """Windows' entries (n, f) -> latents (n, r, z) -> entries (n, f), all block by block.

    width: of a token; rows: that share a token, at most. linear: (means, bases, told), as of `linear_path`,
    which is added on both ways (the transformers start by adding nothing); None: no such path, as in the paper.
    facts: how many numbers the mean latent is to tell, linearly; the encoder then also sees the moments of each row.
    """

    def __init__(
        self,
        width: int,
        rows: int,
        dim: int,
        heads: int,
        blocks: int,
        z: int,
        linear: tuple | None = None,
        facts: int = 1,
    ):
        super().__init__()
        self.z, self.linear = z, linear
        self.read, self.write = (nn.Parameter(INIT * torch.randn(width, dim)) for _ in range(2))
        self.to_z, self.from_z = (nn.Parameter(INIT * torch.randn(rows * z, dim)) for _ in range(2))
        self.positions = Positions(dim)
        self.encoder, self.decoder = (nn.Sequential(*(Block(dim, heads, blocks) for _ in range(blocks))) for _ in "zx")
        self.head = nn.Sequential(nn.Linear(z, HEAD), nn.LayerNorm(HEAD), nn.GELU(), nn.Linear(HEAD, HEAD))
        self.facts = nn.Linear(z, facts) if facts else None
        self.sense = nn.Parameter(INIT * torch.randn(rows * MOMENTS, dim)) if facts else None
        if linear is not None:
            nn.init.zeros_(self.to_z)
            nn.init.zeros_(self.write)

    def encode(self, x: Tensor, window: Window) -> Tensor:
        """Entries (n, f) -> latents (n, r, z)."""
        parts = window.parts
        tokens = x.split([p.tokens * p.columns for p in parts], 1)
        h = [own.unflatten(1, (p.tokens, -1)) @ self.read[: p.columns] for own, p in zip(tokens, parts, strict=True)]
        if self.sense is not None:
            seen = [moments(own.unflatten(1, (p.tokens, p.rows, -1))) for own, p in zip(tokens, parts, strict=True)]
            h = [one + own.flatten(2) @ self.sense[: own[0, 0].numel()] for one, own in zip(h, seen, strict=True)]
        h = self.encoder(torch.cat(h, 1) + self.positions(window.positions)).split([p.tokens for p in parts], 1)
        z = [(own @ self.to_z[: p.rows * self.z].T).flatten(1) for own, p in zip(h, parts, strict=True)]
        z = torch.cat(z, 1).unflatten(1, (-1, self.z))
        if self.linear is None:
            return z
        means, bases, told = self.linear
        rows = [own.unflatten(1, (p.tokens * p.rows, -1)) for own, p in zip(tokens, parts, strict=True)]
        straight = [(own - means[p.block]) @ bases[p.block] for own, p in zip(rows, parts, strict=True)]
        if told:
            straight = [
                one + told[p.block](own.flatten(1, 2)) for one, own, p in zip(straight, seen, parts, strict=True)
            ]
        return z * self._free(window) + torch.cat(straight, 1)

    def decode(self, z: Tensor, window: Window) -> Tensor:
        """Latents (n, r, z) -> entries (n, f)."""
        parts = window.parts
        rows = z.split([p.tokens * p.rows for p in parts], 1)
        h = [
            own.reshape(len(z), p.tokens, -1) @ self.from_z[: p.rows * self.z]
            for own, p in zip(rows, parts, strict=True)
        ]
        h = self.decoder(torch.cat(h, 1) + self.positions(window.positions)).split([p.tokens for p in parts], 1)
        x = [(own @ self.write[: p.columns].T).flatten(1) for own, p in zip(h, parts, strict=True)]
        if self.linear is None:
            return torch.cat(x, 1)
        means, bases, _ = self.linear
        straight = [(own @ bases[p.block].T + means[p.block]).flatten(1) for own, p in zip(rows, parts, strict=True)]
        x = [b if self._lossless(p) else a + b for a, b, p in zip(x, straight, parts, strict=True)]
        return torch.cat(x, 1)

    def _lossless(self, part: Part) -> bool:
        """Whether a row has fewer numbers than latents."""
        return part.columns // part.rows < self.z

    def _free(self, window: Window) -> Tensor:
        """(r, z) 1 where latents are the encoder's: what a lossless row leaves, an eighth of a longer one's."""
        z = torch.arange(self.z, device=self.read.device)
        free = [
            (z >= (p.columns // p.rows if self._lossless(p) else straight(self.z))).expand(p.tokens * p.rows, -1)
            for p in window.parts
        ]
        return torch.cat(free).to(self.read)

    def project(self, z: Tensor) -> Tensor:
        """Latents (n, r, z) of windows of any length -> what the contrast compares, (n, 30)."""
        return self.head(z.mean(1))

    def tell(self, z: Tensor) -> Tensor:
        """Latents (n, r, z) of windows of any length -> the facts that their mean tells, (n, facts)."""
        return self.facts(z.mean(1))


def linear_path(standardised: Standardised, zoo: Zoo, z: int, tell: bool) -> tuple[tuple, tuple, tuple]:
    """(means, bases, told) by a zoo's networks: a per-layer PCA that leaves the encoder latents of every row.

    told: what is added to them of each block's rows, `Told` of their moments; empty if not to tell.
    """
    means, bases = components(standardised, zoo, z)
    taken = torch.arange(z, device=zoo.weights.device) < straight(z)
    bases = tuple(basis if len(basis) < z else basis * taken for basis in bases)
    return means, bases, _told(standardised, zoo, bases) if tell else ()


class Told(NamedTuple):
    """A map of a row's moments (..., MOMENTS) to latents (..., z) that PCA leaves free in this layer."""

    mean: Tensor  # (MOMENTS,)
    basis: Tensor  # (MOMENTS, z)

    def __call__(self, seen: Tensor) -> Tensor:
        return (seen - self.mean) @ self.basis


def _told(standardised: Standardised, zoo: Zoo, bases: tuple[Tensor, ...]) -> tuple[Told, ...]:
    """Principal components of the moments of each block, a network's mean of its rows being one point.

    They go where no component of the block's own goes, and few of other blocks', so that a mean over all rows keeps
    them apart; LOUD times as large there as one of other rows.
    """
    blocks = standardised.tokens.blocks
    counts = [len(block.tokens) * block.rows for block in blocks]
    taken = torch.stack([(basis != 0).any(0) for basis in bases])  # (blocks, z)
    rows = torch.tensor(counts, device=taken.device)
    crowd = (taken * rows[:, None]).sum(0) / sum(counts)  # (z,) of all rows, those with something there
    seen = [
        [moments(block.of(entries)).mean(1).double() for block in blocks]
        for entries in (standardised.encode(some.weights) for some in zoo.blocks())
    ]
    told = [None] * len(blocks)
    for b in taken.sum(1).argsort(descending=True).tolist():  # those with least room first
        own = torch.cat([part[b] for part in seen])  # (n, MOMENTS)
        mean = own.mean(0)
        values, vectors = torch.linalg.eigh((own - mean).T @ (own - mean) / len(own))
        whitened = (vectors / (values + WHITE * values[-1]).clamp(min=WHITE).sqrt()).flip(1)
        place = (crowd + len(blocks) * taken[b]).argsort(stable=True)[: min(MOMENTS, int((~taken[b]).sum()))]
        crowd[place] += 1
        basis = own.new_zeros(MOMENTS, len(crowd))
        basis[:, place] = LOUD * sum(counts) / (len(blocks) * counts[b]) * whitened[:, : len(place)]
        told[b] = Told(mean.float(), basis.float())
    return tuple(told)


def straight(z: int) -> int:
    """How many of z latents are principal components, in a row of more numbers."""
    return z - max(1, z // 8)


def moments(rows: Tensor) -> Tensor:
    """Rows (..., columns) -> (..., MOMENTS): what their layer's statistics are made of, and no linear map sees."""
    size = rows.square().mean(-1)
    return torch.stack(
        [rows.mean(-1), rows.abs().mean(-1), size, (size + 1e-6).log(), rows.amin(-1), rows.amax(-1)], -1
    )


class Positions(nn.Module):
    """A token's place in the sequence, layer and row (w, 3) -> (w, dim): sines and cosines, and a linear map."""

    def __init__(self, dim: int):
        super().__init__()
        waves = max(1, dim // 6)
        self.register_buffer("frequencies", WAVES ** -(torch.arange(waves) / waves))
        self.map = linear_map(6 * waves, dim)

    def forward(self, positions: Tensor) -> Tensor:
        angles = (positions[..., None] * self.frequencies).flatten(1)
        return self.map(torch.cat([angles.sin(), angles.cos()], 1))


class Block(nn.Module):
    """Attention and a perceptron four times as wide, each of a norm and added to its input (n, w, dim); no biases."""

    def __init__(self, dim: int, heads: int, blocks: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim, bias=False) for _ in range(2))
        last = INIT / math.sqrt(2 * blocks)  # the sum of all residuals then has a size of its own
        self.qkv, self.out = linear_map(dim, 3 * dim), linear_map(dim, dim, last)
        self.up, self.down = linear_map(dim, 4 * dim), linear_map(4 * dim, dim, last)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norms[1](h))))


def linear_map(inputs: int, outputs: int, deviation: float = INIT) -> nn.Linear:
    """A linear layer without a bias."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=deviation)
    return layer


def contrast(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent: two views (n, p) of n networks; each view is to be nearest its partner among all 2 n - 1 others."""
    both = F.normalize(torch.cat([a, b]), dim=1)
    n, similarity = len(a), both @ both.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, torch.arange(2 * n, device=a.device).roll(n))


# ---- whole networks, of any number of tokens ---------------------------------------------------------------------


def encoded(network: Autoencoder, tokens: Tokens, entries: Tensor, window: int, halo: int) -> Tensor:
    """Entries (n, e) of networks -> latents (n, r, z) in the sequence's order, by `stretches`."""
    z = entries.new_empty(len(entries), len(tokens.rows), network.z)
    for seen, kept in stretches(len(tokens), window, halo):
        here = tokens.window(seen.start, seen.stop)
        wanted = tokens.within(here.rows, kept)
        for some in _portions(len(entries), len(seen), network):
            z[some, here.rows[wanted]] = network.encode(entries[some][:, here.entries], here)[:, wanted]
    return z


def decoded(network: Autoencoder, tokens: Tokens, z: Tensor, window: int, halo: int) -> Tensor:
    """Latents (n, r, z) of networks in the sequence's order -> entries (n, e), by `stretches`."""
    entries = z.new_empty(len(z), len(tokens.places))
    for seen, kept in stretches(len(tokens), window, halo):
        here = tokens.window(seen.start, seen.stop)
        wanted = (here.token >= kept.start - seen.start) & (here.token < kept.stop - seen.start)
        for some in _portions(len(z), len(seen), network):
            entries[some, here.entries[wanted]] = network.decode(z[some][:, here.rows], here)[:, wanted]
    return entries


def stretches(s: int, window: int, halo: int) -> Iterator[tuple[range, range]]:
    """(tokens seen, those of them whose results are kept) until all s are: windows, with halos beside what is kept."""
    if s <= window:
        yield range(s), range(s)
        return
    for first in range(0, s, window - 2 * halo):
        start = min(max(first - halo, 0), s - window)
        yield range(start, start + window), range(first, min(first + window - 2 * halo, s))


def _portions(n: int, w: int, network: Autoencoder) -> Iterator[slice]:
    """The n networks, as many at once as `HIDDEN` allows."""
    size = max(1, HIDDEN // (w * 4 * network.read.shape[1]))
    return (slice(first, min(first + size, n)) for first in range(0, n, size))

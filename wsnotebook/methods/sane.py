"""SANE: networks as sequences of latents, by an autoencoder of their rows of weights, and back to networks.

Schuerholt et al. 2024, "Towards Scalable and Versatile Weight Space Learning". Per step, with x a zoo's tokens,
standardised layer by layer, x' and x'' two views of them (noise; units in another order; tokens erased), z' and z'' the
latents of these, p the projection head:

    loss = (1 - gamma - delta) mean (decode(z') - x)^2 + gamma NT-Xent(p(z'), p(z'')) + delta mean (t(mean z') - s)^2

What we do differently from the public code: standardisation is fitted on training networks alone; augmentations are
really on (fresh permutations in every step, not stored copies); the mean is over real weights, no padding; the target
is clean; one view is decoded; all windows of a step start at the same token, so that the contrast tells networks apart
and not places; short rows share a token, so that the transformers have less to do; a linear path (per-layer PCA) goes
around them; a linear map t of the mean latent is to tell the layers' statistics s (`properties.weight_statistics`), or
the mean would hold what tells networks apart and not what they are like; losses on held-out networks compare runs.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from wsnotebook.datasets import cache_folder
from wsnotebook.methods import sane_training
from wsnotebook.methods.autoencoder import Autoencoder, decoded, encoded, linear_path
from wsnotebook.methods.tokens import Standardised, Tokens, standardise, tokens
from wsnotebook.training import check_at_least, check_choice, fingerprint, run_to_end
from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True)
class Config:
    """How the autoencoder is built and trained. `preset` has the paper's settings and ours."""

    width: int | None = None  # numbers in a token; None: the widest row's
    statistics: bool = False  # whether running statistics of batch norm are tokens too
    pack: int = 8  # rows, at most, that share a token if they fit and divide their layer's; 1: the paper's
    window: int = 64  # tokens a step sees; shorter sequences are seen whole
    halo: int = 8  # tokens on each side that only give context, when a longer sequence is embedded or decoded
    z: int = 64  # numbers that a row is reduced to
    dim: int = 96  # width of the transformers
    heads: int = 4  # of their attention
    blocks: int = 2  # of each of the two
    linear: bool = True  # whether per-layer PCA goes there and back beside them; the paper has no such path
    noise: float = 0.1  # standard deviation of the factors 1 + noise on the weights of both views
    erase: float = 0.0  # probability that a view lacks a token
    permute: bool = True  # whether the second view has its units in random order, in which the function is the same
    target: str = "clean"  # what is to be decoded: clean | noisy (the view itself, as in the public code)
    decode: str = "first"  # views that are decoded: first | both (as in the public code)
    gamma: float = 0.05  # share of the contrast in the loss
    delta: float = 0.3  # share in the loss of what the mean latent tells of s(W); the paper has no such part
    temperature: float = 0.1  # of the contrast
    iterations: int = 1_000  # optimiser's steps
    batch: int = 64  # networks a step
    lr: float = 3e-3  # AdamW's largest learning rate: after 30 % of warm-up from 1 / 25 of it, before a cosine to 1e-4
    weight_decay: float = 0.01  # decoupled; the paper has 3e-9, with which small zoos are learned by heart
    clip: float = 2.0  # largest norm of a gradient
    held_out: float = 0.1  # share of the models that is not trained on, but validated on
    seed: int = 0  # of weights, batches and views

    def __post_init__(self):
        check_choice("target", self.target, ("clean", "noisy"))
        check_choice("decode", self.decode, ("first", "both"))
        check_at_least(
            self,
            window=1,
            halo=0,
            z=1,
            pack=1,
            dim=6,
            heads=1,
            blocks=0,
            noise=0,
            erase=0,
            gamma=0,
            delta=0,
            iterations=0,
        )
        check_at_least(self, temperature=1e-6, batch=2, lr=0, weight_decay=0, clip=1e-9, held_out=1e-9)
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if max(self.erase, self.gamma + self.delta, self.held_out) >= 1:
            shares = f"erase={self.erase}, gamma + delta={self.gamma + self.delta}, held_out={self.held_out}"
            raise ValueError(f"{shares}: expected below 1")
        if self.window <= 2 * self.halo:
            raise ValueError(f"window={self.window}, halo={self.halo}: expected a window wider than both its halos")


def preset(name: str, zoo: Zoo, **changes) -> Config:
    """The settings "paper" (table 8, for small CNNs: 50 epochs, each showing a network three times) or "ours", changed.

    Raises ValueError for another name.
    """
    check_choice("preset", name, ("paper", "ours"))
    if name == "ours":
        return Config(**changes)
    paper = Config(
        width=289,
        pack=1,
        window=32,
        z=128,
        dim=1024,
        heads=8,
        blocks=4,
        linear=False,
        delta=0.0,
        target="noisy",
        decode="both",
        iterations=50 * 3 * max(1, len(zoo) // 32),
        batch=32,
        lr=1e-4,
        gamma=0.05,
        weight_decay=3e-9,
    )
    return replace(paper, **changes)


@dataclass(frozen=True, eq=False)
class Sane:
    """A trained autoencoder of networks. History: an entry every 50 iterations, entry 0 before the first.

    Its fields: iteration; loss, reconstruction, contrast, told, means over these iterations; validation_loss, the mean
    square error of a held-out network's standardised weight without augmentation (1: as good as the layers' means);
    cpu_seconds, so far.
    """

    config: Config
    standardised: Standardised  # by the networks trained on
    network: Autoencoder
    history: dict[str, list[float]]
    finished: bool = True  # False: stopped early (and usable all the same)

    def __repr__(self) -> str:
        return f"Sane({self.tokens!r}, z={self.config.z}, {self.history['iteration'][-1]} iterations)"

    @property
    def tokens(self) -> Tokens:
        return self.standardised.tokens

    @torch.no_grad()
    def embed(self, zoo: Zoo) -> Tensor:
        """Networks -> latents (n, r, z), one a row, however many. Raises ValueError for another architecture."""
        shape = self.config.window, self.config.halo
        parts = (self.standardised.encode(some.weights) for some in zoo.blocks())
        return torch.cat([encoded(self.network, self.tokens, entries, *shape) for entries in parts])

    def mean(self, zoo: Zoo) -> Tensor:
        """Networks -> the mean of their latents over the rows, (n, z): what properties are read from."""
        return self.embed(zoo).mean(1)

    @torch.no_grad()
    def decode(self, z: Tensor, like: Zoo | None = None) -> Zoo:
        """Latents (n, r, z) -> networks, with the facts model, parent and activation.

        like: the networks, row by row, that the latents come from; None: none (fact "parent" is -1).
        Raises ValueError for latents of another shape, and what `Standardised.zoo` does.
        """
        expected = (len(self.tokens.rows), self.config.z)
        if z.shape[1:] != expected:
            raise ValueError(f"z: shape {tuple(z.shape)}, expected (n, {expected[0]}, {expected[1]}) of these rows")
        entries = decoded(self.network, self.tokens, z, self.config.window, self.config.halo)
        return self.standardised.zoo(entries, like)

    def transferred(self, anchors: Zoo) -> "Sane":
        """The same transformers for another architecture: tokens, standardisation, linear path by a few networks of it.

        Raises ValueError for an empty zoo.
        """
        old = self.config
        of = tokens(anchors.layout, self.tokens.width, statistics=old.statistics, pack=old.pack)
        standardised, network = standardise(anchors, of), copy.deepcopy(self.network)
        if network.linear is not None:
            network.linear = linear_path(standardised, anchors, old.z, old.delta > 0)
        return replace(self, standardised=standardised, network=network)


def train(zoo: Zoo, config: Config = Config(), *, x: Tensor | None = None, keep: bool = False) -> Sane:
    """Train the autoencoder on a zoo's networks, best aligned ones (`symmetry.align`).

    x (1, ...): a sample input, needed to permute your own networks alone. keep: store the state in the cache folder,
    under the hash of zoo and config; the same call later goes on from there, or returns at once. An interrupt (Ctrl-C,
    the notebook's stop button) leaves a usable result with `finished` False.
    Raises ValueError for a zoo of too few models, networks that cannot be permuted, and when the loss diverges.
    """
    run = sane_training.Run(zoo, config, x)
    finished = run_to_end(run, _kept_path(zoo, config) if keep else None, "SANE", "validation_loss")
    return Sane(config, run.standardised, run.network, run.history, finished)


def _kept_path(zoo: Zoo, config: Config) -> Path:
    """Where a run's state is kept: one file for each (config, zoo, package version)."""
    models = zoo.facts["model"].tolist() if "model" in zoo.facts else None
    name = fingerprint(config, zoo.network, zoo.layout, zoo.weights, models)
    return cache_folder() / "results" / f"sane-{name}.pt"

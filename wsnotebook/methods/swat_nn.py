"""SWAT-NN: an autoencoder of small networks, so that architecture and weights are searched for in one latent space.

Huang et al. 2025. Per step, with m networks of the stream, f_k their functions, z_k latents, g_d(z) the network that z
decodes to at depth d, and c falling along a cosine:

    loss = mean_k log(1 + FVU(g_{d_k}(z_k + noise), f_k)) + c mean_k |parameters of g_{d_k}(z_k + noise) - those of k|

What we do differently from the public code: the second term, without which minutes of training give nothing; FVU
instead of raw square errors, which a few large networks dominate; networks are decoded at their own depth (`cross`:
some at another too) instead of at all, of which the best counted; units in canonical order, so that networks that
differ by the order of their units have one latent; a little noise on latents: neighbours decode to like functions.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from wsnotebook.datasets import cache_folder
from wsnotebook.methods import swat_stream, swat_training
from wsnotebook.methods.mlp_matrix import (
    Form,
    Parts,
    canonical,
    check_depth,
    evaluate,
    hardened,
    permuted,
    random_orders,
)
from wsnotebook.methods.swat_autoencoder import Autoencoder, soft
from wsnotebook.methods.swat_stream import Stream
from wsnotebook.training import check_at_least, check_choice, epoch_randomness, fingerprint, run_to_end


@dataclass(frozen=True)
class Config:
    """How the autoencoder is built and trained. `preset` has the paper's settings and ours."""

    form: Form = Form()  # of the networks
    stream: Stream = field(default_factory=Stream)  # that they are drawn from
    order: str = "canonical"  # in which the encoder sees units: canonical | random (what is decoded is canonical)
    z: int | None = 64  # numbers that a row is reduced to; None: the encoder's hidden state itself
    dim: int = 96  # width of the transformers
    heads: int = 4  # of their attention
    blocks: int = 2  # of each of them
    linear: bool = True  # whether a linear map goes there and back beside them
    shared: bool = True  # one decoder, told the depth; False: one for each depth
    causal: bool = False  # whether a row sees only those before it
    places: int | None = None  # that a transformer has positions for; None: the form's rows
    loss: str = "own"  # own: as above | best: raw square error at the best of all depths (the public code)
    parameters: float = 30.0  # c at the start
    floor: float = 0.1  # ... and its share of that at the end
    cross: float = 0.0  # share of a batch that is decoded at another depth too: minutes do not teach that (`Report`)
    noise: float = 0.1  # standard deviation of the noise on latents, whose mean square is 1
    points: int = 64  # inputs that functions are compared at, new ones each step
    iterations: int = 5_000  # optimiser's steps
    batch: int = 64  # networks a step
    lr: float = 3e-3  # AdamW's largest learning rate: after 30 % of warm-up from 1 / 25 of it, before a cosine to 1e-4
    weight_decay: float = 0.01  # decoupled
    clip: float = 1.0  # largest norm of a gradient
    seed: int = 0  # of weights, networks, points and noise

    def __post_init__(self):
        check_choice("order", self.order, ("canonical", "random"))
        check_choice("loss", self.loss, ("own", "best"))
        check_at_least(self, dim=1, heads=1, blocks=0, parameters=0, floor=0, cross=0, noise=0, points=1, iterations=0)
        check_at_least(self, batch=1, lr=0, weight_decay=0, clip=1e-9)
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if self.z is None and self.linear:
            raise ValueError("z=None, linear=True: a linear path needs a z of its own, as z=64")
        if self.z is not None and self.z < 1:
            raise ValueError(f"z={self.z}: expected at least 1, or None")
        if self.places is not None and self.places < self.form.rows:
            raise ValueError(f"places={self.places}: expected at least the form's {self.form.rows} rows")
        if self.cross > 1:
            raise ValueError(f"cross={self.cross}: expected a share of a batch")


def preset(name: str, **changes) -> Config:
    """The settings "paper" (five transformers of GPT-2's small size, 2.55 M steps; no dropout) or "ours", changed.

    Raises ValueError for another name.
    """
    check_choice("preset", name, ("paper", "ours"))
    if name == "ours":
        return Config(**changes)
    size = {"z": None, "dim": 768, "heads": 12, "blocks": 12, "linear": False}
    kind = {"shared": False, "causal": True, "places": 1024, "order": "random", "noise": 0.0}
    work = {"loss": "best", "points": 1000, "iterations": 51 * 50_001, "lr": 1e-4, "weight_decay": 0.0}
    return Config(**{"stream": swat_stream.preset("paper")} | size | kind | work | changes)


@dataclass(frozen=True, eq=False)
class Report:
    """How well networks come back, each decoded at every depth."""

    depth: Tensor  # (n,) their own
    fvu: Tensor  # (n, L) decoded at depth 1, ..., L; 1: as good as a constant
    plain: Tensor  # (n,) decoded at their own, and hardened

    @property
    def own(self) -> Tensor:
        """(n,) FVU at the networks' own depth."""
        return self.fvu.gather(1, self.depth[:, None] - 1)[:, 0]

    def table(self) -> Tensor:
        """(L, L) median FVU: a row for each own depth, a column for each decoded one; NaN without such networks."""
        own = (self.fvu[self.depth == d] for d in range(1, self.fvu.shape[1] + 1))
        return torch.stack([part.nanmedian(0).values if len(part) else self.fvu[0] * torch.nan for part in own])


@dataclass(frozen=True, eq=False)
class Swat:
    """A trained autoencoder of small networks. History: an entry every 50 iterations, entry 0 before the first.

    Its fields: iteration; loss, functional and parameters (its two parts), means over these iterations; fvu_1, fvu_2,
    ...: median FVU of held-out networks of each depth, decoded at their own; cpu_seconds, so far.
    """

    config: Config
    network: Autoencoder
    history: dict[str, list[float]]
    finished: bool = True  # False: stopped early (and usable all the same)

    def __repr__(self) -> str:
        z = self.config.z or self.config.dim
        return f"Swat({self.config.form}, z={self.config.form.rows} x {z}, {self.history['iteration'][-1]} iterations)"

    @torch.no_grad()
    def embed(self, parts: Parts) -> Tensor:
        """Networks -> latents (n, H, z). Raises ValueError for networks of another form."""
        parts = parts.to(self.network.scale.device)
        return self.network.encode(canonical(self.config.form, parts) if self.config.order == "canonical" else parts)

    def decode(self, z: Tensor, depth: Tensor, temperature: float = 1.0) -> Parts:
        """Latents (n, H, z) -> networks of these depths (n,), with soft activations and masks; differentiable.

        temperature: of the activations; towards 0 one has it all. Raises ValueError for another shape or depth.
        """
        form, expected = self.config.form, (self.config.form.rows, self.config.z or self.config.dim)
        if z.shape[1:] != expected or depth.shape != z.shape[:1]:
            seen = f"z: shape {tuple(z.shape)}, depth: shape {tuple(depth.shape)}"
            raise ValueError(f"{seen}, expected (n, {expected[0]}, {expected[1]}) and (n,)")
        check_depth(form, depth)
        z, depth = z.to(self.network.scale.device), depth.to(self.network.scale.device)
        return soft(form, self.network.decode(z, depth), temperature)

    @torch.no_grad()
    def report(self, parts: Parts, points: int = 256, seed: int = 0) -> Report:
        """FVU of networks that were embedded and decoded, at each depth, on random inputs."""
        form, z = self.config.form, self.embed(parts)
        parts = parts.to(z.device)
        with epoch_randomness(seed, -3, swat_training.CPU):
            x = swat_training.points(form, points).to(z.device)
        y = evaluate(form, swat_stream.target(self.config.stream, parts), x)

        def error(made: Parts) -> Tensor:
            return swat_training.fvu(evaluate(form, made, x), y)

        depths = (torch.full_like(parts.depth, d) for d in range(1, form.depth + 1))
        fvu = torch.stack([error(self.decode(z, depth)) for depth in depths], 1)
        return Report(parts.depth, fvu, error(hardened(form, self.decode(z, parts.depth))))

    def twins(self, parts: Parts, seed: int = 0) -> float:
        """Mean distance of networks' latents to those of the same with units in another order and other signs.

        In units of the mean distance between networks: 0, twins are one; 1, they are strangers. In canonical order it
        is 0 but for rounding. Raises ValueError for less than two networks.
        """
        if len(parts.depth) < 2:
            raise ValueError(f"parts: {len(parts.depth)} networks, expected two or more to compare")
        moves = random_orders(self.config.form, len(parts.depth), torch.Generator().manual_seed(seed))
        moves = (move.to(parts.depth.device) for move in moves)
        own, twin = (self.embed(p).flatten(1) for p in (parts, permuted(self.config.form, parts, *moves)))
        return float((own - twin).norm(dim=1).mean() / torch.pdist(own).mean())

    def held_out(self, n: int = 512, seed: int = 0) -> Parts:
        """n networks of the stream that no training has seen but by chance."""
        with epoch_randomness(seed, -2, swat_training.CPU):
            return swat_training.draws(self.config, n)


def train(config: Config = Config(), *, keep: bool = False, device: str | torch.device = "cpu") -> Swat:
    """Train the autoencoder on its stream of networks, on a device.

    keep: store the state in the cache folder, under the hash of the config; the same call later goes on from there, or
    returns at once. An interrupt (Ctrl-C, the notebook's stop button) leaves a usable result with `finished` False.
    Raises ValueError when the loss diverges.
    """
    run = swat_training.Run(config, device)
    finished = run_to_end(run, _kept_path(config) if keep else None, "SWAT-NN", "loss")
    return Swat(config, run.network, run.history, finished)


def untrained(config: Config = Config(), device: str | torch.device = "cpu") -> Swat:
    """The same autoencoder before its first step: the control that says what training is worth."""
    run = swat_training.Run(config, device)
    return Swat(config, run.network, run.history, finished=False)


def _kept_path(config: Config) -> Path:
    """Where a run's state is kept: one file for each (config, package version)."""
    return cache_folder() / "results" / f"swat-{fingerprint(config)}.pt"

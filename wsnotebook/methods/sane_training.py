"""The loop that trains SANE (`sane.train`): views of a zoo's networks, steps, and what is measured.

The randomness of a chunk of iterations depends on (seed, chunk) alone, so a run that was interrupted and goes on gives
the same numbers as one that was not.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor

from wsnotebook import networks, symmetry
from wsnotebook.methods.autoencoder import Autoencoder, contrast, decoded, encoded, linear_path
from wsnotebook.methods.properties import weight_statistics
from wsnotebook.methods.tokens import Window, standardise, tokens
from wsnotebook.training import as_vector, epoch_randomness
from wsnotebook.zoo.value import Zoo

CHUNK = 50  # iterations between two entries of the history
PROBES = 256  # held-out networks, at most, that the validation loss is measured on
WARM_UP = 0.3  # share of the iterations before the largest learning rate
START, END = 1 / 25, 1e-4  # learning rates at both ends, as shares of it
WHITE = 1e-3  # variance, of a standardised statistic, below which a direction counts less
HISTORY = ("iteration", "loss", "reconstruction", "contrast", "told", "validation_loss", "cpu_seconds")  # `sane.Sane`


class Run:
    """What changes while the autoencoder is trained, and so what is kept between chunks of iterations.

    config: a `sane.Config`. Parameters are one vector (p,), so that a step of the optimiser and a norm are one
    operation each.
    """

    def __init__(self, zoo: Zoo, config, x: Tensor | None = None):
        self.config = config
        zoo, held_out = zoo.split((1 - config.held_out, config.held_out), config.seed)
        of = tokens(zoo.layout, config.width, statistics=config.statistics, pack=config.pack)
        self.weights, self.standardised = zoo.weights, standardise(zoo, of)
        self.entries = self.standardised.encode(zoo.weights)  # (n, e)
        self.held_out = self.standardised.encode(held_out.weights[:PROBES])
        self.symmetry = _symmetry(zoo, x) if config.permute else None
        self.facts, self.fact_layers = self._statistics(zoo)  # (n, q), (q,)
        linear = linear_path(self.standardised, self.entries, config.z, config.delta > 0) if config.linear else None
        shape = config.dim, config.heads, config.blocks, config.z
        with epoch_randomness(config.seed, -1, self.entries.device):
            self.network = Autoencoder(of.width, config.pack, *shape, linear, self.facts.shape[1] * (config.delta > 0))
        self.vector = as_vector(self.network)  # (p,) all parameters
        self.optimiser = torch.optim.AdamW([self.vector], config.lr, weight_decay=config.weight_decay, fused=True)
        self.iteration, self.spent = 0, 0.0
        self.history = {name: [] for name in HISTORY}
        self._record(math.nan, math.nan, math.nan, math.nan)

    def _statistics(self, zoo: Zoo) -> tuple[Tensor, Tensor]:
        """What the mean latent is to tell: s(W), whitened layer by layer, (n, q); and the layer that each is of (q,).

        A layer's statistics go together; what is left of them (a spread against a mean) says most, and whitened,
        it counts as much as the rest.
        """
        names, own = tokens(zoo.layout).layers, self.standardised.tokens.layers
        facts = []
        for part in np.split(weight_statistics(zoo), len(names), axis=1):
            centred = part - part.mean(0)
            centred /= np.maximum(centred.std(0), 1e-9)
            values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
            facts.append(centred @ vectors / np.sqrt(values + WHITE))
        layers = torch.tensor([own.index(name) for name in names]).repeat_interleave(facts[0].shape[1])
        return torch.from_numpy(np.concatenate(facts, 1)).to(self.entries), layers

    def views(self, rows: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Of b networks: their entries (2 b, f), as they are and then permuted, and the views of these.

        (b, f) each, the first half alone, when no loss needs the other.
        """
        clean = self.entries[rows].index_select(1, window.entries)
        if self.config.gamma or self.config.decode == "both":
            other = clean
            if self.symmetry is not None:
                other = self.standardised.encode(self.permuted(rows)).index_select(1, window.entries)
            clean = torch.cat([clean, other])
        return clean, self._disturbed(clean, window)

    def permuted(self, rows: Tensor) -> Tensor:
        """(b, d) weights of networks with the same functions and their units in random order, each in its own."""
        state = self.standardised.tokens.layout.unflatten(self.weights[rows])
        orders = self.symmetry.random(len(rows), torch.default_generator)
        return self.standardised.tokens.layout.flatten(self.symmetry.apply(state, orders))

    def _disturbed(self, x: Tensor, window: Window) -> Tensor:
        """A view of entries (b, f): with noise, and without some tokens."""
        if self.config.noise:
            x = x * torch.randn_like(x).mul_(self.config.noise).add_(1)
        if self.config.erase:
            there = torch.rand(len(x), len(window.positions)) >= self.config.erase  # (b, w)
            x = x * there.index_select(1, window.token)
        return x

    def losses(self, clean: Tensor, views: Tensor, window: Window, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, contrast, told) of what `views` gives of these rows."""
        config = self.config
        z = self.network.encode(views, window)  # (b or 2 b, r, z)
        contrasted = told = z.new_zeros(())
        if config.delta:
            seen = torch.isin(self.fact_layers, window.positions[:, 1])  # of layers that the window touches
            facts = self.facts[rows].repeat(len(z) // len(rows), 1)
            told = (self.network.tell(z) - facts)[:, seen].square().mean()
        if config.gamma:
            contrasted = contrast(*self.network.project(z).chunk(2), config.temperature)
        target = clean if config.target == "clean" else views
        if config.decode == "first" and config.gamma:
            z, target = z.chunk(2)[0], target.chunk(2)[0]
        return (self.network.decode(z, window) - target).square().mean(), contrasted, told

    def step(self) -> Tensor:
        """One step of the optimiser; (loss, reconstruction, contrast, told)."""
        config, n = self.config, len(self.entries)
        s = len(self.standardised.tokens)
        start = int(torch.randint(max(1, s - config.window + 1), ()))
        window = self.standardised.tokens.window(start, min(start + config.window, s))
        rows = torch.randperm(n)[: config.batch]
        parts = torch.stack(self.losses(*self.views(rows, window), window, rows))
        gamma, delta = config.gamma, config.delta
        loss = parts @ parts.new_tensor([1 - gamma - delta, gamma, delta])
        self.vector.grad.zero_()
        loss.backward()
        self.vector.grad.mul_((config.clip / self.vector.grad.norm()).clamp(max=1))
        self.optimiser.param_groups[0]["lr"] = config.lr * one_cycle(self.iteration / config.iterations)
        self.optimiser.step()
        self.iteration += 1
        return torch.cat([loss[None], parts]).detach()

    def train_chunk(self) -> None:
        """Train up to the next multiple of CHUNK, and measure."""
        config, started = self.config, time.process_time()
        steps = min(CHUNK, config.iterations - self.iteration)
        with epoch_randomness(config.seed, self.iteration // CHUNK, self.entries.device):
            losses = torch.stack([self.step() for _ in range(steps)]).mean(0).tolist()
        if not np.isfinite(losses[0]):
            raise ValueError(
                f"loss={losses[0]} at iteration {self.iteration}: training diverged; use a lr below {config.lr:g}"
            )
        self.spent += time.process_time() - started
        self._record(*losses)

    def _record(self, *losses: float) -> None:
        for name, value in zip(HISTORY, (self.iteration, *losses, self.validation_loss(), self.spent), strict=True):
            self.history[name].append(value)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean square error of a held-out network's standardised weight, without noise or permutation."""
        of, shape = self.standardised.tokens, (self.config.window, self.config.halo)
        z = encoded(self.network, of, self.held_out, *shape)
        return float((decoded(self.network, of, z, *shape) - self.held_out).square().mean())

    def state(self) -> dict:
        """What `load` needs to go on from here."""
        return {"vector": self.vector.data, "optimiser": self.optimiser.state_dict(), "history": self.history}

    def load(self, stored: dict) -> None:
        self.vector.data.copy_(stored["vector"])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.history = stored["history"]
        self.iteration, self.spent = self.history["iteration"][-1], self.history["cpu_seconds"][-1]


def one_cycle(t: float) -> float:
    """Share of the largest learning rate at time t in [0, 1]: cosines from 1 / 25 up to 1, and down to 1e-4."""
    low, high, share = (START, 1, t / WARM_UP) if t < WARM_UP else (1, END, (t - WARM_UP) / (1 - WARM_UP))
    return high + (low - high) * 0.5 * (1 + math.cos(math.pi * share))


def _symmetry(zoo: Zoo, x: Tensor | None) -> symmetry.Specification:
    """What may be permuted in these networks, verified on the first."""
    if x is None:
        x = networks.example(zoo.network, channels=zoo.provenance.get("build", {}).get("channels"))
    spec = symmetry.specification(zoo.template(), x[:1])
    symmetry.verify(zoo.module(0), spec, x[:1])
    return spec

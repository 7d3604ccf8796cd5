"""The run that trains SANE (`sane.train`): views of a zoo's networks, steps, and what is measured."""

import math

import numpy as np
import torch
from torch import Tensor

from wsnotebook import networks, symmetry
from wsnotebook.methods.autoencoder import Autoencoder, contrast, decoded, encoded, linear_path
from wsnotebook.methods.autoencoder_run import AutoencoderRun
from wsnotebook.methods.properties import weight_statistics
from wsnotebook.methods.tokens import Window, standardise, tokens
from wsnotebook.training import epoch_randomness
from wsnotebook.zoo.value import Zoo

PROBES = 256  # held-out networks, at most, that the validation loss is measured on
WHITE = 1e-3  # variance, of a standardised statistic, below which a direction counts less
LOSSES = ("loss", "reconstruction", "contrast", "told")  # of the history: `sane.Sane`


class Run(AutoencoderRun):
    """What changes while the autoencoder is trained; config: a `sane.Config`."""

    def __init__(self, zoo: Zoo, config, x: Tensor | None = None):
        zoo, held_out = zoo.split((1 - config.held_out, config.held_out), config.seed)
        of = tokens(zoo.layout, config.width, statistics=config.statistics, pack=config.pack)
        self.weights, self.standardised = zoo.weights, standardise(zoo, of)
        self.held_out = self.standardised.encode(held_out.weights[:PROBES])
        self.symmetry = _symmetry(zoo, x) if config.permute else None
        self.facts, self.fact_layers = self._statistics(zoo)  # (n, q), (q,)
        linear = linear_path(self.standardised, zoo, config.z, config.delta > 0) if config.linear else None
        shape = config.dim, config.heads, config.blocks, config.z
        with epoch_randomness(config.seed, -1, self.weights.device):
            network = Autoencoder(of.width, config.pack, *shape, linear, self.facts.shape[1] * (config.delta > 0))
        super().__init__(network.to(self.weights.device), config, LOSSES, ("validation_loss",))
        self.record([math.nan] * len(LOSSES))

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
        return torch.from_numpy(np.concatenate(facts, 1)).to(self.weights), layers.to(self.weights.device)

    def views(self, rows: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Of b networks: their entries (2 b, f), as they are and then permuted, and the views of these.

        (b, f) each, the first half alone, when no loss needs the other.
        """
        clean = self.standardised.encode(self.weights[rows]).index_select(1, window.entries)
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
            there = torch.rand(len(x), len(window.positions), device=x.device) >= self.config.erase  # (b, w)
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
        config, n = self.config, len(self.weights)
        s = len(self.standardised.tokens)
        start = int(torch.randint(max(1, s - config.window + 1), ()))
        window = self.standardised.tokens.window(start, min(start + config.window, s))
        rows = torch.randperm(n, device=self.weights.device)[: config.batch]
        parts = torch.stack(self.losses(*self.views(rows, window), window, rows))
        gamma, delta = config.gamma, config.delta
        loss = parts @ parts.new_tensor([1 - gamma - delta, gamma, delta])
        self.descend(loss)
        return torch.cat([loss[None], parts]).detach()

    @torch.no_grad()
    def measured(self) -> list[float]:
        """Mean square error of a held-out network's standardised weight, without noise or permutation."""
        of, shape = self.standardised.tokens, (self.config.window, self.config.halo)
        z = encoded(self.network, of, self.held_out, *shape)
        return [float((decoded(self.network, of, z, *shape) - self.held_out).square().mean())]


def _symmetry(zoo: Zoo, x: Tensor | None) -> symmetry.Specification:
    """What may be permuted in these networks, verified on the first."""
    if x is None:
        x = networks.example(zoo.network, channels=zoo.provenance.get("build", {}).get("channels"))
    spec = symmetry.specification(zoo.template(), x[:1].cpu())
    symmetry.verify(zoo.module(0).cpu(), spec, x[:1].cpu())
    return spec

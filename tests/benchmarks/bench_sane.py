"""A step of SANE's training written straightforwardly, against ours; and tokenising a zoo.

    python tests/benchmarks/bench_sane.py

The demonstration's size: 256 small CNNs of 48 tokens x 201, width 96, 4 heads, 2 + 2 blocks. Straightforward is what
one would write after the paper: every network permuted and tokenised by itself, padded tokens, noise on all of them,
both views through encoder and decoder, attention by softmax, torch.optim.AdamW as it comes. Ours with both views
decoded is the same mathematics: on the same views, loss and gradient are compared. Our recipe is another: one view
decoded instead of two, and short rows share a token (15 tokens for 48 rows).
Growth of per-layer PCA, SANE's baseline, is measured beside singular value decompositions of the same rows.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from measured import Curve, Row, compared, curve, told
from torch import Tensor
from torch.nn import functional as F

from wsnotebook import networks
from wsnotebook.layout import Layout
from wsnotebook.methods.autoencoder import contrast
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.sane import Config
from wsnotebook.methods.sane_training import Run
from wsnotebook.methods.tokens import standardise, tokens
from wsnotebook.zoo.value import Zoo

NETWORK, N, BATCH = "cnn-small", 300, 256
CONFIG = Config(batch=BATCH, pack=1, linear=False, delta=0.0)


def random_zoo(n: int) -> Zoo:
    layout = Layout.of(networks.build(NETWORK))
    weights = [layout.flatten(networks.build(NETWORK, seed=i).state_dict()) for i in range(n)]
    return Zoo(torch.stack(weights), layout, {"model": np.arange(n)}, NETWORK, {})


class Straightforward:
    """The step, a network at a time up to the batch, padded from there. Parameters are shared with a `Run`."""

    def __init__(self, run: Run):
        self.run, self.network = run, run.network
        self.optimiser = torch.optim.AdamW(self.network.parameters(), 1e-4, weight_decay=3e-9)
        of = run.standardised.tokens
        self.layout, self.width, self.mask = of.layout, of.width, of.mask
        self.means, self.deviations = {}, {}
        for block in of.blocks:
            first = block.first
            self.means[of.layers[block.layer]] = run.standardised.mean[first]
            self.deviations[of.layers[block.layer]] = run.standardised.deviation[first]
        self.positions = of.positions

    def tokenise(self, state: dict[str, Tensor]) -> Tensor:
        """One network's state -> (48, 201) standardised."""
        found = []
        for name, weight in state.items():
            if name.endswith("weight"):
                rows = torch.cat([weight.flatten(1), state[name.replace("weight", "bias")][:, None]], 1)
                rows = (rows - self.means[name]) / self.deviations[name]
                found.append(F.pad(rows, (0, self.width - rows.shape[1])))
        return torch.cat(found)

    def views(self, rows: Tensor) -> tuple[Tensor, ...]:
        clean, moves, first, second = [], [], [], []
        for row in rows.tolist():
            state = self.layout.unflatten(self.run.weights[row])
            x = self.tokenise(state)
            orders = self.run.symmetry.random(1, torch.default_generator)
            moved = self.run.symmetry.apply({name: tensor[None] for name, tensor in state.items()}, orders)
            other = self.tokenise({name: tensor[0] for name, tensor in moved.items()})
            clean.append(x)
            moves.append(other)
            first.append(x * (1 + 0.1 * torch.randn_like(x)))
            second.append(other * (1 + 0.1 * torch.randn_like(other)))
        return tuple(map(torch.stack, (clean, moves, first, second)))

    def loss(self, x: Tensor, other: Tensor, first: Tensor, second: Tensor) -> Tensor:
        network, errors, latents = self.network, [], []
        for view, target in ((first, x), (second, other)):  # (256, 48, 201)
            at = network.positions(self.positions)
            z = self.blocks(network.encoder, view @ network.read + at) @ network.to_z.T
            back = self.blocks(network.decoder, z @ network.from_z + at) @ network.write.T
            errors.append((((back - target) * self.mask) ** 2).sum() / (self.mask.sum() * len(x)))
            latents.append(network.project(z))
        gamma = self.run.config.gamma
        return (1 - gamma) * sum(errors) / 2 + gamma * contrast(*latents, self.run.config.temperature)

    @staticmethod
    def blocks(stack, h: Tensor) -> Tensor:
        for block in stack:
            parts = block.qkv(block.norms[0](h)).chunk(3, 2)
            q, k, v = (part.unflatten(2, (block.heads, -1)).transpose(1, 2) for part in parts)
            attention = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
            h = h + block.out((attention @ v).transpose(1, 2).flatten(2))
            h = h + block.down(F.gelu(block.up(block.norms[1](h))))
        return h

    def step(self) -> None:
        loss = self.loss(*self.views(torch.randperm(len(self.run.weights))[:BATCH]))
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.run.config.clip)
        self.optimiser.step()


def difference(run: Run, plain: Straightforward) -> float:
    """The larger of the relative differences of the loss and of its gradient, on the same views."""
    of = run.standardised.tokens
    window = of.window(0, len(of))
    both = run.views(torch.arange(BATCH), window)
    reconstruction, contrasted, _ = run.losses(*both, window, torch.arange(BATCH))
    gamma, parameters = run.config.gamma, list(run.network.parameters())
    ours = (1 - gamma) * reconstruction + gamma * contrasted
    dense = []
    for view in (part for each in both for part in each.chunk(2)):
        padded = torch.zeros(BATCH, len(of) * of.width)
        padded[:, of.slots] = view
        dense.append(padded.view(BATCH, len(of), of.width))
    theirs = plain.loss(*dense)
    a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in (ours, theirs))
    return max(float((ours - theirs).detach().abs() / theirs.detach()), float((a - b).norm() / b.norm()))


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    zoo = random_zoo(N)
    plain, equal = Straightforward(Run(zoo, CONFIG)), Run(zoo, replace(CONFIG, decode="both"))
    work = f"a step, {BATCH} x {NETWORK}"
    same = {"difference": lambda: difference(equal, Straightforward(equal)), "tolerance": 1e-4}
    yield compared("SANE", f"{work}, both views decoded", plain.step, equal.step, repeats=5, **same)
    run = Run(zoo, replace(CONFIG, pack=8, linear=True))
    note = "another recipe: one view decoded, short rows share a token, a linear path"
    yield compared("SANE", f"{work}, our recipe", plain.step, run.step, repeats=3, note=note)
    weights, of = zoo.weights.repeat(4, 1)[:1000], equal.standardised

    def one_by_one():
        return torch.stack([plain.tokenise(plain.layout.unflatten(row)) for row in weights])

    def differing() -> Tensor:
        return (one_by_one().flatten(1)[:, of.tokens.slots] - of.encode(weights)).abs().max()

    yield compared(
        "SANE",
        f"1,000 {NETWORK} as tokens",
        one_by_one,
        lambda: of.encode(weights),
        difference=differing,
        tolerance=1e-4,
        most_ms=10,
    )


def curves() -> Iterator[Curve]:
    def ours(n: int):
        zoo = random_zoo(n)
        return lambda: layer_pca(zoo, 16)

    def plain(n: int):
        zoo = random_zoo(n)

        def decomposed():
            of = standardise(zoo, tokens(zoo.layout))
            blocks = [block.of(of.encode(zoo.weights)).flatten(0, 1).double() for block in of.tokens.blocks]
            return [torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:16] for rows in blocks]

        return decomposed

    makers, sizes = {"second moments": ours, "singular values": plain}, [2**k for k in range(5, 12)]
    yield curve("per-layer PCA", f"networks ({NETWORK})", sizes, makers, {"singular values": 1024})


if __name__ == "__main__":
    told(rows())

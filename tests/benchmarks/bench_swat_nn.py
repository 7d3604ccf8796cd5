"""A training step of SWAT-NN's autoencoder in its published form against ours; many perceptrons at once, and trained.

    python tests/benchmarks/bench_swat_nn.py

The published form is `swat_nn.preset("paper")`: an encoder and four decoders of GPT-2's small size (429 M parameters
without the token tables, random weights here; its step needs 9 GB), every network decoded at all four depths, compared
at 1000 inputs. Ours: width 96, 2 blocks, one decoder told the depth, each network decoded at its own depth, 64 inputs.
Batch 64 in both. The ratio says what size, and one decoder for all depths, are worth, no more: it is another model. The
search of both is measured likewise, all lanes at once beside one. `evaluate` against a loop over plain modules is the
same computation, and so is the compiled training of perceptrons (`mlp_kernel`) against its formulation in PyTorch;
results are compared.
"""

from collections.abc import Iterator
from functools import partial

import torch
from measured import Row, compared, told
from torch import nn

from wsnotebook import cornn
from wsnotebook.methods import latent_lanes, latent_search, mlp_kernel
from wsnotebook.methods.mlp_fitting import by_torch, errors
from wsnotebook.methods.mlp_matrix import Form, evaluate, non_zeros
from wsnotebook.methods.mlp_modules import network
from wsnotebook.methods.mlp_pruning import keep_largest
from wsnotebook.methods.swat_nn import Config, Swat, preset
from wsnotebook.methods.swat_stream import Stream, draw
from wsnotebook.methods.swat_training import Run, points
from wsnotebook.networks import MixedMLP

BATCH = 64
LARGER = "a promise kept for the smallest only: the kernel's time grows more with networks and batches than PyTorch's"
ACTIVATIONS = nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU()


def one_by_one(networks: list[MixedMLP], x: torch.Tensor) -> torch.Tensor:
    """What one would write: each network layer by layer, each unit through its own activation."""
    outputs = []
    for net in networks:
        h = x
        for i in range(1, net.hidden + 1):
            z = net.get_submodule(f"fc{i}")(h)
            kinds = net.get_buffer(f"activation{i}").tolist()
            h = torch.stack([ACTIVATIONS[k](z[:, j]) if k >= 0 else 0 * z[:, j] for j, k in enumerate(kinds)], 1)
        outputs.append(net.get_submodule(f"fc{net.hidden + 1}")(h))
    return torch.stack(outputs)


def evaluation(n: int, m: int) -> Row:
    form = Form()
    parts, x = draw(form, Stream(), n, torch.Generator().manual_seed(0)), points(form, m)
    modules = [network(form, parts, i) for i in range(n)]
    return compared(
        "SWAT-NN",
        f"{n} perceptrons of depth 1 to 4 at {m} inputs, beside unit by unit",
        lambda: one_by_one(modules, x),
        lambda: evaluate(form, parts, x),
        difference=lambda: (evaluate(form, parts, x) - one_by_one(modules, x)).abs().max().detach(),
        tolerance=1e-3,
        repeats=3,
    )


def training(width: int, count: int, batch: int, n: int = 128, steps: int = 50) -> Row:
    """Perceptrons of about `count` non-zeros, each on its own target: all rows of a step are the same for both."""
    form, g = Form(width=width), torch.Generator().manual_seed(0)
    parts = keep_largest(form, draw(form, Stream(), 8 * n, g), count)
    parts = parts.take(non_zeros(form, parts).argsort(descending=True)[:n])
    x, hidden = points(form, 2000), draw(form, Stream(), n, g)
    data = x, evaluate(form, hidden, x).transpose(0, 1)
    batches = list(torch.randint(len(x), (steps, batch), generator=g))
    given = form, parts, data, data, batches, 0.01, steps

    def difference() -> float:
        """Of the errors reached, relative to them; where they are small, to 0.005."""
        ours, theirs = (errors(form, way(*given), data) for way in (mlp_kernel.trained, by_torch))
        return ((ours - theirs).abs() / (theirs + 5e-3)).max()

    return compared(
        "SWAT-NN",
        f"1,000 steps of one of {n} perceptrons, {non_zeros(form, parts).float().mean():.0f} non-zeros, batch {batch}",
        partial(by_torch, *given),
        partial(mlp_kernel.trained, *given),
        difference=difference,
        tolerance=0.02,
        repeats=3,
        per=(n * steps / 1000, n * steps / 1000),
        least=15,
        note=LARGER,
    )


def rows() -> Iterator[Row]:
    for width, count, batch in ((7, 10, 128), (7, 60, 128), (7, 60, 256), (16, 200, 128)):
        yield training(width, count, batch)
    for m in (64, 1000):
        yield evaluation(1024, m)
    torch.manual_seed(0)
    own, published = Run(Config(batch=BATCH)), Run(preset("paper", batch=BATCH))
    millions, note = [run.vector.numel() / 1e6 for run in (own, published)], "another, smaller model: what that saves"
    what = f"a step of the autoencoder, {millions[0]:.1f} M numbers beside {millions[1]:.0f} M"
    yield compared("SWAT-NN", what, published.step, own.step, repeats=1, least=100, note=note)
    arms = [latent_search.latent(Swat(run.config, run.network, run.history, False)) for run in (own, published)]
    many = latent_lanes.Run(arms[0], cornn.table(["himmelblau", "ridge"]), latent_search.Config())
    one = latent_search.preset("paper", depths=(2,))  # which the public code searches one after the other
    alone = latent_lanes.Run(arms[1], cornn.table(["ridge"]), one)
    yield compared(
        "SWAT-NN",
        f"a lane's step of the search, {len(many.z)} at once on 128 rows beside one on 3,000",
        alone.step,
        many.step,
        repeats=3,
        per=(1, len(many.z)),
        least=200,
        note=f"{note}, and minibatches",
    )


if __name__ == "__main__":
    told(rows())

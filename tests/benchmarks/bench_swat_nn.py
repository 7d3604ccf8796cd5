"""A training step of SWAT-NN's autoencoder in its published form against ours; many perceptrons at once, and trained.

    python tests/benchmarks/bench_swat_nn.py

The published form is `swat_nn.preset("paper")`: an encoder and four decoders of GPT-2's small size (429 M parameters
without the token tables, random weights here; its step needs 9 GB), every network decoded at all four depths, compared
at 1000 inputs. Ours: width 96, 2 blocks, one decoder told the depth, each network decoded at its own depth, 64 inputs.
Batch 64 in both. The ratio says what size, and one decoder for all depths, are worth, no
more: it is another model. `evaluate` against a loop over plain modules is the same computation, and so is the compiled
training of perceptrons (`mlp_kernel`) against its formulation in PyTorch; results are compared.
CPU time of one thread, medians over repeats.
"""

import statistics
import time
from functools import partial

import torch
from torch import nn

from wsnotebook.methods import mlp_kernel
from wsnotebook.methods.mlp_fitting import by_torch, errors
from wsnotebook.methods.mlp_matrix import Form, canonical, evaluate, hardened, non_zeros
from wsnotebook.methods.mlp_modules import network
from wsnotebook.methods.mlp_pruning import keep_largest
from wsnotebook.methods.swat_nn import Config, preset
from wsnotebook.methods.swat_stream import Stream, draw
from wsnotebook.methods.swat_training import Run, points
from wsnotebook.networks import MixedMLP

BATCH = 64
ACTIVATIONS = nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU()


def cpu_ms(action, repeats: int) -> float:
    action()
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        spent.append(1e3 * (time.process_time() - started))
    return statistics.median(spent)


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


def evaluation(n: int, m: int) -> None:
    form = Form()
    parts, x = draw(form, Stream(), n, torch.Generator().manual_seed(0)), points(form, m)
    networks = [network(form, parts, i) for i in range(n)]
    with torch.no_grad():
        y, loop = evaluate(form, parts, x), torch.stack([net(x) for net in networks])
        plain = one_by_one(networks, x)
        assert torch.equal(y, loop), "modules are to give the same bits"
        torch.testing.assert_close(y, plain, atol=1e-4, rtol=1e-4)
        ours = cpu_ms(lambda: evaluate(form, parts, x), 9)
        rows = {"one by one": lambda: one_by_one(networks, x), "MixedMLP": lambda: [net(x) for net in networks]}
        print(f"{n} perceptrons of depth 1 to 4 at {m} inputs, ms CPU: evaluate {ours:.1f}")
        for name, action in rows.items():
            spent = cpu_ms(action, 3)
            print(f"  {name:12s} {spent:8.1f}   {spent / ours:6.1f}x")
    print(f"  largest difference: MixedMLP 0 (bit for bit), one by one {float((y - plain).abs().max()):.0e}")


def training(width: int, count: int, n: int = 128, steps: int = 100) -> None:
    """Perceptrons of about `count` non-zeros, each on its own target: all rows of a step are the same for both."""
    form, g = Form(width=width), torch.Generator().manual_seed(0)
    parts = keep_largest(form, draw(form, Stream(), 8 * n, g), count)
    parts = parts.take(non_zeros(form, parts).argsort(descending=True)[:n])
    x, hidden = points(form, 2000), draw(form, Stream(), n, g)
    data = x, evaluate(form, hidden, x).transpose(0, 1)
    for batch in (128, 256):
        batches = list(torch.randint(len(x), (steps, batch), generator=g))
        given = form, parts, data, data, batches, 0.01, steps
        ours, theirs = (errors(form, way(*given), data) for way in (mlp_kernel.trained, by_torch))
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-4)
        spent = [cpu_ms(partial(way, *given), 3) for way in (mlp_kernel.trained, by_torch)]
        speeds = [f"{1e3 * n * steps / each:10,.0f}" for each in spent]
        size = float(non_zeros(form, parts).float().mean())
        print(f"  {size:5.0f} {width:6d} {batch:6d} {' '.join(speeds)} {spent[1] / spent[0]:6.0f}x", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print("perceptrons trained, network-steps a CPU second\n  non-zeros, width, batch rows: compiled, PyTorch, ratio")
    for width, count in ((7, 10), (7, 30), (7, 60), (12, 100), (16, 200)):
        training(width, count)
    evaluation(1024, 64)
    evaluation(1024, 1000)
    form, parts = Form(), draw(Form(), Stream(), BATCH)
    for name, action in {
        "draw": lambda: draw(form, Stream(), BATCH),
        "canonical": lambda: canonical(form, parts),
        "hardened": lambda: hardened(form, parts),
    }.items():
        print(f"{name} {BATCH}: {cpu_ms(action, 9):.1f} ms CPU")
    torch.manual_seed(0)
    own = Run(Config(batch=BATCH))
    ours = cpu_ms(own.step, 20)
    print(f"step of ours, {own.vector.numel():,} parameters: {ours:.0f} ms CPU", flush=True)
    published = Run(preset("paper", batch=BATCH))
    theirs = cpu_ms(published.step, 1)
    size = published.vector.numel()
    print(f"step of the published form, {size:,} parameters: {theirs:,.0f} ms CPU, {theirs / ours:.0f}x")


if __name__ == "__main__":
    main()

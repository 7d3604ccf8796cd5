"""A training step of SWAT-NN's autoencoder in its published form against ours; and many perceptrons at once.

    python tests/benchmarks/bench_swat_nn.py

The published form is `swat_nn.preset("paper")`: an encoder and four decoders of GPT-2's small size (429 M parameters
without the token tables, random weights here; its step needs 9 GB), every network decoded at all four depths, compared
at 1000 inputs. Ours: width 96, 2 blocks, one decoder told the depth, each network decoded at its own depth, 64 inputs.
Batch 64 in both. The ratio says what size, and one decoder for all depths, are worth, no
more: it is another model. `evaluate` against a loop over plain modules is the same computation; results are compared.
CPU time of one thread, medians over repeats.
"""

import statistics
import time

import torch
from torch import nn

from wsnotebook.methods.mlp_matrix import Form, MixedMLP, canonical, evaluate, hardened, network
from wsnotebook.methods.swat_nn import Config, preset
from wsnotebook.methods.swat_stream import Stream, draw
from wsnotebook.methods.swat_training import Run, points

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


def main() -> None:
    torch.set_num_threads(1)
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

"""A bank of SuperWeights against the same networks with weights of their own: composition, training step, evaluation.

    python tests/benchmarks/bench_superweights.py

Composition: the four networks of the public code's README (WRN-28-7, 28-4, 16-7, 16-4; 100 classes; 18 M templates),
forward and backward; beside it the straightforward form, which mixes and glues each layer by itself. Step: forward,
backward and SGD of four small ones (WRN-16-2, 16-1, 10-2, 10-1) on 32 x 32 images; evaluation with kept weights.
Outputs are compared with those of the members as plain networks. CPU time of one thread; each pair of actions takes
turns, since the machine's speed drifts; medians, and the median of the turns' ratios.
"""

import math
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from wsnotebook import networks
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank

README = ("wrn-28-7", "wrn-28-4", "wrn-16-7", "wrn-16-4")
SMALL = ("wrn-16-2", "wrn-16-1", "wrn-10-2", "wrn-10-1")


def cpu_ms(action) -> float:
    started = time.process_time()
    action()
    return 1e3 * (time.process_time() - started)


def compared(ours, theirs, repeats: int) -> tuple[float, float, float]:
    """Median CPU milliseconds of two actions that take turns, and the median ratio of the first to the second."""
    ours(), theirs()
    pairs = [(cpu_ms(ours), cpu_ms(theirs)) for _ in range(repeats)]
    return *(statistics.median(times) for times in zip(*pairs, strict=True)), statistics.median(a / b for a, b in pairs)


def straightforward(bank: Bank) -> list[torch.Tensor]:
    """Every layer by itself: mix each increment's templates, cut, reshape and concatenate."""
    plan, weights, start = bank.plan, [], 0
    keys, scales = {key: s for s, key in enumerate(plan.superweights)}, {}
    for g, r in plan.superweights:
        users = plan.users(g, r)
        scales |= {(g, r, p): bank.scales[start + n] for n, p in enumerate(users)}
        start += len(users)
    for g, layers in enumerate(plan.clusters):
        shapes, increments = plan.ladders[g]
        for position, layer in enumerate(layers):
            weight = None
            for r in range(shapes.index(layer.shape) + 1):
                row = plan.rows[g][r][plan.users(g, r).index(position)]
                mix = scales[g, r, position] * bank.coefficients[keys[g, r]][row]
                numbers, begin = (mix[:, None] * bank.templates[keys[g, r]]).sum(0), 0
                for top, bottom, left, right in increments[r].blocks:
                    shape = (bottom - top, right - left, *layer.shape[2:])
                    block = numbers[begin : begin + math.prod(shape)].view(shape)
                    begin += block.numel()
                    if left:  # new inputs
                        block = torch.cat([weight[:bottom, :left], block], 1)
                    elif top:  # new outputs
                        block = torch.cat([weight[:top, :right], block], 0)
                    weight = block
            weights.append(weight)
    return weights


def composition() -> None:
    nets = [networks.build(name, classes=100) for name in README]
    plan = allocate(nets, torch.zeros(1, 3, 32, 32), 18_000_000, counted="bank")
    bank = Bank(nets, plan)
    del nets
    flat = lambda made: [made[la.member][f"{la.name}.weight"] for c in plan.clusters for la in c]  # noqa: E731
    gradients = [torch.randn(layer.shape) for cluster in plan.clusters for layer in cluster]

    def ours():
        made = bank._compose((0, 1, 2, 3), lease=True)  # as a training step does
        torch.autograd.backward(flat(made), gradients)
        bank.zero_grad()

    def theirs():
        torch.autograd.backward(straightforward(bank), gradients)
        bank.zero_grad()

    for one, other in zip(flat(bank.compose()), straightforward(bank), strict=True):
        torch.testing.assert_close(one, other)
    sizes = plan.sizes
    counts = f"separate {sizes['separate']:,}, bank {sizes['shared']:,} ({sizes['templates']:,} templates)"
    print(f"{', '.join(README)}: {counts}")
    a, b, ratio = compared(ours, theirs, 9)
    print(f"composition forward + backward: {a:.0f} ms, layer by layer {b:.0f} ms, ratio {ratio:.2f}")


def small(batch: int, repeats: int) -> None:
    plain = [networks.build(name) for name in SMALL]
    x, y = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    bank = Bank(plain, allocate(plain, x, 700_000))
    plain = nn.ModuleList(bank.member(i) for i in range(len(plain)))  # the same functions
    options = {"lr": 0.0, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "fused": True}

    def step(logits, optimiser):
        optimiser.zero_grad()
        sum(F.cross_entropy(output, y) for output in logits()).backward()
        optimiser.step()

    together = torch.optim.SGD(bank.parameter_groups(), **options)
    apart = torch.optim.SGD(plain.parameters(), **options)
    a, b, ratio = compared(
        lambda: step(lambda: bank(x), together), lambda: step(lambda: [n(x) for n in plain], apart), repeats
    )
    print(f"batch {batch:>3}: step {a:.0f} ms, plain {b:.0f} ms, ratio {ratio:.3f}", end="; ")
    bank.eval(), plain.eval()
    with torch.no_grad():
        for one, other in zip(bank(x), [n(x) for n in plain], strict=True):
            assert torch.equal(one, other), "members are to give the same bits"
        a, b, ratio = compared(lambda: bank(x), lambda: [n(x) for n in plain], 3 * repeats)
    print(f"evaluation {a:.1f} ms, plain {b:.1f} ms, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    composition()
    print(f"{', '.join(SMALL)} at 32 x 32")
    for batch, repeats in ((1, 21), (8, 21), (128, 7)):
        small(batch, repeats)

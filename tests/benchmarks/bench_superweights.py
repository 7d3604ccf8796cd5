"""A bank of SuperWeights against the same networks with weights of their own: composition, training step, evaluation.

    python tests/benchmarks/bench_superweights.py

Composition: the four networks of the public code's README (WRN-28-7, 28-4, 16-7, 16-4; 100 classes; 18 M templates),
forward and backward; beside it the straightforward form, which mixes and glues each layer by itself. Step: forward,
backward and SGD of four small ones (WRN-16-2, 16-1, 10-2, 10-1) on 32 x 32 images; evaluation with kept weights.
Outputs are compared with those of the members as plain networks, which do without a bank: a ratio of 1 is a bank that
costs nothing, and what was promised is how far below it may be.
"""

import math
from collections.abc import Iterator

import torch
from measured import Row, compared, told
from torch import nn
from torch.nn import functional as F

from wsnotebook import networks
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank

README = ("wrn-28-7", "wrn-28-4", "wrn-16-7", "wrn-16-4")
PAGES = (
    "the process's own time is the same in both, to a hundredth; the rest is the system's, "
    "0 to 260 ms a step in either, for memory that is given back and taken again"
)
SMALL = ("wrn-16-2", "wrn-16-1", "wrn-10-2", "wrn-10-1")


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


def composition() -> Row:
    nets = [networks.build(name, classes=100) for name in README]
    plan = allocate(nets, torch.zeros(1, 3, 32, 32), 18_000_000, counted="bank")
    bank = Bank(nets, plan)
    layers = [layer for cluster in plan.clusters for layer in cluster]
    gradients = [torch.randn(layer.shape) for layer in layers]

    def flat(made) -> list[torch.Tensor]:
        return [made[layer.member][f"{layer.name}.weight"] for layer in layers]

    def ours():
        torch.autograd.backward(flat(bank._compose((0, 1, 2, 3), lease=True)), gradients)  # as a training step does
        bank.zero_grad()

    def plain():
        torch.autograd.backward(straightforward(bank), gradients)
        bank.zero_grad()

    @torch.no_grad()
    def difference() -> float:
        return max((a - b).abs().max() for a, b in zip(flat(bank.compose()), straightforward(bank), strict=True))

    return compared(
        "SuperWeights",
        f"{len(layers)} layers composed of {plan.sizes['templates'] / 1e6:.0f} M numbers, forward and backward",
        plain,
        ours,
        difference=difference,
        tolerance=1e-5,
        repeats=7,
        most_ms=140,
    )


def small(batch: int, repeats: int, overhead: float | None) -> Iterator[Row]:
    """overhead: what was promised, of a step's time."""
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

    def one_by_one() -> list[torch.Tensor]:
        return [member(x) for member in plain]

    @torch.no_grad()
    def difference() -> float:
        bank.eval(), plain.eval()
        return max((a - b).abs().max() for a, b in zip(bank(x), one_by_one(), strict=True))

    yield compared(
        "SuperWeights",
        f"a step of 4 small WRNs, batch {batch}, beside plain networks",
        lambda: step(one_by_one, apart),
        lambda: step(lambda: bank(x), together),
        difference=difference,
        repeats=repeats,
        least=overhead and 1 / overhead,
        note=PAGES if batch == 128 else "",
    )
    evaluated = torch.no_grad()(one_by_one), torch.no_grad()(lambda: bank(x))
    what = f"evaluation of 4 small WRNs, batch {batch}, beside plain networks"
    yield compared("SuperWeights", what, *evaluated, difference=difference, repeats=repeats, least=1 / 1.02)


def rows() -> Iterator[Row]:
    yield composition()
    for batch, repeats, overhead in ((1, 21, None), (8, 15, 1.10), (128, 9, 1.03)):
        yield from small(batch, repeats, overhead)


if __name__ == "__main__":
    told(rows())

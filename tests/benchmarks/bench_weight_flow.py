"""The paper's flow trained straightforwardly, in the space of all weights and in the zoo's span, against ours.

    python tests/benchmarks/bench_weight_flow.py

The recipe is the same in all rows: 100 networks of 26,506 weights (random ones), velocity network of width 512, batches
of 8. Straightforward is what one would write after the paper: a DataLoader over pairs, torch.optim.AdamW as it comes, a
copy of the state whenever a minibatch's loss is the lowest so far. Both get the same parameters from the same batches,
which is checked in the span; that the span is the space of all weights is a test (tests/test_flow_span.py). Then 25
samples, by the paper's steps and by ours, half as many that are dense at both ends.
"""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from measured import Curve, Row, compared, curve, told
from torch.utils.data import DataLoader, TensorDataset

from wsnotebook import networks
from wsnotebook.layout import Layout
from wsnotebook.methods import flow_training, weight_flow
from wsnotebook.methods.closed_form_flow import ClosedForm
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.velocity import PaperVelocity
from wsnotebook.methods.weight_flow import Config, preset
from wsnotebook.zoo.value import Zoo

NETWORK, N = "mlp-784-32-32-10", 100
ITERATIONS = {"all weights": 3, "the span": 100}  # of the straightforward loop in a turn; ours does a chunk


def random_zoo(name: str = NETWORK) -> Zoo:
    layout = Layout.of(networks.build(name))
    weights = [layout.flatten(networks.build(name, seed=i).state_dict()) for i in range(N)]
    return Zoo(torch.stack(weights), layout, {"model": np.arange(N)}, name, {})


class Straightforward:
    """The public recipe, as a loop over batches of (x0, x1)."""

    def __init__(self, x1: torch.Tensor):
        torch.manual_seed(0)
        self.network = PaperVelocity(x1.shape[1], 512, 64, 0.1)
        self.loader = DataLoader(TensorDataset(0.01 * torch.randn_like(x1), x1), batch_size=8, shuffle=True)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), 5e-4, betas=(0.9, 0.95), weight_decay=1e-5)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, 30_000, eta_min=1e-6)
        self.best, self.batches = float("inf"), iter(())

    def train(self, iterations: int) -> None:
        for _ in range(iterations):
            try:
                x0, x1 = next(self.batches)
            except StopIteration:
                self.batches = iter(self.loader)
                x0, x1 = next(self.batches)
            t = torch.rand(len(x0))
            x = (1 - t[:, None]) * x0 + t[:, None] * x1 + 0.001 * torch.randn_like(x0)
            self.step(x, t, x1 - x0)

    def step(self, x: torch.Tensor, t: torch.Tensor, target: torch.Tensor) -> None:
        loss = ((self.network(x, t) - target) ** 2).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.scheduler.step()
        if loss.item() < self.best:
            self.best, self.state = loss.item(), copy.deepcopy(self.network.state_dict())


def difference(loop: Straightforward, run: flow_training.Run) -> float:
    """Of the parameters after 20 of the same batches from the same start, relative to how far they went."""
    loop.network.load_state_dict(run.network.state_dict())
    start = run.vector.detach().clone()
    for i, (x, t, _, target) in zip(range(20), run.batches(), strict=False):
        torch.manual_seed(i)  # the same dropout
        run.optimiser.param_groups[0]["lr"] = loop.scheduler.get_last_lr()[0]
        run.network.gradient(x, t, None, target)
        run.optimiser.step()
        torch.manual_seed(i)
        loop.step(x, t, target)
    parameters = torch.nn.utils.parameters_to_vector(loop.network.parameters()).detach()
    return float((run.vector.detach() - parameters).norm() / (parameters - start).norm())


def rows() -> Iterator[Row]:
    zoo = random_zoo()
    c = coordinates(zoo)
    config = preset("paper", zoo)
    run = flow_training.Run(zoo, config)
    spaces = {"all weights": (zoo.weights, 100, 3), "the span": (c.encode(zoo.weights), 2, 7)}
    for space, (x, least, repeats) in spaces.items():
        loop, iterations = Straightforward(x), ITERATIONS[space]
        yield compared(
            "weight flow",
            f"an iteration in the span, beside one in {space}",
            partial(loop.train, iterations),
            run.train_chunk,
            difference=lambda: difference(Straightforward(c.encode(zoo.weights)), flow_training.Run(zoo, config)),
            tolerance=1e-3,
            repeats=repeats,
            per=(iterations, flow_training.CHUNK),
            fresh=(lambda x=x: Straightforward(x).train(3), lambda: flow_training.Run(zoo, config).train_chunk()),
            least=least,
        )
    flows = {"the paper's network": run, "our network": flow_training.Run(zoo, Config())}
    flows = {name: weight_flow.Flow(own.config, c, None, own.chosen(), own.history) for name, own in flows.items()}
    for name, flow in (flows | {"closed form": ClosedForm(zoo)}).items():
        yield compared(
            "weight flow",
            f"25 samples by RK4, {name}, our steps beside the paper's 100",
            partial(flow.sample, 25, steps=100, power=1),
            partial(flow.sample, 25),
            most_ms=150 if name == "our network" else None,
            note="half as many steps, dense at both ends",
        )


def curves() -> Iterator[Curve]:
    def ours(d: int):
        return flow_training.Run(zoo := random_zoo(f"mlp-784-{d // 795}-10"), preset("paper", zoo)).train_chunk

    def plain(d: int):
        loop = Straightforward(random_zoo(f"mlp-784-{d // 795}-10").weights)
        return partial(loop.train, ITERATIONS["all weights"])

    makers, per = {"in the span": ours, "in all weights": plain}, (flow_training.CHUNK, ITERATIONS["all weights"])
    sizes = [805, 1600, 3190, 6370, 12730]
    yield curve("a flow's iteration", f"weights ({N} networks)", sizes, makers, per=dict(zip(makers, per, strict=True)))


if __name__ == "__main__":
    told(rows())

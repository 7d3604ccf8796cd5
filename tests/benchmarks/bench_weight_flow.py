"""The paper's flow trained straightforwardly, in the space of all weights and in the zoo's span, against ours.

    python tests/benchmarks/bench_weight_flow.py

The recipe is the same in all rows: 100 networks of 26,506 weights (random ones), velocity network of width 512, batches
of 8. Straightforward is what one would write after the paper: a DataLoader over pairs, torch.optim.AdamW as it comes, a
copy of the state whenever a minibatch's loss is the lowest so far. Both get the same parameters from the same batches,
which is checked first. CPU time of one thread, medians over alternating repeats; then the time of 25 samples, in the
paper's steps and in ours, half as many that are dense at both ends.
"""

import copy
import statistics
import time

import numpy as np
import torch
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
REPEATS = 7
ITERATIONS = {"full": 3, "span": 100}  # of the straightforward loop in a repeat; ours does a chunk


def random_zoo() -> Zoo:
    layout = Layout.of(networks.build(NETWORK))
    weights = [layout.flatten(networks.build(NETWORK, seed=i).state_dict()) for i in range(N)]
    return Zoo(torch.stack(weights), layout, {"model": np.arange(N)}, NETWORK, {})


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


def check(loop: Straightforward, run: flow_training.Run) -> None:
    """The same batches, dropout and start bring both to the same parameters."""
    loop.network.load_state_dict(run.network.state_dict())
    start = run.vector.detach().clone()
    for i, (x, t, _, target) in zip(range(20), run.batches(), strict=False):
        torch.manual_seed(i)
        run.optimiser.param_groups[0]["lr"] = loop.scheduler.get_last_lr()[0]
        run.network.gradient(x, t, None, target)
        run.optimiser.step()
        torch.manual_seed(i)
        loop.step(x, t, target)
    parameters = torch.nn.utils.parameters_to_vector(loop.network.parameters())
    assert (run.vector - parameters).norm() < 1e-3 * (parameters - start).norm()


def cpu_ms(action) -> float:
    started = time.process_time()
    action()
    return 1e3 * (time.process_time() - started)


def main() -> None:
    torch.set_num_threads(1)
    zoo = random_zoo()
    c = coordinates(zoo)
    check(Straightforward(c.encode(zoo.weights)), flow_training.Run(zoo, preset("paper", zoo)))
    loops = {"full": Straightforward(zoo.weights), "span": Straightforward(c.encode(zoo.weights))}
    runs = {"paper": flow_training.Run(zoo, preset("paper", zoo)), "ours": flow_training.Run(zoo, Config())}
    times = {name: [] for name in [*loops, *runs]}
    for _ in range(REPEATS + 1):
        for name, loop in loops.items():
            times[name].append(cpu_ms(lambda loop=loop, name=name: loop.train(ITERATIONS[name])) / ITERATIONS[name])
        for name, run in runs.items():
            times[name].append(cpu_ms(run.train_chunk) / flow_training.CHUNK)
    ms = {name: statistics.median(spent[1:]) for name, spent in times.items()}  # the first turn warms up
    print(f"ms CPU an iteration, {N} x {NETWORK}, d={zoo.layout.d}, batch 8")
    rows = {
        "full": "straightforward, all weights",
        "span": f"straightforward, in the span (k={N - 1})",
        "paper": "wsnotebook, in the span",
    }
    for name, title in rows.items():
        print(f"  {title:40s} {ms[name]:8.2f}   {ms['full'] / ms[name]:6.1f}x   {ms['span'] / ms[name]:5.2f}x")
    print(f"  {'our own network and batches of 64':40s} {ms['ours']:8.2f}   (another recipe: no ratio)")
    print("25 samples by RK4, CPU seconds")
    flows = {name: weight_flow.Flow(run.config, c, None, run.chosen(), run.history) for name, run in runs.items()}
    samplers = {"paper's network": flows["paper"], "ours": flows["ours"], "closed form": ClosedForm(zoo)}
    for title, flow in samplers.items():
        for how, options in {"the paper's 100 steps": {"steps": 100, "power": 1}, "as it comes": {}}.items():
            spent = statistics.median(cpu_ms(lambda: flow.sample(25, **options)) / 1e3 for _ in range(REPEATS))  # noqa: B023
            print(f"  {f'{title}, {how}':40s} {spent:8.3f}")


if __name__ == "__main__":
    main()

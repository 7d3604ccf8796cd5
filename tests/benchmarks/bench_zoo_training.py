"""Training and scoring 16 networks at once against a plain PyTorch loop over them, side by side.

One thread, one process, CPU time, medians over alternating repeats, compiled beforehand. The loop is what one would
write: nn.Module, torch.optim.Adam, cross-entropy, tensors in memory, minibatches by index. Both take the same steps
from the same weights; a row is refused when most of the networks do not end at the same ones. (One or two may not:
where two maxima of a pool cell are within rounding, float32 and float64 also part.)
The last rows: `evaluation.report` of a whole zoo by the stacked engine, in the loop's place, and by the compiled one.
"""

import statistics
import sys
import time
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from wsnotebook import engines, evaluation, networks
from wsnotebook.layout import Layout
from wsnotebook.zoo.value import Zoo

K, ROWS, LR = 16, 2000, 1e-3
SHAPES = {
    "mlp-784-32-32-10": (1, 28, 28),
    "cnn-small": (1, 28, 28),
    "cnn-medium": (1, 28, 28),
    "cnn-large": (3, 32, 32),
    "cnn-tiny": (1, 8, 8),
}
TOLERANCE = {"lanes": 1e-5, "stacked": 1e-4}  # between the median network's weights in both


def setting(engine: str, name: str):
    """An engine over K networks, the same as modules, and images with labels."""
    modules = [networks.build(name, seed=seed) for seed in range(K)]
    weights = torch.stack([parameters_to_vector(module.parameters()).detach() for module in modules])
    same = torch.zeros(K)
    settings = {"lr": same + LR, "weight_decay": same, "dropout": same, "seeds": torch.arange(K)}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, *SHAPES[name], generator=generator)
    trainer = engines.make(engine, modules[0], weights, optimiser="adam", **settings)
    return trainer, modules, x, torch.arange(ROWS) % 10


def alternating(actions: list, repeats: int) -> list[float]:
    """Median CPU seconds of each action, taken in turn; the first turn compiles and does not count."""
    times = [[] for _ in actions]
    for _ in range(repeats + 1):
        for action, spent in zip(actions, times, strict=True):
            started = time.process_time()
            action()
            spent.append(time.process_time() - started)
    return [statistics.median(spent[1:]) for spent in times]


def loop(module, optimiser, x, y, rows) -> None:
    """One network's steps."""
    for batch in rows:
        optimiser.zero_grad()
        F.cross_entropy(module(x[batch]), y[batch]).backward()
        optimiser.step()


def training(engine: str, name: str, batch: int, steps: int, order: str = "own", repeats: int = 7) -> None:
    """A row: milliseconds a model-step. order: of the minibatches, each network's own or shared by all."""
    trainer, modules, x, y = setting(engine, name)
    optimisers = [torch.optim.Adam(module.parameters(), lr=LR) for module in modules]
    rows = torch.randint(ROWS, (K, steps, batch), generator=torch.Generator().manual_seed(1))
    rows = rows if order == "own" else rows[:1].expand(K, -1, -1)

    def one_by_one():
        for module, optimiser, own in zip(modules, optimisers, rows, strict=True):
            loop(module, optimiser, x, y, own)

    slow, fast = alternating(
        [one_by_one, lambda: trainer.run(x, y, rows if order == "own" else rows[0], torch.ones(steps))], repeats
    )
    weights = torch.stack([parameters_to_vector(module.parameters()).detach() for module in modules])
    error = float((trainer.weights - weights).abs().amax(1).median())
    if error > TOLERANCE[engine]:
        sys.exit(f"{name}: after {steps * (repeats + 1)} steps the weights differ by {error:.1e}")
    report(
        f"{name}, batch {batch} ({engine}, {order})",
        slow * 1e3 / steps / K,
        fast * 1e3 / steps / K,
        "ms a model-step",
        error,
    )


def scoring(engine: str, name: str, repeats: int = 7) -> None:
    """A row: microseconds a model-image, the loop in batches of 1000."""
    trainer, modules, x, y = setting(engine, name)

    @torch.no_grad()
    def one_by_one():
        return torch.stack([torch.cat([module(part) for part in x.split(1000)]) for module in modules])

    slow, fast = alternating([one_by_one, lambda: trainer.score(x, y)], repeats)
    error = float((one_by_one() - trainer.logits(x)).abs().max())
    if error > TOLERANCE[engine]:
        sys.exit(f"{name}: the logits differ by {error:.1e}")
    report(f"{name}, scoring ({engine})", slow * 1e6 / ROWS / K, fast * 1e6 / ROWS / K, "us a model-image", error)


def reporting(name: str, activation: str, n: int = 128, repeats: int = 3) -> None:
    """A row: microseconds a model-image of `evaluation.report`, stacked beside compiled."""
    modules = [networks.build(name, seed=seed, activation=activation) for seed in range(n)]
    layout = Layout.of(modules[0])
    weights = torch.stack([layout.flatten(module.state_dict()) for module in modules]).detach()
    zoo = Zoo(weights, layout, {"activation": np.full(n, activation)}, name, {})
    x = torch.randn(ROWS, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    split = x, torch.arange(ROWS) % 10

    def stacked(compute, *arguments):
        with mock.patch.object(engines, "choose", return_value="stacked"):
            return compute(*arguments)

    slow, fast = alternating(
        [lambda: stacked(evaluation.report, zoo, split), lambda: evaluation.report(zoo, split)], repeats
    )
    error = float((stacked(evaluation.logits, zoo, x[:200]) - evaluation.logits(zoo, x[:200])).abs().max())
    if error > TOLERANCE["lanes"]:
        sys.exit(f"{name}: the logits differ by {error:.1e}")
    report(
        f"{name}, {activation}, report of {n}", slow * 1e6 / ROWS / n, fast * 1e6 / ROWS / n, "us a model-image", error
    )


def report(row: str, slow: float, fast: float, unit: str, error: float) -> None:
    print(f"{row:<44}{slow:>12.3f}{fast:>12.4f}{slow / fast:>8.1f}x  {unit:<18}{error:.1e}", flush=True)


def main() -> None:
    print(f"{K} networks, Adam, one thread (median CPU time)")
    print(f"{'row':<44}{'loop':>12}{'ours':>12}{'ratio':>9}  {'unit':<18}difference")
    for batch, steps in ((10, 10), (64, 4)):
        training("stacked", "mlp-784-32-32-10", batch, steps, "shared")
        training("stacked", "mlp-784-32-32-10", batch, steps)
        training("stacked", "cnn-small", batch, steps, "shared")
        training("stacked", "cnn-small", batch, steps)
        training("lanes", "cnn-small", batch, steps)
    training("lanes", "cnn-medium", 10, steps=10)
    training("lanes", "cnn-large", 10, steps=4)
    training("lanes", "cnn-tiny", 10, steps=20)
    for name in ("cnn-small", "cnn-large"):
        scoring("lanes", name)
    for name, activation in (("cnn-small", "tanh"), ("cnn-small", "gelu"), ("cnn-tiny", "tanh")):
        reporting(name, activation)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

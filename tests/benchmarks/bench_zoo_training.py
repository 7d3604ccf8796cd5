"""Training and scoring 16 networks at once against a plain PyTorch loop over them, side by side.

    python tests/benchmarks/bench_zoo_training.py

The loop is what one would write: nn.Module, torch.optim.Adam, cross-entropy, tensors in memory, minibatches by index.
Both take the same steps from the same weights; a row is refused when most of the networks do not end at the same ones.
(One or two may not: where two maxima of a pool cell are within rounding, float32 and float64 also part.) The last rows:
`evaluation.report` of a whole zoo by the stacked engine, in the loop's place, and by the compiled one.
"""

from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from measured import Curve, Row, compared, curve, told
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from wsnotebook import engines, evaluation, networks
from wsnotebook.layout import Layout
from wsnotebook.zoo.value import Zoo

K, ROWS, LR = 16, 2000, 1e-3
MEASURES = (
    "accuracy and calibration are measured in the same way in both, which is a quarter of ours for cnn-tiny; "
    "PyTorch takes a fifth less for gelu than for tanh, ours takes as long"
)
LANES = "the promise was a prototype's in C; from run to run the loop takes 1.5 to 3.4 ms, ours 0.12 to 0.17 ms"
SHAPES = {
    "mlp-784-32-32-10": (1, 28, 28),
    "cnn-small": (1, 28, 28),
    "cnn-medium": (1, 28, 28),
    "cnn-large": (3, 32, 32),
    "cnn-tiny": (1, 8, 8),
}
TOLERANCE = {"lanes": 1e-5, "stacked": 1e-4}  # between the median network's weights in both


def images(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with labels."""
    x = torch.randn(ROWS, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    return x, torch.arange(ROWS) % 10


def starts(name: str, k: int, **options) -> list[torch.nn.Module]:
    return [networks.build(name, seed=seed, **options) for seed in range(k)]


class Loop:
    """k networks, each with its optimiser, one after the other."""

    def __init__(self, name: str, k: int):
        self.modules = starts(name, k)
        self.optimisers = [torch.optim.Adam(module.parameters(), lr=LR) for module in self.modules]

    def run(self, x, y, rows) -> None:
        """rows (k, steps, batch): each network's minibatches."""
        for module, optimiser, own in zip(self.modules, self.optimisers, rows, strict=True):
            for batch in own:
                optimiser.zero_grad()
                F.cross_entropy(module(x[batch]), y[batch]).backward()
                optimiser.step()

    @property
    def weights(self) -> torch.Tensor:
        return torch.stack([parameters_to_vector(module.parameters()).detach() for module in self.modules])

    @torch.no_grad()
    def logits(self, x) -> torch.Tensor:
        return torch.stack([torch.cat([module(part) for part in x.split(1000)]) for module in self.modules])


def engine(kind: str, name: str, k: int):
    """An engine over the same networks."""
    same = torch.zeros(k)
    settings = {"lr": same + LR, "weight_decay": same, "dropout": same, "seeds": torch.arange(k)}
    return engines.make(kind, starts(name, 1)[0], Loop(name, k).weights, optimiser="adam", **settings)


def minibatches(k: int, steps: int, batch: int, order: str) -> torch.Tensor:
    """(k, steps, batch). order: each network's own, or one shared by all."""
    rows = torch.randint(ROWS, (k, steps, batch), generator=torch.Generator().manual_seed(1))
    return rows if order == "own" else rows[:1].expand(k, -1, -1)


def training(kind: str, name: str, batch: int, steps: int, order: str = "own", **told) -> Row:
    """Times are of a model-step."""
    (x, y), rows = images(name), minibatches(K, steps, batch, order)
    loop, trainer = Loop(name, K), engine(kind, name, K)
    given = rows if order == "own" else rows[0]
    return compared(
        "zoo training",
        f"a step of each of {K} {name}, batch {batch}, {kind}" + (", one order" if order == "shared" else ""),
        lambda: loop.run(x, y, rows),
        lambda: trainer.run(x, y, given, torch.ones(steps)),
        difference=lambda: (trainer.weights - loop.weights).abs().amax(1).median(),
        tolerance=TOLERANCE[kind],
        per=(K * steps, K * steps),
        repeats=5,
        fresh=(
            lambda: Loop(name, K).run(x, y, rows),
            lambda: engine(kind, name, K).run(x, y, given, torch.ones(steps)),
        ),
        **told,
    )


def scoring(name: str) -> Row:
    """Times are of 1,000 images by a model, the loop in batches of 1000."""
    (x, y), loop, trainer = images(name), Loop(name, K), engine("lanes", name, K)
    return compared(
        "zoo scoring",
        f"1,000 images by each of {K} {name}, lanes",
        lambda: loop.logits(x),
        lambda: trainer.score(x, y),
        difference=lambda: (loop.logits(x) - trainer.logits(x)).abs().max(),
        tolerance=TOLERANCE["lanes"],
        per=(K * ROWS / 1000, K * ROWS / 1000),
        repeats=3,
    )


def reporting(name: str, activation: str, n: int = 32) -> Row:
    """`evaluation.report`, stacked beside compiled; times are of 1,000 images by a model."""
    modules = starts(name, n, activation=activation)
    layout = Layout.of(modules[0])
    weights = torch.stack([layout.flatten(module.state_dict()) for module in modules]).detach()
    zoo, split = Zoo(weights, layout, {"activation": np.full(n, activation)}, name, {}), images(name)

    def stacked(compute, *arguments):
        with mock.patch.object(engines, "choose", return_value="stacked"):
            return compute(*arguments)

    x = split[0][:200]
    return compared(
        "zoo reports",
        f"1,000 images by each of {n} {name}, {activation}, compiled beside stacked",
        lambda: stacked(evaluation.report, zoo, split),
        lambda: evaluation.report(zoo, split),
        difference=lambda: (stacked(evaluation.logits, zoo, x) - evaluation.logits(zoo, x)).abs().max(),
        tolerance=TOLERANCE["lanes"],
        per=(n * ROWS / 1000, n * ROWS / 1000),
        repeats=9,
        least=3,
        note=MEASURES,
    )


def rows() -> Iterator[Row]:
    yield training(
        "stacked", "mlp-784-32-32-10", 10, 10, "shared", least=6, note="the promise lies between the quartiles"
    )
    yield training("stacked", "mlp-784-32-32-10", 10, 10)
    yield training("stacked", "mlp-784-32-32-10", 64, 4, "shared")
    yield training("stacked", "cnn-small", 10, 10, "shared", least=2)
    yield training("lanes", "cnn-small", 10, 10, least=15, note=LANES)
    yield training("lanes", "cnn-small", 64, 4)
    yield training("lanes", "cnn-medium", 10, 10)
    yield training("lanes", "cnn-large", 10, 4)
    yield training("lanes", "cnn-tiny", 10, 20)
    yield scoring("cnn-small")
    for name, activation in (("cnn-small", "tanh"), ("cnn-small", "gelu"), ("cnn-tiny", "tanh")):
        yield reporting(name, activation)


def curves() -> Iterator[Curve]:
    (x, y), steps = images("cnn-small"), 5

    def ours(k: int):
        trainer, rows = engine("lanes", "cnn-small", k), minibatches(k, steps, 10, "own")
        return lambda: trainer.run(x, y, rows, torch.ones(steps))

    def plain(k: int):
        loop, rows = Loop("cnn-small", k), minibatches(k, steps, 10, "own")
        return lambda: loop.run(x, y, rows)

    makers = {"lanes": ours, "one by one": plain}
    yield curve("5 steps of a zoo", "networks (cnn-small)", [2**k for k in range(2, 10)], makers, {"one by one": 128})


if __name__ == "__main__":
    told(rows())

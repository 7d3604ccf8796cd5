"""What runs that train autoencoders of networks have in common (`sane_training`, `swat_training`): steps and chunks.

The randomness of a chunk of iterations depends on (seed, chunk) alone, so a run that was interrupted and goes on gives
the same numbers as one that was not.
"""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsnotebook.training import as_vector, epoch_randomness

CHUNK = 50  # iterations between two entries of the history
WARM_UP = 0.3  # share of the iterations before the largest learning rate
START, END = 1 / 25, 1e-4  # learning rates at both ends, as shares of it


class AutoencoderRun:
    """What changes while an autoencoder is trained, and so what is kept between chunks of iterations.

    Parameters are one vector (p,), so that a step of the optimiser and a norm are one operation each. A kind of run
    has a `step`, which ends in `descend` and gives (losses,), and `measured`, a list of numbers after every chunk.
    """

    def __init__(self, network: nn.Module, config, losses: Sequence[str], measured: Sequence[str]):
        self.config, self.network = config, network
        self.vector = as_vector(network)  # (p,) all parameters
        self.optimiser = torch.optim.AdamW([self.vector], config.lr, weight_decay=config.weight_decay, fused=True)
        self.iteration, self.spent = 0, 0.0
        self.history = {name: [] for name in ("iteration", *losses, *measured, "cpu_seconds")}

    def descend(self, loss: Tensor) -> None:
        """Move the parameters down the loss."""
        config = self.config
        self.vector.grad.zero_()
        loss.backward()
        self.vector.grad.mul_((config.clip / self.vector.grad.norm()).clamp(max=1))
        self.optimiser.param_groups[0]["lr"] = config.lr * one_cycle(self.iteration / config.iterations)
        self.optimiser.step()
        self.iteration += 1

    def train_chunk(self) -> None:
        """Train up to the next multiple of CHUNK, and measure."""
        config, started = self.config, time.process_time()
        steps = min(CHUNK, config.iterations - self.iteration)
        with epoch_randomness(config.seed, self.iteration // CHUNK, self.vector.device):
            losses = torch.stack([self.step() for _ in range(steps)]).mean(0).tolist()
        if not math.isfinite(losses[0]):
            raise ValueError(
                f"loss={losses[0]} at iteration {self.iteration}: training diverged; use a lr below {config.lr:g}"
            )
        self.spent += time.process_time() - started
        self.record(losses)

    def record(self, losses: Sequence[float]) -> None:
        """Add an entry to the history."""
        values = self.iteration, *losses, *self.measured(), self.spent
        for own, value in zip(self.history.values(), values, strict=True):
            own.append(value)

    def state(self) -> dict:
        """What `load` needs to go on from here."""
        return {"vector": self.vector.data, "optimiser": self.optimiser.state_dict(), "history": self.history}

    def load(self, stored: dict) -> None:
        self.vector.data.copy_(stored["vector"])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.history = stored["history"]
        self.iteration, self.spent = self.history["iteration"][-1], self.history["cpu_seconds"][-1]


def one_cycle(t: float) -> float:
    """Share of the largest learning rate at time t in [0, 1]: cosines from 1 / 25 up to 1, and down to 1e-4."""
    low, high, share = (START, 1, t / WARM_UP) if t < WARM_UP else (1, END, (t - WARM_UP) / (1 - WARM_UP))
    return high + (low - high) * 0.5 * (1 + math.cos(math.pi * share))

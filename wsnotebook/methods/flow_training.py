"""The loop that trains a weight flow (`weight_flow.train`): pairs from noise to networks, steps, and what is measured.

The randomness of a chunk of iterations depends on (seed, chunk) alone, so a run that was interrupted and goes on gives
the same numbers as one that was not.
"""

import copy
import time
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch
from torch import Tensor, nn

from wsnotebook.methods.conditions import conditions
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.velocity import PaperVelocity, ResidualVelocity, Velocity
from wsnotebook.training import SCHEDULES, as_vector, epoch_randomness
from wsnotebook.zoo.value import Zoo

CHUNK = 100  # iterations between two entries of the history
AT_ONCE = 2**20  # numbers drawn at once for the next steps, if they are small
PROBES = 256  # fixed pairs at which losses and the velocity's size are measured
HISTORY = ("iteration", "loss", "validation_loss", "velocity", "cpu_seconds")  # as `weight_flow.Flow` explains


class Run:
    """What changes while a flow is trained, and so what is kept between chunks of iterations.

    config: a `weight_flow.Config`. Parameters are one vector (p,), so that a step of the optimiser, an average and a
    copy are one operation each.
    """

    def __init__(self, zoo: Zoo, config):
        self.config = config
        held_out = None
        if config.held_out:
            zoo, held_out = zoo.split((1 - config.held_out, config.held_out), config.seed)
        self.coordinates = coordinates(zoo, config.components)
        self.z = self.coordinates.encode(zoo.weights)  # (n, k)
        self.conditions = conditions(zoo, config.condition) if config.condition else None
        self.c = self._encoded(zoo)  # (n, c)
        rms, device = self.coordinates.rms, self.z.device
        self.source, self.path_noise = config.source * rms, config.path_noise * rms  # absolute
        with epoch_randomness(config.seed, -1, device):
            self.network = self._network().to(device)
            self.frozen = copy.deepcopy(self.network).eval().requires_grad_(False)
            self.table = self.source * torch.randn_like(self.z)
            self.probes = self.pairs(self.z, self.c, PROBES)
            self.held_out = None
            if held_out:
                z = self.coordinates.encode(held_out.weights)
                self.held_out = self.pairs(z, self._encoded(held_out), PROBES)
        self.vector = as_vector(self.network)  # (p,) all parameters
        self.averaged = self.vector.detach().clone() if config.ema else self.vector.data
        self.best, self.best_loss = self.vector.detach().clone(), torch.tensor(float("inf"))
        self.optimiser = torch.optim.AdamW(
            [self.vector], config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.iteration, self.spent = 0, 0.0
        self.history = {name: [] for name in HISTORY}
        self._record(self.measured(self.probes)[0])

    def _encoded(self, zoo: Zoo) -> Tensor | None:
        """(n, c) the condition's features."""
        if self.conditions is None:
            return None
        return self.conditions.encode(zoo.facts[self.config.condition]).to(zoo.weights.device)

    def _network(self) -> Velocity:
        config, c = self.config, 0 if self.c is None else self.c.shape[1]
        if config.network == "paper":
            return PaperVelocity(self.z.shape[1], config.hidden, config.time_features, config.dropout, c)
        return ResidualVelocity(
            self.coordinates.deviations.cpu(),
            self.source,
            self.path_noise,
            config.hidden,
            config.blocks,
            config.time_features,
            config.dropout,
            c,
        )

    def pairs(self, z: Tensor, c: Tensor | None, b: int, table: Tensor | None = None) -> tuple:
        """(x_t (b, k), t (b,), condition (b, c) or None, target x1 - x0 (b, k)) of the flow to z."""
        rows = torch.randint(len(z), (b,), device=z.device)
        x1 = z[rows]
        if table is None:
            x0 = self.source * torch.randn_like(x1)
        else:
            x0 = table[torch.randint(len(table), (b,), device=z.device)]
        if self.config.time == "beta":
            t = torch.distributions.Beta(torch.tensor(2.0, device=z.device), 5.0).sample((b,))
        else:
            t = torch.rand(b, device=z.device)
        x = torch.lerp(x0, x1, t[:, None]) + self.path_noise * torch.randn_like(x1)
        return x, t, None if c is None else c[rows], x1 - x0

    def batches(self) -> Iterator[tuple]:
        """Pairs for one step after the other; many are drawn at once, because small tensors cost calls, not memory."""
        b = self.config.batch
        table = self.table if self.config.pairs == "table" else None
        together = b * max(1, min(CHUNK, AT_ONCE // (b * self.z.shape[1])))
        while True:
            x, t, c, target = self.pairs(self.z, self.c, together, table)
            conditions = repeat(None) if c is None else c.split(b)
            yield from zip(x.split(b), t.split(b), conditions, target.split(b), strict=False)

    def train_chunk(self) -> None:
        """Train up to the next multiple of CHUNK, and measure."""
        config, started = self.config, time.process_time()
        end = min(self.iteration + CHUNK, config.iterations)
        total = torch.zeros((), device=self.z.device)
        self.network.train()
        with epoch_randomness(config.seed, self.iteration // CHUNK, self.z.device):
            for i, (x, t, c, target) in zip(range(self.iteration, end), self.batches(), strict=False):
                share = SCHEDULES["cosine"](i / config.iterations)
                self.optimiser.param_groups[0]["lr"] = config.floor_lr + share * (config.lr - config.floor_lr)
                loss = self.network.gradient(x, t, c, target)
                if config.keep == "best_batch" and loss < self.best_loss:
                    self._keep_best(self.vector.data, loss)
                self.optimiser.step()
                if config.ema:
                    self.averaged.lerp_(self.vector.data, 1 - config.ema)
                total += loss
        relative = float(total) / (end - self.iteration) / float(self.probes[3].square().mean())
        if not np.isfinite(relative):
            raise ValueError(
                f"loss={relative} at iteration {end}: training diverged; use a smaller lr than {config.lr:g}"
            )
        self.iteration = end
        self.spent += time.process_time() - started
        self._record(relative)

    def _record(self, loss: float) -> None:
        _, velocity = self.measured(self.probes)
        validation = self.measured(self.held_out)[0] if self.held_out else float("nan")
        if self.config.keep == "validation" and validation < self.best_loss:
            self._keep_best(self.averaged, torch.tensor(validation))
        for name, value in zip(self.history, (self.iteration, loss, validation, velocity, self.spent), strict=True):
            self.history[name].append(value)

    @torch.no_grad()
    def measured(self, pairs: tuple) -> tuple[float, float]:
        """(loss relative to the target's mean square, rms of the velocity relative to the target's), of the average."""
        x, t, c, target = pairs
        v, size = self._with(self.averaged)(x, t, c), target.square().mean()
        return float((v - target).square().mean() / size), float((v.square().mean() / size).sqrt())

    def _with(self, vector: Tensor) -> Velocity:
        """The network that is not trained, with these parameters (p,)."""
        nn.utils.vector_to_parameters(vector.clone(), self.frozen.parameters())
        return self.frozen

    def _keep_best(self, vector: Tensor, loss: Tensor) -> None:
        self.best.copy_(vector)
        self.best_loss = loss.clone()

    def chosen(self) -> Velocity:
        """The network that the config asks to be kept."""
        return self._with(self.averaged if self.config.keep == "last" else self.best)

    def state(self) -> dict:
        """What `load` needs to go on from here."""
        tensors = {
            "vector": self.vector.data,
            "averaged": self.averaged,
            "best": self.best,
            "best_loss": self.best_loss,
        }
        return tensors | {"optimiser": self.optimiser.state_dict(), "history": self.history}

    def load(self, stored: dict) -> None:
        for name in ("vector", "averaged", "best"):
            getattr(self, name).data.copy_(stored[name])
        self.best_loss, self.history = stored["best_loss"], stored["history"]
        self.optimiser.load_state_dict(stored["optimiser"])
        self.iteration, self.spent = self.history["iteration"][-1], self.history["cpu_seconds"][-1]

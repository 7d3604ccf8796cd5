"""The loop that trains members together (`superweight_training.train`): epochs, steps, and what is measured."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from wsnotebook.datasets import Dataset
from wsnotebook.methods.superweight_baselines import Separate
from wsnotebook.methods.superweight_ensembles import average, member_logits, scores
from wsnotebook.methods.superweight_plan import Plan
from wsnotebook.methods.superweight_sharing import coefficient_gradients, disagreeing
from wsnotebook.methods.superweights import Bank
from wsnotebook.training import augmented, epoch_randomness, load_kept, minibatches, save_kept

DROPS = (0.3, 0.6, 0.8)  # of the run, where schedule "step" multiplies the learning rate by 0.2
MEASURED = ("epoch", "loss", "validation_loss", "validation_error", "member_errors", "vectors", "cpu_seconds")


class Run:
    """What changes while members are trained, and so what is kept between epochs.

    config: a `superweight_training.Config`. plan: of a bank of these networks; without clusters, they stay separate.
    """

    def __init__(self, networks: Sequence[nn.Module], plan: Plan, dataset: Dataset, config):
        self.networks, self.dataset, self.config = networks, dataset, config
        self.history, self.spent = {name: [] for name in MEASURED}, 0.0
        self._build(plan)

    def _build(self, plan: Plan) -> None:
        config = self.config
        if plan.clusters:
            self.model = Bank(self.networks, plan, seed=config.seed, noise=0.0 if config.hard else 0.1)
            self.model.coefficients.requires_grad_(not config.hard)
        else:
            self.model = Separate(self.networks, plan)
        self.model.to(self.dataset.train[0].device)
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": config.weight_decay, "fused": True}
        self.optimiser = torch.optim.SGD(self.model.parameter_groups(), config.lr, **options)
        for parameter in self.model.parameters():  # fused, SGD wants all or none of them there already
            self.optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def to_end(self, path: Path | None, description: str = "training") -> bool:
        """Train to the last epoch; False when it was interrupted (Ctrl-C, stop button).

        path: where the state is kept after every epoch, and taken up from; None: nowhere.
        """
        if stored := load_kept(path):
            self.load(stored)
        done, last = len(self.history["epoch"]), self.config.epochs
        try:
            with tqdm(range(done, last + 1), desc=description, unit="epoch", leave=False) as progress:
                for epoch in progress:
                    self.train_epoch(epoch)
                    progress.set_postfix_str(
                        f"validation error {self.history['validation_error'][-1]:.2f} %", refresh=False
                    )
                    save_kept(path, self.state())
        except KeyboardInterrupt:
            return False
        return True

    def train_epoch(self, epoch: int) -> None:
        """Train an epoch (none if it is 0), separate vectors if it is time to, and measure."""
        config, (x, _), started = self.config, self.dataset.train, time.process_time()
        total, steps = torch.zeros((), dtype=torch.float64, device=x.device), 0
        self.model.train()
        with epoch_randomness(config.seed, epoch, x.device):
            orders = 1 if config.shuffles == "same" else len(self.networks)
            streams = [minibatches(len(x), config, epoch, x.device) for _ in range(orders)]
            for drawn in zip(*streams, strict=True):
                total += self.step(drawn[0][0], [rows for _, rows in drawn])
                steps += 1
        loss = float(total) / steps if steps else math.nan
        if steps and not math.isfinite(loss):
            raise ValueError(f"loss={loss} in epoch {epoch}: training diverged; use a lr below {config.lr:g}")
        if epoch in config.unshare and isinstance(self.model, Bank):
            options = {"batches": config.batches, "batch": config.batch, "seed": config.seed}
            gradients = coefficient_gradients(self.model, self.dataset.train, **options)
            labels = disagreeing(gradients, self.model.plan, config.unshare_threshold, config.linkage)
            self.model.unshare(labels, self.optimiser)
        self._measure(epoch, loss, started)

    def step(self, t: float, rows: list[Tensor]) -> Tensor:
        """One step of the optimiser at time t in [0, 1] of the run; the members' mean loss.

        rows: of all members, or in independent shuffles of each.
        """
        config, (x, y), n = self.config, self.dataset.train, len(self.networks)
        chosen = list(range(n)) if config.members is None else sorted(torch.randperm(n)[: config.members].tolist())
        inputs = [cutout(augmented(x[r], config), config.cutout) for r in rows]
        labels = [y[r] for r in rows]
        each = [0] * len(chosen) if len(rows) == 1 else chosen  # which of these a member sees
        logits = self.model([inputs[m] for m in each], chosen)
        losses = [F.cross_entropy(own, labels[m]) for own, m in zip(logits, each, strict=True)]
        if config.distillation:
            ensemble = torch.stack(logits).detach().softmax(-1).mean(0)
            losses = [
                torch.lerp(loss, F.kl_div(own.log_softmax(-1), ensemble, reduction="batchmean"), config.distillation)
                for loss, own in zip(losses, logits, strict=True)
            ]
        loss = sum(losses)  # as members alone would be trained, whatever their number
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * rate(config, t)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach() / len(chosen)

    def _measure(self, epoch: int, loss: float, started: float) -> None:
        x, y = self.dataset.validation
        logits = member_logits(self.model, x)
        ensemble = scores(average(logits, logits.new_ones(1, len(logits)) / len(logits)), y)
        wrong = 100 * (logits.argmax(-1) != y).double().mean(-1)
        vectors = sum(map(len, self.model.coefficients)) if isinstance(self.model, Bank) else 0
        self.spent += time.process_time() - started
        nll, error = float(ensemble["nll"][0]), 100 - float(ensemble["accuracy"][0])
        values = epoch, loss, nll, error, wrong.tolist(), vectors, self.spent
        for own, value in zip(self.history.values(), values, strict=True):
            own.append(value)

    def state(self) -> dict:
        """What `load` needs to go on from here."""
        parts = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "history": self.history}
        return parts | {"plan": self.model.plan.to_dict()}

    def load(self, stored: dict) -> None:
        self._build(Plan.from_dict(stored["plan"]))
        self.model.load_state_dict(stored["model"])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.history = stored["history"]
        self.spent = self.history["cpu_seconds"][-1]


def rate(config, t: float) -> float:
    """Share of the largest learning rate at time t in [0, 1] of the run."""
    fall = 0.5 * (1 + math.cos(math.pi * t)) if config.schedule == "cosine" else 0.2 ** sum(t >= drop for drop in DROPS)
    return fall * (min(1.0, t * config.epochs / config.warm_up) if config.warm_up else 1.0)


def cutout(x: Tensor, side: int) -> Tensor:
    """Images (n, c, h, w), each with a square of `side` pixels at a random centre set to 0 (DeVries and Taylor 2017).

    What of the square is outside is lost. Raises ValueError for rows that are no images.
    """
    if not side:
        return x
    if x.ndim != 4:
        raise ValueError(f"cutout={side}: rows of shape {tuple(x.shape[1:])} are no images")
    first = [torch.randint(size, (len(x), 1), device=x.device) - side // 2 for size in x.shape[2:]]
    place = [torch.arange(size, device=x.device) - start for size, start in zip(x.shape[2:], first, strict=True)]
    rows, columns = ((p >= 0) & (p < side) for p in place)  # (n, h), (n, w)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

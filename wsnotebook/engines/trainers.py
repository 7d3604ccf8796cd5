"""The engines in torch: `StackedEngine` for k networks at once, `SingleEngine` for any module, one at a time.

Both have the same three methods and one attribute as `lanes.LaneEngine`: `run` trains so many steps, `score` and
`logits` evaluate, `weights` (k, d) are the networks now.
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.engines import stacked
from wsnotebook.layout import COUNTERS, Layout

BATCH = 1024  # rows at a time in evaluation


class StackedEngine:
    """k networks of one architecture in torch, as one computation. Raises ValueError for a module it cannot stack."""

    def __init__(
        self,
        network: nn.Module,
        weights: Tensor,  # (k, d), rows in state-dict order
        *,
        optimiser: str,  # adam | adamw | sgd (Nesterov momentum 0.9)
        lr: Tensor,  # (k,)
        weight_decay: Tensor,  # (k,)
        dropout: Tensor,  # (k,) probabilities
        seeds: Tensor,  # (k,) of the dropout masks
        frozen: Collection[str] = (),  # names of the parameters that stay as they are
    ):
        if not stacked.supports(network):
            raise ValueError(f"{type(network).__name__} cannot be stacked: expected a flat Sequential of known layers")
        self.network, self.layout = network, Layout.of(network)
        self.states = {n: t.clone().requires_grad_(n not in frozen) for n, t in self.layout.unflatten(weights).items()}
        self.learned = [t for t in self.states.values() if t.requires_grad]
        self.dropout, self.seeds = stacked.Dropout(dropout, seeds) if dropout.any() else None, seeds
        alike = torch.stack([lr, weight_decay], 1)  # neighbours with the same settings are one block of the optimiser
        starts = [0, *(torch.flatten((alike[1:] != alike[:-1]).any(1).nonzero()) + 1).tolist(), len(lr)]
        self.blocks = list(zip(starts, starts[1:], strict=False))
        groups = [
            {
                "params": [t.detach()[a:b] for t in self.learned],
                "lr": lr[a].item(),
                "decay": weight_decay[a].item(),
            }
            for a, b in self.blocks
        ]
        self.optimiser = make_optimiser(optimiser, groups)

    def run(self, x: Tensor, y: Tensor, rows: Tensor, lr_scale: Tensor) -> Tensor:
        """Train on the minibatches `rows` of x (n, ...) and y (n,); returns each network's mean loss, nats (k,).

        rows (steps, batch), or each network's own (k, steps, batch); -1 is no row, in the same places for all.
        lr_scale (steps,) multiplies the learning rates.
        """
        total, own = torch.zeros(len(self.seeds), device=x.device), rows.ndim == 3
        if isinstance(self.network[0], nn.Flatten):
            x = x.flatten(1)
        for batch, scale in zip(rows.unbind(-2), lr_scale.tolist(), strict=True):
            batch = batch[..., (batch >= 0).view(-1, batch.shape[-1])[0]]  # (b,) or (k, b): the last one is shorter
            logits = stacked.forward(self.network, self.states, x[batch], self.dropout, own)  # (k, b, classes)
            target = y[batch].expand(len(logits), -1)
            losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target).mean(1)
            gradients = torch.autograd.grad(losses.sum(), self.learned)
            for (a, b), group in zip(self.blocks, self.optimiser.param_groups, strict=True):
                group["lr"] = group["initial_lr"] * scale
                for parameter, gradient in zip(group["params"], gradients, strict=True):
                    parameter.grad = gradient[a:b].contiguous()  # the fused step reads memory in order
            self.optimiser.step()
            total += losses.detach()
        return total / rows.shape[-2]

    @property
    def weights(self) -> Tensor:
        """(k, d)."""
        return self.layout.flatten({name: t.detach() for name, t in self.states.items()})

    def score(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(accuracy in % (k,), mean cross-entropy in nats (k,)) in evaluation mode, float64."""
        return score(self.logits(x), y)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """(k, n, classes) in evaluation mode."""
        return torch.cat([stacked.forward(self.network, self.states, part) for part in x.split(BATCH)], 1)


class SingleEngine:
    """Any module, with its buffers; k networks, trained one after another. Settings as for `StackedEngine`.

    The running statistics of a frozen batch norm go on adapting, as in PyTorch: they are no parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Tensor,
        *,
        optimiser: str,
        lr: Tensor,
        weight_decay: Tensor,
        dropout: Tensor,
        seeds: Tensor,
        frozen: Collection[str] = (),
    ):
        self.layout, self.networks, self.optimisers = Layout.of(network, exclude=COUNTERS), [], []
        self.seeds, self.step = seeds.tolist(), 0
        for row, rate, decay, p in zip(weights, lr.tolist(), weight_decay.tolist(), dropout.tolist(), strict=True):
            one = copy.deepcopy(network)
            one.load_state_dict(self.layout.unflatten(row), strict=False)
            for module in one.modules():
                if isinstance(module, nn.Dropout) and p > 0:
                    module.p = p
            for name, parameter in one.named_parameters():
                parameter.requires_grad_(name not in frozen)
            group = {"params": [p for p in one.parameters() if p.requires_grad], "lr": rate, "decay": decay}
            self.networks.append(one)
            self.optimisers.append(make_optimiser(optimiser, [group]))

    def run(self, x: Tensor, y: Tensor, rows: Tensor, lr_scale: Tensor) -> Tensor:
        """As `StackedEngine.run`."""
        totals, first = [], self.step
        self.step += rows.shape[-2]
        rows = rows.expand(len(self.networks), *rows.shape[-2:])
        for network, optimiser, seed, own in zip(self.networks, self.optimisers, self.seeds, rows, strict=True):
            total, group = torch.zeros((), device=x.device), optimiser.param_groups[0]
            network.train()
            with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
                torch.manual_seed(seed + 1_000_003 * first)  # dropout: the same however the others are trained
                for batch, scale in zip(own, lr_scale.tolist(), strict=True):
                    batch = batch[batch >= 0]
                    group["lr"] = group["initial_lr"] * scale
                    loss = F.cross_entropy(network(x[batch]), y[batch])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    total += loss.detach()
            totals.append(total / len(own))
        return torch.stack(totals)

    @property
    def weights(self) -> Tensor:
        """(k, d)."""
        return torch.stack([self.layout.flatten(network.state_dict()) for network in self.networks])

    def score(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As `StackedEngine.score`."""
        return score(self.logits(x), y)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """(k, n, classes) in evaluation mode."""
        for network in self.networks:
            network.eval()
        return torch.stack([torch.cat([network(part) for part in x.split(BATCH)]) for network in self.networks])


def make_optimiser(name: str, groups: list[dict]) -> torch.optim.Optimizer:
    """A fused optimiser over groups {params, lr, decay}; each group's first rate is kept as "initial_lr"."""
    groups = [{"params": g["params"], "lr": g["lr"], "weight_decay": g["decay"], "initial_lr": g["lr"]} for g in groups]
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, fused=True)


def score(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(accuracy in % (k,), mean cross-entropy in nats (k,)), float64, of logits (k, n, classes)."""
    accuracy = 100 * (logits.argmax(2) == y).double().mean(1)
    losses = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="none")
    return accuracy, losses.view(len(logits), -1).double().mean(1)

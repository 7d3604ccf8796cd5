"""The run that trains SWAT-NN's autoencoder (`swat_nn.train`): draws of the stream, steps, and what is measured."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.methods import swat_stream
from wsnotebook.methods.autoencoder_run import AutoencoderRun
from wsnotebook.methods.mlp_matrix import Form, Parts, canonical, concat, evaluate, from_rows, live, to_rows, used
from wsnotebook.methods.swat_autoencoder import Autoencoder, soft
from wsnotebook.training import epoch_randomness

LOSSES = ("loss", "functional", "parameters")  # of the history: `swat_nn.Swat`
HELD_OUT = 256  # networks that the history's FVU is measured on, drawn apart
POINTS = 128  # inputs that they are compared at
CPU = torch.device("cpu")
EPS = 1e-3  # added to a target's variance: what counts as constant


class Run(AutoencoderRun):
    """What changes while the autoencoder is trained; config: a `swat_nn.Config`. Networks are drawn on the CPU."""

    def __init__(self, config, device: str | torch.device = "cpu"):
        self.form, self.device = config.form, device
        with epoch_randomness(config.seed, -1, CPU):
            self.held_out, self.points = draws(config, HELD_OUT), points(self.form, POINTS)
            network = autoencoder(config, row_scale(self.form, self.held_out))
        fvus = [f"fvu_{d}" for d in range(1, self.form.depth + 1)]
        self.held_out, self.points = self.held_out.to(device), self.points.to(device)
        super().__init__(network.to(device), config, LOSSES, fvus)
        self.record([math.nan] * len(LOSSES))

    def step(self) -> Tensor:
        """One step of the optimiser; (loss, functional, parameters)."""
        config, form, t = self.config, self.form, self.iteration / self.config.iterations
        drawn, x = swat_stream.draw(form, config.stream, config.batch), points(form, config.points)
        drawn, x = drawn.to(self.device), x.to(self.device)
        y = evaluate(form, swat_stream.target(config.stream, drawn), x)
        ordered = canonical(form, drawn)
        z = self.network.encode(ordered if config.order == "canonical" else drawn)
        z = z + config.noise * torch.randn_like(z)
        if config.loss == "best":
            functional, term = self._best(z, x, y), z.new_zeros(())
        else:
            raw, target = self.network.decode(z, drawn.depth), y
            term = parameter_error(form, raw, ordered, self.network.scale)
            if others := int(config.cross * config.batch):
                apart = torch.randint(1, form.depth, (others,)).to(self.device) if form.depth > 1 else 0
                depth = (drawn.depth[:others] - 1 + apart) % form.depth + 1
                raw, target = concat([raw, self.network.decode(z[:others], depth)]), torch.cat([y, y[:others]])
            functional = fvu(evaluate(form, soft(form, raw), x), target).log1p().mean()
        fall = config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * t))
        loss = functional + config.parameters * fall * term
        self.descend(loss)
        return torch.stack([loss, functional, term]).detach()

    def _best(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The published loss: raw square error at the depth where a network's is smallest."""
        errors = []
        for d in range(1, self.form.depth + 1):
            made = soft(self.form, self.network.decode(z, torch.full((len(z),), d, device=z.device)))
            errors.append((evaluate(self.form, made, x) - y).square().mean((1, 2)))
        return torch.stack(errors).amin(0).mean()

    @torch.no_grad()
    def measured(self) -> list[float]:
        """Median FVU of held-out networks of each depth, decoded at their own."""
        form, own = self.form, self.held_out
        y = evaluate(form, swat_stream.target(self.config.stream, own), self.points)
        z = self.network.encode(canonical(form, own) if self.config.order == "canonical" else own)
        errors = fvu(evaluate(form, soft(form, self.network.decode(z, own.depth)), self.points), y)
        return [float(errors[own.depth == d].median()) for d in range(1, form.depth + 1)]


def autoencoder(config, scale: Tensor) -> Autoencoder:
    """A fresh network of a `swat_nn.Config`; scale: as of `row_scale`."""
    shape = {name: getattr(config, name) for name in ("z", "dim", "heads", "blocks", "linear")}
    return Autoencoder(config.form, scale, shared=config.shared, causal=config.causal, places=config.places, **shape)


def draws(config, n: int) -> Parts:
    """n networks of the stream, as many of each depth as its draws happen to have, from PyTorch's random numbers."""
    batches = [swat_stream.draw(config.form, config.stream, config.batch) for _ in range(-(-n // config.batch))]
    return concat(batches).take(slice(n))


def points(form: Form, m: int) -> Tensor:
    """Inputs (m, inputs), uniform in [-1, 1]."""
    return 2 * torch.rand(m, form.inputs) - 1


def row_scale(form: Form, parts: Parts) -> Tensor:
    """(F,) root mean square of each number in a row, over the units that are on; 1 for activations and masks."""
    rows, there = to_rows(form, parts), to_rows(form, live(form, parts))
    scale = (rows.square().sum((0, 1)) / there.sum((0, 1)).clamp(min=1)).sqrt()
    scale[(form.depth + 1) * (form.rows + 1) :] = 1
    return torch.where(scale > 0, scale, 1)


def fvu(outputs: Tensor, target: Tensor) -> Tensor:
    """(n,) share of the target's variance over the points that is not explained; both (n, m, outputs)."""
    variance = target.var(1, unbiased=False).mean(1)
    return (outputs - target).square().mean((1, 2)) / (variance + EPS)


def parameter_error(form: Form, raw: Parts, target: Parts, scale: Tensor) -> Tensor:
    """How far decoded numbers are from a plain network's own: where these count, each kind a mean.

    Square errors of weights and of biases, in units of `scale`; cross-entropies of activations and masks.
    """
    there, unit = live(form, target), from_rows(form, scale.expand(1, form.rows, -1), target.depth.new_ones(1))
    on, real = there.masks.to(scale), used(form, target.depth).masks.to(scale)
    weights, biases = (
        (((a - b) / s).square() * where).sum() / where.sum()
        for a, b, s, where in zip(raw[:2], target[:2], unit[:2], there[:2], strict=True)
    )
    wrong = -(raw.activations.log_softmax(-1) * target.activations).sum() / on.sum()
    masks = F.binary_cross_entropy_with_logits(raw.masks, target.masks, real, reduction="sum") / real.sum()
    return weights + biases + wrong + masks

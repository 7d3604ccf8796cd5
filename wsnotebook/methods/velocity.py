"""Velocity networks v(x, t) of a flow from noise to k coordinates of networks. n points, c condition features.

`PaperVelocity` is the published one (Gupta et al. 2026). `ResidualVelocity` is ours: it adds to the velocity that is
exact for a Gaussian zoo a network of the rest, whose inputs and outputs have unit variance at every time and for every
scale of the source (after Karras et al. 2022). Untrained, it generates the Gaussian of the zoo.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default

FREQUENCIES = (0.25, 128.0)  # of the time features, in turns over the whole time


class Velocity(nn.Module):
    """What both networks have: (x (n, k), t (n,) or (1,) in [0, 1], condition (n, c) or None) -> velocity (n, k)."""

    def gradient(self, x: Tensor, t: Tensor, condition: Tensor | None, target: Tensor) -> Tensor:
        """The loss mean (v - target)^2; its gradient replaces the parameters' .grad, which must be there."""
        torch._foreach_zero_([p.grad for p in self.parameters()])
        loss = (self(x, t, condition) - target).square().mean()
        loss.backward()
        return loss.detach()


class PaperVelocity(Velocity):
    """Three hidden layers of widths h, h / 2, h; time, and the condition if there is one, by a small network each."""

    def __init__(self, k: int, hidden: int, time: int, dropout: float, conditions: int = 0):
        super().__init__()
        self.embed_time = _embedding(1, time)
        self.embed_condition = _embedding(conditions, time) if conditions else None
        inputs = k + time * (1 + bool(conditions))
        self.layers = nn.Sequential(
            *(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden // 2), nn.LayerNorm(hidden // 2), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden // 2, hidden), nn.LayerNorm(hidden), nn.GELU()),
            _zero(nn.Linear(hidden, k)),
        )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        parts = [x, self.embed_time(t[:, None]).expand(len(x), -1)]
        if self.embed_condition is not None:
            parts.append(self.embed_condition(condition))
        return self.layers(torch.cat(parts, 1))

    @torch.inference_mode()
    def gradient(self, x: Tensor, t: Tensor, condition: Tensor | None, target: Tensor) -> Tensor:
        # by hand: with the paper's batches of 8, autograd's bookkeeping costs as much as the arithmetic
        embeddings = [_Traced(self.embed_time, t[:, None])]
        if self.embed_condition is not None:
            embeddings.append(_Traced(self.embed_condition, condition))
        layers = _Traced(self.layers, torch.cat([x, *(e.out for e in embeddings)], 1))
        difference = layers.out - target
        first = self.layers[0].weight[:, x.shape[1] :]  # nothing is asked of x's gradient
        inputs = layers.backward(difference * (2 / difference.numel())) @ first
        for e, part in zip(embeddings, inputs.split(self.embed_time[-1].out_features, 1), strict=True):
            e.backward(part)
        return difference.square().mean()


class ResidualVelocity(Velocity):
    """The velocity of a Gaussian zoo, plus residual blocks that time and condition modulate.

    deviations (k,): of the zoo's coordinates; source, path_noise: standard deviations, in the same units.
    """

    def __init__(
        self,
        deviations: Tensor,
        source: float,
        path_noise: float,
        hidden: int,
        blocks: int,
        time: int,
        dropout: float,
        conditions: int = 0,
    ):
        super().__init__()
        self.register_buffer("variances", deviations.square())  # (k,)
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(*map(math.log2, FREQUENCIES), time // 2, 2.0))
        self.source, self.path_noise = source, path_noise
        k = len(deviations)
        self.inputs = nn.Linear(k, hidden)
        self.embed = nn.Sequential(nn.Linear(2 * (time // 2) + conditions, time), nn.SiLU())
        self.blocks = nn.ModuleList(_Block(hidden, time, dropout) for _ in range(blocks))
        self.outputs = nn.Sequential(nn.LayerNorm(hidden), _zero(nn.Linear(hidden, k)))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        t = t[:, None] if condition is None else t[:, None].expand(len(x), 1)
        source, noise, zoo = self.source**2, self.path_noise**2, self.variances
        variance = (1 - t).square() * source + t.square() * zoo + noise  # (n or 1, k) of x at t
        gaussian = (t * zoo - (1 - t) * source) / variance * x  # E[x1 - x0 | x] if the zoo were Gaussian
        rest = (zoo * source + noise * (zoo + source)) / variance  # variance of x1 - x0 given x, then
        angles = t * self.frequencies
        features = [angles.sin(), angles.cos()] + ([] if condition is None else [condition])
        e = self.embed(torch.cat(features, 1))  # (n or 1, time)
        h = self.inputs(x * variance.rsqrt())
        for block in self.blocks:
            h = block(h, e)
        return gaussian + rest.sqrt() * self.outputs(h)


class _Block(nn.Module):
    """h + two layers, of a normalised h that e scales and shifts."""

    def __init__(self, hidden: int, time: int, dropout: float):
        super().__init__()
        self.modulation = nn.Linear(time, 2 * hidden)
        self.layers = nn.Sequential(
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden)
        )

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.modulation(e).chunk(2, 1)
        return h + self.layers(F.layer_norm(h, h.shape[1:]) * (1 + scale) + shift)


class _Traced:
    """A chain of linear layers, layer norms, GELUs and dropouts, run forward with what its gradient needs."""

    def __init__(self, layers: nn.Sequential, x: Tensor):
        self.steps = []  # (layer, input, what else)
        for layer in layers:
            more = ()
            if isinstance(layer, nn.Linear):
                out = F.linear(x, layer.weight, layer.bias)
            elif isinstance(layer, nn.LayerNorm):
                out, *more = torch.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
            elif isinstance(layer, nn.GELU):
                phi = torch.special.ndtr(x)  # kept for the gradient, which is quicker than GELU's own
                out, more = x * phi, (phi,)
            else:
                keep = 1 - layer.p if layer.training else 1
                more = (torch.empty_like(x).bernoulli_(keep).div_(keep),) if keep < 1 else ()
                out = x * more[0] if more else x
            self.steps.append((layer, x, more))
            x = out
        self.out = x

    def backward(self, d: Tensor) -> Tensor:
        """Write the parameters' gradients; d: by the output -> by the first layer's, which is linear."""
        for layer, x, more in reversed(self.steps):
            if isinstance(layer, nn.Linear):
                torch.mm(d.T, x, out=layer.weight.grad)
                torch.sum(d, 0, out=layer.bias.grad)
                if layer is not self.steps[0][0]:
                    d = d @ layer.weight
            elif isinstance(layer, nn.LayerNorm):
                d, weight, bias = layer_norm_backward(
                    d, x, layer.normalized_shape, *more, layer.weight, layer.bias, [True] * 3
                )
                layer.weight.grad.copy_(weight)
                layer.bias.grad.copy_(bias)
            elif isinstance(layer, nn.GELU):
                slope = torch.square(x).mul_(-0.5).exp_()
                d = torch.addcmul(more[0], x, slope, value=(2 * math.pi) ** -0.5).mul_(d)
            elif more:
                d = d * more[0]
        return d


def _embedding(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

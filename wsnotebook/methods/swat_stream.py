"""The endless stream of random perceptrons that SWAT-NN's autoencoder is trained on (Huang et al. 2025).

What we do differently from the public code ("ours"): depth and sparsity are each network's own; activations are pure,
as those of the networks that are searched for; a unit's weights are the smaller the more units it reads, so that
outputs keep their size over depth; layers are drawn with a unit or more. In both, what a network does not use is 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wsnotebook.methods.mlp_matrix import Form, Parts, hardened, used
from wsnotebook.training import check_at_least, check_choice


@dataclass(frozen=True)
class Stream:
    """How networks are drawn. `preset` has the paper's settings and ours."""

    first: float = 2.0  # first layer's weights: uniform up to this
    gain: float | None = 2.0  # deviation of the others', times the root of the units that are read; None: as the first
    bias: float = 1.0  # biases: uniform up to this
    on: float = 0.7  # probability that a unit is on
    sparsity: tuple[float, ...] = (0.0, 0.2, 0.4)  # probability that a weight is 0: one of these
    dead: bool = False  # whether a layer may be drawn without units, its network then being constant
    mixed: bool = True  # depth and sparsity of each network; False: of each draw
    blended: bool = False  # targets compute softmax(activations): each unit a blend of all (the public code)

    def __post_init__(self):
        check_at_least(self, first=0, bias=0, on=0)
        if self.gain is not None:
            check_at_least(self, gain=0)
        if self.on > 1 or not self.sparsity or not all(0 <= share <= 1 for share in self.sparsity):
            raise ValueError(f"on={self.on}, sparsity={self.sparsity}: expected probabilities")


def preset(name: str) -> Stream:
    """The stream "paper" or "ours". Raises ValueError for another name."""
    check_choice("stream", name, ("paper", "ours"))
    if name == "ours":
        return Stream()
    return Stream(first=5.0, gain=None, on=0.5, dead=True, mixed=False, blended=True)


def draw(form: Form, stream: Stream, n: int, generator: torch.Generator | None = None) -> Parts:
    """n random plain networks of the form. generator None: PyTorch's own."""

    def uniform(shape) -> Tensor:
        return torch.rand(shape, generator=generator)

    each = n if stream.mixed else 1
    depth = torch.randint(1, form.depth + 1, (each,), generator=generator).expand(n).contiguous()
    sparsity = torch.tensor(stream.sparsity)[torch.randint(len(stream.sparsity), (each,), generator=generator)]
    real = used(form, depth)
    chance = uniform(real.masks.shape)
    on = chance < stream.on
    if not stream.dead:
        on |= chance == chance[..., : form.width].amin(-1, keepdim=True)
    masks = (on & real.masks).float()
    kinds = torch.randint(len(form.activations), masks.shape, generator=generator)
    weights = stream.first * (2 * uniform(real.weights.shape) - 1)
    if stream.gain is not None:
        read = torch.cat([masks[:, :-1].sum(-1), masks[torch.arange(n), depth - 1].sum(-1)[:, None]], 1)  # (n, L)
        weights[:, 1:] *= (stream.gain * math.sqrt(3) / stream.first / read.clamp(min=1).sqrt())[..., None, None]
    weights *= uniform(weights.shape) >= sparsity[:, None, None, None]
    biases = stream.bias * (2 * uniform(real.biases.shape) - 1)
    return hardened(form, Parts(weights, biases, F.one_hot(kinds, len(form.activations)).float(), masks, depth))


def target(stream: Stream, parts: Parts) -> Parts:
    """The networks whose outputs are to be matched: the drawn ones, or blends of activations."""
    return parts._replace(activations=parts.activations.softmax(-1)) if stream.blended else parts

"""SWAT-NN's autoencoder: the rows of a network's matrix are a transformer's tokens, there and back (Huang et al. 2025).

A token has a row's numbers and which of them are real; a decoded row has weights, biases, and logits of activations and
masks. What we do differently from the public code: attention sees all rows, not only those before; one decoder serves
all depths, being told the depth; a row is reduced to z numbers of mean square 1, so that N(0, 1) is where latents are;
a linear map goes around the transformers, which they correct. The published form, five GPT-2 smalls, is the same class
with other numbers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.methods.mlp_matrix import Form, Parts, from_rows, to_rows, used
from wsnotebook.networks import TransformerBlock

INIT = 0.02  # standard deviation of initial positions and depth vectors


class Autoencoder(nn.Module):
    """Networks of one form -> latents (n, H, z) -> networks.

    scale (F,): the size of the numbers in a row. z: numbers in a latent; None: the hidden state itself, as published.
    linear: a linear map goes there and back beside the transformers. shared: one decoder, told the depth; False: one
    for each depth. causal: a row does not see those after it. places: that a transformer has positions for.
    """

    def __init__(
        self,
        form: Form,
        scale: Tensor,
        *,
        z: int | None,
        dim: int,
        heads: int,
        blocks: int,
        linear: bool,
        shared: bool = True,
        causal: bool = False,
        places: int | None = None,
    ):
        super().__init__()
        self.form, shape = form, (dim, heads, blocks, places or form.rows, causal)
        self.register_buffer("scale", scale)
        self.read = nn.Linear(2 * form.columns, dim)
        self.positions = nn.Parameter(INIT * torch.randn(form.rows, dim))
        self.encoder = Trunk(*shape)
        self.to_z, self.from_z = (nn.Linear(dim, z), nn.Linear(z, dim)) if z else (None, None)
        self.there, self.back = self._linear_path(form.columns, z) if linear else (None, None)
        self.depths = nn.Parameter(INIT * torch.randn(form.depth, dim)) if shared else None
        self.decoders = nn.ModuleList(Trunk(*shape) for _ in range(1 if shared else form.depth))
        self.write = nn.ModuleList(nn.Linear(dim, form.columns) for _ in self.decoders)

    @staticmethod
    def _linear_path(columns: int, z: int) -> tuple[nn.Linear, nn.Linear]:
        there, back = nn.Linear(columns, z, bias=False), nn.Linear(z, columns, bias=False)
        nn.init.orthogonal_(there.weight)
        back.weight.data.copy_(there.weight.data.T)
        return there, back

    def encode(self, parts: Parts) -> Tensor:
        """Networks -> latents (n, H, z)."""
        rows = to_rows(self.form, parts) / self.scale  # (n, H, F)
        real = to_rows(self.form, used(self.form, parts.depth)).to(rows)
        h = self.encoder(self.read(torch.cat([rows, real], 2)) + self.positions)
        if self.to_z is None:
            return h
        z = self.to_z(h) if self.there is None else self.to_z(h) + self.there(rows)
        return F.layer_norm(z, z.shape[2:])

    def decode(self, z: Tensor, depth: Tensor) -> Parts:
        """Latents (n, H, z) -> networks of these depths, logits for activations and masks; unused: anything."""
        h = z if self.from_z is None else self.from_z(z)
        if self.depths is not None:
            rows = self.write[0](self.decoders[0](h + self.depths[depth - 1][:, None]))
        else:
            rows = h.new_zeros(*h.shape[:2], self.form.columns)
            for d in depth.unique().tolist():
                own = depth == d
                rows[own] = self.write[d - 1](self.decoders[d - 1](h[own]))
        if self.back is not None:
            rows = rows + self.back(z)
        return from_rows(self.form, rows * self.scale, depth)


def soft(form: Form, raw: Parts, temperature: float = 1.0) -> Parts:
    """Decoded numbers as networks: shares by a softmax over activations, masks by a sigmoid, 0 where nothing is used.

    temperature: what the logits of the activations are divided by; towards 0 one activation has it all.
    """
    weights, biases, activations, masks, depth = raw
    parts = weights, biases, (activations / temperature).softmax(-1), masks.sigmoid()
    return Parts(*(part * here for part, here in zip(parts, used(form, depth)[:4], strict=True)), depth)


class Trunk(nn.Module):
    """Positions, transformer blocks and a norm: (n, w, dim) -> (n, w, dim)."""

    def __init__(self, dim: int, heads: int, blocks: int, places: int, causal: bool):
        super().__init__()
        self.positions = nn.Parameter(INIT * torch.randn(places, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, causal=causal) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(self.blocks(h + self.positions[: h.shape[1]]))

"""New perceptrons for a function from SWAT-NN's latents of searched ones, beside ways without an autoencoder.

Their architectures differ, so zoos of one architecture (`generation`) have no place for them: networks are told apart
by their numbers in canonical order (`mlp_matrix.to_rows`), and are good if they leave little variance unexplained.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wsnotebook.cornn import Table
from wsnotebook.methods import mlp_fitting
from wsnotebook.methods.latent_search import Found
from wsnotebook.methods.mlp_matrix import Form, Parts, canonical, from_rows, hardened, to_rows
from wsnotebook.methods.swat_nn import Swat
from wsnotebook.methods.swat_stream import Stream, draw


@dataclass(frozen=True, eq=False)
class Sampled:
    """n plain networks made in one way; shares of the test rows' variance left unexplained (1: as a constant)."""

    method: str
    nearest: Tensor  # (n,) distance to the nearest searched network; 1: as far as a searched network's numbers from 0
    fvu: Tensor  # (n,) as made
    fitted: Tensor  # (n,) after training


def compare(
    swat: Swat, found: Found, function: str, table: Table, n: int, config: mlp_fitting.Config, seed: int = 0
) -> list[Sampled]:
    """n networks of each way for one function, all trained on in the same way; the searched ones first.

    The searched ones are those of the commonest depth. Raises ValueError for a function that was not searched.
    """
    rows = found.rows(function)
    depth = found.parts.depth[rows].mode().values
    form, own = found.form, canonical(found.form, found.parts.take(rows[found.parts.depth[rows] == depth]))
    generator = torch.Generator().manual_seed(seed)
    z, numbers, depths = swat.embed(own).cpu(), to_rows(form, own), depth.expand(n)

    def spread(points: Tensor) -> Tensor:
        return torch.randn(n, *points.shape[1:], generator=generator) * points.std(0)

    at = torch.randint(len(z), (n,), generator=generator)
    with torch.no_grad():
        made = {
            "SWAT-NN, reconstructed": swat.decode(z, own.depth),
            "SWAT-NN, kde 0.2": swat.decode(z[at] + 0.2 * spread(z), depths),
            "SWAT-NN, Gaussian": swat.decode(z.mean(0) + spread(z), depths),
        }
    made |= {
        "noise, 20 % of the spread": from_rows(form, numbers[at] + 0.2 * spread(numbers), depths),
        "Gaussian, weight by weight": from_rows(form, numbers.mean(0) + spread(numbers), depths),
        "from scratch": _drawn(form, int(depth), n, generator),
    }
    plain = {"as searched": own} | {method: hardened(form, parts.to("cpu")) for method, parts in made.items()}
    k = table.names.index(function)
    unit = numbers.flatten(1).norm(dim=1).median()
    return [
        Sampled(
            method,
            _nearest(form, parts, own, method == "as searched") / unit,
            *_unexplained(form, parts, table, k, config),
        )
        for method, parts in plain.items()
    ]


def _drawn(form: Form, depth: int, n: int, generator: torch.Generator) -> Parts:
    """n large random networks of this depth, as trainings and searches start from."""
    parts = draw(form, Stream(on=0.95, sparsity=(0.0,)), 16 * n * form.depth, generator)
    return parts.take((parts.depth == depth).nonzero()[:n, 0])


def _nearest(form: Form, parts: Parts, own: Parts, itself: bool) -> Tensor:
    """(n,) distance of networks in canonical order to the nearest of `own`, or to the nearest other one."""
    distances = torch.cdist(*(to_rows(form, canonical(form, each)).flatten(1).double() for each in (parts, own)))
    return (distances.fill_diagonal_(torch.inf) if itself else distances).amin(1)


def _unexplained(form: Form, parts: Parts, table: Table, k: int, config: mlp_fitting.Config) -> tuple[Tensor, Tensor]:
    """FVU of networks on function k's test rows, before and after training."""
    n = len(parts.depth)
    train, validation, test = (
        (x, y[:, k, None, None].expand(-1, n, 1)) for x, y in (table.train, table.validation, table.test)
    )
    after = mlp_fitting.fit(form, parts, train, validation, config).parts
    variance = test[1][:, 0].var(correction=0)
    return tuple((mlp_fitting.errors(form, each, test) / variance).cpu() for each in (parts, after))

"""Networks from a latent space: drawn near anchors' latents, decoded, the best kept.

Whatever embeds networks and decodes them (`Sane`, `LayerPCA`) can be sampled from. Z[a] (r, z) are the latents of one
of m anchors, drawn uniformly, h the bandwidth, s (r, z) the standard deviation of each latent number over the anchors,
e ~ N(0, 1), drawn for each of its indices. Row j, number k of a sample is, by mode,

    kde       Z[a]_jk + h s_jk e_jk        a kernel density; one anchor for all rows of a network
    public    Z[a]_jk + h e_k              what the public code does: the same noise in every row, h in no unit
    tokens    Z[a_j]_jk + h s_jk e_jk      a control: every row has an anchor of its own, so no rows belong together
    gaussian  mean_jk + s_jk e_jk          a control: every number by itself
    joint     mean_jk + sum_a (Z[a] - mean)_jk e_a / sqrt(m - 1)       the Gaussian of all principal components together

After Schuerholt et al. 2024, "SANE" (KDE, subsampling, bootstrapping). What we do differently from the public code,
which seeds the density of every token alike: one anchor for a network is a mode and not an accident, noise has the
latents' scale, random numbers are independent, and bootstrapping returns the best of the last round, not the first.

Few-shot, on another task or of another width: `sample(sane.transferred(anchors), anchors, n, spread=...)` with one to
five anchors trained for some epochs there; `transfer.transfer(..., head="fresh")` if only the classes differ.
"""

import numpy as np
import torch
from torch import Tensor

from wsnotebook import evaluation
from wsnotebook.methods.tokens import Embedder
from wsnotebook.training import check_choice
from wsnotebook.zoo.value import Zoo, concat

MODES = ("kde", "public", "tokens", "gaussian", "joint")


def sample(
    embedder: Embedder,
    anchors: Zoo,
    n: int,
    mode: str = "kde",
    *,
    bandwidth: float = 0.2,
    spread: Tensor | None = None,
    x: Tensor | None = None,
    seed: int = 0,
) -> Zoo:
    """n networks drawn around the anchors' latents, with the facts model, parent (the anchor; -1: several), activation.

    mode: one of `MODES`, as this file begins. bandwidth: h; "gaussian" and "joint" have none.
    spread: s, as `deviations` of other networks gives it; None: the anchors'. One anchor has none: take those of the
    zoo that the embedder was trained on, (r, z), or their mean over rows, (z,), for another architecture.
    x: training images, by which batch norm's running statistics are found again; None: as decoded.
    Raises ValueError for n < 1, another mode, a bandwidth or spread that cannot be, no anchors, and anchors of another
    architecture; of several activations when networks are made of several anchors.
    """
    check_choice("mode", mode, MODES)
    _check_n(n)
    generator = torch.Generator().manual_seed(seed)
    if mode in ("gaussian", "joint"):
        z, rows = _gaussian(_embedded(embedder, anchors), n, mode == "joint", generator), None
    else:
        z, rows = _around(_embedded(embedder, anchors), n, mode, bandwidth, spread, generator)
    return _decoded(embedder, z, anchors, rows, x)


def subsampled(networks: Zoo, keep: int, split: tuple[Tensor, Tensor]) -> Zoo:
    """The `keep` networks that are best on split, best first, with the fact validation_accuracy (%).

    Draw many and keep few, `subsampled(sample(embedder, anchors, 256), 16, data.validation)`; or choose anchors.
    split: VALIDATION rows (x, y), never those that the networks are then reported on.
    Raises ValueError for a number to keep that is not from 1 to all.
    """
    _check_keep(keep, len(networks))
    networks = _scored(networks, split)
    return networks.filter(_best(networks, keep))


def bootstrapped(
    embedder: Embedder,
    anchors: Zoo,
    n: int,
    keep: int,
    split: tuple[Tensor, Tensor],
    rounds: int = 3,
    *,
    bandwidth: float = 0.2,
    spread: Tensor | None = None,
    x: Tensor | None = None,
    seed: int = 0,
) -> Zoo:
    """The best `keep` networks after so many rounds of drawing n ("kde"), whose anchors are the best so far.

    The first round's are the given ones, such as networks of `sample` with mode "gaussian"; s is theirs in all rounds.
    Networks of an earlier round stay while they are among the best on split, so the best never get worse. Their latents
    are kept, and not found again from the networks. split: VALIDATION rows. Facts: as `sample`, parent being one of
    the given anchors; round, from 1 on; validation_accuracy (%). Raises what `sample` and `subsampled` do, and
    ValueError for fewer than 1 round.
    """
    _check_n(n)
    _check_keep(keep, n)
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: expected at least 1, which is subsampling")
    generator = torch.Generator().manual_seed(seed)
    z = _embedded(embedder, anchors)
    if spread is None:
        spread = _deviations(z)
    rows, best = np.arange(len(z)), None  # rows: the given anchor that each of z comes from
    for number in range(1, rounds + 1):
        drawn, chosen = _around(z, n, "kde", bandwidth, spread, generator)
        networks = _decoded(embedder, drawn, anchors, rows[chosen], x)
        networks = _scored(networks.derived(networks.weights, round=np.full(n, number)), split)
        if best is None:
            z, rows, best = drawn, rows[chosen], networks
        else:
            z, rows, best = torch.cat([z, drawn]), np.concatenate([rows, rows[chosen]]), concat([best, networks])
        place = _best(best, keep)
        z, rows, best = z[torch.from_numpy(place)], rows[place], best.filter(place)
    return best.derived(best.weights, model=np.arange(keep))


def deviations(embedder: Embedder, zoo: Zoo) -> Tensor:
    """The standard deviation of each latent number over a zoo's networks: (r, z), a `spread`.

    Raises ValueError for fewer than 2 networks.
    """
    return _deviations(_embedded(embedder, zoo))


def _embedded(embedder: Embedder, anchors: Zoo) -> Tensor:
    if not len(anchors):
        raise ValueError("anchors: no networks; expected at least one to sample around")
    return embedder.embed(anchors)


def _deviations(z: Tensor) -> Tensor:
    if len(z) < 2:
        raise ValueError(
            "anchors: a single network has no spread; expected 2 or more, or spread=deviations(embedder, zoo) with the "
            "zoo that the embedder was trained on, .mean(0) of that if the anchor is of another architecture"
        )
    return z.std(0)


def _around(
    z: Tensor, n: int, mode: str, bandwidth: float, spread: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, np.ndarray | None]:
    """Latents (n, r, z) of a kernel density around z (m, r, z), and the row of z that each is near; None: several."""
    if not 0 <= bandwidth < float("inf"):
        raise ValueError(f"bandwidth={bandwidth!r}: expected a number from 0 up; 0 gives the decoded anchors")
    m, r, k = z.shape
    if mode == "tokens":
        anchor = torch.randint(m, (n, r), generator=generator)
        centre = z[anchor, torch.arange(r)]
    else:
        anchor = torch.randint(m, (n,), generator=generator)
        centre = z[anchor]
    noise = torch.randn(n, 1 if mode == "public" else r, k, generator=generator).to(z)
    if mode == "public":
        unit = torch.ones(())
    elif spread is None:
        unit = _deviations(z)
    elif spread.shape in ((r, k), (k,)) and bool((spread >= 0).all()):
        unit = spread.to(z)
    else:
        raise ValueError(
            f"spread: shape {tuple(spread.shape)}, expected ({r}, {k}) or ({k},) numbers from 0 up, by these anchors' "
            "latents: another architecture? Then take the mean over rows, .mean(0)"
        )
    return centre + bandwidth * unit * noise, None if mode == "tokens" else anchor.numpy()


def _gaussian(z: Tensor, n: int, joint: bool, generator: torch.Generator) -> Tensor:
    """Latents (n, r, z) of the Gaussian with the mean of z (m, r, z), and their covariance or variances alone."""
    mean, s = z.mean(0), _deviations(z)
    if not joint:
        return mean + s * torch.randn(n, *s.shape, generator=generator).to(z)
    e = torch.randn(n, len(z), generator=generator).to(z)
    return mean + torch.tensordot(e / (len(z) - 1) ** 0.5, z - mean, 1)


def _decoded(embedder: Embedder, z: Tensor, anchors: Zoo, rows: np.ndarray | None, x: Tensor | None) -> Zoo:
    """The networks of latents (n, r, z) that come from these rows of the anchors; None: from several each."""
    networks = embedder.decode(z, anchors.filter(np.zeros(len(z), int) if rows is None else rows))
    if rows is None:
        networks = anchors.made(networks.weights)
    return networks if x is None else evaluation.recalibrated(networks, x)


def _scored(networks: Zoo, split: tuple[Tensor, Tensor]) -> Zoo:
    return networks.derived(networks.weights, validation_accuracy=evaluation.report(networks, split).accuracy)


def _best(networks: Zoo, keep: int) -> np.ndarray:
    """Row numbers of the most accurate, best first; of equal ones the earlier."""
    return np.argsort(-networks.facts["validation_accuracy"], kind="stable")[:keep]


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"n={n}: expected at least 1 network to draw")


def _check_keep(keep: int, n: int) -> None:
    if not 1 <= keep <= n:
        raise ValueError(f"keep={keep}: expected 1 to {n}, the networks that there are to choose from")

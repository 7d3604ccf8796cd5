"""The retraining step of soft weight-sharing against its straightforward d x J autograd formulation, side by side.

    python tests/benchmarks/bench_mixture_prior.py

LeNet-300-100, J = 17, batch 128, and the prior alone at the size of WRN-16-4, J = 64 (straightforward in blocks, and an
eighth of it: whole, it takes ten GB); exact and by the grid; gradients of both are compared with float64. Early: every
component wide. Late: the spike condensed, the others narrow.
"""

import math
import statistics
from collections.abc import Iterator

import torch
from measured import Curve, Row, compared, cpu_ms, curve, told
from torch.nn import functional as F

from wsnotebook import networks
from wsnotebook.layout import Layout
from wsnotebook.methods.mixture_prior import MixturePrior

BATCH, COMPONENTS, TAU = 128, 17, 0.05
TOLERANCE = 1e-3  # of the grid
FORMULATIONS = {"exact": 0.0, "grid": TOLERANCE}
BLOCK = 2**17  # weights, of the straightforward formulation at the size of WRN-16-4
WRN_WEIGHTS, WRN_COMPONENTS = 2_745_264, 64


def straightforward(prior, w):
    """-log p(w) as one d x J expression; autograd does the rest."""
    variances = prior.log_variances.exp().to(w.dtype)
    log_scale = prior.log_pis().to(w.dtype) - 0.5 * torch.log(2 * math.pi * variances)
    terms = log_scale - (w[:, None] - prior.all_means().to(w.dtype)) ** 2 / (2 * variances)  # (d, J)
    return -torch.logsumexp(terms, 1).sum()


def make_prior(late: bool, components: int, pi_0: float, sigma_0: float) -> MixturePrior:
    prior = MixturePrior(torch.linspace(-0.6, 0.6, components - 1), 0.25, pi_0, None, None)
    if late:
        prior.log_variances.data[0] = 2 * math.log(sigma_0)
        prior.log_variances.data[1:] = 2 * math.log(0.02)
    return prior


def setting(late: bool):
    """A network, its clustered weights and a prior, early or late in retraining, with tails as trained ones have."""
    torch.manual_seed(0)
    network = networks.build("lenet-300-100")
    weights = [p for name, p in network.named_parameters() if name in Layout.of(network, kinds=("weight",)).names]
    for w in weights:
        kept = torch.rand_like(w) < 0.1
        w.data = torch.where(kept, 0.15, 0.005 if late else 0.04) * torch.randn_like(w)
    return network, weights, make_prior(late, COMPONENTS, 0.999, 0.005)


def wrn_setting(late: bool):
    """As many weights as WRN-16-4 has, (d,), and a prior."""
    torch.manual_seed(0)
    row = 0.05 * torch.randn(WRN_WEIGHTS)
    return row.requires_grad_(), make_prior(late, WRN_COMPONENTS, 0.99, 0.004)


def step(loss_of, network, weights, optimisers, x, y):
    """One whole retraining step: data term, prior, backward, Adam."""
    row = torch.cat([w.reshape(-1) for w in weights])
    loss = F.cross_entropy(network(x), y) + TAU / 55_000 * loss_of(row)
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


def gradient_error(prior, w, loss_of) -> float:
    """Largest deviation from float64, over weights and mixture, relative to each gradient's largest entry."""
    results = []
    blocks = w.detach().split(2**18)  # float64 d x J is large
    for rows, function in (
        ([w.detach()], loss_of),
        ([b.double() for b in blocks], lambda x: straightforward(prior, x)),
    ):
        prior.zero_grad()
        rows = [row.clone().requires_grad_() for row in rows]
        for row in rows:
            function(row).backward()
        results.append([torch.cat([r.grad.double() for r in rows]), *(p.grad.clone() for p in prior.parameters())])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def at(prior, tolerance: float):
    """The prior of our formulation, exact (0) or by the grid."""

    def evaluate(w):
        prior.tolerance = tolerance
        return prior(w)

    return evaluate


def lenet(late: bool) -> Iterator[Row]:
    phase = "late" if late else "early"
    network, weights, prior = setting(late)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.arange(BATCH) % 10
    adam = torch.optim.Adam(network.parameters(), lr=0.0, fused=True), torch.optim.Adam(prior.parameters(), lr=0.0)
    flat = torch.cat([w.reshape(-1) for w in weights]).detach().requires_grad_()
    quick = "early, the straightforward prior is at its quickest: none of its exponentials underflow"
    rest = statistics.median(cpu_ms(lambda: step(torch.sum, network, weights, adam, x, y)) for _ in range(9))
    note = "" if late else f"{quick}; a step without a prior takes {rest:.1f} ms in both"
    promised = {
        ("prior", "exact"): {"least": 25, "less_memory": 20, "note": note},
        ("step", "exact"): {"least": 12, "note": note},
        ("step", "grid"): {"least": 3},
    }
    actions = {"prior": lambda f: f(flat).backward(), "step": lambda f: step(f, network, weights, adam, x, y)}
    for part, action in actions.items():
        for name, tolerance in FORMULATIONS.items():
            ours = at(prior, tolerance)
            yield compared(
                "soft weight-sharing",
                f"{part}, LeNet-300-100, J = {COMPONENTS}, {phase}, {name}",
                lambda action=action: action(lambda w: straightforward(prior, w)),
                lambda action=action, ours=ours: action(ours),
                difference=lambda ours=ours: gradient_error(prior, flat, ours),
                tolerance=max(tolerance, 1e-5),
                **promised.get((part, name), {}),
            )


def wrn() -> Iterator[Row]:
    flat, prior = wrn_setting(late=True)

    def plain():
        for block in flat[: len(flat) // 8].split(BLOCK):
            straightforward(prior, block).backward()

    for name, tolerance in FORMULATIONS.items():
        ours = at(prior, tolerance)
        yield compared(
            "soft weight-sharing",
            f"prior, {WRN_WEIGHTS:,} weights, J = {WRN_COMPONENTS}, late, {name}",
            plain,
            lambda ours=ours: ours(flat).backward(),
            difference=lambda ours=ours: gradient_error(prior, flat[: 2**18], ours),  # as many nodes as for all
            tolerance=max(tolerance, 1e-5),
            repeats=3,
            per=(1 / 8, 1),
            note="straightforward: an eighth of the weights in blocks, times eight",
        )


def rows() -> Iterator[Row]:
    yield from lenet(late=False)
    yield from lenet(late=True)
    yield from wrn()


def evaluation(weights: int, components: int, formulation: str):
    """An evaluation of a late prior with gradients."""
    torch.manual_seed(0)
    prior = make_prior(True, components, 0.99, 0.005)
    function = (
        at(prior, FORMULATIONS[formulation]) if formulation in FORMULATIONS else lambda w: straightforward(prior, w)
    )
    flat = (0.05 * torch.randn(weights)).requires_grad_()
    return lambda: function(flat).backward()


def curves() -> Iterator[Curve]:
    names = [*FORMULATIONS, "d x J by autograd"]
    by_weights = {name: lambda n, name=name: evaluation(n, COMPONENTS, name) for name in names}
    yield curve("prior", "weights (J = 17)", [2**k for k in range(14, 22)], by_weights, {names[2]: 2**18})
    by_components = {name: lambda j, name=name: evaluation(2**16, j, name) for name in names}
    yield curve("prior", "components J (65,536 weights)", [3, 5, 9, 17, 33, 65, 129], by_components)


if __name__ == "__main__":
    told(rows())

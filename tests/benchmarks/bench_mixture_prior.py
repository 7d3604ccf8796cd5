"""The retraining step of soft weight-sharing against its straightforward d x J autograd formulation, side by side.

LeNet-300-100, J = 17, batch 128, and the prior alone at the size of WRN-16-4, J = 64; one thread; exact and by the
grid; CPU time and memory of the same machine in the same minutes; gradients against float64, refused above the
tolerance. Early: every component wide. Late: the spike condensed, the others narrow.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from wsnotebook import networks
from wsnotebook.layout import Layout
from wsnotebook.methods import mixture_passes
from wsnotebook.methods.mixture_prior import MixturePrior

BATCH, COMPONENTS, TAU = 128, 17, 0.05
TOLERANCE = 1e-3  # of the grid
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


def cpu_ms(action, repeats: int) -> float:
    """Median CPU milliseconds of an action."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        times.append(1e3 * (time.process_time() - started))
    return sorted(times)[repeats // 2]


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


def extra_memory_mb(size: str, formulation: str) -> float:
    """Growth of peak memory over one prior evaluation with gradients, in a process of its own (Linux)."""
    command = [sys.executable, __file__, "--memory", size, formulation]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(size: str, formulation: str) -> None:
    """Print that growth for this process: high-water mark against resident size, after a small warm-up."""
    if size == "wrn":
        row, prior = wrn_setting(late=True)
    else:
        _, weights, prior = setting(late=True)
        row = torch.cat([w.reshape(-1) for w in weights]).detach().requires_grad_()
    prior.tolerance = TOLERANCE if formulation == "grid" else 0.0
    function = (lambda w: straightforward(prior, w)) if formulation == "straightforward" else prior
    function(torch.linspace(-0.3, 0.3, 4096).requires_grad_()).backward()  # compiles
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

    before = status("VmRSS")
    function(row).backward()
    print(status("VmHWM") - before)


def report_errors(name: str, prior, row) -> None:
    """Print the gradients' errors against float64; leave when they are above what is promised."""
    errors = {}
    for formulation, tolerance in (("exact", 0.0), ("grid", TOLERANCE)):
        prior.tolerance = tolerance
        errors[formulation] = gradient_error(prior, row, prior)
        if errors[formulation] > max(tolerance, 1e-5):
            sys.exit(f"{name}: the {formulation} gradient is off by {errors[formulation]:.1e}")
    print(f"{name:<12}gradient error against float64: exact {errors['exact']:.1e}, grid {errors['grid']:.1e}")


def lenet(late: bool) -> None:
    phase = "late" if late else "early"
    network, weights, prior = setting(late)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.arange(BATCH) % 10
    weight_optimiser = torch.optim.Adam(network.parameters(), lr=0.0, fused=True)
    mixture_optimiser = torch.optim.Adam(prior.parameters(), lr=0.0)
    row = torch.cat([w.reshape(-1) for w in weights]).detach().requires_grad_()
    actions = {
        "prior": lambda f: f(row).backward(),
        "full step": lambda f: step(f, network, weights, (weight_optimiser, mixture_optimiser), x, y),
    }
    for part, action in actions.items():
        slow = cpu_ms(lambda action=action: action(lambda w: straightforward(prior, w)), 9)
        line = f"{phase:<12}{part:<10}{slow:>15.1f}"
        for tolerance in (0.0, TOLERANCE):
            prior.tolerance = tolerance
            action(prior)  # compiles
            fast = cpu_ms(lambda action=action: action(prior), 60)
            line += f"{fast:>10.1f}{slow / fast:>7.1f}x"
        print(line)
    report_errors(phase, prior, row)


def wrn(late: bool) -> None:
    phase = "WRN late" if late else "WRN early"
    row, prior = wrn_setting(late)
    line = f"{phase:<12}{'prior':<10}{'':>15}"
    for tolerance, repeats in ((0.0, 3), (TOLERANCE, 15)):
        prior.tolerance = tolerance
        line += f"{cpu_ms(lambda: prior(row).backward(), repeats):>10.1f}{'':>8}"
    print(line)
    report_errors(phase, prior, row[: 2**18])  # float64 of all takes minutes; the grid has as many nodes


def main() -> None:
    print(f"Retraining step, LeNet-300-100, J = {COMPONENTS}, batch {BATCH}, one thread (median CPU ms)")
    print(f"WRN: {WRN_WEIGHTS:,} weights, J = {WRN_COMPONENTS}; grid: tolerance {TOLERANCE:g}")
    print(f"our passes: {'compiled (numba)' if mixture_passes.COMPILED else 'torch blocks (numba is not installed)'}")
    print(f"{'phase':<12}{'part':<10}{'d x J autograd':>15}{'exact':>10}{'ratio':>8}{'grid':>10}{'ratio':>8}")
    for late in (False, True):
        lenet(late)
    for late in (False, True):
        wrn(late)
    for size, formulations in (("lenet", ("straightforward", "exact", "grid")), ("wrn", ("exact", "grid"))):
        memory = ", ".join(f"{name} {extra_memory_mb(size, name):.1f} MB" for name in formulations)
        print(f"extra memory, {size}: {memory}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args().memory
    if chosen:
        measure_memory(*chosen)
    else:
        main()

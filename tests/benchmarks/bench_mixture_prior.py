"""The retraining step of soft weight-sharing against its straightforward d x J autograd formulation, side by side.

LeNet-300-100, J = 17, batch 128, one thread; CPU time and memory of the same machine in the same minutes; gradients of
both against float64. Early: every component wide. Late: the spike condensed, the others narrow.
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
from wsnotebook.methods import mixture_prior
from wsnotebook.methods.mixture_prior import MixturePrior

BATCH, COMPONENTS, TAU = 128, 17, 0.05


def straightforward(prior, w):
    """-log p(w) as one d x J expression; autograd does the rest."""
    variances = prior.log_variances.exp().to(w.dtype)
    log_scale = prior.log_pis().to(w.dtype) - 0.5 * torch.log(2 * math.pi * variances)
    terms = log_scale - (w[:, None] - prior.all_means().to(w.dtype)) ** 2 / (2 * variances)  # (d, J)
    return -torch.logsumexp(terms, 1).sum()


def setting(late: bool):
    """A network, its clustered weights and a prior, early or late in retraining."""
    network = networks.build("lenet-300-100")
    weights = [p for name, p in network.named_parameters() if name in Layout.of(network, kinds=("weight",)).names]
    prior = MixturePrior(torch.linspace(-0.6, 0.6, COMPONENTS - 1), 0.25, 0.999, None, None)
    if late:
        prior.log_variances.data[0] = 2 * math.log(0.005)
        prior.log_variances.data[1:] = 2 * math.log(0.02)
        for w in weights:
            w.data *= 0.1
    return network, weights, prior


def step(loss_of, network, weights, optimiser, x, y):
    """One whole retraining step: data term, prior, backward, Adam."""
    row = torch.cat([w.reshape(-1) for w in weights])
    loss = F.cross_entropy(network(x), y) + TAU / 55_000 * loss_of(row)
    optimiser.zero_grad()
    loss.backward()
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
    for row, function in ((w, loss_of), (w.double(), lambda row: straightforward(prior, row))):
        row = row.detach().clone().requires_grad_()
        prior.zero_grad()
        function(row).backward()
        results.append([row.grad.double(), *(p.grad.clone() for p in prior.parameters())])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def extra_memory_mb(formulation: str) -> float:
    """Growth of peak memory over one prior evaluation with gradients, in a process of its own (Linux)."""
    command = [sys.executable, __file__, "--memory", formulation]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(formulation: str) -> None:
    """Print that growth for this process: high-water mark against resident size, after a small warm-up."""
    _, weights, prior = setting(late=True)
    function = prior if formulation == "ours" else lambda w: straightforward(prior, w)
    function(torch.zeros(256, requires_grad=True)).backward()
    row = torch.cat([w.reshape(-1) for w in weights]).detach().requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

    before = status("VmRSS")
    function(row).backward()
    print(status("VmHWM") - before)


def main() -> None:
    print(f"Retraining step, LeNet-300-100, J = {COMPONENTS}, batch {BATCH}, one thread (median CPU ms)")
    print(f"our pass: {'compiled (numba)' if mixture_prior.COMPILED else 'torch blocks (numba is not installed)'}")
    print(f"{'phase':<7}{'part':<12}{'d x J autograd':>16}{'ours':>9}{'ratio':>8}")
    x, y = torch.rand(BATCH, 1, 28, 28), torch.arange(BATCH) % 10
    for late in (False, True):
        phase = "late" if late else "early"
        network, weights, prior = setting(late)
        optimiser = torch.optim.Adam([*network.parameters(), *prior.parameters()], lr=0.0)
        row = torch.cat([w.reshape(-1) for w in weights]).detach().requires_grad_()
        theirs = lambda w, prior=prior: straightforward(prior, w)  # noqa: E731
        actions = {
            "prior": lambda f, row=row: f(row).backward(),
            "full step": lambda f, rest=(network, weights, optimiser, x, y): step(f, *rest),
        }
        for part, action in actions.items():
            action(prior)  # compiles
            slow = cpu_ms(lambda action=action, f=theirs: action(f), 15)
            fast = cpu_ms(lambda action=action, f=prior: action(f), 60)
            print(f"{phase:<7}{part:<12}{slow:>16.1f}{fast:>9.1f}{slow / fast:>7.1f}x")
        errors = [gradient_error(prior, row, f) for f in (prior, theirs)]
        if errors[0] > 1e-5:
            sys.exit(f"{phase}: our gradient is off by {errors[0]:.1e}, expected at most 1e-5")
        print(f"{phase:<7}gradient error against float64: ours {errors[0]:.1e}, theirs {errors[1]:.1e}")
    memory = {name: extra_memory_mb(name) for name in ("straightforward", "ours")}
    slow, fast = memory["straightforward"], memory["ours"]
    print(f"extra memory: d x J autograd {slow:.0f} MB, ours {fast:.1f} MB, ratio {slow / fast:.0f}x")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", choices=("straightforward", "ours"), help=argparse.SUPPRESS)
    chosen = parser.parse_args().memory
    if chosen:
        measure_memory(chosen)
    else:
        main()

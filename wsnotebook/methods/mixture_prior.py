"""The mixture prior of soft weight-sharing: a spike at zero and J - 1 Gaussians that learn where the weights sit.

p(w) = prod_i sum_j pi_j N(w_i; mu_j, s_j), with mu_0 = 0 and pi_0 fixed (Nowlan and Hinton 1992; Ullrich et al. 2017),
and Gamma hyper-priors on the precisions lambda_j = 1 / s_j.

Its gradient needs only three sums a component, taken in one pass over the weights: with responsibilities r_ij and
d_ij = w_i - mu_j,   N_j = sum_i r_ij,   M_j = sum_i r_ij d_ij,   V_j = sum_i r_ij d_ij^2   and, for L = -log p(w),

    dL/dw_i = sum_j r_ij lambda_j d_ij      dL/dmu_j = -lambda_j M_j
    dL/dlog s_j = (N_j - lambda_j V_j) / 2      dL/dlog pi_j = -N_j

so nothing of size d x J is ever stored. Numba makes the pass on a CPU when it is installed (extra `fast`); torch does
it in blocks otherwise, and on a GPU.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

try:
    from wsnotebook.methods.mixture_kernel import moments as compiled_moments
except ImportError:  # numba is an extra
    compiled_moments = None

COMPILED = compiled_moments is not None  # which of the two passes a CPU takes


LOG_FLOOR = math.log(1e-8)  # of a variance: without hyper-priors they would fall to zero and out of float32


@dataclass(frozen=True)
class Mixture:
    """A one-dimensional Gaussian mixture as plain numbers, float64; component 0 is the spike at zero."""

    means: Tensor  # (J,)
    sigmas: Tensor  # (J,) standard deviations
    pis: Tensor  # (J,) mixing proportions, sum 1

    def component_densities(self, w: Tensor) -> Tensor:
        """pi_j N(w; mu_j, sigma_j^2): (m,) -> (J, m)."""
        z = (w.double() - self.means[:, None]) / self.sigmas[:, None]
        return (self.pis / self.sigmas / math.sqrt(2 * math.pi))[:, None] * torch.exp(-0.5 * z**2)

    def density(self, w: Tensor) -> Tensor:
        """p(w): (m,) -> (m,)."""
        return self.component_densities(w).sum(0)

    def assign(self, w: Tensor, rule: str) -> Tensor:
        """The component of each weight, (d,) -> (d,) int64: "map" by posterior, "ml" by likelihood (no pi_j)."""
        log_scale = -self.sigmas.log() + (self.pis.log() if rule == "map" else 0)
        best = torch.full_like(w, -math.inf, dtype=torch.float64)
        ids = torch.zeros_like(w, dtype=torch.int64)
        for j in range(len(self.means)):  # J passes of (d,): memory stays flat
            value = log_scale[j] - 0.5 * ((w.double() - self.means[j]) / self.sigmas[j]) ** 2
            ids = torch.where(value > best, j, ids)
            best = torch.maximum(value, best)
        return ids

    def merged(self, threshold: float) -> "Mixture":
        """Components 1.. whose symmetric Kullback-Leibler divergence is below the threshold (nats) made one.

        Repeatedly merges the closest pair: pi adds up, mean and variance are pi-weighted means. The spike stays.
        """
        means, variances, pis = self.means.tolist(), (self.sigmas**2).tolist(), self.pis.tolist()

        def divergence(i: int, j: int) -> float:
            gap = (means[i] - means[j]) ** 2
            return 0.25 * ((variances[i] + gap) / variances[j] + (variances[j] + gap) / variances[i] - 2)

        while len(means) > 2:
            pairs = [(divergence(i, j), i, j) for j in range(2, len(means)) for i in range(1, j)]
            closest, i, j = min(pairs)
            if closest >= threshold:
                break
            pi = pis[i] + pis[j]
            for values in (means, variances):
                values[i] = (pis[i] * values[i] + pis[j] * values.pop(j)) / pi
            pis[i] += pis.pop(j)
        as_tensor = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
        return Mixture(as_tensor(means), as_tensor(variances).sqrt(), as_tensor(pis))


class MixturePrior(nn.Module):
    """The prior's parameters and, called on the weights, its negative log density: the complexity L_C in nats.

    means: (J - 1,) starting means of the free components; sigma: starting standard deviation of all; pi_0: the spike's
    fixed proportion; gamma, gamma_zero: (shape, rate) of the Gamma hyper-prior on the precision of the free components
    and of the spike, or None for no hyper-prior (variances then collapse: the paper's own finding).
    """

    def __init__(self, means: Tensor, sigma: float, pi_0: float, gamma, gamma_zero):
        super().__init__()
        components = len(means) + 1
        self.means = nn.Parameter(means.double())  # mu_1 .. mu_{J-1}
        self.log_variances = nn.Parameter(torch.full((components,), 2 * math.log(sigma), dtype=torch.float64))
        self.logits = nn.Parameter(torch.zeros(components - 1, dtype=torch.float64))
        self.pi_0, self.gamma, self.gamma_zero = pi_0, gamma, gamma_zero

    def all_means(self) -> Tensor:
        """(J,) with the spike's zero in front."""
        return torch.cat([self.means.new_zeros(1), self.means])

    def floored(self) -> Tensor:
        """(J,) log variances, none below the floor."""
        return self.log_variances.clamp(min=LOG_FLOOR)

    def log_pis(self) -> Tensor:
        """(J,) log mixing proportions: pi_0 fixed, the rest shared by a softmax."""
        rest = math.log1p(-self.pi_0) + torch.log_softmax(self.logits, 0)
        return torch.cat([rest.new_full((1,), math.log(self.pi_0)), rest])

    def forward(self, w: Tensor) -> Tensor:
        """(d,) -> L_C = -log p(w) - sum_j log Gamma(lambda_j): a scalar, nats."""
        log_variances = self.floored()
        loss = NegativeLogMixture.apply(w, self.all_means(), log_variances, self.log_pis())
        if self.gamma is not None:
            loss = loss - log_gamma_density(log_variances[1:], *self.gamma).sum()
        if self.gamma_zero is not None:
            loss = loss - log_gamma_density(log_variances[0], *self.gamma_zero)
        return loss

    @torch.no_grad()
    def mixture(self) -> Mixture:
        """The mixture as it stands, on the CPU."""
        return Mixture(self.all_means().cpu(), (0.5 * self.floored()).exp().cpu(), self.log_pis().exp().cpu())


def log_gamma_density(log_variances: Tensor, shape: float, rate: float) -> Tensor:
    """log Gamma(lambda; shape, rate) at the precisions lambda = exp(-log_variances)."""
    log_constant = shape * math.log(rate) - math.lgamma(shape)
    return log_constant - (shape - 1) * log_variances - rate * torch.exp(-log_variances)


class NegativeLogMixture(torch.autograd.Function):
    """-sum_i log p(w_i) and its exact gradients, all from one pass, in float32. w (d,); the rest (J,) float64."""

    @staticmethod
    def forward(ctx, w: Tensor, means: Tensor, log_variances: Tensor, log_pis: Tensor) -> Tensor:
        precisions = torch.exp(-log_variances)
        log_scales = log_pis - 0.5 * (math.log(2 * math.pi) + log_variances)
        arguments = (w.detach().float(), means.float(), precisions.float(), log_scales.float())
        one_pass = _compiled_pass if COMPILED and w.device.type == "cpu" else _blocked_pass
        total, gradient, (n, m, v) = one_pass(*arguments)
        ctx.save_for_backward(gradient.to(w.dtype), -precisions * m, 0.5 * (n - precisions * v), -n)
        return -total

    @staticmethod
    def backward(ctx, upstream: Tensor):
        weights, *components = ctx.saved_tensors
        return weights * upstream.to(weights.dtype), *(gradient * upstream for gradient in components)


def _compiled_pass(w: Tensor, means: Tensor, precisions: Tensor, log_scales: Tensor):
    gradient, sums = torch.empty_like(w), torch.zeros(3, len(means), dtype=torch.float64)
    arrays = [tensor.numpy() for tensor in (w, means, precisions, log_scales, gradient, sums)]
    return torch.tensor(compiled_moments(*arrays), dtype=torch.float64), gradient, sums


def _blocked_pass(w: Tensor, means: Tensor, precisions: Tensor, log_scales: Tensor):
    """The same sums by torch operations on (J, block) buffers."""
    block = 16_384 if w.device.type == "cpu" else 2**19
    mu, half, scale = means[:, None], -0.5 * precisions[:, None], log_scales[:, None]
    buffers = w.new_empty(2, len(means), min(block, len(w)))
    gradient = torch.empty_like(w)
    sums, total = w.new_zeros(3, len(means), dtype=torch.float64), w.new_zeros((), dtype=torch.float64)
    for x, g in zip(w.split(block), gradient.split(block), strict=True):
        d, r = buffers[:, :, : len(x)]  # (J, b) each
        torch.sub(x, mu, out=d)
        torch.mul(d, d, out=r).mul_(half).add_(scale)  # log of pi_j N(x; mu_j, s_j)
        top = r.amax(0)
        r.sub_(top).clamp_(min=-60).exp_()
        norm = r.sum(0)
        total += (top + norm.log()).sum(dtype=torch.float64)
        sums[0] += r.div_(norm).sum(1)
        sums[1] += r.mul_(d).sum(1)
        torch.mv(r.T, precisions, out=g)
        sums[2] += r.mul_(d).sum(1)
    return total, gradient, sums

"""The mixture prior of soft weight-sharing: a spike at zero and J - 1 Gaussians that learn where the weights sit.

p(w) = prod_i sum_j pi_j N(w_i; mu_j, s_j), with mu_0 = 0 and pi_0 fixed or learned (Nowlan and Hinton 1992; Ullrich et
al. 2017), Gamma hyper-priors on the precisions lambda_j = 1 / s_j and a Beta hyper-prior on a learned pi_0.

Its gradient needs only three sums a component, taken in one pass over the weights: with responsibilities r_ij and
d_ij = w_i - mu_j,   N_j = sum_i r_ij,   M_j = sum_i r_ij d_ij,   V_j = sum_i r_ij d_ij^2   and, for L = -log p(w),

    dL/dw_i = sum_j r_ij lambda_j d_ij      dL/dmu_j = -lambda_j M_j
    dL/dlog s_j = (N_j - lambda_j V_j) / 2      dL/dlog pi_j = -N_j

so nothing of size d x J is ever stored: `mixture_passes` has the pass, exact or within a tolerance.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.methods.mixture_passes import exact_pass, grid_pass

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
        """Components 1.. closer than `threshold` standard deviations, |mu_i - mu_j| / sqrt((s_i + s_j) / 2), made one.

        Repeatedly merges the closest pair. pi adds up, the mean is the pi-weighted one, and the variance is that of the
        two together, gap included: mass, mean and second moment of the mixture stay. So does the spike.
        """
        rows = list(zip(self.pis.tolist(), self.means.tolist(), (self.sigmas**2).tolist(), strict=True))

        def distance(i: int, j: int) -> float:
            (_, mean, s), (_, other_mean, other_s) = rows[i], rows[j]
            return abs(mean - other_mean) / math.sqrt((s + other_s) / 2)

        while len(rows) > 2:
            closest, i, j = min((distance(i, j), i, j) for j in range(2, len(rows)) for i in range(1, j))
            if closest >= threshold:
                break
            (pi, mean, s), (other_pi, other_mean, other_s) = rows[i], rows.pop(j)
            share = other_pi / (pi + other_pi) if other_pi else 0.0
            spread = share * (1 - share) * (mean - other_mean) ** 2
            merged_s = (1 - share) * s + share * other_s + spread
            rows[i] = (pi + other_pi, (1 - share) * mean + share * other_mean, merged_s)
        pis, means, variances = torch.tensor(rows, dtype=torch.float64).T.contiguous()
        return Mixture(means, variances.sqrt(), pis)


class MixturePrior(nn.Module):
    """The prior's parameters and, called on the weights, its negative log density: the complexity L_C in nats.

    means: (J - 1,) starting means of the free components; sigma: starting standard deviation of all; pi_0: the spike's
    proportion; gamma, gamma_zero: (shape, rate) of the Gamma hyper-prior on the precision of the free components and of
    the spike, or None for no hyper-prior (variances then collapse: the paper's own finding); beta: (a, b) of the Beta
    hyper-prior on pi_0, which is then learned from where it starts, or None to keep pi_0 as it is; tolerance: of the
    gradients, see `mixture_passes.grid_pass`; 0: exact.
    """

    def __init__(self, means: Tensor, sigma: float, pi_0: float, gamma, gamma_zero, beta=None, tolerance: float = 0.0):
        super().__init__()
        components = len(means) + 1
        self.means = nn.Parameter(means.double())  # mu_1 .. mu_{J-1}
        self.log_variances = nn.Parameter(torch.full((components,), 2 * math.log(sigma), dtype=torch.float64))
        self.logits = nn.Parameter(torch.zeros(components - 1, dtype=torch.float64))
        logit_0 = torch.tensor(math.log(pi_0) - math.log1p(-pi_0), dtype=torch.float64)
        self.register_parameter("logit_0", nn.Parameter(logit_0) if beta else None)
        self.pi_0, self.gamma, self.gamma_zero, self.beta, self.tolerance = pi_0, gamma, gamma_zero, beta, tolerance

    def all_means(self) -> Tensor:
        """(J,) with the spike's zero in front."""
        return torch.cat([self.means.new_zeros(1), self.means])

    def floored(self) -> Tensor:
        """(J,) log variances, none below the floor."""
        return self.log_variances.clamp(min=LOG_FLOOR)

    def log_pi_0(self) -> tuple[Tensor, Tensor]:
        """log pi_0 and log(1 - pi_0), scalars."""
        if self.beta is None:
            return self.logits.new_tensor(math.log(self.pi_0)), self.logits.new_tensor(math.log1p(-self.pi_0))
        return F.logsigmoid(self.logit_0), F.logsigmoid(-self.logit_0)

    def log_pis(self) -> Tensor:
        """(J,) log mixing proportions: the spike's, and the rest shared by a softmax."""
        spike, rest = self.log_pi_0()
        return torch.cat([spike[None], rest + torch.log_softmax(self.logits, 0)])

    def forward(self, w: Tensor) -> Tensor:
        """(d,) -> L_C = -log p(w) - sum_j log Gamma(lambda_j) - log Beta(pi_0) where learned: a scalar, nats."""
        log_variances = self.floored()
        loss = NegativeLogMixture.apply(w, self.all_means(), log_variances, self.log_pis(), self.tolerance)
        if self.gamma is not None:
            loss = loss - log_gamma_density(log_variances[1:], *self.gamma).sum()
        if self.gamma_zero is not None:
            loss = loss - log_gamma_density(log_variances[0], *self.gamma_zero)
        if self.beta is not None:
            loss = loss - log_beta_density(*self.log_pi_0(), *self.beta)
        return loss

    @torch.no_grad()
    def mixture(self) -> Mixture:
        """The mixture as it stands, on the CPU."""
        return Mixture(self.all_means().cpu(), (0.5 * self.floored()).exp().cpu(), self.log_pis().exp().cpu())


def log_gamma_density(log_variances: Tensor, shape: float, rate: float) -> Tensor:
    """log Gamma(lambda; shape, rate) at the precisions lambda = exp(-log_variances)."""
    log_constant = shape * math.log(rate) - math.lgamma(shape)
    return log_constant - (shape - 1) * log_variances - rate * torch.exp(-log_variances)


def log_beta_density(log_pi: Tensor, log_rest: Tensor, a: float, b: float) -> Tensor:
    """log Beta(pi; a, b) from log pi and log(1 - pi)."""
    log_constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return log_constant + (a - 1) * log_pi + (b - 1) * log_rest


class NegativeLogMixture(torch.autograd.Function):
    """-sum_i log p(w_i) and its gradients, from one pass in float32. w (d,); means and the next two (J,) float64."""

    @staticmethod
    def forward(ctx, w: Tensor, means: Tensor, log_variances: Tensor, log_pis: Tensor, tolerance: float) -> Tensor:
        precisions = torch.exp(-log_variances)
        log_scales = log_pis - 0.5 * (math.log(2 * math.pi) + log_variances)
        x, components = w.detach().float(), [t.float() for t in (means, precisions, log_scales)]
        gradient = torch.empty_like(x)
        one_pass = partial(grid_pass, tolerance=tolerance) if tolerance else exact_pass
        total, (n, m, v) = one_pass(x, components, gradient)
        ctx.save_for_backward(gradient.to(w.dtype), -precisions * m, 0.5 * (n - precisions * v), -n)
        return -total

    @staticmethod
    def backward(ctx, upstream: Tensor):
        weights, *components = ctx.saved_tensors
        return weights * upstream.to(weights.dtype), *(gradient * upstream for gradient in components), None

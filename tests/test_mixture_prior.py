import math

import pytest
import torch
from torch.distributions import Gamma

from wsnotebook.methods import mixture_prior
from wsnotebook.methods.mixture_prior import Mixture, MixturePrior, log_gamma_density

PASSES = ["compiled", "blocked"]


@pytest.fixture(params=PASSES)
def one_pass(request, monkeypatch):
    if request.param == "compiled" and not mixture_prior.COMPILED:
        pytest.skip("numba is not installed (extra `fast`)")
    monkeypatch.setattr(mixture_prior, "COMPILED", request.param == "compiled")


def make_prior(components=5, late=False, gamma=(250.0, 0.1), gamma_zero=(5000.0, 2.0)):
    prior = MixturePrior(torch.linspace(-0.6, 0.7, components - 1), 0.2, 0.99, gamma, gamma_zero)
    generator = torch.Generator().manual_seed(components)
    noise = lambda n: torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731
    prior.logits.data += noise(components - 1)
    prior.log_variances.data += 0.3 * noise(components)
    if late:  # a condensed spike and narrow components: where exponents underflow
        prior.log_variances.data[0] = 2 * math.log(0.005)
        prior.log_variances.data[1:] = 2 * math.log(0.02)
    return prior


def straightforward(prior, w):
    """-log p(w) - log hyper-priors as one d x J expression in float64, by autograd."""
    s = prior.log_variances.exp()
    rest = math.log(1 - prior.pi_0) + torch.log_softmax(prior.logits, 0)
    log_pi = torch.cat([rest.new_tensor([math.log(prior.pi_0)]), rest])
    mu = torch.cat([prior.means.new_zeros(1), prior.means])
    log_p = log_pi - 0.5 * torch.log(2 * math.pi * s) - (w[:, None] - mu) ** 2 / (2 * s)
    loss = -torch.logsumexp(log_p, 1).sum()
    for lambdas, gamma in ((1 / s[1:], prior.gamma), (1 / s[:1], prior.gamma_zero)):
        if gamma is not None:
            shape, rate = (torch.tensor(v, dtype=torch.float64) for v in gamma)
            loss = loss - Gamma(shape, rate).log_prob(lambdas).sum()
    return loss


def gradients(prior, w, loss_of):
    w = w.clone().requires_grad_()
    prior.zero_grad()
    loss = loss_of(w)
    loss.backward()
    return float(loss.detach()), [w.grad, *(p.grad.clone() for p in prior.parameters())]


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("d", [1, 255, 256, 257, 16_385, 40_000])
def test_loss_and_gradients_equal_the_straightforward_formulation(d, late):
    prior = make_prior(late=late)
    w = 0.15 * torch.randn(d, generator=torch.Generator().manual_seed(d))
    loss, mine = gradients(prior, w, prior)
    expected, theirs = gradients(prior, w.double(), lambda w: straightforward(prior, w))
    assert loss == pytest.approx(expected, rel=1e-6, abs=1e-4)
    for a, b in zip(mine, theirs, strict=True):
        assert float((a.double() - b).abs().max()) <= 1e-5 * max(1e-3, float(b.abs().max()))


@pytest.mark.usefixtures("one_pass")
def test_a_weight_far_from_every_component_is_pulled_not_lost():
    prior = make_prior(late=True)
    w = torch.tensor([50.0, -50.0, 0.0])
    loss, (gradient, *_) = gradients(prior, w, prior)
    _, (expected, *_) = gradients(prior, w.double(), lambda w: straightforward(prior, w))
    assert math.isfinite(loss)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("one_pass")
def test_a_variance_has_a_floor():
    """Without hyper-priors a spike on equal weights narrows without end; below the floor nothing pulls it further."""
    prior = make_prior(gamma=None, gamma_zero=None)
    prior.log_variances.data[0] = -500.0
    loss, (gradient, _, variances, _) = gradients(prior, torch.tensor([0.0, 0.3]), prior)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()
    assert variances[0] == 0
    assert float(prior.mixture().sigmas[0]) == pytest.approx(1e-4)


@pytest.mark.usefixtures("one_pass")
def test_a_single_gaussian_has_its_closed_form():
    prior = MixturePrior(torch.tensor([0.0]), 0.3, 0.5, None, None)  # two equal components at zero
    w = torch.linspace(-1, 1, 101)
    expected = -torch.distributions.Normal(0.0, 0.3).log_prob(w).sum()
    assert float(prior(w).detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.usefixtures("one_pass")
def test_nothing_of_size_weights_times_components_is_saved():
    saved = []
    w = torch.randn(50_000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        make_prior(components=9)(w)
    assert 50_000 <= sum(saved) < 50_000 + 200


def test_the_hyper_prior_is_the_gamma_density_of_the_precision():
    log_variances = torch.linspace(-12, 0, 7, dtype=torch.float64)
    expected = Gamma(torch.tensor(250.0).double(), torch.tensor(0.1).double()).log_prob(torch.exp(-log_variances))
    torch.testing.assert_close(log_gamma_density(log_variances, 250.0, 0.1), expected)


def test_the_mixture_as_numbers_agrees_with_the_prior():
    prior = make_prior(gamma=None, gamma_zero=None)
    mixture, w = prior.mixture(), torch.linspace(-1, 1, 50)
    assert float(mixture.pis.sum()) == pytest.approx(1)
    assert mixture.means[0] == 0
    assert float(-mixture.density(w).log().sum()) == pytest.approx(float(prior(w).detach()), rel=1e-6)
    grid = torch.linspace(-4, 4, 40_001)
    assert float(mixture.density(grid).sum() * 8 / 40_000) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rule", ["map", "ml"])
def test_assign_is_the_largest_term(rule):
    mixture = make_prior(components=7).mixture()
    w = torch.linspace(-1, 1, 999)
    terms = mixture.component_densities(w) / (1 if rule == "map" else mixture.pis[:, None])
    assert torch.equal(mixture.assign(w, rule), terms.argmax(0))


def test_merging_joins_near_duplicates_and_keeps_mass_mean_and_spike():
    f64 = torch.float64
    mixture = Mixture(
        torch.tensor([0, 0.3, 0.5, 0.3005, 0.0], dtype=f64),
        torch.tensor([0.005, 0.02, 0.02, 0.02, 0.005], dtype=f64),
        torch.tensor([0.9, 0.02, 0.03, 0.04, 0.01], dtype=f64),
    )
    merged = mixture.merged(1e-2)
    assert len(merged.means) == 4  # 0.3 and 0.3005 are one; the component beside the spike is not the spike
    torch.testing.assert_close(merged.means, torch.tensor([0, (0.02 * 0.3 + 0.04 * 0.3005) / 0.06, 0.5, 0], dtype=f64))
    torch.testing.assert_close(merged.pis, torch.tensor([0.9, 0.06, 0.03, 0.01], dtype=f64))
    assert torch.equal(mixture.merged(0.0).means, mixture.means)
    assert len(mixture.merged(1e9).means) == 2  # everything but the spike
    assert float(mixture.merged(1e9).pis.sum()) == pytest.approx(1)


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_get_gradients_of_it(dtype):
    prior = make_prior()
    w = torch.linspace(-0.5, 0.5, 300)
    _, (expected, *_) = gradients(prior, w.to(dtype).float(), prior)
    _, (gradient, *_) = gradients(prior, w.to(dtype), prior)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected.to(dtype))

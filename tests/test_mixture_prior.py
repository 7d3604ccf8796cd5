import math

import pytest
import torch
from scipy import stats
from torch.distributions import Beta, Gamma

from wsnotebook.methods import mixture_passes
from wsnotebook.methods.mixture_prior import (
    Mixture,
    MixturePrior,
    NegativeLogMixture,
    log_beta_density,
    log_gamma_density,
)

PASSES = ["compiled", "blocked"]


@pytest.fixture(params=PASSES)
def one_pass(request, monkeypatch):
    if request.param == "compiled" and not mixture_passes.COMPILED:
        pytest.skip("numba is not installed (extra `fast`)")
    monkeypatch.setattr(mixture_passes, "COMPILED", request.param == "compiled")


def make_prior(components=5, late=False, gamma=(250.0, 0.1), gamma_zero=(5000.0, 2.0), **options):
    prior = MixturePrior(torch.linspace(-0.6, 0.7, components - 1), 0.2, 0.99, gamma, gamma_zero, **options)
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
    pi_0 = torch.tensor(prior.pi_0, dtype=torch.float64) if prior.beta is None else torch.sigmoid(prior.logit_0)
    log_pi = torch.cat([pi_0.log()[None], (1 - pi_0).log() + torch.log_softmax(prior.logits, 0)])
    mu = torch.cat([prior.means.new_zeros(1), prior.means])
    log_p = log_pi - 0.5 * torch.log(2 * math.pi * s) - (w[:, None] - mu) ** 2 / (2 * s)
    loss = -torch.logsumexp(log_p, 1).sum()
    for lambdas, gamma in ((1 / s[1:], prior.gamma), (1 / s[:1], prior.gamma_zero)):
        if gamma is not None:
            shape, rate = (torch.tensor(v, dtype=torch.float64) for v in gamma)
            loss = loss - Gamma(shape, rate).log_prob(lambdas).sum()
    return loss if prior.beta is None else loss - Beta(*torch.tensor(prior.beta, dtype=torch.float64)).log_prob(pi_0)


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


def rows(mixture):
    return sorted(zip(mixture.means.tolist(), mixture.sigmas.tolist(), mixture.pis.tolist(), strict=True))


def test_merging_joins_near_duplicates_and_keeps_mass_mean_second_moment_and_spike():
    f64 = torch.float64
    mixture = Mixture(
        torch.tensor([0, 0.3, 0.5, 0.3005, 0.0], dtype=f64),
        torch.tensor([0.005, 0.02, 0.02, 0.03, 0.005], dtype=f64),
        torch.tensor([0.9, 0.02, 0.03, 0.04, 0.01], dtype=f64),
    )
    merged = mixture.merged(0.1)
    assert len(merged.means) == 4  # 0.3 and 0.3005 are one; the component beside the spike is not the spike
    torch.testing.assert_close(merged.means, torch.tensor([0, (0.02 * 0.3 + 0.04 * 0.3005) / 0.06, 0.5, 0], dtype=f64))
    torch.testing.assert_close(merged.pis, torch.tensor([0.9, 0.06, 0.03, 0.01], dtype=f64))
    assert torch.equal(mixture.merged(0.0).means, mixture.means)
    for threshold in (0.1, 1.0, 1e9):
        few = mixture.merged(threshold)
        for power in (0, 1):
            assert float(few.pis @ few.means**power) == pytest.approx(float(mixture.pis @ mixture.means**power))
        second = [float(m.pis @ (m.means**2 + m.sigmas**2)) for m in (mixture, few)]
        assert second[0] == pytest.approx(second[1])
        assert len(few.means) == {0.1: 4, 1.0: 4, 1e9: 2}[threshold]  # at last everything but the spike
        assert (few.means[0], few.sigmas[0], few.pis[0]) == (mixture.means[0], mixture.sigmas[0], mixture.pis[0])


@pytest.mark.parametrize("threshold", [1e-12, 1e-3, 10.0])
def test_exact_duplicates_merge_for_every_positive_threshold(threshold):
    f64 = torch.float64
    pis = torch.tensor([0.5, 0.2, 0.0, 0.3], dtype=f64)  # one holds nothing
    mixture = Mixture(torch.tensor([0.3, 0.3, 0.3, 0.3], dtype=f64), torch.full((4,), 0.02, dtype=f64), pis)
    merged = mixture.merged(threshold)
    torch.testing.assert_close(torch.tensor(rows(merged)), torch.tensor([[0.3, 0.02, 0.5], [0.3, 0.02, 0.5]]))


def test_the_order_of_components_does_not_matter_to_merging():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.rand(12, generator=generator, dtype=torch.float64)  # noqa: E731
    mixture = Mixture(draw(), 0.02 + 0.05 * draw(), draw() / 6)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(11, generator=generator)])
    shuffled = Mixture(*(values[order] for values in (mixture.means, mixture.sigmas, mixture.pis)))
    for threshold in (0.1, 0.5, 2.0):
        merged = mixture.merged(threshold)
        assert 2 <= len(merged.means) < 12
        torch.testing.assert_close(torch.tensor(rows(merged)), torch.tensor(rows(shuffled.merged(threshold))))


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_get_gradients_of_it(dtype):
    prior = make_prior()
    w = torch.linspace(-0.5, 0.5, 300)
    _, (expected, *_) = gradients(prior, w.to(dtype).float(), prior)
    _, (gradient, *_) = gradients(prior, w.to(dtype), prior)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected.to(dtype))


def test_a_fixed_pi_0_is_no_parameter():
    assert set(make_prior().state_dict()) == {"means", "log_variances", "logits"}
    prior = make_prior(beta=(5.0, 2.0))
    assert float(prior.mixture().pis[0]) == pytest.approx(0.99)
    assert prior.logit_0.dtype == torch.float64
    assert prior.logit_0.shape == ()


@pytest.mark.usefixtures("one_pass")
def test_a_learned_pi_0_has_the_gradient_of_the_straightforward_formulation():
    prior = make_prior(beta=(50.0, 2.0))
    w = 0.3 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    loss, mine = gradients(prior, w, prior)
    expected, theirs = gradients(prior, w.double(), lambda w: straightforward(prior, w))
    assert len(mine) == 5
    assert loss == pytest.approx(expected, rel=1e-6)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_the_hyper_prior_of_pi_0_is_the_beta_density():
    pi = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    expected = torch.from_numpy(stats.beta.logpdf(pi.numpy(), 7.0, 3.0))
    torch.testing.assert_close(log_beta_density(pi.log(), (1 - pi).log(), 7.0, 3.0), expected)


# ----------------------------------------------------------------------------------------------------------- the grid


@pytest.fixture
def exactly(monkeypatch):
    """The numbers of weights that took the exact pass."""
    counts, exact_pass = [], mixture_passes.exact_pass
    monkeypatch.setattr(mixture_passes, "exact_pass", lambda w, *rest: counts.append(len(w)) or exact_pass(w, *rest))
    return counts


HOSTILE = {  # (sigmas, weights) of a mixture with means in [-0.6, 0.6]
    "early": ([0.3, 0.2, 0.25, 0.2], "normal"),
    "late": ([0.005, 0.02, 0.02, 0.02], "mixture"),
    "narrow spike": ([1e-4, 0.02, 0.03, 0.02], "mixture"),
    "wide and narrow": ([1e-3, 50.0, 0.01, 1.0], "mixture"),
    "very different": ([1e-4, 1e-2, 1.0, 100.0], "mixture"),
    "one value": ([0.01, 0.02, 0.02, 0.02], "constant"),
    "far away": ([0.01, 0.02, 0.1, 0.02], "far"),
    "outlier": ([0.01, 0.02, 0.03, 0.02], "outlier"),
}


def hostile(kind, seed, d):
    """(w, means, log_variances, log_pis), the last three float64 leaves: duplicates and components of no mass too."""
    sigmas, weights = HOSTILE[kind]
    generator = torch.Generator().manual_seed(seed)
    means = torch.tensor([0.0, *(1.2 * torch.rand(3, generator=generator) - 0.6).tolist()])
    rho = torch.tensor([2.0, *torch.randn(3, generator=generator).tolist()])
    means, sigmas = torch.cat([means, means[1:3]]), torch.tensor([*sigmas, *sigmas[1:3]])  # duplicates
    rho = torch.cat([rho, torch.tensor([-1.0, -60.0])])  # ... and one has no mass
    noise, one = torch.randn(d, generator=generator), torch.randint(0, 4, (d,), generator=generator)
    w = {
        "normal": 0.1 * noise,
        "mixture": means[one] + sigmas[one] * noise,
        "constant": torch.full((d,), 0.0123),
        "far": 3 + 0.01 * noise,
        "outlier": torch.cat([torch.tensor([300.0]), 0.1 * noise[1:]]),
    }[weights]
    parameters = (means, 2 * sigmas.log(), torch.log_softmax(rho, 0))
    return w, [p.double().requires_grad_() for p in parameters]


def sums(w, parameters, tolerance):
    """g (d,), N, M_j / sigma_j and lambda_j V_j by the Function; the parameters' gradients hold them."""
    w = w.clone().requires_grad_()
    for p in parameters:
        p.grad = None
    NegativeLogMixture.apply(w, *parameters, tolerance).backward()
    mean, log_s, log_pi = (p.grad for p in parameters)
    return w.grad.double(), -log_pi, -mean * (0.5 * parameters[1].detach()).exp(), -log_pi - 2 * log_s


def expected_sums(w, parameters):
    """The same in float64 and L = sum_j r_ij lambda_j (d,), from the definition."""
    means, log_s, log_pis = (p.detach() for p in parameters)
    precisions = torch.exp(-log_s).float().double()  # as the passes see them
    log_scales, means = (log_pis - 0.5 * (math.log(2 * math.pi) + log_s)).float().double(), means.float().double()
    d = w.double()[:, None] - means
    r = torch.softmax(log_scales - 0.5 * precisions * d**2, 1)
    n, m, v = r.sum(0), (r * d).sum(0) * precisions.sqrt(), (r * d**2).sum(0) * precisions
    return ((r * precisions * d).sum(1), n, m, v), (r * precisions).sum(1)


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("kind", HOSTILE)
def test_the_grid_keeps_its_tolerance_whatever_the_mixture(kind, tolerance):
    for seed, d in enumerate((1100, 5000, 30_000)):
        w, parameters = hostile(kind, seed, d)
        (g, *components), precision = expected_sums(w, parameters)
        scale = components[0] + components[2] + 1
        (exact, *exact_components), (mine, *my_components) = (sums(w, parameters, t) for t in (0.0, tolerance))
        rounding = 4 * float((exact - g).abs().div(precision.sqrt()).max())  # of float32, which no grid is needed for
        assert float((mine - g).abs().div(precision.sqrt()).max()) <= tolerance + rounding
        rounding = 4 * max(
            float((a - b).abs().div(scale).max()) for a, b in zip(exact_components, components, strict=True)
        )
        for a, b in zip(my_components, components, strict=True):
            assert float((a - b).abs().div(scale).max()) <= tolerance + rounding


@pytest.mark.usefixtures("one_pass")
def test_a_component_that_holds_little_keeps_its_tolerance_too(exactly):
    """Between two far components the responsibility of one grows by e in a cell: small here, but all that it has."""
    f64, tolerance = torch.float64, 1e-3
    w = (0.5 - 1.12e-3 + 3e-5 * torch.arange(4)).repeat(25_000)
    parameters = [torch.tensor([0.0, 1.0], dtype=f64), torch.full((2,), 2 * math.log(0.01), dtype=f64), -torch.ones(2)]
    parameters = [p.double().requires_grad_() for p in parameters]
    (_, n, *_), _ = expected_sums(w, parameters)
    _, mine, *_ = sums(w, parameters, tolerance)
    assert float(n[1]) < 30
    assert float(((mine - n).abs() / (n + 1)).max()) <= tolerance
    assert exactly == [len(w)]


@pytest.mark.usefixtures("one_pass")
def test_random_priors_keep_their_tolerance():
    """Every gradient of the prior itself, hyper-priors and softmax included, relative to its largest entry."""
    for components in (2, 3, 9, 17, 40):
        for late in (False, True):
            prior = make_prior(components, late, beta=(50.0, 2.0), tolerance=1e-4)
            w = 0.15 * torch.randn(20_000, generator=torch.Generator().manual_seed(components))
            loss, mine = gradients(prior, w, prior)
            expected, theirs = gradients(prior, w.double(), lambda w, prior=prior: straightforward(prior, w))
            assert loss == pytest.approx(expected, rel=1e-5)
            for a, b in zip(mine, theirs, strict=True):
                assert float((a.double() - b).abs().max()) <= 1e-4 * float(b.abs().max())


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize("kind", ["early", "one value"])
def test_a_resolved_mixture_takes_the_grid_alone(kind, exactly):
    w, parameters = hostile(kind, 0, 30_000)
    sums(w, parameters, 1e-3)
    assert exactly == []


@pytest.mark.usefixtures("one_pass")
def test_only_what_the_grid_cannot_serve_is_exact(exactly):
    w, parameters = hostile("early", 0, 30_000)
    w[7] = 300.0  # an outlier does not stretch the grid
    sums(w, parameters, 1e-3)
    assert exactly == [1]


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize("d", [1, 900])
def test_few_weights_are_exact(d, exactly):
    prior = make_prior(tolerance=1e-2)
    prior(torch.linspace(-0.5, 0.5, d))
    assert exactly == [d]


@pytest.mark.usefixtures("one_pass")
def test_millions_of_weights_in_one_cell_are_all_counted():
    d, value = 3_000_000, 0.0012345
    prior = make_prior(late=True, gamma=None, gamma_zero=None, tolerance=1e-3)
    one, (g, *expected) = gradients(prior, torch.tensor([value]).double(), lambda w: straightforward(prior, w))
    loss, (gradient, *mine) = gradients(prior, torch.full((d,), value), prior)
    assert loss == pytest.approx(d * one, rel=1e-6)
    torch.testing.assert_close(gradient.double(), g.expand(d), rtol=1e-4, atol=0)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a / d, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["weight", "mean", "log_variance", "logit"])
def test_numbers_that_are_not_finite_come_out_as_such(bad, place):
    prior = make_prior(tolerance=1e-3)
    w = torch.linspace(-0.5, 0.5, 5000)
    if place == "weight":
        w[1234] = bad
    else:
        {"mean": prior.means, "log_variance": prior.log_variances, "logit": prior.logits}[place].data[1] = bad
    loss, mine = gradients(prior, w, prior)
    if place == "weight" or math.isnan(bad):
        assert not math.isfinite(loss)
        assert not mine[0][1234].isfinite()

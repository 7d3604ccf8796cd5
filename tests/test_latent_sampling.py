"""Networks from a latent space lie where the mode's equation says; the best are kept by validation alone."""

import numpy as np
import pytest
import torch

from wsnotebook import evaluation, zoo
from wsnotebook.methods import sane
from wsnotebook.methods.latent_sampling import MODES, bootstrapped, deviations, sample, subsampled
from wsnotebook.methods.layer_pca import layer_pca

NETWORK = "mlp-64-8-10"  # 18 rows, of 65 and 9 numbers
Z = 5


@pytest.fixture(scope="module")
def anchors(digits, tmp_path_factory):
    config = zoo.Config(epochs=6, batch=50, lr=3e-3)
    return zoo.train(NETWORK, digits, 12, config, folder=tmp_path_factory.mktemp("anchors"))


@pytest.fixture(scope="module")
def pca(anchors):
    return layer_pca(anchors, Z)


@pytest.fixture(scope="module")
def wider(digits, tmp_path_factory):
    """Few-shot anchors of another width."""
    config = zoo.Config(epochs=1, batch=50, lr=3e-3)
    return zoo.train("mlp-64-11-10", digits, 3, config, folder=tmp_path_factory.mktemp("wider"))


class Scaled:
    """An embedder whose latents are ten times those of another."""

    def __init__(self, of):
        self.of = of

    def embed(self, networks):
        return 10 * self.of.embed(networks)

    def decode(self, z, like=None):
        return self.of.decode(z / 10, like)


def nearest_anchors(pca, networks, anchors):
    """(n, r): the anchor with the closest latent, row by row."""
    distances = (pca.embed(networks)[:, None] - pca.embed(anchors)).norm(dim=-1)  # (n, m, r)
    return distances.argmin(1).numpy()


@pytest.mark.parametrize("mode", ["kde", "public"])
def test_without_bandwidth_samples_are_the_decoded_anchors(pca, anchors, mode):
    made = sample(pca, anchors, 40, mode, bandwidth=0)
    decoded = pca.decode(pca.embed(anchors), anchors)
    assert set(made.facts["parent"]) > {0, 1, 2}
    torch.testing.assert_close(made.weights, decoded.weights[made.facts["parent"]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_seed_repeats_and_another_does_not(pca, anchors, mode):
    one, two, other = (sample(pca, anchors, 5, mode, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.weights, two.weights)
    assert (one.weights - other.weights).abs().max() > 0.01
    assert one.facts["model"].tolist() == [0, 1, 2, 3, 4]
    assert one.network == NETWORK


def test_all_rows_of_a_network_have_one_anchor_but_in_the_mode_that_mixes(pca, anchors):
    near = sample(pca, anchors, 30, "kde", bandwidth=0.01)
    assert (nearest_anchors(pca, near, anchors) == near.facts["parent"][:, None]).all()
    mixed = sample(pca, anchors, 30, "tokens", bandwidth=0.01)
    assert min(len(set(row)) for row in nearest_anchors(pca, mixed, anchors)) > 3
    assert set(mixed.facts["parent"]) == {-1}


def test_parents_are_the_anchors_models(pca, anchors):
    made = sample(pca, anchors.filter([7, 4]), 20, bandwidth=0.01)
    assert set(made.facts["parent"]) == {4, 7}


def test_kernel_noise_has_the_bandwidth_in_units_of_the_spread_and_the_public_one_in_none(pca, anchors):
    z, s = pca.embed(anchors), deviations(pca, anchors)
    np.testing.assert_allclose(s.numpy(), z.double().numpy().std(0, ddof=1), rtol=1e-4)
    made = sample(pca, anchors, 400, bandwidth=0.3)
    noise = (pca.embed(made) - z[made.facts["parent"]]) / s  # (n, r, z)
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    across = torch.corrcoef(noise.flatten(1).T) - torch.eye(18 * Z)
    assert across.abs().max() < 0.3  # no number's noise is another's
    public = sample(pca, anchors, 400, "public", bandwidth=0.3)
    noise = pca.embed(public) - z[public.facts["parent"]]
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), rtol=0, atol=1e-4)
    assert noise[:, 0].std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("mode", ["gaussian", "joint"])
def test_gaussians_have_the_anchors_moments(pca, anchors, mode):
    few = anchors.filter(range(4))
    z = pca.embed(few).flatten(1).double()
    drawn = pca.embed(sample(pca, few, 4_000, mode)).flatten(1).double()
    covariance = z.T.cov()
    expected = covariance * (torch.eye(len(covariance)) if mode == "gaussian" else 1)
    scale = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - z.mean(0)) / scale).abs().max() < 0.1
    assert ((drawn.T.cov() - expected) / scale / scale[:, None]).abs().max() < 0.15


def test_joint_samples_lie_in_the_span_of_the_anchors(pca, anchors):
    few = anchors.filter(range(4))
    z, drawn = (pca.embed(each).flatten(1).double() for each in (few, sample(pca, few, 20, "joint")))
    inside = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh[:3]
    centred = drawn - z.mean(0)
    torch.testing.assert_close(centred @ inside.T @ inside, centred, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_the_unit_of_the_latents_does_not_matter_but_to_the_public_rule(pca, anchors, mode):
    one, scaled = (sample(embedder, anchors, 6, mode).weights for embedder in (pca, Scaled(pca)))
    assert torch.allclose(one, scaled, rtol=0, atol=1e-5) == (mode != "public")


def test_subsampling_keeps_the_best_by_validation(pca, anchors, digits):
    drawn = sample(pca, anchors, 30, bandwidth=1.0)
    kept = subsampled(drawn, 6, digits.validation)
    accuracy = evaluation.report(drawn, digits.validation).accuracy
    np.testing.assert_allclose(kept.facts["validation_accuracy"], np.sort(accuracy)[::-1][:6])
    np.testing.assert_allclose(evaluation.report(kept, digits.validation).accuracy, kept.facts["validation_accuracy"])
    assert torch.equal(kept.weights, drawn.weights[kept.facts["model"]])
    everything = subsampled(drawn, 30, digits.validation)
    assert sorted(everything.facts["model"]) == list(range(30))


def test_bootstrappings_best_never_get_worse_and_do_get_better(pca, anchors, digits):
    found = [bootstrapped(pca, anchors, 20, 5, digits.validation, rounds, bandwidth=1.0) for rounds in (1, 2, 3, 4)]
    once = subsampled(sample(pca, anchors, 20, bandwidth=1.0), 5, digits.validation)
    torch.testing.assert_close(found[0].weights, once.weights)
    accuracies = np.stack([networks.facts["validation_accuracy"] for networks in found])  # (rounds, keep)
    assert (np.diff(accuracies, axis=0) >= 0).all()
    assert (np.diff(accuracies, axis=1) <= 0).all()
    assert accuracies[-1].mean() > accuracies[0].mean()
    last = found[-1]
    assert set(last.facts["round"]) <= {1, 2, 3, 4}
    assert last.facts["round"].max() > 1
    assert last.facts["model"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(evaluation.report(last, digits.validation).accuracy, accuracies[-1])


def test_later_rounds_are_drawn_around_the_best_so_far(pca, anchors, digits):
    first, second = (bootstrapped(pca, anchors, 20, 1, digits.validation, rounds, bandwidth=0.05) for rounds in (1, 2))
    assert second.facts["parent"] == first.facts["parent"]  # whose only anchor is the first's best
    distance = (pca.embed(second) - pca.embed(first)) / deviations(pca, anchors)
    assert distance.square().mean().sqrt() < 0.07


def test_rounds_may_begin_with_samples_instead_of_anchors(pca, anchors, digits):
    begun = bootstrapped(pca, sample(pca, anchors, 30, "gaussian"), 30, 5, digits.validation)
    assert begun.facts["parent"].min() >= 0
    assert (
        begun.facts["validation_accuracy"].mean()
        > evaluation.report(sample(pca, anchors, 30, "gaussian"), digits.validation).accuracy.mean()
    )


def test_one_anchor_is_enough_with_the_spread_of_others(pca, anchors, wider):
    s, one = deviations(pca, anchors), anchors.filter([3])
    noise = (pca.embed(sample(pca, one, 200, spread=s)) - pca.embed(one)) / s
    assert noise.std().item() == pytest.approx(0.2, rel=0.03)
    few = wider.filter([0])
    own = layer_pca(wider, Z)  # 21 rows
    noise = (own.embed(sample(own, few, 200, spread=s.mean(0))) - own.embed(few)) / s.mean(0)
    assert noise.std().item() == pytest.approx(0.2, rel=0.03)
    with pytest.raises(ValueError, match="a single network has no spread"):
        sample(pca, one, 2)


def test_few_anchors_of_another_width_are_sampled_around_by_a_trained_autoencoder(anchors, wider, digits):
    config = sane.Config(iterations=2, batch=4, dim=12, heads=2, blocks=1, z=9)
    trained = sane.train(anchors, config)
    s = deviations(trained, anchors).mean(0)
    made = sample(trained.transferred(wider), wider, 4, spread=s, bandwidth=0.05)
    assert (made.network, made.layout) == (wider.network, wider.layout)
    assert set(made.facts["parent"]) <= set(wider.facts["model"])
    assert evaluation.report(made, digits.validation).errors.shape == (4, len(digits.validation[0]))


def test_running_statistics_are_found_again_on_the_images_given(digits, tmp_path):
    nets = zoo.train("resnet-8", digits, 3, zoo.Config(epochs=0), folder=tmp_path)
    pca, x = layer_pca(nets, 4), digits.train[0][:64]
    plain, found = sample(pca, nets, 2), sample(pca, nets, 2, x=x)
    assert torch.equal(evaluation.recalibrated(plain, x).weights, found.weights)
    changed = (plain.weights != found.weights).any(0)
    assert changed.any()
    assert not changed[nets.layout.learned()].any()


def test_networks_have_their_anchors_activations(pca, anchors):
    several = anchors.derived(anchors.weights, activation=np.array(["relu", "tanh"] * 6))
    pca = layer_pca(several, Z)
    made = sample(pca, several, 20)
    assert (made.facts["activation"] == several.facts["activation"][made.facts["parent"]]).all()
    with pytest.raises(ValueError, match="activations relu, tanh"):
        sample(pca, several, 2, "tokens")
    assert set(sample(pca, several.filter([0, 2]), 2, "tokens").facts["activation"]) == {"relu"}


def test_what_cannot_be_is_said(pca, anchors, wider, digits):
    drawn = sample(pca, anchors, 4)
    for wrong, named in (
        (lambda: sample(pca, anchors, 2, "kernel"), "mode='kernel': expected one of 'kde'"),
        (lambda: sample(pca, anchors, 0), "n=0"),
        (lambda: sample(pca, anchors, 2, bandwidth=-1.0), "bandwidth=-1.0"),
        (lambda: sample(pca, anchors, 2, bandwidth=float("nan")), "bandwidth=nan"),
        (lambda: sample(pca, anchors, 2, spread=torch.ones(3, 4)), r"spread: shape \(3, 4\), expected \(18, 5\)"),
        (lambda: sample(pca, anchors.filter([]), 2), "anchors: no networks"),
        (lambda: sample(pca, anchors.filter([0]), 2, "joint"), "no spread"),
        (lambda: sample(pca, wider, 2), "another architecture"),
        (lambda: subsampled(drawn, 5, digits.validation), "keep=5: expected 1 to 4"),
        (lambda: subsampled(drawn, 0, digits.validation), "keep=0"),
        (lambda: bootstrapped(pca, anchors, 3, 4, digits.validation), "keep=4: expected 1 to 3"),
        (lambda: bootstrapped(pca, anchors, 0, 1, digits.validation), "n=0"),
        (lambda: bootstrapped(pca, anchors, 3, 2, digits.validation, 0), "rounds=0"),
    ):
        with pytest.raises(ValueError, match=named):
            wrong()

"""Per-layer PCA is principal components analysis of every layer's rows, and nothing is closer in as many numbers."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from wsnotebook import networks
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.tokens import tokens
from wsnotebook.zoo.value import Zoo


def made(name="cnn-tiny", n=40):
    layout = Layout.of(networks.build(name), exclude=COUNTERS)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(100, layout.d, generator=generator) / 10  # weights that go together
    rows = torch.randn(n, 100, generator=generator) @ mixing + layout.tensor_index()
    return Zoo(rows, layout, {"model": np.arange(n)}, name, {})


@pytest.fixture(scope="module")
def nets():
    return made()


def test_it_is_sklearns_pca_of_every_layers_rows(nets):
    pca = layer_pca(nets, 5)
    standardised = pca.standardised
    entries, back = (standardised.encode(zoo.weights) for zoo in (nets, pca.decode(pca.embed(nets))))
    for block in standardised.tokens.blocks:
        x = block.of(entries).flatten(0, 1).double().numpy()
        reference = PCA(5).fit(x)
        expected = reference.inverse_transform(reference.transform(x))
        np.testing.assert_allclose(block.of(back).flatten(0, 1).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"width": 10}, {"pack": 3, "width": 80}])
def test_as_many_components_as_columns_lose_nothing(nets, options):
    of = tokens(nets.layout, **options)
    pca = layer_pca(nets, of.width, of)
    z = pca.embed(nets)
    assert z.shape == (40, len(of.rows), of.width)
    torch.testing.assert_close(pca.decode(z).weights, nets.weights, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pca.mean(nets), z.mean(1))


def test_more_components_come_closer(nets):
    def error(z):
        pca = layer_pca(nets, z)
        return float((pca.decode(pca.embed(nets)).weights - nets.weights).square().mean())

    errors = [error(z) for z in (1, 3, 9, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


def test_bases_are_orthonormal_and_end_where_a_layer_does(nets):
    pca = layer_pca(nets, 12)
    for block, basis in zip(pca.standardised.tokens.blocks, pca.bases, strict=True):
        own = min(12, block.columns)
        assert basis.shape == (block.columns, 12)
        torch.testing.assert_close(basis.T @ basis, torch.diag((torch.arange(12) < own).float()), atol=1e-5, rtol=0)


def test_a_single_network_comes_back_in_its_own_rows():
    one = made("resnet-8", 1)
    pca = layer_pca(one, 64)  # of 64 rows at most
    learned = one.layout.learned()
    torch.testing.assert_close(
        pca.decode(pca.embed(one)).weights[:, learned], one.weights[:, learned], atol=1e-3, rtol=0
    )


def test_what_cannot_be(nets):
    with pytest.raises(ValueError, match="z=0: expected at least 1 component"):
        layer_pca(nets, 0)
    with pytest.raises(ValueError, match="no networks"):
        layer_pca(nets.filter([]), 3)
    with pytest.raises(ValueError, match="another architecture"):
        layer_pca(nets, 3).embed(made("cnn-small", 2))

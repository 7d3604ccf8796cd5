import pytest
import torch

from wsnotebook import datasets, networks, training
from wsnotebook.evaluation import score
from wsnotebook.methods import pruning

QUICK = pruning.Config(nonzero_percent=10.0, centres=4, epochs=3, batch=64)


@pytest.fixture(scope="module")
def result(network, digits):
    return pruning.prune(network, digits, QUICK)


def test_a_kept_result_is_found_again(network, digits, result, monkeypatch):
    kept = pruning.prune(network, digits, QUICK, keep=True)
    monkeypatch.setattr(training, "minibatches", lambda *_: pytest.fail("pruned again"))
    again = pruning.prune(network, digits, QUICK, keep=True)
    for found in (kept, again):
        assert found.sizes == result.sizes
        assert (found.validation_errors, found.quantised_error) == (result.validation_errors, result.quantised_error)
        assert all(torch.equal(found.quantised[name], tensor) for name, tensor in result.quantised.items())


def test_the_asked_share_stays_and_each_layer_has_so_many_values(result):
    quantised = networks.build("mlp-64-24-10")
    quantised.load_state_dict(result.quantised)
    assert result.quantised_error == score(quantised, datasets.load("digits").validation).error
    assert result.sizes.nonzero_percent == pytest.approx(10, abs=0.1)
    for layer in result.sizes.layers:
        w = result.quantised[layer.name]
        assert int((w != 0).sum()) == layer.nonzeros
        assert len(w[w != 0].unique()) <= 4


def test_masks_keep_the_largest_magnitudes_over_all_tensors():
    weights = [torch.randn(30, 7), torch.randn(11)]
    masks = pruning.magnitude_masks(weights, 0.2)
    kept = torch.cat([w[m == 1].abs() for w, m in zip(weights, masks, strict=True)])
    dropped = torch.cat([w[m == 0].abs() for w, m in zip(weights, masks, strict=True)])
    assert len(kept) == round(0.2 * 221)
    assert kept.min() > dropped.max()
    assert all(m.all() for m in pruning.magnitude_masks(weights, 1.0))


def test_the_schedule_goes_from_all_to_the_final_share():
    shares = [pruning.share_left(t / 10, 0.04) for t in range(12)]
    assert shares[0] == 1
    assert shares[10] == shares[11] == pytest.approx(0.04)
    assert shares == sorted(shares, reverse=True)


def test_clustering_is_exact_when_there_are_centres_enough_and_zero_stays_zero():
    w = torch.tensor([[0.0, 0.5, -0.25], [0.5, 0.0, 1.0]])
    values, ids = pruning.cluster(w, centres=8, seed=0)
    torch.testing.assert_close(values, w)
    assert torch.equal(ids == 0, w == 0)
    values, ids = pruning.cluster(w, centres=1, seed=0)
    torch.testing.assert_close(values[w != 0], w[w != 0].mean().expand(4))
    assert torch.equal(pruning.cluster(torch.zeros(2, 2), 3, 0)[1], torch.zeros(2, 2, dtype=torch.int64))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="nonzero_percent=0"):
        pruning.Config(nonzero_percent=0)
    with pytest.raises(ValueError, match="centres=0"):
        pruning.Config(centres=0)

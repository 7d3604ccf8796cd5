import pytest
import torch

from wsnotebook import datasets, networks, training
from wsnotebook.evaluation import score
from wsnotebook.methods import baselines, codebook, codec

QUICK = baselines.Config(nonzero_percent=10.0, centres=4, epochs=3, batch=64)


@pytest.fixture(scope="module")
def result(network, digits):
    return baselines.prune(network, digits, QUICK)


def test_a_kept_result_is_found_again(network, digits, result, monkeypatch):
    kept = baselines.prune(network, digits, QUICK, keep=True)
    monkeypatch.setattr(training, "minibatches", lambda *_: pytest.fail("pruned again"))
    again = baselines.prune(network, digits, QUICK, keep=True)
    for found in (kept, again):
        assert found.sizes == result.sizes
        assert (found.file, found.error) == (result.file, result.error)
        assert all(torch.equal(found.state[name], tensor) for name, tensor in result.state.items())


def test_a_kept_grid_is_found_again_with_the_seconds_it_took(network, digits, monkeypatch):
    how = codebook.Config(epochs=1, batch=64)
    made = baselines.uniform(network, digits, 9, how, keep=True)
    other = baselines.uniform(network, digits, 7, how, keep=True)
    monkeypatch.setattr(codebook, "pack", lambda *_: pytest.fail("made again"))
    again = baselines.uniform(network, digits, 9, how, keep=True)
    assert (again.file, again.error, again.cpu_seconds) == (made.file, made.error, made.cpu_seconds)
    assert made.cpu_seconds > 0
    assert other.file != made.file


def test_the_asked_share_stays_and_each_layer_has_so_many_values(result):
    pruned = networks.build("mlp-64-24-10")
    pruned.load_state_dict(codec.decode(result.file))
    assert result.error == score(pruned, datasets.load("digits").validation).error
    assert result.sizes.nonzero_percent == pytest.approx(10, abs=0.1)
    for layer in result.sizes.layers:
        w = result.state[layer.name]
        assert int((w != 0).sum()) == layer.nonzeros
        assert len(w[w != 0].unique()) <= 4


def test_masks_keep_the_largest_magnitudes_over_all_tensors():
    weights = [torch.randn(30, 7), torch.randn(11)]
    masks = baselines.magnitude_masks(weights, 0.2)
    kept = torch.cat([w[m == 1].abs() for w, m in zip(weights, masks, strict=True)])
    dropped = torch.cat([w[m == 0].abs() for w, m in zip(weights, masks, strict=True)])
    assert len(kept) == round(0.2 * 221)
    assert kept.min() > dropped.max()
    assert all(m.all() for m in baselines.magnitude_masks(weights, 1.0))


def test_the_schedule_goes_from_all_to_the_final_share():
    shares = [baselines.share_left(t / 10, 0.04) for t in range(12)]
    assert shares[0] == 1
    assert shares[10] == shares[11] == pytest.approx(0.04)
    assert shares == sorted(shares, reverse=True)


def test_clustering_is_exact_when_there_are_centres_enough_and_zero_stays_zero():
    w = torch.tensor([[0.0, 0.5, -0.25], [0.5, 0.0, 1.0]])
    ids, book = baselines.cluster(w, centres=8, seed=0)
    torch.testing.assert_close(book[ids], w)
    assert torch.equal(ids == 0, w == 0)
    ids, book = baselines.cluster(w, centres=1, seed=0)
    torch.testing.assert_close(book[ids][w != 0], w[w != 0].mean().expand(4))
    ids, book = baselines.cluster(torch.zeros(2, 2), 3, 0)
    assert torch.equal(ids, torch.zeros(2, 2, dtype=torch.int64))
    assert book.tolist() == [0.0]


@pytest.mark.parametrize("levels", [3, 15, 255])
def test_a_uniform_grid_rounds_to_its_nearest_level(network, digits, levels):
    packed = baselines.uniform(network, digits, levels, codebook.Config())
    for name in ("fc1.weight", "fc2.weight"):
        w, rounded = network.state_dict()[name], packed.state[name]
        step = w.abs().max() / (levels // 2)
        assert (w - rounded).abs().max() <= step * (0.5 + 1e-5)
        assert len(rounded.unique()) <= levels
        torch.testing.assert_close((rounded / step).round() * step, rounded)
    assert torch.equal(packed.state["fc1.bias"], network.state_dict()["fc1.bias"])


def test_more_levels_cost_more_and_a_zero_tensor_is_no_trouble(network, digits):
    sizes = [len(baselines.uniform(network, digits, levels, codebook.Config()).file) for levels in (3, 15, 255)]
    assert sizes == sorted(sizes)
    zero = networks.build("mlp-64-24-10")
    zero.fc2.weight.data.zero_()
    assert not baselines.uniform(zero, digits, 5, codebook.Config()).state["fc2.weight"].any()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="nonzero_percent=0"):
        baselines.Config(nonzero_percent=0)
    with pytest.raises(ValueError, match="centres=0"):
        baselines.Config(centres=0)
    with pytest.raises(ValueError, match="levels=4: expected an odd number of at least 3"):
        baselines.uniform(networks.build("mlp-64-24-10"), datasets.load("digits"), 4, codebook.Config())

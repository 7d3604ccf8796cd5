"""Laws of shared values: frozen ids stay, zero stays, the gradient of an entry is that of its weights, rounding."""

import copy

import pytest
import torch
from torch.nn import functional as F

from wsnotebook import networks, training
from wsnotebook.evaluation import score
from wsnotebook.methods import codebook, codec
from wsnotebook.methods.codebook import Clustered


@pytest.fixture
def clustered(network):
    """The network's matrices, 80 % zero, the rest in three values each."""
    ids, books = {}, {}
    for name in ("fc1.weight", "fc2.weight"):
        w = network.state_dict()[name]
        small, large = torch.quantile(w.abs(), torch.tensor([0.8, 0.95])).tolist()
        ids[name] = torch.tensor([1, 0, 2, 3])[torch.bucketize(w, torch.tensor([-small, small, large]))]
        books[name] = torch.tensor([0.0, w[ids[name] == 1].mean(), w[ids[name] == 2].mean(), w[ids[name] == 3].mean()])
    return Clustered(ids, books)


def start(network, clustered):
    network = copy.deepcopy(network)
    network.load_state_dict(network.state_dict() | clustered.values())
    return network


def test_ids_and_zeros_stay_and_the_training_loss_falls(network, digits, clustered):
    tuned = start(network, clustered)
    before = score(tuned, digits.train).loss
    result = codebook.fine_tune(tuned, digits, clustered, codebook.Config(epochs=3, batch=64, lr_codebook=1e-2))
    assert score(tuned, digits.train).loss < before
    state = tuned.state_dict()
    for name, ids in clustered.ids.items():
        assert result.ids[name] is ids
        assert result.codebooks[name][0] == 0
        assert torch.equal(state[name], result.codebooks[name][ids])
        assert not torch.equal(result.codebooks[name], clustered.codebooks[name])
    assert not torch.equal(state["fc1.bias"], network.state_dict()["fc1.bias"])


def test_a_step_is_adams_on_the_entries_themselves(network, digits, clustered):
    """One batch of all rows: the same step as autograd through codebook[ids] with Adam on the codebooks."""
    rows = len(digits.train[0])
    config = codebook.Config(epochs=1, batch=rows, lr_codebook=1e-2, lr_rest=0.0)
    tuned = start(network, clustered)
    result = codebook.fine_tune(tuned, digits, clustered, config)
    books = {name: book.clone().requires_grad_() for name, book in clustered.codebooks.items()}
    values = {name: books[name][ids] * (ids > 0) for name, ids in clustered.ids.items()}
    x, y = digits.train
    F.cross_entropy(torch.func.functional_call(network, values, (x,)), y).backward()
    optimiser = torch.optim.Adam(books.values(), lr=1e-2)
    optimiser.step()
    for name, book in books.items():
        torch.testing.assert_close(result.codebooks[name][1:], book.detach()[1:], atol=1e-5, rtol=1e-5)


def test_frozen_rates_leave_the_network_as_it_was(network, digits, clustered):
    tuned = start(network, clustered)
    before = copy.deepcopy(tuned.state_dict())
    codebook.fine_tune(tuned, digits, clustered, codebook.Config(epochs=1, lr_codebook=0, lr_rest=0))
    assert all(torch.equal(before[name], tensor) for name, tensor in tuned.state_dict().items())


def test_numbers_are_rounded_as_asked(network, digits, clustered):
    config = codebook.Config(rest="float16", bias_step=2**-4)
    packed = codebook.pack(network, digits, clustered, config)
    for name, book in packed.clustered.codebooks.items():
        assert torch.equal(book, book.half().float())
        assert torch.equal(packed.state[name], book[clustered.ids[name]])
    for name in ("fc1.bias", "fc2.bias"):
        bias, exact = packed.state[name], network.state_dict()[name]
        assert torch.equal(bias * 16, (bias * 16).round())
        assert (bias - exact).abs().max() <= 2**-5
    plain = codebook.pack(network, digits, clustered, codebook.Config())
    assert torch.equal(plain.state["fc1.bias"], network.state_dict()["fc1.bias"])
    assert len(packed.file) < len(plain.file)


def test_a_packed_network_is_its_file_and_comes_back_from_the_cache(network, digits, clustered):
    packed = codebook.pack(network, digits, clustered, codebook.Config(epochs=1))
    assert packed.state.keys() == network.state_dict().keys()
    decoded = codec.decode(packed.file)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in packed.state.items())
    tested = networks.build("mlp-64-24-10")
    tested.load_state_dict(decoded)
    assert packed.error == score(tested, digits.validation).error
    assert packed.ratio == 4 * 1810 / len(packed.file)
    again = codebook.Compressed.load(packed.stored())
    assert again.stored() is not packed.stored()
    assert again.sizes == packed.sizes
    assert again.ratio == packed.ratio
    nonzeros = sum(int((ids > 0).sum()) for ids in clustered.ids.values())
    assert sum(layer.nonzeros for layer in packed.sizes.layers) == nonzeros


def test_batch_norm_statistics_are_rounded_and_counters_left(digits):
    network = networks.build("wrn-10-1")
    ids = {"fc.weight": (network.fc.weight > 0).long()}
    clustered = Clustered(ids, {"fc.weight": torch.tensor([0.0, 0.1])})
    x, y = digits.validation
    small = type(digits)(**vars(digits) | {"validation": (x[:4].expand(-1, 3, -1, -1), y[:4])})
    network.bn.running_mean += 1e-4
    state = codebook.pack(network, small, clustered, codebook.Config(rest="float16")).state
    assert torch.equal(state["bn.running_mean"], network.bn.running_mean.half().float())
    assert torch.equal(state["bn.num_batches_tracked"], network.bn.num_batches_tracked)
    assert torch.equal(state["conv.weight"], network.conv.weight.half().float())


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"rest='float16': the largest value, 7e\+04, does not fit it"):
        codebook.rounded(torch.tensor([7e4]), "float16")
    assert codebook.rounded(torch.tensor([0.26, -0.1]), "float16", step=0.25).tolist() == [0.25, 0.0]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="rest='float8': expected one of 'float32', 'float16'"):
        codebook.Config(rest="float8")
    with pytest.raises(ValueError, match="bias_step=-1, expected a number >= 0"):
        codebook.Config(bias_step=-1)


def test_training_is_the_same_for_the_same_seed(network, digits, clustered):
    results = [
        codebook.fine_tune(start(network, clustered), digits, clustered, codebook.Config(epochs=1, batch=64, seed=seed))
        for seed in (1, 1, 2)
    ]
    books = [torch.cat(list(result.codebooks.values())) for result in results]
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])
    assert training.SCHEDULES["cosine"](1) == pytest.approx(0)

from dataclasses import replace

import pytest
import torch

from wsnotebook import networks, training
from wsnotebook.evaluation import score
from wsnotebook.methods import codebook, codec
from wsnotebook.methods import soft_weight_sharing as sws

pytestmark = pytest.mark.filterwarnings("ignore:the spike had not condensed")  # four epochs are few
QUICK = sws.Config(
    components=5, tau=0.05, init_sigma=0.1, lr_weights=3e-3, epochs=4, batch=64, train_rest=True, merge=0.15
)


@pytest.fixture(scope="module")
def result(network, digits):
    return sws.compress(network, digits, QUICK)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_clustered_weight_is_a_mean_of_the_mixture_and_the_rest_is_untouched(result):
    means, state = result.mixture.means.float(), result.compressed.state
    for name in result.layout.names:
        assert torch.isin(state[name], means).all()
    for name in state.keys() - set(result.layout.names):
        assert torch.equal(state[name], result.after[name])
    assert result.finished


def test_the_sizes_count_the_quantised_network(result):
    row = result.layout.flatten(result.compressed.state)
    assert sum(layer.nonzeros for layer in result.compressed.sizes.layers) == int((row != 0).sum())
    assert result.compressed.sizes.original_bits == 32 * result.layout.d
    assert 0 < result.compressed.sizes.nonzero_percent < 100


def test_history_mixtures_and_trace_have_an_entry_an_epoch(result, network):
    entries = QUICK.epochs + 1
    assert {len(values) for values in result.history.values()} == {entries}
    assert len(result.mixtures) == len(result.trace) == entries
    assert torch.equal(result.trace[0], result.layout.flatten(network.state_dict())[result.sample])
    assert torch.equal(result.trace[-1], result.layout.flatten(result.after)[result.sample])
    assert torch.equal(result.sample_layer, result.layout.tensor_index()[result.sample])


def test_more_tau_means_fewer_bits_and_the_spike_condenses(network, digits):
    weak, strong = (
        sws.compress(network, digits, replace(QUICK, tau=tau, epochs=12, lr_log_variances=0.03)) for tau in (0.01, 0.3)
    )
    assert len(strong.compressed.file) < len(weak.compressed.file)
    assert strong.history["spike_sigma"][-1] < 0.5 * QUICK.init_sigma


def test_without_complexity_it_is_plain_training(network, digits):
    """tau = 0: the prior's gradient vanishes, and the same order of rows gives the same network as `training.train`."""
    plain = training.train(network, digits, training.Config(epochs=4, batch=64, lr=3e-3, schedule="constant"))
    assert same(sws.compress(network, digits, replace(QUICK, tau=0.0)).after, plain.state)


def test_frozen_rest_stays_and_filters_choose(network, digits):
    result = sws.compress(network, digits, replace(QUICK, train_rest=False, exclude="^fc2", epochs=1))
    assert result.layout.names == ("fc1.weight",)
    for name in ("fc1.bias", "fc2.weight", "fc2.bias"):
        assert torch.equal(result.compressed.state[name], result.before[name])
    assert result.compressed.sizes.layers[1].bits == 32 * 240  # left alone: 32 bits a weight
    assert result.compressed.sizes.original_bits == 32 * (64 * 24 + 240)


def test_tau_warms_up_linearly(network, digits):
    taus = sws.compress(network, digits, replace(QUICK, tau_warmup=2)).history["tau"]
    assert taus == pytest.approx([0, 0.025, 0.05, 0.05, 0.05])


def test_an_interrupted_run_is_usable_and_goes_on_to_the_same_result(network, digits, result, monkeypatch):
    stop = lambda so_far: len(so_far.trace) == 3  # noqa: E731
    stopped = sws.compress(network, digits, QUICK, keep=True, watch=stop)
    assert not stopped.finished
    assert len(stopped.trace) == 3
    assert torch.isin(stopped.compressed.state["fc1.weight"], stopped.mixture.means.float()).all()
    resumed = sws.compress(network, digits, QUICK, keep=True)
    assert resumed.finished
    assert same(resumed.compressed.state, result.compressed.state)
    assert torch.equal(resumed.trace, result.trace)
    cost = "cpu_seconds"
    assert {k: v for k, v in resumed.history.items() if k != cost} == {
        k: v for k, v in result.history.items() if k != cost
    }
    monkeypatch.setattr(training, "minibatches", lambda *_: pytest.fail("trained again"))
    assert same(sws.compress(network, digits, QUICK, keep=True).compressed.state, result.compressed.state)


def test_ctrl_c_leaves_a_usable_result(network, digits):
    def watch(so_far):
        assert so_far.compressed is None
        if len(so_far.trace) == 2:
            raise KeyboardInterrupt

    stopped = sws.compress(network, digits, QUICK, watch=watch)
    assert not stopped.finished
    assert stopped.compressed.ratio > 1


def test_the_rule_is_chosen_on_validation(network, digits, result):
    choices = {}
    for rule in ("ml", "map", "validation"):
        how = replace(result, config=replace(QUICK, assign=rule))
        kept, clustered, error = sws.assign(how, network, digits)
        quantised = networks.build("mlp-64-24-10")
        quantised.load_state_dict(result.after | clustered.values())
        assert error == score(quantised, digits.validation).error
        choices[rule] = (error, codebook.paper_sizes(network, clustered).bits, kept)
    assert choices["validation"] == min(choices["ml"], choices["map"])


def test_batch_norm_and_convolutions_go_through(digits):
    wide = networks.build("wrn-10-1")
    small = replace(
        digits,
        **{
            part: (x.expand(-1, 3, -1, -1)[:64], y[:64])
            for part in ("train", "validation", "test")
            for x, y in [getattr(digits, part)]
        },
    )
    result = sws.compress(wide, small, replace(QUICK, epochs=1))
    assert "conv.weight" in result.layout.names
    assert not any("bn" in name for name in result.layout.names)
    assert torch.equal(result.compressed.state["bn.running_mean"], result.after["bn.running_mean"])
    assert not torch.equal(result.after["bn.running_mean"], result.before["bn.running_mean"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 1}, "components=1, expected a whole number >= 2"),
        ({"tau": -0.1}, "tau=-0.1, expected a number >= 0"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"pi_0": 1.0}, "pi_0=1.0: expected a proportion strictly between 0 and 1"),
        ({"assign": "best"}, "assign='best': expected one of 'ml', 'map', 'validation'"),
        ({"init_sigma": 0.0}, "init_sigma=0.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sws.Config(**settings)


def test_bad_networks_are_named(digits, network):
    broken = networks.build("mlp-64-24-10")
    broken.fc2.weight.data[3, 3] = float("inf")
    with pytest.raises(ValueError, match="'fc2.weight' has 1 entries that are NaN or infinite"):
        sws.compress(broken, digits, QUICK)
    with pytest.raises(ValueError, match="no tensor of kind weight matches"):
        sws.compress(network, digits, replace(QUICK, include="conv"))


def test_the_file_is_the_network_whose_error_is_reported(digits, result):
    decoded = codec.decode(result.compressed.file)
    assert same(decoded, result.compressed.state)
    network = networks.build("mlp-64-24-10")
    network.load_state_dict(decoded)
    assert result.compressed.error == score(network, digits.validation).error
    assert result.compressed.ratio == 4 * sum(p.numel() for p in network.parameters()) / len(result.compressed.file)


def test_a_mixture_for_each_layer(network, digits):
    result = sws.compress(network, digits, replace(QUICK, mixture="layer", merge=0.0))
    assert result.layer_mixtures.keys() == set(result.layout.names)
    for name, mixtures in result.layer_mixtures.items():
        assert len(mixtures) == QUICK.epochs + 1
        assert torch.isin(result.compressed.state[name], mixtures[-1].means.float()).all()
    w = torch.linspace(-1, 1, 50)
    shares = {name: size / result.layout.d for name, size in zip(result.layout.names, result.layout.sizes, strict=True)}
    expected = sum(shares[name] * mixtures[-1].density(w) for name, mixtures in result.layer_mixtures.items())
    torch.testing.assert_close(result.mixtures[-1].density(w), expected)


def test_with_one_tensor_a_mixture_for_each_layer_is_the_global_one(network, digits):
    one = replace(QUICK, include="fc1", epochs=2)
    a, b = (sws.compress(network, digits, replace(one, mixture=kind)) for kind in ("global", "layer"))
    assert same(a.compressed.state, b.compressed.state)


def test_a_learned_pi_0_moves_and_a_fixed_one_stays(network, digits, result):
    assert [float(m.pis[0]) for m in result.mixtures] == pytest.approx([QUICK.pi_0] * len(result.mixtures))
    learned = sws.compress(network, digits, replace(QUICK, beta=(50.0, 2.0), lr_logits=0.05))
    assert float(learned.mixtures[-1].pis[0]) < QUICK.pi_0 - 1e-3
    assert float(learned.mixtures[-1].pis.sum()) == pytest.approx(1)


def test_the_last_tensor_can_be_skipped(network):
    assert sws.clustered_layout(network, replace(QUICK, skip_last=True)).names == ("fc1.weight",)
    both = replace(QUICK, skip_last=True, exclude="fc1")
    with pytest.raises(ValueError, match="no tensor of kind weight matches"):
        sws.clustered_layout(network, both)


def test_condensed_epochs_are_counted_from_the_end():
    falling = [0.1, 0.05, 0.02, 0.01]
    assert sws.condensed_epochs(falling) == 0
    assert sws.condensed_epochs([*falling, 0.0099]) == 1
    assert sws.condensed_epochs([*falling, 0.0099, 0.0098, 0.0098]) == 3
    assert sws.condensed_epochs([*falling, 0.0099, 0.0050, 0.0049]) == 1
    assert sws.condensed_epochs([0.1, 0.1, 0.1]) == 0  # it never narrowed
    assert sws.condensed_epochs([0.1]) == 0


@pytest.mark.filterwarnings("error")
def test_quantising_too_early_warns_and_a_condensed_spike_does_not(redundant, condensing, digits):
    with pytest.warns(UserWarning, match="the spike had not condensed when retraining ended"):
        early = sws.compress(redundant, digits, replace(condensing, epochs=2))
    assert not early.condensed
    assert sws.compress(redundant, digits, condensing).condensed


def test_patience_stops_early_and_for_good(redundant, condensing, digits):
    """As the whole run up to there; and a kept early stop is finished, not taken up again."""
    whole = sws.compress(redundant, digits, condensing)
    patient = replace(condensing, patience=2)
    early = sws.compress(redundant, digits, patient, keep=True)
    entries = len(early.trace)
    assert entries < len(whole.trace)
    assert early.finished
    assert torch.equal(early.trace, whole.trace[:entries])
    assert [sws.condensed_epochs(early.history["spike_sigma"][:n]) for n in (entries - 1, entries)] == [1, 2]
    assert same(sws.compress(redundant, digits, patient, keep=True).compressed.state, early.compressed.state)


def test_trained_codebooks_and_the_file_are_kept_too(network, digits, monkeypatch):
    config = replace(QUICK, fine_tune=codebook.Config(epochs=2, batch=64, rest="float16", bias_step=2**-5))
    first = sws.compress(network, digits, config, keep=True)
    monkeypatch.setattr(codebook, "pack", lambda *_: pytest.fail("packed again"))
    again = sws.compress(network, digits, config, keep=True)
    assert again.compressed.file == first.compressed.file
    assert again.compressed.sizes == first.compressed.sizes
    assert again.compressed.assigned_error == first.compressed.assigned_error
    assert same(again.compressed.clustered.values(), first.compressed.clustered.values())

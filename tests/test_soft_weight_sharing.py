from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from wsnotebook import datasets, networks, session, training
from wsnotebook.evaluation import score
from wsnotebook.methods import soft_weight_sharing as sws

QUICK = sws.Config(
    components=5, tau=0.05, init_sigma=0.1, lr_weights=3e-3, epochs=4, batch=64, train_rest=True, merge=1e-2
)


@pytest.fixture(scope="module")
def result(network, digits):
    return sws.compress(network, digits, QUICK)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_clustered_weight_is_a_mean_of_the_mixture_and_the_rest_is_untouched(result):
    means = result.mixture.means.float()
    for name in result.layout.names:
        assert torch.isin(result.quantised[name], means).all()
    for name in result.quantised.keys() - set(result.layout.names):
        assert torch.equal(result.quantised[name], result.after[name])
    assert result.finished


def test_the_sizes_count_the_quantised_network(result):
    row = result.layout.flatten(result.quantised)
    assert sum(layer.nonzeros for layer in result.sizes.layers) == int((row != 0).sum())
    assert result.sizes.original_bits == 32 * result.layout.d
    assert 0 < result.sizes.nonzero_percent < 100


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
    assert strong.sizes.bits < weak.sizes.bits
    assert strong.history["spike_sigma"][-1] < 0.5 * QUICK.init_sigma


def test_without_complexity_it_is_plain_training(network, digits):
    """tau = 0: the prior's gradient vanishes, and the same order of rows gives the same network as `training.train`."""
    plain = training.train(network, digits, training.Config(epochs=4, batch=64, lr=3e-3, schedule="constant"))
    assert same(sws.compress(network, digits, replace(QUICK, tau=0.0)).after, plain.state)


def test_frozen_rest_stays_and_filters_choose(network, digits):
    result = sws.compress(network, digits, replace(QUICK, train_rest=False, exclude="^fc2", epochs=1))
    assert result.layout.names == ("fc1.weight",)
    for name in ("fc1.bias", "fc2.weight", "fc2.bias"):
        assert torch.equal(result.quantised[name], result.before[name])
    assert result.sizes.layers[1].bits == 32 * 240  # left alone: 32 bits a weight
    assert result.sizes.original_bits == 32 * (64 * 24 + 240)


def test_tau_warms_up_linearly(network, digits):
    taus = sws.compress(network, digits, replace(QUICK, tau_warmup=2)).history["tau"]
    assert taus == pytest.approx([0, 0.025, 0.05, 0.05, 0.05])


def test_an_interrupted_run_is_usable_and_goes_on_to_the_same_result(network, digits, result, monkeypatch):
    stop = lambda so_far: len(so_far.trace) == 3  # noqa: E731
    stopped = sws.compress(network, digits, QUICK, keep=True, watch=stop)
    assert not stopped.finished
    assert len(stopped.trace) == 3
    assert torch.isin(stopped.quantised["fc1.weight"], stopped.mixture.means.float()).all()
    resumed = sws.compress(network, digits, QUICK, keep=True)
    assert resumed.finished
    assert same(resumed.quantised, result.quantised)
    assert torch.equal(resumed.trace, result.trace)
    cost = "cpu_seconds"
    assert {k: v for k, v in resumed.history.items() if k != cost} == {
        k: v for k, v in result.history.items() if k != cost
    }
    monkeypatch.setattr(training, "minibatches", lambda *_: pytest.fail("trained again"))
    assert same(sws.compress(network, digits, QUICK, keep=True).quantised, result.quantised)


def test_ctrl_c_leaves_a_usable_result(network, digits):
    def watch(so_far):
        assert so_far.quantised == {}
        if len(so_far.trace) == 2:
            raise KeyboardInterrupt

    stopped = sws.compress(network, digits, QUICK, watch=watch)
    assert not stopped.finished
    assert stopped.sizes.ratio > 1


def test_the_rule_is_chosen_on_validation(network, digits, result):
    both = sws.quantise(replace(result, config=replace(QUICK, assign="validation")), network, digits)
    one = {
        rule: sws.quantise(replace(result, config=replace(QUICK, assign=rule)), network, digits)
        for rule in ("ml", "map")
    }
    errors = {}
    for rule, choice in one.items():
        quantised = networks.build("mlp-64-24-10")
        quantised.load_state_dict(choice.quantised)
        errors[rule] = (score(quantised, digits.validation).error, choice.sizes.bits)
    assert both.assign == min(errors, key=errors.get)
    assert same(both.quantised, one[both.assign].quantised)


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
    assert torch.equal(result.quantised["bn.running_mean"], result.after["bn.running_mean"])
    assert not torch.equal(result.after["bn.running_mean"], result.before["bn.running_mean"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 1}, "components=1, expected a number >= 2"),
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


def test_the_reported_error_is_the_quantised_networks(network, digits, result):
    quantised = networks.build("mlp-64-24-10")
    quantised.load_state_dict(result.quantised)
    assert result.quantised_error == score(quantised, digits.validation).error


def test_a_study_is_the_same_side_by_side_and_one_by_one():
    quick = sws.preset("quick", network="mlp-64-16-10", overrides={"epochs": 2})
    quick = replace(quick, training=replace(quick.training, epochs=2))
    with session.executor(2) as executor:
        together = sws.study(quick, [0, 1], executor=executor)
    for path in (datasets.cache_folder() / "results").iterdir():
        path.unlink()
    alone = sws.study(quick, [0, 1])
    assert [run.seed for run in together] == [0, 1]
    for a, b in zip(together, alone, strict=True):
        assert same(a.result.quantised, b.result.quantised)
    assert not same(alone[0].result.quantised, alone[1].result.quantised)


def test_choose_takes_the_smallest_that_is_good_enough():
    def run(error, bits, trained=2.0):
        result = SimpleNamespace(quantised_error=error, sizes=SimpleNamespace(bits=bits))
        return sws.Run(0, SimpleNamespace(history={"validation_error": [9.0, trained]}), result)

    runs = [run(1.9, 300), run(2.05, 200), run(2.4, 100)]
    assert sws.choose(runs, allowance=0.0) is runs[0]
    assert sws.choose(runs) is runs[1]
    assert sws.choose(runs, allowance=1.0) is runs[2]
    assert sws.choose(runs, allowance=-1.0) is runs[0]


def test_presets_know_their_fields():
    assert sws.preset("laptop", overrides={"tau": 0.02}).taus == ()
    assert sws.preset("laptop", overrides={"tau": 0.02}).config.tau == 0.02
    changed = sws.preset("laptop", overrides={"training.epochs": 3, "epochs": 4})
    assert (changed.training.epochs, changed.config.epochs) == (3, 4)
    assert sws.preset("laptop", network="lenet-5-caffe").network == "lenet-5-caffe"
    with pytest.raises(ValueError, match="overrides: unknown tua; soft weight-sharing has components, tau"):
        sws.preset("quick", overrides={"tua": 0.02})
    with pytest.raises(ValueError, match="preset='huge': expected one of 'quick', 'laptop', 'paper'"):
        sws.preset("huge")


@pytest.mark.parametrize("name", sws.PRESETS)
def test_every_presets_network_exists(name):
    chosen = sws.PRESETS[name]
    assert chosen.dataset in datasets.NAMES
    assert networks.build(chosen.network) is not None


def test_a_study_can_start_from_a_users_checkpoint(network, tmp_path):
    path = tmp_path / "mine.pt"
    torch.save(network.state_dict(), path)
    quick = sws.preset("quick", network="mlp-64-24-10", checkpoint=str(path), overrides={"epochs": 1})
    [run] = sws.study(quick, [3])
    assert same(run.result.before, network.state_dict())
    assert run.trained.history["epoch"] == [0]

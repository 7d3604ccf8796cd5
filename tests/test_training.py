import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from wsnotebook import datasets, networks, training, tuning, zoo
from wsnotebook.methods import sane, soft_weight_sharing
from wsnotebook.training import fingerprint

QUICK = training.Config(epochs=4, batch=64, lr=3e-3, seed=1)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_cost(history):
    return {name: values for name, values in history.items() if name != "cpu_seconds"}


def interrupted_after(monkeypatch, calls):
    """Make the loop's validation raise KeyboardInterrupt at its `calls`-th call, as Ctrl-C would."""
    score, count = training.score, iter(range(1000))

    def failing(*arguments):
        if next(count) == calls:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(training, "score", failing)


def test_training_learns_digits_and_leaves_the_network_alone(digits):
    network = networks.build("mlp-64-32-10")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = training.train(network, digits, replace(QUICK, epochs=20))
    assert same(before, network.state_dict())
    assert result.history["epoch"] == list(range(21))
    assert result.history["validation_error"][0] > 70
    assert result.history["validation_error"][-1] < 8
    assert result.history["loss"][-1] < 0.3 < result.history["loss"][0]


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_an_interrupted_run_goes_on_to_the_same_result(digits, monkeypatch, optimiser):
    config = replace(QUICK, optimiser=optimiser, keep="best")
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )
    whole = training.train(network, digits, config)
    with monkeypatch.context() as patch:
        interrupted_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            training.train(network, digits, config, keep=True)
    resumed = training.train(network, digits, config, keep=True)
    assert same(whole.state, resumed.state)
    assert without_cost(whole.history) == without_cost(resumed.history)


def test_a_kept_run_is_not_trained_again_and_another_setting_is(digits, monkeypatch):
    network = networks.build("mlp-64-8-10")
    first = training.train(network, digits, QUICK, keep=True)
    monkeypatch.setattr(training, "minibatches", lambda *_: pytest.fail("trained again"))
    again = training.train(network, digits, QUICK, keep=True)
    assert same(first.state, again.state)
    assert first.history == again.history
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        training.train(network, digits, replace(QUICK, lr=1e-3), keep=True)


def test_the_last_or_the_best_state_is_kept(digits):
    network = networks.build("mlp-64-32-10")
    wild = replace(QUICK, epochs=6, lr=0.05, schedule="constant")  # jumps about, so that best is not last
    last, best = (training.train(network, digits, replace(wild, keep=keep)) for keep in ("last", "best"))
    assert last.history["validation_error"] == best.history["validation_error"]
    errors = []
    for state in (last.state, best.state):
        network.load_state_dict(state)
        errors.append(training.score(network, digits.validation).error)
    assert errors == [last.history["validation_error"][-1], min(best.history["validation_error"])]


def test_patience_stops_after_so_many_epochs_without_improvement(digits):
    config = replace(QUICK, epochs=50, lr=0.0, schedule="constant", patience=3)  # lr 0: never improves on epoch 0
    assert training.train(networks.build("mlp-64-8-10"), digits, config).history["epoch"] == [0, 1, 2, 3]


def test_schedules_begin_at_one_and_fall():
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = {}
    for schedule in training.SCHEDULES:
        rates[schedule] = []
        for t in (0.0, 0.5, 0.75, 1.0):
            training.set_lr(optimiser, 0.1, schedule, t)
            rates[schedule].append(optimiser.param_groups[0]["lr"])
    assert rates["constant"] == [0.1] * 4
    assert rates["step"] == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert rates["cosine"] == pytest.approx([0.1, 0.05, 0.05 * (1 - 0.5**0.5), 0.0])


def test_an_epochs_randomness_depends_on_seed_and_epoch_alone():
    outside = torch.random.get_rng_state()
    draws = {}
    for seed, epoch in [(0, 1), (0, 2), (1, 1), (0, 1)]:
        with training.epoch_randomness(seed, epoch, torch.device("cpu")):
            steps = list(training.minibatches(10, replace(QUICK, batch=3), epoch, torch.device("cpu")))
            draw = torch.cat([rows for _, rows in steps])
        assert [t for t, _ in steps] == pytest.approx([(epoch - 1 + k / 10) / 4 for k in (0, 3, 6, 9)])
        assert sorted(draw.tolist()) == list(range(10))
        assert draws.setdefault((seed, epoch), draw.tolist()) == draw.tolist()
    assert len({tuple(draw) for draw in draws.values()}) == 3
    assert torch.equal(outside, torch.random.get_rng_state())


def test_augmented_images_are_shifted_and_mirrored():
    """Every image is a window of its padded self or of that one's mirror, and all of these happen."""
    x = torch.arange(1.0, 61).view(1, 2, 6, 5).expand(400, -1, -1, -1)
    padded = nn.functional.pad(x[0], (2, 2, 2, 2))
    windows = {(i, j): padded[:, i : i + 6, j : j + 5] for i in range(5) for j in range(5)}
    both = {(*place, flip): w.flip(2) if flip else w for place, w in windows.items() for flip in (False, True)}
    for flip in (False, True):
        images = training.augmented(x, training.Config(shift=2, flip=flip))
        seen = {next(key for key, w in both.items() if torch.equal(image, w)) for image in images}
        assert seen == {key for key in both if flip or not key[2]}
    assert training.augmented(x, training.Config()) is x
    with pytest.raises(ValueError, match=r"shift=1, flip=False: rows of shape \(60,\) are no images"):
        training.augmented(x.reshape(400, 60), training.Config(shift=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimiser": "adamw"}, "optimiser='adamw': expected one of 'adam', 'sgd'"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"epochs": -1}, "epochs=-1, expected a whole number >= 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"batch": 0}, "batch=0"),
        ({"shift": -1}, "shift=-1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        training.Config(**settings)


def test_weights_that_are_not_finite_are_refused(digits):
    network = networks.build("mlp-64-8-10")
    network.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="'fc1.weight' has 1 entries that are NaN"):
        training.train(network, digits, QUICK)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_users_checkpoint_is_loaded(tmp_path, suffix):
    network, state = networks.build("mlp-4-3-2", seed=0), networks.build("mlp-4-3-2", seed=1).state_dict()
    path = tmp_path / f"mine.{suffix}"
    (torch.save if suffix == "pt" else safetensors.torch.save_file)(state, path)
    training.load_checkpoint(network, path)
    assert same(network.state_dict(), state)


def test_bad_checkpoints_are_named_and_change_nothing(tmp_path):
    network = networks.build("mlp-4-3-2")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    nan = networks.build("mlp-4-3-2", seed=1).state_dict()
    nan["fc1.weight"][0, 0] = float("nan")
    torch.save(nan, tmp_path / "nan.pt")
    torch.save(networks.build("mlp-4-5-2").state_dict(), tmp_path / "wider.pt")
    torch.save({**before, "fc3.weight": torch.zeros(1)}, tmp_path / "deeper.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(network, tmp_path / "pickled.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"\x00" * 50)
    for name, message in {
        "nan.pt": "'fc1.weight' has 1 entries that are NaN",
        "wider.pt": r"'fc1.weight' is \(5, 4\), the network has \(3, 4\) there",
        "deeper.pt": r"'fc3.weight' is \(1,\), the network has nothing there",
        "list.pt": "holds list, expected a state dict",
        "pickled.pt": "not readable",
        "noise.safetensors": "not readable",
    }.items():
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            training.load_checkpoint(network, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.pt: no such file"):
        training.load_checkpoint(network, tmp_path / "absent.pt")
    assert same(network.state_dict(), before)


def test_a_fingerprint_tells_contents_apart_and_nothing_else(digits):
    w = torch.arange(6.0)
    seen = [
        fingerprint(w),
        fingerprint(w.view(2, 3)),
        fingerprint(("w", w)),
        fingerprint(w + 1e-6),
        fingerprint(digits),
        fingerprint(datasets.load("digits", seed=1)),
        fingerprint("w", 1),
        fingerprint("w1"),
        fingerprint(()),
        fingerprint((1, 2, w)),
    ]
    assert len(set(seen)) == len(seen)
    assert fingerprint(w, digits, 3) == fingerprint(w.clone(), datasets.load("digits"), 3)


class Own(nn.Module):
    """A user's network, with what it is given as attributes."""

    def __init__(self, **attributes):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        vars(self).update(attributes)

    def forward(self, x):
        return self.fc(x.flatten(1))


class Doubled(Own):
    def forward(self, x):
        return 2 * self.fc(x.flatten(1))


def edited(body):
    """The class as it is after somebody has edited its `forward`."""
    names = {"Own": Own}
    exec(f"class Edited(Own):\n    def forward(self, x):\n        return {body}", names)
    return names["Edited"]


def times(scale):
    return lambda x: scale * x


def of_the_same_weights():
    """Networks that compute different functions."""
    yield from (networks.build("mlp-64-16-10", activation=name) for name in ("relu", "tanh"))
    yield networks.build("mlp-64-16-10", dropout=0.1)
    yield from (networks.TransformerBlock(8, heads) for heads in (2, 4))
    yield from (
        cls() for cls in (Own, Doubled, edited("self.fc(x)"), edited("self.fc(x) + 1"), edited("3 * self.fc(x)"))
    )
    yield from (Own(f=f) for f in (torch.relu, torch.tanh, lambda x: x + 1, lambda x: x + 2))
    yield from (Own(slope=slope) for slope in (0.1, 0.2))
    yield from (Own(f=times(scale)) for scale in (1, 2))


def test_what_a_network_does_with_its_tensors_counts():
    kinds = [training.architecture(network) for network in of_the_same_weights()]
    assert len(set(kinds)) == len(kinds)
    assert kinds == [training.architecture(network) for network in of_the_same_weights()]


def test_a_networks_text_is_the_same_in_another_process():
    code = "from test_training import *; print(fingerprint(*map(training.architecture, of_the_same_weights())))"
    found = {
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert found == {fingerprint(*map(training.architecture, of_the_same_weights())) + "\n"}


def test_a_network_of_the_same_weights_is_not_given_the_result_of_another(digits):
    relu, tanh = (networks.build("mlp-64-16-10", activation=name) for name in ("relu", "tanh"))
    own, doubled = Own(), Doubled()
    doubled.load_state_dict(own.state_dict())
    for network in (relu, tanh, own, doubled):
        kept, fresh = (training.train(network, digits, QUICK, keep=keep) for keep in (True, False))
        assert same(kept.state, fresh.state)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (training.Config, "epochs"),
        (training.Config, "batch"),
        (zoo.Config, "epochs"),
        (zoo.Config, "batch"),
        (soft_weight_sharing.Config, "components"),
        (tuning.Config, "trials"),
        (sane.Config, "batch"),
    ],
)
def test_a_count_is_a_whole_number(config, field):
    for value in (10.5, 10.0, np.float32(10), True, np.True_, None, "10", (10, 20.5)):
        with pytest.raises(ValueError, match=f"Config: {field}=.*, expected a whole number >= "):
            config(**{field: value})
    assert config(**{field: np.int64(10)}) == config(**{field: 10})
    assert type(getattr(config(**{field: np.int64(10)}), field)) is int


def test_numpys_numbers_become_pythons():
    config = zoo.Config(epochs=(np.int32(1), 2), lr=np.float32(0.5), snapshots=np.arange(3))
    assert config == zoo.Config(epochs=(1, 2), lr=0.5, snapshots=(0, 1, 2))
    assert json.loads(json.dumps(asdict(config)))["snapshots"] == [0, 1, 2]
    for wrong in ({"lr": True}, {"lr": (0.1, "1")}, {"lr": math.nan}, {"snapshots": (0.5,)}, {"dropout": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*, expected a"):
            zoo.Config(**wrong)

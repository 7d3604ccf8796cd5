"""Laws of the search: what a trial is worth, which trials are ended, that nothing is lost, run twice or mixed."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from wsnotebook import ablation, datasets, session, training
from wsnotebook.methods import compression_study as study
from wsnotebook.methods import soft_weight_sharing as sws

optuna = pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'wsnotebook[tune]'")
from wsnotebook import tuning  # noqa: E402
from wsnotebook.tuning import Config, Range, Trial  # noqa: E402

SPACE = {"tau": Range(0.1, 0.6, log=True)}


@pytest.fixture(scope="module")
def tiny(condensing):
    """An experiment whose spike condenses, half a second a trial."""
    how = training.Config(epochs=6, batch=64, lr=3e-3)
    return study.Preset("digits", "mlp-64-100-10", how, condensing, target={}, tries=1, seeds=1)


@pytest.fixture
def fake(monkeypatch):
    """Compressions that cost nothing: {tau: errors by epoch}, condensed from epoch 2 on; the calls are counted."""
    calls = []

    def compress(network, dataset, config, *, keep=False, watch=None):
        calls.append(config.tau)
        return Pretended(config, watch)

    monkeypatch.setattr(sws, "compress", compress)
    monkeypatch.setattr(tuning, "_expected", lambda result, network, dataset: result.expected)
    monkeypatch.setattr(study, "trained_network", lambda *_: (torch.nn.Linear(1, 1), PRETENDED_TRAINING))
    return calls


class Pretended:
    """A compression of 6 epochs whose ratio is 100 tau and whose error is 50 tau: there is something to trade."""

    def __init__(self, config, watch):
        self.finished, self.condensed, self.trace = True, False, []
        for epoch in range(config.epochs + 1):
            self.trace.append(epoch)
            self.history = {"epoch": self.trace}
            self.condensed = epoch >= 2
            self.expected = (self.ratio(config), self.error(config))
            if watch:
                watch(self)
        self.compressed = self
        self.ratio, self.error = self.expected

    @staticmethod
    def ratio(config):
        return 100 * config.tau

    @staticmethod
    def error(config):
        if config.components == 5 and config.pi_0 > 0.995:
            raise ArithmeticError("this corner of the space breaks")
        return 50 * config.tau + 40 * (config.pi_0 < 0.5)


PRETENDED_TRAINING = training.Result(state={}, history={"validation_error": [2.0]})


def outcomes(opened):
    return [(t.number, t.settings, t.state, t.ratio, t.error, t.reports) for t in tuning.trials(opened)]


# ---- settings and score --------------------------------------------------------------------------------------------


def test_settings_and_configs_are_inverses(condensing):
    config = replace(condensing, gamma=(250.0, 0.1))
    settings = {"tau": 0.2, "components": 7, "gamma.rate": 0.3, "gamma_zero.shape": 9.0, "fine_tune.epochs": 2}
    changed = ablation.configured(config, settings)
    assert ablation.settings_of(changed, settings) == settings
    assert (changed.gamma, changed.gamma_zero, changed.fine_tune.epochs) == ((250.0, 0.3), (9.0, 0.02), 2)
    assert ablation.configured(changed, ablation.settings_of(config, settings)) == config
    assert ablation.configured(config, {}) == config


def test_settings_that_do_not_exist(condensing):
    with pytest.raises(ValueError, match="settings: unknown tua, gamma.scale; soft weight-sharing has components, "):
        ablation.configured(condensing, {"tua": 1, "gamma.scale": 2})
    with pytest.raises(ValueError, match=r"gamma.rate=1, but gamma is None: give it both parts, as gamma=\(1, 2\)"):
        ablation.configured(replace(condensing, gamma=None), {"gamma.rate": 1})
    for low, high, log in ((2, 1, False), (1, 1, False), (0, 1, True)):
        with pytest.raises(ValueError, match="expected low < high"):
            Range(low, high, log)


def test_the_default_space_holds_the_presets_own_settings():
    public = tuning.space_around(sws.Config())
    assert public["gamma.shape"] == Range(100.0, 500.0, log=True), "the public code's range"
    assert public["gamma_zero.rate"] == Range(1.0, 5.0, log=True)
    for name in study.PRESETS:
        config = study.PRESETS[name].config
        space = tuning.space_around(config)
        assert all(value in space[setting] for setting, value in ablation.settings_of(config, space).items())
    assert set(tuning.space_around(sws.Config(gamma=None))) == {"tau", "gamma_zero.shape", "gamma_zero.rate"}


def test_the_score_is_the_ratio_up_to_the_allowance_and_falls_quadratically_beyond():
    config = Config(allowance=0.5, penalty=25)
    assert tuning.score(60.0, 0.5, config) == tuning.score(60.0, -3.0, config) == 60.0
    assert tuning.score(60.0, 1.5, config) == 60.0 - 25
    assert tuning.score(60.0, 2.5, config) == 60.0 - 25 * 4


def test_a_config_teaches():
    with pytest.raises(ValueError, match="sampler='grid': expected one of 'tpe', 'gp', 'nsga2', 'random'"):
        Config(sampler="grid")
    with pytest.raises(ValueError, match="sampler='gp' learns nothing from pruned trials"):
        Config(sampler="gp")
    with pytest.raises(ValueError, match="trials=0"):
        Config(trials=0)


# ---- which trials are best -----------------------------------------------------------------------------------------


def trial(number, ratio, error, state="complete", trained=2.0):
    drop = None if error is None else error - trained
    return Trial(number, {"tau": ratio}, state, ratio, error, drop, 6, "", ())


def test_the_front_is_what_brute_force_finds():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 8, (60, 2), generator=generator).tolist()
    states = ["complete", "complete", "complete", "pruned", "failed"]
    found = [trial(i, float(r), float(e), states[i % 5]) for i, (r, e) in enumerate(numbers)]
    complete = [t for t in found if t.state == "complete"]

    def beaten(t):
        return any(
            (o.ratio >= t.ratio and o.error <= t.error) and (o.ratio, o.error) != (t.ratio, t.error) for o in complete
        )

    front = tuning.front(found)
    assert {(t.ratio, t.error) for t in front} == {(t.ratio, t.error) for t in complete if not beaten(t)}
    assert [t.ratio for t in front] == sorted({t.ratio for t in front})
    assert tuning.front([]) == []


def test_best_is_the_smallest_file_within_the_allowance():
    found = [trial(0, 20, 2.0), trial(1, 30, 2.5), trial(2, 50, 4.0), trial(3, 90, 2.1, "pruned"), trial(4, 10, 1.5)]
    assert tuning.best(found, 0.5).number == 1
    assert tuning.best(found, 0.1).number == 0
    assert tuning.best(found, 9.0).number == 2
    assert tuning.best(found, -1.0).number == 4, "none is good enough: the lowest error"
    with pytest.raises(ValueError, match="none is complete"):
        tuning.best(found[3:4])


# ---- a search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", tuning.SAMPLERS)
@pytest.mark.parametrize("front", [False, True])
def test_one_process_repeats_its_trials(tiny, fake, sampler, front):
    config = Config(trials=9, sampler=sampler, front=front, prune=sampler != "gp", seed=3)
    space = {"tau": Range(0.01, 0.6, log=True), "components": Range(5, 9), "assign": ("ml", "map")}
    found = outcomes(tuning.search(tiny, config, space=space))
    assert found == outcomes(tuning.search(tiny, config, space=space))
    assert found[0][1] == ablation.settings_of(tiny.config, space), "the preset's own settings come first"
    assert len(found) == 9
    assert all(
        0.01 <= s["tau"] <= 0.6 and s["components"] in range(5, 10) and s["assign"] in ("ml", "map")
        for _, s, *_ in found
    )
    other = outcomes(tuning.search(tiny, replace(config, seed=4), space=space))
    assert [settings for _, settings, *_ in other][1:] != [settings for _, settings, *_ in found][1:]


@pytest.mark.parametrize("front", [False, True])
def test_a_trial_behind_the_median_is_ended_but_not_before_it_has_condensed(tiny, fake, front):
    """After good trials, one that is worse in everything: a smaller ratio, and another mixture that ruins the error."""
    good = [{"tau": 0.05 + 0.001 * i, "pi_0": 0.9} for i in range(4)]
    bad = {"tau": 0.02, "pi_0": 0.1}
    space = {"tau": Range(0.01, 0.6), "pi_0": Range(0.1, 0.99)}
    config = Config(trials=5, front=front, warmup_trials=4, every=1)
    *kept, last = tuning.trials(tuning.search(tiny, config, space=space, first=[*good, bad]))
    assert [t.state for t in kept] == ["complete"] * 4
    assert (last.state, last.epochs, last.reason) == ("pruned", 2, "worse than the median at epoch 2")
    assert last.settings == bad
    assert (last.ratio, last.error) == pytest.approx((2.0, 41.0))
    assert [report[0] for report in kept[0].reports] == list(range(2, tiny.config.epochs))
    for spared in (
        replace(config, prune=False),
        replace(config, warmup_trials=5),
        replace(config, warmup_epochs=tiny.config.epochs),
    ):
        assert tuning.trials(tuning.search(tiny, spared, space=space, first=[*good, bad]))[-1].state == "complete"
    later = replace(config, warmup_epochs=4)
    assert tuning.trials(tuning.search(tiny, later, space=space, first=[*good, bad]))[-1].epochs == 4
    seldom = replace(config, every=3)
    assert tuning.trials(tuning.search(tiny, seldom, space=space, first=[*good, bad]))[-1].epochs == 3


def test_in_a_search_for_the_front_a_trial_with_one_merit_runs_on(tiny, fake):
    space = {"tau": Range(0.01, 0.6)}
    taus = (0.1, 0.11, 0.12, 0.01, 0.6)  # the last two: the smallest ratio and error, and the largest
    config = Config(trials=5, front=True, warmup_trials=3, every=1)
    found = tuning.trials(tuning.search(tiny, config, space=space, first=[{"tau": tau} for tau in taus]))
    assert [t.state for t in found] == ["complete"] * 5
    assert tuning.front(found) == sorted(found, key=lambda t: t.ratio)


def test_a_search_for_the_front_does_not_repeat_the_other_ones_proposals(tiny, fake):
    one, other = (tuning.trials(tuning.search(tiny, Config(trials=4, front=f), space=SPACE)) for f in (False, True))
    assert len({t.settings["tau"] for t in one + other}) == 7, "all but the preset's own"


def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(tiny, fake):
    space = {"pi_0": Range(0.5, 0.999), "tau": Range(0.01, 0.6)}
    first = [{"pi_0": 0.999, "tau": 0.1}, {"pi_0": 0.9, "tau": 0.1}]
    failed, fine = tuning.trials(tuning.search(tiny, Config(trials=2), space=space, first=first))
    assert (failed.state, failed.reason) == ("failed", "ArithmeticError: this corner of the space breaks")
    assert (failed.ratio, failed.error, failed.drop, failed.reports) == (None, None, None, ())
    assert fine.state == "complete"


def test_a_trial_whose_spike_never_condensed_is_no_candidate(tiny, fake, monkeypatch):
    monkeypatch.setattr(Pretended, "condensed", property(lambda self: False, lambda self, value: None), raising=False)
    [one] = tuning.trials(tuning.search(tiny, Config(trials=1), space=SPACE))
    assert (one.state, one.reason, one.epochs) == ("pruned", "the spike had not condensed", tiny.config.epochs)
    assert tuning.front([one]) == []


def test_an_interrupted_search_goes_on_with_the_same_trials(tiny, fake, tmp_path, monkeypatch):
    config = Config(trials=6, seed=1)
    whole = tuning.trials(tuning.search(tiny, config, space=SPACE))
    fake.clear()
    compress = sws.compress

    def interrupted(*args, **options):
        if len(fake) == 3:
            raise KeyboardInterrupt
        return compress(*args, **options)

    monkeypatch.setattr(sws, "compress", interrupted)
    opened = tuning.search(tiny, config, space=SPACE, storage=tmp_path / "study.db")
    assert tuning.trials(opened) == whole[:3]
    monkeypatch.setattr(sws, "compress", compress)
    again = tuning.trials(tuning.search(tiny, config, space=SPACE, storage=tmp_path / "study.db"))
    assert [t.settings for t in again] == [t.settings for t in whole]
    assert [t.error for t in again] == [t.error for t in whole]
    fake.clear()
    more = tuning.search(tiny, replace(config, trials=8), space=SPACE, storage=tmp_path / "study.db")
    assert len(tuning.trials(more)) == 8
    assert len(fake) == 2, "only the missing trials were run"


def test_searches_that_ask_for_something_else_do_not_mix(tiny, fake, tmp_path):
    where = {"space": SPACE, "storage": tmp_path / "study.db", "name": "mine"}
    tuning.search(tiny, Config(trials=1), **where)
    with pytest.raises(ValueError, match="has front=False, this search front=True: they do not mix; give another name"):
        tuning.search(tiny, Config(trials=1, front=True), **where)
    with pytest.raises(ValueError, match="they do not mix"):
        tuning.search(tiny, Config(trials=1, allowance=1.0), **where)
    with pytest.raises(ValueError, match="they do not mix"):
        tuning.search(replace(tiny, network="mlp-64-10-10"), Config(trials=1), **where)
    assert len(tuning.trials(tuning.search(tiny, Config(trials=2, front=True), **where | {"name": "front"}))) == 2


def test_a_search_that_cannot_begin_says_so_at_once(tiny, fake):
    with pytest.raises(ValueError, match="settings: unknown tua"):
        tuning.search(tiny, Config(trials=1), space={"tua": Range(0.1, 1.0)})
    with pytest.raises(ValueError, match="pi_0=1.5"):
        tuning.search(tiny, Config(trials=1), space={"pi_0": Range(0.5, 1.5)})
    with pytest.raises(ValueError, match=r"first: {'tau': 9} is not in the search space"):
        tuning.search(tiny, Config(trials=1), space=SPACE, first=[{"tau": 9}])
    with pytest.raises(ValueError, match="executor: processes meet in a file, so give storage"):
        tuning.search(tiny, Config(trials=1), space=SPACE, executor=object())
    assert fake == []


def test_the_log_stays_silent_and_as_it_was(tiny, fake, capfd):
    level = optuna.logging.get_verbosity()
    tuning.search(tiny, Config(trials=2), space=SPACE)
    assert "Trial" not in capfd.readouterr().err
    assert optuna.logging.get_verbosity() == level


# ---- with real compressions ----------------------------------------------------------------------------------------


def test_a_trials_result_comes_back_and_a_second_search_trains_nothing(tiny, digits, monkeypatch):
    config = Config(trials=2, warmup_trials=1)
    found = tuning.trials(tuning.search(tiny, config, space=SPACE))
    network, _ = study.trained_network(tiny, digits, 0)
    best = tuning.best(found, 100.0)
    monkeypatch.setattr(sws._Retraining, "train_epoch", lambda *_: pytest.fail("trained again"))
    result = tuning.result_of(tiny, best, network, digits)
    assert (result.compressed.ratio, result.compressed.error) == (best.ratio, best.error)
    assert result.config.tau == best.settings["tau"]
    assert tuning.trials(tuning.search(tiny, config, space=SPACE)) == found
    pruned = trial(7, 1.0, 1.0, "pruned")
    with pytest.raises(ValueError, match="trial 7 is pruned"):
        tuning.result_of(tiny, pruned, network, digits)


def test_a_run_that_something_else_kept_is_judged_all_the_same(tiny, digits):
    network, _ = study.trained_network(tiny, digits, 0)
    config = Config(trials=1, every=2)
    sws.compress(network, digits, study.seeded(tiny.config, 0), keep=True)
    [after] = tuning.trials(tuning.search(tiny, config, space=SPACE))
    for path in (datasets.cache_folder() / "results").iterdir():
        path.unlink()
    [alone] = tuning.trials(tuning.search(tiny, config, space=SPACE))
    assert after == alone
    assert [epoch % 2 for epoch, *_ in after.reports] == [0] * len(after.reports) != []


def test_two_processes_share_a_search(tiny, tmp_path):
    """Each trial is run once, and there are as many as were asked for."""
    config = Config(trials=5)
    with session.executor(2) as pool:
        opened = tuning.search(tiny, config, space=SPACE, storage=tmp_path / "study.db", executor=pool)
    found = tuning.trials(opened)
    assert [t.number for t in found] == list(range(5))
    assert len({t.settings["tau"] for t in found}) == 5
    workers = {t.user_attrs["process"][1] for t in opened.get_trials()}
    assert os.getpid() not in workers
    assert len(tuning.trials(tuning.search(tiny, config, space=SPACE, storage=tmp_path / "study.db"))) == 5


KILLED = """
import os, signal
from wsnotebook import tuning
from wsnotebook.methods import compression_study as study, soft_weight_sharing as sws
real = sws.compress
sws.compress = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
preset = study.preset("quick", network="mlp-64-8-10", overrides={overrides})
tuning.search(preset, tuning.Config(trials=2), storage={path!r})
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_killed_process_trial_is_taken_up_again(tmp_path):
    overrides = {"training.epochs": 1, "epochs": 2}
    path = str(tmp_path / "study.db")
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED.format(overrides=overrides, path=path)])
    assert killed.returncode == -signal.SIGKILL
    preset = study.preset("quick", network="mlp-64-8-10", overrides=overrides)
    opened = tuning.search(preset, Config(trials=2), storage=path)
    found = tuning.trials(opened)
    assert len(found) == 2
    assert found[0].settings == opened.get_trials()[0].params, "the killed trial's settings, again"


# ---- tables and ablations ------------------------------------------------------------------------------------------


def test_trials_as_a_table(tmp_path):
    path = tuning.to_csv([trial(0, 20.0, 2.0), trial(1, None, None, "failed")], tmp_path / "trials.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1"]
    assert (rows[0]["ratio"], rows[0]["tau"], rows[1]["ratio"]) == ("20.0", "20.0", "")
    assert [file.name for file in tmp_path.iterdir()] == ["trials.csv"]


@pytest.mark.filterwarnings("error")
def test_a_sweep_changes_one_factor_at_a_time_or_all(tiny, monkeypatch):
    short = replace(tiny, config=replace(tiny.config, epochs=1), network="mlp-64-8-10")
    factors = {"tau": (0.1, 0.3), "hyper-priors": {"none": {"gamma": None, "gamma_zero": None}, "both": {}}}
    rows = ablation.sweep(short, factors, seeds=(0, 1))
    assert [(row["factor"], row["value"], row["seed"]) for row in rows] == [
        (factor, value, seed)
        for factor, values in (("tau", (0.1, 0.3)), ("hyper-priors", ("none", "both")))
        for value in values
        for seed in (0, 1)
    ]
    assert rows[2]["settings"] == {"tau": 0.3}
    same = {row["seed"]: row["ratio"] for row in rows if row["value"] in (0.3, "both")}
    assert all(row["ratio"] == same[row["seed"]] for row in rows if row["value"] in (0.3, "both")), (
        "0.3 is the preset's"
    )
    assert not any(row["condensed"] for row in rows), "after one epoch"
    with session.executor(2) as pool:
        assert ablation.sweep(short, factors, seeds=(0, 1), executor=pool) == rows
    with monkeypatch.context() as patched:
        patched.setattr(sws._Retraining, "train_epoch", lambda *_: pytest.fail("trained again"))
        assert ablation.sweep(short, factors, seeds=(0, 1)) == rows
    every = ablation.sweep(short, {"tau": (0.1, 0.3), "pi_0": (0.9, 0.99, 0.999)}, grid=True)
    assert len({tuple(row["settings"].items()) for row in every}) == 6
    assert every[0]["value"] == "0.1, 0.9"
    with pytest.raises(ValueError, match="settings: unknown tua"):
        ablation.sweep(short, {"tua": (1,)})

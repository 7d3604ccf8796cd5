import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from wsnotebook import datasets, networks, session
from wsnotebook.methods import codec
from wsnotebook.methods import compression_study as study
from wsnotebook.methods import soft_weight_sharing as sws

pytestmark = pytest.mark.filterwarnings("ignore:the spike had not condensed")  # the runs here are short
SMALL = study.preset("quick", network="mlp-64-16-10", overrides={"epochs": 2, "training.epochs": 2})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_study_is_the_same_side_by_side_and_one_by_one():
    with session.executor(2) as executor:
        together = study.study(SMALL, [0, 1], executor=executor)
    for path in (datasets.cache_folder() / "results").iterdir():
        path.unlink()
    alone = study.study(SMALL, [0, 1])
    assert [run.seed for run in together] == [0, 1]
    for a, b in zip(together, alone, strict=True):
        assert same(a.result.compressed.state, b.result.compressed.state)
    assert not same(alone[0].result.compressed.state, alone[1].result.compressed.state)


def test_presets_know_their_fields():
    assert study.preset("laptop", overrides={"tau": 0.02}).target == {}
    assert study.preset("laptop", overrides={"tau": 0.02}).config.tau == 0.02
    changed = study.preset("laptop", overrides={"training.epochs": 3, "epochs": 4})
    assert (changed.training.epochs, changed.config.epochs) == (3, 4)
    tuned = study.preset("laptop", overrides={"fine_tune.epochs": 7, "fine_tune.rest": "float16"}).config.fine_tune
    assert (tuned.epochs, tuned.rest) == (7, "float16")
    assert study.preset("laptop", network="lenet-5-caffe").network == "lenet-5-caffe"
    with pytest.raises(ValueError, match="overrides: unknown tua; soft weight-sharing has components, mixture"):
        study.preset("quick", overrides={"tua": 0.02})
    with pytest.raises(ValueError, match="preset='huge': expected one of 'quick', 'laptop', 'paper'"):
        study.preset("huge")


@pytest.mark.parametrize("name", study.PRESETS)
def test_every_presets_network_exists(name):
    chosen = study.PRESETS[name]
    assert chosen.dataset in datasets.NAMES
    assert networks.build(chosen.network) is not None


def test_a_study_can_start_from_a_users_checkpoint(network, tmp_path):
    path = tmp_path / "mine.pt"
    torch.save(network.state_dict(), path)
    quick = study.preset("quick", network="mlp-64-24-10", checkpoint=str(path), overrides={"epochs": 1})
    [run] = study.study(quick, [3])
    assert same(run.result.before, network.state_dict())
    assert run.trained.history["epoch"] == [0]


def test_every_seed_is_a_seed_of_all_parts():
    config = study.seeded(sws.Config(), 5)
    assert (config.seed, config.fine_tune.seed) == (5, 5)


def test_a_ratio_is_reached_with_the_smallest_error_seen(redundant, condensing, digits):
    best, tried = study.reach(redundant, digits, condensing, target={"ratio": 15.0}, tries=4)
    enough = [result for result in tried if result.compressed.ratio >= 15]
    assert best.compressed.error == min(result.compressed.error for result in enough)
    assert len({result.config.tau for result in tried}) == len(tried) == 4


def test_a_drop_is_kept_to_with_the_smallest_file_seen(redundant, condensing, digits):
    best, tried = study.reach(redundant, digits, condensing, target={"drop": 5.0}, tries=4)
    start = tried[0].history["validation_error"][0]
    good = [result for result in tried if result.compressed.error - start <= 5.0]
    assert best.compressed.ratio == max(result.compressed.ratio for result in good)


def test_the_search_for_a_target_closes_in(monkeypatch, network, digits):
    """With a ratio that is 1000 tau, the last tries bracket the tau that gives it."""

    def compress(network, dataset, config, keep):
        compressed = SimpleNamespace(ratio=1000 * config.tau, error=1 + 10 * config.tau)
        return SimpleNamespace(config=config, compressed=compressed, history={"validation_error": [1.0]}, finished=True)

    monkeypatch.setattr(study, "compress", compress)
    for start in (0.003, 0.3, 2.0):
        for target in ({"ratio": 70.0}, {"drop": 0.7}, {"error": 1.7}):
            best, tried = study.reach(network, digits, replace(sws.Config(), tau=start), target=target, tries=12)
            assert best.config.tau == pytest.approx(0.07, rel=0.1)
    with pytest.warns(UserWarning, match=r"target=.*was not reached \(tau 0.001: 1.0x, .*, tau 0.002: 2.0x"):
        best, _ = study.reach(network, digits, replace(sws.Config(), tau=0.001), target={"ratio": 1e9}, tries=2)
    assert best.config.tau == 0.002
    best, tried = study.reach(network, digits, sws.Config(), target={})
    assert [best] == tried
    for wrong in ({"size": 3}, {"ratio": 3, "drop": 1}):
        with pytest.raises(ValueError, match="target=.*expected one of 'ratio', 'error', 'drop'"):
            study.reach(network, digits, sws.Config(), target=wrong)


def test_a_runs_folder_holds_the_run(tmp_path):
    [run] = study.study(SMALL, [4])
    paths = study.write_run(run, tmp_path / "run", environment={"python": "3.11"})
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in paths}
    read = lambda name: json.loads((tmp_path / "run" / name).read_text())  # noqa: E731
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert [float(row["spike_sigma"]) for row in rows] == run.result.history["spike_sigma"]
    assert read("config.json")["fine_tune"]["epochs"] == run.result.config.fine_tune.epochs
    assert read("environment.json") == {"python": "3.11"}
    assert [m["means"] for m in read("mixtures.json")["all"]] == [m.means.tolist() for m in run.result.mixtures]
    layers = list(csv.DictReader((tmp_path / "run" / "layers.csv").read_text().splitlines()))
    assert sum(int(layer["bits"]) for layer in layers) == run.result.compressed.sizes.bits
    assert read("summary.json")["file_bytes"] == len((tmp_path / "run" / "network.wsn").read_bytes())
    quantised = safetensors.torch.load_file(tmp_path / "run" / "quantised.safetensors")
    assert same(quantised, run.result.compressed.state)
    assert same(codec.decode((tmp_path / "run" / "network.wsn").read_bytes()), quantised)


def test_a_runs_folder_that_cannot_be_written(tmp_path):
    [run] = study.study(SMALL, [4])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        study.write_run(run, tmp_path / "file", environment={})

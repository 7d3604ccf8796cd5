"""What goes through a zoo by portions, and what lies in files, gives what all of it at once in memory gives."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wsnotebook import memory, symmetry, zoo
from wsnotebook.methods import coordinates as coordinates_module
from wsnotebook.methods import sane, weight_flow
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.properties import weight_statistics
from wsnotebook.methods.tokens import standardise, tokens

SANE = sane.Config(z=8, dim=12, blocks=1, iterations=4, batch=8)
FLOW = weight_flow.Config(components=5, hidden=8, iterations=100, batch=4)


@pytest.fixture(scope="module")
def nets(digits, tmp_path_factory):
    config = zoo.Config(epochs=1, batch=100, lr=3e-3, snapshots=(0, 5))
    return zoo.train("mlp-64-8-10", digits, 16, config, folder=tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def small(nets, monkeypatch):
    """As if five networks were too many at once, and ten for memory."""
    monkeypatch.setattr(memory, "PORTION", 5 * nets.layout.d)
    monkeypatch.setattr(memory, "LARGE", 10 * nets.layout.d)


def flat(value):
    """All the numbers of a result."""
    parts = value if isinstance(value, tuple | list) else [value]
    return torch.cat([torch.as_tensor(np.asarray(part), dtype=torch.float64).flatten() for part in parts])


WORK = {
    "filter": lambda nets: nets.filter(np.arange(len(nets))[::-1]).weights,
    "concat": lambda nets: zoo.concat([nets, nets]).weights,
    "split": lambda nets: [part.weights for part in nets.split()],
    "permute": lambda nets: symmetry.permute(nets).weights,
    "statistics by layer": weight_statistics,
    "statistics by tensor": lambda nets: weight_statistics(nets, "tensor"),
    "tokens": lambda nets: memory.mapped(tokens(nets.layout).entries, nets.weights),
    "align to one": lambda nets: [
        (found := symmetry.align(nets)).zoo.weights,
        found.distance_after,
        found.objective_before,
    ],
    "align to the mean": lambda nets: symmetry.align(nets, reference="mean").zoo.weights,
    "balance": lambda nets: symmetry.align(nets, scale=True).reference,
    "standardise": lambda nets: [(found := standardise(nets, tokens(nets.layout))).mean, found.deviation],
    "layer PCA": lambda nets: (found := layer_pca(nets, 6)).decode(found.embed(nets)).weights,
    "coordinates": lambda nets: coordinates(nets, 3).encode(nets.weights).abs(),
    "SANE": lambda nets: (found := sane.train(nets, SANE)).decode(found.embed(nets)).weights,
    "weight flow": lambda nets: weight_flow.train(nets, FLOW).sample(3).weights,
}


@pytest.mark.parametrize("work", WORK)
def test_by_portions_it_is_the_same(nets, monkeypatch, work):
    whole = flat(WORK[work](nets))
    monkeypatch.setattr(memory, "PORTION", 5 * nets.layout.d)
    monkeypatch.setattr(memory, "LARGE", 10 * nets.layout.d)
    torch.testing.assert_close(flat(WORK[work](nets)), whole, rtol=1e-4, atol=1e-5)


LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")


@LINUX
def test_what_is_large_lies_in_a_file_that_leaves_nothing(nets, small, tmp_path, monkeypatch):
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(tmp_path))
    mapped = nets.filter(np.arange(11)).weights
    assert torch.equal(mapped, nets.weights[:11])
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) in maps.read()
    assert not list(tmp_path.iterdir())


def test_blocks_are_views_that_make_the_zoo(nets, small):
    blocks = list(nets.blocks())
    assert [len(block) for block in blocks] == [5] * 9 + [3]
    assert blocks[1].weights.data_ptr() == nets.weights[5:].data_ptr()
    again = zoo.concat(blocks)
    assert torch.equal(again.weights, nets.weights)
    assert all(np.array_equal(again.facts[name], values) for name, values in nets.facts.items())
    assert [len(block) for block in nets.filter([]).blocks()] == [0]


def test_a_bad_row_is_found_in_any_portion(nets, small):
    weights = nets.weights.clone()
    weights[[17, 30], 3] = torch.nan
    with pytest.raises(ValueError, match=r"row 17 has numbers that are NaN or infinite \(2 of 48"):
        replace(nets, weights=weights)


def test_coordinates_are_the_same_from_either_matrix(nets, monkeypatch):
    """Of inner products of networks, or of weights: where there are more networks than weights."""
    monkeypatch.setattr(coordinates_module, "DUAL", 0)
    spread = np.random.default_rng(0).normal(0, 0.01, (700, nets.layout.d)).astype(np.float32)
    many = nets.made(nets.weights[:1] + torch.from_numpy(spread))
    assert len(many) > many.layout.d
    ours = coordinates(many, 4)
    centred = many.weights.double() - many.weights.double().mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(ours.deviations.double(), values[:4] / 699**0.5, rtol=1e-4, atol=0)
    torch.testing.assert_close((ours.basis.double() @ directions[:4].T).abs(), torch.eye(4).double(), atol=1e-3, rtol=0)
    whole = coordinates(many)
    torch.testing.assert_close(whole.decode(whole.encode(many.weights)), many.weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whole.explained[:4], ours.explained, rtol=1e-4, atol=0)
    rest = (centred - centred @ directions[:4].T @ directions[:4]).std(0)
    torch.testing.assert_close(ours.rest.double(), rest, rtol=1e-3, atol=1e-6)


@LINUX
def test_a_hundred_thousand_networks_go_through_in_less_memory_than_they_are(tmp_path):
    """Load, statistics, tokens, alignment and both PCAs; memory mapped from files is the system's to give back."""
    command = [sys.executable, str(Path(__file__).with_name("large_zoo.py")), str(tmp_path), "mlp-64-8-10"]
    environment = os.environ | {"SMALL_MEMORY": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert (seen["networks"], seen["weights"]) == (100_000, 610)
    assert seen["zoo_mib"] > 230
    assert seen["most_mib"] - seen["start_mib"] < seen["zoo_mib"], seen
    before, after = seen["distance"]
    assert after < 0.8 * before

"""Zoo: files, splits and selections keep every network and its facts; what is damaged or foreign is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from wsnotebook import networks, symmetry, zoo
from wsnotebook.layout import COUNTERS, Layout


def a_zoo(n=10, network="mlp-6-4-3", snapshots=2):
    layout = Layout.of(networks.build(network), exclude=COUNTERS)
    weights = torch.randn(n, layout.d, generator=torch.Generator().manual_seed(0))
    facts = {
        "model": np.arange(n) // snapshots,
        "accuracy": np.linspace(10.0, 90.0, n),
        "init": np.array(["he", "xavier"])[np.arange(n) % 2],
    }
    return zoo.Zoo(weights, layout, facts, network, {"build": {"classes": 3}, "made": "by hand"})


def same(a, b):
    assert torch.equal(a.weights, b.weights)
    assert (a.layout, a.network, a.provenance, list(a.facts)) == (b.layout, b.network, b.provenance, list(b.facts))
    for name in a.facts:
        assert np.array_equal(a.facts[name], b.facts[name]), name


def test_load_undoes_save(tmp_path):
    one = a_zoo()
    same(zoo.load(one.save(tmp_path / "deep" / "z.safetensors")), one)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["z.safetensors"]


def test_a_zoo_of_ones_own_networks_is_loaded_where_they_are_known(tmp_path):
    here = a_zoo(network="squeezed:squeezed")
    same(zoo.load(path := here.save(tmp_path / "z.safetensors")), here)  # built in this process
    code = (
        "import sys; from wsnotebook import zoo; path, name = sys.argv[1:]\n"
        "try: zoo.load(path)\nexcept ValueError as error: print(error)\n"
        "assert 'squeezed' not in sys.modules\n"
        "zoo.load(path, network=name).module(0); zoo.load(path).module(0)"
    )
    command = [sys.executable, "-c", code, path, "squeezed:squeezed"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"zoo {path}: its networks are made by the function 'squeezed:squeezed'")
    assert "name it: zoo.load(path, network='squeezed:squeezed')" in done.stdout


def test_facts_that_are_one_array_are_saved_as_two(tmp_path):
    permuted = symmetry.permute(a_zoo())  # each network's parent is its own model
    permuted = permuted.derived(permuted.weights, model=permuted.facts["parent"])
    same(zoo.load(permuted.save(tmp_path / "z.safetensors")), permuted)


@pytest.mark.parametrize("network", ["mlp-6-4-3", "cnn-tiny", "resnet-8", "vit-tiny"])
def test_a_row_is_the_network(network):
    layout = Layout.of(networks.build(network), exclude=COUNTERS)
    trained = networks.build(network, seed=3)
    row = layout.flatten(trained.state_dict())
    one = zoo.Zoo(row[None].repeat(2, 1), layout, {}, network, {})
    x = networks.example(network)
    assert torch.equal(one.module(1)(x), trained.eval()(x))


def test_concat_undoes_split_and_no_model_is_on_two_sides():
    one = a_zoo(40)
    parts = one.split(seed=1)
    owners = [set(part.facts["model"].tolist()) for part in parts]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert [len(o) for o in owners] == [14, 3, 3]
    whole = zoo.concat(parts)
    same(whole.filter(np.argsort(whole.facts["accuracy"])), one)


def test_filter_takes_masks_and_rows_alike():
    one = a_zoo()
    mask = one.facts["accuracy"] > 50
    same(one.filter(mask), one.filter(np.flatnonzero(mask)))
    assert len(one.filter(mask)) == mask.sum()
    with pytest.raises(ValueError, match=r"a mask of shape \(3,\), expected \(10,\)"):
        one.filter(np.ones(3, bool))


def test_made_networks_have_numbers_parents_and_the_zoos_activation():
    one = a_zoo()
    same_kind = one.derived(one.weights, activation=np.full(10, "tanh"))
    new = same_kind.made(one.weights[:4], parent=np.array([3, 1, 1, 0]), init=np.arange(4))
    assert {name: new.facts[name].tolist() for name in ("model", "parent", "init", "activation")} == {
        "model": [0, 1, 2, 3],
        "parent": [3, 1, 1, 0],
        "init": [0, 1, 2, 3],
        "activation": ["tanh"] * 4,
    }
    assert one.made(one.weights[:2]).facts["parent"].tolist() == [-1, -1]
    mixed = one.derived(one.weights, activation=np.array(["tanh", "relu"] * 5))
    with pytest.raises(ValueError, match="activations relu, tanh; take the networks of one"):
        mixed.made(one.weights)


def test_groups_cover_every_row_once_with_its_activation():
    one = a_zoo()
    facts = one.facts | {"activation": np.array(["tanh", "relu", "gelu", "relu", "tanh"] * 2)}
    mixed = zoo.Zoo(one.weights, one.layout, facts, one.network, one.provenance)
    seen = []
    for template, rows in mixed.groups():
        assert {type(m).__name__.lower() for m in template[2:3]} == set(facts["activation"][rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(10))


def test_rows_that_are_not_finite_are_named():
    one = a_zoo()
    weights = one.weights.clone()
    weights[3, 2], weights[7, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"row 3 has numbers that are NaN or infinite \(2 of 10"):
        one.derived(weights)


def test_parts_that_do_not_fit_are_named():
    one = a_zoo()
    with pytest.raises(ValueError, match=r"weights: shape \(10, 5\), expected \(n, 43\)"):
        one.derived(one.weights[:, :5])
    with pytest.raises(ValueError, match=r"facts\['loss'\]: shape \(4,\), expected \(10,\)"):
        one.derived(one.weights, loss=np.zeros(4))
    with pytest.raises(ValueError, match=r"zoos\[1\] holds cnn-tiny"):
        zoo.concat([one, a_zoo(network="cnn-tiny")])
    with pytest.raises(ValueError, match="sum to 1"):
        one.split((0.5, 0.2))
    with pytest.raises(ValueError, match="too few"):
        a_zoo(4).split()


@pytest.mark.parametrize("damage", ["torn", "flipped", "text", "empty"])
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    path = a_zoo().save(tmp_path / "z.safetensors")
    data = bytearray(path.read_bytes())
    data[20] ^= 255
    path.write_bytes({"torn": path.read_bytes()[:300], "flipped": data, "text": b"no zoo", "empty": b""}[damage])
    with pytest.raises(ValueError, match="zoo .*z.safetensors"):
        zoo.load(path)


def test_a_file_with_missing_parts_or_nan_is_named(tmp_path):
    one = a_zoo()
    path = tmp_path / "z.safetensors"
    text = {"format": "wsnotebook zoo 1", "layout": json.dumps([["w"], [[2]], ["weight"]]), "facts": "[]"}
    safetensors.torch.save_file({"weights": one.weights}, path, text)
    with pytest.raises(ValueError, match=r"damaged \(KeyError"):
        zoo.load(path)
    weights = one.weights.clone()
    weights[1] = torch.nan
    with pytest.raises(FileNotFoundError, match="no such file"):
        zoo.load(tmp_path / "absent")
    safetensors.torch.save_file({"w": weights}, path)
    with pytest.raises(ValueError, match="from_checkpoints"):
        zoo.load(path)


# ---- from checkpoints


def test_checkpoints_of_every_kind_become_rows_in_order(tmp_path):
    nets = [networks.build("resnet-8", seed=i) for i in range(3)]
    safetensors.torch.save_file(nets[0].state_dict(), tmp_path / "a.safetensors")
    torch.save(nets[1].state_dict(), tmp_path / "b.pt")
    torch.save({"state_dict": nets[2].state_dict(), "epoch": 3}, tmp_path / "c.pth")
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    one = zoo.from_checkpoints(tmp_path, "resnet-8")
    assert one.facts["file"].tolist() == ["a.safetensors", "b.pt", "c.pth"]
    for i, net in enumerate(nets):
        assert torch.equal(one.weights[i], one.layout.flatten(net.state_dict()))
    back = zoo.from_checkpoints([tmp_path / "c.pth", tmp_path / "a.safetensors"], "resnet-8")
    assert torch.equal(back.weights, one.weights[[2, 0]])


def test_the_first_checkpoint_that_does_not_fit_is_named_with_the_reason(tmp_path):
    good = networks.build("mlp-6-4-3")
    torch.save(good.state_dict(), tmp_path / "a.pt")
    torch.save(networks.build("mlp-6-5-3").state_dict(), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b.pt: 'fc1.weight' is \(5, 6\), mlp-6-4-3 has \(4, 6\)"):
        zoo.from_checkpoints(tmp_path, "mlp-6-4-3")
    state = good.state_dict() | {"extra": torch.zeros(2)}
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b.pt: 'extra' is \(2,\), mlp-6-4-3 has no such tensor"):
        zoo.from_checkpoints(tmp_path, "mlp-6-4-3")
    state = good.state_dict()
    state["fc2.bias"] = torch.full((3,), torch.nan)
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b.pt: tensor 'fc2.bias' has 3 entries"):
        zoo.from_checkpoints(tmp_path, "mlp-6-4-3")
    (tmp_path / "b.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"b.pt: not readable"):
        zoo.from_checkpoints(tmp_path, "mlp-6-4-3")
    with pytest.raises(FileNotFoundError, match="no folder"):
        zoo.from_checkpoints(tmp_path / "absent", "mlp-6-4-3")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file"):
        zoo.from_checkpoints(tmp_path / "bare", "mlp-6-4-3")

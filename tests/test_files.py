"""compress, decompress and inspect on the command line: bit for bit, atomic, and one line for every mistake."""

import sys

import pytest
import safetensors.torch
import torch

from wsnotebook import cli, files, networks
from wsnotebook.methods import codec


@pytest.fixture
def model(tmp_path):
    """A file of a network whose first matrix takes five values."""
    state = networks.build("mlp-64-24-10").state_dict()
    generator = torch.Generator().manual_seed(0)
    state["fc1.weight"] = torch.randint(-2, 3, (24, 64), generator=generator) * 0.125
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def fails(capsys, *arguments):
    """The one line that the command complains with."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wsnotebook: ")
    assert err.count("\n") == 1
    return err


def equal(a, b):
    return set(a) == set(b) and all(files.same(a[name], b[name]) for name in a)


@pytest.mark.parametrize("mode", codec.MODES)
def test_there_and_back(model, tmp_path, capsys, mode):
    assert cli.main(["compress", str(model), "--mode", mode]) == 0
    packed, back = tmp_path / "model.wsn", tmp_path / "new" / "back.safetensors"
    size = packed.stat().st_size
    assert size < model.stat().st_size / 2
    assert f"wrote {packed}: {size:,} bytes, " in capsys.readouterr().out
    assert cli.main(["decompress", str(packed), "-o", str(back)]) == 0
    assert capsys.readouterr().out == f"wrote {back}: 4 tensors, 7,240 bytes\n"
    assert equal(safetensors.torch.load_file(back), safetensors.torch.load_file(model))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.wsn", "new"}


def test_a_state_dict_of_torch_is_read_too(model, tmp_path):
    state = safetensors.torch.load_file(model) | {"h": torch.randn(3).bfloat16(), "none": torch.zeros(0)}
    torch.save(state, tmp_path / "other.pt")
    assert cli.main(["compress", str(tmp_path / "other.pt"), "-o", str(tmp_path / "x")]) == 0
    assert equal(codec.decode((tmp_path / "x").read_bytes()), state)


def test_levels_and_half_round_and_say_so(model, tmp_path, capsys):
    assert cli.main(["compress", str(model), "--levels", "15", "--half"]) == 0
    state, decoded = safetensors.torch.load_file(model), codec.decode((tmp_path / "model.wsn").read_bytes())
    weights = state["fc2.weight"]
    assert len(decoded["fc2.weight"].unique()) <= 15
    error = float((weights - decoded["fc2.weight"]).abs().max())
    assert 0 < error <= float(weights.abs().max()) / 14 * (1 + 1e-5)
    first = float((state["fc1.weight"] - decoded["fc1.weight"]).abs().max())
    assert f"the largest error is {max(error, first):.3g}\n" in capsys.readouterr().out
    assert torch.equal(decoded["fc1.bias"], state["fc1.bias"].half().float())
    for bad in ("2", "16", "4097", "-3"):
        assert f"--levels {bad}: expected an odd number" in fails(capsys, "compress", model, "--levels", bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_levels_of_what_is_not_finite_are_refused_and_without_levels_it_is_kept(model, tmp_path, capsys, bad):
    state = safetensors.torch.load_file(model)
    state["fc2.weight"][3, 3] = bad
    safetensors.torch.save_file(state, model)
    told = fails(capsys, "compress", model, "--levels", "31")
    assert "--levels 31: tensor 'fc2.weight' has 1 entries that are NaN or infinite out of 240" in told
    assert not (tmp_path / "model.wsn").exists()
    assert cli.main(["compress", str(model)]) == 0
    assert equal(codec.decode((tmp_path / "model.wsn").read_bytes()), state)


@pytest.mark.parametrize("largest", [1.7e308, 1e300, 1e39, 1.0, 1e-60, 1e-310])
def test_levels_of_large_and_of_small_doubles_are_near_them(largest):
    values = torch.linspace(-1, 1, 200, dtype=torch.float64).view(10, 20) * largest
    levelled, error = files.rounded({"w": values}, 31)
    assert levelled["w"].dtype == torch.float64
    assert len(levelled["w"].unique()) <= 31
    assert error == (levelled["w"] - values).abs().max()
    assert error <= max(largest / 30 * (1 + 1e-12), sys.float_info.min)


def test_little_to_gain_is_told(tmp_path, capsys):
    state = {"w": torch.randn(40, 50), "zeros": torch.zeros(30, 30) * -1}
    safetensors.torch.save_file(state, tmp_path / "m.safetensors")
    assert cli.main(["compress", str(tmp_path / "m.safetensors")]) == 0
    assert "zeros: 900 zeros are negative, and the file keeps that" in capsys.readouterr().out
    safetensors.torch.save_file({"w": state["w"]}, tmp_path / "m.safetensors")
    assert cli.main(["compress", str(tmp_path / "m.safetensors")]) == 0
    assert "no tensor takes few values, so there is little to gain" in capsys.readouterr().out


def test_inspect_adds_up(model, tmp_path, capsys):
    cli.main(["compress", str(model)])
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "model.wsn")]) == 0
    head, *rows, parts, total = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["tensor", "shape", "type", "non-zero"]
    assert {row.split()[0] for row in rows} == set(safetensors.torch.load_file(model))
    size = (tmp_path / "model.wsn").stat().st_size
    assert f"version 1, mode context: {size:,} bytes = header " in parts
    words = parts.partition("context: ")[2].split()
    numbers = [int(word.replace(",", "")) for word in words if word[0].isdigit()]
    assert numbers[0] == sum(numbers[1:]) == size
    assert total == f"7,240 bytes at float32: {7240 / size:.1f} x"


def test_mistakes_are_one_line_and_leave_nothing(model, tmp_path, capsys):
    cli.main(["compress", str(model)])
    capsys.readouterr()
    packed = tmp_path / "model.wsn"
    assert "model.safetensors exists: say where to write with -o" in fails(capsys, "decompress", packed)
    assert "more than limit=100" in fails(capsys, "inspect", packed, "--limit", 100)
    assert "no such file" in fails(capsys, "compress", tmp_path / "none.safetensors")
    assert "No such file" in fails(capsys, "decompress", tmp_path / "none.wsn")
    assert "begins with b'" in fails(capsys, "decompress", model)
    assert "model.wsn: not readable" in fails(capsys, "compress", packed)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(model.read_bytes()[:90])
    assert "torn.safetensors: not readable" in fails(capsys, "compress", torn)
    (tmp_path / "torn.pt").write_bytes(b"PK\3\4 and no more")
    assert "torn.pt: not readable" in fails(capsys, "compress", tmp_path / "torn.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "list.pt: holds list, expected a state dict" in fails(capsys, "compress", tmp_path / "list.pt")
    torch.save(networks.build("mlp-4-2"), tmp_path / "pickle.pt")
    assert "pickle.pt: not readable" in fails(capsys, "compress", tmp_path / "pickle.pt")
    packed.write_bytes(packed.read_bytes()[:-1])
    assert "the checksum differs" in fails(capsys, "decompress", packed)
    assert "the checksum differs" in fails(capsys, "inspect", packed)
    before = sorted(tmp_path.iterdir())
    assert "expected float16" not in fails(capsys, "compress", model, "-o", "/proc/nothing/here.wsn")
    assert "invalid choice" in fails(capsys, "compress", model, "--mode", "zip")
    assert sorted(tmp_path.iterdir()) == before

"""Fuzz: damaged files of every kind are refused in words, within time and memory; valid ones come back as they were."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import safetensors.torch
import torch
from damage import NUMBERS
from fuzzed_parsers import a_zoo, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsnotebook import datasets, runs, training, zoo
from wsnotebook.layout import KINDS, Layout
from wsnotebook.methods import codec, header

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux")
every = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a folder that all examples may share
)


# ---- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{parser: what became of its cases}, from a process of its own."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-W", "error", fuzzing.__file__, folder]
    environment = os.environ | {"TQDM_DISABLE": "1", "WSNOTEBOOK_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@linux
def test_ten_thousand_damaged_files_end_in_a_value_or_in_a_clear_error(outcomes):
    failures = [f"{parser}, {failure}" for parser, found in outcomes.items() for failure in found["failures"]]
    assert not failures, "\n".join(failures[:20])
    assert sum(found["cases"] for found in outcomes.values()) >= 20_000


@linux
def test_damage_reaches_behind_every_first_check(outcomes):
    for parser, found in outcomes.items():
        print(f"{parser:<24} {found['cases']:>5} cases, {found['refused']:>5} refused, {found['cpu_seconds']:>5} CPU-s")
        accepted = found["cases"] - found["refused"]
        assert accepted > (0 if parser == "codec" else found["cases"] // 50), parser


# ---- what is valid -----------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
patterns = st.sampled_from([bytes(1), b"\x80", b"\x7f", b"\xff", bytes(range(256)), bytes([0, 0, 0, 128] * 3 + [63])])


@st.composite
def tensors(draw):
    """A tensor of any type and shape and any bits: NaNs of every kind, -0, subnormal numbers."""
    dtype, shape = draw(st.sampled_from(header.DTYPES)), draw(shapes)
    size = dtype.itemsize * int(np.prod(shape))
    data = (draw(patterns | st.binary(min_size=1, max_size=64)) * (size + 1))[:size]
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    return torch.frombuffer(bytearray(data + b"\0"), dtype=torch.uint8)[:size].clone().view(dtype).reshape(shape)


states = st.dictionaries(names, tensors(), max_size=5)


@every
@given(states, st.sampled_from(codec.MODES))
def test_codec_gives_every_bit_back(state, mode):
    data = codec.encode(state, mode=mode)
    assert same(codec.decode(data), state)
    assert codec.describe(data).bytes == len(data)


def test_codec_takes_the_imaginary_part_of_a_conjugate():
    w = torch.tensor([1 + 2j]).conj().imag  # whose sign torch has yet to turn
    assert same(codec.decode(codec.encode({"w": w})), {"w": torch.tensor([-2.0])})


@every
@given(states, st.sampled_from([".safetensors", ".pt", ".pth"]))
def test_a_saved_state_is_read_as_it_was(tmp_path, state, suffix):
    path = tmp_path / f"state{suffix}"
    if suffix == ".safetensors":  # which holds no such name and type, and has no order
        state = {n: t for n, t in state.items() if n != "__metadata__" and t.dtype is not torch.complex128}
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pt")
    found = training.read_state(path)
    assert found.keys() == state.keys()
    assert same({name: found[name] for name in state}, state)


@every
@given(st.dictionaries(names, shapes, min_size=1, max_size=5), shapes, st.sampled_from(KINDS))
def test_layout_undoes_itself_for_any_number_of_networks(parts, batch, kind):
    layout = Layout(tuple(parts), tuple(parts.values()), (kind,) * len(parts))
    rows = torch.arange(int(np.prod(batch)) * layout.d, dtype=torch.float32).view(*batch, layout.d)
    state = layout.unflatten(rows)
    assert {name: tensor.shape for name, tensor in state.items()} == {n: (*batch, *s) for n, s in parts.items()}
    assert layout.flatten(state).equal(rows)


A_ZOO = a_zoo()
fact = st.sampled_from(["i8", "u1", "f4", "f8", "?", "c8"]).map(np.dtype) | st.just(np.dtype("U5"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@every
@given(st.data(), st.integers(0, 4), st.dictionaries(st.text(), json_values, max_size=3), st.text())
def test_a_zoo_comes_back_with_any_facts(tmp_path, data, n, provenance, network):
    text = st.text(st.characters(exclude_characters="\0"), max_size=5)  # numpy's texts end at the last of these
    fill = {"elements": text} if (kind := data.draw(fact)).kind == "U" else {}
    facts = data.draw(st.dictionaries(names, arrays.arrays(kind, n, **fill), max_size=3))
    one = replace(A_ZOO.filter(range(n)), facts=facts, provenance=provenance, network=network)
    again = zoo.load(one.save(tmp_path / "z.safetensors"))
    assert again.weights.equal(one.weights)
    assert (again.layout, again.provenance, again.network) == (one.layout, provenance, network)
    assert list(again.facts) == list(facts)
    for name, values in facts.items():
        np.testing.assert_array_equal(again.facts[name], values)
        assert again.facts[name].dtype.kind == kind.kind


@every
@given(arrays.arrays(np.uint8, arrays.array_shapes(max_dims=4, min_side=0, max_side=5)))
def test_idx_gives_every_array_back(values):
    data = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    np.testing.assert_array_equal(datasets.read_idx(data, values.shape, 256, "file"), values)


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@every
@given(literals)
def test_a_literal_on_the_command_line_is_that_value(value):
    assert runs.parse(repr(value)) == value


@every
@given(st.sampled_from([n for n in NUMBERS if n < 1 << 49]) | st.integers(0, (1 << 49) - 1))
def test_numbers_of_the_header_come_back(number):
    assert header.Source(header.varint(number)).number() == number
    for signed in (number, -number):
        assert header.unzigzag(header.zigzag(signed)) == signed

"""The compressed file: bit for bit back again, near the model's own code length, CodecError for any damage."""

import math
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from wsnotebook import networks
from wsnotebook.methods import ans, codec, context_model, floats, header, huffman
from wsnotebook.methods.context_model import ONE, TOP


def quantised(shape, *, density=0.1, values=7, seed=0, dtype=torch.float32):
    """A tensor of few values, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    book = torch.randn(values, generator=generator).to(dtype)
    tensor = book[torch.randint(values, shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < density, tensor, torch.zeros((), dtype=dtype))


def clustered(name, density=0.1, seed=0):
    """The state of a network whose weights take few values."""
    network = networks.build(name)
    state = network.state_dict()
    return {n: quantised(t.shape, density=density, seed=seed) if t.ndim > 1 else t for n, t in state.items()}


def same(a, b):
    """Whether two states are equal bit for bit, in names, order, types and shapes."""
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and (not a[n].numel() or torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a[n], b[n].contiguous()))))
        for n in a
    )


SMALL = {
    "fc1.weight": quantised((20, 49), seed=1),
    "fc1.bias": torch.arange(-10, 10) / 16,
    "fc2.weight": quantised((10, 20), seed=2),
    "fc2.bias": torch.linspace(-1, 1, 10),
    "steps": torch.tensor(7),
}
TENSORS = {
    "no rows": torch.zeros(0, 5),
    "nothing": torch.zeros(0),
    "all zero": torch.zeros(40, 30),
    "one weight": torch.tensor([[0.3]]),
    "a number": torch.tensor(math.pi),
    "one value": torch.full((30, 40), 0.25),
    "two values": torch.eye(50),
    "positive": quantised((40, 40)).abs(),
    "300 values": quantised((200, 60), density=0.5, values=300),
    "negative zeros": quantised((30, 50)) * -1,
    "multiples": quantised((30, 50)).mul(3).round() * 0.037,
    "only negative zeros": torch.zeros(64) * -1,
    "NaNs": torch.tensor([0x7FC00001, 0x7F800001, -1, 0], dtype=torch.int32).view(torch.float32),
    "NaN values": torch.tensor([0x7FC00001, -1, 0, 0] * 99, dtype=torch.int32).view(torch.float32),
    "infinities": torch.tensor([math.inf, -math.inf, 0, 0] * 50).view(10, 20),
    "half": torch.randn(33).half(),
    "bfloat16": torch.randn(7, 9).bfloat16(),
    "few bfloat16": quantised((50, 50), dtype=torch.bfloat16),
    "double": torch.randn(21, dtype=torch.float64),
    "few doubles": quantised((50, 50), dtype=torch.float64),
    "subnormal": torch.tensor([1e-45, -1e-40, 1e-38]),
    "kernel": quantised((8, 5, 3, 3)),
    "kernel 1d": quantised((16, 8, 7)),
    "transposed": quantised((30, 60)).T,
    "tall": quantised((20_000, 2)),
    "wide": quantised((2, 20_000)),
    "long": quantised((70_001,), density=0.01),
    "integers": torch.arange(-5, 6),
    "int32": torch.tensor([[2**31 - 1, -(2**31)]], dtype=torch.int32),
    "bytes": torch.arange(256).to(torch.uint8),
    "int8": torch.tensor(-128, dtype=torch.int8),
    "bool": torch.tensor([True, False, True]),
    "complex": torch.randn(5, dtype=torch.complex64),
}


@pytest.mark.parametrize("mode", codec.MODES)
@pytest.mark.parametrize("name", TENSORS)
def test_any_tensor_comes_back(name, mode):
    state = {name: TENSORS[name]}
    assert same(codec.decode(codec.encode(state, mode=mode)), state)


@pytest.mark.parametrize("mode", codec.MODES)
def test_all_tensors_come_back_together(mode):
    data = codec.encode(TENSORS, mode=mode)
    assert same(codec.decode(data), TENSORS)
    assert codec.encode(TENSORS, mode=mode) == data  # deterministic
    report = codec.describe(data)
    assert [(t.name, t.shape) for t in report.tensors] == [(n, tuple(t.shape)) for n, t in TENSORS.items()]
    assert report.header + report.integers + report.mantissas + report.stream == report.bytes == len(data)


@pytest.mark.parametrize("mode", codec.MODES)
@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5-caffe", "wrn-10-1"])
def test_networks_come_back(name, mode):
    state = clustered(name, density=0.03)
    data = codec.encode(state, mode=mode)
    assert same(codec.decode(data), state)


def test_a_transformer_and_a_network_come_back():
    block = nn.TransformerEncoderLayer(16, 2, 24)
    assert same(codec.decode(codec.encode(block)), block.state_dict())


@pytest.mark.parametrize("seed", range(40))
def test_random_matrices_come_back(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 2 ** random.integers(1, 7, random.integers(1, 4))))
    tensor = quantised(shape, density=random.random() ** 2, values=int(random.integers(1, 40)), seed=seed)
    state = {"a": tensor, "b": tensor.roll(1), "c": torch.randn(3)}
    for mode in codec.MODES:
        assert same(codec.decode(codec.encode(state, ["a", "b"], mode=mode)), state)


def test_the_stream_is_as_long_as_the_model_says():
    """Within 1 % and 8 bytes; and the model's length for a network of no structure is near that of its densities."""
    state = clustered("lenet-300-100", density=0.04)
    data = codec.encode(state)
    report = codec.describe(data)
    bits = sum(tensor.bits for tensor in report.tensors) - 23 * 410  # without the biases' mantissas
    numbers = 8 * (report.stream - bits / 8)  # the rest of the stream: exponents of codebooks
    assert -1 <= numbers <= 0.01 * bits + 64 + 12 * report.codebooks
    for tensor in report.tensors:
        if tensor.distinct and tensor.entries > 10_000:
            assert tensor.bits == pytest.approx(tensor.entropy, rel=0.03)
    assert report.header < 90
    assert report.original == 4 * 266_610
    assert report.ratio == report.original / len(data)


def test_structure_is_found():
    """Dead units, clusters in an image and repeated signs cost less than symbols coded without context."""
    state, random = clustered("lenet-300-100"), np.random.default_rng(0)
    y, x = np.mgrid[:28, :28]
    centres = random.integers(6, 22, (300, 2))
    near = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2 < 9  # (300, 28, 28)
    near[::2] = False
    signs = np.where(random.random(300) < 0.5, -1, 1)[:, None, None]
    state["fc1.weight"] = torch.from_numpy((near * signs * 0.5).reshape(300, 784)).float() + 0.0
    state["fc2.weight"][:, ::2] = 0
    first, second = (t for t in codec.describe(codec.encode(state)).tensors if t.distinct and t.entries > 10_000)
    assert first.bits < 0.35 * first.entropy
    assert second.bits < 0.95 * second.entropy


def test_bits_of_a_constant_probability_are_those_of_the_closed_form():
    random = np.random.default_rng(0)
    for p in (1, 1000, ONE // 2, ONE - 1):
        bits = random.random(20_000) < p / ONE
        coder = ans.Encoder()
        coder.code(np.full(20_000, p), bits)
        ones = int(bits.sum())
        ideal = -ones * math.log2(p / ONE) - (20_000 - ones) * math.log2(1 - p / ONE)
        assert coder.record.length() == pytest.approx(ideal, rel=1e-12)
        data = coder.finish()
        assert -8 <= 8 * len(data) - ideal <= 0.001 * ideal + 40
        decoder = ans.Decoder(data)
        assert np.array_equal(decoder.code(np.full(20_000, p)), bits)
        assert decoder.ended


def test_integer_tables_are_the_functions():
    n = np.unique(np.geomspace(1, 2**46, 10_000).astype(np.int64))
    assert np.abs(context_model.log(n) - 256 * np.log(n)).max() < 1.5
    assert (
        context_model.log_ratio(10**9, 7)
        == context_model.log(np.array([10**9]))[0] - context_model.log(np.array([7]))[0]
    )
    z = np.arange(-TOP, TOP + 1)
    assert np.abs(context_model.squash(z) / ONE - 1 / (1 + np.exp(-z / 256))).max() * ONE < 2
    assert np.array_equal(
        context_model.squash(np.array([-(10**9), 10**9])), context_model.squash(np.array([-TOP, TOP]))
    )


def test_lists_are_kept_in_the_narrowest_type_that_is_exact():
    wide = torch.randn(1000)
    sizes = [len(codec.encode({"w": tensor})) for tensor in (wide, wide.bfloat16().float(), wide.half().float())]
    assert sizes[0] > sizes[1] + 1500
    assert sizes[0] > sizes[2] + 1200
    step = torch.tensor(0.0371)
    multiples, others = (torch.arange(-20, 20).float() * step).repeat(50), (torch.randn(40) * step).repeat(50)
    assert len(codec.encode({"w": multiples})) < len(codec.encode({"w": others})) - 100


def test_equal_codebooks_are_kept_once():
    one = {f"w{i}": quantised((20, 20), values=15, density=1.0) for i in range(4)}
    four = {f"w{i}": quantised((20, 20), values=15, density=1.0, seed=i) for i in range(4)}
    assert codec.describe(codec.encode(one)).codebooks <= 16
    assert codec.describe(codec.encode(four)).codebooks >= 50


def test_float16_rounds_what_has_no_codebook_and_refuses_what_does_not_fit():
    state = SMALL | {"a": torch.randn(50), "b": torch.randn(50, dtype=torch.float64), "inf": torch.tensor(math.inf)}
    decoded = codec.decode(codec.encode(state, rest="float16"))
    for name in ("a", "b", "fc2.bias"):
        assert decoded[name].dtype == state[name].dtype
        assert torch.equal(decoded[name], state[name].half().to(state[name].dtype))
    assert torch.equal(decoded["fc1.weight"], state["fc1.weight"])
    assert len(codec.encode(state, rest="float16")) < len(codec.encode(state)) - 200
    with pytest.raises(ValueError, match="7e.04 does not fit float16"):
        codec.encode({"w": torch.tensor([1.0, 7e4])}, rest="float16")


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="quantised: no tensor nine; there are fc1.weight"):
        codec.encode(SMALL, ["nine"])
    with pytest.raises(ValueError, match="5000 distinct values; a codebook holds at most 4096"):
        codec.encode({"w": torch.arange(5000.0)}, ["w"])
    with pytest.raises(ValueError, match="mode='zip'"):
        codec.encode(SMALL, mode="zip")
    with pytest.raises(ValueError, match="rest='int4'"):
        codec.encode(SMALL, rest="int4")
    with pytest.raises(ValueError, match="w: list; expected a dense tensor"):
        codec.encode({"w": [1.0]})
    with pytest.raises(ValueError, match="w: torch.float8_e5m2"):
        codec.encode({"w": torch.zeros(3).to(torch.float8_e5m2)})


# ---- the format stays ----

GOLDEN = {
    "context": """
        575310cc2daff5190563666465656256e2116114e26161e1c0669458521e36af0200636780000001333335666668ccccdb33
        3346666699999a4cccd0333331333331333336666662666660000080c341e3acff27be78285713593aa191804ff51291ab60
        408bfc35524958919716c921af8e62c7516d93d0a8f00de25301a4411d7a5f87bb06
    """,
    "huffman": """
        5753116d99a7ec190563666465656256e2116114e26161e1c0669458521e36af020063678000003e80becccccdbeaccccdbe
        8ccccdbe59999abe19999abdb33334bcccccd03d1999983dcccccc3e2666663e6666663e93333328c2519000000000000000
        0000000000000000001884010bceade85e411ad26f2f208ea437f91bc8ea42ea8379d586b316ec46b316ec46b316ec46b316
        ec46b0
    """,
}


@pytest.mark.parametrize("mode", codec.MODES)
def test_a_file_of_today_can_be_read_tomorrow(mode):
    """A change of any probability breaks this: files written before could not be read. Then VERSION has to change."""
    i = torch.arange(240)
    state = {
        "fc1.weight": ((i * 37 % 11 < 4) * (i * 7 % 5 - 2) * 0.25).view(12, 20),
        "fc1.bias": torch.arange(12) / 16 - 0.4,
        "bn.num_batches_tracked": torch.tensor(7),
    }
    assert same(codec.decode(bytes.fromhex(GOLDEN[mode])), state)


# ---- damage ----


def test_a_thousand_damaged_files_are_refused():
    random = np.random.default_rng(0)
    files = [codec.encode(SMALL, mode=mode) for mode in codec.MODES]
    tracemalloc.start()
    for i in range(1000):
        data = bytearray(files[i % 2])
        at, kind = int(random.integers(len(data))), i % 6
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at : at + 9] = random.bytes(9)
        elif kind == 3:
            data = data[:at] + data[int(random.integers(len(data))) :] + b"x"
        elif kind == 4:
            data = bytearray(random.bytes(at))
        else:
            data[7:9] = b"\xff\xff"
        if bytes(data) != files[i % 2]:
            with pytest.raises(codec.CodecError):
                codec.decode(bytes(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def signed(data):
    """The same file with a checksum that is right."""
    data = bytes(data)
    return data[:3] + zlib.crc32(data[2:3] + data[7:]).to_bytes(4, "little") + data[7:]


@pytest.mark.parametrize("mode", codec.MODES)
def test_files_made_up_with_a_right_checksum_give_numbers_or_a_codec_error(mode):
    random, data = np.random.default_rng(1), codec.encode(SMALL, mode=mode)
    assert signed(data) == data
    refused = 0
    for _ in range(80):
        forged = bytearray(data)
        forged[int(random.integers(7, len(data)))] = int(random.integers(256))
        try:
            codec.decode(signed(forged), limit=1 << 20)
        except codec.CodecError:
            refused += 1
    assert 8 < refused <= 80


def made_up(entries, books=(), tail=b"", mode=0):
    head = header.pack(list(entries), list(books))
    return signed(
        b"WS" + bytes([codec.VERSION << 4 | mode]) + bytes(4) + header.varint(len(head)) + b"\0" + head + tail
    )


def entry(shape, dtype=torch.float32, **how):
    return header.Entry("w", dtype, shape, how.pop("stored", dtype), **how)


def test_sizes_are_checked_before_anything_of_that_size_exists():
    book = header.Codebook(torch.float32, torch.float32, "list", 1, 0)
    tracemalloc.start()
    for shape in ((1 << 39,), (1 << 20, 1 << 19), (1 << 60,), (3,) * 24, (1,) * 40, (0, 1 << 45)):
        for files in (
            made_up([entry(shape)]),
            made_up([entry(shape, torch.int64)]),
            made_up([entry(shape, codebook=0)], [book], bytes(4)),
            made_up([entry(shape, codebook=0)], [book], bytes(4), mode=1),
        ):
            with pytest.raises(codec.CodecError):
                codec.decode(files)
    for book in (
        header.Codebook(torch.float32, torch.float32, "list", 1 << 40, 0),
        header.Codebook(torch.float32, torch.float32, "list", 4097, 0),
        header.Codebook(torch.float32, torch.float32, "list", 3, 3),
        header.Codebook(torch.float32, torch.float64, "list", 3, 1),
        header.Codebook(torch.float32, torch.int32, "list", 3, 1),
        header.Codebook(torch.float32, torch.float32, "multiples", 9, 1, first=1 << 40),
    ):
        with pytest.raises(codec.CodecError):
            codec.decode(made_up([entry((4, 4), codebook=0)], [book], bytes(99)))
    for bad in (
        entry((4, 4), codebook=1),
        entry((4, 4), torch.int64, codebook=0),
        entry((0, 4), codebook=0),
        entry((4, 4), stored=torch.float64),
        entry((4, 4), stored=torch.int32),
        entry((1 << 17, 1), codebook=0),  # more rows than any encoder writes
        entry((1, 1 << 17), codebook=0),  # more columns
    ):
        with pytest.raises(codec.CodecError):
            codec.decode(made_up([bad], [header.Codebook(torch.float32, torch.float32, "list", 1, 0)], bytes(99)))
    with pytest.raises(codec.CodecError, match="two tensors of one name"):
        codec.decode(made_up([entry((1,)), entry((1,))], (), bytes(99)))
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = bomb.compress(bytes(1 << 26)) + bomb.flush()
    with pytest.raises(codec.CodecError):
        codec.decode(signed(b"WS\x10" + bytes(4) + header.varint(len(bomb)) + b"\0" + bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5e8  # the bomb's own 64 MiB, twice


def test_zeros_take_nothing_and_a_limit_bounds_them():
    data = codec.encode({"w": torch.zeros(512, 1024)})
    assert len(data) < 50
    assert not codec.decode(data)["w"].any()
    with pytest.raises(codec.CodecError, match="2097152 bytes, more than limit=1000000: raise it"):
        codec.decode(data, limit=1_000_000)


def test_other_versions_and_other_files_are_told():
    data = codec.encode(SMALL)
    with pytest.raises(codec.CodecError, match="version 2, mode 0: this wsnotebook reads version 1"):
        codec.decode(signed(data[:2] + b"\x20" + data[3:]))
    with pytest.raises(codec.CodecError, match="no file of wsnotebook: it begins with b'PK'"):
        codec.decode(b"PK" + data[2:])
    with pytest.raises(codec.CodecError, match="ends early"):
        codec.decode(b"")
    with pytest.raises(codec.CodecError, match="more than its tensors"):
        codec.decode(signed(codec.encode({"w": torch.zeros(99)}) + b"more"))
    book = header.Codebook(torch.float32, torch.float32, "multiples", 4, 1)
    infinite = made_up([entry((4, 4), codebook=0)], [book], b"\x7f\x80\0\0", mode=1)
    with pytest.raises(codec.CodecError, match="step of inf"):
        codec.decode(infinite)


def test_damaged_huffman_codes_are_told():
    with pytest.raises(ValueError, match="no prefix code"):
        huffman.codes(np.array([1, 1, 1]))
    with pytest.raises(ValueError, match="end too early"):
        huffman.decode(huffman.Bits(b"\0"), 1, 1, 1, 1)
    with pytest.raises(ValueError, match="in no table"):
        huffman.decode(huffman.Bits(bytes(100)), 1, 1, 1, 1)


@pytest.mark.parametrize("seed", range(20))
def test_huffman_codes_are_optimal_and_no_prefix_of_each_other(seed):
    """Kraft's sum is one, and the length is within a bit a symbol of the entropy."""
    counts = np.random.default_rng(seed).integers(0, 50, 40) ** 2
    lengths = huffman.code_lengths(counts)
    used = counts > 0
    assert np.array_equal(lengths > 0, used)
    assert sum(2.0 ** -lengths[used]) == 1
    entropy = (counts[used] * np.log2(counts.sum() / counts[used])).sum()
    assert entropy <= (counts * lengths).sum() <= entropy + counts.sum()
    words = {
        format(code, f"0{length}b") for code, length in zip(huffman.codes(lengths)[used], lengths[used], strict=True)
    }
    assert not any(a != b and b.startswith(a) for a in words for b in words)


@pytest.mark.parametrize("dtype", floats.EXPONENTS)
def test_keys_have_the_order_of_the_numbers(dtype):
    numbers = torch.cat([torch.randn(50, dtype=torch.float64) * 9, torch.tensor([0.0, math.inf, -math.inf])]).to(dtype)
    patterns = floats.words(numbers)
    keys = floats.keys(patterns, dtype)
    assert np.array_equal(floats.from_keys(keys, dtype), patterns)
    ordered = numbers[torch.from_numpy(np.argsort(keys, kind="stable"))].double()
    assert torch.equal(ordered, numbers.double().sort().values)
    for bits in (1, 7, 8 * dtype.itemsize - 3):
        low = patterns & 2**bits - 1
        assert np.array_equal(floats.from_lowest(floats.lowest(patterns, bits), bits), low)

"""Compressed files: speed beside a straightforward coder, bytes beside other counts and DeepCABAC.

    python tests/benchmarks/bench_codec.py [quantised.safetensors ..]

Without files: a LeNet-300-100 and a network of the size of WRN-16-4 with drawn weights, sparse and clustered like those
that soft weight-sharing leaves. Straightforward: one symbol after the other in Python, one adaptive bit each.

DeepCABAC (ISO/IEC 15938-17; nncodec 2.1.3) is compared when WSNOTEBOOK_NNCODEC names a Python that can import its
extension: in an environment of its own, `pip install "numpy<2" pybind11 setuptools`, then `pip download --no-deps
--no-binary :all: --no-build-isolation nncodec==2.1.3`, unpack, `python setup.py build_ext --inplace`, and put
its src/nncodec/extensions on the PYTHONPATH that this Python sees. Its best of unary lengths 1, 3, 6 and 10, with and
without parameter optimisation and row-skip, one stream a tensor; it codes the same levels, and codebooks are left out
on both sides.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from measured import Curve, Row, compared, curve, told
from torch import Tensor

from wsnotebook import networks
from wsnotebook.files import same
from wsnotebook.methods import accounting, ans, codec
from wsnotebook.methods.accounting import ideal_bits

DEEPCABAC = """
import sys, numpy, deepCABAC
def size(ids, unary, optimise, skip):
    coder = deepCABAC.Encoder()
    coder.initCtxModels(unary, optimise)
    empty = ~ids.any(axis=tuple(range(1, ids.ndim))) if skip else numpy.zeros(len(ids))
    off = deepCABAC.HdspMode.__members__["AlwaysOff"], numpy.zeros(2, numpy.int8)
    coder.encodeLayer(ids, 0, 0, skip, 0, skip, empty.astype(numpy.int32), *off, 0, 0)
    return len(coder.finish().tobytes())
for ids in numpy.load(sys.argv[1]).values():
    print(min(size(ids, u, o, s) for u in (1, 3, 6, 10) for o in (0, 1) for s in (0, 1)))
"""


def drawn(name: str, density: float) -> dict[str, Tensor]:
    """The state of a network with weights of 16 values: units and inputs of very different density, near ones alike."""
    generator = torch.Generator().manual_seed(0)
    state = networks.build(name).state_dict()
    book = torch.cat([torch.linspace(-0.8, -0.1, 8), torch.linspace(0.1, 0.8, 7)])
    for key, w in state.items():
        if w.ndim > 1:
            rows, columns = w.shape[0], w[0].numel()
            scale = torch.randn(rows, 1, generator=generator) * 1.5 + torch.randn(columns, generator=generator)
            smooth = torch.nn.functional.avg_pool1d(torch.randn(rows, 1, columns + 2, generator=generator), 3, 1)[:, 0]
            score = scale + 2 * smooth
            kept = score > score.flatten().kthvalue(max(1, int((1 - density) * score.numel()))).values
            level = (torch.randn(rows, columns, generator=generator) * 2.5 + 7).round().clamp(0, 14).long()
            state[key] = torch.where(kept, book[level], 0.0).view(w.shape)
    return state


def levels_of(w: Tensor) -> np.ndarray:
    """Levels as signed ranks, zero for zero."""
    values, ids = np.unique(w.numpy(), return_inverse=True)
    return (ids - np.searchsorted(values, 0.0)).reshape(w.shape).astype(np.int32)


class Straightforward:
    """Adaptive coding of a tensor's levels one bit after the other: is it zero (by the left one), then unary."""

    def __init__(self):
        self.counts = {}

    def code(self, coder, context, bit: bool | None) -> int:
        zeros, ones = self.counts.get(context, (1, 1))
        p = np.array([min(max((ones << 16) // (zeros + ones), 1), 65535)])
        bit = int(coder.code(p, None if bit is None else np.array([bit]))[0])
        self.counts[context] = (zeros + 1 - bit, ones + bit)
        return bit

    def transmit(self, coder, size: int, low: int, high: int, levels: list[int] | None = None) -> list[int]:
        done = [0]
        for i in range(size):
            level, known = 0, None if levels is None else levels[i]
            if self.code(coder, ("zero", done[-1] != 0), None if known is None else known != 0):
                level = 1 if self.code(coder, "sign", None if known is None else known > 0) else -1
                while low < level < high and self.code(coder, level, None if known is None else known != level):
                    level += 1 if level > 0 else -1
            done.append(level)
        return done[1:]


def deepcabac(state: dict[str, Tensor]) -> list[int] | None:
    """DeepCABAC's bytes for each weight tensor's levels; None without it."""
    if not (python := os.environ.get("WSNOTEBOOK_NNCODEC")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "levels.npz")
        np.savez(path, **{name: levels_of(w) for name, w in state.items() if w.ndim > 1})
        told = subprocess.run([python, "-c", DEEPCABAC, path], capture_output=True, text=True, check=True)
    return [int(line) for line in told.stdout.split()]


def plain_data(levels: dict[str, np.ndarray]) -> bytes:
    """Levels encoded one symbol after the other."""
    coder = ans.Encoder()
    for ids in levels.values():
        Straightforward().transmit(coder, ids.size, int(ids.min()), int(ids.max()), ids.ravel().tolist())
    return coder.finish()


def plain_levels(data: bytes, like: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """The levels back; `like` has their sizes and bounds, which a file would hold as well."""
    coder = ans.Decoder(data)
    bounds = {name: (ids.size, int(ids.min()), int(ids.max())) for name, ids in like.items()}
    return {name: Straightforward().transmit(coder, *own) for name, own in bounds.items()}


def rows() -> Iterator[Row]:
    state = drawn("lenet-300-100", 0.03)
    levels = {name: levels_of(w) for name, w in state.items() if w.ndim > 1}
    data, plain = codec.encode(state), plain_data(levels)

    def lost() -> bool:
        """Whether either coder gives something else back."""
        back, symbols = codec.decode(data), plain_levels(plain, levels)
        ours = all(same(back[name], w) for name, w in state.items())
        return not ours or any(symbols[name] != ids.ravel().tolist() for name, ids in levels.items())

    note = f"{len(data):,} bytes; symbol by symbol {len(plain):,} for the weights alone"
    pairs = {
        "encode": (lambda: plain_data(levels), lambda: codec.encode(state)),
        "decode": (lambda: plain_levels(plain, levels), lambda: codec.decode(data)),
    }
    for what, pair in pairs.items():
        what = f"{what} LeNet-300-100, {len(levels)} tensors of {sum(ids.size for ids in levels.values()):,} weights"
        yield compared("file format", what, *pair, difference=lost, repeats=1, note=note)


def curves() -> Iterator[Curve]:
    def state(n: int) -> dict[str, Tensor]:
        return drawn(f"mlp-784-{n // 794}-10", 0.03)

    def levels(n: int) -> dict[str, np.ndarray]:
        return {name: levels_of(w) for name, w in state(n).items() if w.ndim > 1}

    def encode(n: int):
        given = state(n)
        return lambda: codec.encode(given)

    def decode(n: int):
        data = codec.encode(state(n))
        return lambda: codec.decode(data)

    def symbols(n: int):
        like = levels(n)
        data = plain_data(like)
        return lambda: plain_levels(data, like)

    makers = {"encode": encode, "decode": decode, "decode, symbol by symbol": symbols}
    yield curve(
        "file format", "weights", [794 * 2**k for k in range(2, 12)], makers, {"decode, symbol by symbol": 60_000}
    )


def sizes(title: str, state: dict[str, Tensor]) -> None:
    """Print how tight the file is: in every mode, and the weights alone beside other counts and DeepCABAC."""
    megabytes = sum(4 * w.numel() for w in state.values()) / 1e6
    print(f"\n{title}: {megabytes:.2f} MB at float32")
    for mode in codec.MODES:
        data = codec.encode(state, mode=mode)
        if not all(same(w, codec.decode(data)[name]) for name, w in state.items()):
            sys.exit(f"{mode}: decoded to something else")
        report = codec.describe(data)
        print(f"{mode:<16}{len(data):>9,} bytes, ratio {report.ratio:6.1f}")
        if mode == "context":
            weights = [tensor for tensor in report.tensors if tensor.distinct and len(tensor.shape) > 1]
    print("weights only, bytes:")
    model = sum(tensor.bits for tensor in weights) / 8
    paper = [accounting.paper_size(n, torch.from_numpy(levels_of(w)), 0) for n, w in state.items() if w.ndim > 1]
    entropy = sum(ideal_bits(levels_of(w).ravel()) for w in state.values() if w.ndim > 1) / 8
    print(f"  context model {model:,.0f}; paper's count {sum(s.bits for s in paper) / 8:,.0f}; entropy {entropy:,.0f}")
    if (theirs := deepcabac(state)) is None:
        print("  DeepCABAC skipped: WSNOTEBOOK_NNCODEC names no Python with nncodec's extension")
    else:
        print(f"  DeepCABAC {sum(theirs):,}: ours is {100 * (1 - model / sum(theirs)):.1f} % smaller")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files
    for file in files:
        sizes(file.stem, safetensors.torch.load_file(file))
    if not files:
        told(rows())
        sizes("LeNet-300-100, drawn", drawn("lenet-300-100", 0.03))
        sizes("WRN-16-4, drawn", drawn("wrn-16-4", 0.07))

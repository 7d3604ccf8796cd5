"""Compressed networks on the command line: `wsnotebook compress | decompress | inspect`, built on `methods.codec`."""

import argparse
import sys

import safetensors.torch
import torch
from torch import Tensor

from wsnotebook.datasets import replacing
from wsnotebook.layout import check_finite
from wsnotebook.methods import codec
from wsnotebook.training import read_state


def compress(options: argparse.Namespace) -> int:
    """Write a network's compressed file, once it has been decoded again and found the same bit for bit."""
    state = read_state(options.model)
    if options.levels:
        state, error = rounded(state, options.levels)
        print(f"rounded weights to {options.levels} levels a tensor; the largest error is {error:.3g}")
    data = codec.encode(state, rest="float16" if options.half else "float32", mode=options.mode)
    size = sum(tensor.nbytes for tensor in state.values())
    check(state, codec.decode(data, limit=size), options.half)
    out = options.out or options.model.with_suffix(".wsn")
    with replacing(out) as part:
        part.write_bytes(data)
    print(f"wrote {out}: {len(data):,} bytes, {size / len(data):.1f} x smaller than its tensors' {size:,}")
    for line in advice(state, codec.describe(data, limit=size)):
        print(line)
    return 0


def decompress(options: argparse.Namespace) -> int:
    """Write the tensors of a compressed file as safetensors."""
    state = codec.decode(options.file.read_bytes(), limit=options.limit)
    for name, tensor in state.items():
        if name == "__metadata__" or tensor.dtype is torch.complex128:
            raise ValueError(f"{options.file}: .safetensors cannot hold a tensor called {name!r} of {tensor.dtype}")
    out = options.out or options.file.with_suffix(".safetensors")
    if out.exists() and not options.out:
        raise FileExistsError(f"{out} exists: say where to write with -o")
    with replacing(out) as part:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, part)
    print(f"wrote {out}: {len(state)} tensors, {sum(tensor.nbytes for tensor in state.values()):,} bytes")
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print what a compressed file's bytes are spent on."""
    report = codec.describe(options.file.read_bytes(), limit=options.limit)
    rows = [("tensor", "shape", "type", "non-zero", "values", "bytes", "bits each", "without context")]
    for tensor in report.tensors:
        entries = max(tensor.entries, 1)
        shape, nonzero = " x ".join(map(str, tensor.shape)) or "-", f"{100 * tensor.nonzeros / entries:.1f} %"
        spent = f"{tensor.bits / 8:,.0f}", f"{tensor.bits / entries:.2f}", f"{tensor.entropy / entries:.2f}"
        name = tensor.name if tensor.name.isprintable() else ascii(tensor.name)  # a terminal obeys some characters
        rows.append((name, shape, tensor.dtype, nonzero, str(tensor.distinct or "-"), *spent))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        print("  ".join(cells + [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]))
    print(
        f"version {report.version}, mode {report.mode}: {report.bytes:,} bytes = header {report.header:,} + integers "
        f"{report.integers:,} + mantissas {report.mantissas:,} + coded {report.stream:,}\n"
        f"{report.original:,} bytes at float32: {report.ratio:.1f} x"
    )
    return 0


def rounded(state: dict[str, Tensor], levels: int) -> tuple[dict[str, Tensor], float]:
    """Matrices and kernels at the nearest of so many levels, evenly spaced around zero, and the largest rounding error.

    Raises ValueError for a number of levels that is even, too small or too large, and for a NaN or an infinity in what
    is rounded, of which no level is the nearest.
    """
    if levels % 2 == 0 or not 3 <= levels < 4096:
        raise ValueError(f"--levels {levels}: expected an odd number from 3 to 4095: zero and as many on both sides")
    error, rounded = 0.0, dict(state)
    for name, tensor in state.items():
        if tensor.ndim > 1 and tensor.is_floating_point() and tensor.any():
            check_finite({name: tensor}, f"--levels {levels}")
            exact = tensor.double()
            largest = float(exact.abs().max())
            step = max(largest / (levels // 2), sys.float_info.min)  # a smaller one has too few digits
            levelled = ((exact / step).round() * step).clamp(-largest, largest)  # not an infinity beyond the largest
            rounded[name] = (levelled + 0.0).to(tensor.dtype)
            error = max(error, float((rounded[name].double() - exact).abs().max()))
    return rounded, error


def check(state: dict[str, Tensor], decoded: dict[str, Tensor], half: bool) -> None:
    """Raise RuntimeError when the decoded tensors are not those of the state, or with `half` those at float16."""
    for name, tensor in state.items():
        wanted = [tensor, tensor.half().to(tensor.dtype)] if half and tensor.is_floating_point() else [tensor]
        if not any(same(decoded[name], one) for one in wanted):
            raise RuntimeError(
                f"{name}: decoded to something else; nothing was written. This is an error in wsnotebook"
            )


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    alike = a.shape == b.shape and a.dtype == b.dtype
    return alike and (not a.numel() or torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b))))


def advice(state: dict[str, Tensor], report: codec.Report) -> list[str]:
    """What keeps a file large, if anything does."""
    lines = []
    if not any(tensor.distinct for tensor in report.tensors):
        lines.append("no tensor takes few values, so there is little to gain: cluster the weights, or try --levels 31")
    for name, tensor in state.items():
        zeros = tensor.is_floating_point() and int((tensor.signbit() & (tensor == 0)).sum())
        if zeros > 0.01 * tensor.numel():
            lines.append(
                f"{name}: {zeros:,} zeros are negative, and the file keeps that; add 0.0 to the tensor to drop it"
            )
    return lines

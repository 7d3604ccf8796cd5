import math
from collections import Counter

import pytest
import torch

from wsnotebook.methods import accounting


def straightforward(ids, span):
    """Row by row, symbol by symbol, as the accounting is told."""
    rows = ids.reshape(ids.shape[0], -1).tolist()
    gaps, values = [], []
    for row in rows:
        previous = 0
        for column, value in enumerate(row):
            if value:
                gap, previous = column - previous, column
                while gap > span:
                    gaps.append(span)
                    gap -= span
                gaps.append(gap)
                values.append(value)
    bits = lambda s: round(sum(n * math.log2(len(s) / n) for n in Counter(s).values()))  # noqa: E731
    return len(values), (len(rows) + 1) * max(1, math.ceil(math.log2(len(values) + 1))), bits(gaps), bits(values)


@pytest.mark.parametrize("shape", [(1, 1), (7, 400), (300, 50), (6, 5, 9, 9)])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_the_count_equals_the_count_by_hand(shape, density):
    generator = torch.Generator().manual_seed(len(shape))
    ids = torch.randint(1, 6, shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    size = accounting.paper_size("w", ids, codebook=5)
    span = 31 if len(shape) == 2 else 255
    assert (size.nonzeros, size.row_bits, size.column_bits, size.value_bits) == straightforward(ids, span)
    assert size.codebook_bits == 160
    assert size.bits == size.row_bits + size.column_bits + size.value_bits + size.codebook_bits


def test_the_published_run_adds_up():
    """The per-layer bits published for a LeNet-300-100 give its published ratio, 68.858."""
    published = [(13376, 4214, 53113, 30836, 512), (4479, 1313, 17088, 12480, 512), (721, 110, 888, 2132, 512)]
    names, weights = ("fc1", "fc2", "fc3"), (235_200, 30_000, 1_000)
    sizes = accounting.Sizes(
        tuple(accounting.LayerSize(n, w, *p) for n, w, p in zip(names, weights, published, strict=True))
    )
    assert (sizes.bits, sizes.original_bits) == (123_710, 8_518_400)
    assert sizes.ratio == pytest.approx(68.858, abs=5e-4)
    assert sizes.nonzero_percent == pytest.approx(6.98, abs=5e-3)
    for rows, (nonzeros, row_bits, *_) in zip((300, 100, 10), published, strict=True):
        ids = torch.zeros(rows, 784 if rows == 300 else 300 if rows == 100 else 100, dtype=torch.int64)
        ids.view(-1)[:nonzeros] = 1
        assert accounting.paper_size("w", ids, 16).row_bits == row_bits


def test_a_tensor_left_alone_costs_32_bits_a_weight():
    size = accounting.unquantised_size("w", 100)
    assert size.bits == 3200
    assert accounting.Sizes((size,)).ratio == 1


def test_ideal_bits_of_uniform_symbols_is_log2():
    assert accounting.ideal_bits(torch.arange(8).repeat(5).numpy()) == 40 * 3
    assert accounting.ideal_bits(torch.zeros(0).numpy()) == 0

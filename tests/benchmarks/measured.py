"""What the benchmarks share: two formulations side by side in CPU time and memory, and growth with size.

A script `bench_*.py` has `rows()`, which yields a `Row` for each pair of formulations, and where size matters
`curves()`, which yields a `Curve` each. `python tests/benchmarks/bench_codec.py` prints its rows; `make bench` runs
all of them.
"""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Action = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """The same work in its straightforward formulation and in ours. Milliseconds of CPU time are medians."""

    path: str
    what: str  # is done, how much of it
    plain_ms: float
    ours_ms: float
    ratio: float  # plain / ours, the median over turns
    quartiles: tuple[float, float]  # of the turns' ratios
    plain_mib: float | None  # memory taken at the peak, beyond what was held before
    ours_mib: float | None
    difference: float | None  # of the results; None: two recipes, which the note tells apart
    least: float | None = None  # the ratio that was promised
    most_ms: float | None = None  # the time of ours that was promised
    less_memory: float | None = None  # the ratio of memory that was promised
    note: str = ""

    @property
    def promises(self) -> dict[str, bool]:
        """What was promised, and whether it is kept."""
        kept = {}
        if self.least is not None:
            kept[f"{self.least:.3g} x"] = self.ratio >= self.least
        if self.most_ms is not None:
            kept[f"{self.most_ms:.3g} ms"] = self.ours_ms <= self.most_ms
        if self.less_memory is not None and self.plain_mib is not None:
            kept[f"{self.less_memory:.3g} x less memory"] = self.plain_mib >= self.less_memory * self.ours_mib
        return kept


@dataclass(frozen=True)
class Curve:
    """CPU milliseconds of some formulations at several sizes: {formulation: [(size, ms)]}, the straightforward last."""

    title: str
    size: str  # what the sizes count
    series: Mapping[str, Sequence[tuple[float, float]]]


def cpu_ms(action: Action) -> float:
    """CPU milliseconds of this process, all its threads, that an action takes."""
    started = time.process_time()
    action()
    return 1e3 * (time.process_time() - started)


def peak_mib(action: Action) -> float | None:
    """MiB by which the process grows at its peak during an action; None where /proc does not tell, as on a Mac."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before hides what is taken
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    action()
    return max(0.0, _status("VmHWM") - before)


def _status(key: str) -> float:
    """MiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def compared(
    path: str,
    what: str,
    plain: Action,
    ours: Action,
    *,
    difference: Callable[[], float] | None = None,
    tolerance: float = 0.0,
    repeats: int = 7,
    per: tuple[float, float] = (1, 1),
    fresh: tuple[Action, Action] | None = None,
    **told,
) -> Row:
    """Measure two formulations, in turns, since a machine's speed drifts.

    Each runs once before it is timed, in every turn: the other one's memory is then out of the caches.

    difference  of the results, asked for when both have run equally often; SystemExit above the tolerance
    repeats     turns
    per         the times are for so many units of work, in the straightforward formulation and in ours
    fresh       what memory is measured of, each with what it keeps from one time to the next; None: the actions
    told        the other fields of the Row
    """
    turns = []
    for _ in range(repeats):
        turns.append([])
        for action, units in zip((plain, ours), per, strict=True):
            action()
            turns[-1].append(cpu_ms(action) / units)
    memory = [peak_mib(action) for action in fresh or (plain, ours)]
    error = difference and float(difference())
    if error is not None and not error <= tolerance:
        sys.exit(f"{path}, {what}: the results differ by {error:.1e}, more than {tolerance:.1e}")
    times = [statistics.median(times) for times in zip(*turns, strict=True)]
    low, ratio, high = np.quantile([a / b for a, b in turns], (0.25, 0.5, 0.75)).tolist()
    return Row(path, what, *times, ratio, (low, high), *memory, error, **told)


def curve(
    title: str, size: str, sizes: Sequence[int], makers: Mapping[str, Callable[[int], Action]], most=(), per=()
) -> Curve:
    """The median of three times at each size, after one to warm up.

    most  a formulation's largest size, by name
    per   units of work that its times are for, by name
    """
    series = {name: [] for name in makers}
    for n in sizes:
        for name, make in makers.items():
            if n <= dict(most).get(name, n):
                action = make(n)
                action()
                series[name].append((n, statistics.median(cpu_ms(action) for _ in range(3)) / dict(per).get(name, 1)))
    return Curve(title, size, series)


def exponent(points: Iterable[tuple[float, float]]) -> float:
    """b of the power law a x^b that is nearest in logarithms to positive points (x, y)."""
    x, y = np.log(np.array(list(points), dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def line(row: Row) -> str:
    """A row as text for a terminal."""
    memory = " ".join("     -" if mib is None else f"{mib:6.0f}" for mib in (row.plain_mib, row.ours_mib))
    error = "other recipe" if row.difference is None else f"{row.difference:.0e}"
    promises = ", ".join(f"{text} {'kept' if kept else 'MISSED'}" for text, kept in row.promises.items())
    what = f"{row.path}: {row.what}"
    return f"{what:<84}{row.plain_ms:>11.3f}{row.ours_ms:>11.4f}{row.ratio:>8.2f} x {memory}  {error:<13}{promises}"


def told(rows: Iterator[Row]) -> list[Row]:
    """Print rows as they come, by one thread, and return them."""
    torch.set_num_threads(1)
    columns = f"{'plain':>11}{'ours':>11}{'ratio':>10} {'MiB':>6} {'ours':>6}  difference"
    print(f"{'CPU ms, medians; MiB at the peak':<84}{columns}")
    found = []
    for each in rows:
        print(line(each), flush=True)
        found.append(each)
    return found

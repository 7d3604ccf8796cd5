"""Damaged files by the thousand, for every parser: `python -W error tests/fuzzing.py FOLDER`, a process of its own.

Each case ends in a value that keeps its parser's laws, or in the errors that its docstring names; anything else, more
than DEADLINE seconds of CPU, or more memory than CAP tells is a failure. Prints {parser: Outcome} as JSON. Cases depend
on the parser's name and their number alone. Memory is the kernel's own high-water mark of the process, so that torch's,
numpy's and safetensors' allocations all count; what is asked for and never touched is stopped at MORE.
"""

import dataclasses
import json
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fuzzed_parsers import codecs, tables, texts, weights
from PIL import Image

CAP = 8 << 20, 32  # bytes, and bytes more for each byte of the file: resident memory that a case may add
MORE = 1 << 30  # bytes of address space that any case may add
DEADLINE = 10.0  # seconds of CPU


class Hung(BaseException):
    """A case took too long; no parser catches this."""


@dataclasses.dataclass
class Outcome:
    cases: int = 0
    refused: int = 0
    cpu_seconds: float = 0.0
    most: int = 0  # bytes that a case added
    failures: list[str] = dataclasses.field(default_factory=list)


def memory(name: str) -> int:
    """Bytes that the kernel counts of this process: VmRSS, VmHWM or VmSize."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(name))


@contextmanager
def within(size: int) -> Iterator[None]:
    """Raises AssertionError when the block adds more to the process's memory than so many bytes."""
    watch = Path("/proc/self/clear_refs")
    if not watch.exists():  # not Linux
        yield
        return
    watch.write_text("5")
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before <= size


def run(name, cases, make, parse, told, watch) -> Outcome:
    """All cases of one parser."""
    outcome, began = Outcome(cases), time.process_time()
    for number in range(cases):
        data = make(random.Random(f"{name} {number}"))
        watch.write("5")  # the high-water mark is what is resident
        watch.flush()
        before, how = memory("VmRSS"), None
        signal.setitimer(signal.ITIMER_PROF, DEADLINE)
        try:
            parse(data)
        except told as error:
            outcome.refused += 1
            if not str(error):
                how = "an error without words"
        except BaseException as error:
            how = f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        added = memory("VmHWM") - before
        outcome.most = max(outcome.most, added)
        if added > CAP[0] + CAP[1] * len(data):
            how = f"{added:,} bytes of memory for a file of {len(data):,}; then {how}"
        if how:
            outcome.failures.append(f"case {number}: {how[:300]}; {data[:400]!r}")
    outcome.cpu_seconds = round(time.process_time() - began, 2)
    return outcome


def hung(*_):
    raise Hung(f"more than {DEADLINE} seconds of CPU")


def main(folder: Path) -> None:
    signal.signal(signal.SIGPROF, hung)
    torch.set_num_threads(1)
    Image.MAX_IMAGE_PIXELS = 1 << 18  # pillow's own cap, which is for pictures of real size
    torch.manual_seed(0)
    parsers = [*codecs(), *weights(folder), *tables(folder), *texts(folder)]
    size = memory("VmSize") + MORE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    with open("/proc/self/clear_refs", "w") as watch:
        outcomes = {parser[0]: dataclasses.asdict(run(*parser, watch)) for parser in parsers}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

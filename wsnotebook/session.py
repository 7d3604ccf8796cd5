"""What a notebook's first cell calls: seeds, threads, device and style in one place, and the facts of the machine.

This is the one module that sets global state, because it is called at a notebook's edge: a session is a whole process.
"""

import dataclasses
import multiprocessing
import os
import platform
import random
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure

from wsnotebook.figures import SCALES
from wsnotebook.plots.common import compact_png, in_words
from wsnotebook.processes import end_with_parent


@dataclasses.dataclass(frozen=True)
class Session:
    """What a notebook runs under; `figures.save` writes it beside every figure."""

    notebook: str  # its file's name without the suffix, such as 01_soft_weight_sharing
    scale: str  # quick | laptop | paper
    seed: int
    device: torch.device
    parameters: dict[str, Any]  # the others of the notebook's parameters, as they were given


def start(
    notebook: str,
    *,
    scale: str = "quick",
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    processes: int = 1,
    counts: Sequence[str] = (),
    choices: Mapping[str, Collection[str]] | None = None,
    several: Mapping[str, Collection[str]] | None = None,
    fields: Mapping[str, type] | None = None,
    **parameters,
) -> Session:
    """Begin the notebook named `notebook`: seed Python, NumPy and torch, limit torch to `threads`, set the style.

    The same seed, device and number of threads give the same numbers. `device` is torch's name for one, such as "cpu",
    "cuda" or "mps". The further `parameters` are kept for the record. Some are looked at before anything runs: `counts`
    names those that are a number of something (0: the scale's own), `choices` has the names of which one holds one
    (empty: the scale's own), `several` those of which it holds a list, or a dict by them, and `fields` the Config whose
    fields it sets, {name: value}. `processes` is for `executor`. In Jupyter a Figure that ends a cell is drawn, without
    pyplot; on Colab the widget manager is switched on.

    Raises ValueError for an unknown scale, a device that is not there, a bad name, seed or number, and for parameters
    that are not what they should be.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", notebook):
        raise ValueError(
            f"notebook={notebook!r}: expected the file's name without .ipynb, such as '01_soft_weight_sharing'"
        )
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r}: expected one of {', '.join(SCALES)}")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: expected an integer from 0 to 2**32 - 1")
    _check_number("threads", threads, 1)
    _check_number("processes", processes, 1)
    for name in counts:
        _check_number(name, parameters[name], 0)
    for name, known in (choices or {}).items():
        _check_choice(name, parameters[name], known)
    for name, known in (several or {}).items():
        _check_several(name, parameters[name], known)
    for name, config in (fields or {}).items():
        _check_fields(name, parameters[name], config)
    session = Session(notebook, scale, seed, _device(device), parameters)
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    matplotlib.style.use(Path(__file__).with_name("style.mplstyle"))
    _show_figures()
    if "google.colab" in sys.modules:
        from google.colab import output

        output.enable_custom_widget_manager()
    return session


def executor(processes: int, threads: int = 1):
    """Context of an executor that runs seeds side by side, with so many torch threads each; of None for one process.

    Where WSNOTEBOOK_SCHEDULER has the address of a Dask scheduler (`wsnotebook run --scheduler`), its workers run them.
    """
    _check_number("processes", processes, 1)
    if address := os.environ.get("WSNOTEBOOK_SCHEDULER"):
        from wsnotebook import cluster

        return cluster.connect(address)
    if processes == 1:
        return nullcontext()
    spawn = multiprocessing.get_context("spawn")  # torch does not survive a fork
    return ProcessPoolExecutor(processes, spawn, initializer=_begin_worker, initargs=(threads,))


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    end_with_parent()


def machine() -> dict[str, Any]:
    """The facts that decide what runs here and how fast: versions, CPU cores, memory (GiB), threads and devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = ["cpu"]
    devices += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "devices": devices,
    }


def _check_number(name: str, value: Any, low: int) -> None:
    if type(value) is not int or value < low:  # True is an int as well
        raise ValueError(f"{name}={value!r}: expected an integer of at least {low}")


def _check_choice(name: str, value: Any, known: Collection[str]) -> None:
    if not isinstance(value, str) or value not in ("", *known):
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")


def _check_several(name: str, value: Any, known: Collection[str]) -> None:
    if not isinstance(value, list | tuple | dict) or any(one not in [*known] for one in value):
        raise ValueError(f"{name}={value!r}: expected a list of some of {', '.join(known)}, or a dict by them")


def _check_fields(name: str, value: Any, config: type) -> None:
    known = [field.name for field in dataclasses.fields(config)]
    if not isinstance(value, dict) or not set(value) <= set(known):
        owner = f"{config.__module__.rpartition('.')[2]}.{config.__name__}"
        raise ValueError(f"{name}={value!r}: expected {{field: value}}, and {owner} has {', '.join(known)}")


def _device(name: str) -> torch.device:
    """torch's device `name`, if this machine has it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        known = ", ".join(machine()["devices"])
        raise ValueError(f"device={name!r} is not to be had here; this machine has {known}") from error
    return device


def _show_figures() -> None:
    """In IPython, let a Figure that ends a cell be drawn; matplotlib itself does so only once pyplot is imported."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        formatters = shell.display_formatter.formatters
        formatters["image/png"].for_type(Figure, _png)
        formatters["text/plain"].for_type(Figure, lambda figure, printer, cycle: printer.text(in_words(figure)))


def _png(figure: Figure) -> tuple[bytes, dict[str, int | str]]:
    """`figure` as a PNG, at a size in pixels that keeps it sharp on dense screens, and its text for the blind."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return compact_png(figure), {"width": width, "height": height, "alt": in_words(figure)}


def _memory() -> float | None:
    """The machine's memory in GiB; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None

"""Save a figure with where it came from: PNG, SVG and a JSON file of facts, the same bytes every time.

The files go to `<root>/<scale>/<notebook>/<name>.{png,svg,json}`. The root is WSNOTEBOOK_FIGURES, or `figures` in the
checkout that the working directory lies in, or `./figures`. The same inputs and versions give the same bytes, so git
sees a changed figure only where something changed; hence neither time, machine nor commit is written.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

SCALES = ("quick", "laptop", "paper")
"""The presets that a notebook can run at; a figure lies in the folder of its scale."""


def save(
    figure: Figure | None, name: str, session, *, dataset=None, config: Any = None, metrics: Mapping | None = None
) -> Path:
    """Write `<name>.png`, `.svg` and `.json` to `folder(session)` and return the PNG's path.

    figure   a matplotlib Figure; None for a table, which has only the JSON (whose path is then returned)
    name     of small letters, digits and _
    session  what `session.start` returned
    dataset  the Dataset behind the numbers. One that is not official is named so in the picture's corner
    config   the method's Config, or {name: Config}
    metrics  {name: number, text, list or dict}; tensors and arrays become lists

    A failure leaves the earlier files as they were. Raises ValueError for a bad name and for values that JSON cannot
    hold (NaN and infinity too), OSError for a folder that cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"name={name!r}: a figure's name has only small letters, digits and _, such as 'sizes'")
    data = None if dataset is None else {fact: getattr(dataset, fact) for fact in ("name", "checksum", "official")}
    source = {
        "notebook": session.notebook,
        "figure": name,
        "scale": session.scale,
        "seed": session.seed,
        "device": str(session.device),
        "parameters": _plain(session.parameters, "parameters"),
        "dataset": data,
    }
    facts = source | {
        "config": _plain(config, "config"),
        "metrics": _plain({} if metrics is None else metrics, "metrics"),
        "versions": _versions(),
    }
    pictures = {} if figure is None else _draw(figure, json.dumps(source, sort_keys=True), dataset)
    facts["sha256"] = {kind: hashlib.sha256(data).hexdigest() for kind, data in pictures.items()}
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    files = {folder(session) / f"{name}.{kind}": data for kind, data in (pictures | {"json": text.encode()}).items()}
    try:
        write(files)
    except OSError as error:
        raise type(error)(f"{error}: set WSNOTEBOOK_FIGURES to it") from error
    return next(iter(files))


def folder(session) -> Path:
    """Where the figures of `session`, a value of `session.start`, are kept: `<root>/<scale>/<notebook>[/<preset>]`."""
    return root() / session.scale / session.notebook / session.parameters.get("preset", "")


def root() -> Path:
    """The folder of all figures: WSNOTEBOOK_FIGURES, else `figures` in the checkout around us, else `./figures`."""
    if os.environ.get("WSNOTEBOOK_FIGURES"):
        return Path(os.environ["WSNOTEBOOK_FIGURES"])
    return (checkout(Path.cwd()) or Path.cwd()) / "figures"


def run_folder(session) -> Path:
    """Where `session` keeps its runs' files: `<WSNOTEBOOK_RUNS>/<notebook>[/<preset>]`, else in `runs/<scale>` here."""
    named = os.environ.get("WSNOTEBOOK_RUNS")
    folder = Path(named) if named else (checkout(Path.cwd()) or Path.cwd()) / "runs" / session.scale
    return folder / session.notebook / session.parameters.get("preset", "")


def absolute_folders() -> dict[str, str]:
    """Our variables that name folders, made absolute: a kernel or a worker works in another one than we."""
    named = {name: os.environ[name] for name in ("WSNOTEBOOK_DATA", "WSNOTEBOOK_CACHE") if os.environ.get(name)}
    return {
        name: os.pathsep.join(os.path.abspath(part) for part in value.split(os.pathsep))
        for name, value in named.items()
    }


def checkout(path: Path) -> Path | None:
    """The nearest folder at or above `path` whose pyproject.toml is wsnotebook's; None outside a checkout."""
    for candidate in (path, *path.parents):
        project = candidate / "pyproject.toml"
        if project.is_file() and 'name = "wsnotebook"' in project.read_text(encoding="utf-8").splitlines():
            return candidate
    return None


def write(files: Mapping[Path, bytes]) -> None:
    """Write all `files`, {path: content}, or leave what was there: temporary names first, then renamed in order."""
    from wsnotebook.datasets import replacing  # brings torch, which `wsnotebook list` does not wait for

    with ExitStack() as renamed:
        for path in reversed(files):
            renamed.enter_context(replacing(path)).write_bytes(files[path])


def _draw(figure: Figure, description: str, dataset) -> dict[str, bytes]:
    """`figure` as PNG and SVG that carry `description`, without the time, the program's version and random ids."""
    metadata = {
        "png": {"Software": None, "Description": description},
        "svg": {"Date": None, "Creator": None, "Description": description},
    }
    pictures = {kind: io.BytesIO() for kind in metadata}
    style = {"svg.hashsalt": "wsnotebook", "savefig.bbox": None}  # not the caller's
    with matplotlib.rc_context(style), _noted(figure, dataset):
        for kind, buffer in pictures.items():
            figure.savefig(buffer, format=kind, dpi="figure", metadata=metadata[kind])
    return {kind: buffer.getvalue() for kind, buffer in pictures.items()}


def _versions() -> dict[str, str]:
    """The versions that decide a figure's bytes."""
    packages = ("wsnotebook", "torch", "numpy", "matplotlib")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


@contextmanager
def _noted(figure: Figure, dataset) -> Iterator[None]:
    """`figure` with the data set's label in its corner while it is saved, if the label says more than the name."""
    if dataset is None or dataset.label == dataset.name:
        yield
        return
    note = figure.text(0.995, 0.005, dataset.label, ha="right", va="bottom", fontsize=6, color="0.4")
    engine = figure.get_layout_engine()
    room = engine.get().get("rect") if engine else None
    # a legend outside stands at the figure's edge whatever the layout leaves, and what it keeps off that is its pad
    below = {
        legend: legend.borderaxespad for legend in figure.legends if getattr(legend, "_outside_loc", "") == "lower"
    }
    if room:  # a layout that can leave the note its line, of 0.12 inches
        line = 0.12 / figure.get_figheight()
        engine.set(rect=(0, line, 1, 1 - line))
        for legend in below:
            legend.borderaxespad += 0.12 * 72 / legend.prop.get_size_in_points()
    try:
        yield
    finally:
        note.remove()
        if room:
            engine.set(rect=room)
            for legend, pad in below.items():
                legend.borderaxespad = pad


def _plain(value: Any, where: str) -> Any:
    """`value` as what JSON holds: dataclasses as dicts, tuples, arrays and tensors as lists; `where` is for errors."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: JSON holds finite numbers only; leave it out, or give None")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: keys must be text")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "tolist"):  # a tensor, an array, or a NumPy number
        return _plain(value.tolist(), where)
    raise ValueError(
        f"{where} is a {type(value).__name__}: expected numbers, text, lists, dicts, tensors or dataclasses"
    )

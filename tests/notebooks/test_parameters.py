"""A parameter that cannot be right ends a notebook with one clear error, before it reads or computes anything."""

import functools
import re
from pathlib import Path

import matplotlib
import nbformat
import pytest

from wsnotebook import cornn, datasets, figures, runs

PATHS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
NONSENSE = {"nonsense": 1}  # no Config has such a field
WRONG = {
    "scale": ["huge", 3],
    "seed": [-1, "zero"],
    "device": ["abacus"],
    "seeds": ["three", -1],
    "n": ["many", -1],
    "flow_seeds": [-1],
    "trials": [2.5],
    "processes": [0],
    "overrides": [NONSENSE, "nonsense"],
    "search_overrides": [NONSENSE],
    "changes": [NONSENSE],
    "training": [NONSENSE],
    "target": [NONSENSE],
    "preset": ["nonsense"],
    "experiment": ["nonsense"],
    "recipe": ["nonsense"],
    "settings": ["nonsense"],
    "sampler": ["nonsense"],
    "stages": [["pretrain", "nonsense"]],
    "functions": [["sphere", "nonsense"], 3],
    "networks": [["nonsense"]],
    "architectures": [["nonsense"]],
}
CASES = [
    pytest.param(path, name, value, scale, id=f"{path.stem}-{name}-{value}-{scale}")
    for path in PATHS
    for name in runs.read(path).parameters.keys() & WRONG
    for value in WRONG[name]
    for scale in figures.SCALES
]


@functools.cache
def code(path):
    """The notebook's cells to run, with their tags; Colab's guard is left out."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [(cell.source, cell.metadata.get("tags", [])) for cell in cells if "google.colab" not in cell.source]


def start(path, **given):
    """Run the notebook's cells in order, `given` in place of its parameters."""
    values = {}
    for source, tags in code(path):
        exec(source, values)
        if "parameters" in tags:
            values |= given


@pytest.mark.parametrize(("path", "name", "value", "scale"), sorted(CASES, key=lambda case: case.id))
def test_a_wrong_parameter_is_told_at_once(path, name, value, scale, monkeypatch):
    def reached(*arguments, **options):
        raise AssertionError(f"data were read before {name} was looked at")

    for module, function in ((datasets, "load"), (cornn, "table")):  # with which all computing begins
        monkeypatch.setattr(module, function, reached)
    told = re.escape("nonsense" if "nonsense" in str(value) else repr(value))
    with matplotlib.rc_context(), pytest.raises(ValueError, match=told):
        start(path, **{"scale": scale, name: value})

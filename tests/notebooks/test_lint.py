"""The committed notebooks keep the house rules: outputs and counts in order, nothing of the run or machine in them."""

import re
from pathlib import Path

import nbformat
import pytest

from wsnotebook import runs

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
BADGE = "https://colab.research.google.com/github/wsnotebook/wsnotebook/blob/main/notebooks/{file}"
METHODS = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name >= "01"]


@pytest.fixture(params=sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def text(notebook):
    """What is written in it, pictures left out."""
    parts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        parts.append(output.get("text", ""))
        parts += [str(data) for kind, data in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(parts)


def test_it_is_valid_numbered_and_small(path, notebook):
    nbformat.validate(notebook)
    assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)
    assert path.stat().st_size < 1_000_000


def test_it_was_run_from_top_to_bottom_without_error(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert [output.ename for output in outputs(notebook) if output.output_type == "error"] == []
    assert outputs(notebook), "no outputs are kept: run wsnotebook refresh"


def test_stripping_changes_nothing(notebook):
    assert runs.strip(notebook) == notebook, "run wsnotebook refresh"
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert "papermill" not in str(notebook.metadata)


def test_cell_ids_are_unique(notebook):
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_no_path_of_a_machine_is_in_it(notebook):
    assert re.findall(r"/(?:home|work|tmp|root|Users)/\S*", text(notebook)) == []


def test_parameters_are_literals_in_one_cell(path, notebook):
    (cell,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    parameters = runs.literals(cell.source, path)
    assert parameters["scale"] == "quick"
    assert parameters.get("overrides", {}) == {}


def test_it_begins_with_title_promise_and_its_own_badge(path, notebook):
    assert notebook.cells[0].cell_type == "markdown"
    told = runs.read(path)
    assert notebook.cells[0].source.startswith("# ")
    assert told.promise
    assert re.findall(r"https://colab\.research\.google\.com/github/[^\s)]+", text(notebook)) == [
        BADGE.format(file=path.name)
    ]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_it_ends_with_what_to_doubt(path, notebook):
    markdown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall(r"^#+ +(.+)$", markdown, re.MULTILINE)[-1] == "What to doubt"


def test_cells_are_short(notebook):
    assert [cell.source for cell in code(notebook) if len(cell.source.splitlines()) > 18] == []

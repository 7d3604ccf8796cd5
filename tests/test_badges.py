"""Badges and guard cells follow pyproject.toml, nothing else in a notebook changes, and what guards bring is enough."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wsnotebook import badges, cli

pytest.importorskip("tomllib")
ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = "https://github.com/somebody/elsewhere"


@pytest.fixture
def checkout(tmp_path):
    """A copy of what badges are made from; its package is the real one."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "wsnotebook").symlink_to(ROOT / "wsnotebook")
    return tmp_path


def move(checkout):
    """Let its pyproject.toml name another address and ref."""
    project = checkout / "pyproject.toml"
    text = project.read_text(encoding="utf-8").replace("https://github.com/wsnotebook/wsnotebook", ADDRESS)
    project.write_text(text.replace('ref = "main"', 'ref = "v9"'), encoding="utf-8")


def guard(path):
    """Where the guard cell of a notebook is, and its lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    ((place, cell),) = [(k, cell) for k, cell in enumerate(cells) if badges.GUARD in cell["source"]]
    return place, [line.strip() for line in cell["source"]]


def test_the_committed_notebooks_are_up_to_date(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(["badges", "--check"]) == 0, capsys.readouterr().out


def test_another_address_is_brought_into_every_notebook_and_back_byte_for_byte(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    paths = sorted((checkout / "notebooks").glob("*.ipynb"))
    badges.rewrite(paths)
    before, original = [path.read_bytes() for path in paths], (checkout / "pyproject.toml").read_text()
    move(checkout)
    assert cli.main(["badges", "--check"]) == 1
    assert capsys.readouterr().out.count("not up to date: notebooks/") == len(paths)
    assert [path.read_bytes() for path in paths] == before
    assert cli.main(["badges"]) == 0
    assert cli.main(["badges", "--check"]) == 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert f"https://colab.research.google.com/github/somebody/elsewhere/blob/v9/notebooks/{path.name}" in text
        assert guard(path)[1][3] == f'%pip install -q --no-deps "git+{ADDRESS}@v9"'
        assert "wsnotebook/wsnotebook" not in text
    (checkout / "pyproject.toml").write_text(original)
    assert len(badges.rewrite(paths)) == len(paths)
    assert [path.read_bytes() for path in paths] == before


def test_a_list_follows_the_imports_and_other_lines_stay(checkout):
    path = checkout / "notebooks" / "01_x.ipynb"
    badge = "[![x](y)](https://colab.research.google.com/github/a/b/blob/c/notebooks/d.ipynb)"
    old = ["import sys\n", "\n", badges.GUARD, "    %pip install -q anything"]
    code = ["import torch, optuna\n", "from wsnotebook.methods import codec\n", "def f():\n", "    import torchdiffeq"]
    kinds = {"markdown": [badge], "code": old, "raw": code}
    cells = [{"cell_type": kind.replace("raw", "code"), "source": source} for kind, source in kinds.items()]
    path.write_text(json.dumps({"cells": cells}, indent=3) + "\n\n")  # not the layout of nbformat
    before = kept(path)
    assert badges.rewrite([path]) == [path]
    assert guard(path)[1][4] == '%pip install -q "constriction>=0.4" "optuna>=4.0"'
    assert kept(path) == before
    assert badges.rewrite([path]) == []
    path.write_text(path.read_text().replace("constriction", "nothing"))
    assert badges.rewrite([path], write=False) == [path]


def kept(path):
    """The lines of a notebook's file that are no business of ours."""
    return [line for line in path.read_text().splitlines() if "%pip" not in line and "colab.research" not in line]


@pytest.mark.parametrize("cells", [[], [{"cell_type": "code", "source": [badges.GUARD]}]])
def test_a_notebook_without_badge_or_guard_is_told(checkout, cells):
    path = checkout / "notebooks" / "01_x.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    with pytest.raises(ValueError, match=r"01_x.ipynb: expected one Colab badge and one guard cell"):
        badges.rewrite([path])


def test_outside_a_checkout_there_is_no_address(tmp_path):
    path = tmp_path / "01_x.ipynb"
    path.write_text("{}")
    with pytest.raises(FileNotFoundError, match="in no checkout"):
        badges.rewrite([path])


WITHOUT = """\
import sys
for name in {absent}:
    sys.modules[name] = None
{code}"""


@pytest.mark.parametrize("brought", sorted({tuple(guard(path)[1][4:]) for path in PATHS}))
def test_what_colab_has_and_the_guard_brings_is_enough_to_import(brought):
    """Of the notebooks with one guard: all imports, without what Colab lacks and the guard does not bring."""
    absent = [name for name in ("constriction", "optuna", "plotly", "torchdiffeq") if name not in "".join(brought)]
    imports = []
    for path in PATHS:
        place, lines = guard(path)
        if tuple(lines[4:]) == brought:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"][place + 1 :]
            code = "".join(line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"])
            imports += re.findall(r"^(?:import|from) .*?(?:\([^)]*\))?$", code, re.MULTILINE)
    absent.append("numba")  # Colab has it; compiling takes a while
    code = WITHOUT.format(absent=absent, code="\n".join(imports))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr

"""How Colab finds a notebook and what it lacks: the badge and the guard cell, written by `wsnotebook badges`.

The address, the ref and the requirements stand in pyproject.toml alone. Colab has most of what is required, in versions
of its own choice, and pip must leave its torch alone: the package comes without dependencies, and of these come only
those that the notebook's imports need and Colab has not, or has too old.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from wsnotebook import figures

COLAB = {  # github.com/googlecolab/backend-info, pip-freeze.gpu.txt of June 2026; what is not here is not there
    "anywidget": "0.9.21",
    "ipywidgets": "7.7.1",
    "matplotlib": "3.10.0",
    "numba": "0.60.0",
    "numpy": "2.0.2",
    "pillow": "11.3.0",
    "plotly": "5.24.1",
    "pooch": "1.9.0",
    "safetensors": "0.7.0",
    "scikit-learn": "1.6.1",
    "scipy": "1.16.3",
    "torch": "2.11.0",
    "tqdm": "4.67.3",
}
BRINGS = {
    "PIL": ["pillow"],
    "plotly": ["plotly", "anywidget"],
    "sklearn": ["scikit-learn"],
}  # others: their module's name

BADGE = re.compile(r"https://colab\.research\.google\.com/github/[^\s)\"\\]+")
GUARD = 'if "google.colab" in sys.modules:\n'


def rewrite(paths: Sequence[Path], write: bool = True) -> list[Path]:
    """Bring badge and guard cell of the notebooks at `paths` up to date; the paths of those that were not.

    Nothing else in a file changes, byte for byte. Raises ValueError for a notebook that has not one badge and one guard
    cell, FileNotFoundError for one outside a checkout.
    """
    changed = []
    for path in paths:
        before = path.read_text(encoding="utf-8")
        after = _rewritten(before, path)
        if after != before:
            changed.append(path)
            if write:
                figures.write({path: after.encode()})
    return changed


def repository(home: Path) -> tuple[str, str]:
    """The address, https://github.com/owner/name, and the ref, a branch or tag, that the checkout `home` names."""
    project = _project(home)
    return project["project"]["urls"]["Repository"].rstrip("/"), project["tool"]["wsnotebook"]["ref"]


def lacking(code: str, home: Path) -> list[str]:
    """The requirements of the checkout `home` that Colab lacks and the imports of `code` need."""
    project = _project(home)["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    reached = {name for module in _reached(code, home) for name in BRINGS.get(module, [module])}
    wanted = [requirement for requirement in map(Requirement, lines) if requirement.name in reached]
    return sorted(str(one) for one in wanted if one.name not in COLAB or COLAB[one.name] not in one.specifier)


def _rewritten(text: str, path: Path) -> str:
    home = figures.checkout(path.resolve().parent)
    if home is None:
        raise FileNotFoundError(f"{path} lies in no checkout of wsnotebook, whose pyproject.toml has the address")
    address, ref = repository(home)
    sources = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    guards = [source for source in sources if GUARD in source]
    if len(BADGE.findall(text)) != 1 or len(guards) != 1:
        raise ValueError(f"{path}: expected one Colab badge and one guard cell with the line {GUARD.strip()!r}")
    place = address.removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{place}/blob/{ref}/notebooks/{path.name}"
    missing = lacking("\n".join("".join(source) for source in sources if source is not guards[0]), home)
    guard = ["import sys\n", "\n", GUARD, f'    %pip install -q --no-deps "git+{address}@{ref}"']
    if missing:
        guard[-1] += "\n"
        guard.append("    %pip install -q " + " ".join(f'"{requirement}"' for requirement in missing))
    return _replaced(BADGE.sub(badge, text), guards[0], guard)


def _replaced(text: str, old: list[str], new: list[str]) -> str:
    """JSON `text` with the list of strings `old` replaced, in the layout that it has."""
    pattern = r",(\s*)".join(re.escape(json.dumps(line)) for line in old)
    return re.sub(pattern, lambda found: f",{found[1]}".join(map(json.dumps, new)), text, count=1)


def _reached(code: str, home: Path) -> set[str]:
    """The top-level modules that are imported together with what `code` imports of wsnotebook, there or in functions.

    What a function imports of somebody else is no part of it: it says itself what is missing.
    """
    ahead, seen, modules = _imported(code), set(), set()
    while ahead:
        first, *rest = ahead.pop().split(".")
        modules.add(first)
        for k in range(len(rest) + 1) if first == "wsnotebook" else ():
            module = home.joinpath(first, *rest[:k])
            for file in {module.with_suffix(".py"), module / "__init__.py"} - seen:
                seen.add(file)
                ahead |= _imports(file)
    return modules


@cache
def _imports(file: Path) -> frozenset[str]:
    return frozenset(_imported(file.read_text(encoding="utf-8")) if file.is_file() else ())


def _imported(code: str) -> set[str]:
    """Dotted names of what a piece of code imports, and of what its functions import of wsnotebook."""
    tree = ast.parse(code)
    return _names(_outside_functions(tree)) | {name for name in _names(ast.walk(tree)) if name.startswith("wsnotebook")}


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _project(home: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading pyproject.toml needs Python 3.11 or later") from error
    return tomllib.loads((home / "pyproject.toml").read_text(encoding="utf-8"))

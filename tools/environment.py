"""Print environment.yml: the requirements' names come from pyproject.toml, their versions from constraints.txt.

`make environment.yml` writes the file, and a test compares it with what this prints. The conda part is minimal;
everything else stands in one pip block, which takes the CPU build of torch and pins the rest through constraints.txt.
"""

import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent


def key(requirement: str) -> str:
    """The normalised name (PEP 503) that a requirement begins with: `Jupyter_Core>=5` -> `jupyter-core`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def main() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {key(line): line for line in lines if not line.startswith("#")}
    pip = [
        "--extra-index-url https://download.pytorch.org/whl/cpu",
        "-c constraints.txt",
        *sorted(pins[name] for name in {key(requirement) for requirement in wanted}),
        "-e .",
    ]
    head = ["# Generated from pyproject.toml and constraints.txt by `make environment.yml`: do not edit."]
    head += ["name: wsnotebook", "channels:", "  - conda-forge", "dependencies:", "  - python=3.11.*", "  - pip"]
    return "\n".join([*head, "  - pip:", *(f"    - {line}" for line in pip)])


if __name__ == "__main__":
    print(main())

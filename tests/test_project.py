"""The files that describe the project agree: pyproject.toml's ranges, the pins, environment.yml, what is installed."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import wsnotebook

tomllib = pytest.importorskip("tomllib")
ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
WANTED = [Requirement(line) for line in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def pinned(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is no exact pin"
    return specifier.version


def pip_lines():
    (block,) = [line["pip"] for line in ENVIRONMENT["dependencies"] if isinstance(line, dict)]
    return block


def test_every_pin_is_exact_named_once_and_sorted():
    names = [canonicalize_name(pin.name) for pin in PINS]
    assert len(set(names)) == len(names)
    assert [pin.name.lower() for pin in PINS] == sorted(pin.name.lower() for pin in PINS)
    for pin in PINS:
        assert not Version(pinned(pin)).local, f"{pin}: a local version cannot be had from the package index"


def test_every_requirement_has_a_pin_within_its_range():
    pins = {canonicalize_name(pin.name): pinned(pin) for pin in PINS}
    for requirement in WANTED:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
        assert all(specifier.operator == ">=" for specifier in requirement.specifier), f"{requirement}: ranges only"


def test_what_is_installed_is_what_is_pinned():
    for pin in PINS:
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
        assert pin.specifier.contains(installed), f"{pin.name} {installed} is installed, {pin} is pinned"


def test_environment_is_what_the_generator_prints():
    made = subprocess.run([sys.executable, ROOT / "tools/environment.py"], capture_output=True, text=True, check=True)
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert text == made.stdout, "environment.yml is stale: run make environment.yml"


def test_environment_conda_part_is_python_and_pip():
    assert set(ENVIRONMENT) == {"name", "channels", "dependencies"}
    python, pip, block = ENVIRONMENT["dependencies"]
    assert (pip, set(block)) == ("pip", {"pip"})
    name, series = re.fullmatch(r"(\w+)=(\d+\.\d+)\.\*", python).groups()
    assert name == "python"
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(series)


def test_environment_pip_part_pins_every_requirement_and_brings_the_rest_by_constraints():
    options = [line for line in pip_lines() if line.startswith("-")]
    assert {"-c constraints.txt", "-e ."} < set(options)
    given = {str(Requirement(line)) for line in pip_lines() if line not in options}
    wanted = {canonicalize_name(requirement.name) for requirement in WANTED}
    assert given == {str(pin) for pin in PINS if canonicalize_name(pin.name) in wanted}


def test_version_is_told_once():
    assert wsnotebook.__version__ == PROJECT["version"] == version("wsnotebook")


@pytest.mark.parametrize("target", ["figures", "test", "test-browser", "lab", "bench", "check", "format"])
def test_make_has_the_target_and_prepares_the_environment_first(target):
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    prepared = shown.stdout.index("pip install -q --no-compile -c constraints.txt")
    assert shown.stdout.index("--no-deps") < prepared, "torch comes first and alone"
    assert ".venv/bin/" in shown.stdout[prepared:]


def test_help_lists_every_target_that_is_no_file():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = {line.split()[1] for line in shown.splitlines()}
    assert listed == {*phony, "environment.yml"}

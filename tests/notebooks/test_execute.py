"""The notebooks run: headless at the quick scale with their figures, and as committed, with the outputs they show."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsnotebook import runs

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = [
    pytest.mark.notebooks,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS]),
]


def test_it_runs_headless_and_saves_its_figures(path, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(cache))
    (run,) = runs.execute([runs.read(path)], {"scale": "quick"}, copies=tmp_path, pictures=tmp_path / "figures")
    assert run.error is None
    folder = tmp_path / "figures" / "quick" / path.stem
    facts = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")}
    pictures = {file.stem for kind in ("png", "svg") for file in folder.glob(f"*.{kind}")}
    assert pictures == {name for name, fact in facts.items() if fact["sha256"]}
    assert pictures or path.name < "01", "a method's notebook saves figures"
    for name, fact in facts.items():
        assert (fact["notebook"], fact["figure"], fact["scale"]) == (path.stem, name, "quick")
        for kind, checksum in fact["sha256"].items():
            assert hashlib.sha256((folder / f"{name}.{kind}").read_bytes()).hexdigest() == checksum


def test_it_runs_as_committed_and_prints_what_it_shows(path, cache, tmp_path):
    folders = {"WSNOTEBOOK_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    folders |= {"WSNOTEBOOK_FIGURES": str(tmp_path), "WSNOTEBOOK_RUNS": str(tmp_path / "runs")}
    options = [
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=120",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore",
    ]
    quiet = {"QT_API": "none", "TQDM_DISABLE": "1"}  # bars would be outputs: to the console (of Qt), and there none
    command = [sys.executable, "-m", "pytest", "-q", *options, str(path)]
    checked = subprocess.run(command, cwd=ROOT, env=os.environ | folders | quiet, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout[-6000:] + checked.stderr[-2000:]

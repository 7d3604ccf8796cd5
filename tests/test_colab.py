"""On Colab: the guard cell installs the package into an environment that lacks it, and the explorers show and move.

Colab is simulated: an environment that sees what is installed here except wsnotebook, and a `google.colab` of our own
that counts its calls. Colab's ipywidgets is older than ours, so everything is done with that version too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

from wsnotebook.badges import COLAB, GUARD

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "01_soft_weight_sharing.ipynb"
FAKE = """\
from google.colab.output import _widgets

def enable_custom_widget_manager():
    _widgets._installed_url = "manager.js"
    _widgets.calls += 1
"""
DRIVER = """\
import importlib.util, json, sys
import google.colab.output as output
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

sys.modules["numba"] = None  # compiling would take most of the time
found = importlib.util.find_spec("wsnotebook")
shell, calls = InteractiveShell.instance(), []
for cell in json.loads(sys.argv[1]):
    before = output._widgets.calls
    with capture_output() as shown:
        ended = shell.run_cell(cell)
    sys.stderr.write(shown.stdout)
    ended.raise_error()
    calls.append(output._widgets.calls - before)
import ipywidgets, wsnotebook
print(json.dumps({
    "lacked": found is None, "package": wsnotebook.__file__, "ipywidgets": ipywidgets.__version__, "calls": calls,
    "kinds": [sorted(out.data) for out in shown.outputs], "moved": shell.user_ns["moved"],
}))
"""
EXPLORERS = """\
import warnings
from wsnotebook import networks, symmetry, zoo
from wsnotebook.comparisons.compression import Entry
from wsnotebook.evaluation import Score
from wsnotebook.explorers import compression, interpolation, trajectory
from wsnotebook.explorers import zoo as zoos
from wsnotebook.methods.closed_form_flow import ClosedForm

warnings.simplefilter("ignore")  # of a spike that has not condensed
net = networks.build("mlp-64-8-10")
result = sws.compress(net, data, sws.Config(components=3, epochs=2, train_rest=True))
nets = zoo.train("mlp-64-8-10", data, 6, zoo.Config(epochs=1, snapshots=(0, 10)))
last = nets.filter(nets.facts["step"] == nets.facts["step"].max())
score = Score(2.0, 0.1)
files = [Entry("n", "as trained", "float16", 0, b"x" * k, 1.0, net, score, score, 1.5, 45, 40, None) for k in (30, 60)]
explorers = {
    "mixture": (mixture.Explorer(result), "slider"),
    "zoo": (zoos.Explorer(nets), "step"),
    "interpolation": (interpolation.Explorer({"raw": last, "aligned": symmetry.align(last).zoo}, data.test), "t"),
    "trajectory": (trajectory.Explorer(ClosedForm(last), last, data.test, n=4), "t"),
    "compression": (compression.Explorer({"n": files}), "slider"),
}"""
MOVES = """\
moved = []
for name, (explorer, control) in explorers.items():
    slider, before = getattr(explorer, control), explorer.plot.to_json()
    if hasattr(slider, "index"):
        slider.index = 0 if slider.index else 1
    else:
        slider.value = slider.min
    moved += [name] if explorer.plot.to_json() != before else []
explorers["mixture"][0]"""


def run(python, *arguments, **options):
    return subprocess.run([python, *arguments], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git would fetch: no builds, no caches."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "wsnotebook", folder / "wsnotebook", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(params=[version("ipywidgets"), COLAB["ipywidgets"]])
def colab(request, tmp_path):
    """The Python of an environment that lacks the package, and the version of its ipywidgets.

    Python reads .pth files, such as that of an editable install, in the environment's own folder alone.
    """
    made = run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment")
    assert made.returncode == 0, made.stderr
    python = tmp_path / "environment" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    Path(site, "here.pth").write_text(sysconfig.get_path("purelib"))
    output = tmp_path / "fake" / "google" / "colab" / "output"
    output.mkdir(parents=True)
    (output.parent / "__init__.py").touch()
    (output / "__init__.py").write_text(FAKE)
    (output / "_widgets.py").write_text("_installed_url, calls = None, 0")
    if request.param != version("ipywidgets"):
        older = [f"ipywidgets=={request.param}", "ipython_genutils"]
        got = run(python, "-m", "pip", "install", "-q", "--no-deps", "--retries", "1", "--timeout", "15", *older)
        if got.returncode:
            pytest.skip(f"no package index to get {older[0]} from: {got.stderr.strip().splitlines()[-1]}")
    return python, request.param


@pytest.mark.skipif(os.name == "nt", reason="Colab runs Linux")
def test_the_first_cells_install_start_and_show(colab, checkout, tmp_path):
    python, widgets = colab
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"][:3]
    assert GUARD in cells[0]
    assert "session.start(" in cells[2]
    cells[0], count = re.subn(r'"git\+https://.+?"', f'"{checkout}"', cells[0])
    assert count == 1
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "fake"), "IPYTHONDIR": str(tmp_path / "ipython")}
    environment |= {
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # pip takes 0 for: no isolation
    given = json.dumps([*cells, EXPLORERS, MOVES])
    ended = run(python, "-c", DRIVER, given, cwd=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    seen = json.loads(ended.stdout.splitlines()[-1])
    assert seen["lacked"]
    assert Path(seen["package"]).is_relative_to(tmp_path / "environment")
    assert seen["calls"][:2] == [0, 0]
    assert seen["calls"][2] >= 1, "session.start switches the custom widget manager on"
    assert seen["kinds"] == [["application/vnd.jupyter.widget-view+json", "image/png", "text/plain"]]
    assert seen["moved"] == ["mixture", "zoo", "interpolation", "trajectory", "compression"]
    assert seen["ipywidgets"] == widgets

"""Headless runs of tiny notebooks: parameters arrive, a failure is told and stops nothing, refresh is idempotent."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from wsnotebook import cli, runs

HEAD = "# Tiny\n\n[![badge](x)](y)\n\n**What is\nsmall?**\n\nMore."
PARAMETERS = 'scale = "quick"  # which preset\nseed: int = 0\noverrides = {}'
SAVE = """\
import os, pathlib
folder = pathlib.Path(os.environ["WSNOTEBOOK_FIGURES"], scale, "{name}")
folder.mkdir(parents=True)
for kind in ("png", "json"):
    (folder / f"curve.{{kind}}").write_text("x")"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of notebooks, away from any checkout."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("WSNOTEBOOK_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "notebooks"


def put(folder, name, *sources, parameters=PARAMETERS):
    cells = [new_markdown_cell(HEAD), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source) for source in sources]
    notebook = new_notebook(cells=cells)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))


def fails(capsys, *arguments):
    """The one line that `wsnotebook *arguments` complains with."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wsnotebook: ")
    assert err.count("\n") == 1
    return err


def test_list_tells_number_title_and_promise(folder, capsys):
    put(folder, "02_second")
    put(folder, "01_first")
    (folder / "scratch.ipynb").write_text("not numbered")
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out == "01  Tiny\n    What is small?\n02  Tiny\n    What is small?\n"


@pytest.mark.parametrize("name", ["1", "01", "01_first", "01_first.ipynb"])
def test_a_notebook_is_found_by_number_or_name(folder, name):
    path = put(folder, "01_first")
    put(folder, "11_other")
    assert runs.find(name).path == path


def test_notebooks_are_those_of_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('name = "wsnotebook"')
    monkeypatch.delenv("WSNOTEBOOK_NOTEBOOKS", raising=False)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert runs.folder() == tmp_path / "notebooks"


def test_bad_usage_is_one_line_and_status_2(folder, capsys, monkeypatch):
    assert "no notebook in" in fails(capsys, "figures")
    put(folder, "01_first")
    put(folder, "02_plain", parameters="size = 3")
    assert "no notebook 'seven'" in fails(capsys, "run", "seven")
    assert "01_first, 02_plain" in fails(capsys, "run", "7")
    assert "'huge'" in fails(capsys, "run", "1", "--scale", "huge")
    assert "scale='huge': expected one of quick, laptop, paper" in fails(capsys, "run", "1", "-p", "scale", "huge")
    assert "02_plain has no parameter speed; it has: size" in fails(capsys, "run", "2", "-p", "speed", "1")
    assert "02_plain has no parameter scale" in fails(capsys, "figures")
    assert "overrides=3" in fails(capsys, "run", "1", "-p", "overrides", "3")
    assert "jobs=0" in fails(capsys, "figures", "--jobs", "0")
    assert "required" in fails(capsys)
    assert "--fast" in fails(capsys, "list", "--fast")
    (folder / "a file").write_text("in the way")
    assert "cannot write to" in fails(capsys, "run", "1", "--out", str(folder / "a file"))
    assert "choose another folder with --out" in fails(capsys, "run", "1", "--out", "/proc/nothing")
    computed = put(folder, "03_computed", parameters="size = 2 * n")
    assert "'size = 2 * n'; expected name = literal" in fails(capsys, "run", "3")
    computed = put(folder, "03_computed", parameters="size = 2\n%matplotlib inline")
    assert "03_computed.ipynb: the parameters cell is not Python: line 2" in fails(capsys, "run", "3")
    computed.unlink()
    (folder / "04_torn.ipynb").write_text('{"cells": [')
    assert "04_torn.ipynb is no notebook" in fails(capsys, "list")
    monkeypatch.setenv("WSNOTEBOOK_NOTEBOOKS", str(folder / "nowhere"))
    assert "set WSNOTEBOOK_NOTEBOOKS" in fails(capsys, "list")


def test_without_papermill_the_way_to_get_it_is_told(folder, capsys, monkeypatch):
    put(folder, "01_first")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "papermill" else find_spec(name))
    assert "pip install 'wsnotebook[lab]'" in fails(capsys, "run", "1")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("True", True),
        ("true", True),
        ("None", None),
        ("null", None),
        ("(1, 2)", (1, 2)),
        ("{a: 1}", {"a": 1}),
        ("mnist", "mnist"),
        ("lenet-300-100", "lenet-300-100"),
        ("'3'", "3"),
        ("[1, 2", "[1, 2"),
    ],
)
def test_values_on_the_command_line_are_literals_or_text(text, value):
    assert runs.parse(text) == value
    assert type(runs.parse(text)) is type(value)


def test_undeclared_parameters_become_overrides():
    notebook = runs.Notebook(
        Path("01_x.ipynb"), "", "", {"scale": "quick", "seed": 0, "overrides": {"lr": 1, "tau": 1}}
    )
    assert runs.route(notebook, {"seed": 3}) == {"seed": 3}
    assert runs.route(notebook, {"tau": 2}) == {"overrides": {"lr": 1, "tau": 2}}
    assert runs.route(notebook, {"overrides": {"lr": 5}, "tau": 2}) == {"overrides": {"lr": 5, "tau": 2}}


@pytest.mark.notebooks
def test_a_run_gets_its_parameters_folders_and_one_thread(folder, tmp_path, capsys, monkeypatch):
    facts = (
        "import os, pathlib\nprint([scale, seed, overrides, pathlib.Path.cwd().name, os.environ['OMP_NUM_THREADS']])"
    )
    names = "print([os.environ[f'WSNOTEBOOK_{name}'] for name in ('DATA', 'CACHE')])"
    put(folder, "01_first", facts, names, SAVE.format(name="01_first"))
    monkeypatch.setenv("WSNOTEBOOK_DATA", os.pathsep.join(["data", "/elsewhere"]))
    monkeypatch.setenv("WSNOTEBOOK_CACHE", "cache")
    given = ["-p", "seed", "3", "-p", "lr", "1e-3", "-p", "cuts", "(1, (2,), ())"]
    assert cli.main(["run", "1", "--scale", "laptop", *given, "--out", "out"]) == 0
    first, second = printed(tmp_path / "out" / "01_first.ipynb").splitlines()
    assert first == "['laptop', 3, {'lr': 0.001, 'cuts': (1, (2,), ())}, 'notebooks', '1']"
    assert second == str([f"{tmp_path / 'data'}{os.pathsep}/elsewhere", str(tmp_path / "cache")])
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("01_first: ok, ")
    assert told[1:-2] == ["wrote out/01_first.ipynb", "wrote out/figures/laptop/01_first/curve.{json,png}"]
    assert re.fullmatch(r"notebook +wall s +CPU s +peak MiB", told[-2])
    assert re.fullmatch(r"01_first +ok( +[\d.]+){3}", told[-1])


@pytest.mark.notebooks
def test_a_failure_is_told_with_its_cell_and_the_others_run(folder, tmp_path, capsys, monkeypatch):
    cache, pictures = tmp_path / "cache", tmp_path / "pictures"
    (cache / "data").mkdir(parents=True)
    (cache / "data" / "kept.gz").write_text("x")
    (cache / "results").mkdir()
    (cache / "results" / "one.pt").write_text("old")
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(cache))
    monkeypatch.setenv("WSNOTEBOOK_FIGURES", str(pictures))
    (pictures / "quick").mkdir(parents=True)
    (pictures / "quick" / "costs.json").write_text('{"09_other": {"cores": 4, "cpu_seconds": 7.5}}')
    put(folder, "01_first", "x = 1", "y = x\n1 / (y - x)", "print('not reached')")
    put(
        folder,
        "02_second",
        "import os, pathlib\nc = pathlib.Path(os.environ['WSNOTEBOOK_CACHE'])",
        "print(os.listdir(c), os.listdir(c / 'data'))",
        "(c / 'results').mkdir()\n(c / 'results/one.pt').write_text('new')",
        "large = b'x' * (300 << 20)",
    )
    put(folder, "03_third", SAVE.format(name="03_third"))
    assert cli.main(["figures", "--jobs", "2", "--fresh"]) == 1
    out, err = capsys.readouterr()
    assert "01_first: cell 4 (In [4]: y = x): ZeroDivisionError: division by zero\n" in err
    told = out.splitlines()
    assert {line.split(",")[0] for line in told[:3]} == {"01_first: failed", "02_second: ok", "03_third: ok"}
    copies = [f"wrote runs/quick/{name}.ipynb" for name in ("01_first", "02_second", "03_third")]
    assert told[3:-4] == [*copies, "wrote pictures/quick/03_third/curve.{json,png}", "wrote pictures/quick/costs.json"]
    table = {name: rest for name, *rest in map(str.split, told[-4:])}
    assert [table[name][0] for name in ("01_first", "02_second", "03_third")] == ["failed", "ok", "ok"]
    peaks = {name: float(table[name][-1]) for name in ("01_first", "02_second", "03_third")}
    assert peaks["02_second"] > 300 > max(peaks["01_first"], peaks["03_third"])  # each has its own
    assert "not reached" not in printed(tmp_path / "runs" / "quick" / "01_first.ipynb")
    assert printed(tmp_path / "runs" / "quick" / "02_second.ipynb") == "['data'] ['kept.gz']\n"
    costs = json.loads((pictures / "quick" / "costs.json").read_text())
    assert set(costs) == {"02_second", "03_third", "09_other"}
    assert costs["09_other"] == {"cores": 4, "cpu_seconds": 7.5}
    assert costs["03_third"]["cpu_seconds"] > 0
    assert {path.name for path in cache.iterdir()} == {"data", "results"}
    assert (cache / "results" / "one.pt").read_text() == "new"  # what the fresh run kept takes the place of the old


def test_what_a_fresh_run_keeps_is_kept_when_it_ends_and_outlasts_an_interrupt(folder, tmp_path, monkeypatch):
    cache, pictures = tmp_path / "cache", tmp_path / "pictures"
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(cache))
    monkeypatch.setenv("WSNOTEBOOK_FIGURES", str(pictures))
    kept = ["results/one.pt", "zoos/mlp-1/zoo.safetensors"]
    half = ["results/.one.pt.12", "zoos/mlp-2/shard-8-0.safetensors", "zoos/mlp-2/.spool-1/data.safetensors"]

    def interrupted(tasks, jobs):
        (path, _, target, environment), _ = tasks
        for name in (*kept, *half):
            made = Path(environment["WSNOTEBOOK_CACHE"], name)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text("new")
        yield runs.Run(path.stem, target, None, 1.0, 2.0, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_as_they_end", interrupted)
    put(folder, "01_first")
    put(folder, "02_second")
    assert cli.main(["figures", "--fresh"]) == 130
    assert sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()) == kept
    assert list(json.loads((pictures / "quick" / "costs.json").read_text())) == ["01_first"]


def test_results_that_cannot_be_kept_are_told_and_end_no_other_run(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "results").write_text("in the way")
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(cache))

    def two(tasks, jobs):
        for path, _, target, environment in tasks:
            made = Path(environment["WSNOTEBOOK_CACHE"], "results", "one.pt")
            made.parent.mkdir()
            made.write_text("new")
            yield runs.Run(path.stem, target, None, 1.0, 2.0, None)

    monkeypatch.setattr(runs, "_as_they_end", two)
    chosen = [runs.read(put(folder, name)) for name in ("01_first", "02_second")]
    with pytest.warns(RuntimeWarning, match="0._.*: not kept: cannot write"):
        ended = runs.execute(chosen, {}, copies=tmp_path, pictures=tmp_path, fresh=True)
    assert [run.notebook for run in ended] == ["01_first", "02_second"]


@pytest.mark.notebooks
def test_two_at_a_time_give_the_numbers_of_one_at_a_time(folder, tmp_path):
    sums = "import numpy as np\na = np.random.default_rng(seed).normal(size=(300, 300))\nprint((a @ a @ a).sum())"
    chosen = [runs.read(put(folder, name, sums)) for name in ("01_first", "02_second")]
    texts = []
    for jobs in (1, 2):
        ended = runs.execute(chosen, {"seed": 3}, copies=tmp_path / str(jobs), pictures=tmp_path, jobs=jobs)
        assert [(run.notebook, run.error) for run in ended] == [("01_first", None), ("02_second", None)]
        assert all(run.seconds > 0 and run.cpu_seconds > 0 and run.peak_mib > 1 for run in ended)
        texts.append([printed(run.path) for run in ended])
    assert texts[0] == texts[1]


@pytest.mark.notebooks
def test_refresh_is_idempotent_and_leaves_no_trace_of_the_run(folder, tmp_path, capsys):
    widget = """\
import ipywidgets, sys
from IPython.display import display
display(ipywidgets.IntSlider())
print(seed)
print("bar", file=sys.stderr)"""
    bundle = """\
pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
slider = ipywidgets.IntSlider()
display(slider._repr_mimebundle_() | {"image/png": pixel, "text/plain": "a slider"}, raw=True)"""
    path = put(folder, "01_first", widget, bundle)
    broken = put(folder, "02_second", "1 / 0")
    before, kept = nbformat.read(path, as_version=4), broken.read_bytes()
    assert cli.main(["refresh"]) == 1
    first = path.read_bytes()
    assert cli.main(["refresh", "1"]) == 0
    assert path.read_bytes() == first
    assert broken.read_bytes() == kept
    after = nbformat.read(path, as_version=4)
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert [cell.execution_count for cell in after.cells[1:]] == [1, 2, 3]
    assert after.metadata == {"kernelspec": runs.KERNEL, "language_info": {"name": "python"}}
    assert [cell.metadata for cell in after.cells] == [{}, {"tags": ["parameters"]}, {}, {}]
    (text,) = after.cells[2].outputs
    assert (text.name, text.text) == ("stdout", "0\n")
    (shown,) = after.cells[3].outputs
    assert shown.data.keys() == {"image/png", "text/plain"}
    assert sorted(item.name for item in folder.iterdir()) == ["01_first.ipynb", "02_second.ipynb"]


def test_stripping_keeps_what_a_reader_sees_and_is_a_projection():
    view = {runs.WIDGET: {"model_id": "1"}}
    outputs = [
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stderr", text="100%"),
        new_output("stream", name="stdout", text="b\n"),
        new_output("display_data", data=view | {"text/plain": "bar"}),
        new_output("display_data", data=view | {"image/png": "x", "text/plain": "figure"}),
        new_output("execute_result", data={"text/plain": "3"}, execution_count=2),
    ]
    cell = new_code_cell("3", outputs=outputs, execution_count=2)
    cell.metadata = {"tags": ["keep"], "papermill": {"duration": 1}, "execution": {}, "collapsed": False}
    injected = new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]})
    notebook = new_notebook(cells=[injected, cell], metadata={"widgets": {"state": {}}, "papermill": {}})
    stripped = runs.strip(notebook)
    nbformat.validate(stripped)
    (kept,) = stripped.cells
    assert (kept.id, kept.execution_count, kept.metadata) == (cell.id, 2, {"tags": ["keep"]})
    assert kept.outputs == [
        new_output("stream", name="stdout", text="a\nb\n"),
        new_output("display_data", data={"image/png": "x", "text/plain": "figure"}),
        new_output("execute_result", data={"text/plain": "3"}, execution_count=2),
    ]
    assert runs.strip(stripped) == stripped
    assert len(notebook.cells) == 2
    assert len(cell.outputs) == 6


def test_an_interrupt_takes_back_what_an_executor_has_not_begun(monkeypatch):
    begun, go_on = [], threading.Event()

    def elsewhere(number, *_):
        begun.append(number)
        return number if number == 0 else go_on.wait(1)

    monkeypatch.setattr(runs, "_run_elsewhere", elsewhere)
    with ThreadPoolExecutor(1) as executor:
        ending = runs._by(executor, [(number, {}, Path(), {}) for number in range(6)])
        assert next(ending) == 0
        with pytest.raises(KeyboardInterrupt):
            ending.throw(KeyboardInterrupt)
        go_on.set()
    assert len(begun) <= 2


@pytest.mark.notebooks
def test_a_process_that_is_killed_is_told_and_the_others_run(folder, tmp_path, capsys):
    put(folder, "01_first", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(60)")
    put(folder, "02_second")
    assert cli.main(["figures", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "01_first: BrokenProcessPool: " in err
    assert out.startswith("01_first: failed, nan CPU-s\n02_second: ok, ")


def test_a_task_that_an_executor_loses_is_told_and_the_others_run(monkeypatch):
    ran = runs.Run("02_second", Path("b"), None, 1.0, 2.0, None)
    monkeypatch.setattr(runs, "_run_elsewhere", lambda path, *_: {"02_second": ran}[path.stem])
    with ThreadPoolExecutor(1) as executor:
        tasks = [(Path(name), {}, Path("c"), {}) for name in ("01_first.ipynb", "02_second.ipynb")]
        lost, other = sorted(runs._by(executor, tasks), key=lambda run: run.notebook)
    assert (lost.notebook, lost.path, lost.error) == ("01_first", Path("c"), "KeyError: '01_first'")
    assert other is ran


@pytest.mark.notebooks
def test_an_interrupt_ends_the_kernel_and_starts_no_other(folder, tmp_path):
    sleep = "import os, pathlib, time\npathlib.Path(f'started{seed}').write_text(str(os.getpid()))\ntime.sleep(200)"
    put(folder, "01_first", "seed = 1\n" + sleep)
    put(folder, "02_second", "seed = 2\n" + sleep)
    started = folder / "started1"
    arguments = [sys.executable, "-m", "wsnotebook.cli", "figures"]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (ignored by what runs in the background)
    with subprocess.Popen(arguments, preexec_fn=heard, **options) as command:
        while command.poll() is None and not (started.exists() and started.read_text()):
            time.sleep(0.1)
        os.killpg(command.pid, signal.SIGINT)
        _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert err == "wsnotebook: interrupted\n"
    assert not (folder / "started2").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)

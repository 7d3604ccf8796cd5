"""Run notebooks without a browser, in processes of their own, and put commit-ready outputs into their files.

Every notebook runs in a process of its own with one thread and from its own folder, so `jobs=2` gives the numbers
of `jobs=1`. A notebook that fails is reported with its cell and error; the others still run. Built on papermill.
"""

import ast
import copy
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, as_completed, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from wsnotebook import figures
from wsnotebook.processes import end_with_parent

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook: what its first cell says of it, and the defaults in its `parameters` cell."""

    path: Path
    title: str
    promise: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's name without the suffix: 01_soft_weight_sharing."""
        return self.path.stem

    @property
    def number(self) -> str:
        """The two digits that the name begins with."""
        return self.name[:2]


@dataclass(frozen=True)
class Run:
    """How one notebook's run went. CPU time and memory are those of its kernel and what the kernel started.

    Of a process that was lost, times are NaN.
    """

    notebook: str
    path: Path  # the executed copy; of a failed notebook, up to the failing cell
    error: str | None  # the failing cell, the error's name and its message
    seconds: float  # on the wall, the kernel's start and end too
    cpu_seconds: float
    peak_mib: float | None  # of the largest of these processes; None where that is not told (Windows, a cluster)


def folder() -> Path:
    """Where the notebooks are: WSNOTEBOOK_NOTEBOOKS, else `notebooks` in the checkout around us or the package."""
    named = os.environ.get("WSNOTEBOOK_NOTEBOOKS")
    path = (
        Path(named)
        if named
        else (figures.checkout(Path.cwd()) or figures.checkout(Path(__file__).resolve()) or Path.cwd()) / "notebooks"
    )
    if not path.is_dir():
        raise FileNotFoundError(
            f"no folder {path}: run this inside a checkout of wsnotebook, or set WSNOTEBOOK_NOTEBOOKS to its notebooks"
        )
    return path.resolve()


def notebooks() -> list[Notebook]:
    """All numbered notebooks in `folder()`, in order."""
    return [read(path) for path in _paths()]


def find(name: str) -> Notebook:
    """The notebook called `name`: its number (`1` or `01`) or its full name. ValueError lists what there is."""
    known = {path.stem: path for path in _paths()}
    number = f"{name.zfill(2)}_"
    matches = [path for stem, path in known.items() if stem == name.removesuffix(".ipynb") or stem.startswith(number)]
    if len(matches) != 1:
        raise ValueError(
            f"{'several notebooks' if matches else 'no notebook'} {name!r} in {folder()}: {', '.join(known)}"
        )
    return read(matches[0])


def _paths() -> list[Path]:
    """The files of the numbered notebooks; FileNotFoundError if there are none."""
    paths = sorted(folder().glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no notebook in {folder()}: expected files named like 01_soft_weight_sharing.ipynb")
    return paths


def read(path: Path) -> Notebook:
    """The notebook at `path`, not executed. ValueError if it is no notebook or its parameters are no literals."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "".join(next((cell["source"] for cell in cells if cell["cell_type"] == "markdown"), ""))
        tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no notebook: {type(error).__name__}: {error}") from error
    heading = re.search(r"^#+ +(.+)$", text, re.MULTILINE)
    blocks = (block.strip() for block in text[heading.end() :].split("\n\n")) if heading else ()
    promise = next(
        (" ".join(block.split()).strip("*_") for block in blocks if block and not block.startswith("[![")), ""
    )
    return Notebook(path, heading[1].strip() if heading else path.stem, promise, literals("\n".join(tagged), path))


def literals(source: str, path: Path) -> dict[str, Any]:
    """The assignments in a parameters cell, {name: value}. ValueError names a line that is not `name = literal`."""
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{path}: the parameters cell is not Python: line {error.lineno}: {error.msg}") from error
    except (ValueError, MemoryError, RecursionError) as error:  # a null character, brackets too deep
        raise ValueError(f"{path}: the parameters cell is not Python: {error}") from error
    values = {}
    for line in lines:
        target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
        try:
            values[target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError, TypeError, RecursionError) as error:
            what = "\n".join(source.splitlines()[line.lineno - 1 : line.end_lineno])
            raise ValueError(
                f"{path}: the parameters cell has {what!r}; expected name = literal on each line"
            ) from error
    return values


def parse(text: str) -> Any:
    """A parameter from the command line: a Python literal (1e-3, (1, 2), None), else YAML (true, {a: 1}), else text."""
    import yaml

    for reader in (ast.literal_eval, yaml.safe_load):
        try:
            return reader(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, yaml.YAMLError):
            pass
    return text


def route(notebook: Notebook, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as `notebook` takes them: those it does not declare become entries of its `overrides`.

    The method's Config checks the names in there. Raises ValueError for an unknown scale, and for an unknown name if
    the notebook declares no `overrides`.
    """
    declared = {name: value for name, value in parameters.items() if name in notebook.parameters}
    rest = {name: value for name, value in parameters.items() if name not in notebook.parameters}
    if "scale" in rest or (rest and "overrides" not in notebook.parameters):
        known = ", ".join(notebook.parameters) or "none"
        raise ValueError(f"{notebook.name} has no parameter {', '.join(rest)}; it has: {known}")
    if declared.get("scale", figures.SCALES[0]) not in figures.SCALES:
        raise ValueError(f"scale={declared['scale']!r}: expected one of {', '.join(figures.SCALES)}")
    if not isinstance(declared.get("overrides", {}), dict):
        raise ValueError(f"overrides={declared['overrides']!r}: expected {{name: value}}")
    if rest:
        declared["overrides"] = notebook.parameters["overrides"] | declared.get("overrides", {}) | rest
    return declared


def execute(
    chosen: Sequence[Notebook],
    parameters: Mapping[str, Any],
    *,
    copies: Path,
    pictures: Path,
    jobs: int = 1,
    fresh: bool = False,
    executor: Executor | None = None,
) -> list[Run]:
    """Run the `chosen` notebooks with `parameters`, `jobs` at a time or as an executor's tasks; a line as each ends.

    Executed copies and the files of their runs land in `copies`, figures in `pictures`. With `fresh`, no notebook uses
    results that an earlier run kept; as it ends, what it keeps takes their place, and what it cost is written beside
    its scale's figures. Data already downloaded are used. A notebook that fails gives a Run with an `error`.

    Raises ValueError for an unknown parameter or scale and OSError for a folder that cannot be written, both before
    anything runs.
    """
    if importlib.util.find_spec("papermill") is None:
        raise ModuleNotFoundError("running notebooks needs papermill: pip install 'wsnotebook[lab]'")
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: expected at least 1")
    copies, pictures = copies.resolve(), pictures.resolve()
    routed = [route(notebook, parameters) for notebook in chosen]
    for target in (copies, pictures):
        _check_writable(target)
    folders = {"WSNOTEBOOK_FIGURES": str(pictures), "WSNOTEBOOK_RUNS": str(copies)}
    environment = figures.absolute_folders() | folders | {"OMP_NUM_THREADS": "1"}
    ended = []
    with tempfile.TemporaryDirectory(prefix="wsnotebook-") as scratch:
        caches = [_empty_cache(Path(scratch, notebook.name)) if fresh else {} for notebook in chosen]
        costs = pictures / parameters.get("scale", figures.SCALES[0]) / "costs.json"
        tasks = [
            (notebook.path, values, copies / notebook.path.name, environment | cache)
            for notebook, values, cache in zip(chosen, routed, caches, strict=True)
        ]
        for run in _by(executor, tasks) if executor else _as_they_end(tasks, jobs):
            ended.append(run)
            print(f"{run.notebook}: {'failed' if run.error else 'ok'}, {run.cpu_seconds:.1f} CPU-s", flush=True)
            if run.error:
                print(f"{run.notebook}: {run.error}", file=sys.stderr, flush=True)
            if fresh:
                _keep_results(Path(scratch, run.notebook))
            if fresh and not run.error:
                _record(run, costs)
    return sorted(ended, key=lambda run: run.notebook)


def _as_they_end(tasks: Iterable[tuple], jobs: int) -> Iterator[Run]:
    """The runs of `tasks` in the order they end, no more than `jobs` at once, so that Ctrl-C leaves no next.

    Each has a process of its own: what the system says of a process's children is then about one kernel.
    """
    spawn = multiprocessing.get_context("spawn")
    waiting, running = iter(tasks), {}  # {what will be a Run: (the pool of its process, its task)}
    try:
        while True:
            for task in islice(waiting, jobs - len(running)):
                pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent)
                running[pool.submit(_run, *task)] = pool, task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pool, task = running.pop(future)
                pool.shutdown()
                yield _outcome(future, *task)
    finally:
        for pool, _ in running.values():
            pool.shutdown()


def _by(executor: Executor, tasks: Iterable[tuple]) -> Iterator[Run]:
    """The runs of `tasks` by an executor's workers, in the order they end; Ctrl-C takes back what has not begun."""
    submitted = {executor.submit(_run_elsewhere, *task): task for task in tasks}
    try:
        for future in as_completed(submitted):
            yield _outcome(future, *submitted[future])
    finally:
        for future in submitted:
            future.cancel()


def _outcome(future: Future, path: Path, parameters: dict, target: Path, environment: dict[str, str]) -> Run:
    """The Run of a task; where its process was killed, or lost with its machine, one that says so."""
    try:
        return future.result()
    except Exception as failure:  # each executor has its own
        return Run(path.stem, target, f"{type(failure).__name__}: {failure}", math.nan, math.nan, None)


def _run_elsewhere(path: Path, parameters: dict, target: Path, environment: dict[str, str]) -> Run:
    """`_run` in a process that does other things too: they are left as they were, and its memory tells nothing."""
    before = os.environ.copy()
    try:
        return replace(_run(path, parameters, target, environment), peak_mib=None)
    finally:
        os.environ.clear()
        os.environ.update(before)
        logging.disable(logging.NOTSET)


def _run(path: Path, parameters: dict, target: Path, environment: dict[str, str]) -> Run:
    """Execute the notebook at `path` into `target`: what a worker process does. Kernels inherit its environment."""
    import papermill
    from papermill.translators import PythonTranslator, papermill_translators

    class Literals(PythonTranslator):  # papermill itself would write a tuple as text
        @classmethod
        def translate(cls, value) -> str:
            tuples = isinstance(value, tuple)
            return f"({''.join(f'{cls.translate(v)}, ' for v in value)})" if tuples else super().translate(value)

        @classmethod
        def translate_dict(cls, value) -> str:  # ... and every key
            return f"{{{', '.join(f'{cls.translate(k)}: {cls.translate(v)}' for k, v in value.items())}}}"

    papermill_translators.register("python", Literals)
    os.environ.update(environment)
    logging.disable()  # how a kernel ended is told by the Run; on Ctrl-C there would be more of it
    began, before = time.perf_counter(), os.times()
    part = target.with_name(f".{target.stem}.{os.getpid()}.ipynb")  # papermill writes it anew after every cell
    try:
        papermill.execute_notebook(
            *(str(place).replace("{", "{{").replace("}", "}}") for place in (path, part)),  # it formats its paths
            parameters,
            kernel_name="python3",
            language="python",
            cwd=path.parent,
            start_timeout=180,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # neither "TCP" warnings nor an interrupt's traces
            progress_bar={"desc": path.stem, "disable": None},  # None: no bar where stderr is no terminal
        )
        error = None
    except papermill.PapermillExecutionError as failure:
        error = _place(path, failure)
    except Exception as failure:  # a kernel that died or did not start: reported like any other, the rest goes on
        error = f"{type(failure).__name__}: {failure}"
        if isinstance(failure, OSError):  # no room for the copy: it may be half there
            part.unlink(missing_ok=True)
    finally:
        if part.exists():
            os.replace(part, target)
    after = os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(path.stem, target, error, time.perf_counter() - began, children, _peak())


def _peak() -> float | None:
    """The memory, in MiB, of the largest process that this one has started and seen end."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20


def _place(path: Path, failure) -> str:
    """Where papermill's execution error `failure` arose, in the numbering of the notebook at `path`, and what it is."""
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    cell = f"cell {sources.index(failure.source) + 1}" if failure.source in sources else "the injected parameters"
    line = failure.source.strip().splitlines()[0]
    return f"{cell} (In [{failure.exec_count}]: {line}): {failure.ename}: {failure.evalue}"


def _empty_cache(path: Path) -> dict[str, str]:
    """A cache at `path` with nothing but the data of the real one, as the environment that selects it."""
    from wsnotebook.datasets import cache_folder

    data = cache_folder().resolve() / "data"
    data.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    (path / "data").symlink_to(data, target_is_directory=True)
    return {"WSNOTEBOOK_CACHE": str(path)}


def _check_writable(path: Path) -> None:
    """Make the folder `path`, or raise OSError saying how to choose another."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        advice = "choose another folder with --out, or WSNOTEBOOK_FIGURES for the figures"
        raise type(error)(f"cannot write to {path} ({error.strerror}): {advice}") from error


def _keep_results(fresh: Path) -> None:
    """Put what a fresh run kept into the real cache, in place of what was there; a RuntimeWarning if that fails."""
    from wsnotebook.datasets import cache_folder, replacing

    try:
        for path in (*fresh.glob("results/[!.]*"), *fresh.glob("zoos/*/zoo.safetensors")):  # not what is half there
            with replacing(cache_folder() / path.relative_to(fresh)) as part:
                shutil.copyfile(path, part)  # it may be on another disk
    except OSError as error:  # the other notebooks still run
        warnings.warn(f"{fresh.name}: not kept: {error}", RuntimeWarning, stacklevel=3)


def _record(run: Run, path: Path) -> None:
    """Put a run's costs into the JSON file at `path`, beside those of the others."""
    from wsnotebook.session import machine

    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    costs[run.notebook] = {"cpu_seconds": round(run.cpu_seconds, 1), "cores": machine()["cores"]}
    figures.write({path: (json.dumps(costs, indent=2, sort_keys=True) + "\n").encode()})


def refresh(chosen: Sequence[Notebook]) -> list[Run]:
    """Execute the `chosen` notebooks at their defaults and put the outputs into the files, stripped for git.

    A notebook that fails keeps its file. Figures go to a temporary folder.
    """
    import nbformat

    with tempfile.TemporaryDirectory(prefix="wsnotebook-") as scratch:
        runs = execute(chosen, {}, copies=Path(scratch), pictures=Path(scratch, "figures"))
        for run in runs:
            if not run.error:
                text = nbformat.writes(strip(nbformat.read(run.path, as_version=4))) + "\n"
                figures.write({folder() / run.path.name: text.encode()})
    return runs


def strip(notebook):
    """A copy of an nbformat `notebook` as it is committed: outputs, counts, ids and tags, and no traces of the run.

    Out go widget state, papermill's metadata and injected cell, timings, stderr (progress bars, warnings), and widget
    views: a view that brings its picture leaves the picture and its text, another one leaves nothing.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata = type(notebook)(kernelspec=KERNEL, language_info={"name": "python"})
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata = type(notebook)(
            {key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)}
        )
        if cell.cell_type == "code":
            cell.outputs = _joined(output for output in cell.outputs if _kept(output))
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
    return notebook


def _kept(output) -> bool:
    """Whether an output is worth committing: no stderr, and no widget that would be nothing without its state."""
    data = output.get("data", {})
    return output.get("name") != "stderr" and (WIDGET not in data or any(kind.startswith("image/") for kind in data))


def _joined(outputs: Iterable) -> list:
    """`outputs` with neighbouring pieces of printed text joined: how the kernel cuts it depends on the time."""
    joined = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined

"""Faults: killed, no room, two at once, damaged, nowhere to write: nothing is lost, nor half taken for whole.

The README has these tests in a table, which is checked here.
"""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import safetensors.torch
import torch

from wsnotebook import cli, cornn, datasets, figures, networks, runs, session, training, tuning, zoo
from wsnotebook.layout import Layout
from wsnotebook.methods import (
    baselines,
    codec,
    latent_search,
    mlp_controls,
    mlp_fitting,
    sane,
    superweight_training,
    swat_nn,
    weight_flow,
)
from wsnotebook.methods import soft_weight_sharing as sws
from wsnotebook.methods.mlp_matrix import Form
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs signals, limits and forks"),
    pytest.mark.filterwarnings("ignore:the spike had not condensed"),  # four epochs are few
]
FORM, FIT = Form(width=3, depth=2), mlp_fitting.Config(steps=8, batch=64, check_every=4)
HOW = training.Config(epochs=5, batch=64, lr=3e-3)


# ---- what is kept: each way is called with nothing, and keeps its state in the cache ------------------------------


@cache
def digits():
    return datasets.load("digits").first(train=200, validation=60, test=60)


def network():
    return networks.build("mlp-64-8-10")


@cache
def population():
    layout, generator = Layout.of(networks.build("mlp-6-4-3")), torch.Generator().manual_seed(0)
    weights = torch.randn(24, layout.d, generator=generator)
    return zoo.Zoo(weights, layout, {"model": np.arange(24)}, "mlp-6-4-3", {})


def superweights():
    config = superweight_training.Config(epochs=3, batch=50, pretraining=1, bins=2, batches=2, threshold=0.3)
    pair = [networks.build(f"mlp-64-{width}-{width}-10", seed=width) for width in (8, 12)]
    superweight_training.train(pair, digits(), config, keep=True)


def searched():
    quick = {"candidates": 20, "restarts": 1, "penalties": (0.001,), "steps": 60, "batch": 32, "tuned": 1}
    config = latent_search.Config(depths=(1,), budgets=(8,), training=FIT, tuning=FIT, **quick)
    latent_search.search(latent_search.direct(FORM), cornn.table(["sphere"]), config, keep=True)


def perceptrons():
    mlp_controls.dense(FORM, [(3,)], "tanh", cornn.table(["sphere"]), FIT, 1, keep=True)


def zoo_of_two_groups():
    config = zoo.Config(epochs=(1, 2), batch=50)
    zoo.train("mlp-64-8-10", digits(), 24, config, shard=16)


SWS = sws.Config(components=5, tau=0.05, init_sigma=0.1, lr_weights=3e-3, epochs=4, batch=64)
SANE = sane.Config(z=4, dim=16, heads=2, blocks=1, window=32, iterations=80, batch=8)
FLOW = weight_flow.Config(hidden=16, blocks=1, time_features=8, batch=16, iterations=250)
SWAT = swat_nn.Config(FORM, z=8, dim=16, heads=2, blocks=1, points=16, iterations=80)
WAYS = {  # how many files are written before the one that a kill meets, and what writes them
    "training": (2, lambda: training.train(network(), digits(), HOW, keep=True)),
    "soft weight-sharing": (2, lambda: sws.compress(network(), digits(), SWS, keep=True)),
    "pruning": (0, lambda: baselines.prune(network(), digits(), baselines.Config(epochs=1, batch=64), keep=True)),
    "SuperWeights": (4, superweights),
    "SANE": (1, lambda: sane.train(population(), SANE, keep=True)),
    "SWAT-NN": (1, lambda: swat_nn.train(SWAT, keep=True)),
    "latent search": (1, searched),
    "dense perceptrons": (0, perceptrons),
    "weight flow": (1, lambda: weight_flow.train(population(), FLOW, keep=True)),
    "zoo": (1, zoo_of_two_groups),
}
KEPT = [way for way in WAYS if way != "zoo"]


def work(way, folder, before_write=lambda written, part: None):
    """Run one of WAYS with a cache of its own; the number of files it has written."""
    written, replaced = [], os.replace

    def counted(part, target):
        ours = Path(folder) in Path(target).parents  # numba writes as well
        if ours:
            before_write(len(written), part)
        replaced(part, target)
        written.extend([target] * ours)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSNOTEBOOK_CACHE", str(folder))
        patch.setattr(training, "KEEP_EVERY", -1.0)  # everything that can be kept is
        patch.setattr(os, "replace", counted)
        WAYS[way][1]()
    return len(written)


def plain(value):
    """A kept value as what can be compared, bit for bit, without what it cost."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in ("cpu_seconds", "seconds", "spent")}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else repr(value)


def contents(folder):
    """{place: content} of the whole files of a cache: hidden ones are being written, or were when a kill came."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".damaged"]
    return {str(path.relative_to(folder)): read(path) for path in files if not path.name.startswith(".")}


def read(path):
    if path.suffix == ".pt":
        return plain(torch.load(path, weights_only=True))
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata(), plain({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(way): (cache, files written) of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return cache(lambda way: (folder / way, work(way, folder / way)))


def child(call, *arguments):
    """What the function of this module that is called so prints as JSON in a process of its own."""
    program = f"import json, test_faults; print(json.dumps(test_faults.{call}(*{list(map(str, arguments))!r})))"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def forked(task):
    """The number of a process that does a task and ends; forks inherit what training loads when it first happens."""
    training.train(network(), digits(), replace(HOW, epochs=0))
    if number := os.fork():
        return number
    with contextlib.redirect_stderr(io.StringIO()):
        task()
    os._exit(0)


# ---- SIGKILL -------------------------------------------------------------------------------------------------------


def kill_each(folder):
    """Kill a process of each way while it writes, half of the file being there; {way: the signal it ended by}."""
    torch.set_num_threads(1)

    def killed(way):
        def strike(written, part):
            if written == WAYS[way][0]:
                os.truncate(part, os.path.getsize(part) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        return os.WTERMSIG(os.waitpid(forked(lambda: work(way, Path(folder, way), strike)), 0)[1])

    return {way: killed(way) for way in WAYS}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    assert child("kill_each", folder) == dict.fromkeys(WAYS, signal.SIGKILL)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_run_killed_while_it_writes_goes_on_to_the_same_bits(way, whole, killed):
    written, folder = WAYS[way][0], killed / way
    assert bool(contents(folder)) == bool(written)
    there, writes = whole(way)
    assert work(way, folder) == writes - written, "goes on from what was kept, not from the start"
    assert contents(folder) == contents(there)


WITH_WORKERS = """
import os, time
from wsnotebook import session
if __name__ == "__main__":
    with session.executor(2) as workers:
        working = workers.submit(time.sleep, 100)
        print(workers.submit(os.getpid).result(), *workers._processes, flush=True)
        working.result()
"""


def test_workers_of_a_killed_process_end_too(tmp_path):
    (tmp_path / "killed.py").write_text(WITH_WORKERS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, tmp_path / "killed.py"], env=environment, stdout=subprocess.PIPE) as process:
        workers = set(map(int, process.stdout.readline().split()))
        process.kill()
        process.stdout.read()  # to its end: nobody is left to write
    assert len(workers) == 2
    assert not any(alive(worker) for worker in workers)


def alive(number):
    """Whether a process runs; one that has ended may still have its number until somebody asks how."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, 0)
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True).stdout
        return not state.startswith("Z") and bool(state)
    return False


NOTEBOOK = """\
import os, pathlib, signal, time
pathlib.Path(os.environ["WSNOTEBOOK_FIGURES"], "curve.png").write_text("drawn")
pathlib.Path("kernel").write_text(str(os.getpid()))
if os.environ["FAULT"] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100 if os.environ["FAULT"] == "wait" else 0)"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """The folder of a notebook that was run once, `FAULT` being what happens to it next."""
    nbformat = pytest.importorskip("nbformat")
    cells = [nbformat.v4.new_code_cell(source) for source in ("seed = 0", NOTEBOOK)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_first.ipynb")
    monkeypatch.setenv("WSNOTEBOOK_NOTEBOOKS", str(tmp_path))
    monkeypatch.setenv("FAULT", "")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "1", "--out", "out"]) == 0
    return tmp_path


@pytest.mark.notebooks
def test_a_kernel_that_is_killed_is_told_and_the_next_run_ends(notebook, monkeypatch, capsys):
    monkeypatch.setenv("FAULT", "die")
    assert cli.main(["run", "1", "--out", "out"]) == 1
    assert "01_first: DeadKernelError: Kernel died" in capsys.readouterr().err
    assert (notebook / "out" / "figures" / "curve.png").read_text() == "drawn"
    monkeypatch.setenv("FAULT", "")
    assert cli.main(["run", "1", "--out", "out"]) == 0


@pytest.mark.notebooks
def test_a_run_of_notebooks_that_is_killed_leaves_the_earlier_copy_and_no_kernel(notebook, monkeypatch):
    before = {path: path.read_bytes() for path in (notebook / "out").rglob("*.*")}
    (notebook / "kernel").unlink()
    monkeypatch.setenv("FAULT", "wait")
    arguments = [sys.executable, "-m", "wsnotebook.cli", "run", "1", "--out", "out"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not (notebook / "kernel").exists() or not (notebook / "kernel").read_text():
            time.sleep(0.1)
        process.kill()
        process.stdout.read()  # to its end: neither worker nor kernel is left to write
    assert not alive(int((notebook / "kernel").read_text()))
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.setenv("FAULT", "")
    assert cli.main(["run", "1", "--out", "out"]) == 0


# ---- two at once ---------------------------------------------------------------------------------------------------


def run_twice(folder):
    """Two processes train the same at once, and the same zoo; how they ended."""
    torch.set_num_threads(1)
    both = [way for way in ("training", "zoo") for _ in range(2)]
    numbers = [forked(lambda way=way: work(way, Path(folder, way))) for way in both]
    return [os.waitpid(number, 0)[1] for number in numbers]


def test_two_processes_that_train_the_same_both_end_with_it(whole, tmp_path):
    assert child("run_twice", tmp_path) == [0] * 4
    for way in ("training", "zoo"):
        assert contents(tmp_path / way) == contents(whole(way)[0])
        assert work(way, tmp_path / way) == 0, "the next run takes what they kept"


def test_two_that_write_one_file_in_one_process_do_not_meet(tmp_path):
    target = tmp_path / "one"
    with datasets.replacing(target) as first, datasets.replacing(target) as second:
        first.write_text("first")
        second.write_text("second, and longer")
    assert target.read_text() == "first"
    assert os.listdir(tmp_path) == ["one"]


def test_two_downloads_of_one_file_at_once_both_have_it_whole(tmp_path, monkeypatch):
    content, both = os.urandom(1 << 20), threading.Barrier(2)

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: 1 << 19])
            both.wait(30)  # each has half of it
            self.wfile.write(content[1 << 19 :])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(datasets._MD5, "mnist/one.gz", datasets._md5(content))
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        file = datasets._File(f"http://127.0.0.1:{server.server_address[1]}/one.gz", "mnist/one.gz", ("mnist/one",))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: datasets._download("mnist", file, [tmp_path]), range(2)))
        server.shutdown()
    assert [path.read_bytes() for path in (tmp_path / "mnist").iterdir()] == [content]


# ---- damage --------------------------------------------------------------------------------------------------------


def flipped(content, pattern):
    """The content with a bit flipped in the first byte of the last place where a pattern is."""
    at = content.rindex(pattern)
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def packed(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def largest(content):
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        return max((parts.read(name) for name in parts.namelist()), key=len)


DAMAGE = {
    "torn": lambda content: content[: len(content) // 2],
    "flipped": lambda content: flipped(content, largest(content)),
    "empty": lambda content: b"",
    "a text": lambda content: b"404: not found",
    "a tensor": lambda content: packed(torch.zeros(3)),
}


def set_aside(way, folder):
    with pytest.warns(RuntimeWarning, match=r"not a readable kept state .*set aside as .*\.damaged, and computed anew"):
        return work(way, folder)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_kept_state_that_is_damaged_is_set_aside_and_computed_anew(damage, whole, tmp_path):
    there, writes = whole("training")
    shutil.copytree(there, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.rglob("*.pt")
    path.write_bytes(broken := DAMAGE[damage](path.read_bytes()))
    assert set_aside("training", tmp_path) == writes + 1  # that it is renamed counts too
    assert contents(tmp_path) == contents(there)
    assert path.with_name(f"{path.name}.damaged").read_bytes() == broken


@pytest.mark.parametrize("way", KEPT)
def test_one_flipped_bit_in_what_any_method_kept_is_found(way, whole, tmp_path):
    there, _ = whole(way)
    shutil.copytree(there, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.pt"):
        path.write_bytes(DAMAGE["flipped"](path.read_bytes()))
    set_aside(way, tmp_path)
    assert contents(tmp_path) == contents(there)


def test_one_flipped_bit_in_the_weights_or_facts_of_a_zoo_is_named(tmp_path):
    path = population().save(tmp_path / "zoo.safetensors")
    content = path.read_bytes()
    for pattern in (population().weights[5].numpy().tobytes(), population().facts["model"].tobytes()):
        path.write_bytes(flipped(content, pattern))
        with pytest.raises(ValueError, match=rf"zoo {path}: damaged .*another checksum"):
            zoo.load(path)


def test_two_that_find_the_same_damage_both_go_on(whole, tmp_path, monkeypatch):
    def gone(path, target):
        plainly(path, target)
        raise FileNotFoundError(2, "the other process was first")

    plainly = os.replace
    path = tmp_path / "kept.pt"
    path.write_text("damaged")
    monkeypatch.setattr(os, "replace", gone)
    with pytest.warns(RuntimeWarning, match="computed anew"):
        assert training.load_kept(path) is None


# ---- no room -------------------------------------------------------------------------------------------------------

ROOM = 1 << 16  # bytes


@pytest.fixture(params=["a full disk", "a limit on files"])
def no_room(request, tmp_path):
    """A folder in which no more than ROOM bytes can be written."""
    if request.param == "a limit on files":  # `ulimit -f`
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
        yield tmp_path
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@cache
def large():
    """A zoo, a bank and a state that do not fit."""
    layout = Layout.of(networks.build("mlp-64-24-10"))
    many = zoo.Zoo(torch.ones(40, layout.d), layout, {}, "mlp-64-24-10", {})
    pair = [networks.build("mlp-64-200-10", seed=seed) for seed in (0, 1)]
    bank = Bank(pair, allocate(pair, torch.zeros(1, 1, 8, 8), clusters=2))
    return many, bank, networks.build("mlp-64-300-10").state_dict()


def command(*arguments):
    """Run `wsnotebook *arguments`; OSError with the line that it complained with."""
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        assert cli.main(list(map(str, arguments))) == 2
    raise OSError(complaint.getvalue())


def compressed(path, scratch):
    safetensors.torch.save_file(large()[2], model := scratch / "model.safetensors")
    return lambda: command("compress", model, "-o", path)


def decompressed(path, scratch):
    (file := scratch / "zeros.wsn").write_bytes(codec.encode({"w": torch.zeros(200, 200)}))
    return lambda: command("decompress", file, "-o", path)


WRITERS = {  # what is written, and how: prepared with room
    "zoo.safetensors": lambda path, scratch: lambda: large()[0].save(path),
    "bank.safetensors": lambda path, scratch: lambda: large()[1].save(path),
    "model.wsn": compressed,
    "back.safetensors": decompressed,
    "trials.csv": lambda path, scratch: lambda: tuning.to_csv([{"settings": {"x": "long" * ROOM}}], path),
    "01_notebook.ipynb": lambda path, scratch: lambda: figures.write({path: bytes(2 * ROOM)}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_without_room_the_earlier_file_stays_and_the_error_says_what_to_do(name, no_room, tmp_path_factory):
    target = no_room / name
    target.write_text("earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
    write = WRITERS[name](target, tmp_path_factory.mktemp("scratch"))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(OSError, match=rf"cannot write {target} \(.*(No space|too large).*\): make room, or choose"):
        write()
    assert os.listdir(no_room) == [name]
    assert target.read_text() == "earlier"


def test_without_room_a_figure_keeps_its_earlier_files(no_room, monkeypatch):
    monkeypatch.setenv("WSNOTEBOOK_FIGURES", str(no_room))
    begun, figure = session.Session("01_first", "quick", 0, torch.device("cpu"), {}), matplotlib.figure.Figure((1, 1))
    figures.save(figure, "curve", begun)
    before = {path: path.read_bytes() for path in no_room.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match=r"cannot write .*curve\.json \(.*make room.*set WSNOTEBOOK_FIGURES"):
        figures.save(figure, "curve", begun, metrics={"long": "x" * 2 * ROOM})
    assert {path: path.read_bytes() for path in no_room.rglob("*") if path.is_file()} == before


def test_without_room_training_goes_on_unkept_and_what_was_kept_stays(no_room, monkeypatch):
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(no_room))
    path = no_room / "results" / "run.pt"
    training.save_kept(path, {"epoch": 1})
    with pytest.warns(RuntimeWarning, match=rf"not kept, the work goes on: cannot write {path} .*set WSNOTEBOOK_CACHE"):
        training.save_kept(path, large()[2])
    assert training.load_kept(path) == {"epoch": 1}
    assert os.listdir(path.parent) == ["run.pt"]


# ---- nowhere to write ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """A home in which nothing can be written, whoever asks, and no other folder named."""
    (tmp_path / "home").write_text("")
    for name in ("WSNOTEBOOK_CACHE", "WSNOTEBOOK_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("way", KEPT)
def test_without_a_home_every_method_ends_unkept_and_says_so(way, no_home):
    with pytest.warns(RuntimeWarning, match=rf"not kept, .* cannot write {no_home}/.*set WSNOTEBOOK_CACHE to a folder"):
        WAYS[way][1]()


def test_without_a_home_a_zoo_names_the_folder_to_set(no_home):
    with pytest.raises(OSError, match=rf"cannot write {no_home}/.*set WSNOTEBOOK_CACHE to a folder you can write to"):
        zoo_of_two_groups()


def test_without_a_home_a_download_names_the_folder_to_set(no_home):
    with pytest.raises(FileNotFoundError, match=r"(?s)\$WSNOTEBOOK_DATA.*set WSNOTEBOOK_CACHE to"):
        datasets.load("mnist")


# ---- the clock -----------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_and_files_of_the_future_decide_nothing(whole, tmp_path, monkeypatch):
    there, writes = whole("training")
    clock = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert work("training", tmp_path) == writes
    for path in tmp_path.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert work("training", tmp_path) == 0
    assert contents(tmp_path) == contents(there)


def test_what_a_run_wrote_is_listed_whatever_the_clock_says(tmp_path, monkeypatch, capsys):
    notebook = runs.Notebook(tmp_path / "01_first.ipynb", "", "", {})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").touch()

    def execute(chosen, parameters, *, copies, pictures):
        for path in (copies / "01_first.ipynb", pictures / "new.png"):
            path.write_text("written")
            os.utime(path, (1, 1))  # the clock was set back meanwhile
        return [runs.Run("01_first", copies / "01_first.ipynb", None, 1.0, 1.0, 1.0)]

    monkeypatch.setattr(runs, "execute", execute)
    monkeypatch.chdir(tmp_path)
    assert cli._report([notebook], {}, "quick", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[:-2] == ["wrote 01_first.ipynb", "wrote figures/new.png"]


# ---- the table -----------------------------------------------------------------------------------------------------


def test_the_readme_tells_every_fault_tried_and_no_other():
    here = Path(__file__)
    table = (here.parent.parent / "README.md").read_text(encoding="utf-8").partition("### Faults tried")[2]
    named = set(re.findall(r"`(test_\w+)`", table.partition("\n## ")[0]))
    files = {path: path.read_text(encoding="utf-8") for path in here.parent.rglob("test_*.py")}
    tests = {path: set(re.findall(r"^def (test_\w+)", text, re.MULTILINE)) for path, text in files.items()}
    assert named <= set().union(*tests.values())
    assert tests[here] - named == {"test_the_readme_tells_every_fault_tried_and_no_other"}

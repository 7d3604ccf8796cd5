"""Work by a real Dask cluster, two worker processes over TCP, gives what one process gives, bit for bit.

A worker that is killed loses nothing but time: what it had written is taken, the rest is done again by another.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import wsnotebook
from wsnotebook import cli, session, tuning, zoo
from wsnotebook.methods import compression_study as study

distributed = pytest.importorskip("distributed")
from wsnotebook import cluster  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),  # of distributed
    pytest.mark.filterwarnings("ignore:the spike had not condensed"),  # the runs here are short
]
ZOO = zoo.Config(epochs=10, batch=20, lr=(1e-3, 3e-3), snapshots=(0, 50))
SHARD = 16
SMALL = study.preset("quick", network="mlp-64-16-10", overrides={"epochs": 2, "training.epochs": 2})


def workers(n, threads=1):
    """A cluster on this machine."""
    return distributed.LocalCluster(
        n_workers=n, threads_per_worker=threads, host="127.0.0.1", protocol="tcp://", dashboard_address=":0"
    )


@pytest.fixture(scope="module")
def two():
    """Address of a scheduler with two workers."""
    with workers(2) as running:
        yield running.scheduler_address


def same(a, b):
    assert torch.equal(a.weights, b.weights)
    assert list(a.facts) == list(b.facts)
    assert all(np.array_equal(a.facts[name], values) for name, values in b.facts.items())


def test_a_zoo_is_that_of_one_process_though_a_worker_is_killed(digits, tmp_path):
    alone = zoo.train("mlp-64-16-10", digits, 200, ZOO, folder=tmp_path / "alone", shard=SHARD)
    folder, done = tmp_path / "together", []
    with workers(2) as running:

        def kill():
            """One of the two, once three shards are there."""
            while len(done) < 3:
                done[:] = folder.glob("shard-*")
                time.sleep(0.01)
            os.kill(running.workers[0].pid, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with cluster.connect(running.scheduler_address) as executor:
            together = zoo.train("mlp-64-16-10", digits, 200, ZOO, folder=folder, shard=SHARD, executor=executor)
    assert 3 <= len(done) < 200 // SHARD, "it was killed midway"
    same(alone, together)
    assert [path.name for path in folder.iterdir()] == ["zoo.safetensors"]


def test_networks_that_go_on_start_where_they_were(two, digits, tmp_path):
    parents = zoo.train("cnn-tiny", digits, 20, zoo.Config(epochs=1, batch=200), folder=tmp_path / "parents")
    config = zoo.Config(epochs=1, batch=100)
    alone = zoo.train("cnn-tiny", digits, 20, config, start=parents, folder=tmp_path / "alone")
    with cluster.connect(two) as executor:
        together = zoo.train("cnn-tiny", digits, 20, config, start=parents, folder=tmp_path / "t", executor=executor)
    same(alone, together)


def test_a_session_named_a_scheduler_runs_seeds_on_its_workers(two, monkeypatch):
    alone = study.study(SMALL, [0, 1])
    monkeypatch.setenv("WSNOTEBOOK_CACHE", os.environ["WSNOTEBOOK_CACHE"] + "-other")  # nothing is kept there
    monkeypatch.setenv("WSNOTEBOOK_SCHEDULER", two)
    with session.executor(1) as executor:
        together = study.study(SMALL, [0, 1], executor=executor)
        assert executor.submit(os.getpid).result() != os.getpid()
    for a, b in zip(alone, together, strict=True):
        states = a.result.compressed.state, b.result.compressed.state
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_workers_share_a_search(two, tmp_path):
    with cluster.connect(two) as executor:
        opened = tuning.search(
            SMALL,
            tuning.Config(trials=4),
            space={"tau": tuning.Range(0.1, 1.0)},
            storage=tmp_path / "study.db",
            executor=executor,
        )
    done = tuning.trials(opened)
    assert [trial.number for trial in done] == [0, 1, 2, 3]
    assert all(trial.ratio > 1 and trial.state != "failed" for trial in done)


def test_workers_run_notebooks(two, tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("WSNOTEBOOK_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.chdir(tmp_path)
    head, parameters = (
        new_markdown_cell("# Tiny\n\nSmall."),
        new_code_cell("scale = 'quick'", metadata={"tags": ["parameters"]}),
    )
    for name, source in {"01_good": "import os\nprint(os.getppid())", "02_bad": "1 / 0"}.items():
        cells = [head, parameters, new_code_cell(source)]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    assert cli.main(["figures", "--scheduler", two, "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"01_good +ok +[\d.]+ +[\d.]+ *\n", out), out
    assert "02_bad: cell 3 (In [3]: 1 / 0): ZeroDivisionError: division by zero" in err
    printed = nbformat.read(tmp_path / "out" / "01_good.ipynb", as_version=4).cells[-1].outputs[0].text
    with cluster.connect(two) as executor:
        assert int(printed) in executor.map(lambda _: time.sleep(0.2) or os.getpid(), range(4)), "a kernel of a worker"


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_worker_that_comes_later_and_would_give_other_numbers_is_closed(nanny):
    with workers(1) as running, cluster.connect(running.scheduler_address) as executor:
        address = running.scheduler_address
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard", nanny]
        with subprocess.Popen([*command, "--nthreads", "2"], stderr=subprocess.PIPE, text=True) as late:
            try:
                _, told = late.communicate(timeout=50)  # it ends by itself
            finally:
                late.kill()
        assert "2 threads: start it with --nthreads 1" in told
        assert executor.submit(torch.get_num_threads).result() == 1
        assert list(executor._client.nthreads().values()) == [1]


def test_a_connection_that_has_ended_refuses_no_worker():
    with workers(1) as running:
        with cluster.connect(running.scheduler_address):
            pass
        with distributed.Client(running.scheduler_address) as client:
            running.scale(2)
            client.wait_for_workers(2, timeout=30)
            assert client.run(os.getpid).keys() == client.nthreads().keys()
            assert not any(
                client.run(lambda dask_worker: [name for name in dask_worker.plugins if "wsn" in name]).values()
            )


def test_what_cannot_work_is_said_at_once(two, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConnectionError, match=r"scheduler 'tcp://127.0.0.1:9'.*start one with `dask scheduler`"):
        cluster.connect("tcp://127.0.0.1:9").__enter__()
    with workers(0) as none, pytest.raises(ConnectionError, match=f"{none.scheduler_address}' has no workers"):
        cluster.connect(none.scheduler_address).__enter__()
    with workers(1, threads=2) as one, pytest.raises(ValueError, match="2 threads: start it with --nthreads 1"):
        cluster.connect(one.scheduler_address).__enter__()
    monkeypatch.setattr(wsnotebook, "__version__", "0.0.1")
    with pytest.raises(ValueError, match=r"has wsnotebook \d.*, not 0.0.1: install the same"):
        cluster.connect(two).__enter__()
    assert cli.main(["figures", "--scheduler", "nowhere"]) == 2
    assert "wsnotebook: scheduler 'nowhere'" in capsys.readouterr().err

"""Work on several machines: an executor whose tasks are done by the workers of a Dask scheduler.

    dask scheduler                                                  # on one machine; it prints its address
    dask worker tcp://ADDRESS:8786 --nthreads 1 --nworkers 8        # on each

What takes a `concurrent.futures.Executor` takes this one: `zoo.train`, studies over seeds, `tuning.search`, sweeps,
`runs.execute`. Workers see the same folders as this process (one machine, or a shared file system): results are files
that are written whole or not at all, so the tasks of a lost worker are done again by another.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

import wsnotebook
from wsnotebook import figures
from wsnotebook.datasets import cache_folder

WAIT = 10  # seconds for the scheduler to answer


@contextmanager
def connect(address: str) -> Iterator[Executor]:
    """Executor of the Dask scheduler at an address, such as tcp://127.0.0.1:8786.

    Raises ModuleNotFoundError without Dask, ConnectionError where nothing answers or there is no worker, and ValueError
    for workers that would give other numbers: of several threads, of another version of this package, or that do not
    see our cache folder. Such a worker that comes later is closed.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a scheduler needs Dask: pip install 'wsnotebook[cluster]'") from error
    try:
        client = Client(address, timeout=WAIT)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"scheduler {address!r}: {type(error).__name__}: {error}; start one with `dask scheduler`, and workers "
            "with `dask worker ADDRESS --nthreads 1`"
        ) from None
    with client:
        known = set(client.nthreads())
        if not known:
            raise ConnectionError(f"scheduler {address!r} has no workers: `dask worker {address} --nthreads 1`")
        folder = cache_folder().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-") as mark:
            folders = figures.absolute_folders() | {"WSNOTEBOOK_CACHE": str(folder)}
            alike = _alike(wsnotebook.__version__, folders, mark.name, known)
            try:
                client.register_plugin(alike)
                with client.get_executor(pure=False) as executor:  # equal tasks are not one
                    yield executor
            finally:
                with suppress(OSError, RuntimeError):  # of a scheduler that was lost
                    client.unregister_worker_plugin(alike.name)  # later workers are not ours


def _alike(version: str, folders: dict[str, str], mark: str, known: set[str]):
    """Plugin that makes a worker, those that come later too, work as this process does.

    mark: a file that it must see; known: addresses of the workers that are there. Dask itself would keep a worker that
    comes later and is refused, and give it tasks: it is closed.
    """
    from distributed import WorkerPlugin

    class Alike(WorkerPlugin):
        name = f"wsnotebook-{mark}"  # each connection its own

        def setup(self, worker) -> None:
            if worker.state.nthreads != 1:
                seen, advice = f"{worker.state.nthreads} threads", "start it with --nthreads 1"
            elif wsnotebook.__version__ != version:
                seen, advice = f"wsnotebook {wsnotebook.__version__}, not {version}", "install the same"
            elif not Path(mark).exists():
                seen, advice = f"no file {mark}", "set WSNOTEBOOK_CACHE to a folder that all machines share"
            else:
                os.environ.update(folders)
                torch.set_num_threads(1)
                return
            refused = f"worker {worker.address} has {seen}: {advice}"
            if worker.address not in known:
                worker.loop.add_callback(worker.close, reason=refused)
            raise ValueError(refused)

    return Alike()

"""A zoo of 200 networks by one worker of a Dask cluster here, and by two: seconds on the wall, results equal.

    python tests/benchmarks/workers.py        # wants two idle cores

Medians of five turns each; workers have loaded and compiled everything before, for a first small zoo. What two bare
processes do at once tells what the machine has to give.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch
from distributed import LocalCluster

from wsnotebook import cluster, datasets, figures, zoo

N, TURNS = 200, 5
CONFIG = zoo.Config(epochs=25, batch=20, lr=(1e-3, 3e-3), snapshots=(0, 100))


def seconds(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def busy(_) -> None:
    """Work that fits the caches, as training small networks does."""
    torch.set_num_threads(1)
    a = torch.randn(64, 64)
    for _ in range(200_000):
        a = torch.tanh(a @ a)


def bare() -> float:
    """How much more two processes do than one, in the same time."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn) as pool:
        list(pool.map(time.sleep, [0.5, 0.5]))
        one = seconds(lambda: list(pool.map(busy, range(1))))
        return 2 * one / seconds(lambda: list(pool.map(busy, range(2))))


def main() -> dict:
    digits, times, zoos = datasets.load("digits"), {1: [], 2: []}, []
    with tempfile.TemporaryDirectory() as folder:
        for workers in times:
            with (
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
                ) as local,
                cluster.connect(local.scheduler_address) as executor,
            ):
                small = zoo.Config(epochs=1, batch=200)
                zoo.train("cnn-tiny", digits, 16 * 4, small, folder=Path(folder, f"first-{workers}"), executor=executor)
                for turn in range(TURNS):
                    options = {"folder": Path(folder, f"{workers}-{turn}"), "shard": 16, "executor": executor}
                    started = time.perf_counter()
                    zoos.append(zoo.train("cnn-tiny", digits, N, CONFIG, **options))
                    times[workers].append(time.perf_counter() - started)
        same = all(torch.equal(zoos[0].weights, other.weights) for other in zoos)
    middle = {workers: statistics.median(each) for workers, each in times.items()}
    return {
        "networks": N,
        "seconds": {str(workers): [round(s, 2) for s in each] for workers, each in times.items()},
        "ratio": middle[1] / middle[2],
        "two bare processes": bare(),
        "equal": same,
    }


if __name__ == "__main__":
    found = main()
    print(json.dumps(found, indent=2))
    session = SimpleNamespace(notebook="", scale="benchmarks", seed=0, device="cpu", parameters={})
    figures.save(None, "workers", session, metrics=found)

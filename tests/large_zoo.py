"""A zoo larger than the memory it may take goes through everything, in a process whose memory is watched.

    python tests/large_zoo.py FOLDER [NETWORK [N]]

Prints the steps' CPU seconds and the process's own memory, without files that are mapped: those the system gives back.
"""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from wsnotebook import memory, networks, symmetry, zoo
from wsnotebook.layout import Layout
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.properties import weight_statistics
from wsnotebook.methods.tokens import tokens
from wsnotebook.zoo.value import Zoo

SHARD = 10_000


def own_mib() -> float:
    """Memory of this process that no file stands for, MiB."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def shards(folder: Path, network: str, n: int) -> list[Path]:
    """Files of networks that are one network with noise on its weights and its units in random order; made once."""
    template = networks.build(network, seed=0)
    layout = Layout.of(template)
    row, paths = layout.flatten(template.state_dict()), []
    for first in range(0, n, SHARD):
        paths.append(folder / f"{network}-{first}.safetensors")
        if not paths[-1].exists():
            generator = torch.Generator().manual_seed(first)
            size = min(SHARD, n - first)
            weights = row + 0.1 * row.std() * torch.randn(size, layout.d, generator=generator)
            part = Zoo(weights, layout, {"model": np.arange(first, first + size)}, network, {})
            symmetry.permute(part, seed=first).save(paths[-1])
    return paths


def main(folder: Path, network: str = "mlp-64-96-10", n: str = "100000") -> dict:
    """Every step's CPU seconds and the most memory of its own that the process took."""
    os.environ["WSNOTEBOOK_CACHE"] = str(folder)
    seconds, most, done = {}, [own_mib()], threading.Event()

    def watch():
        while not done.wait(0.005):
            most.append(own_mib())

    def timed(step, work):
        began = time.process_time()
        result = work()
        seconds[step] = round(time.process_time() - began, 1)
        print(
            f"{step:<12}{seconds[step]:>8.1f} CPU-s, at most {max(most):,.0f} MiB so far", file=sys.stderr, flush=True
        )
        return result

    paths = shards(folder, network, int(n))
    start = own_mib()
    threading.Thread(target=watch, daemon=True).start()
    whole = folder / f"{network}.safetensors"
    timed("join", lambda: zoo.concat([zoo.load(path) for path in paths]).save(whole))
    nets = timed("load", lambda: zoo.load(whole))
    timed("statistics", lambda: weight_statistics(nets))
    of = tokens(nets.layout)
    timed("tokenise", lambda: [of.encode(block.weights).square().mean() for block in nets.blocks()])
    aligned = timed("align", lambda: symmetry.align(nets, reference=nets.weights[0].clone()))
    timed("layer PCA", lambda: layer_pca(aligned.zoo, 8).mean(aligned.zoo))
    explained = timed("PCA", lambda: coordinates(aligned.zoo, 16)).explained
    done.set()
    return {
        "networks": len(nets),
        "weights": nets.layout.d,
        "zoo_mib": whole.stat().st_size / 2**20,
        "start_mib": start,
        "most_mib": max(most),
        "seconds": seconds,
        "distance": [float(aligned.distance_before[1:].mean()), float(aligned.distance_after[1:].mean())],
        "explained": float(explained.sum()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "SMALL_MEMORY" in os.environ:  # the test's: as if there were so little
        memory.PORTION, memory.LARGE = 2**20, 2**22
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:])))

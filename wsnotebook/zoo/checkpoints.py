"""A zoo from a user's own checkpoint files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from wsnotebook import memory, networks
from wsnotebook.layout import COUNTERS, Layout, check_finite
from wsnotebook.training import read_state
from wsnotebook.zoo.value import Zoo

SUFFIXES = (".safetensors", ".pt", ".pth")


def from_checkpoints(source: str | Path | Sequence[str | Path], network: str, **build) -> Zoo:
    """The zoo of all .safetensors, .pt and .pth files in a folder (sorted by name), or of a list of files.

    network: the architecture, as `networks.build` takes it (your own: package.module:function); build: its options
    classes, channels, activation. Facts: model (a number), file, parent (-1). Nothing is unpickled.
    Raises FileNotFoundError for a missing file or folder, and ValueError naming the first file that cannot be read,
    has another architecture, or numbers that are not finite, and what is wrong with it.
    """
    paths = _files(Path(source)) if isinstance(source, str | Path) else [Path(path) for path in source]
    if not paths:
        raise ValueError("source: no files given; expected at least one checkpoint")
    template = networks.build(network, **build)
    layout = Layout.of(template, exclude=COUNTERS)
    shapes = {name: tuple(tensor.shape) for name, tensor in template.state_dict().items()}
    weights = memory.empty(len(paths), layout.d, torch.empty(0))
    for row, path in zip(weights, tqdm(paths, desc="reading", unit="file", leave=False), strict=True):
        row.copy_(_row(path, layout, shapes, network))
    facts = {
        "model": np.arange(len(paths)),
        "parent": np.full(len(paths), -1),
        "file": np.array([path.name for path in paths]),
    }
    activation = build.pop("activation", None)
    if activation is not None:
        facts["activation"] = np.full(len(paths), activation)
    return Zoo(weights, layout, facts, network, {"build": build, "source": "checkpoints"})


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"source: no folder {folder} (looked for in {Path.cwd()}); a single file goes in a list"
        )
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    if not paths:
        raise FileNotFoundError(f"source: {folder} holds no file that ends in {', '.join(SUFFIXES)}")
    return paths


def _row(path: Path, layout: Layout, shapes: dict[str, tuple], network: str) -> Tensor:
    """(d,) float32."""
    state = read_state(path)
    for name in [*layout.names, *(state.keys() - shapes.keys())]:
        seen = tuple(state[name].shape) if name in state else "absent"
        expected = shapes.get(name, "no such tensor")
        if seen != expected:
            raise ValueError(
                f"checkpoint {path}: {name!r} is {seen}, {network} has {expected} there: another architecture? "
                f"The tensors of {network}: {', '.join(layout.names)}"
            )
    check_finite(state, f"checkpoint {path}")
    return layout.flatten(state).float()

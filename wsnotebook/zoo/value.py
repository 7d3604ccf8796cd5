"""Zoo: many trained networks of one architecture as one value, a row of weights each, with the facts of every row.

A file is one `.safetensors`: the weights and facts as tensors, the rest as text in the header. It is memory-mapped when
it is loaded, and never unpickled. A zoo may be larger than memory (`memory`).
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wsnotebook import memory, networks
from wsnotebook.datasets import replacing
from wsnotebook.layout import Layout

FORMAT = "wsnotebook zoo 1"


@dataclass(frozen=True, eq=False)
class Zoo:
    """n networks of d weights each, and what is known of each of them.

    Raises ValueError when the parts do not fit together, or naming the first row that is not finite.
    """

    weights: Tensor  # (n, d) float32
    layout: Layout
    facts: dict[str, np.ndarray]  # {name: (n,)}: numbers or strings
    network: str  # the architecture's name, as `networks.build` takes it
    provenance: dict[str, Any]  # how it was made (JSON); "build": what else `networks.build` needs

    def __post_init__(self):
        if self.weights.ndim != 2 or self.weights.shape[1] != self.layout.d:
            seen = tuple(self.weights.shape)
            raise ValueError(f"weights: shape {seen}, expected (n, {self.layout.d}) by the layout of {self.network}")
        for name, values in self.facts.items():
            if np.shape(values) != (len(self),):
                raise ValueError(f"facts[{name!r}]: shape {np.shape(values)}, expected ({len(self)},), one a network")
        finite = memory.mapped(lambda rows: rows.isfinite().all(1, keepdim=True), self.weights)[:, 0]
        if not finite.all():
            row = int((~finite).int().argmax())
            raise ValueError(
                f"weights: row {row} has numbers that are NaN or infinite ({int((~finite).sum())} of {len(self)} rows "
                "have); leave them out first: weights[weights.isfinite().all(1)]"
            )

    def __len__(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        return f"Zoo({len(self)} x {self.network}, d={self.layout.d}, facts: {', '.join(self.facts)})"

    def to(self, device: str | torch.device) -> "Zoo":
        """The same networks with their weights on another device."""
        return replace(self, weights=self.weights.to(device))

    def module(self, i: int) -> nn.Module:
        """Network i as an ordinary module in evaluation mode, with a copy of its weights, on their device."""
        network = self.template(i).to(self.weights.device)
        network.load_state_dict(self.layout.unflatten(self.weights[i].clone()), strict=False)
        return network

    def template(self, i: int = 0) -> nn.Module:
        """A module of network i's architecture and activation, in evaluation mode, with weights of its own."""
        options = dict(self.provenance.get("build", {}))
        if "activation" in self.facts:
            options["activation"] = str(self.facts["activation"][i])
        return networks.build(self.network, **options).eval()

    def groups(self) -> Iterator[tuple[nn.Module, np.ndarray]]:
        """(template, row numbers) of the networks that share an activation, so that each group is one computation."""
        kinds = self.facts.get("activation", np.zeros(len(self)))
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            yield self.template(rows[0]), rows

    def blocks(self) -> Iterator["Zoo"]:
        """The zoo in stretches of rows that are small beside memory; views, no copies."""
        for here in memory.portions(*self.weights.shape):
            yield replace(self, weights=self.weights[here], facts={k: values[here] for k, values in self.facts.items()})

    def filter(self, rows: np.ndarray | Sequence[int]) -> "Zoo":
        """The networks of these rows: a mask (n,), as `zoo.facts["step"] == 2000`, or row numbers, in their order."""
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape != (len(self),):
            raise ValueError(f"rows: a mask of shape {rows.shape}, expected ({len(self)},)")
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        facts = {name: values[rows] for name, values in self.facts.items()}
        return replace(self, weights=memory.gathered(self.weights, torch.from_numpy(rows)), facts=facts)

    def derived(self, weights: Tensor, **facts: np.ndarray) -> "Zoo":
        """Networks made from this zoo's, row by row: other weights (n, d), and facts to add or replace."""
        return replace(self, weights=weights, facts=self.facts | facts)

    def made(self, weights: Tensor, parent: np.ndarray | int = -1, **facts: np.ndarray) -> "Zoo":
        """New networks (m, d) of this zoo's architecture, not row by row; parent: the model each was, -1 for several.

        Raises ValueError when the zoo's networks have several activations: which would a new one have?
        """
        m = len(weights)
        own = {"model": np.arange(m), "parent": np.broadcast_to(parent, m).copy()}
        if "activation" in self.facts:
            kinds = np.unique(self.facts["activation"])
            if len(kinds) > 1:
                raise ValueError(f"zoo: activations {', '.join(kinds)}; take the networks of one, as zoo.filter does")
            own["activation"] = np.repeat(kinds, m)
        return replace(self, weights=weights, facts=own | facts)

    def split(self, shares: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0) -> tuple["Zoo", ...]:
        """A zoo a share, such as train, validation and test; all rows with the same fact "model" go into the same one.

        Raises ValueError when the shares are no parts of 1 or a zoo would be empty.
        """
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares={tuple(shares)}: expected positive numbers that sum to 1")
        owners = self.facts.get("model", np.arange(len(self)))
        models = np.random.default_rng(seed).permutation(np.unique(owners))
        ends = np.round(np.cumsum(shares) * len(models)).astype(int)
        parts = np.split(models, ends[:-1])
        if not all(map(len, parts)):
            raise ValueError(f"shares={tuple(shares)}: {len(models)} models are too few for {len(shares)} parts")
        return tuple(self.filter(np.isin(owners, part)) for part in parts)

    def save(self, path: str | Path) -> Path:
        """Write the zoo as one .safetensors file (whole or not at all).

        Raises OSError when it cannot be written, ValueError for facts that are neither numbers nor strings.
        """
        tensors, categories = {"weights": self.weights.contiguous()}, {}
        for name, values in self.facts.items():
            if values.dtype.kind not in "biufcU":
                raise ValueError(f"facts[{name!r}]: type {values.dtype}, expected numbers or strings")
            if values.dtype.kind == "U":
                kinds, values = np.unique(values, return_inverse=True)
                categories[name] = kinds.tolist()
            tensors[f"facts.{name}"] = torch.tensor(values)  # a copy: two facts may be one array
        text = {"layout": [list(self.layout.names), self.layout.shapes, list(self.layout.kinds)]}
        text |= {"facts": list(self.facts), "categories": categories}
        text |= {"network": self.network, "provenance": self.provenance}
        text |= {"crc32": {name: _crc32(tensor) for name, tensor in tensors.items()}}
        header = {"format": FORMAT} | {key: json.dumps(value) for key, value in text.items()}
        with replacing(path) as part:
            safetensors.torch.save_file(tensors, part, header)
        return Path(path)


def load(path: str | Path, network: str | None = None) -> Zoo:
    """The zoo in a file that `Zoo.save` wrote, memory-mapped.

    network: its architecture, needed where that is your own (package.module:function) and you have not built it in this
    process: a file may name any function that can be imported, so it is called only if you name it as well.
    Raises FileNotFoundError, or ValueError for a damaged file, one that holds something else, or another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"zoo {path}: no such file (looked for in {Path.cwd()})")
    size = path.stat().st_size
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"zoo {path}: not readable ({error}); it is damaged, or no .safetensors file") from None
    if header.get("format") != FORMAT:
        raise ValueError(
            f"zoo {path}: its format is {header.get('format')!r}, expected {FORMAT!r}; a single network's checkpoint "
            "is read by zoo.from_checkpoints"
        )
    try:
        for name, crc32 in json.loads(header.get("crc32", "{}")).items():  # there is none in files of wsnotebook 0.4
            if _crc32(tensors[name]) != crc32:
                raise ValueError(f"another checksum of {name}")
        names, shapes, kinds = json.loads(header["layout"])
        layout = Layout(tuple(names), tuple(map(tuple, shapes)), tuple(kinds))
        categories = json.loads(header["categories"])
        facts = {name: tensors[f"facts.{name}"].numpy() for name in json.loads(header["facts"])}
        for name, kinds in categories.items():
            kinds = np.asarray(kinds, dtype=str)
            if kinds.itemsize * facts[name].size > (1 << 20) + 16 * size:
                raise ValueError(f"texts of {name} that take much more than the file: {kinds.itemsize} bytes each")
            facts[name] = kinds[facts[name]]
        text = {key: json.loads(header[key]) for key in ("network", "provenance")}
        weights = tensors["weights"]
        if weights.dtype != torch.float32 or (len(weights) and not layout.d):
            raise ValueError(f"weights of {weights.dtype} in rows of {layout.d}; expected float32, and at least 1")
        if not isinstance(text["network"], str) or not isinstance(text["provenance"], dict):
            raise ValueError(f"network {text['network']!r}, provenance {text['provenance']!r}: no text, or no dict")
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"zoo {path}: damaged ({type(error).__name__}: {error})") from None
    named = text["network"]
    if network is not None and named != network:
        raise ValueError(f"zoo {path}: its networks are {named!r}, expected network={network!r}")
    if network is None and not networks.is_safe(named):
        raise ValueError(
            f"zoo {path}: its networks are made by the function {named!r}, which a file alone cannot have called; "
            f"if you know that function, name it: zoo.load(path, network={named!r})"
        )
    try:
        return Zoo(weights, layout, facts, **text)
    except ValueError as error:
        raise ValueError(f"zoo {path}: {error}") from None


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().numpy().reshape(-1).view(np.uint8))


def concat(zoos: Sequence[Zoo]) -> Zoo:
    """All networks of several zoos of one architecture, in order, with the facts that all of them have.

    Raises ValueError for no zoos, and naming the first that differs in network or layout.
    """
    if not zoos:
        raise ValueError("zoos: none given; expected at least one")
    first = zoos[0]
    for i, other in enumerate(zoos):
        if (other.network, other.layout) != (first.network, first.layout):
            raise ValueError(
                f"zoos[{i}] holds {other.network} with d={other.layout.d}, zoos[0] {first.network} with "
                f"d={first.layout.d}; a zoo has one architecture"
            )
    common = [name for name in first.facts if all(name in other.facts for other in zoos)]
    facts = {name: np.concatenate([other.facts[name] for other in zoos]) for name in common}
    return replace(first, weights=memory.joined([other.weights for other in zoos]), facts=facts)

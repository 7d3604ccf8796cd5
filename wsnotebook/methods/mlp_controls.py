"""What a search of small perceptrons is compared with: dense networks, and dense ones pruned step by step.

SWAT-NN (Huang et al. 2025) has no such controls. They are trained like what is searched (`mlp_fitting`), pruned by
magnitude (Han et al. 2015) or by what their numbers matter (`mlp_pruning`), and chosen on validation rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from wsnotebook.cornn import Table
from wsnotebook.datasets import cache_folder
from wsnotebook.methods.mlp_fitting import Config, Data, Fitted, errors, fit
from wsnotebook.methods.mlp_matrix import Form, Parts, concat, empty, non_zeros
from wsnotebook.methods.mlp_pruning import keep_important, keep_largest
from wsnotebook.training import check_choice, fingerprint, load_kept, save_kept

FACTS = "non_zeros", "validation", "test"


@dataclass(frozen=True)
class Control:
    """Of every function and size the network of lowest validation error among its restarts."""

    names: tuple[str, ...]  # of the functions
    parts: Parts  # functions * sizes networks, a function's together
    non_zeros: Tensor  # (functions, sizes) int64, and of the same shape:
    validation: Tensor  # mean square errors
    test: Tensor

    def measured(self, function: str) -> tuple[Tensor, Tensor, Tensor]:
        """(non-zeros, validation, test errors) of this function's networks, (sizes,) each."""
        return tuple(getattr(self, name)[self.names.index(function)] for name in FACTS)


def dense(
    form: Form,
    shapes: Sequence[Sequence[int]],
    activation: str,
    table: Table,
    config: Config,
    restarts: int = 3,
    *,
    keep: bool = False,
) -> Control:
    """Networks without zeros, of several shapes (the units of each hidden layer, as (7,) or (5, 5)), all at once.

    keep: store the result in the cache folder; the same call later returns at once. Raises ValueError for an activation
    or a shape that the form has not.
    """

    def made() -> Control:
        parts, data = _start(form, shapes, activation, table, config, restarts)
        return _chosen(form, table, [fit(form, parts, *data, config)], len(shapes), restarts)

    return _kept("dense", made, table, form, shapes, activation, config, restarts) if keep else made()


def pruned(
    form: Form,
    shapes: Sequence[Sequence[int]],
    activation: str,
    table: Table,
    counts: Sequence[int],
    config: Config,
    fine_tuning: Config,
    by: str = "magnitude",
    restarts: int = 3,
    *,
    keep: bool = False,
) -> Control:
    """The same, pruned to these numbers of non-zeros, from the largest on: sizes are (counts, shapes).

    by: magnitude | importance (`mlp_pruning`). They lose a third at most at a time and are then trained by
    `fine_tuning`. Raises ValueError as `dense`, and for another `by`.
    """
    check_choice("by", by, ("magnitude", "importance"))
    prune = keep_largest if by == "magnitude" else partial(keep_important, x=table.train[0])

    def made() -> Control:
        parts, data = _start(form, shapes, activation, table, config, restarts)
        fitted, found = fit(form, parts, *data, config), []
        left = int(non_zeros(form, parts).max())
        for count in tqdm(sorted(counts, reverse=True), desc=f"pruning by {by}", leave=False):
            while left > count:
                left = max(count, left * 2 // 3)
                fitted = fit(form, prune(form, fitted.parts, left), *data, fine_tuning)
            found.append(fitted)
        return _chosen(form, table, found, len(shapes), restarts)

    given = form, shapes, activation, counts, config, fine_tuning, by, restarts
    return _kept("pruned", made, table, *given) if keep else made()


def together(controls: Sequence[Control]) -> Control:
    """The networks of several controls of the same functions as those of one."""
    first, functions = controls[0], len(controls[0].names)
    rows = [torch.arange(control.non_zeros.numel()).view(functions, -1) for control in controls]
    starts = torch.tensor([0, *(own.numel() for own in rows[:-1])]).cumsum(0)
    order = torch.cat([own + start for own, start in zip(rows, starts, strict=True)], 1).flatten()
    facts = (torch.cat([getattr(control, name) for control in controls], 1) for name in FACTS)
    return Control(first.names, concat([control.parts for control in controls]).take(order), *facts)


def _kept(kind: str, made: Callable[[], Control], table: Table, *given) -> Control:
    path = cache_folder() / "results"
    path /= f"{kind}-{fingerprint(*given, table.names, *table.train, *table.validation, *table.test)}.pt"
    if stored := load_kept(path):
        return Control(table.names, Parts(*stored["parts"]), *(stored[name] for name in FACTS))
    control = made()
    save_kept(path, {"parts": tuple(control.parts)} | {name: getattr(control, name) for name in FACTS})
    return control


def _start(form, shapes, activation, table: Table, config: Config, restarts: int) -> tuple[Parts, tuple[Data, Data]]:
    """Networks for (functions, shapes, restarts), and their training and validation rows."""
    functions = len(table.names)
    pattern = concat([_dense(form, shape, activation) for shape in shapes])
    parts = _drawn(pattern.take(torch.arange(len(shapes)).repeat_interleave(restarts).repeat(functions)), config.seed)
    lanes = torch.arange(functions).repeat_interleave(len(shapes) * restarts)
    return parts, (_of(table.train, lanes), _of(table.validation, lanes))


def _dense(form: Form, shape: Sequence[int], activation: str) -> Parts:
    """One network with 1 in all its places."""
    if activation not in form.activations:
        raise ValueError(f"activation={activation!r}: expected one of {form}")
    if not 1 <= len(shape) <= form.depth or not 1 <= min(shape) <= max(shape) <= form.width:
        raise ValueError(f"shape {tuple(shape)}: expected the units of 1 to {form.depth} hidden layers of {form}")
    parts = empty(form, torch.tensor([len(shape)]))
    for layer, (before, here) in enumerate(pairwise([form.inputs, *shape, form.outputs])):
        place = layer if layer < len(shape) else form.depth
        parts.weights[:, place, :here, :before], parts.biases[:, place, :here] = 1, 1
    for layer, here in enumerate(shape):
        parts.masks[:, layer, :here], parts.activations[:, layer, :here, form.activations.index(activation)] = 1, 1
    return parts


def _drawn(pattern: Parts, seed: int) -> Parts:
    """Random numbers where the pattern is not 0, as PyTorch draws a linear layer's: uniform up to 1 / sqrt(fan-in)."""
    g = torch.Generator().manual_seed(seed)
    bound = (pattern.weights != 0).sum(-1).clamp(min=1).rsqrt()  # (n, L + 1, H)
    weights, biases = (2 * torch.rand(part.shape, generator=g) - 1 for part in pattern[:2])
    weights, biases = weights * bound[..., None] * (pattern.weights != 0), biases * bound * (pattern.biases != 0)
    return pattern._replace(weights=weights, biases=biases)


def _of(data: Data, functions: Tensor) -> Data:
    """A table's rows with a target for each network: y (m, n, 1)."""
    x, y = data
    return x, y[:, functions, None]


def _chosen(form: Form, table: Table, found: list[Fitted], sizes: int, restarts: int) -> Control:
    """The best restarts of several trainings of (functions, sizes, restarts) networks; these are then all the sizes."""
    functions = len(table.names)
    parts, validation = concat([f.parts for f in found]).to("cpu"), torch.cat([f.validation for f in found]).cpu()
    lanes = torch.arange(len(validation)).view(len(found), functions, sizes, restarts)
    lanes = lanes.transpose(0, 1).flatten(1, 2)  # (functions, sizes, restarts)
    validation, best = validation[lanes].min(2)
    parts = parts.take(lanes.gather(2, best[..., None]).flatten())
    test = errors(form, parts, _of(table.test, torch.arange(functions).repeat_interleave(lanes.shape[1]))).cpu()
    return Control(table.names, parts, non_zeros(form, parts).view_as(best), validation, test.view_as(best))

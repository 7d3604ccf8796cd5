"""Trained perceptrons for compression (`mlp_compression`), in the published shape and in a wide one."""

from collections.abc import Sequence

import torch

from wsnotebook import cornn
from wsnotebook.methods import mlp_fitting, mlp_modules
from wsnotebook.methods.mlp_blocks import smallest_form
from wsnotebook.methods.mlp_matrix import concat
from wsnotebook.networks import UNITS, MixedMLP
from wsnotebook.training import epoch_randomness


def deep_teacher(function: str = "adjiman", seed: int = 0) -> tuple[MixedMLP, float]:
    """The published shape, 413 weights: 2-7x9-1, leaky ReLU, no biases; trained here. (network, its test FVU).

    Without biases f(a x) = a f(x), a > 0: of CORNN's functions it can learn few, best Adjiman (FVU 0.015).
    """
    return _teacher((2, *[7] * 9, 1), "leaky_relu", False, function, seed)


def wide_teacher(function: str = "himmelblau", seed: int = 0) -> tuple[MixedMLP, float]:
    """2-32-32-32-1, tanh, 2,241 weights and biases, trained on a CORNN function. (network, its test FVU)."""
    return _teacher((2, 32, 32, 32, 1), "tanh", True, function, seed)


def _teacher(sizes, activation: str, biased: bool, function: str, seed: int) -> tuple[MixedMLP, float]:
    """The best of four starts by validation error."""
    table, starts = cornn.table([function]), [random_network(sizes, activation, biased, 4 * seed + i) for i in range(4)]
    form = smallest_form(starts)
    train, validation, test = (
        (x, y[:, None].expand(-1, 4, -1)) for x, y in (table.train, table.validation, table.test)
    )
    parts = concat([mlp_modules.from_network(form, start) for start in starts])
    fitted = mlp_fitting.fit(form, parts, train, validation, mlp_fitting.Config(lr=0.01, seed=seed))
    best = int(fitted.validation.argmin())
    error = mlp_fitting.errors(form, fitted.parts, test)[best] / test[1][:, 0].var(correction=0)
    return mlp_modules.network(form, fitted.parts, best), float(error)


def random_network(sizes: Sequence[int], activation: str, biased: bool, seed: int) -> MixedMLP:
    """A network of random weights, of variance 2 / fan-in where there are no biases, else as PyTorch's."""
    with epoch_randomness(seed, 0, torch.device("cpu")):
        made = MixedMLP(*sizes)
        for name, tensor in made.state_dict().items():
            if name.startswith("activation"):
                tensor.fill_([*UNITS].index(activation))
            elif not biased:
                tensor.zero_() if tensor.ndim == 1 else tensor.normal_(std=(2 / tensor.shape[1]) ** 0.5)
    return made

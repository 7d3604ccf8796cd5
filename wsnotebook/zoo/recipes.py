"""The published zoos' recipes by name, and their twins for the embedded data: (data set, network, n, Config).

DeepWeightFlow's: mlp_mnist, mlp_fashion, mlp_iris, resnet-20, resnet-18, vit. The Model Zoos': cnn-<data>-seeds (one
setting, many seeds) and cnn-<data>-settings (a grid of settings). What is not copied: choosing checkpoints, or when to
stop, on test data (here the last step is kept), a residual block that left out a normalisation, a learning rate that
follows a cosine of 300 steps up and down, and weights drawn from [0, 1] or with variance 1, which do not train.
"""

from dataclasses import dataclass, replace

from wsnotebook import networks
from wsnotebook.zoo.training import Config


@dataclass(frozen=True)
class Recipe:
    """What `train(recipe.network, load(recipe.dataset), recipe.n, recipe.config)` needs."""

    dataset: str  # as `datasets.load` takes it
    network: str  # as `networks.build` takes it
    n: int  # networks in the published zoo; a smaller n is the first of them
    config: Config


_SETTINGS = Config(
    epochs=50,
    batch=10,
    optimiser=("adam", "sgd"),
    lr=(1e-3, 1e-4),
    weight_decay=(1e-3, 1e-4),
    init=("default", "he", "xavier", "normal"),
    activation=tuple(networks.ACTIVATIONS),
    dropout=(0.0, 0.5),
)
_CNN = Config(epochs=50, batch=10, activation="tanh", lr=3e-4)

RECIPES = {
    "mlp_mnist": Recipe("mnist", "mlp-784-32-32-10", 100, Config(init="he")),
    "mlp_fashion": Recipe(
        "fashion_mnist", "mlp-784-128-128-10", 100, Config(epochs=25, batch=128, optimiser="adamw", init="he")
    ),
    "mlp_iris": Recipe("iris", "mlp-4-16-3", 100, Config(epochs=100, batch=16, init=networks.INITS)),
    "resnet-20": Recipe("cifar10", "resnet-20", 100, Config(batch=128, shift=4, flip=True)),
    "resnet-18": Recipe(
        "cifar10",
        "resnet-18",
        100,
        Config(
            epochs=100, batch=512, optimiser="sgd", lr=0.1, weight_decay=5e-4, schedule="cosine", shift=4, flip=True
        ),
    ),
    "vit": Recipe(
        "cifar10",
        "vit-small",
        100,
        Config(
            epochs=300, batch=128, optimiser="adamw", lr=3e-4, weight_decay=0.05, schedule="cosine", shift=4, flip=True
        ),
    ),
    "cnn-mnist-seeds": Recipe("mnist", "cnn-small", 1000, _CNN),
    "cnn-cifar10-seeds": Recipe(
        "cifar10",
        "cnn-large",
        1000,
        Config(epochs=50, batch=10, activation="gelu", init="he", lr=1e-4, weight_decay=1e-2),
    ),
    "cnn-mnist-settings": Recipe("mnist", "cnn-small", 1280, _SETTINGS),
    "cnn-cifar10-settings": Recipe("cifar10", "cnn-large", 1280, _SETTINGS),
    "mlp_digits": Recipe("digits", "mlp-64-32-32-10", 100, Config(epochs=20, batch=32, lr=2e-3, init="he")),
    "cnn-digits-seeds": Recipe("digits", "cnn-tiny", 100, Config(epochs=30, batch=10, lr=3e-3, activation="tanh")),
    "cnn-digits-settings": Recipe(
        "digits",
        "cnn-tiny",
        128,
        Config(
            epochs=20,
            batch=10,
            optimiser=("adam", "sgd"),
            lr=(3e-3, 1e-3),
            weight_decay=(1e-3, 1e-4),
            init=("default", "xavier"),
            activation=("relu", "tanh"),
            dropout=(0.0, 0.2),
            snapshots=(0, 20, 50, 100, 250, 600, 1200),
        ),
    ),
    "resnet-8-digits": Recipe("digits", "resnet-8", 8, Config(epochs=5, batch=64)),
    "vit-digits": Recipe("digits", "vit-tiny", 16, Config(epochs=20, batch=64, optimiser="adamw")),
}

_SHORT = Config(
    epochs=1,
    batch=10,
    optimiser=("adam", "sgd"),
    lr=(3e-3, 1e-3),
    weight_decay=(1e-3, 1e-4),
    init=("default", "he", "xavier"),
    activation=tuple(networks.ACTIVATIONS),
    dropout=(0.0, 0.3),
    snapshots=(0, 100, 600, 2400),
)
_MIXED = replace(_SHORT, activation=("tanh", "relu", "gelu"), dropout=0.0, snapshots=(50, 120, 300, 600), scored=1_000)
RECIPES |= {
    "cnn-mnist-short": Recipe("mnist", "cnn-small", 192, _SHORT),  # one epoch of the grid, on a laptop
    "cnn-mnist-mixed": Recipe("mnist", "cnn-small", 512, _MIXED),  # of few images (notebook 04 takes 8,000)
}

SCALES = {  # of notebook 03: (a zoo of many settings, a zoo of many seeds)
    "quick": ("cnn-digits-settings", "mlp_digits"),
    "laptop": ("cnn-mnist-short", "mlp_mnist"),
    "paper": ("cnn-mnist-settings", "mlp_mnist"),
}


def recipe(name: str) -> Recipe:
    """The recipe of this name. Raises ValueError for another."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name]

"""Experiments with SuperWeights: presets by name, a bank and its controls side by side, several seeds.

Everything is chosen on validation rows; a trained arm has not looked at the test rows.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

from torch import nn
from torch.nn import functional as F

from wsnotebook import datasets, networks
from wsnotebook.datasets import Dataset
from wsnotebook.methods.superweight_baselines import thinned, thinner
from wsnotebook.methods.superweight_training import Config, Result, train
from wsnotebook.training import finished

ARMS = {
    "bank": {},
    "gradient groups": {"groups": "gradient"},
    "random groups": {"groups": "random"},
    "hard slices": {"hard": True, "sharing": "own", "unshare": ()},
    "thin": {"groups": "none"},  # separate networks of as many numbers as the bank
    "independent": {"groups": "none"},
}  # what each changes of a Config


@dataclass(frozen=True)
class Preset:
    """Everything one experiment needs: data, members, their training and a budget."""

    dataset: str
    networks: tuple[str, ...]  # as `networks.build_for` has them
    config: Config
    budget: int  # numbers, as config.counted says
    width: float = 1.0  # of all inner layers, times the published one
    pooled: int = 1  # side of the squares of pixels that are averaged
    train: int | None = None  # rows; None: all
    seeds: int = 1  # runs, for the interval


_PAPER = Config(
    epochs=200,
    schedule="step",
    warm_up=0.0,
    shift=4,
    flip=True,
    cutout=16,
    pretraining=20,
    counted="bank",
    sharing="similar",
    unshare=(10,),
    unshare_threshold=0.9,
)

PRESETS = {
    "quick": Preset(
        dataset="digits",
        networks=("wrn-16-1", "wrn-10-1"),
        config=Config(epochs=6, batch=64, shift=1, groups="depth", bins=8, pretraining=2, sharing="own"),
        budget=140_000,
    ),
    "laptop": Preset(
        dataset="cifar10",
        networks=("wrn-16-2", "wrn-16-1", "wrn-10-2", "wrn-10-1"),
        config=Config(epochs=15, batch=100, shift=2, flip=True, groups="depth", bins=8, pretraining=2, sharing="own"),
        budget=177_856,  # 57 % of the separate networks
        width=0.5,
        pooled=2,
        train=8_000,
        seeds=3,
    ),
    "multi-depth-width": Preset("cifar100", ("wrn-28-7", "wrn-28-4", "wrn-16-7", "wrn-16-4"), _PAPER, 18_000_000),
    "multi-width": Preset("cifar100", ("wrn-28-7", "wrn-28-4", "wrn-28-3"), _PAPER, 18_000_000),
}  # the last two are the public code's commands; for CIFAR-10, replace the dataset


def prepared(preset: Preset, seed: int = 0, device="cpu") -> tuple[list[nn.Module], Dataset]:
    """The members of an experiment, freshly initialised, and its data."""
    dataset = datasets.load(preset.dataset)
    if preset.train is not None:
        dataset = dataset.first(train=preset.train)
    if preset.pooled > 1:
        side = f"{dataset.train[0].shape[-1] // preset.pooled} pixels wide"
        dataset = dataset.changed(side, lambda x: F.avg_pool2d(x, preset.pooled))
    dataset, n = dataset.to(device), len(preset.networks)
    built = [networks.build_for(dataset, name, seed=n * seed + m) for m, name in enumerate(preset.networks)]
    return [thinned(network, preset.width) for network in built], dataset


def arms(
    networks: Sequence[nn.Module], dataset: Dataset, config: Config, budget: int | None = None, *, keep: bool = False
) -> dict[str, Result]:
    """A bank and its controls, as `train` makes them. An interrupt ends them all."""
    found, known = {}, None
    for arm, changes in ARMS.items():
        members = networks
        if arm == "thin":
            members = thinner(networks, dataset.train[0][:1], found["bank"].plan.sizes["shared"])
        changed = replace(config, **changes)
        found[arm] = finished(train(members, dataset, changed, budget, known=known, keep=keep))
        known = known or found[arm].similarities
    return found


def study(preset: Preset, seeds: Sequence[int], device="cpu", executor: Executor | None = None) -> list[dict]:
    """`arms` of an experiment for each seed; kept as they go, side by side if an executor is given."""
    one = partial(_arms, preset, device)
    return list(executor.map(one, seeds) if executor else map(one, seeds))


def _arms(preset: Preset, device, seed: int) -> dict[str, Result]:
    members, dataset = prepared(preset, seed, device)
    return arms(members, dataset, replace(preset.config, seed=seed), preset.budget, keep=True)

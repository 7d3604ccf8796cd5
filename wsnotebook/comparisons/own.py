"""A user's own networks for the comparisons: a zoo's file, or a folder of checkpoints of any one architecture."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsnotebook import evaluation, zoo
from wsnotebook.datasets import Dataset
from wsnotebook.methods.properties import last_snapshots
from wsnotebook.zoo.value import Zoo

SCORED = zoo.Config().scored  # training rows, the first, that a training accuracy is measured on
PARTS = ("train", "validation", "test")
MEASURED = {"gap"} | {f"{part}_{fact}" for part in PARTS for fact in ("accuracy", "loss")}


def load(path: str | Path, network: str, dataset: Dataset) -> Zoo:
    """The networks of a zoo's .safetensors file, or of a folder's checkpoints, and what each does on the dataset.

    They are on the dataset's device. network: the architecture of a folder's checkpoints, as `networks.build` takes it
    (your own: package.module:function); a zoo's file names its own, which has to be said too if it is a function, as
    `zoo.load` explains.
    Facts, measured where they are absent or of other data: accuracies (%) and losses (nats) of train (its first 5,000
    rows), validation and test, and gap (train minus test accuracy).
    Raises FileNotFoundError for a path that is not there, and ValueError for a folder without `network`, networks that
    do not take the data, and what `zoo.load` and `zoo.from_checkpoints` do.
    """
    path = Path(path)
    if path.is_dir():
        if not network:
            raise ValueError(
                f"zoo_path={str(path)!r} is a folder of checkpoints: say their architecture, as network='mlp-64-32-10' "
                "or network='package.module:function' for your own"
            )
        channels = dataset.train[0].shape[1] if dataset.train[0].ndim == 4 else None
        nets = zoo.from_checkpoints(path, network, classes=dataset.outputs, channels=channels)
    else:
        nets = zoo.load(path, network or None)
    return measured(nets.to(dataset.train[0].device), dataset)


def measured(nets: Zoo, dataset: Dataset) -> Zoo:
    """The networks with accuracies, losses and gap as facts, measured where they are absent; errors as `load`.

    Facts of networks that were trained on other data are of that data: they are measured again, with a RuntimeWarning.
    """
    dataset.check_classes("a comparison of networks")
    here = {"dataset": dataset.name, "checksum": dataset.checksum}
    there = {key: nets.provenance.get(key, value) for key, value in here.items()}
    if there != here and (others := MEASURED & nets.facts.keys()):
        of = f"{there['dataset']!r} (checksum {str(there['checksum'])[:12]})"
        wanted = f"{dataset.name!r} (checksum {dataset.checksum[:12]})"
        warnings.warn(f"facts of data {of}, expected of {wanted}: measured again", RuntimeWarning, stacklevel=2)
        nets = replace(nets, facts={name: values for name, values in nets.facts.items() if name not in others})
    facts = {}
    for part in PARTS:
        if not {f"{part}_accuracy", f"{part}_loss"} <= nets.facts.keys():
            x, y = getattr(dataset, part)
            found = evaluation.report(nets, (x[:SCORED], y[:SCORED]) if part == "train" else (x, y))
            facts |= {f"{part}_accuracy": found.accuracy, f"{part}_loss": found.loss}
    facts = {name: values for name, values in facts.items() if name not in nets.facts}
    known = nets.facts | facts
    gap = {} if "gap" in known else {"gap": known["train_accuracy"] - known["test_accuracy"]}
    return nets.derived(nets.weights, **facts, **gap)


def alike(nets: Zoo) -> Zoo:
    """The last snapshot of each model, of the commonest activation: networks that one generator can be fitted to."""
    nets = nets.filter(last_snapshots(nets)) if {"model", "step"} <= nets.facts.keys() else nets
    if "activation" not in nets.facts:
        return nets
    kinds, counts = np.unique(nets.facts["activation"], return_counts=True)
    return nets.filter(nets.facts["activation"] == kinds[counts.argmax()])

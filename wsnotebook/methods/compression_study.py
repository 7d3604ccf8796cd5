"""Experiments with soft weight-sharing: presets by name, several seeds, a target to reach, and a run's folder.

Everything is chosen on validation rows; a `Run` has not looked at the test rows.
"""

import csv
import io
import json
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import safetensors.torch
from torch import nn

from wsnotebook import datasets, networks, training
from wsnotebook.datasets import Dataset
from wsnotebook.methods import codebook
from wsnotebook.methods.soft_weight_sharing import Config, Result, compress


@dataclass(frozen=True)
class Preset:
    """Everything one experiment needs: data, network, its training and its compression."""

    dataset: str
    network: str
    training: training.Config
    config: Config
    target: dict[str, float]  # what tau is searched for, as in `reach`; empty: keep config.tau
    tries: int  # of that search
    seeds: int  # runs, for the interval
    checkpoint: str = ""  # file of a trained network to start from; empty: train one


@dataclass(frozen=True)
class Run:
    """One seed of an experiment: the trained network and its compression. The test set has not been looked at."""

    seed: int
    trained: training.Result
    result: Result


# ---- presets -------------------------------------------------------------------------------------------------------

_LENET = Config(gamma=(391.84, 0.3369), gamma_zero=(5661.6, 2.889), tau=0.0044376)  # the public code's tuned values
_CONSTANT = training.Config(epochs=20, schedule="constant")
_OURS = replace(
    _LENET,
    init_sigma=0.1,
    tolerance=1e-3,
    lr_weights=5e-3,
    lr_means=2e-4,
    lr_log_variances=3e-3,
    lr_logits=6e-3,
    schedule="cosine",
    train_rest=True,
    epochs=20,
    batch=256,
    shift=1,
    merge=0.15,
    assign="validation",
    fine_tune=codebook.Config(
        epochs=4, lr_codebook=3e-3, lr_rest=2e-3, batch=256, shift=1, rest="float16", bias_step=2**-4
    ),
)

PRESETS = {
    "quick": Preset(
        dataset="digits",
        network="mlp-64-300-100-10",
        training=training.Config(epochs=30, batch=32, lr=2e-3),
        config=replace(
            _OURS,
            components=13,
            tau=0.01,
            pi_0=0.99,
            gamma=(250.0, 0.1),
            gamma_zero=(500.0, 0.05),
            tolerance=0.0,
            lr_weights=3e-3,
            lr_means=1e-3,
            lr_log_variances=2e-2,
            lr_logits=2e-2,
            epochs=30,
            batch=32,
            shift=0,
            fine_tune=replace(_OURS.fine_tune, epochs=8, batch=32, shift=0),
        ),
        target={"drop": 0.5},
        tries=3,
        seeds=3,
    ),
    "laptop": Preset(
        dataset="mnist",
        network="lenet-300-100",
        training=training.Config(epochs=20, batch=256, lr=2e-3, shift=1),
        config=replace(_OURS, tau=0.085),
        target={"error": 1.94},  # the paper's
        tries=4,
        seeds=5,
    ),
    "paper": Preset("mnist", "lenet-300-100", _CONSTANT, _LENET, target={}, tries=1, seeds=5),
    "lenet-5-caffe": Preset(
        dataset="mnist",
        network="lenet-5-caffe",
        training=training.Config(epochs=10, batch=256, lr=2e-3, shift=1),
        config=replace(
            _OURS,
            tau=0.035,
            lr_weights=3e-3,
            lr_log_variances=6e-3,
            epochs=12,
            fine_tune=replace(_OURS.fine_tune, epochs=2, lr_codebook=2e-3, lr_rest=1e-3, bias_step=2**-5),
        ),
        target={},
        tries=1,
        seeds=3,
    ),
    "tutorialnet": Preset(
        dataset="mnist",
        network="tutorialnet",
        training=replace(_CONSTANT, epochs=30, batch=256),
        config=Config(components=16, pi_0=0.99, tau=0.003, init_range=(-0.6, 0.6), assign="map", epochs=30, batch=256),
        target={},
        tries=1,
        seeds=1,
    ),
    "wrn-16-4": Preset(
        dataset="cifar10",
        network="wrn-16-4",
        training=training.Config(
            epochs=160, optimiser="sgd", lr=0.1, schedule="step", weight_decay=5e-4, shift=4, flip=True
        ),
        config=replace(
            _LENET,
            components=64,
            pi_0=0.99,
            tolerance=1e-3,
            lr_weights=1e-3,
            lr_means=3e-4,
            lr_log_variances=1e-3,
            lr_logits=1e-3,
            epochs=40,
            shift=4,
            flip=True,
        ),
        target={},
        tries=1,
        seeds=1,
    ),
}  # the scales first, then the papers' other networks

PUBLISHED = {
    ("mnist", "lenet-300-100"): {"Han 2015": (40.0, 1.58), "Guo 2016": (56.0, 1.99), "Ullrich 2017": (64.0, 1.94)},
    ("mnist", "lenet-5-caffe"): {"Han 2015": (39.0, 0.74), "Guo 2016": (108.0, 0.91), "Ullrich 2017": (162.0, 0.97)},
    ("cifar10", "wrn-16-4"): {"Ullrich 2017": (45.0, 8.50)},
}  # table 1 of Ullrich et al. 2017: (data, network): {method: (counted ratio, test error %)}

_PARTS = {"": Config, "training.": training.Config, "fine_tune.": codebook.Config}  # prefixes of overrides
CONDENSING = {  # overrides of quick: a network with weights to spare is many times smaller within seconds
    "components": 7,
    "tau": 0.1,
    "pi_0": 0.95,
    "init_sigma": 0.1,
    "gamma_zero": (1000.0, 0.02),
    "lr_log_variances": 0.05,
    "epochs": 10,
    "fine_tune.epochs": 4,
}


def preset(
    name: str, *, dataset: str = "", network: str = "", checkpoint: str = "", overrides: dict | None = None
) -> Preset:
    """An experiment by name, with another dataset or network if given, and any setting changed by `overrides`.

    overrides: fields of `soft_weight_sharing.Config` by name, those of `training.Config` as "training.epochs" and
    those of `codebook.Config` as "fine_tune.epochs". checkpoint: a trained network's file, taken as it is instead of
    training one. A tau among the overrides is kept: no target is then searched for. Raises ValueError for an unknown
    preset or field.
    """
    training.check_choice("preset", name, PRESETS)
    chosen, overrides = PRESETS[name], overrides or {}
    known = [prefix + field.name for prefix, owner in _PARTS.items() for field in fields(owner)]
    if not isinstance(overrides, dict):
        raise ValueError(f"overrides={overrides!r}: expected {{field: value}}")
    if unknown := overrides.keys() - set(known):
        raise ValueError(f"overrides: unknown {', '.join(sorted(unknown))}; soft weight-sharing has {', '.join(known)}")
    changed = {prefix: {} for prefix in _PARTS}
    for field, value in overrides.items():
        prefix, dot, last = field.rpartition(".")
        changed[prefix + dot][last] = value
    fine_tune = replace(chosen.config.fine_tune, **changed["fine_tune."])
    config = replace(chosen.config, **{"fine_tune": fine_tune} | changed[""])
    how = replace(chosen.training, **changed["training."])
    search = {"target": {}, "tries": 1} if "tau" in overrides else {}
    names = {"dataset": dataset or chosen.dataset, "network": network or chosen.network, "checkpoint": checkpoint}
    how = replace(how, epochs=0) if checkpoint else how
    return replace(chosen, **names, training=how, config=config, **search)


# ---- runs ----------------------------------------------------------------------------------------------------------


def trained_network(preset: Preset, dataset: Dataset, seed: int) -> tuple[nn.Module, training.Result]:
    """The experiment's network before compression, and its training; kept as it goes."""
    network = networks.build_for(dataset, preset.network, seed=seed)
    if preset.checkpoint:
        training.load_checkpoint(network, preset.checkpoint)
    trained = training.train(network, dataset, replace(preset.training, seed=seed), keep=True)
    network.load_state_dict(trained.state)
    return network, trained


def study(preset: Preset, seeds: Sequence[int], device="cpu", executor: Executor | None = None) -> list[Run]:
    """Train and compress a network for each seed; kept as they go, side by side if an executor is given."""
    one = partial(_run, preset, device)
    return list(executor.map(one, seeds) if executor else map(one, seeds))


def _run(preset: Preset, device, seed: int) -> Run:
    dataset = datasets.load(preset.dataset).to(device)
    network, trained = trained_network(preset, dataset, seed)
    made = training.finished(compress(network, dataset, seeded(preset.config, seed), keep=True))
    return Run(seed, trained, made)


def seeded(config: Config, seed: int) -> Config:
    """The same settings with another seed, of retraining and of codebook training."""
    return replace(config, seed=seed, fine_tune=replace(config.fine_tune, seed=seed))


def reach(
    network: nn.Module,
    dataset: Dataset,
    config: Config,
    *,
    target: dict[str, float],
    tries: int = 6,
    keep: bool = False,
) -> tuple[Result, list[Result]]:
    """Find the tau that reaches a target by itself: (the result that does it best, all results tried).

    target: {"ratio": r}, the most accurate file that is at least r times smaller; {"error": e}, the smallest file whose
    validation error is at most e %; {"drop": p}, ... at most p percentage points above the network's own; or {}, the
    Config's tau as it is. A larger tau gives a smaller file, so tau is bracketed by steps of a factor 2 from
    `config.tau`, and the bracket is halved (geometrically); each try is a whole `compress`. Warns when no try reached
    the target: the nearest is then returned. Raises ValueError for another target.
    """
    kind, goal = next(iter(target.items()), ("ratio", 0.0))
    training.check_choice("target", kind if len(target) < 2 else [*target], ("ratio", "error", "drop"))
    error = _drop if kind == "drop" else lambda result: result.compressed.error
    tried: list[Result] = []
    small, large, tau = 0.0, math.inf, config.tau  # the bracket: too little and enough, or enough and too much
    for _ in range(tries if target else 1):
        result = training.finished(compress(network, dataset, replace(config, tau=tau), keep=keep))
        tried.append(result)
        strong = result.compressed.ratio >= goal if kind == "ratio" else error(result) > goal
        small, large = (small, tau) if strong else (tau, large)
        tau = math.sqrt(small * large) if small > 0 and large < math.inf else 2 * small if small else large / 2
    if kind == "ratio":
        reached = [result for result in tried if result.compressed.ratio >= goal]
        order, fallback = (lambda r: (r.compressed.error, -r.compressed.ratio)), (lambda r: -r.compressed.ratio)
    else:
        reached = [result for result in tried if error(result) <= goal]
        order, fallback = (lambda r: -r.compressed.ratio), error
    if not reached:
        seen = ", ".join(f"tau {r.config.tau:.3g}: {r.compressed.ratio:.1f}x, {_drop(r):+.2f} points" for r in tried)
        warnings.warn(f"target={target!r} was not reached ({seen}): start from another tau", stacklevel=2)
    return min(reached, key=order) if reached else min(tried, key=fallback), tried


def _drop(result: Result) -> float:
    """Rise of the validation error, percentage points, from the network as it came to its compressed form."""
    return result.compressed.error - result.history["validation_error"][0]


# ---- a run's folder ------------------------------------------------------------------------------------------------


def write_run(run: Run, folder: str | Path, environment: dict) -> list[Path]:
    """Write a run as files that other programs read, each under its final name only once it is whole; their paths.

    config.json, environment.json (as given), metrics.csv (an epoch a line), mixtures.json (an epoch an entry),
    layers.csv (the paper's count by tensor), summary.json, trained / retrained / quantised.safetensors, network.wsn.
    Raises OSError for a folder that cannot be written.
    """
    result, folder = run.result, Path(folder)
    columns = result.history
    layers = [asdict(layer) | {"bits": layer.bits} for layer in result.compressed.sizes.layers]
    mixtures = {name: list(map(_numbers, m)) for name, m in (result.layer_mixtures or {"all": result.mixtures}).items()}
    summary = {
        "seed": run.seed,
        "finished": result.finished,
        "condensed": result.condensed,
        "rule": result.assign,
        "validation_error_trained": columns["validation_error"][0],  # %
        "validation_error_retrained": columns["validation_error"][-1],
        "validation_error_assigned": result.compressed.assigned_error,
        "validation_error_quantised": result.compressed.error,
        "nonzero_percent": result.compressed.sizes.nonzero_percent,
        "paper_ratio": result.compressed.sizes.ratio,
        "file_bytes": len(result.compressed.file),
        "file_ratio": result.compressed.ratio,
    }
    as_json = lambda value: (json.dumps(value, indent=1) + "\n").encode()  # noqa: E731
    states = {"trained": result.before, "retrained": result.after, "quantised": result.compressed.state}
    contents = {
        "config.json": as_json(asdict(result.config)),
        "environment.json": as_json(environment),
        "metrics.csv": _csv(columns, zip(*columns.values(), strict=True)),
        "mixtures.json": as_json(mixtures),
        "layers.csv": _csv(layers[0], (layer.values() for layer in layers)),
        "summary.json": as_json(summary),
        "network.wsn": result.compressed.file,
    } | {f"{name}.safetensors": safetensors.torch.save(state) for name, state in states.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with datasets.replacing(folder / name) as path:
            Path(path).write_bytes(content)
    return [folder / name for name in contents]


def _numbers(mixture) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in vars(mixture).items()}


def _csv(header, rows) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(header), *map(list, rows)])
    return text.getvalue().encode()

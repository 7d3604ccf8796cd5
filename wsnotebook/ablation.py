"""What each setting of a compression does: one factor changed at a time from a preset, or every combination.

Settings go by name: fields of `soft_weight_sharing.Config`, "fine_tune.epochs" for those of its codebook training, and
"gamma.shape", "gamma.rate" for the two parts of a pair. `tuning` searches over the same names.
"""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
from functools import partial

from tqdm.auto import tqdm

from wsnotebook import datasets, training
from wsnotebook.methods import codebook
from wsnotebook.methods import compression_study as study
from wsnotebook.methods import soft_weight_sharing as sws

PAIRS = {"gamma": ("shape", "rate"), "gamma_zero": ("shape", "rate"), "beta": ("a", "b"), "init_range": ("low", "high")}
NAMES = (
    *(field.name for field in fields(sws.Config)),
    *(f"fine_tune.{field.name}" for field in fields(codebook.Config)),
    *(f"{pair}.{part}" for pair, parts in PAIRS.items() for part in parts),
)


def configured(config: sws.Config, settings: Mapping) -> sws.Config:
    """The Config with these settings. Raises ValueError for a name that is none, and what the Config raises."""
    if unknown := [name for name in settings if name not in NAMES]:
        raise ValueError(f"settings: unknown {', '.join(unknown)}; soft weight-sharing has {', '.join(NAMES)}")
    changed = {name: value for name, value in settings.items() if "." not in name}
    for name, value in settings.items():
        field, _, part = name.partition(".")
        whole = changed.get(field, getattr(config, field))
        if part and whole is None:
            raise ValueError(f"settings: {name}={value!r}, but {field} is None: give it both parts, as {field}=(1, 2)")
        if field == "fine_tune" and part:
            changed[field] = replace(whole, **{part: value})
        elif part:
            changed[field] = tuple(value if own == part else x for own, x in zip(PAIRS[field], whole, strict=True))
    return replace(config, **changed)


def settings_of(config: sws.Config, names: Iterable[str]) -> dict:
    """What a Config has under these names: the inverse of `configured`."""

    def value(name: str):
        field, _, part = name.partition(".")
        whole = getattr(config, field)
        return whole if not part else whole[PAIRS[field].index(part)] if field in PAIRS else getattr(whole, part)

    return {name: value(name) for name in names}


def sweep(
    preset: study.Preset,
    factors: Mapping[str, Sequence | Mapping[str, Mapping]],
    *,
    seeds: Sequence[int] = (0,),
    grid: bool = False,
    device="cpu",
    executor: Executor | None = None,
) -> list[dict]:
    """Compress with one factor at a time changed from the preset, or (grid) with every combination; kept as they go.

    factors: {setting: values}, or {name: {label: settings that change together}}. A row for each change and seed: the
    factor, its value, the settings, seed, ratio of the file, validation error (%) of the quantised network and its drop
    (percentage points over the trained one), nonzero_percent, and whether the spike had condensed.
    """
    levels = [
        [(name, label, chosen) for label, chosen in values.items()]
        if isinstance(values, Mapping)
        else [(name, value, {name: value}) for value in values]
        for name, values in factors.items()
    ]
    changes = list(map(_together, itertools.product(*levels))) if grid else list(itertools.chain(*levels))
    for *_, settings in changes:
        configured(preset.config, settings)  # raises now rather than after hours
    for seed in seeds:
        study.trained_network(preset, datasets.load(preset.dataset).to(device), seed)  # once, not once a process
    cases = [(change, seed) for change in changes for seed in seeds]
    rows = (executor.map if executor else map)(partial(_row, preset, device), cases)
    return list(tqdm(rows, "sweep", len(cases), unit="run", leave=False))


def _together(levels: Sequence[tuple]) -> tuple:
    names, values, settings = zip(*levels, strict=True)
    return " x ".join(names), ", ".join(map(str, values)), {k: v for part in settings for k, v in part.items()}


def _row(preset: study.Preset, device, case: tuple) -> dict:
    (factor, value, settings), seed = case
    dataset = datasets.load(preset.dataset).to(device)
    network, trained = study.trained_network(preset, dataset, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the spike had not condensed")  # the row says so
        config = configured(study.seeded(preset.config, seed), settings)
        result = training.finished(sws.compress(network, dataset, config, keep=True))
    return {
        "factor": factor,
        "value": value,
        "settings": settings,
        "seed": seed,
        "ratio": result.compressed.ratio,
        "error": result.compressed.error,
        "drop": result.compressed.error - trained.history["validation_error"][-1],
        "nonzero_percent": result.compressed.sizes.nonzero_percent,
        "condensed": result.condensed,
    }

"""The three networks that notebook 07 compresses, and the settings that each method is tried with on each of them.

A perceptron, as notebook 01 trains and compresses it; a small deep one on images of 4 x 4 pixels, for which every
method has a meaning; and a residual network, one member of notebook 02's bank. Settings stand here before any test row
is looked at; those of notebooks 01 and 02 are taken as they are, so that what these keep is found.
"""

from dataclasses import replace
from functools import lru_cache, partial

from torch.nn import functional as F

from wsnotebook import datasets, networks, training
from wsnotebook.comparisons import compression_recipes as recipes
from wsnotebook.comparisons.compression import Case, Recipe
from wsnotebook.methods import (
    baselines,
    codebook,
    compression_study,
    mlp_compression,
    mlp_fitting,
    superweight_study,
    superweight_training,
)

Recipes = dict[str, list[Recipe]]
OWN = {"as trained": [partial(recipes.as_trained, rest=rest) for rest in ("float32", "float16")]}


def _case(name: str, dataset, how: training.Config, seed: int) -> Case:
    network = networks.build_for(dataset, name, seed=seed)
    trained = training.train(network, dataset, replace(how, seed=seed), keep=True)
    network.load_state_dict(trained.state)
    return Case(name, seed, dataset, network, how, trained.history["cpu_seconds"][-1])


# ---- notebook 01's perceptron ----------------------------------------------------------------------------------------


def perceptron(scale: str, seed: int = 0) -> Case:
    """mlp-64-300-100-10 on digits at quick, lenet-300-100 on MNIST at laptop and paper."""
    preset = compression_study.PRESETS[scale]
    return _case(preset.network, datasets.load(preset.dataset), preset.training, seed)


def of_perceptron(scale: str, case: Case) -> Recipes:
    """What notebook 01 tries, what does not apply, a searched network, and the other baselines."""
    preset = compression_study.PRESETS[scale]
    options = {"target": preset.target, "tries": preset.tries, "keep": True}
    start = compression_study.seeded(preset.config, case.seed)
    found, tried = compression_study.reach(case.network, case.dataset, start, **options)
    share, config = found.compressed.sizes.nonzero_percent, found.config
    how = {"epochs": config.epochs, "batch": config.batch, "shift": config.shift, "flip": config.flip, "lr": 2e-3}
    prunings = [
        baselines.Config(min(100.0, share * factor), fine_tune=config.fine_tune, **how) for factor in (1, 1.6, 2.2)
    ]
    taus = [one.config.tau for one in tried]
    if scale != "quick":
        taus.append(min(taus) / 2)  # notebook 01 wants the paper's error, which is far above the trained network's
    budgets = _some(scale, 500, 1000, 2000)
    return (
        OWN
        | {
            "soft weight-sharing": [partial(recipes.soft_sharing, config=replace(config, tau=tau)) for tau in taus],
            "SuperWeights": [partial(recipes.superweights, percent=p, config=ALONE) for p in (25, 50)],
            "SWAT-NN": [partial(recipes.searched, budgets=budgets, budget=n, config=SEARCH) for n in budgets],
            "pruning + k-means": [partial(recipes.pruned, config=one) for one in prunings],
        }
        | _baselines(
            scale, config.fine_tune, replace(preset.training, epochs=config.epochs // 2), (5, 17, 9), (10, 25, 50)
        )
    )


def _some(scale: str, *settings, quick: int = 2):
    """Settings to try: at quick the first few."""
    return settings[:quick] if scale == "quick" else settings


def _baselines(scale: str, fine_tune: codebook.Config, how: training.Config, levels, percents) -> Recipes:
    return {
        "uniform grid": [partial(recipes.uniform, levels=n, fine_tune=fine_tune) for n in _some(scale, *levels)],
        "low rank": [partial(recipes.factors, percent=p, config=how) for p in _some(scale, *percents)],
        "thin network": [partial(recipes.thin, percent=p) for p in _some(scale, 25, 5, 50, quick=1)],
    }


# ---- a perceptron that every method can take -------------------------------------------------------------------------

DEEP = "mlp-16-32-32-32-10"
_TRAINED = training.Config(epochs=30, batch=32, optimiser="sgd", lr=0.05, weight_decay=1e-4)
ALONE = superweight_training.Config(epochs=30, batch=32, lr=0.05, weight_decay=1e-4, groups="depth", bins=1)
_SHARED = replace(compression_study.PRESETS["quick"].config, pi_0=0.9, epochs=20)  # a tenth of few weights may stay
_FITTED = mlp_fitting.Config(steps=600, lr=0.05)
SEARCH = mlp_compression.Config(
    cuts=(),
    width=16,
    search=replace(
        mlp_compression.Config().search,
        steps=100,
        restarts=2,
        candidates=200,
        training=replace(_FITTED, batch=128),
    ),
    training=_FITTED,
    tuning=replace(_FITTED, steps=300, lr=0.03),
)
BUDGETS = (400, 700, 200)  # non-zeros of searched networks


def deep(seed: int = 0) -> Case:
    """mlp-16-32-32-32-10 on digits of 4 x 4 pixels, at every scale."""
    small = datasets.load("digits").changed("4 pixels wide", lambda x: F.avg_pool2d(x, 2))
    return _case(DEEP, small, _TRAINED, seed)


def of_deep(scale: str) -> Recipes:
    """Every method, and soft weight-sharing of what SuperWeights and SWAT-NN made."""
    alone = [partial(recipes.superweights, percent=p, config=ALONE) for p in _some(scale, 50, 75, quick=1)]
    search = [partial(recipes.searched, budgets=BUDGETS, budget=n, config=SEARCH) for n in BUDGETS]
    shared = {tau: replace(_SHARED, tau=tau) for tau in (1.0, 0.3, 3.0)}
    prunings = [
        baselines.Config(p, fine_tune=_SHARED.fine_tune, epochs=_SHARED.epochs, batch=32, lr=2e-3)
        for p in _some(scale, 20, 40, 10)
    ]
    how = replace(_TRAINED, optimiser="adam", lr=2e-3, epochs=20)
    return (
        OWN
        | {
            "soft weight-sharing": [
                partial(recipes.soft_sharing, config=shared[tau]) for tau in _some(scale, 1.0, 0.3, 3.0)
            ],
            "SuperWeights": alone,
            "SuperWeights, then soft weight-sharing": [
                partial(recipes.then_soft_sharing, first=alone[0], config=shared[tau])
                for tau in _some(scale, 1.0, 0.3, quick=1)
            ],
            "SWAT-NN": search,
            "SWAT-NN, then soft weight-sharing": [
                partial(recipes.then_soft_sharing, first=search[1], config=shared[tau])
                for tau in _some(scale, 1.0, 0.3, quick=1)
            ],
            "pruning + k-means": [partial(recipes.pruned, config=one) for one in prunings],
        }
        | _baselines(scale, _SHARED.fine_tune, how, (17, 9, 5), (50, 75, 25))
    )


# ---- one of notebook 02's members ------------------------------------------------------------------------------------

MEMBER = 1  # of the bank: wrn-10-1, whose work is the least
_BANK = superweight_study.PRESETS["quick"]
_RESIDUAL = training.Config(
    epochs=_BANK.config.epochs,
    batch=_BANK.config.batch,
    optimiser="sgd",
    lr=_BANK.config.lr,
    weight_decay=_BANK.config.weight_decay,
    shift=_BANK.config.shift,
)
_TUNED = replace(_SHARED.fine_tune, epochs=3, batch=64, shift=1)


@lru_cache(maxsize=4)
def _banked(seed: int, groups: str = "gradient"):
    """(notebook 02's bank, or its separate networks, trained; its members as they were before) for a seed."""
    members, dataset = superweight_study.prepared(_BANK, seed)
    config = replace(_BANK.config, seed=seed, groups=groups)
    return training.finished(superweight_training.train(members, dataset, config, _BANK.budget, keep=True)), members


def residual(seed: int = 0) -> Case:
    """wrn-10-1 on digits, as notebook 02 trains it beside wrn-16-1 without sharing, at every scale."""
    result, members = _banked(seed, "none")
    dataset = datasets.load(_BANK.dataset)
    sizes = [sum(p.numel() for p in network.parameters()) for network in members]
    spent = result.history["cpu_seconds"][-1] * sizes[MEMBER] / sum(sizes)
    return Case(_BANK.networks[MEMBER], seed, dataset, result.model.member(MEMBER), _RESIDUAL, spent)


def of_residual(scale: str) -> Recipes:
    """Its share of the bank beside the baselines; from laptop on soft weight-sharing too, of it and of the member."""
    adam = replace(_RESIDUAL, optimiser="adam", lr=2e-3, weight_decay=0.0)
    prunings = [
        baselines.Config(p, fine_tune=_TUNED, epochs=adam.epochs, batch=64, lr=2e-3, shift=1)
        for p in _some(scale, 20, 10, 40)
    ]
    share = partial(recipes.member, banked=_banked, i=MEMBER)
    found = OWN | {"SuperWeights": [share]}
    if scale != "quick":
        config = replace(_SHARED, tau=0.3, epochs=30, batch=64, shift=1, fine_tune=_TUNED)
        found["soft weight-sharing"] = [partial(recipes.soft_sharing, config=config)]
        then = partial(recipes.then_soft_sharing, first=share, config=config)
        found["SuperWeights, then soft weight-sharing"] = [then]
    found["SWAT-NN"] = [partial(recipes.searched, budgets=(500,), budget=500, config=SEARCH)]
    found["pruning + k-means"] = [partial(recipes.pruned, config=one) for one in prunings]
    return found | _baselines(scale, _TUNED, adam, (17, 9), (50, 25))


NETWORKS = {
    "perceptron": (perceptron, of_perceptron),
    "deep": (lambda scale, seed: deep(seed), lambda scale, case: of_deep(scale)),
    "residual": (lambda scale, seed: residual(seed), lambda scale, case: of_residual(scale)),
}  # name: (its case for a scale and a seed, the recipes for a scale and that case)

"""One Ctrl-C ends all that was to follow: nothing takes an unfinished result for a finished one."""

from types import SimpleNamespace

import pytest
import torch

from wsnotebook import ablation, gallery, networks, training, tuning, zoo
from wsnotebook.comparisons import compression_cases, compression_recipes, generators
from wsnotebook.comparisons.compression import Case
from wsnotebook.methods import (
    compression_study,
    flow_training,
    latent_lanes,
    latent_search,
    mlp_compression,
    mlp_fitting,
    sane,
    sane_training,
    superweight_run,
    superweight_study,
    superweight_training,
    swat_nn,
    swat_training,
    weight_flow,
)
from wsnotebook.methods import soft_weight_sharing as sws

SHARING, BANK = (sws._Retraining, "train_epoch"), (superweight_run.Run, "train_epoch")
FLOW, SANE = (flow_training.Run, "train_chunk"), (sane_training.Run, "train_chunk")
SWAT, SEARCH = (swat_training.Run, "train_chunk"), (latent_lanes.Run, "train_chunk")
QUICK = compression_study.preset("quick", network="mlp-64-16-10", overrides={"epochs": 3, "training.epochs": 1})
SMALL = superweight_training.Config(epochs=2, batch=256, lr=0.05, groups="depth", bins=1)
FLOWS = {"short": weight_flow.Config(hidden=8, iterations=200, batch=4)}
LATENTS = sane.Config(iterations=100, dim=12, heads=2, blocks=1, z=64, batch=4, held_out=0.2)
FIT = mlp_fitting.Config(steps=30, batch=64, lr=0.03, check_every=15)
BLOCKS = mlp_compression.Config(
    handed=2, width=4, kept=1, training=FIT, tuning=FIT, search=latent_search.Config(restarts=2, steps=60, tuned=2)
)
TINY = swat_nn.Config(z=16, dim=16, heads=2, blocks=1, points=16, batch=16, iterations=400)


def case(digits):
    return Case("mlp-64-16-10", 0, digits, networks.build("mlp-64-16-10"), QUICK.training, 0.0)


def population(digits):
    return zoo.train("mlp-64-8-10", digits.first(train=60), 10, zoo.Config(epochs=1))


def inputs():
    return tuple(torch.randn(100, 2, generator=torch.Generator().manual_seed(i)) for i in range(3))


def arms(digits):
    pair = [networks.build_for(digits, "wrn-10-1", seed=seed) for seed in range(2)]
    superweight_study.arms(pair, digits.first(train=60, validation=60), SMALL, 90_000)


def complete(digits):
    trial = tuning.Trial(0, {}, "complete", 1.0, 1.0, 1.0, 1, "", ())
    tuning.result_of(QUICK, trial, case(digits).network, digits)


WORK = {
    "a study's seeds": (SHARING, lambda digits: compression_study.study(QUICK, [0, 1])),
    "a search for a target": (
        SHARING,
        lambda digits: compression_study.reach(case(digits).network, digits, QUICK.config, target={"drop": 1.0}),
    ),
    "a sweep": (SHARING, lambda digits: ablation.sweep(QUICK, {"tau": [0.02, 0.03]})),
    "a trial's result": (SHARING, complete),
    "soft weight-sharing of a case": (
        SHARING,
        lambda digits: compression_recipes.soft_sharing(case(digits), QUICK.config),
    ),
    "a case in a bank": (BANK, lambda digits: compression_recipes.superweights(case(digits), 120, SMALL)),
    "the case of residual networks": (BANK, lambda digits: compression_cases.residual(seed=5)),
    "a bank and its controls": (BANK, arms),
    "weight flows": (FLOW, lambda digits: generators.flows(population(digits), FLOWS)["short"](0)),
    "samples of SANE": (
        SANE,
        lambda digits: generators.of_sane(population(digits), digits, LATENTS, FLOWS)["SANE, kde"]["bandwidth 0.1"](0),
    ),
    "blocks that are searched": (
        SEARCH,
        lambda digits: mlp_compression.compress(networks.build("mlp-2-8-1"), inputs(), [10], config=BLOCKS),
    ),
    "latents that are searched": (
        SWAT,
        lambda digits: mlp_compression.trained(TINY)(TINY.form),
    ),
    "the gallery": (SWAT, lambda digits: gallery._search()),
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.filterwarnings("ignore:the spike had not condensed")
def test_an_interrupt_of_a_part_ends_the_whole(work, digits, monkeypatch):
    (owner, name), begin = WORK[work]
    step, calls = getattr(owner, name), []

    def interrupted(run, *arguments):
        calls.append(run)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(run, *arguments)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt, match="run the same again, and it goes on"):
        begin(digits)
    assert len(calls) == 2, "nothing was begun after it"


def test_what_is_finished_is_handed_on():
    result = SimpleNamespace(finished=True)
    assert training.finished(result) is result

"""Training networks that share a bank of SuperWeights, and the controls that share less or otherwise, in one loop.

    pretraining with one coefficient vector an increment -> similarities of layers -> clusters that fit the budget
    -> a fresh bank, all members m together:  min  sum_m (1 - d) CE(f_m(x), y) + d KL(mean_k p_k || p_m)
    -> at chosen epochs, layers that have a coefficient vector in common and disagree get copies

An epoch's randomness depends on (seed, epoch) alone, so a run that was interrupted and goes on gives the same numbers
as one that was not.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from wsnotebook.datasets import Dataset, cache_folder
from wsnotebook.layout import check_finite
from wsnotebook.methods.superweight_baselines import Separate
from wsnotebook.methods.superweight_plan import SHARING, Plan, allocate
from wsnotebook.methods.superweight_run import Run
from wsnotebook.methods.superweight_sharing import LINKAGES, fitting, fitting_bins, matched
from wsnotebook.methods.superweight_similarities import KINDS, Similarities, similarities
from wsnotebook.methods.superweights import Bank
from wsnotebook.training import check_at_least, check_choice, fingerprint, load_kept, save_kept

GROUPS = ("gradient", "random", "depth", "none")


@dataclass(frozen=True)
class Config:
    """How members are grouped and trained. `superweight_study.PRESETS` has the paper's settings."""

    epochs: int = 30  # passes over the training rows
    batch: int = 128  # rows a step, of each member
    lr: float = 0.1  # largest learning rate of SGD with Nesterov momentum 0.9
    weight_decay: float = 5e-4  # L2 coefficient; coefficients of templates have none
    schedule: str = "cosine"  # cosine (to 0) | step (x 0.2 after 30, 60 and 80 %)
    warm_up: float = 1.0  # epochs in which the learning rate rises from 0
    shift: int = 0  # random shifts of the images by up to so many pixels
    flip: bool = False  # random horizontal flips
    cutout: int = 0  # side of the square that is set to 0 in every image, pixels; 0: none
    members: int | None = None  # trained in a step, drawn at random; None: all
    shuffles: str = "same"  # same | independent: whether all members see the same rows in a step
    distillation: float = 0.0  # d, share of the loss that is distance from the mean probabilities of those members
    groups: str = "gradient"  # gradient | random (same sizes) | depth (the initial bins) | none (separate networks)
    bins: int = 4  # initial clusters, by depth; with groups="depth" fewer if the budget asks for it
    pretraining: int = 5  # epochs before layers are compared; not with "depth" and "none"
    similarity: str = "gradient"  # what is compared: gradient | gradient and weight
    batches: int = 32  # minibatches whose gradients are compared
    linkage: str = "average"  # of clusters: average | complete | single
    threshold: float = 0.1  # similarity at which clusters are merged; lowered until they fit the budget
    counted: str = "all"  # all | bank: what the budget covers, as in `allocate`
    templates: int = 8  # of an increment, at most
    sharing: str = "matched"  # of coefficient vectors: matched (by depth) | similar (by similarity) | own | single
    hard: bool = False  # coefficients stay one-hot: layers are slices of templates
    unshare: tuple[int, ...] = ()  # epochs after which uses of a vector that disagree are separated
    unshare_threshold: float = 0.5  # cosine of coefficient gradients below which uses disagree
    seed: int = 0  # of templates, order, augmentation, members of a step, and random groups

    def __post_init__(self):
        check_choice("schedule", self.schedule, ("cosine", "step"))
        check_choice("shuffles", self.shuffles, ("same", "independent"))
        check_choice("groups", self.groups, GROUPS)
        check_choice("similarity", self.similarity, KINDS)
        check_choice("linkage", self.linkage, LINKAGES)
        check_choice("sharing", self.sharing, (*SHARING, "similar"))
        check_at_least(self, epochs=0, batch=1, lr=0, weight_decay=0, warm_up=0, shift=0, cutout=0, distillation=0)
        check_at_least(self, bins=1, pretraining=0, batches=2, templates=1)
        if self.distillation > 1 or self.distillation and self.shuffles == "independent":
            raise ValueError(
                f"distillation={self.distillation!r} with shuffles={self.shuffles!r}: expected at most 1, and "
                "shuffles='same': members that see different rows have no mean to learn from"
            )
        if self.sharing == "similar" and self.groups == "depth":
            raise ValueError("sharing='similar' with groups='depth': nothing is compared; take 'matched' or 'own'")


_STEPS = (
    "batch",
    "lr",
    "weight_decay",
    "schedule",
    "warm_up",
    "shift",
    "flip",
    "cutout",
    "members",
    "shuffles",
    "seed",
)
_COMPARED, _ALONE = [*_STEPS, "bins", "similarity", "batches"], [*_STEPS, "epochs", "distillation"]


@dataclass(frozen=True, eq=False)
class Result:
    """Trained members, and one history entry an epoch (entry 0: before training).

    history: epoch, loss (training, nats, mean of members), validation_loss (nats) and validation_error (%) of all
    members' mean probabilities, member_errors (% of each), vectors (of coefficients), cpu_seconds (so far).
    """

    model: Bank | Separate = field(repr=False)
    history: dict[str, list] = field(repr=False)
    similarities: Similarities | None = field(repr=False)  # of pretrained layers; None: nothing was compared (yet)
    threshold: float | None  # at which clusters were cut; -inf: there is one for each kernel size
    finished: bool  # False when it was interrupted: maybe in pretraining, then there is no threshold

    @property
    def plan(self) -> Plan:
        """Who shares what, as it is now."""
        return self.model.plan


def train(
    networks: Sequence[nn.Module],
    dataset: Dataset,
    config: Config,
    budget: int | None = None,
    *,
    known: Similarities | None = None,
    keep: bool = False,
) -> Result:
    """Train members together on dataset.train, choosing nothing on dataset.test; the networks are not changed.

    budget: trained numbers, at most, as `allocate` counts them; None: all templates of use. known: similarities of
    these networks' layers, as `compared` finds them; None: they are found first. keep: store the state in the cache
    folder after every epoch; the same call later goes on from there, or returns at once. Interrupted, it returns what
    there is.
    Raises ValueError for a budget that is too small, more members a step than there are, a regression, weights that
    are not finite, and training that diverges.
    """
    dataset.check_classes("SuperWeights")
    for number, network in enumerate(networks):
        check_finite(network.state_dict(), f"networks[{number}]")
    if config.members is not None and not 1 <= config.members <= len(networks):
        raise ValueError(f"members={config.members} a step: expected 1 to {len(networks)}, or None for all")
    x, found, threshold = dataset.train[0][:1], None, None
    options = {"counted": config.counted, "most": config.templates}
    options["sharing"] = "matched" if config.sharing == "similar" else config.sharing
    if config.groups == "none":  # kept whatever the bank beside them is
        config = Config(groups="none", **{name: getattr(config, name) for name in _ALONE})
        plan = allocate(networks, x, clusters=[])
    elif config.groups == "depth":
        plan = fitting_bins(networks, x, budget, config.bins, **options)
    else:
        found = known or compared(networks, dataset, config, keep=keep)
        if isinstance(found, Result):
            return found
        found = found if config.groups == "gradient" else found.shuffled(config.seed)
        limits = {"threshold": config.threshold, "linkage": config.linkage}
        threshold, plan = fitting(found, networks, x, budget, **limits, **options)
        plan = matched(plan, found) if config.sharing == "similar" else plan
    run = Run(networks, plan, dataset, config)
    finished = run.to_end(_path("superweights", config, dataset, networks, plan) if keep else None)
    return Result(run.model, run.history, found, threshold, finished)


def compared(
    networks: Sequence[nn.Module], dataset: Dataset, config: Config, *, keep: bool = False
) -> Similarities | Result:
    """Similarities of pretrained layers; when pretraining was interrupted, the Result so far.

    keep: as `train` does, for all Configs with the same pretraining, whatever they do later.
    """
    own = Config(epochs=config.pretraining, **{name: getattr(config, name) for name in _COMPARED})
    vectors = {"sharing": "single", "most": 1}  # one vector's templates are one template
    if config.similarity != "gradient":  # ... and all its weights are the same
        vectors = {"sharing": "own", "most": config.templates}
    plan = allocate(networks, dataset.train[0][:1], clusters=config.bins, **vectors)
    path = _path("superweight-similarities", own, dataset, networks, plan) if keep else None
    if stored := load_kept(path):
        return Similarities.from_dict(stored)
    options = {"kind": config.similarity, "batches": config.batches, "batch": config.batch, "seed": config.seed}
    run, found = Run(networks, plan, dataset, own), None
    with contextlib.suppress(KeyboardInterrupt):
        if run.to_end(_path("superweights", own, dataset, networks, plan) if keep else None, "pretraining"):
            found = similarities(run.model, dataset.train, **options)
    if found is None:
        return Result(run.model, run.history, None, None, finished=False)
    save_kept(path, found.to_dict())
    return found


def _path(kind: str, config: Config, dataset: Dataset, networks: Sequence[nn.Module], plan: Plan) -> Path:
    return cache_folder() / "results" / f"{kind}-{fingerprint(config, dataset, plan, *networks)}.pt"

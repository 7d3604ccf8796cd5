"""What every method makes of a trained network: a case in, an entry of `compression` out."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from torch import nn

from wsnotebook import networks, training
from wsnotebook.comparisons.compression import Case, Entry, Recipe, measured, restored, stored_bytes
from wsnotebook.methods import baselines, codebook, low_rank, mlp_compression, superweight_training
from wsnotebook.methods import soft_weight_sharing as sws
from wsnotebook.methods.compression_study import seeded
from wsnotebook.methods.superweight_baselines import thinner


def as_trained(case: Case, rest: str = "float32") -> Entry:
    """The trained network as it is, its numbers as float32 or float16."""
    return measured(case, "as trained", rest, stored_bytes(case.network, rest), 0.0)


def soft_sharing(case: Case, config: sws.Config) -> Entry:
    """Soft weight-sharing of the trained network."""
    result = training.finished(sws.compress(case.network, case.dataset, seeded(config, case.seed), keep=True))
    spent = result.history["cpu_seconds"][-1] + result.compressed.cpu_seconds
    return measured(case, "soft weight-sharing", f"tau {config.tau:.3g}", result.compressed.file, spent, shown=result)


def pruned(case: Case, config: baselines.Config) -> Entry:
    """Magnitude pruning and k-means."""
    made = baselines.prune(case.network, case.dataset, replace(config, seed=case.seed), keep=True)
    setting = f"{config.nonzero_percent:.3g} % not zero"
    return measured(case, "pruning + k-means", setting, made.file, made.cpu_seconds, shown=made)


def uniform(case: Case, levels: int, fine_tune: codebook.Config) -> Entry:
    """A uniform grid for each tensor, with trained codebooks."""
    made = baselines.uniform(case.network, case.dataset, levels, replace(fine_tune, seed=case.seed), keep=True)
    return measured(case, "uniform grid", f"{levels} levels", made.file, made.cpu_seconds, shown=made)


def factors(case: Case, percent: float, config: training.Config) -> Entry:
    """Low-rank factors with at most so many % of the matrices' numbers, trained, as float16."""
    network = low_rank.factored(case.network, low_rank.ranks(case.network, percent))
    trained = training.train(network, case.dataset, replace(config, seed=case.seed), keep=True)
    network.load_state_dict(trained.state)
    spent = trained.history["cpu_seconds"][-1]
    return measured(case, "low rank", f"{percent:g} % of the numbers", stored_bytes(network), spent)


def thin(case: Case, percent: float) -> Entry:
    """The same architecture with narrower layers of so many % of the parameters, trained as the network was."""
    network = networks.build_for(case.dataset, case.name, seed=case.seed)
    parameters = int(percent / 100 * _parameters(case.network))
    (network,) = thinner([network], case.dataset.train[0][:1], parameters)
    trained = training.train(network, case.dataset, replace(case.training, seed=case.seed), keep=True)
    network.load_state_dict(trained.state)
    spent, setting = trained.history["cpu_seconds"][-1], f"{percent:g} % of the parameters"
    return measured(case, "thin network", setting, stored_bytes(network), spent, like=network)


def superweights(case: Case, percent: float, config: superweight_training.Config) -> Entry:
    """The network alone in a bank of so many % of its parameters, trained from nothing.

    Raises ValueError where its layers have too little in common for that, naming the smallest bank.
    """
    config, budget = replace(config, seed=case.seed), int(percent / 100 * _parameters(case.network))
    result = training.finished(superweight_training.train([case.network], case.dataset, config, budget, keep=True))
    file = stored_bytes(result.model)
    bank = restored(file, [case.network])
    setting, spent = f"{percent:g} % of the parameters", result.history["cpu_seconds"][-1]
    return measured(case, "SuperWeights", setting, file, spent, model=bank.member(0), shown=bank)


def member(case: Case, banked: Callable[[int], tuple[superweight_training.Result, list[nn.Module]]], i: int) -> Entry:
    """Network i of several in one bank; bytes, and seconds, are its share by parameters.

    banked: (trained bank, networks it is of) for a seed.
    """
    result, networks = banked(case.seed)
    file = stored_bytes(result.model)
    bank, share = restored(file, networks), _parameters(networks[i]) / sum(map(_parameters, networks))
    setting = f"one of {len(networks)} members, {100 * share:.0f} % of their file"
    spent = share * result.history["cpu_seconds"][-1]
    return measured(case, "SuperWeights", setting, file, spent, model=bank.member(i), shown=bank, share=share)


def searched(case: Case, budgets: tuple[int, ...], budget: int, config: mlp_compression.Config) -> Entry:
    """SWAT-NN: a smaller perceptron found for the network's logits, of at most `budget` non-zeros, as float16.

    budgets: of the one search that serves them all, whose seconds each entry has.
    Raises ValueError for a network that is no perceptron, or has too many inputs.
    """
    made = _search(case, budgets, config)
    network = made.network(made.within(budget))
    return measured(case, "SWAT-NN", f"{budget} not zero", stored_bytes(network), made.cpu_seconds, like=network)


def then_soft_sharing(case: Case, first: Recipe, config: sws.Config) -> Entry:
    """Soft weight-sharing of what another method made."""
    start = first(case)
    made = soft_sharing(replace(case, network=start.model), config)
    changes = {"setting": f"{start.setting}; {made.setting}", "cpu_seconds": start.cpu_seconds + made.cpu_seconds}
    return replace(made, method=f"{start.method}, then soft weight-sharing", **changes)


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@lru_cache(maxsize=4)
def _search(case: Case, budgets: tuple[int, ...], config: mlp_compression.Config) -> mlp_compression.Compressed:
    splits = case.dataset.train, case.dataset.validation, case.dataset.test
    return mlp_compression.compress(case.network, tuple(x.flatten(1) for x, _ in splits), budgets, config=config)

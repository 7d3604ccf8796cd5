"""Laws of the comparison of compressed networks: files decode to the bit, products are counted, the choice is blind."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from wsnotebook import evaluation, networks, training
from wsnotebook.comparisons import compression, compression_cases, compression_recipes
from wsnotebook.comparisons.compression import Case, Entry, restored, stored_bytes
from wsnotebook.evaluation import Score
from wsnotebook.methods import baselines, codebook, low_rank, superweight_training
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank
from wsnotebook.networks import MixedMLP

CHEAP = training.Config(epochs=1, batch=256)
TUNED = codebook.Config(epochs=1, batch=256, rest="float16")


@pytest.fixture(scope="module")
def case(digits):
    network = networks.build_for(digits, "mlp-64-20-20-10", seed=0)
    trained = training.train(network, digits, training.Config(epochs=3, batch=64, lr=3e-3))
    network.load_state_dict(trained.state)
    return Case("mlp-64-20-20-10", 0, digits, network, replace(CHEAP, epochs=3), trained.history["cpu_seconds"][-1])


# ---- files -----------------------------------------------------------------------------------------------------------


def wide_residual():
    return networks.build("wrn-10-1", channels=1, seed=3)


def mixed():
    torch.manual_seed(0)
    network = MixedMLP(5, 6, 4, 3)
    network.activation1.random_(0, 3)
    return network


@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize(
    ("build", "shape"),
    [(lambda: networks.build("mlp-12-9-4", seed=1), (12,)), (wide_residual, (1, 8, 8)), (mixed, (5,))],
)
def test_a_networks_file_gives_it_back_bit_for_bit(build, shape, rest):
    network, x = build().eval(), torch.randn(4, *shape)
    if rest == "float16":
        network = network.half().float()  # what the file rounds to
    again = restored(stored_bytes(network, rest), build())
    assert list(again.state_dict()) == list(network.state_dict())
    for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize(
    ("build", "shape"), [(lambda: networks.build("mlp-12-9-4"), (12,)), (wide_residual, (1, 8, 8))]
)
def test_the_file_of_factors_needs_only_the_whole_networks_architecture(build, shape):
    network, x = build(), torch.randn(4, *shape)
    made = low_rank.factored(network, low_rank.ranks(network, 60)).half().float().eval()
    again = restored(stored_bytes(made), build())
    assert torch.equal(again(x), made(x))
    assert len(stored_bytes(made)) < len(stored_bytes(network))


@pytest.mark.parametrize(
    ("names", "shape"), [(("wrn-10-1", "wrn-10-1"), (1, 8, 8)), (("mlp-64-30-20-10", "mlp-64-12-12-10"), (1, 8, 8))]
)
def test_the_file_of_a_bank_holds_plan_and_all_numbers(names, shape):
    build = lambda seed: [networks.build(n, seed=seed, **({"channels": 1} if "wrn" in n else {})) for n in names]  # noqa: E731
    bank = Bank(build(0), allocate(build(0), torch.zeros(1, *shape), clusters=2), seed=5).half().float().eval()
    again, x = restored(stored_bytes(bank), build(1)), torch.randn(3, *shape)
    assert again.plan == bank.plan
    for a, b in zip(again(x), bank(x), strict=True):
        assert torch.equal(a, b)
    for i in range(2):
        assert torch.equal(again.member(i).eval()(x), bank.member(i).eval()(x))


# ---- products --------------------------------------------------------------------------------------------------------


def counted(network, x):
    """Every product of a convolution or linear layer for one row, one after the other."""
    found, inputs = [0, 0], {}
    hooks = [m.register_forward_hook(lambda m, i, y: inputs.update({m: y})) for m in network.modules()]
    network(x)
    for hook in hooks:
        hook.remove()
    for module, y in inputs.items():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for output in itertools.product(*map(range, y.shape[1:])):
                for weight in module.weight[output[0]].flatten().tolist():
                    found[0] += 1
                    found[1] += weight != 0
    return tuple(found)


def test_products_are_those_of_a_loop_over_outputs_and_weights():
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 2, (1, 2), groups=2), nn.Flatten(), nn.Linear(18, 3)
    )
    with torch.no_grad():
        for p in network.parameters():
            p *= torch.rand_like(p) < 0.6
    x = torch.randn(1, 2, 5, 7)
    assert compression.macs(network, x) == counted(network, x)
    every, used = compression.macs(network, x)
    assert used < every


def test_a_mixed_perceptrons_products_are_its_matrices_numbers():
    network = mixed()
    with torch.no_grad():
        network.fc2.weight[1:3] = 0
    assert compression.macs(network, torch.zeros(1, 5)) == (5 * 6 + 6 * 4 + 4 * 3, 5 * 6 + 6 * 4 + 4 * 3 - 2 * 6)


# ---- methods ---------------------------------------------------------------------------------------------------------


def alone(**changes):
    config = superweight_training.Config(epochs=1, batch=256, lr=0.05, groups="depth", bins=1)
    return partial(compression_recipes.superweights, config=replace(config, **changes))


RECIPES = {
    "as trained": partial(compression_recipes.as_trained, rest="float16"),
    "uniform grid": partial(compression_recipes.uniform, levels=9, fine_tune=TUNED),
    "low rank": partial(compression_recipes.factors, percent=50, config=CHEAP),
    "thin network": partial(compression_recipes.thin, percent=50),
    "SuperWeights": partial(alone(), percent=90),
    "pruning + k-means": partial(
        compression_recipes.pruned, config=baselines.Config(20, epochs=1, batch=256, fine_tune=TUNED)
    ),
}


@pytest.mark.parametrize("method", RECIPES)
def test_what_was_scored_is_what_the_file_holds(case, method):
    entry = RECIPES[method](case)
    assert (entry.method, entry.case, entry.seed) == (method, case.name, 0)
    like = {"thin network": entry.model, "SuperWeights": [case.network]}.get(method, case.network)
    decoded = restored(entry.file, like)
    decoded = decoded.member(0) if method == "SuperWeights" else decoded
    assert evaluation.score(decoded, case.dataset.test) == entry.test
    assert evaluation.score(decoded, case.dataset.validation) == entry.validation
    assert entry.bytes == len(entry.file)


def test_equal_shares_of_a_bank_add_up_to_its_file(case, digits):
    nets = [networks.build_for(digits, case.name, seed=s) for s in range(2)]
    config = superweight_training.Config(epochs=1, batch=256, groups="depth", bins=1)
    made = superweight_training.train(nets, digits, config)
    entries = [compression_recipes.member(case, lambda seed: (made, nets), i) for i in range(2)]
    assert sum(e.share for e in entries) == pytest.approx(1)
    assert entries[0].file == entries[1].file
    assert {e.test for e in entries} == {
        evaluation.score(restored(entries[0].file, nets).member(i), digits.test) for i in range(2)
    }


def test_a_method_that_does_not_apply_says_why_and_others_go_on(case):
    recipes = {"SuperWeights": [partial(alone(), percent=p) for p in (5, 10)], "as trained": [RECIPES["as trained"]]}
    entries, refused = compression.compared(case, recipes)
    assert [e.method for e in entries] == ["as trained"]
    assert list(refused) == ["SuperWeights"]
    assert "need at least" in refused["SuperWeights"]
    recipes["SuperWeights"].append(partial(alone(), percent=90))
    entries, refused = compression.compared(case, recipes)
    assert [e.method for e in entries] == ["SuperWeights", "as trained"]
    assert refused == {}


# ---- the choice ------------------------------------------------------------------------------------------------------


def entry(method, size, validation, test=50.0):
    return Entry(
        "n", method, "s", 0, b"x" * size, 1.0, nn.Linear(1, 1), Score(validation, 1.0), Score(test, 1.0), 1, 1, 1, None
    )


TRIED = [
    entry("as trained", 400, 2.0),
    entry("low rank", 100, 2.4),
    entry("low rank", 60, 2.5),
    entry("low rank", 50, 2.51),
    entry("thin network", 10, 9.0),
    entry("thin network", 20, 8.0),
]


def test_the_smallest_file_within_the_allowance_is_chosen_else_the_best():
    found = compression.best(TRIED, 0.5)
    assert {m: e.bytes for m, e in found.items()} == {"as trained": 400, "low rank": 60, "thin network": 20}
    assert compression.best(TRIED, 0.4)["low rank"].bytes == 100
    assert compression.best(TRIED, 6.0)["thin network"].bytes == 20


def test_test_rows_choose_nothing():
    other = [replace(e, test=Score(float(k), 0.0)) for k, e in enumerate(reversed(TRIED))][::-1]
    for allowance in (0.1, 0.5, 6.5, 8.0):
        a, b = (compression.best(some, allowance) for some in (TRIED, other))
        assert {m: e.bytes for m, e in a.items()} == {m: e.bytes for m, e in b.items()}


def test_a_table_has_the_mean_of_seeds_and_what_does_not_apply():
    chosen = {"low rank": [entry("low rank", size, 2.0, test) for size, test in ((90, 3.0), (110, 5.0))]}
    columns, rows = compression.table(chosen, {"SWAT-NN": "too wide"})
    assert len({len(row) for row in rows} | {len(columns) + 1}) == 1
    low, none = (dict(zip(["", *columns], row, strict=True)) for row in rows)
    assert low["bytes"].startswith("100 ")
    assert low["test error (%)"].startswith("4.00 ")
    assert none["setting"] == "does not apply: too wide"


def test_the_cases_are_those_of_notebooks_one_and_two():
    assert set(compression_cases.NETWORKS) == {"perceptron", "deep", "residual"}
    deep = networks.build(compression_cases.DEEP)
    least = allocate([deep], torch.zeros(1, 16), clusters=1, most=1).sizes["shared"]
    assert least < 0.5 * sum(p.numel() for p in deep.parameters()), "layers of equal shape: half of it is enough"

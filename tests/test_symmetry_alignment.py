import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from wsnotebook import networks, symmetry
from wsnotebook.layout import Layout
from wsnotebook.symmetry.matching import Matching
from wsnotebook.zoo.value import Zoo


def zoo_of(name: str, n: int, **options) -> Zoo:
    """n networks with random weights, biases, norms and statistics all different from one another."""
    models = [networks.build(name, seed=i, **options) for i in range(n)]
    layout = Layout.of(models[0])
    weights = torch.stack([layout.flatten(model.state_dict()) for model in models]).detach()
    noise = 0.02 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    statistics = torch.tensor([kind == "statistic" for kind in layout.kinds])[layout.tensor_index()]
    weights += torch.where(statistics, noise.abs(), noise)  # variances stay positive
    return Zoo(weights, layout, {"model": np.arange(n) + 100}, name, {"build": options})


def straightforward(reference: dict, state: dict, widths: list[int], seed: int) -> list[np.ndarray]:
    """Weight matching of one MLP fc1, fc2, ... in float64 numpy: everything computed anew at every visit."""
    layers = len(widths) - 1
    W = [state[f"fc{i + 1}.weight"].double().numpy() for i in range(layers)]
    b = [state[f"fc{i + 1}.bias"].double().numpy() for i in range(layers)]
    V = [reference[f"fc{i + 1}.weight"].double().numpy() for i in range(layers)]
    c = [reference[f"fc{i + 1}.bias"].double().numpy() for i in range(layers)]
    p = [np.arange(width) for width in widths]  # of every layer's units, the input's and output's staying as they are
    generator = np.random.default_rng(seed)
    improved = True
    while improved:
        improved = False
        for i in generator.permutation(layers - 1):
            A = V[i] @ W[i][:, p[i]].T + np.outer(c[i], b[i]) + V[i + 1].T @ W[i + 1][p[i + 2]]
            best = linear_sum_assignment(A, maximize=True)[1]
            before, after = (A[np.arange(len(q)), q].sum() for q in (p[i + 1], best))
            if after - before > 1e-12 * abs(before):
                p[i + 1], improved = best, True
    return p[1:-1]


@pytest.mark.parametrize("name", ["mlp-20-8-8-4", "mlp-30-16-12-7-5", "mlp-6-3-3-2"])
def test_lock_step_gives_each_model_what_it_gets_alone(name):
    zoo = zoo_of(name, 12)
    aligned = symmetry.align(zoo, reference=2, seed=5)
    reference = zoo.layout.unflatten(zoo.weights[2])
    for i in range(len(zoo)):
        alone = straightforward(reference, zoo.layout.unflatten(zoo.weights[i]), list(map(int, name.split("-")[1:])), 5)
        for group, permutation in enumerate(alone, start=1):
            assert aligned.permutations[f"fc{group}"][i].tolist() == permutation.tolist()


def test_no_single_group_can_be_better_and_none_beats_the_best_of_all():
    zoo = zoo_of("mlp-4-3-3-2", 6)
    aligned = symmetry.align(zoo)
    spec, reference = aligned.specification, zoo.layout.unflatten(zoo.weights[0])
    orders = torch.tensor(list(itertools.permutations(range(3))))  # (6, 3)

    def objectives(row, **permutations):
        many = {name: t.expand(36, *t.shape) for name, t in zoo.layout.unflatten(row).items()}
        moved = spec.apply(many, permutations)
        return sum((moved[name] * tensor).flatten(1).sum(1) for name, tensor in reference.items())

    identity = torch.arange(3).expand(36, 3)
    one, other = orders.repeat(6, 1), orders.repeat_interleave(6, 0)
    for i, row in enumerate(aligned.zoo.weights):
        own = aligned.objective_after[i]
        assert objectives(row, fc1=one, fc2=identity).max() <= own + 1e-5
        assert objectives(row, fc1=identity, fc2=one).max() <= own + 1e-5
        assert objectives(zoo.weights[i], fc1=one, fc2=other).max() >= own - 1e-5


@pytest.mark.parametrize("name", ["mlp-20-64-64-5", "cnn-small", "resnet-8", "wrn-10-1"])
def test_a_planted_permutation_is_found_exactly(name):
    zoo = zoo_of(name, 1)
    copies = symmetry.permute(zoo.filter([0, 0, 0]), seed=3)
    assert (copies.weights != zoo.weights).any(1).all()
    aligned = symmetry.align(copies, reference=zoo.weights[0])
    assert torch.equal(aligned.zoo.weights, zoo.weights.expand(3, -1))  # statistics of norms too
    assert aligned.distance_after.max() == 0
    moved = aligned.specification.apply(zoo.layout.unflatten(copies.weights), aligned.permutations)
    assert torch.equal(zoo.layout.flatten(moved), aligned.zoo.weights)


def test_permuted_heads_of_attention_are_found_exactly():
    zoo = zoo_of("vit-tiny", 1)
    x = networks.example("vit-tiny")
    spec = symmetry.specification(zoo.module(0), x)
    random = spec.random(4, torch.Generator().manual_seed(0))
    random = {name: order for name, order in random.items() if name not in spec.streams}
    assert (random["blocks.0.attention.qk"] // 16 == random["blocks.0.attention.v"] // 16).all()  # 2 heads of 16
    copies = zoo.filter([0, 0, 0, 0])
    copies = copies.derived(zoo.layout.flatten(spec.apply(zoo.layout.unflatten(copies.weights), random)))
    aligned = symmetry.align(copies, reference=zoo.weights[0])
    assert torch.equal(aligned.zoo.weights, zoo.weights.expand(4, -1))


@pytest.mark.parametrize("name", ["mlp-20-9-8-5", "cnn-small", "resnet-8", "vit-tiny"])
def test_functions_stay_and_networks_come_closer(name):
    zoo = zoo_of(name, 4)
    x = networks.example(name)
    aligned, permuted = symmetry.align(zoo), symmetry.permute(zoo, seed=1)
    for i in range(len(zoo)):
        with torch.no_grad():
            expected = zoo.module(i)(x)
            for moved in (aligned.zoo, permuted):
                torch.testing.assert_close(moved.module(i)(x), expected, rtol=1e-4, atol=1e-5)
    assert aligned.function_error.max() < 1e-4
    assert (aligned.objective_after[1:] > aligned.objective_before[1:]).all()
    assert (aligned.distance_after[1:] < aligned.distance_before[1:]).all()
    assert torch.equal(aligned.zoo.weights[0], zoo.weights[0])
    assert (permuted.facts["parent"] == zoo.facts["model"]).all()
    again = symmetry.align(aligned.zoo)
    assert (again.distance_after <= aligned.distance_after + 1e-9).all()


def test_each_network_has_a_permutation_of_its_own():
    zoo = zoo_of("mlp-8-12-3", 3)
    first = symmetry.permute(zoo.filter([0, 0, 0]), seed=4).weights
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, symmetry.permute(zoo.filter([0, 0, 0]), seed=4).weights)
    assert torch.equal(first.sort(1).values, zoo.weights[:1].expand(3, -1).sort(1).values)


class Skipping(nn.Module):
    """A group on both axes of one tensor: the objective is quadratic in its permutation."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(h + F.relu(self.inner(h)))


@pytest.mark.parametrize("name", ["skipping", "cnn-tiny", "resnet-8"])
def test_every_visit_raises_the_objective(name):
    models = [Skipping() if name == "skipping" else networks.build(name, seed=i) for i in range(5)]
    torch.manual_seed(0)
    states = [{n: t + torch.randn(t.shape) for n, t in m.named_parameters()} for m in models]
    spec = symmetry.specification(models[0], torch.zeros(1, 4) if name == "skipping" else networks.example(name))
    reference = {n: t.detach() for n, t in states[0].items()}
    state = {n: torch.stack([s[n].detach() for s in states[1:]]) for n in reference}
    matching = Matching(spec, set(spec.groups), reference, state)

    def objective():
        moved = spec.apply(state, matching.permutations)
        return sum((moved[n].double() * t).flatten(1).sum(1) for n, t in reference.items())

    before = start = objective()
    for group in [*spec.groups] * 4:
        gained = torch.zeros(4, dtype=torch.bool)
        gained[matching.visit(group)] = True
        after = objective()
        assert (after[gained] > before[gained]).all()
        torch.testing.assert_close(after[~gained], before[~gained], rtol=0, atol=0)
        before = after
    assert (before > start).any()


def test_statistics_follow_but_do_not_count():
    zoo = zoo_of("resnet-8", 2)
    loud = zoo.weights.clone()
    loud[:, torch.tensor([k == "statistic" for k in zoo.layout.kinds])[zoo.layout.tensor_index()]] *= 1000
    quiet, loud = symmetry.align(zoo), symmetry.align(zoo.derived(loud))
    for group, permutation in quiet.permutations.items():
        assert torch.equal(permutation, loud.permutations[group])
    mean = zoo.layout.unflatten(zoo.weights)["bn.running_mean"][1]
    moved = zoo.layout.unflatten(quiet.zoo.weights)["bn.running_mean"][1]
    assert torch.equal(moved, mean[quiet.permutations["conv"][1]])


def test_networks_come_closer_to_their_mean_round_by_round():
    zoo = zoo_of("mlp-10-16-16-4", 10)
    aligned = symmetry.align(zoo, reference="mean")
    assert all(later < earlier for earlier, later in itertools.pairwise(aligned.rounds))
    torch.testing.assert_close(aligned.reference, aligned.zoo.weights.mean(0))
    assert aligned.rounds[-1] == pytest.approx(np.sqrt((aligned.distance_after**2).mean()))
    to_one = symmetry.align(zoo).zoo.weights
    spread = (to_one - to_one.mean(0)).norm(dim=1).square().mean().sqrt()
    assert aligned.rounds[-1] < spread
    moved = aligned.specification.apply(zoo.layout.unflatten(zoo.weights), aligned.permutations)
    assert torch.equal(zoo.layout.flatten(moved), aligned.zoo.weights)


def test_portions_change_nothing(monkeypatch):
    zoo = zoo_of("cnn-tiny", 5)
    whole = symmetry.align(zoo)
    monkeypatch.setattr(symmetry.alignment, "PORTION", 1)
    assert torch.equal(symmetry.align(zoo).zoo.weights, whole.zoo.weights)


@pytest.mark.parametrize("name", ["mlp-6-9-8-4", "lenet-5-caffe"])
def test_balanced_units_are_as_long_in_as_out_and_scales_alone_are_undone(name):
    zoo = zoo_of(name, 3)
    balanced = symmetry.align(zoo, scale=True)
    assert balanced.function_error.max() < 1e-4
    state = zoo.layout.unflatten(balanced.zoo.weights)
    first, second = ("fc1", "fc2") if name.startswith("mlp") else ("conv1", "conv2")
    incoming = state[f"{first}.weight"].flatten(2).square().sum(2) + state[f"{first}.bias"].square()
    outgoing = state[f"{second}.weight"].transpose(1, 2).flatten(2).square().sum(2)
    torch.testing.assert_close(incoming, outgoing, rtol=1e-4, atol=0)

    scaled = {n: t.clone() for n, t in zoo.layout.unflatten(zoo.weights[:1]).items()}
    s = torch.linspace(0.2, 5, incoming.shape[1])
    scaled[f"{first}.weight"] *= s.view(-1, *[1] * (scaled[f"{first}.weight"].ndim - 2))
    scaled[f"{first}.bias"] *= s
    scaled[f"{second}.weight"] /= s.view(-1, *[1] * (scaled[f"{second}.weight"].ndim - 3))
    copy = zoo.filter([0]).derived(zoo.layout.flatten(scaled))
    copy = symmetry.permute(copy, seed=2)
    aligned = symmetry.align(copy, reference=zoo.weights[0], scale=True)
    assert aligned.distance_after[0] < 1e-4 * aligned.reference.norm()


def test_balancing_leaves_dead_units_and_refuses_networks_without_free_scales():
    zoo = zoo_of("mlp-5-6-3", 2)
    state = {name: tensor.clone() for name, tensor in zoo.layout.unflatten(zoo.weights).items()}
    state["fc2.weight"][:, :, 2] = 0
    dead = zoo.derived(zoo.layout.flatten(state))
    aligned = symmetry.align(dead, scale=True)
    rows = zoo.layout.unflatten(aligned.zoo.weights)["fc1.weight"]
    assert torch.equal(rows[0, 2], state["fc1.weight"][0, 2])
    assert aligned.function_error.max() < 1e-5
    for other in (zoo_of("resnet-8", 1), zoo_of("mlp-5-6-3", 2, activation="tanh")):
        with pytest.raises(ValueError, match="no units of these networks can be scaled"):
            symmetry.align(other, scale=True)


def test_a_zoo_of_several_activations_keeps_every_function():
    zoo = zoo_of("mlp-5-6-4-3", 4)
    zoo = zoo.derived(zoo.weights, activation=np.array(["relu", "tanh", "relu", "gelu"]))
    x = torch.randn(3, 5)
    aligned = symmetry.align(zoo)
    for i in range(4):
        with torch.no_grad():
            torch.testing.assert_close(aligned.zoo.module(i)(x), zoo.module(i)(x))
    with pytest.raises(ValueError, match="no units of these networks can be scaled"):
        symmetry.align(zoo, scale=True)


def own() -> nn.Module:
    return Skipping()


def test_a_users_own_network_needs_a_sample_input():
    layout = Layout.of(own())
    weights = torch.stack([layout.flatten(own().state_dict()) for _ in range(3)]).detach()
    zoo = Zoo(weights, layout, {}, f"{__name__}:own", {})
    with pytest.raises(ValueError, match="pass an example x"):
        symmetry.align(zoo)
    aligned = symmetry.align(zoo, x=torch.randn(2, 4))
    assert (aligned.distance_after <= aligned.distance_before).all()
    assert aligned.function_error.max() < 1e-5
    assert (symmetry.permute(zoo, x=torch.randn(2, 4)).facts["parent"] == np.arange(3)).all()


def test_errors_say_what_was_seen_and_expected():
    zoo = zoo_of("mlp-5-6-3", 2)
    with pytest.raises(ValueError, match="it holds no networks"):
        symmetry.align(zoo.filter([]))
    with pytest.raises(ValueError, match="it holds no networks"):
        symmetry.permute(zoo.filter([]))
    with pytest.raises(ValueError, match=r"shape \(9,\), expected a row of \(57,\).*another architecture"):
        symmetry.align(zoo, reference=torch.zeros(9))
    with pytest.raises(ValueError, match="with NaN or infinities"):
        symmetry.align(zoo, reference=torch.full((57,), torch.nan))
    for reference in (2, "median", 0.5):
        with pytest.raises(ValueError, match='expected "mean", a row of weights, or one of 0 .. 1'):
            symmetry.align(zoo, reference=reference)


def test_snapshots_move_as_their_model_does():
    last = zoo_of("cnn-tiny", 5)
    last = last.derived(last.weights, model=np.array([3, 9, 4, 7, 1]))
    generator = torch.Generator().manual_seed(0)
    earlier = last.filter([4, 0, 2]).derived(torch.randn(3, last.layout.d, generator=generator))
    found = symmetry.align(last)
    assert torch.equal(found.carry(last).weights, found.zoo.weights)
    carried = found.carry(earlier)
    before, after = earlier.weights.sort(1).values, carried.weights.sort(1).values
    assert torch.equal(before, after)
    x = torch.randn(4, 1, 8, 8, generator=generator)
    for i, row in enumerate([4, 0, 2]):
        assert torch.allclose(earlier.module(i)(x), carried.module(i)(x), atol=1e-4)
        mixed = last.layout.unflatten(
            (earlier.weights[i] + last.weights[row])[None]
        )  # linear: one permutation for both
        both = last.layout.flatten(
            found.specification.apply(mixed, {g: p[[row]] for g, p in found.permutations.items()})
        )
        assert torch.allclose(both[0], carried.weights[i] + found.zoo.weights[row], atol=1e-6)
    with pytest.raises(ValueError, match="model 2 is none of the 5"):
        found.carry(earlier.derived(earlier.weights, model=np.array([3, 2, 4])))

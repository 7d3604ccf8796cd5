"""Which layers are similar, which clusters that makes, what fits a budget, and whose coefficients disagree."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsnotebook import networks
from wsnotebook.methods import superweight_sharing as sharing
from wsnotebook.methods.superweight_clusters import Layer
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweight_similarities import Similarities, crop_cosines, minibatches, similarities
from wsnotebook.methods.superweights import Bank


@pytest.fixture(scope="module")
def members(digits):
    """Two convolutional networks with batch norm."""
    return [networks.build_for(digits, name, seed=seed) for seed, name in enumerate(("wrn-16-1", "wrn-10-1"))]


@pytest.fixture(scope="module")
def bank(members, digits):
    return Bank(members, allocate(members, digits.train[0][:1], clusters=3))


@pytest.fixture(scope="module")
def found(bank, digits):
    return similarities(bank, digits.train, batches=4, batch=16)


def perceptrons(digits, *names, **options):
    nets = [networks.build(name, seed=seed) for seed, name in enumerate(names)]
    return nets, allocate(nets, digits.train[0][:1], **options)


def planted(matrix, initial=None):
    """Similarities of that many layers of one shape, known without noise."""
    n = len(matrix)
    layers = tuple(Layer(0, f"conv{i}", (4, 4, 3, 3)) for i in range(n))
    return Similarities(layers, np.array(matrix, float), np.ones(n), initial or (0,) * n)


def random_matrix(n, seed):
    random = np.random.default_rng(seed)
    matrix = random.uniform(-1, 1, (n, n))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    return matrix


def names(clusters):
    return sorted(sorted(layer.name for layer in cluster) for cluster in clusters)


# ---- similarities ------------------------------------------------------------------------------------------------


def test_cosines_of_crops_equal_a_loop():
    shapes = [(4, 2, 3, 3), (3, 5, 3, 3), (4, 2, 3, 3), (6, 1, 1, 1), (2, 7, 1, 1)]
    a, b = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    seen = crop_cosines(a, b)
    for l, m in np.ndindex(5, 5):
        if shapes[l][2:] != shapes[m][2:]:
            assert np.isnan(seen[l, m])
            continue
        o, i = (min(shapes[l][axis], shapes[m][axis]) for axis in (0, 1))
        u, v = a[l][:o, :i].double().flatten(), b[m][:o, :i].double().flatten()
        assert seen[l, m] == pytest.approx(float(u @ v / u.norm() / v.norm()), abs=1e-12)


def test_similarities_equal_those_of_plain_networks_gradients(bank, digits, found):
    halves = [{}, {}]
    for member in range(2):
        network = bank.member(member).eval()
        for number, (x, y) in enumerate(minibatches(digits.train, 4, 16, 0)):
            network.zero_grad()
            F.cross_entropy(network(x), y).backward()
            for layer in found.layers:
                if layer.member == member:
                    gradient = network.get_submodule(layer.name).weight.grad
                    halves[number % 2][layer] = halves[number % 2].get(layer, 0) + gradient
    cosines = crop_cosines(*([half[layer] for layer in found.layers] for half in halves))
    np.testing.assert_allclose(found.raw, (cosines + cosines.T) / 2, atol=1e-4)
    np.testing.assert_allclose(found.floor, cosines.diagonal(), atol=1e-4)


def test_a_twin_is_as_similar_as_oneself_and_noise_is_divided_out(digits):
    networks_, plan = perceptrons(digits, "mlp-64-12-12-10", clusters=1)
    twins = networks_ * 2
    own = Bank(twins, allocate(twins, digits.train[0][:1], clusters=1))
    seen = similarities(own, digits.train, batches=6, batch=32)
    assert seen.floor.max() < 0.999  # there is noise
    np.testing.assert_allclose(seen.matrix[[0, 1], [2, 3]], 1, atol=1e-6)
    np.testing.assert_allclose(seen.matrix.diagonal(), 1)
    assert np.nanmax(np.abs(seen.matrix)) <= 1


def test_weights_count_half_when_asked_for(bank, digits, found):
    both = similarities(bank, digits.train, kind="gradient and weight", batches=4, batch=16)
    weights = crop_cosines([bank.compose()[l.member][f"{l.name}.weight"].detach() for l in found.layers])
    np.testing.assert_allclose(both.raw, (found.raw + weights) / 2, atol=1e-6)


def test_similarities_survive_json(found):
    back = Similarities.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert (back.layers, back.initial) == (found.layers, found.initial)
    np.testing.assert_array_equal(back.raw, found.raw)
    np.testing.assert_array_equal(back.floor, found.floor)


@pytest.mark.parametrize("batches", [1, 2000])
def test_halves_need_minibatches(bank, digits, batches):
    with pytest.raises(ValueError, match=f"batches={batches} of .* rows"):
        similarities(bank, digits.train, batches=batches)


# ---- clusters ----------------------------------------------------------------------------------------------------


def agglomerated(matrix, threshold, linkage):
    """The definition: the two most similar clusters are merged while they are as similar as the threshold."""
    join = {"average": np.mean, "complete": np.min, "single": np.max}[linkage]
    clusters = [[n] for n in range(len(matrix))]
    while len(clusters) > 1:
        similarity, a, b = max((join(matrix[np.ix_(a, b)]), a, b) for a, b in combinations(clusters, 2))
        if similarity < threshold:
            break
        clusters = [cluster for cluster in clusters if cluster not in (a, b)] + [a + b]
    return sorted(sorted(f"conv{n}" for n in cluster) for cluster in clusters)


@pytest.mark.parametrize("linkage", sharing.LINKAGES)
@pytest.mark.parametrize("seed", range(5))
def test_clusters_equal_brute_force(linkage, seed):
    matrix = random_matrix(9, seed)
    for threshold in (-1, -0.3, 0, 0.1, 0.4, 0.8):
        seen = sharing.clusters(planted(matrix), threshold, linkage)
        assert names(seen) == agglomerated(matrix, threshold, linkage)


def test_planted_clusters_are_found_and_a_weaker_pair_takes_nothing_away():
    matrix = np.eye(6)
    for a, b, value in ((0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.8), (3, 4, 0.7), (2, 3, 0.3)):
        matrix[a, b] = matrix[b, a] = value
    seen = sharing.clusters(planted(matrix), 0.25)
    assert names(seen) == [["conv0", "conv1", "conv2"], ["conv3", "conv4"], ["conv5"]]


def test_clusters_stay_within_the_initial_ones():
    of = planted(np.ones((5, 5)), (0, 1, 0, 1, 2))
    initial = [["conv0", "conv2"], ["conv1", "conv3"], ["conv4"]]
    assert names(sharing.clusters(of, 0.9)) == names(sharing.clusters(of, -1)) == initial
    assert names(sharing.clusters(of, 1.5)) == [[f"conv{n}"] for n in range(5)]


def test_random_control_has_the_same_sizes_and_other_layers(found):
    control = found.shuffled(3)
    assert control.layers != found.layers
    assert control.layers == found.shuffled(3).layers
    assert sorted(control.layers, key=str) == sorted(found.layers, key=str)
    assert [l.shape[2:] for l in control.layers] == [l.shape[2:] for l in found.layers]
    for threshold in (-1, 0, 0.2, 0.5):
        sizes = [list(map(len, sharing.clusters(of, threshold))) for of in (found, control)]
        assert sizes[0] == sizes[1]


# ---- the budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", ["all", "bank"])
def test_the_search_never_exceeds_the_budget_and_lowers_no_more_than_it_must(members, digits, found, counted):
    x = digits.train[0][:1]
    smallest = allocate(members, x, clusters=1, most=1, counted=counted, sharing="own").sizes
    smallest = smallest["shared" if counted == "all" else "templates"]
    total = sum(p.numel() for network in members for p in network.parameters())
    heights = [1 - tree[:, 2] for _, tree in sharing._trees(found, "average")]
    budgets = np.linspace(smallest, 1.1 * total, 9).astype(int).tolist()
    for threshold in (0.1, 0.4):  # what just fits, and what just does not
        own = allocate(members, x, clusters=sharing.clusters(found, threshold), most=1, sharing="own", counted=counted)
        least = own.sizes["shared" if counted == "all" else "templates"]
        budgets = [least - 1, least, *budgets]
    for budget in budgets:
        threshold, plan = sharing.fitting(found, members, x, budget, threshold=0.6, counted=counted)
        assert plan.sizes["templates"] + (counted == "all") * (plan.sizes["unshared"] + plan.sizes["private"]) <= budget
        higher = [float(h) for own in heights for h in own if threshold < h < 0.6] + [0.6] * (threshold < 0.6)
        for other in higher:
            with pytest.raises(ValueError, match="need at least"):
                allocate(members, x, budget, clusters=sharing.clusters(found, other), counted=counted)
    assert threshold == 0.6
    with pytest.raises(ValueError, match=f"need at least {smallest:,}"):
        sharing.fitting(found, members, x, smallest - 1, counted=counted)


def test_the_last_try_is_one_cluster_a_kernel_size(members, digits, found):
    x = digits.train[0][:1]
    least = allocate(members, x, clusters=1, most=1).sizes["templates"]
    threshold, plan = sharing.fitting(found, members, x, least, counted="bank")
    assert threshold == -np.inf
    assert [len({layer.shape[2:] for layer in cluster}) for cluster in plan.clusters] == [1, 1]


def test_bins_are_as_many_as_fit(members, digits):
    x, bins = digits.train[0][:1], 6
    least = {n: allocate(members, x, clusters=n, most=1, sharing="own").least for n in range(1, bins + 1)}
    for budget in sorted({*least.values(), *(value - 1 for value in least.values())} - {least[1] - 1}):
        plan = sharing.fitting_bins(members, x, budget, bins)
        most = max(n for n in least if least[n] <= budget)
        assert plan == allocate(members, x, budget, clusters=most)
    assert sharing.fitting_bins(members, x, None, bins) == allocate(members, x, clusters=bins)
    with pytest.raises(ValueError, match=f"need at least {least[1]:,}"):
        sharing.fitting_bins(members, x, least[1] - 1, bins)


# ---- coefficients ------------------------------------------------------------------------------------------------


def test_matched_layers_have_the_vector_of_the_most_similar_of_the_deepest_network(members, digits, found):
    plan = allocate(members, digits.train[0][:1], clusters=sharing.clusters(found, 0.1))
    made = sharing.matched(plan, found)
    place = {layer: n for n, layer in enumerate(found.layers)}
    for g, r in made.superweights:
        users = [made.clusters[g][p] for p in made.users(g, r)]
        rows = made.rows[g][r]
        first = [n for n, user in enumerate(users) if user.member == min(u.member for u in users)]
        assert [rows[n] for n in first] == list(range(len(first)))
        for n, user in enumerate(users):
            if n not in first:
                similar = [found.matrix[place[user], place[users[m]]] for m in first]
                assert rows[n] == int(np.argmax(similar))
    Bank(members, made)(digits.train[0][:2])


@pytest.mark.parametrize("how", ["single", "matched"])
def test_gradients_of_uses_are_projections_on_templates_and_sum_to_those_of_the_vectors(how, digits):
    nets, plan = perceptrons(digits, "mlp-64-12-12-12-10", "mlp-64-16-12-10", clusters=1, sharing=how)
    plan = replace(plan, rows=tuple(tuple(tuple(max(rows) - row for row in rows) for rows in own) for own in plan.rows))
    bank = Bank(nets, plan)
    seen = sharing.coefficient_gradients(bank, digits.train, batches=3, batch=8)
    weights = {m: {n: w.detach().requires_grad_() for n, w in own.items()} for m, own in bank.compose().items()}
    sums = [0.0] * len(seen)
    for x, y in minibatches(digits.train, 3, 8, 0):
        loss = sum(F.cross_entropy(torch.func.functional_call(bank.members[m], weights[m], (x,)), y) for m in (0, 1))
        loss.backward()
        loss = sum(F.cross_entropy(logits, y) for logits in bank(x))
        for s, gradient in enumerate(torch.autograd.grad(loss, list(bank.coefficients))):
            sums[s] = sums[s] + gradient
    for s, (g, r) in enumerate(plan.superweights):
        shapes, increments = plan.ladders[g]
        for n, position in enumerate(plan.users(g, r)):
            layer = plan.clusters[g][position]
            gradient = weights[layer.member][f"{layer.name}.weight"].grad
            # by the definition: the weight as a linear function of the vector
            columns = []
            for k in range(plan.templates[g][r]):
                probe = Bank(nets, plan)
                with torch.no_grad():
                    for own, other in zip(probe.templates, bank.templates, strict=True):
                        own.copy_(other)
                    for own in probe.coefficients:
                        own.zero_()
                    probe.coefficients[s][plan.rows[g][r][n], k] = 1
                columns.append((probe.compose()[layer.member][f"{layer.name}.weight"] * gradient).sum())
            torch.testing.assert_close(seen[s][n], torch.stack(columns).detach(), rtol=1e-3, atol=1e-5)
        for row, wanted in enumerate(sums[s]):
            uses = [n for n, own in enumerate(plan.rows[g][r]) if own == row]
            torch.testing.assert_close(seen[s][uses].sum(0), wanted, rtol=1e-3, atol=1e-5)


def test_disagreeing_uses_are_separated_between_networks_and_within_one(digits):
    nets, plan = perceptrons(digits, "mlp-64-12-12-12-12-10", "mlp-64-12-12-10", clusters=1, sharing="single", most=3)
    (s,) = (s for s, (g, r) in enumerate(plan.superweights) if plan.ladders[g][0][r] == (12, 12))
    users = [plan.clusters[g][p] for g, r in plan.superweights[s : s + 1] for p in plan.users(g, r)]
    gradients = [torch.ones(len(plan.rows[g][r]), plan.templates[g][r]) for g, r in plan.superweights]
    assert sharing.disagreeing(gradients, plan, 0.9) == {}
    inside = [n for n, user in enumerate(users) if user == Layer(0, "fc3", (12, 12))]
    outside = [n for n, user in enumerate(users) if user.member == 1 and user.name == "fc2"]
    gradients[s][inside], gradients[s][outside] = torch.tensor([1.0, -1, 0]), torch.tensor([-1.0, -1, -1])
    labels = sharing.disagreeing(gradients, plan, 0.9)
    parts = {label: [n for n, own in enumerate(labels[s]) if own == label] for label in set(labels[s])}
    assert list(labels) == [s]
    assert sorted(map(tuple, parts.values()), key=len)[:2] in (
        [tuple(inside), tuple(outside)],
        [tuple(outside), tuple(inside)],
    )
    bank = Bank(nets, plan)
    before = bank(digits.test[0])
    bank.unshare(labels)
    assert len(set(bank.plan.rows[plan.superweights[s][0]][plan.superweights[s][1]])) == 3
    for a, b in zip(before, bank(digits.test[0]), strict=True):
        assert torch.equal(a, b)


def test_users_of_different_vectors_are_not_compared(digits):
    nets, plan = perceptrons(digits, "mlp-64-12-12-10", "mlp-64-12-12-10", clusters=1, sharing="own")
    gradients = [torch.randn(len(plan.rows[g][r]), plan.templates[g][r]) for g, r in plan.superweights]
    assert sharing.disagreeing(gradients, plan, 0.99) == {}

"""Who shares what, and what it costs: counts, clusters, ladders of shapes, budgets."""

import json
import random
import re

import pytest
import torch
from torch import nn

from wsnotebook import networks
from wsnotebook.evaluation import markdown
from wsnotebook.methods.superweight_clusters import Layer, depth_bins, ladder, shareable, shuffled
from wsnotebook.methods.superweight_plan import Plan, allocate

PUBLISHED = ("wrn-28-7", "wrn-28-4", "wrn-16-7", "wrn-16-4"), ("wrn-28-7", "wrn-28-4", "wrn-28-3")
MIXED = ("wrn-16-1", "wrn-10-2", "wrn-10-1")


def build(names, **options):
    """Without memory for weights: a plan needs none."""
    with torch.device("meta"):
        return [networks.build(name, **options) for name in names]


def images(n=1, side=32):
    return torch.zeros(n, 3, side, side, device="meta")


@pytest.fixture(scope="module")
def published():
    return [build(names, classes=100) for names in PUBLISHED]


def plan(nets, budget=None, **options):
    return allocate(nets, images(), budget, **options)


# ---- the published case ------------------------------------------------------------------------------------------


def test_counts_of_the_published_ensemble(published):
    made = plan(published[0], 18_000_000, counted="bank")
    sizes = made.sizes
    assert sizes["separate"] == 35_006_544
    assert sizes["templates"] == 17_997_568
    assert sizes["unshared"] == 1_670
    assert sizes["private"] == 170_896
    assert sizes["templates"] + sizes["unshared"] + sizes["private"] == 18_170_134
    assert len(made.superweights) == 25
    assert sum(len(made.rows[g][r]) for g, r in made.superweights) == 260
    assert [round(n / 1e6) for n in made.macs] == [2575, 846, 1188, 393]
    assert round(made.composition_macs / 1e6) == 181


def test_three_networks_differ_by_one_template_that_no_layer_could_use(published):
    made = plan(published[1], 18_000_000, counted="bank")
    assert made.sizes["separate"] == 27_109_532
    assert made.sizes["private"] == 115_084
    g, r = 0, 2  # there it has 8 templates for 7 layers
    assert (made.templates[g][r], len(made.rows[g][r])) == (7, 7)
    assert made.sizes["templates"] + made.ladders[g][1][r].size == 17_997_568
    assert made.sizes["unshared"] + len(made.rows[g][r]) == 2_308


def test_templates_against_the_budget(published):
    counts = [plan(published[0], n, counted="bank").sizes["templates"] for n in (4_422_656, 5_000_000, 18_000_000)]
    assert counts == [4_422_656, 4_999_776, 17_997_568]
    most = plan(published[0], counted="bank")
    floor = sum(step.size for _, steps in most.ladders for step in steps)
    assert 8 * floor == 35_381_248  # where the public code ends: 8 templates, also of what fewer layers use
    useful = sum(min(8, len(most.rows[g][r])) * most.ladders[g][1][r].size for g, r in most.superweights)
    assert most.sizes["templates"] == plan(published[0], 36_000_000, counted="bank").sizes["templates"] == useful


# ---- shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_shown_parts_of_increments_tile_every_shape_once(seed):
    dice = random.Random(seed)
    shapes, increments = ladder([(dice.randint(1, 9), dice.randint(1, 9), 2) for _ in range(6)])
    for j, (o, i, _) in enumerate(shapes):
        times = torch.zeros(o, i)
        for r, step in enumerate(increments[: j + 1]):
            bottom, right = step.shown[j - r]
            for a, b, c, d in step.blocks:
                times[a : min(b, bottom), c : min(d, right)] += 1
        assert bool((times == 1).all())
    assert all(step.size == 2 * sum((b - a) * (d - c) for a, b, c, d in step.blocks) for step in increments)
    assert [step.size for step in increments][0] == shapes[0][0] * shapes[0][1] * 2


# ---- clusters and sharing ----------------------------------------------------------------------------------------


def test_depth_bins_deal_layers_evenly_and_keep_kernels_apart(published):
    layers, _ = shareable(published[0])
    clusters = depth_bins(layers, 4)
    assert len(clusters) == 5
    assert {layer for cluster in clusters for layer in cluster} == set(layers)
    for member, wanted in ((0, [3, 7, 6, 6, 6]), (2, [3, 4, 3, 3, 3])):
        assert [sum(layer.member == member for layer in cluster) for cluster in clusters] == wanted
    assert all(len({layer.shape[2:] for layer in cluster}) == 1 for cluster in clusters)


def test_shuffled_clusters_keep_sizes_kernels_and_layers():
    clusters = depth_bins(shareable(build(MIXED))[0], 4)
    dealt = shuffled(clusters, seed=1)
    assert [(len(c), c[0].shape[2:]) for c in dealt] == [(len(c), c[0].shape[2:]) for c in clusters]
    assert {la for c in dealt for la in c} == {la for c in clusters for la in c}
    assert dealt == shuffled(clusters, seed=1) != shuffled(clusters, seed=2)
    assert all(len({layer.shape[2:] for layer in cluster}) == 1 for cluster in dealt)
    plan(build(MIXED), clusters=dealt)


def holders(made, position):
    """{vector: layers} of one SuperWeight."""
    g, r = made.superweights[position]
    found = {}
    for user, row in zip(made.users(g, r), made.rows[g][r], strict=True):
        found.setdefault(row, []).append(made.clusters[g][user])
    return found


def test_matched_layers_of_equally_deep_networks_share_by_position():
    made = plan(build(("wrn-16-4", "wrn-16-2")))
    names = []
    for position in range(len(made.superweights)):
        for layers in holders(made, position).values():
            assert len({layer.name for layer in layers}) == 1
            names.append(len(layers))
    assert 2 in names


def test_the_deepest_network_owns_vectors_and_others_take_the_nearest():
    made = plan(build(("wrn-10-1", "wrn-16-2")))  # the deepest comes second
    depth = {layer: n for n, layer in enumerate(la for la in shareable(build(("wrn-10-1", "wrn-16-2")))[0])}
    for position in range(len(made.superweights)):
        for layers in holders(made, position).values():
            assert sum(layer.member == 1 for layer in layers) == 1
            assert sorted(layers, key=depth.get)[-1].member == 1


def test_own_and_single_vectors():
    nets = build(MIXED)
    own, single = plan(nets, sharing="own"), plan(nets, sharing="single")
    for g, r in own.superweights:
        assert own.rows[g][r] == tuple(range(len(own.users(g, r))))
        assert set(single.rows[g][r]) == {0}
    assert own.sizes["coefficients"] == own.sizes["unshared"] == single.sizes["unshared"]


class Odd(nn.Module):
    """One of everything that does not share, and two layers that do."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.norm = nn.GroupNorm(2, 4)
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 6)
        self.one = nn.Linear(6, 6)
        self.same = nn.Linear(6, 6)
        self.same.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        h = self.norm(self.up(self.depthwise(self.conv(x)))).mean((2, 3)) + self.embedding.weight.mean(0)
        return self.fc(self.normed(self.same(self.one(torch.relu(self.hidden(h))))))


def test_what_cannot_share_is_private_and_the_report_says_why():
    made = allocate([Odd(), Odd()], torch.zeros(1, 3, 8, 8))
    assert {layer.name for cluster in made.clusters for layer in cluster} == {"conv", "hidden"}
    reasons = {name: why for member, name, why in made.private if member == 1}
    told = {"depthwise": "4 groups", "up": "ConvTranspose2d", "norm": "GroupNorm", "embedding": "Embedding"}
    told |= {"one": "tied", "same": "tied", "normed": "computed", "fc": "classifier", "conv": "bias"}
    for name, words in told.items():
        assert words in reasons[name], name
    counted = sum(p.numel() for p in Odd().parameters()) - 3 * 4 * 9 - 4 * 6
    assert made.sizes["private"] == 2 * counted
    columns, rows = made.report()["private"]
    assert "convolution in 4 groups" in markdown(columns, rows)
    both = allocate([Odd(), Odd()], torch.zeros(1, 3, 8, 8), classifier=True)
    assert "fc" in {layer.name for cluster in both.clusters for layer in cluster}


def test_layers_in_no_cluster_are_private():
    nets = build(MIXED)
    kept = [[(m, "groups.1.0.conv1") for m in range(3)]]
    made = plan(nets, clusters=kept)
    assert [layer.member for layer in made.clusters[0]] == [0, 1, 2]
    assert (0, "conv", "in no cluster") in made.private
    sizes = made.sizes
    assert sizes["private"] == sizes["separate"] - sum(la.shape[0] * la.shape[1] * 9 for la in made.clusters[0])


# ---- budgets -----------------------------------------------------------------------------------------------------


def test_a_budget_is_never_exceeded_and_the_smallest_is_told():
    dice, refused = random.Random(0), 0
    x = torch.zeros(1, 1, 8, 8)
    for _ in range(200):
        names = ["cnn-tiny", *(f"mlp-64-{'-'.join(str(dice.randint(2, 40)) for _ in range(4))}-10" for _ in range(3))]
        nets = [networks.build(name) for name in dice.sample(names, dice.randint(1, 4))]
        options = {"counted": dice.choice(("all", "bank")), "most": dice.randint(1, 12)}
        options |= {"clusters": dice.randint(1, 9), "sharing": dice.choice(("matched", "own", "single"))}
        budget = int(10 ** dice.uniform(2.5, 4.5))
        try:
            made = allocate(nets, x, budget, **options)
        except ValueError as error:
            refused += 1
            smallest = int(re.search(r"at least ([\d,]+)", str(error))[1].replace(",", ""))
            assert smallest > budget
            budget, made = smallest, allocate(nets, x, smallest, **options)
            with pytest.raises(ValueError, match="at least"):
                allocate(nets, x, smallest - 1, **options)
            fewest = int(re.search(r"need ([\d,]+)\.", str(error))[1].replace(",", ""))
            allocate(nets, x, fewest, **options | {"clusters": 1})
        sizes = made.sizes
        worst = sizes["unshared"] + sizes["private"] if options["counted"] == "all" else 0
        assert sizes["templates"] + worst <= budget
        assert sizes["coefficients"] <= sizes["unshared"]
        for g, r in made.superweights:
            assert 1 <= made.templates[g][r] <= max(1, min(options["most"], len(made.rows[g][r])))
    assert 20 < refused < 180


def test_what_is_left_of_a_budget_is_too_little_for_any_useful_template():
    made = plan(build(MIXED), 400_000)
    left = 400_000 - made.sizes["templates"] - made.sizes["unshared"] - made.sizes["private"]
    for g, r in made.superweights:
        users = len(made.rows[g][r])
        assert made.templates[g][r] == min(8, users) or made.ladders[g][1][r].size + users > left


# ---- the plan as a value -----------------------------------------------------------------------------------------


def test_a_plan_survives_json():
    made = plan(build(MIXED), 400_000)
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("damage", [{"rows": []}, {"templates": [[1]]}, {"clusters": None}, {"more": 1}])
def test_a_damaged_plan_is_refused(damage):
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_dict(json.loads(json.dumps(plan(build(MIXED)).to_dict())) | damage)


def test_the_report_adds_up():
    made = plan(build(MIXED), 400_000)
    report = made.report()
    numbers = {row[0]: int(row[1].replace(",", "")) for row in report["parameters"][1]}
    parts = ("bank: templates", "bank: coefficients", "private to a member")
    assert sum(numbers[part] for part in parts) == numbers["bank in all"] <= numbers["budget (everything)"]
    assert sum(int(row[3]) for row in report["clusters"][1]) >= len(made.superweights)
    for columns, rows in report.values():
        assert all(len(row) == 1 + len(columns) for row in rows)
    named = " ".join(row[2] for row in report["sharing"][1])
    assert all(str(layer) in named for cluster in made.clusters for layer in cluster)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clusters": [[(0, "conv"), (0, "conv")]]}, "twice"),
        ({"clusters": [[(0, "nothing")]]}, "no layer that can share"),
        ({"clusters": [[(0, "conv"), (0, "groups.1.0.shortcut")]]}, "kernels"),
        ({"clusters": [[]]}, "at least one layer"),
        ({"sharing": "none"}, "sharing='none'"),
        ({"counted": "some"}, "counted='some'"),
    ],
)
def test_bad_settings_are_named(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        plan(build(MIXED), **options)


def test_members_have_one_shape_of_output_and_something_to_share():
    with pytest.raises(ValueError, match=r"\(10,\), \(7,\)"):
        plan([*build(("wrn-10-1",)), *build(("wrn-10-1",), classes=7)])
    with pytest.raises(ValueError, match="nothing|no layer can share"):
        allocate([networks.build("mlp-8-3-2")[:2]], torch.zeros(1, 8))


def test_layers_print_as_member_and_name():
    assert str(Layer(2, "conv", (1, 1, 3, 3))) == "2:conv"

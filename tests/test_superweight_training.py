"""The loop that trains members together, its arms, and that interrupting it changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from wsnotebook import datasets, networks
from wsnotebook.methods import superweight_study as study
from wsnotebook.methods import superweight_training as training
from wsnotebook.methods.superweight_baselines import Separate, thinned, thinner
from wsnotebook.methods.superweight_ensembles import anytime
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweight_run import Run, cutout, rate
from wsnotebook.methods.superweight_similarities import Similarities
from wsnotebook.methods.superweight_training import Config, train
from wsnotebook.methods.superweights import Bank
from wsnotebook.training import augmented

QUICK = Config(epochs=3, batch=32, pretraining=1, bins=2, batches=4, lr=0.05, threshold=0.3)
DEPTH = replace(QUICK, groups="depth")


@pytest.fixture(scope="module")
def few(digits):
    return digits.first(train=96, validation=60, test=60)


@pytest.fixture(scope="module")
def nets():
    names = "mlp-64-24-24-24-10", "mlp-64-24-16-10", "mlp-64-16-10"
    return [networks.build(name, seed=seed) for seed, name in enumerate(names)]


@pytest.fixture(scope="module")
def convolutional(few):
    return [networks.build_for(few, "wrn-10-1", seed=seed) for seed in range(2)]


def run(nets, dataset, config, **options):
    x = dataset.train[0][:1]
    return Run(
        nets, allocate(nets, x, clusters=[] if config.groups == "none" else config.bins, **options), dataset, config
    )


def same(a, b):
    """Whether two results are equal to the bit, except for seconds."""
    states = [result.model.state_dict() for result in (a, b)]
    histories = [{name: repr(v) for name, v in r.history.items() if name != "cpu_seconds"} for r in (a, b)]
    equal = all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])
    return equal and a.plan == b.plan and histories[0] == histories[1]


# ---- whole runs --------------------------------------------------------------------------------------------------


FULL = replace(
    QUICK,
    epochs=4,
    shift=1,
    flip=True,
    cutout=3,
    members=1,
    shuffles="independent",
    sharing="similar",
    unshare=(1, 2),
    unshare_threshold=0.99,
)


@pytest.mark.parametrize("epoch", [0, 2, 3])
@pytest.mark.parametrize("stage", ["pretraining", "training"])
def test_an_interrupted_run_goes_on_to_the_same_bits(stage, epoch, convolutional, few, monkeypatch):
    whole = train(convolutional, few, replace(FULL, pretraining=4), 100_000)
    assert whole.finished
    assert whole.history["vectors"][-1] > whole.history["vectors"][0]  # some were separated
    original = Run.train_epoch

    def interrupted(self, number):
        original(self, number)
        if number == epoch and bool(self.config.unshare) == (stage == "training"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "train_epoch", interrupted)
    part = train(convolutional, few, replace(FULL, pretraining=4), 100_000, keep=True)
    assert not part.finished
    assert part.history["epoch"][-1] == epoch
    assert (part.threshold is None) == (stage == "pretraining")
    monkeypatch.setattr(Run, "train_epoch", original)
    again = train(convolutional, few, replace(FULL, pretraining=4), 100_000, keep=True)
    assert again.finished
    assert same(again, whole)
    monkeypatch.setattr(Run, "train_epoch", None)  # what is kept is not trained again
    assert same(train(convolutional, few, replace(FULL, pretraining=4), 100_000, keep=True), whole)


def test_arms_within_the_budget(convolutional, few):
    budget = 90_000
    found = study.arms(convolutional, few, replace(QUICK, epochs=1, unshare=(1,)), budget)
    assert list(found) == list(study.ARMS)
    for arm in ("bank", "gradient groups", "random groups", "hard slices"):
        assert found[arm].plan.sizes["unshared"] + found[arm].plan.sizes["templates"] <= budget
        assert found[arm].plan.sizes["shared"] <= budget
    assert found["thin"].plan.sizes["shared"] <= found["bank"].plan.sizes["shared"]
    assert found["independent"].plan.sizes["shared"] == found["bank"].plan.sizes["separate"]
    assert found["hard slices"].similarities is found["bank"].similarities
    hard = found["hard slices"].model.coefficients
    assert all(((vectors == 0) | (vectors == 1)).all() and (vectors.sum(1) == 1).all() for vectors in hard)
    assert any(((vectors != 0) & (vectors != 1)).any() for vectors in found["bank"].model.coefficients)


def test_separate_networks_are_kept_whatever_the_bank_beside_them_is(nets, few, monkeypatch):
    alone = replace(QUICK, groups="none")
    result = train(nets, few, alone, keep=True)
    monkeypatch.setattr(Run, "train_epoch", None)
    others = {"bins": 5, "threshold": 0.0, "templates": 2, "sharing": "own", "hard": True, "unshare": (1,)}
    assert same(train(nets, few, replace(alone, **others), 4_000, keep=True), result)
    with pytest.raises(TypeError):
        train(nets, few, replace(alone, lr=0.01), keep=True)


def test_one_network_below_its_own_size_trains_and_predicts(few):
    network = networks.build_for(few, "wrn-16-1")
    size = sum(p.numel() for p in network.parameters())
    result = train([network], few, replace(QUICK, epochs=2), size // 2)
    assert result.plan.sizes["shared"] <= size // 2
    trained = sum(p.numel() for p in result.model.parameters())
    assert trained == result.plan.sizes["shared"]
    assert result.history["loss"][2] < result.history["loss"][1]
    p = anytime(result.model, few.validation).predict(few.test[0])
    torch.testing.assert_close(p.sum(1), torch.ones(60, dtype=p.dtype))
    assert sum(q.numel() for q in result.model.member(0).parameters()) == size


def test_training_learns_and_leaves_the_networks_as_they_were(nets, digits):
    before = [network.fc1.weight.clone() for network in nets]
    result = train(nets, digits, replace(QUICK, epochs=8), 4_000)
    assert result.history["validation_error"][0] > 60
    assert result.history["validation_error"][-1] < 15
    assert [len(errors) for errors in result.history["member_errors"]] == [3] * 9
    for network, weight in zip(nets, before, strict=True):
        assert torch.equal(network.fc1.weight, weight)


def test_interrupted_while_layers_are_compared(nets, few, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "similarities", interrupted)
    part = train(nets, few, QUICK, 4_000)
    assert not part.finished
    assert part.similarities is None
    assert part.history["epoch"] == [0, 1]


def test_known_similarities_are_not_measured_again(nets, few, monkeypatch):
    whole = train(nets, few, QUICK, 4_000)
    monkeypatch.setattr(training, "compared", None)
    assert same(train(nets, few, QUICK, 4_000, known=whole.similarities), whole)


def test_what_comes_after_pretraining_shares_it(nets, few):
    first = training.compared(nets, few, QUICK, keep=True)
    stored = training.compared(nets, few, replace(QUICK, epochs=9, distillation=0.5, sharing="own"), keep=True)
    assert isinstance(stored, Similarities)
    assert (stored.raw[0] == first.raw[0]).all()
    other = training.compared(nets, few, replace(QUICK, seed=1), keep=True)
    assert (other.raw[0] != first.raw[0]).any()


# ---- steps -------------------------------------------------------------------------------------------------------


def test_separate_networks_together_are_each_trained_alone(nets, few):
    config = replace(QUICK, groups="none")
    together = train(nets, few, config)
    for number, network in enumerate(nets):
        alone = train([network], few, config).model.member(0).state_dict()
        for name, tensor in together.model.member(number).state_dict().items():
            assert torch.equal(tensor, alone[name])


@pytest.mark.parametrize("distillation", [0.0, 0.3, 1.0])
def test_the_loss_against_its_formula(distillation, nets, few):
    own = run(nets, few, replace(DEPTH, distillation=distillation))
    x, y = few.train
    rows = torch.arange(20)
    with torch.no_grad():
        p = [logits.softmax(-1) for logits in own.model(x[rows])]
    mean = sum(p) / 3
    wanted = 0.0
    for q in p:
        entropy = -q[torch.arange(20), y[rows]].log().mean()
        distance = (mean * (mean / q).log()).sum(1).mean()
        wanted += ((1 - distillation) * entropy + distillation * distance) / 3
    assert float(own.step(0.5, [rows])) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("distillation", [0.0, 0.3])
def test_the_gradient_is_the_sum_of_the_members_and_the_ensemble_stays_where_it_is(distillation, nets, few):
    own = run(nets, few, replace(DEPTH, distillation=distillation))
    x, y = few.train
    rows = torch.arange(20)
    logits = own.model(x[rows])
    mean = (sum(member.softmax(-1) for member in logits) / 3).detach()
    loss = sum((1 - distillation) * F.cross_entropy(member, y[rows]) for member in logits)
    loss = loss + sum(distillation * F.cross_entropy(member, mean) for member in logits)  # but for a constant
    wanted = torch.autograd.grad(loss, list(own.model.parameters()))
    own.step(0.0, [rows])
    for p, gradient in zip(own.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("groups", ["none", "depth"])
def test_only_the_members_drawn_are_trained(k, groups, nets, few):
    drawn = set()
    for seed in range(12):
        own = run(nets, few, replace(QUICK, groups=groups, members=k), sharing="own")
        torch.manual_seed(seed)
        before = [{name: t.clone() for name, t in member.named_parameters()} for member in own.model.members]
        vectors = [v.clone() for v in own.model.coefficients] if groups == "depth" else []
        own.step(0.5, [torch.arange(20)])
        after = [dict(member.named_parameters()) for member in own.model.members]
        moved = [
            [not torch.equal(old[name], new[name]) for name in old] for old, new in zip(before, after, strict=True)
        ]
        assert all(all(found) or not any(found) for found in moved)
        drawn.add(tuple(m for m in range(3) if any(moved[m])))
        for s, old in enumerate(vectors):
            g, r = own.model.plan.superweights[s]
            for position, row in zip(own.model.plan.users(g, r), own.model.plan.rows[g][r], strict=True):
                member = own.model.plan.clusters[g][position].member
                assert torch.equal(old[row], own.model.coefficients[s][row]) or any(moved[member])
    assert len(drawn) == 3
    assert {len(members) for members in drawn} == {k}


def test_members_may_have_their_first_step_at_any_time(nets, few):
    own = run(nets, few, replace(QUICK, groups="none", members=1))
    for seed in range(6):
        torch.manual_seed(seed)
        own.step(0.5, [torch.arange(20)])
    assert all(p.abs().sum() > 0 for p in (state["momentum_buffer"] for state in own.optimiser.state.values()))


def test_shuffles(nets, few, monkeypatch):
    seen = []
    monkeypatch.setattr(Run, "step", lambda self, t, rows: seen.append(rows) or torch.zeros(()))
    run(nets, few, replace(DEPTH, shuffles="independent")).train_epoch(1)
    orders = [torch.cat(parts) for parts in zip(*seen, strict=True)]
    assert len(orders) == 3
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert all(torch.equal(order.sort().values, torch.arange(96)) for order in orders)
    seen.clear()
    run(nets, few, DEPTH).train_epoch(1)
    assert [len(rows) for rows in seen] == [1, 1, 1]


def test_members_see_the_rows_of_their_own_shuffle(nets, few, monkeypatch):
    config = replace(DEPTH, shuffles="independent", members=2, shift=2, flip=True, cutout=3)
    own, seen = run(nets, few, config), []
    original = Bank.forward

    def forward(self, x, members=None):
        seen.append((members, x))
        return original(self, x, members)

    monkeypatch.setattr(Bank, "forward", forward)
    rows = [torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)]
    torch.manual_seed(1)
    own.step(0.5, rows)
    ((members, inputs),) = seen
    torch.manual_seed(1)
    assert members == sorted(torch.randperm(3)[:2].tolist())
    wanted = [cutout(augmented(few.train[0][r], config), 3) for r in rows]
    for m, x in zip(members, inputs, strict=True):
        assert torch.equal(x, wanted[m])
        assert not torch.equal(x, few.train[0][rows[m]])


def test_each_parameter_is_in_the_optimiser_once_and_vectors_do_not_decay(nets, few):
    own = run(nets, few, DEPTH)
    groups = own.optimiser.param_groups
    held = [p for group in groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, own.model.parameters()))
    assert [group["weight_decay"] for group in groups] == [5e-4, 0]
    assert list(map(id, groups[1]["params"])) == list(map(id, own.model.coefficients))


def test_learning_rates():
    cosine, steps = Config(epochs=10, warm_up=2), Config(epochs=10, warm_up=0, schedule="step")
    assert [rate(cosine, t) for t in (0, 1)] == [0, 0]
    assert rate(cosine, 0.1) == pytest.approx(rate(replace(cosine, warm_up=0), 0.1) / 2)
    assert rate(cosine, 0.5) == pytest.approx(0.5)
    assert [rate(steps, t) for t in (0, 0.29, 0.3, 0.6, 0.8)] == pytest.approx([1, 1, 0.2, 0.04, 0.008])


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_sets_a_square_to_zero_that_may_stick_out(side):
    x = torch.rand(300, 2, 8, 6) + 1
    torch.manual_seed(3)
    seen = cutout(x, side)
    torch.manual_seed(3)
    tops, lefts = (torch.randint(size, (300, 1)).flatten() - side // 2 for size in (8, 6))
    for image, cut, top, left in zip(x.clone(), seen, tops.tolist(), lefts.tolist(), strict=True):
        image[:, max(0, top) : top + side, max(0, left) : left + side] = 0
        assert torch.equal(image, cut)
    assert len(set(zip(tops.tolist(), lefts.tolist(), strict=True))) > 30
    assert cutout(x, 0) is x
    with pytest.raises(ValueError, match="no images"):
        cutout(x.flatten(1), 2)


# ---- controls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.56, 0.9, 1.0, 2.0])
def test_thinner_networks_have_as_many_parameters_as_fit(share, convolutional, nets, few):
    for members in (convolutional, nets):
        count = lambda found: sum(p.numel() for network in found for p in network.parameters())  # noqa: E731
        x, total = few.train[0][:1], count(members)
        found = thinner(members, x, int(share * total))
        assert 0.9 * min(1, share) * total <= count(found) <= min(share, 1) * total
        assert all(network(x.repeat(2, 1, 1, 1)).shape == (2, 10) for network in found)
    if share >= 1:
        x = few.validation[0]
        assert all(torch.equal(a.eval()(x), b.eval()(x)) for a, b in zip(members, found, strict=True))


@pytest.mark.parametrize(("base", "parameters"), [(16, 1_248_296), (8, 314_536), (6, 177_856)])
def test_counts_of_thinned_wide_residual_networks(base, parameters):
    """WRNs with channels base, base w, 2 base w, 4 base w."""
    names = "wrn-16-2", "wrn-16-1", "wrn-10-2", "wrn-10-1"
    nets = [thinned(networks.build(name), base / 16) for name in names]
    assert sum(p.numel() for network in nets for p in network.parameters()) == parameters
    assert nets[0].conv.weight.shape[0] == nets[0].conv.out_channels == base


def test_thinner_weights_keep_their_law(few):
    wide = networks.build_for(few, "wrn-10-4")
    (thin,) = thinner([wide], few.train[0][:1], 200_000)
    for (name, a), b in zip(wide.named_modules(), thin.modules(), strict=True):
        if isinstance(a, torch.nn.Conv2d) and b.weight.numel() > 2000:
            assert float(a.weight.detach().std()) * a.weight[0].numel() ** 0.5 == pytest.approx(2**0.5, rel=0.05), name
            assert float(b.weight.detach().std()) * b.weight[0].numel() ** 0.5 == pytest.approx(2**0.5, rel=0.05), name


def test_what_cannot_be_thinned(few):
    x = few.train[0][:1]
    with pytest.raises(ValueError, match="flatten images"):
        thinner([networks.build_for(few, "cnn-tiny")], x, 200)
    with pytest.raises(ValueError, match="TransformerBlock|VisionTransformer|Attention|LayerNorm"):
        thinner([networks.build_for(few, "vit-tiny")], x, 9_000)
    with pytest.raises(ValueError, match="still have"):
        thinner([networks.build_for(few, "wrn-10-1")], x, 50)


# ---- errors, presets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": "fives"}, "groups='fives'"),
        ({"distillation": 1.5}, "at most 1"),
        ({"distillation": 0.5, "shuffles": "independent"}, "shuffles='same'"),
        ({"groups": "depth", "sharing": "similar"}, "nothing is compared"),
        ({"batches": 1}, "batches=1"),
        ({"lr": -1}, "lr=-1"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **changes)


def test_inputs_that_make_no_sense(nets, few):
    with pytest.raises(ValueError, match="members=4 a step: expected 1 to 3"):
        train(nets, few, replace(QUICK, members=4))
    with pytest.raises(ValueError, match="need at least [0-9,]+.*Raise the budget"):
        train(nets, few, QUICK, 100)
    with pytest.raises(ValueError, match="numbers for targets"):
        train(nets, datasets.load("cornn-ackley"), QUICK)
    with pytest.raises(ValueError, match="training diverged; use a lr below 1e"):
        train(nets, few, replace(QUICK, lr=1e9, groups="none", warm_up=0))


@pytest.mark.parametrize("name", study.PRESETS)
def test_presets_can_be_afforded(name):
    preset = study.PRESETS[name]
    side, classes, channels = (8, 10, 1) if preset.dataset == "digits" else (32 // preset.pooled, 100, 3)
    with torch.device("meta"):
        nets = [networks.build(network, classes=classes, channels=channels) for network in preset.networks]
        nets, x = [thinned(network, preset.width) for network in nets], torch.zeros(1, channels, side, side)
    plan = allocate(nets, x, preset.budget, clusters=preset.config.bins, counted=preset.config.counted)
    assert plan.sizes["templates"] <= preset.budget < plan.sizes["separate"]


def test_a_study_prepares_its_data_and_keeps_its_arms(monkeypatch):
    config = replace(QUICK, epochs=1, shift=1)
    preset = study.Preset("digits", ("wrn-10-1", "wrn-10-1"), config, 12_000, width=0.25, pooled=2, train=64)
    (members, dataset), (others, _) = study.prepared(preset, 0), study.prepared(preset, 1)
    assert dataset.train[0].shape == (64, 1, 4, 4)
    assert dataset.name == "digits, 4 pixels wide"
    fresh = [network.fc.weight for network in (*members, *others)]
    assert not any(torch.equal(a, b) for n, a in enumerate(fresh) for b in fresh[:n])
    found = study.study(preset, [0, 1])
    monkeypatch.setattr(Run, "train_epoch", None)  # they are kept
    assert all(same(a, b) for a, b in zip(found[1].values(), study.study(preset, [1])[0].values(), strict=True))
    assert not same(found[0]["bank"], found[1]["bank"])


def test_separate_has_the_interface_of_a_bank(nets, few):
    x = few.train[0][:5]
    own = Separate(nets, allocate(nets, x[:1], clusters=[]))
    assert own.plan.sizes["shared"] == own.plan.sizes["separate"] == sum(p.numel() for p in own.parameters())
    for m, (logits, network) in enumerate(zip(own(x), nets, strict=True)):
        assert torch.equal(logits, network(x))
        assert torch.equal(own([x + m], [m])[0], own.member(m)(x + m))

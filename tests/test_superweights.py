"""The bank: composition and its gradients, independence, sharing, kept weights, files."""

import copy
import itertools
import json
import math

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from wsnotebook import networks
from wsnotebook.methods import superweight_composition
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank, _first_templates

WRNS = ("wrn-16-1", "wrn-10-2", "wrn-10-1")
CROPPED = ("mlp-64-30-6-20-10", "mlp-64-9-25-7-10", "mlp-64-12-12-12-10")  # shapes that do not nest
FAMILIES = {"wide residual": (WRNS, (3, 8, 8)), "perceptrons": (CROPPED, (1, 8, 8))}
FAMILIES["mixed"] = (("cnn-small", "lenet-5-caffe", "mlp-784-20-30-10"), (1, 28, 28))


def build(family, seed=0):
    return [networks.build(name, seed=seed + n) for n, name in enumerate(FAMILIES[family][0])]


def rows(family, n=3, seed=0):
    return torch.randn(n, *FAMILIES[family][1], generator=torch.Generator().manual_seed(seed))


def make(family="perceptrons", share=0.7, seed=0, **options):
    """A bank for a family at a share of its separate parameters; share None: all useful templates."""
    nets = build(family, seed)
    most = allocate(nets, rows(family), **options)
    floor = sum(step.size for _, steps in most.ladders for step in steps)
    budget = floor + int(share * (most.sizes["templates"] - floor)) if share else None
    return Bank(nets, allocate(nets, rows(family), budget, counted="bank", **options), seed=seed)


@pytest.mark.parametrize(
    ("members", "k", "templates"),
    [
        ([0, 0, 0, 1, 1, 1, 2, 3], 3, [0, 1, 2, 0, 1, 2, 1, 1]),  # alike in position
        ([0, 0, 0, 1, 1, 1, 2, 3], 4, [0, 1, 2, 3, 1, 2, 1, 1]),  # the next member's first has one of its own
        ([0, 0, 1, 1, 1, 1], 4, [0, 2, 0, 1, 2, 3]),  # member 1 has most, so its layers are served first
        ([0, 1, 1], 3, [0, 1, 2]),  # enough for all
        ([0, 0, 0, 0], 1, [0, 0, 0, 0]),
    ],
)
def test_layers_at_one_position_start_from_one_template(members, k, templates):
    assert _first_templates(members, k) == templates


def positions(bank):
    """{(cluster, increment, position of the layer in it): position in bank.scales}."""
    keys = [(g, r, p) for g, r in bank.plan.superweights for p in bank.plan.users(g, r)]
    return {key: n for n, key in enumerate(keys)}


def loop(bank):
    """{layer: weight}, from the ladder's words: number by number what each increment adds and each crop removes."""
    plan, scales, made = bank.plan, positions(bank), {}
    for g, layers in enumerate(plan.clusters):
        shapes = plan.ladders[g][0]
        for position, layer in enumerate(layers):
            numbers = {}
            for r in range(shapes.index(layer.shape) + 1):
                s = plan.superweights.index((g, r))
                row = plan.rows[g][r][plan.users(g, r).index(position)]
                mixed = 0
                for k in range(plan.templates[g][r]):
                    mixed = mixed + bank.coefficients[s][row, k] * bank.templates[s][k]
                mixed = iter((mixed * bank.scales[scales[g, r, position]]).view(-1, math.prod(layer.shape[2:])))
                o, i = shapes[r][:2]
                before_o, before_i = shapes[r - 1][:2] if r else (0, 0)
                new_inputs = [(a, b) for a in range(min(o, before_o)) for b in range(before_i, i)]
                new_outputs = [(a, b) for a in range(before_o, o) for b in range(i)]
                numbers = {key: value for key, value in numbers.items() if key[0] < o and key[1] < i}
                numbers |= {key: next(mixed) for key in new_inputs + new_outputs}
                assert next(mixed, None) is None
            made[layer] = torch.stack([numbers[a, b] for a in range(o) for b in range(i)]).view(layer.shape)
    return made


def flat(bank, weights):
    return {layer: weights[layer.member][f"{layer.name}.weight"] for c in bank.plan.clusters for layer in c}


# ---- composition -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [2**20, 50], ids=["whole", "pieces"])
@pytest.mark.parametrize("sharing", ["matched", "own", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_composition_and_its_gradients_equal_a_loop(family, sharing, piece, monkeypatch):
    monkeypatch.setattr(superweight_composition, "PIECE", piece)
    if family == "wide residual":
        nets = [networks.WideResNet(10, 1, 10), networks.WideResNet(10, 2, 10)]
        keep = [[(m, "conv"), (m, "groups.0.0.conv1")] for m in range(2)] + [[(0, "groups.1.0.conv1")]]
        keep = [keep[0] + keep[1] + keep[2], [(m, "groups.1.0.shortcut") for m in range(2)]]
        bank = Bank(nets, allocate(nets, torch.zeros(1, 3, 8, 8), clusters=keep, sharing=sharing))
    elif family == "mixed":
        nets = [networks.build("cnn-tiny"), networks.build("cnn-tiny", seed=1), networks.build("mlp-64-9-10")]
        bank = Bank(nets, allocate(nets, torch.zeros(1, 1, 8, 8), sharing=sharing))
    else:
        bank = make(family, sharing=sharing)
    bank.double()
    gradients = {layer: torch.randn(layer.shape, dtype=torch.float64) for c in bank.plan.clusters for layer in c}
    trained = [*bank.templates, *bank.coefficients]
    results = []
    for made in (flat(bank, bank.compose()), loop(bank)):
        total = sum((made[layer] * gradients[layer]).sum() for layer in gradients)
        results.append((made, torch.autograd.grad(total, trained, materialize_grads=True)))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert ours.keys() == theirs.keys()
    for layer in ours:
        torch.testing.assert_close(ours[layer], theirs[layer], rtol=1e-12, atol=1e-12)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_members_without_the_others_are_the_same_to_the_last_bit(family):
    bank, x = make(family), rows(family)
    bank.eval()
    together = bank(x)
    for members in ([0], [2, 1]):
        for m, logits in zip(members, bank(x, members), strict=True):
            assert torch.equal(logits, together[m])


def test_only_members_in_use_get_gradients():
    bank = make("perceptrons", sharing="own")
    bank(rows("perceptrons"), [1])[0].square().sum().backward()
    assert all(p.grad is None for m in (0, 2) for p in bank.members[m].parameters())
    reached = set()
    for s, (g, r) in enumerate(bank.plan.superweights):
        if bank.coefficients[s].grad is not None:
            for position, gradient in zip(bank.plan.users(g, r), bank.coefficients[s].grad, strict=True):
                reached |= {bank.plan.clusters[g][position].member} if gradient.any() else set()
    assert reached == {1}


def test_each_member_may_have_rows_of_its_own():
    bank, x = make().eval(), [rows("perceptrons", seed=n) for n in range(3)]
    with torch.no_grad():
        for m, logits in enumerate(bank(x)):
            assert torch.equal(logits, bank(x[m])[m])


def test_weights_that_equal_vectors_give_are_made_once():
    same = make(sharing="single", clusters=1).compose()[2]
    assert same["fc2.weight"] is same["fc3.weight"]
    own = make(sharing="own", clusters=1).compose()[2]
    assert not torch.equal(own["fc2.weight"], own["fc3.weight"])


def test_memory_of_weights_is_used_again_but_never_while_a_graph_needs_it():
    bank, x = make(), rows("perceptrons")
    trained = [*bank.templates, *bank.coefficients]

    def loss():
        return sum(logits.square().sum() for logits in bank(x))

    def gradient(value, **options):
        return torch.autograd.grad(value, trained, **options)

    wanted = gradient(loss())
    first, second = loss(), loss()  # two graphs at once
    for one, other, twice in zip(wanted, gradient(second), gradient(first), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, twice)
    kept = loss()
    again = gradient(kept, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(wanted, again, strict=True))
    other = loss()  # in the memory of `kept`, whose backward pass was
    with pytest.raises(RuntimeError, match="modified"):
        gradient(kept)
    assert all(torch.equal(one, another) for one, another in zip(wanted, gradient(other), strict=True))


def test_frozen_coefficients_leave_training_of_templates():
    bank, x = make(), rows("perceptrons")
    bank.coefficients.requires_grad_(False)
    sum(logits.square().sum() for logits in bank(x)).backward()
    assert all(p.grad is None for p in bank.coefficients)
    assert any(bool(p.grad.any()) for p in bank.templates)


# ---- the start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sharing", ["matched", "own", "single"])
def test_every_layer_starts_at_the_scale_of_he(sharing, seed):
    bank = make("wide residual", share=0.5, sharing=sharing, seed=seed)
    with torch.no_grad():
        weights = flat(bank, bank.compose())
    for layer, weight in weights.items():
        wanted = math.sqrt(2 / math.prod(layer.shape[1:]))
        assert float(weight.square().mean().sqrt()) == pytest.approx(wanted, rel=0.1), layer


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_for_every_layer_are_independent_networks_exactly(family):
    nets, x = build(family), rows(family)
    bank = Bank.from_networks(nets, allocate(nets, x, sharing="own", most=99))
    for training in (True, False):
        bank.train(training)
        for net, logits in zip(nets, bank(x), strict=True):
            assert torch.equal(logits, net.train(training)(x))
    bank.train()
    sum(F.cross_entropy(logits, torch.arange(3)) for logits in bank(x)).backward()
    s = bank.plan.superweights.index((0, 0))
    layer = bank.plan.clusters[0][0]
    net = nets[layer.member].train()
    F.cross_entropy(net(x), torch.arange(3)).backward()
    shown = net.get_submodule(layer.name).weight.grad
    o, i = bank.plan.ladders[0][0][0][:2]
    bottom, right = bank.plan.ladders[0][1][0].shown[bank.plan.ladders[0][0].index(layer.shape)]
    theirs = bank.templates[s].grad[bank.plan.rows[0][0][0]].view(o, i, *layer.shape[2:])[:bottom, :right]
    torch.testing.assert_close(theirs, shown[:bottom, :right], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"sharing": "matched", "most": 99}, {"sharing": "own", "most": 1}])
def test_networks_that_must_share_cannot_be_copied(options):
    nets = build("perceptrons")
    with pytest.raises(ValueError, match='sharing="own"'):
        Bank.from_networks(nets, allocate(nets, rows("perceptrons"), **options))


def test_the_seed_decides():
    one, same, other = (make(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["templates.0"], other["templates.0"])


# ---- networks stay as they are -----------------------------------------------------------------------------------


def test_networks_are_not_changed_by_training_the_bank():
    nets, x = build("wide residual"), rows("wide residual", 4)
    before = copy.deepcopy([net.state_dict() for net in nets])
    bank = Bank(nets, allocate(nets, x))
    optimiser = torch.optim.SGD(bank.parameter_groups(), 0.1)
    sum(logits.square().sum() for logits in bank(x)).backward()
    optimiser.step()
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not torch.equal(bank.members[0].bn.running_mean, nets[0].bn.running_mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_member_is_a_plain_network_with_tensors_of_its_own(family):
    bank, x = make(family).eval(), rows(family)
    with torch.no_grad():
        logits = bank(x)
    stored = {tensor.data_ptr() for tensor in bank.state_dict().values()}
    for m, name in enumerate(FAMILIES[family][0]):
        net = bank.member(m)
        assert list(net.state_dict()) == list(networks.build(name).state_dict())
        assert torch.equal(net(x), logits[m])
        assert not stored & {tensor.data_ptr() for tensor in net.state_dict().values()}
        assert all(p.requires_grad and p.is_leaf for p in net.parameters())
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
            assert all(torch.equal(one, other) for one, other in zip(bank(x), logits, strict=True))


# ---- kept weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["templates", "coefficients", "load", "unshare", "double", "private"])
def test_kept_weights_are_those_of_now(change):
    bank, x = make().eval(), rows("perceptrons")
    with torch.no_grad():
        before = bank(x)
        assert bank._plain() is bank._plain()
    if change in ("templates", "coefficients"):
        with torch.no_grad():
            getattr(bank, change)[0].mul_(1.5)
    elif change == "load":
        bank.load_state_dict(make(seed=5).state_dict())
    elif change == "unshare":
        bank.unshare({0: range(len(bank.plan.rows[0][0]))})
        with torch.no_grad():
            bank.coefficients[0][-1].add_(1)
    elif change == "double":
        bank, x = bank.double(), x.double()
    else:
        with torch.no_grad():
            bank.members[0].fc1.bias.add_(1)
    with torch.no_grad():
        kept = bank(x)
    composed = bank(x)  # with gradients: nothing is kept
    assert composed[0].requires_grad
    for one, other in zip(kept, composed, strict=True):
        assert torch.equal(one, other.detach())
    assert any(not torch.equal(one, other) for one, other in zip(kept, before, strict=True))


def test_training_forgets_kept_weights():
    bank, x = make().eval(), rows("perceptrons")
    with torch.no_grad():
        before = bank(x)[0]
        bank.templates[0].data.mul_(2)  # a write that torch does not count
        bank.train()
        assert not torch.equal(bank.eval()(x)[0], before)
    with torch.inference_mode():
        inferred = bank(x)[0]
    with torch.no_grad():
        assert torch.equal(bank(x)[0], inferred)


# ---- un-sharing and optimisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["matched", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_unsharing_changes_no_output_and_separates_by_label(family, sharing):
    bank, x = make(family, sharing=sharing).eval(), rows(family)
    with torch.no_grad():
        before = bank(x)
        members = {
            s: [bank.plan.clusters[g][p].member for p in bank.plan.users(g, r)]
            for s, (g, r) in enumerate(bank.plan.superweights)
        }
        old = bank.plan.rows
        bank.unshare(members)
        assert all(torch.equal(one, other) for one, other in zip(bank(x), before, strict=True))
        for s, (g, r) in enumerate(bank.plan.superweights):
            pairs = list(zip(old[g][r], members[s], strict=True))
            now = bank.plan.rows[g][r]
            assert len(bank.coefficients[s]) == len(set(pairs)) == len(set(now)) == 1 + max(now)
            for i, j in itertools.combinations(range(len(now)), 2):
                assert (now[i] == now[j]) == (pairs[i] == pairs[j])
        bank.unshare({s: range(len(found)) for s, found in members.items()})
        assert all(torch.equal(one, other) for one, other in zip(bank(x), before, strict=True))
    assert bank.plan.sizes["coefficients"] == bank.plan.sizes["unshared"]
    assert bank.plan.sizes["shared"] == sum(p.numel() for p in bank.parameters())


def test_the_optimiser_has_every_storage_once_and_goes_on_after_unsharing():
    bank, x = make("wide residual"), rows("wide residual", 4)
    optimiser = torch.optim.SGD(bank.parameter_groups(), 0.05, momentum=0.9, weight_decay=0.1)

    def step():
        optimiser.zero_grad()
        sum(F.cross_entropy(logits, torch.arange(4)) for logits in bank(x)).backward()
        optimiser.step()

    def storages():
        return sorted(p.untyped_storage().data_ptr() for group in optimiser.param_groups for p in group["params"])

    step()
    shared = [(p.clone(), optimiser.state[p]["momentum_buffer"].clone()) for p in bank.coefficients]
    old = bank.plan.rows
    labels = {s: range(len(old[g][r])) for s, (g, r) in enumerate(bank.plan.superweights)}
    bank.unshare(labels, optimiser)
    for s, (g, r) in enumerate(bank.plan.superweights):
        values, momentum = shared[s]
        now = torch.tensor(bank.plan.rows[g][r])
        assert torch.equal(bank.coefficients[s][now], values[list(old[g][r])])
        assert torch.equal(optimiser.state[bank.coefficients[s]]["momentum_buffer"][now], momentum[list(old[g][r])])
    assert storages() == sorted(p.untyped_storage().data_ptr() for p in bank.parameters())
    assert len(set(storages())) == len(storages())
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.0]
    before = [p.clone() for p in bank.coefficients]
    step()  # with the graph of the clones alive
    assert all(bool((p != old).any()) for p, old in zip(bank.coefficients, before, strict=True))


def test_labels_that_do_not_fit_are_named():
    bank = make()
    with pytest.raises(ValueError, match=r"labels\[0\]: 1 labels"):
        bank.unshare({0: [0]})
    with pytest.raises(ValueError, match=r"labels\[99\]: 1 labels; there are SuperWeights 0 to"):
        bank.unshare({99: [0]})


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_file_keeps_everything_and_who_shares(tmp_path):
    bank, x = make("wide residual"), rows("wide residual", 4)
    bank(x)  # moves statistics
    bank.unshare({1: [layer.member for layer in bank.plan.clusters[0]][: len(bank.plan.rows[0][1])]})
    again = Bank.load(bank.save(tmp_path / "bank.safetensors"), build("wide residual", seed=7))
    assert again.plan == bank.plan
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in bank.state_dict().items())
    assert [p.shape for p in bank.parameters()] == [p.shape for p in again.parameters()]
    with torch.no_grad():
        for one, other in zip(bank.eval()(x), again.eval()(x), strict=True):
            assert torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]


def test_private_tensors_that_are_tied_stay_tied(tmp_path):
    class Tied(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
            self[4].weight = self[2].weight

    x = torch.randn(3, 4)
    bank = Bank([Tied(), Tied()], allocate([Tied(), Tied()], x))
    again = Bank.load(bank.save(tmp_path / "bank.safetensors"), [Tied(), Tied()])
    for one in (bank, again):
        assert one.members[0][4].weight is one.members[0][2].weight
    assert all(torch.equal(a, b) for a, b in zip(bank(x), again(x), strict=True))
    assert bank.plan.sizes["shared"] == sum(p.numel() for p in bank.parameters())


def test_files_that_are_no_bank_of_these_networks(tmp_path):
    path = make().save(tmp_path / "bank.safetensors")
    nets = build("perceptrons")
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors: no such file"):
        Bank.load(tmp_path / "other.safetensors", nets)
    with pytest.raises(ValueError, match=r"networks: \("):
        Bank.load(path, nets[:2])
    with pytest.raises(ValueError, match="the plan"):
        Bank.load(path, build("wide residual"))
    content = path.read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Bank.load(tmp_path / "cut", nets)
    safetensors.torch.save_file(nets[0].state_dict(), tmp_path / "network")
    with pytest.raises(ValueError, match="format"):
        Bank.load(tmp_path / "network", nets)
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    stored = safetensors.torch.load_file(path)
    safetensors.torch.save_file(stored | {"templates.0": torch.zeros(2, 2)}, tmp_path / "shape", header)
    with pytest.raises(ValueError, match=r"templates\.0"):
        Bank.load(tmp_path / "shape", nets)
    stored["coefficients.0"] = stored["coefficients.0"] * math.nan
    safetensors.torch.save_file(stored, tmp_path / "nan", header)
    with pytest.raises(ValueError, match="NaN"):
        Bank.load(tmp_path / "nan", nets)
    plan = json.loads(header["plan"])
    header["plan"] = json.dumps(plan | {"rows": plan["rows"][1:]})
    safetensors.torch.save_file(stored, tmp_path / "plan", header)
    with pytest.raises(ValueError, match="not a plan"):
        Bank.load(tmp_path / "plan", nets)


def test_networks_must_be_those_of_the_plan():
    nets = build("perceptrons")
    plan = allocate(nets, rows("perceptrons"))
    moved = networks.build("mlp-64-6-30-20-10")  # other shapes
    with pytest.raises(ValueError, match="networks: "):
        Bank([moved, *nets[1:]], plan)
    with pytest.raises(ValueError, match="members=\\[3\\]"):
        Bank(nets, plan)(rows("perceptrons"), [3])
    with pytest.raises(ValueError, match="members=\\[\\]"):
        Bank(nets, plan).compose([])

"""Every method runs on a GPU unchanged: a real one where there is one, else one that is pretended (`pretended_gpu`).

The pretended one draws the same random numbers as the CPU, so there results are the CPU's; a real one draws its own.
"""

from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from pretended_gpu import Far, pretended_gpu

from wsnotebook import cornn, evaluation, networks, plots, symmetry, training, zoo
from wsnotebook.comparisons import perceptron_samples, perceptrons
from wsnotebook.comparisons.compression import restored, stored_bytes
from wsnotebook.evaluation import score
from wsnotebook.explorers import interpolation, latent, mixture, search, sharing, trajectory
from wsnotebook.explorers import zoo as zoos
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import (
    baselines,
    codebook,
    codec,
    controls,
    latent_maps,
    latent_sampling,
    latent_search,
    low_rank,
    mlp_arms,
    mlp_controls,
    mlp_fitting,
    properties,
    sane,
    swat_nn,
    swat_stream,
    swat_training,
    transfer,
    weight_flow,
)
from wsnotebook.methods import soft_weight_sharing as sws
from wsnotebook.methods import superweight_training as superweights
from wsnotebook.methods.closed_form_flow import ClosedForm
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.mlp_matrix import (
    Form,
    canonical,
    evaluate,
    hardened,
    non_zeros,
    permuted,
    random_orders,
    to_rows,
)
from wsnotebook.methods.mlp_modules import to_zoo
from wsnotebook.methods.mlp_pruning import keep_important, keep_largest
from wsnotebook.methods.superweight_ensembles import anytime
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank

REAL = torch.cuda.is_available()
MLP = "mlp-64-8-10"


@pytest.fixture
def device():
    if REAL:
        yield torch.device("cuda", 0)
    else:
        with pretended_gpu() as cuda:
            yield cuda


@pytest.fixture(scope="module")
def few(digits):
    return digits.first(train=120, validation=60, test=60)


@pytest.fixture(scope="module")
def nets(few, tmp_path_factory):
    config = zoo.Config(epochs=2, batch=40, lr=3e-3, snapshots=(3,))
    return zoo.train(MLP, few, 10, config, folder=tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def normed(few):
    """Networks with batch norm."""
    states = [networks.build_for(few, "resnet-8", seed=i) for i in range(3)]
    layout, build = Layout.of(states[0], exclude=COUNTERS), {"classes": 10, "channels": 1}
    rows = torch.stack([layout.flatten(one.state_dict()) for one in states])
    return zoo.Zoo(rows, layout, {}, "resnet-8", {"build": build})


def there(device, tensor):
    """Whether a tensor is on the device."""
    return tensor.device.type == device.type


def close(seen, wanted, drawn=False):
    """Numbers are the CPU's, unless they come from a real GPU's own random numbers."""
    seen, wanted = (torch.as_tensor(v.cpu() if torch.is_tensor(v) else v) for v in (seen, wanted))
    assert seen.shape == wanted.shape
    assert seen.isfinite().all()
    if not (REAL and drawn):
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5)


# ---- the pretence ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(REAL, reason="there is a GPU to ask")
def test_the_pretended_gpu_refuses_what_a_gpu_refuses(device):
    far, near = torch.arange(4.0, device=device), torch.arange(4.0)
    assert isinstance(far, Far)
    for mixed in (
        lambda: far + near,
        lambda: near + far,
        lambda: far[1:] @ near[1:],
        lambda: torch.cat([far, near]),
        lambda: near[far.long()],
        lambda: far.index_select(0, near.long()),
        lambda: far.gather(0, near.long()),
        lambda: near.add_(far),
        lambda: torch.zeros(()).add_(far.sum()),
        lambda: torch.where(near > 1, far, 0.0),
        lambda: torch.rand(2, device=device, generator=torch.Generator()),
        lambda: torch.rand(2, generator=torch.Generator(device)),
    ):
        with pytest.raises(RuntimeError, match="device|generator"):
            mixed()
    for array in (lambda: far.numpy(), lambda: np.asarray(far)):
        with pytest.raises((TypeError, RuntimeError)):
            array()


@pytest.mark.skipif(REAL, reason="there is a GPU to ask")
def test_the_pretended_gpu_allows_what_a_gpu_allows(device):
    far, near = torch.arange(4.0, device=device), torch.arange(4.0)
    for result in (far + near[1], far[near.long()], far * 2, torch.zeros(3).to(device), near.to(far), far.double()):
        assert result.device == device
    far[near.long()] = 2.0
    near[:2] = far[:2]
    assert near.tolist() == [2, 2, 2, 3]
    assert far.cpu().numpy().tolist() == [2, 2, 2, 2]
    assert (far.cpu().device.type, float(far.sum()), int(far.argmax())) == ("cpu", 8.0, 0)
    view, far[0] = far[:2], 5.0
    assert view.tolist() == [5, 2]


def test_the_gpus_random_numbers_depend_on_the_seed_and_are_as_before_outside(device):
    def drawn():
        with training.epoch_randomness(1, 2, device):
            return torch.rand(3, device=device), torch.rand(3)

    before = torch.cuda.get_rng_state(device)
    for a, b in zip(drawn(), drawn(), strict=True):
        assert torch.equal(a.cpu(), b.cpu())
    assert torch.equal(torch.cuda.get_rng_state(device), before)


# ---- one network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_network_is_trained(device, few, optimiser):
    config = training.Config(epochs=2, batch=40, optimiser=optimiser, shift=1, flip=True)
    results = []
    for data in (few.to(device), few):
        net = networks.build_for(data, "cnn-tiny", dropout=0.1)
        assert there(data.train[0].device, next(net.parameters()))
        results.append(training.train(net, data, config))
    far, near = results
    close(far.history["loss"], near.history["loss"], drawn=True)
    for name, tensor in far.state.items():
        assert there(device, tensor)
        close(tensor, near.state[name], drawn=True)


def test_a_kept_run_goes_on_where_it_was(device, few):
    data, config = few.to(device), training.Config(epochs=2, batch=40, keep="best")
    net = networks.build(MLP).to(device)
    first, again = (training.train(net, data, config, keep=True) for _ in range(2))
    assert first.history == again.history
    for name, tensor in again.state.items():
        assert there(device, tensor)
        close(tensor, first.state[name])


def compressed(device, few, method):
    """What a method makes of a network and data on the device, and on the CPU; both files decode to their networks."""
    net = networks.build(MLP)
    net.load_state_dict(training.train(net, few, training.Config(epochs=4, batch=40, lr=3e-3)).state)
    for one, data in ((networks.build(MLP).to(device), few.to(device)), (networks.build(MLP), few)):
        one.load_state_dict(net.state_dict())
        found = method(one, data)
        decoded = networks.build(MLP)
        decoded.load_state_dict(codec.decode(found.file))
        for name, tensor in decoded.state_dict().items():
            assert torch.equal(tensor, found.state[name].cpu())
        yield found


@pytest.mark.filterwarnings("ignore:the spike had not condensed")
@pytest.mark.parametrize("tolerance", [0.0, 0.01])
def test_soft_weight_sharing(device, few, tolerance):
    config = sws.Config(
        components=4, tau=0.05, init_sigma=0.1, lr_weights=3e-3, epochs=2, batch=40, tolerance=tolerance
    )
    far, near = compressed(device, few, lambda net, data: sws.compress(net, data, config).compressed)
    close(far.error, near.error, drawn=True)
    close(far.ratio, near.ratio, drawn=True)


def test_pruning_and_a_uniform_grid(device, few):
    config = baselines.Config(nonzero_percent=20.0, centres=4, epochs=2, batch=40)
    tuned = codebook.Config(epochs=1, batch=40)
    for method in (
        lambda net, data: baselines.prune(net, data, replace(config, fine_tune=tuned)),
        lambda net, data: baselines.uniform(net, data, 7, tuned),
    ):
        far, near = compressed(device, few, method)
        close(far.error, near.error, drawn=True)
        close(far.ratio, near.ratio, drawn=True)


def test_low_rank_layers(device, few):
    x, net = few.test[0], networks.build("cnn-tiny")
    wanted = low_rank.factored(net, low_rank.ranks(net, 60.0))(x)
    net = net.to(device)
    made = low_rank.factored(net, low_rank.ranks(net, 60.0))
    close(low_rank.like(net, made.state_dict())(x.to(device)), wanted)
    again = restored(stored_bytes(made, "float32"), net)
    assert all(there(device, tensor) for tensor in again.state_dict().values())
    close(again(x.to(device)), wanted)


# ---- zoos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "engine"), [(MLP, "stacked"), ("cnn-tiny", "stacked"), ("resnet-8", "single")])
def test_a_zoo_is_trained(device, few, tmp_path, monkeypatch, network, engine):
    few = few.first(train=80, validation=10, test=10)
    config = zoo.Config(epochs=1, batch=40, dropout=0.1 if network == "cnn-tiny" else 0.0, shift=1, snapshots=(1,))
    choose = lambda network, device="cpu": engine  # noqa: E731  (the same on the CPU)
    monkeypatch.setattr(zoo.training.engines, "choose", choose)
    far, near = (
        zoo.train(network, data, 2, config, folder=tmp_path / data.train[0].device.type)
        for data in (few.to(device), few)
    )
    assert there(device, far.weights)
    close(far.weights, near.weights, drawn=True)
    assert far.facts["test_accuracy"].shape == near.facts["test_accuracy"].shape
    on = zoo.train(network, few.to(device), 4, replace(config, snapshots=()), start=far, folder=tmp_path)
    assert on.facts["parent"].tolist() == far.facts["model"].tolist()


def test_a_zoo_goes_to_the_device_and_back(device, nets, tmp_path):
    far = nets.to(device)
    assert there(device, far.weights)
    assert torch.equal(far.to("cpu").weights, nets.weights)
    assert torch.equal(zoo.load(far.save(tmp_path / "z.safetensors")).weights, nets.weights)
    parts = far.filter([3, 1]), *far.split((0.5, 0.5)), zoo.concat([far, far]), *far.blocks()
    assert all(there(device, part.weights) for part in parts)
    module = far.module(2)
    close(module(torch.ones(1, 64, device=next(module.parameters()).device)), nets.module(2)(torch.ones(1, 64)))


@pytest.mark.parametrize("far_weights", [True, False])
def test_a_zoo_is_evaluated(device, nets, normed, few, far_weights):
    data = few.to(device)
    for own in (nets, normed):
        far = own.to(device) if far_weights else own
        logits = evaluation.logits(far, data.test[0])
        assert there(device, logits)
        close(logits, evaluation.logits(own, few.test[0]))
        seen, wanted = evaluation.report(far, data.test), evaluation.report(own, few.test)
        for field in ("accuracy", "loss", "ece", "brier"):
            close(getattr(seen, field), getattr(wanted, field))
        close(evaluation.ensemble_accuracy(far, data.test), evaluation.ensemble_accuracy(own, few.test))
        path, plane = evaluation.interpolate(far, [0], [1], data.test, 3), None
        close(path.loss, evaluation.interpolate(own, [0], [1], few.test, 3).loss)
        x, nx = data.train[0], few.train[0]
        plane = evaluation.plane(far, (0, 1, 2), data.test, 3, recalibrate=x)
        close(plane.loss, evaluation.plane(own, (0, 1, 2), few.test, 3, recalibrate=nx).loss)
        again = evaluation.recalibrated(far, x)
        assert again.weights.device == far.weights.device
        close(again.weights, evaluation.recalibrated(own, nx).weights)


@pytest.mark.parametrize("far_weights", [True, False])
def test_distances_and_novelty(device, nets, few, far_weights):
    data, far = few.to(device), nets.to(device) if far_weights else nets
    moments, wanted = evaluation.input_moments(far, data.train[0]), evaluation.input_moments(nets, few.train[0])
    close(moments, wanted)
    for own in (None, moments):
        near = evaluation.nearest(far.filter([0, 5]), far, own)
        close(near.distance, np.zeros(2))
        close(
            evaluation.leave_one_out(far, own).distance,
            evaluation.leave_one_out(nets, None if own is None else wanted).distance,
        )
    seen = evaluation.novelty(far, evaluation.reference(far, data.test, moments))
    close(seen.joint, evaluation.novelty(nets, evaluation.reference(nets, few.test, wanted)).joint)


@pytest.mark.parametrize("reference", [0, "mean"])
def test_units_are_permuted_and_aligned(device, nets, few, reference):
    last = nets.filter(properties.last_snapshots(nets))
    for scale in (False, True):
        seen = symmetry.align(last.to(device), reference=reference, scale=scale, x=few.to(device).train[0][:4])
        wanted = symmetry.align(last, reference=reference, scale=scale, x=few.train[0][:4])
        assert there(device, seen.zoo.weights)
        close(seen.zoo.weights, wanted.zoo.weights)
        close(seen.distance_after, wanted.distance_after)
    carried = seen.carry(nets.to(device))
    assert there(device, carried.weights)
    close(carried.weights, wanted.carry(nets).weights)
    close(seen.carry(nets).weights, wanted.carry(nets).weights)  # from the CPU
    row = symmetry.align(last, reference=seen.reference)
    close(row.distance_after, symmetry.align(last, reference=wanted.reference).distance_after)
    close(symmetry.permute(nets.to(device)).weights, symmetry.permute(nets).weights)


# ---- weights as data ---------------------------------------------------------------------------------------------


def test_coordinates(device, nets):
    for k in (3, None):
        far, near = coordinates(nets.to(device), k), coordinates(nets, k)
        z = far.encode(nets.to(device).weights)
        assert there(device, z)
        close(far.deviations, near.deviations)
        made, wanted = far.zoo(z, remainder=0.5), near.zoo(near.encode(nets.weights), remainder=0.5)
        close(made.weights, wanted.weights)
        close(far.encode(nets.weights).abs(), near.encode(nets.weights).abs())  # from the CPU


def test_controls(device, nets):
    for name, draw in {
        "noise": lambda nets: controls.noise(nets, 4, 0.1),
        "interpolations": lambda nets: controls.interpolations(nets, 4),
        "averages": lambda nets: controls.averages(nets, 4, 2),
        "pca_gaussian": lambda nets: controls.pca_gaussian(nets, 4, 3),
        "gaussian": lambda nets: controls.gaussian(nets, 4),
    }.items():
        made = draw(nets.to(device))
        assert there(device, made.weights), name
        close(made.weights, draw(nets).weights)


def test_the_closed_form_flow(device, nets):
    far, near = (ClosedForm(own, path_noise=0.3).sample(3, steps=5) for own in (nets.to(device), nets))
    assert there(device, far.weights)
    close(far.weights, near.weights)


@pytest.mark.parametrize("kind", ["ours", "paper", "conditional"])
def test_a_weight_flow(device, nets, kind):
    size = {"hidden": 16, "time_features": 8, "batch": 8, "iterations": 10}
    results = []
    for own in (nets.to(device), nets):
        changes = {"conditional": {"condition": "test_accuracy", "keep": "validation", "held_out": 0.2, "time": "beta"}}
        config = weight_flow.preset("paper" if kind == "paper" else "ours", own, **size | changes.get(kind, {}))
        for _ in range(2):  # trained, and found again
            flow = weight_flow.train(own, config, keep=True)
        results.append((flow, flow.sample(3, steps=4, remainder=0.1)))
    (far, made), (near, wanted) = results
    assert there(device, made.weights)
    close(far.history["loss"], near.history["loss"], drawn=True)
    close(made.weights, wanted.weights, drawn=True)


SMALL = sane.Config(z=6, dim=12, heads=2, blocks=1, window=8, halo=2, iterations=4, batch=4, held_out=0.2, erase=0.1)


@pytest.fixture(scope="module")
def wider(few, tmp_path_factory):
    return zoo.train("mlp-64-11-10", few, 3, zoo.Config(epochs=1, batch=40), folder=tmp_path_factory.mktemp("wider"))


@pytest.mark.parametrize("linear", [True, False])
def test_sane_is_trained(device, nets, linear):
    config, far = replace(SMALL, linear=linear), nets.to(device)
    first, again = (sane.train(far, config, keep=True) for _ in range(2))
    assert repr(first.history) == repr(again.history)
    for name, tensor in again.network.state_dict().items():
        assert there(device, tensor)
        close(tensor, first.network.state_dict()[name])
    back = again.decode(again.embed(far), like=far)
    assert there(device, back.weights)
    close(back.weights, first.decode(first.embed(nets), like=nets).weights)  # from the CPU


def test_what_sane_embeds_and_samples(device, nets, few, wider):
    results, untrained = [], replace(SMALL, iterations=0)  # it starts from the CPU's random numbers
    for own, data, other in ((nets.to(device), few.to(device), wider.to(device)), (nets, few, wider)):
        model = sane.train(own, untrained)
        drawn = [latent_sampling.sample(model, own, 3, mode) for mode in latent_sampling.MODES]
        spread = latent_sampling.deviations(model, own).mean(0)
        drawn += [latent_sampling.sample(model.transferred(other), other, 3, spread=spread)]
        drawn += [latent_sampling.bootstrapped(model, own, 4, 2, data.validation, 2, x=data.train[0])]
        assert all(there(own.weights.device, made.weights) for made in drawn)
        assert plots.token_layout(model).axes
        assert there(own.weights.device, model.tokens.mask)
        numbers = [model.embed(own), *(made.weights for made in drawn)]
        numbers += [*properties.features(own, {"SANE": model}).values()]
        numbers += [latent_maps.layer_spread(model, own).deviation, latent_maps.trajectories(model, own).shares]
        results.append([*numbers, latent_maps.nearest_models(model, own, 0, 2).weights])
    for seen, wanted in zip(*results, strict=True):
        close(seen, wanted)


def test_layer_pca_and_statistics(device, nets):
    far, near = layer_pca(nets.to(device), 5), layer_pca(nets, 5)
    z = far.embed(nets.to(device))
    assert there(device, z)
    close(far.decode(z).weights, near.decode(near.embed(nets)).weights)
    close(far.decode(far.embed(nets)).weights, near.decode(near.embed(nets)).weights)  # from the CPU
    for by in ("layer", "tensor"):
        close(properties.weight_statistics(nets.to(device), by), properties.weight_statistics(nets, by))


def test_networks_are_trained_on(device, nets, few):
    last = nets.filter(properties.last_snapshots(nets))
    how = zoo.Config(batch=40, lr=1e-3)
    for head in ("keep", "fresh"):
        far, near = (
            transfer.fine_tuning({"own": own}, data, (0, 2), config=how, head=head)
            for own, data in ((last.to(device), few.to(device)), (last, few))
        )
        close(far.test["own"], near.test["own"], drawn=True)
    moved = transfer.transfer({"own": last.to(device)}, few.to(device), (0, 1), config=how, shots=3)
    assert moved.test["own"].shape == (2, len(last))


# ---- members of a bank -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["gradient", "depth", "none"])
def test_superweights_and_their_ensembles(device, few, groups):
    config = superweights.Config(epochs=2, batch=40, pretraining=1, bins=2, batches=4, lr=0.05, groups=groups)
    config, results = replace(config, cutout=2, distillation=0.1, unshare=(1,)), []
    for data in (few.to(device), few):
        members = [networks.build_for(data, "cnn-tiny", seed=seed) for seed in range(2)]
        for _ in range(2):  # trained, and found again
            found = superweights.train(members, data, config, keep=True)
        together = anytime(found.model, data.validation, "fitted")
        p = together.predict(data.test[0])
        assert there(data.train[0].device, p)
        results.append((np.array(found.history["loss"][1:]), p, together.validation["nll"]))
    for seen, wanted in zip(*results, strict=True):
        close(seen, wanted, drawn=True)


def test_a_bank_takes_networks_over(device, few):
    members = [networks.build(name, seed=i).to(device) for i, name in enumerate(("mlp-64-16-10", MLP))]
    x = few.to(device).test[0]
    bank = Bank.from_networks(members, allocate(members, x[:1], sharing="own", most=4))
    with torch.no_grad():
        for seen, member in zip(bank.eval()(x), members, strict=True):
            close(seen, member(x).cpu())


# ---- perceptrons -------------------------------------------------------------------------------------------------

FORM = Form(width=4, depth=3)


def drawn(n):
    return swat_stream.draw(FORM, swat_stream.Stream(), n, torch.Generator().manual_seed(0))


def test_a_matrix_of_perceptrons(device):
    near, x = drawn(12), torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    far = near.to(device)
    assert all(there(device, part) for part in far)
    orders = random_orders(FORM, 12, torch.Generator().manual_seed(2))
    for f in (
        lambda parts, x: evaluate(FORM, parts, x),
        lambda parts, x: evaluate(FORM, canonical(FORM, parts), x),
        lambda parts, x: evaluate(FORM, permuted(FORM, parts, *(o.to(x.device) for o in orders)), x),
        lambda parts, x: evaluate(FORM, hardened(FORM, parts, 0.3), x),
        lambda parts, x: to_rows(FORM, keep_largest(FORM, parts, 9)),
        lambda parts, x: to_rows(FORM, keep_important(FORM, parts, 9, x)),
        lambda parts, x: non_zeros(FORM, parts),
        lambda parts, x: to_zoo(FORM, parts, {}).weights,
    ):
        seen = f(far, x.to(device))
        assert there(device, seen)
        close(seen, f(near, x))


@pytest.mark.parametrize("compiled", [True, False])
def test_perceptrons_are_fitted(device, monkeypatch, compiled):
    near, g = drawn(6), torch.Generator().manual_seed(1)
    data = [(torch.randn(m, 2, generator=g), torch.randn(m, 6, 1, generator=g)) for m in (40, 20)]
    config = mlp_fitting.Config(steps=12, batch=16, check_every=4)
    if not compiled:
        monkeypatch.setattr(mlp_fitting, "kernel", None)
    wanted = mlp_fitting.fit(FORM, near, *data, config)
    seen = mlp_fitting.fit(FORM, near.to(device), *([part.to(device) for part in pair] for pair in data), config)
    assert there(device, seen.parts.weights)
    close(seen.validation, wanted.validation)
    close(seen.parts.weights, wanted.parts.weights)


SWAT = swat_nn.Config(FORM, z=8, dim=12, heads=2, blocks=1, points=16, batch=8, iterations=4)


@pytest.mark.parametrize("kind", ["ours", "paper"])
def test_swat_nn(device, monkeypatch, kind):
    monkeypatch.setattr(swat_training, "HELD_OUT", 16)
    changes = {"z": None, "linear": False, "shared": False, "causal": True, "loss": "best", "noise": 0.0}
    config, parts = replace(SWAT, **changes if kind == "paper" else {}), drawn(40)
    first, again = (swat_nn.train(config, keep=True, device=device) for _ in range(2))
    assert repr(first.history) == repr(again.history)
    for name, tensor in again.network.state_dict().items():
        assert there(device, tensor)
        close(tensor, first.network.state_dict()[name])
    far, near = swat_nn.untrained(config, device), swat_nn.untrained(config)
    assert there(device, far.embed(parts))
    for f in (
        lambda swat: swat.embed(parts),
        lambda swat: swat.report(parts).fvu,
        lambda swat: np.array(swat.twins(parts)),
    ):
        close(f(far), f(near))


@pytest.mark.parametrize("arm", ["direct", "latent"])
def test_latent_search(device, monkeypatch, arm):
    monkeypatch.setattr(mlp_fitting, "kernel", None)  # the same way on both
    fit = mlp_fitting.Config(steps=4, batch=64, check_every=2)
    sizes = {"depths": (1, 3), "candidates": 50, "restarts": 2, "penalties": (0.01,), "steps": 8, "batch": 64}
    config = latent_search.Config(**sizes, tuned=2, budgets=(20,), training=fit, tuning=fit, refined=0.5)
    table, results = cornn.table(("sphere", "adjiman")), []
    for where in (device, torch.device("cpu")):
        space = latent_search.direct(FORM)
        if arm == "latent":
            space = latent_search.latent(swat_nn.untrained(SWAT, where))
        for _ in range(2):  # searched, and found again
            found = latent_search.search(space, table.to(where), config, keep=True)
        results.append(found)
    far, near = results
    assert far.front("sphere").tolist() == near.front("sphere").tolist()
    for name in ("non_zeros", "validation", "test"):
        close(far.facts[name], near.facts[name])
    close(far.zoo().weights, near.zoo().weights)
    assert len(far.replay(int(far.frames[-1].number[0]))) > 2


def test_the_score_of_a_network_does_not_depend_on_where_it_is(device, few):
    net = networks.build(MLP)
    near = score(net, few.test)
    far = score(net.to(device), few.to(device).test)
    assert far.error == pytest.approx(near.error)
    assert far.loss == pytest.approx(near.loss, rel=1e-5)


def test_controls_of_a_search(device, monkeypatch):
    monkeypatch.setattr(mlp_fitting, "kernel", None)  # the same way on both
    how, results = mlp_fitting.Config(steps=4, batch=64, check_every=2), []
    for where in (device, torch.device("cpu")):
        table = cornn.table(("sphere", "adjiman")).to(where)
        dense = mlp_controls.dense(FORM, [(2,), (4, 3)], "tanh", table, how, restarts=2)
        by = [
            mlp_controls.pruned(FORM, [(4, 4)], "tanh", table, (9, 14), how, how, by=way, restarts=2)
            for way in ("magnitude", "importance")
        ]
        for found in (dense, mlp_controls.together(by)):
            assert mlp_arms.at_budgets(found, "sphere").shape == (1, len(mlp_arms.BUDGETS))
            results.append([found.validation, found.test, found.parts.weights])
    for far, near in zip(results[:2], results[2:], strict=True):
        for seen, wanted in zip(far, near, strict=True):
            close(seen, wanted)


def test_searched_perceptrons_beside_other_ways(device, monkeypatch):
    monkeypatch.setattr(mlp_fitting, "kernel", None)  # the same way on both
    how, results = mlp_fitting.Config(steps=4, batch=64, check_every=2), []
    for where in (device, torch.device("cpu")):
        found, table, swat = searched(cornn.table(("sphere",)), where)
        made = perceptron_samples.compare(swat, found, "sphere", table, 3, how)
        small = perceptrons.trained(FORM, drawn(6), table, (2, 4), how)
        moved = perceptrons.twins(small)
        zoos = small.aligned, moved.moved.aligned, moved.again
        assert all(there(where, zoo.weights) for zoo in zoos)
        latents = [way.of(small) for way in perceptrons.of_swat("SWAT-NN", swat)]
        results.append([*(one.fitted for one in made), *(zoo.weights for zoo in zoos), *latents])
    for seen, wanted in zip(*results, strict=True):
        close(seen, wanted)


# ---- shown -------------------------------------------------------------------------------------------------------


def searched(table, where):
    fit = mlp_fitting.Config(steps=4, batch=64, check_every=2)
    sizes = {"depths": (1, 3), "candidates": 50, "restarts": 2, "penalties": (0.01,), "steps": 8, "batch": 64}
    config = latent_search.Config(**sizes, tuned=2, budgets=(20,), training=fit, tuning=fit)
    swat = swat_nn.untrained(SWAT, where)
    return latent_search.search(latent_search.latent(swat), table.to(where), config), table.to(where), swat


def bank(data):
    """A bank's explorer."""
    config = superweights.Config(epochs=1, batch=40, pretraining=1, bins=2, batches=4, lr=0.05, groups="gradient")
    members = [networks.build_for(data, "cnn-tiny", seed=seed) for seed in range(2)]
    found = superweights.train(members, data, config)
    return sharing.Explorer(found, config, anytime(found.model, data.validation))


SMALL_MIXTURE = sws.Config(components=4, tau=0.05, init_sigma=0.1, lr_weights=3e-3, epochs=2, batch=40)
EXPLORERS = {
    "mixture": lambda nets, data, where: mixture.Explorer(
        sws.compress(networks.build(MLP, seed=0).to(where), data, SMALL_MIXTURE)
    ),
    "sharing": lambda nets, data, where: bank(data),
    "zoo": lambda nets, data, where: zoos.Explorer(nets, symmetry.align(nets).zoo),
    "interpolation": lambda nets, data, where: interpolation.Explorer({"raw": nets}, data.validation),
    "latent": lambda nets, data, where: latent.Explorer(
        sane.train(nets, replace(SMALL, iterations=0)), nets, data.validation
    ),
    "trajectory": lambda nets, data, where: trajectory.Explorer(ClosedForm(nets), nets, data.validation, n=4),
    "search": lambda nets, data, where: search.Explorer(*searched(cornn.table(("sphere",)), where)),
}


@pytest.mark.filterwarnings("ignore:the spike had not condensed")
@pytest.mark.parametrize("name", EXPLORERS)
def test_explorers_show_what_is_there(device, monkeypatch, tmp_path, nets, few, name):
    monkeypatch.setattr(mlp_fitting, "kernel", None)  # the same way on both
    last, texts = nets.filter(properties.last_snapshots(nets)), []
    for where in (device, torch.device("cpu")):
        shown = EXPLORERS[name](last.to(where), few.to(where), where)
        texts.append([shown._text()])
        for control in (control for control in vars(shown).values() if isinstance(control, widgets.ValueWidget)):
            if hasattr(control, "min"):
                control.value = control.min
            elif getattr(control, "options", ()):
                control.index = (control.index + 1) % len(control.options)
            texts[-1].append(shown._text())
        assert shown.figure().axes
        shown.to_html(tmp_path / "page.html")
    far, near = texts
    assert REAL or far == near

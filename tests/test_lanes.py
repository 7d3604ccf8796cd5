import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

pytest.importorskip("numba", reason="numba is not installed (extra `fast`)")

from wsnotebook.engines import lanes, stacked
from wsnotebook.engines.vectors import WIDTH
from wsnotebook.layout import Layout

CLASSES = 5


def small(a=nn.Tanh):
    """Pooled twice, as the zoos' small CNN, whose kernel widths it has."""
    layers = [nn.Conv2d(1, 3, 5), nn.MaxPool2d(2), a(), nn.Conv2d(3, 9, 3), nn.MaxPool2d(2), a(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Conv2d(9, 4, 2), a(), nn.Flatten(), nn.Linear(4, 6), a(), nn.Linear(6, CLASSES))


def odd(a=nn.Tanh):
    """Three channels, pooled sizes that are odd, an unpooled convolution of odd width, a kernel of four."""
    layers = [nn.Conv2d(3, 17, 4), nn.MaxPool2d(2), a(), nn.Conv2d(17, 2, 3), a(), nn.Flatten(), nn.Linear(18, CLASSES)]
    return nn.Sequential(*layers)


NETWORKS = {"small": (small, (1, 16, 16)), "odd": (odd, (3, 14, 14))}
ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.Identity]


def rows_of(build, k):
    """k initialisations (k, d)."""
    torch.manual_seed(0)
    networks = [build() for _ in range(k)]
    return torch.stack([parameters_to_vector(network.parameters()).detach() for network in networks])


def images(shape, n=40):
    """Images with a constant background, as MNIST's: whole pool cells tie, exactly."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(n, *shape, generator=generator) * 2).round() / 2
    x[:, :, :5] = -0.42
    x[:, :, :, 8:] = -0.42
    return x, torch.randint(CLASSES, (n,), generator=generator)


def engine(build, weights, optimiser="adam", frozen=(), **settings):
    k = len(weights)
    columns = {"lr": 1e-2, "weight_decay": 0.0, "dropout": 0.0, "seeds": list(range(k))} | settings
    columns = {
        name: torch.as_tensor(v).expand(k) if name != "seeds" else torch.tensor(v) for name, v in columns.items()
    }
    return lanes.LaneEngine(build(), weights, optimiser=optimiser, frozen=frozen, **columns)


def minibatches(n, steps, batch):
    return torch.randint(n, (steps, batch), generator=torch.Generator().manual_seed(2))


def gradients(build, weights, x, y, **settings):
    """Of the mean loss at the weights (k, d): one step of SGD so long that the start is lost in rounding."""
    rate = 1e6
    sgd = engine(build, weights, "sgd", lr=rate, **settings)
    sgd.run(x, y, torch.arange(len(x))[None], torch.ones(1))
    return (weights.double() - sgd.weights.double()) / (1.9 * rate)  # Nesterov's first step is 1 + 0.9


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_autograd_in_float64_also_where_maxima_tie(network, activation):
    build, shape = NETWORKS[network]
    weights, (x, y) = rows_of(lambda: build(activation), 3), images(shape)
    weights[:, : build()[0].weight[0].numel()] = 0  # every window ties, whatever is in it
    ours = gradients(lambda: build(activation), weights, x, y)
    for row, gradient in zip(weights, ours, strict=True):
        reference = build(activation).double().eval()
        vector_to_parameters(row.double(), reference.parameters())
        wanted = torch.autograd.grad(F.cross_entropy(reference(x.double()), y), reference.parameters())
        for a, b in zip(gradient.split([g.numel() for g in wanted]), wanted, strict=True):
            torch.testing.assert_close(a, b.flatten(), rtol=0, atol=1e-5 * float(b.abs().max()))


def plain(build, row, optimiser, lr, decay, x, y, batches, scale, frozen=()):
    """(weights, mean loss) of the straightforward loop."""
    network = build().eval()
    vector_to_parameters(row.clone(), network.parameters())
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimiser]
    options = {"momentum": 0.9, "nesterov": True} if optimiser == "sgd" else {}
    optimiser, losses = make(network.parameters(), lr=lr, weight_decay=decay, **options), []
    for batch, factor in zip(batches, scale.tolist(), strict=True):
        optimiser.param_groups[0]["lr"] = lr * factor
        loss = F.cross_entropy(network(x[batch[batch >= 0]]), y[batch[batch >= 0]])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return parameters_to_vector(network.parameters()).detach(), sum(losses) / len(losses)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_training_is_that_of_a_plain_loop_with_settings_of_their_own_and_a_short_last_batch(network, optimiser):
    build, shape = NETWORKS[network]
    weights, (x, y) = rows_of(build, 3), images(shape)
    lr, decay, scale = torch.tensor([1e-2, 3e-3, 1e-3]), torch.tensor([0.0, 1e-2, 0.3]), torch.linspace(1, 0.2, 20)
    batches = minibatches(len(x), 20, 7)
    batches[9, 3:] = batches[19, 1:] = -1
    ours = engine(build, weights, optimiser, lr=lr, weight_decay=decay)
    halves = [ours.run(x, y, b, s) for b, s in zip(batches.split(10), scale.split(10), strict=True)]
    for i in range(3):
        after, loss = plain(build, weights[i], optimiser, lr[i].item(), decay[i].item(), x, y, batches, scale)
        torch.testing.assert_close(ours.weights[i], after, rtol=0, atol=1e-4)
        assert float(sum(halves)[i] / 2) == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    "frozen", [("0.weight", "0.bias"), ("0.weight", "0.bias", "3.weight", "3.bias", "7.bias"), ("3.weight", "12.bias")]
)
def test_frozen_parameters_keep_their_bits_and_the_others_learn_as_in_a_plain_loop(optimiser, frozen):
    build, shape = NETWORKS["small"]
    weights, (x, y) = rows_of(build, 2), images(shape)
    batches, scale = minibatches(len(x), 20, 7), torch.ones(20)
    ours = engine(build, weights, optimiser, lr=3e-3, weight_decay=0.3, frozen=frozen)
    ours.run(x, y, batches, scale)
    named = [(name, p.numel()) for name, p in build().named_parameters()]
    still = torch.cat([torch.full((size,), name in frozen) for name, size in named])
    assert torch.equal(ours.weights[:, still], weights[:, still])
    for i in range(2):
        after, _ = plain(build, weights[i], optimiser, 3e-3, 0.3, x, y, batches, scale, frozen)
        torch.testing.assert_close(ours.weights[i], after, rtol=0, atol=1e-4)
        assert (after != weights[i])[~still].any()


@pytest.mark.parametrize("network", NETWORKS)
def test_scores_and_logits_are_torchs(network):
    build, shape = NETWORKS[network]
    weights, (x, y) = rows_of(build, 4), images(shape, lanes.BLOCK + 10)
    ours = engine(build, weights, dropout=0.5)
    logits, (accuracy, loss) = ours.logits(x), ours.score(x, y)
    assert torch.equal(ours.weights, weights)
    for i, row in enumerate(weights):
        reference = build().eval()
        vector_to_parameters(row, reference.parameters())
        wanted = reference(x).detach()
        torch.testing.assert_close(logits[i], wanted, rtol=0, atol=1e-5)
        assert float(accuracy[i]) == pytest.approx(100 * float((logits[i].argmax(1) == y).double().mean()))
        assert float(loss[i]) == pytest.approx(float(F.cross_entropy(wanted.double(), y)), abs=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 13), (17, 2 * WIDTH)])
def test_the_forward_pass_is_that_of_the_stacked_engine(network, activation, k, n):
    build, shape = NETWORKS[network]
    weights, (x, _) = 2 * rows_of(lambda: build(activation), k), images(shape, n)
    template = build(activation).eval()
    with torch.no_grad():
        wanted = stacked.forward(template, Layout.of(template).unflatten(weights), x)
    torch.testing.assert_close(lanes.forward(template, weights, x), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_the_forward_pass_is_finite_where_the_stacked_engine_is(network, activation):
    build, shape = NETWORKS[network]
    weights, (x, _) = rows_of(lambda: build(activation), 6), images(shape, 9)
    weights[0] *= 1e20
    weights[1, 3], weights[2, -1], weights[3, 30], weights[4, 3] = math.nan, math.inf, -math.inf, 1e38
    template = build(activation).eval()
    with torch.no_grad():
        wanted = stacked.forward(template, Layout.of(template).unflatten(weights), x).isfinite()
    assert wanted.any()
    assert not wanted.all()
    assert torch.equal(lanes.forward(template, weights, x).isfinite(), wanted)


def test_threads_share_the_images_and_change_nothing():
    build, shape = NETWORKS["odd"]
    weights, (x, _), threads = rows_of(build, 3), images(shape, 5 * WIDTH + 3), torch.get_num_threads()
    logits = []
    for count in (1, 2, 3, 16):
        torch.set_num_threads(count)
        logits.append(lanes.forward(build(), weights, x))
    torch.set_num_threads(threads)
    assert all(torch.equal(logits[0], other) for other in logits)
    assert lanes.forward(build(), weights, x[:0]).shape == (3, 0, CLASSES)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_depends_neither_on_its_neighbours_nor_on_its_place_even_when_they_diverge(network):
    build, shape = NETWORKS[network]
    weights, (x, y) = rows_of(build, 5), images(shape)
    batches = minibatches(len(x), 6, 4)

    def trained(order, rows=weights):
        ours = engine(build, rows[order], dropout=0.4, seeds=[100 + i for i in order], weight_decay=1e-2)
        losses = ours.run(x, y, batches, torch.ones(6))
        return ours.weights, losses, ours.logits(x)

    together, broken = trained([0, 1, 2, 3, 4]), weights.clone()
    broken[[0, 3]] = torch.tensor([[math.nan], [math.inf]])
    for results, places in ((trained([2]), {2: 0}), (trained([4, 1, 2, 0]), {4: 0, 1: 1, 2: 2, 0: 3})):
        for model, place in places.items():
            assert all(torch.equal(a[model], b[place]) for a, b in zip(together, results, strict=True))
    beside = trained([0, 1, 2, 3, 4], broken)
    assert not beside[0][[0, 3]].isfinite().any(1).all()
    for model in (1, 2, 4):
        assert all(torch.equal(a[model], b[model]) for a, b in zip(together, beside, strict=True))


def dropped(p, seed, units=400):
    """What dropout makes of that many ones, read off the gradient of the weights behind it."""

    def build():
        return nn.Sequential(nn.Conv2d(1, units, 1), nn.Dropout(), nn.Flatten(), nn.Linear(units, 2))

    weights = torch.zeros(1, units + units + 2 * units + 2)
    weights[:, units : 2 * units] = 1  # the first layer's biases
    return behind(build, weights, 2 * units, units, p, seed)


def dropped_twice(p, seed, units=40):
    """The same through two layers of dropout with the identity between them."""

    def build():
        first, second = [nn.Conv2d(1, units, 1), nn.Dropout(), nn.Flatten()], [nn.Linear(units, units), nn.Dropout()]
        return nn.Sequential(*first, *second, nn.Linear(units, 2))

    network = build()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(network[0].bias)
    nn.init.eye_(network[3].weight)
    weights = parameters_to_vector(network.parameters()).detach()[None]
    return behind(build, weights, weights.shape[1] - 2 * units - 2, units, p, seed)


def behind(build, weights, start, units, p, seed):
    """The inputs (units,) of the first class's weights, which start there and are 0, when one black image is seen."""
    x, y = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    gradient = gradients(build, weights, x, y, dropout=p, seeds=[seed])[0, start : start + units]
    return (gradient / -0.5).float()  # equal logits: the error of the right class is -1/2


def test_dropout_keeps_the_expectation_and_depends_on_seed_and_step():
    for p in (0.1, 0.5, 0.8):
        values = torch.stack([dropped(p, seed) for seed in range(25)])  # (25, 400)
        kept = values != 0
        torch.testing.assert_close(values[kept], torch.full((int(kept.sum()),), 1 / (1 - p)))
        band = 5 * math.sqrt(p * (1 - p) / kept.numel())
        assert abs(float(kept.double().mean()) - (1 - p)) < band
        per_unit = (kept.double().mean(0) - (1 - p)) / math.sqrt(p * (1 - p) / 25)
        assert 0.7 < float(per_unit.square().mean()) < 1.3  # no unit, and so no seed, is like another
    assert torch.equal(dropped(0.5, 3), dropped(0.5, 3))
    assert not torch.equal(dropped(0.5, 3), dropped(0.5, 4))


def test_dropout_masks_of_two_layers_are_independent():
    kept = torch.stack([dropped_twice(0.4, seed) for seed in range(50)]) != 0  # (50, 40)
    assert abs(float(kept.double().mean()) - 0.36) < 5 * math.sqrt(0.36 * 0.64 / kept.numel())


def test_dropout_masks_differ_between_images_and_steps():
    build, shape = NETWORKS["small"]
    weights, (x, y) = rows_of(build, 1), images(shape, 1)
    twice = gradients(build, weights, x.repeat(2, 1, 1, 1), y.repeat(2), dropout=0.5)
    once = gradients(build, weights, x, y, dropout=0.5)
    assert not torch.allclose(twice, once, rtol=1e-3)
    ours = engine(build, weights, lr=0.0, dropout=0.5)
    losses = [float(ours.run(x, y, torch.zeros(1, 1, dtype=torch.long), torch.ones(1))) for _ in range(4)]
    assert len(set(losses)) == 4


def test_without_dropout_a_dropout_layer_is_nothing():
    build, shape = NETWORKS["small"]
    weights, (x, y) = rows_of(build, 2), images(shape)
    bare = lambda: nn.Sequential(*(m for m in build() if not isinstance(m, nn.Dropout)))  # noqa: E731
    batches = minibatches(len(x), 3, 4)
    results = []
    for network, p in ((build, 0.0), (bare, 0.0), (bare, 0.5)):
        ours = engine(network, weights, dropout=p)
        ours.run(x, y, batches, torch.ones(3))
        results.append(ours.weights)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(1, 2, 3, stride=2)], "'0'"),
        ([nn.Conv2d(1, 2, 3, padding=1)], "'0'"),
        ([nn.Conv2d(1, 2, 3, bias=False)], "'0'"),
        ([nn.Conv2d(1, 2, (3, 2))], "'0'"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)], "'1'"),
        ([nn.Conv2d(1, 2, 3), nn.GELU(approximate="tanh")], "'1'"),
        ([nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2)], "'2'"),
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True)], "'1'"),
        ([nn.Conv2d(1, 2, 3), nn.Linear(2, 2)], "'1'"),
        ([nn.Flatten(), nn.Linear(4, 2)], "'0'"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten()], "Linear"),
    ],
)
def test_another_network_is_refused_by_its_layers_name(layers, named):
    network = nn.Sequential(*layers)
    assert not lanes.supports(network)
    with pytest.raises(ValueError, match=named):
        engine(lambda: network, parameters_to_vector(network.parameters())[None])


def test_the_usual_networks_are_taken_and_a_single_layer_is_not():
    assert all(lanes.supports(build(a)) for build, _ in NETWORKS.values() for a in ACTIVATIONS)
    assert not lanes.supports(nn.Conv2d(1, 2, 3))


def test_arguments_that_do_not_fit_are_refused():
    build, shape = NETWORKS["small"]
    weights, (x, y) = rows_of(build, 2), images(shape)
    one = torch.ones(1)
    for wrong, named in (
        (lambda: engine(build, weights[:, 1:]), "weights"),
        (lambda: engine(build, weights, "rmsprop"), "optimiser"),
        (lambda: engine(build, weights, dropout=1.0), "dropout"),
        (lambda: engine(build, weights, seeds=[1]), "seeds"),
        (lambda: engine(build, weights).logits(x[:, :, 1:]), "fit"),
        (lambda: engine(build, weights).logits(x[0]), "x: shape"),
        (lambda: engine(build, weights).run(x, y, torch.tensor([[len(x)]]), one), "rows"),
        (lambda: engine(build, weights).run(x, y, torch.tensor([[-1]]), one), "rows"),
        (lambda: engine(build, weights).run(x, y + CLASSES, torch.tensor([[0]]), one), "labels"),
        (lambda: engine(build, weights).run(x, y, torch.tensor([[0]]), torch.ones(2)), "lr_scale"),
    ):
        with pytest.raises(ValueError, match=named):
            wrong()

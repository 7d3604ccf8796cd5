"""SWAT-NN's autoencoder computes what its equations say, learns a small stream, and repeats itself."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from wsnotebook.methods import mlp_matrix as mm
from wsnotebook.methods import swat_stream, swat_training
from wsnotebook.methods.mlp_matrix import Form, Parts
from wsnotebook.methods.swat_nn import Config, preset, train, untrained
from wsnotebook.methods.swat_stream import Stream

FORM = Form(width=3, depth=2, activations=("tanh", "relu"))
SMALL = Config(
    FORM,
    Stream(first=2.0, gain=1.5),
    z=16,
    dim=24,
    heads=2,
    blocks=1,
    points=32,
    iterations=100,
    lr=1e-2,
    parameters=5.0,
)


@pytest.fixture(scope="module")
def trained():
    return train(SMALL)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.network.parameters(), b.network.parameters(), strict=True))


# ---- the stream --------------------------------------------------------------------------------------------------


def test_the_stream_is_what_its_settings_say():
    form, stream = Form(), Stream(first=4.0, gain=None, bias=0.5, on=0.6, sparsity=(0.25,))
    parts = swat_stream.draw(form, stream, 4000, generator())
    assert torch.bincount(parts.depth, minlength=5)[1:].min() > 900
    first = parts.weights[:, 0, :, :2][mm.live(form, parts).weights[:, 0, :, :2]]
    assert float(first.abs().max()) <= 4
    assert math.isclose(float(first[first != 0].std()), 4 / math.sqrt(3), rel_tol=0.03)
    assert math.isclose(float((first == 0).float().mean()), 0.25, abs_tol=0.02)
    assert float(parts.biases.abs().max()) <= 0.5
    kinds = parts.activations[parts.masks > 0].mean(0)
    torch.testing.assert_close(kinds, torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    dense = swat_stream.draw(form, replace(stream, sparsity=(0.0,), on=0.1), 500, generator())
    assert (mm.units(dense) > 0)[mm.used(form, dense.depth).masks.any(2)].all(), "no layer without units"


def test_the_papers_stream_has_one_depth_a_draw_and_layers_without_units():
    form, stream = Form(), swat_stream.preset("paper")
    draws = [swat_stream.draw(form, stream, 64, generator(seed)) for seed in range(20)]
    assert all(len(parts.depth.unique()) == 1 for parts in draws)
    assert len({int(parts.depth[0]) for parts in draws}) == 4
    assert float(torch.cat([p.weights.flatten() for p in draws]).abs().max()) > 4.9
    assert any((mm.units(parts)[:, 0] == 0).any() for parts in draws)


def test_the_papers_targets_blend_all_activations():
    parts = swat_stream.draw(Form(), swat_stream.preset("paper"), 64, generator())
    blended = swat_stream.target(swat_stream.preset("paper"), parts).activations[parts.masks > 0]
    expected = torch.tensor([1.0, 0.0, 0.0]).softmax(0)
    torch.testing.assert_close(
        blended.sort(descending=True).values, expected.sort(descending=True).values.expand_as(blended)
    )
    assert swat_stream.target(Stream(), parts) is parts


def test_our_stream_keeps_its_size_over_depth():
    parts = swat_stream.draw(Form(), Stream(), 4000, generator())
    variance = mm.evaluate(Form(), parts, 2 * torch.rand(100, 2, generator=generator()) - 1).var(1)[:, 0]
    medians = [float(variance[parts.depth == d].median()) for d in range(1, 5)]
    assert max(medians) < 20 * min(medians)


def test_a_generator_decides_the_draw():
    a, b, c = (swat_stream.draw(FORM, Stream(), 10, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(mm.to_rows(FORM, a), mm.to_rows(FORM, b))
    assert not torch.equal(mm.to_rows(FORM, a), mm.to_rows(FORM, c))


# ---- canonical order ---------------------------------------------------------------------------------------------


def test_canonical_order_keeps_functions_and_makes_twins_one():
    form = Form(activations=("tanh", "sigmoid", "sin", "relu"))
    parts = swat_stream.draw(form, Stream(), 200, generator())
    x = 2 * torch.rand(50, 2, generator=generator()) - 1
    ordered = mm.canonical(form, parts)
    torch.testing.assert_close(mm.evaluate(form, ordered, x), mm.evaluate(form, parts, x), atol=1e-4, rtol=1e-4)
    twin = mm.canonical(form, mm.permuted(form, parts, *mm.random_orders(form, 200, generator())))
    torch.testing.assert_close(mm.to_rows(form, twin), mm.to_rows(form, ordered))
    assert (ordered.masks.diff(dim=2) <= 0).all(), "units that are off come last"


# ---- the loss ----------------------------------------------------------------------------------------------------


def test_fvu_is_one_for_the_mean_and_zero_for_the_target():
    target = torch.randn(5, 100, 2, generator=generator())
    torch.testing.assert_close(swat_training.fvu(target, target), torch.zeros(5))
    constant = target.mean(1, keepdim=True).expand_as(target)
    torch.testing.assert_close(swat_training.fvu(constant, target), torch.ones(5), atol=5e-3, rtol=0)


def test_parameter_error_counts_what_counts():
    """Against a loop over every unit; and a network's own numbers have none."""
    parts = swat_stream.draw(FORM, Stream(), 6, generator())
    raw = Parts(*(torch.randn(part.shape, generator=generator(1)) for part in parts[:4]), parts.depth)
    scale = torch.rand(FORM.columns, generator=generator(2)) + 0.5
    unit = mm.from_rows(FORM, scale.expand(1, FORM.rows, -1), torch.tensor([1]))
    weights, biases, kinds, masks = [], [], [], []
    for i in range(6):
        depth = int(parts.depth[i])
        for layer in [*range(depth), FORM.depth]:
            into = [True] * 2 if layer == 0 else (parts.masks[i, min(layer, depth) - 1] > 0).tolist()
            here = [True] if layer == FORM.depth else (parts.masks[i, layer] > 0).tolist()
            for j, on in enumerate(here):
                if layer < FORM.depth:
                    masks.append(F.binary_cross_entropy_with_logits(raw.masks[i, layer, j], torch.tensor(float(on))))
                if not on:
                    continue
                biases.append(((raw.biases - parts.biases) / unit.biases)[i, layer, j] ** 2)
                read = [
                    ((raw.weights - parts.weights) / unit.weights)[i, layer, j, k] ** 2 for k, r in enumerate(into) if r
                ]
                weights += read
                if layer < FORM.depth:
                    kinds.append(F.cross_entropy(raw.activations[i, layer, j], parts.activations[i, layer, j]))
    expected = sum(torch.stack(part).mean() for part in (weights, biases, kinds, masks))
    torch.testing.assert_close(swat_training.parameter_error(FORM, raw, parts, scale), expected)
    sure = parts._replace(activations=40 * parts.activations, masks=80 * parts.masks - 40)
    assert float(swat_training.parameter_error(FORM, sure, parts, scale)) < 1e-6


def test_row_scale_is_the_size_of_what_counts():
    parts = swat_stream.draw(FORM, Stream(), 500, generator())
    column = 0  # the first layer's weight from the first input
    values = mm.to_rows(FORM, parts)[..., column][mm.to_rows(FORM, mm.live(FORM, parts))[..., column]]
    scale = swat_training.row_scale(FORM, parts)
    torch.testing.assert_close(scale[column], values.square().mean().sqrt())
    assert (scale[-FORM.depth :] == 1).all()


# ---- the autoencoder ---------------------------------------------------------------------------------------------


def test_latents_and_networks_have_their_shapes(trained):
    parts = trained.held_out(20)
    z = trained.embed(parts)
    assert z.shape == (20, FORM.rows, 16)
    torch.testing.assert_close(z.square().mean(2), torch.ones(20, FORM.rows), atol=1e-3, rtol=1e-3)
    for depth in (parts.depth, torch.full((20,), 2)):
        made = trained.decode(z, depth)
        mm.evaluate(FORM, made, torch.zeros(1, 2))
        real = mm.used(FORM, depth)
        assert all(not part[~here].any() for part, here in zip(made[:4], real[:4], strict=True))
        torch.testing.assert_close(made.activations.sum(-1), real.masks.float())


def test_decoding_is_differentiable_and_a_low_temperature_decides(trained):
    z, depth = torch.randn(4, FORM.rows, 16, generator=generator(), requires_grad=True), torch.tensor([1, 2, 1, 2])
    mm.evaluate(FORM, trained.decode(z, depth), torch.ones(3, 2)).sum().backward()
    assert z.grad.abs().flatten(1).amax(1).gt(0).all()
    real = mm.used(FORM, depth).masks
    cold, warm = (trained.decode(z, depth, temperature).activations[real].detach() for temperature in (1e-3, 1.0))
    assert torch.equal(cold.argmax(-1), warm.argmax(-1))
    assert float(cold.amax(-1).mean()) > float(warm.amax(-1).mean())


def test_a_network_is_decoded_the_same_in_any_company(trained):
    parts = trained.held_out(20)
    z = trained.embed(parts)
    alone = trained.decode(z[3:4], parts.depth[3:4])
    torch.testing.assert_close(alone.weights, trained.decode(z, parts.depth).weights[3:4])


def test_attention_is_bidirectional_but_for_the_papers():
    """Whether the first row's output depends on the last row."""
    for causal in (False, True):
        network = untrained(replace(SMALL, causal=causal)).network
        z = torch.randn(1, FORM.rows, 16, generator=generator(), requires_grad=True)
        network.decode(z, torch.tensor([1])).biases[0, :, 0].sum().backward()
        assert bool(z.grad[0, -1].any()) is not causal


def test_a_decoder_of_its_own_for_each_depth():
    own = untrained(replace(SMALL, shared=False))
    parts = own.held_out(8)
    z, mixed = own.embed(parts), torch.tensor([1, 2] * 4)
    made = own.decode(z, mixed)
    for d in (1, 2):
        alone = own.decode(z[mixed == d], torch.full((4,), d))
        torch.testing.assert_close(made.weights[mixed == d], alone.weights)
    assert len(own.network.decoders) == 2


def test_the_papers_preset_has_the_published_number_of_parameters():
    config = preset("paper")
    with torch.device("meta"):
        network = swat_training.autoencoder(config, torch.ones(config.form.columns))
    tables = 5 * 50_257 * 768  # of language tokens, in the public code and never used
    assert sum(p.numel() for p in network.parameters()) == 622_463_456 - tables


# ---- training ----------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_networks_come_back(trained):
    history = trained.history
    assert history["iteration"] == [0, 50, 100]
    assert history["loss"][-1] < 0.7 * history["loss"][1]
    assert history["fvu_1"][-1] < 0.5 * history["fvu_1"][0]
    report = trained.report(trained.held_out(200))
    before = untrained(SMALL).report(trained.held_out(200))
    assert float(report.own.median()) < 0.5 * float(before.own.median())
    assert report.fvu.shape == (200, 2)
    torch.testing.assert_close(
        report.table().diagonal(), torch.stack([report.own[report.depth == d].median() for d in (1, 2)])
    )


def test_the_first_step_is_the_equation():
    config = replace(SMALL, cross=0.0, noise=0.0)
    run, again = swat_training.Run(config), swat_training.Run(config)
    torch.manual_seed(5)
    loss, functional, term = run.step().tolist()
    torch.manual_seed(5)
    drawn, x = swat_stream.draw(FORM, config.stream, config.batch), swat_training.points(FORM, config.points)
    parts = mm.canonical(FORM, drawn)
    raw = again.network.decode(again.network.encode(parts), parts.depth)
    made = mm.evaluate(FORM, swat_training.soft(FORM, raw), x)
    y = mm.evaluate(FORM, drawn, x)
    error = torch.log(1 + (made - y).square().mean((1, 2)) / (y.var(1, unbiased=False).mean(1) + 1e-3)).mean()
    assert math.isclose(functional, error.item(), rel_tol=1e-4)
    assert math.isclose(loss, functional + config.parameters * term, rel_tol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"loss": "best"}, {"order": "random"}, {"z": None, "linear": False}, {"cross": 1.0}]
)
def test_other_settings_train_too(changes):
    history = train(replace(SMALL, iterations=60, **changes)).history
    assert all(math.isfinite(history[name][-1]) for name in history)
    assert history["loss"][-1] < history["loss"][1]


def test_twins_are_one_in_canonical_order_and_apart_without(trained):
    parts = trained.held_out(100)
    assert trained.twins(parts) < 1e-4
    assert 0.05 < untrained(replace(SMALL, order="random")).twins(parts) < 2
    with pytest.raises(ValueError, match="expected two or more"):
        trained.twins(parts.take(slice(1)))


def test_a_run_that_goes_on_is_the_run_that_never_stopped(trained, monkeypatch):
    chunk, calls = swat_training.Run.train_chunk, []

    def stopping(run):
        calls.append(run.iteration)
        if len(calls) == 2:
            raise KeyboardInterrupt
        chunk(run)

    monkeypatch.setattr("wsnotebook.training.KEEP_EVERY", 0.0)
    monkeypatch.setattr(swat_training.Run, "train_chunk", stopping)
    first = train(SMALL, keep=True)
    assert not first.finished
    assert first.history["iteration"] == [0, 50]
    monkeypatch.setattr(swat_training.Run, "train_chunk", chunk)
    resumed = train(SMALL, keep=True)
    assert same(resumed, trained)
    assert resumed.history["loss"][1:] == trained.history["loss"][1:]
    assert resumed.history["fvu_2"] == trained.history["fvu_2"]
    started = resumed.history["cpu_seconds"]
    assert train(SMALL, keep=True).history["cpu_seconds"] == started, "taken from the file, not trained again"


def test_global_randomness_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    untrained(SMALL).held_out(4)
    assert torch.equal(torch.rand(3), expected)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "sorted"}, "order='sorted'"),
        ({"loss": "l1"}, "loss='l1'"),
        ({"dim": 25}, "dim=25 is not a multiple of heads=2"),
        ({"z": None}, "linear path needs a z"),
        ({"z": 0}, "z=0"),
        ({"places": 2}, "3 rows"),
        ({"cross": 1.5}, "cross=1.5"),
        ({"noise": -1}, "noise=-1"),
    ],
)
def test_settings_teach(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_streams_and_presets_teach():
    with pytest.raises(ValueError, match="on=1.5"):
        Stream(on=1.5)
    with pytest.raises(ValueError, match="expected probabilities"):
        Stream(sparsity=())
    for wrong in (swat_stream.preset, preset):
        with pytest.raises(ValueError, match="'theirs': expected one of 'paper', 'ours'"):
            wrong("theirs")


def test_latents_and_networks_of_another_form_are_named(trained):
    with pytest.raises(ValueError, match=r"z: shape \(2, 7, 16\).*expected \(n, 3, 16\)"):
        trained.decode(torch.zeros(2, 7, 16), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="depth: from 1 to 3, expected 1 to 2"):
        trained.decode(torch.zeros(2, 3, 16), torch.tensor([1, 3]))
    with pytest.raises(ValueError, match="parts.weights: shape"):
        trained.embed(swat_stream.draw(Form(), Stream(), 2, generator()))
    with pytest.raises(ValueError, match="diverged"):
        train(replace(SMALL, lr=1e20, clip=1e20, iterations=50))

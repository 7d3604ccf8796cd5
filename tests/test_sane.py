"""SANE computes what its equations say, on networks that keep their function, and repeats itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsnotebook import evaluation, networks, training, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import sane_training
from wsnotebook.methods.autoencoder import Autoencoder, contrast, decoded, encoded, linear_path, moments, stretches
from wsnotebook.methods.autoencoder_run import one_cycle
from wsnotebook.methods.layer_pca import LayerPCA, layer_pca
from wsnotebook.methods.properties import weight_statistics
from wsnotebook.methods.sane import Config, preset, train
from wsnotebook.methods.tokens import standardise, tokens

SMALL = Config(
    z=6,
    dim=24,
    heads=2,
    blocks=1,
    window=32,
    gamma=0.05,
    delta=0.2,
    iterations=120,
    batch=16,
    lr=1e-2,
    weight_decay=0.0,
)


def made(name="cnn-tiny", n=60, factors=5):
    """Networks whose weights are a mixture of a few, so that there is something to learn."""
    layout = Layout.of(networks.build(name), exclude=COUNTERS)
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(factors, layout.d, generator=generator)
    rows = 0.2 * torch.tanh(torch.randn(n, factors, generator=generator) @ ways)
    rows += 0.02 * torch.randn(n, layout.d, generator=generator)
    rows[:, ~layout.learned()] = 1.0
    return zoo.Zoo(rows, layout, {"model": np.arange(n) // 2}, name, {})  # two of each model


@pytest.fixture(scope="module")
def nets():
    return made()


@pytest.fixture(scope="module")
def trained(nets):
    return train(nets, SMALL)


def run_of(nets, **changes):
    return sane_training.Run(nets, replace(SMALL, **changes))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.network.parameters(), b.network.parameters(), strict=True))


# ---- the network -------------------------------------------------------------------------------------------------


def plain(stack, h):
    """Pre-norm blocks on (n, w, dim), spelled out."""
    for block in stack:
        x = F.layer_norm(h, h.shape[2:], block.norms[0].weight)
        q, k, v = (
            part.unflatten(2, (block.heads, -1)).transpose(1, 2) for part in (x @ block.qkv.weight.T).chunk(3, 2)
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
        h = h + (weights @ v).transpose(1, 2).flatten(2) @ block.out.weight.T
        x = F.layer_norm(h, h.shape[2:], block.norms[1].weight)
        h = h + F.gelu(x @ block.up.weight.T) @ block.down.weight.T
    return h


@pytest.mark.parametrize("options", [{}, {"width": 7}, {"pack": 3, "width": 80}])
@pytest.mark.parametrize(("linear", "facts"), [(True, 0), (True, 4), (False, 0), (False, 4)])
def test_real_columns_alone_give_what_padded_tokens_do(nets, options, linear, facts):
    of = tokens(nets.layout, **options)
    standardised = standardise(nets, of)
    path = linear_path(standardised, nets, 5, facts > 0)
    pca = LayerPCA(standardised, *path[:2])
    torch.manual_seed(0)
    network = Autoencoder(of.width, 3, 24, 2, 2, 5, path if linear else None, facts)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    start, stop = 3, len(of) - 2
    window, w = of.window(start, stop), stop - start
    entries = pca.standardised.encode(nets.weights)
    dense = torch.zeros(len(nets), len(of) * of.width)
    dense[:, of.slots] = entries
    dense = dense.view(len(nets), len(of), of.width)[:, start:stop].double()
    z = network.encode(entries[:, window.entries], window)
    x = network.decode(z, window)

    network = network.double()
    positions = network.positions(of.positions[start:stop])
    read, told = dense @ network.read + positions, []
    if facts:
        for place, at in enumerate(range(start, stop)):
            (block,) = (block for block in of.blocks if at in block.tokens)
            rows = dense[:, place, : block.columns].unflatten(1, (block.rows, -1))
            size = rows.square().mean(2)
            parts = [rows.mean(2), rows.abs().mean(2), size, (size + 1e-6).log(), rows.amin(2), rows.amax(2)]
            read[:, place] += torch.stack(parts, 2).flatten(1) @ network.sense[: 6 * block.rows]
            if linear:
                own = path[2][of.blocks.index(block)]
                told += [(torch.stack(parts, 2) - own.mean) @ own.basis.double()]
    own = plain(network.encoder, read) @ network.to_z.T  # (n, w, 3 rows x 5)
    counts = [block.rows for at in range(start, stop) for block in of.blocks if at in block.tokens]
    expected = torch.cat([own[:, at, : 5 * rows].unflatten(1, (rows, 5)) for at, rows in enumerate(counts)], 1)
    if linear:
        here = of.within(torch.arange(len(of.rows)), range(start, stop))
        numbers = torch.tensor(
            [
                block.columns // block.rows
                for at in range(len(of))
                for block in of.blocks
                if at in block.tokens
                for _ in range(block.rows)
            ]
        )[here]
        lossless = numbers < 5
        expected *= torch.arange(5) >= torch.where(lossless, numbers, 4)[:, None]  # the encoder's own
        expected += pca.embed(nets)[:, here]
        if told:
            expected += torch.cat(told, 1)
    first = int(of.first_row[start])
    torch.testing.assert_close(z.double(), expected[:, window.rows - first], atol=1e-4, rtol=1e-4)

    filled = torch.zeros(len(nets), w, 15, dtype=torch.float64)
    for at, (rows, some) in enumerate(zip(counts, expected.split(counts, 1), strict=True)):
        filled[:, at, : 5 * rows] = some.flatten(1)
    back = plain(network.decoder, filled @ network.from_z + positions) @ network.write.T
    here = of.slots[window.entries] - start * of.width
    back = back.flatten(1)[:, here]
    if linear:
        back *= ~lossless[window.rows - first].repeat_interleave(numbers[window.rows - first])
        whole = torch.zeros(len(nets), len(of.rows), 5)
        whole[:, window.rows] = z.float()
        back += pca.standardised.encode(pca.decode(whole).weights)[:, window.entries]
    torch.testing.assert_close(x.double(), back, atol=1e-3, rtol=1e-3)


def test_the_contrast_is_nt_xent():
    a, b = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    views = [*a, *b]
    total = 0.0
    for i, view in enumerate(views):
        likeness = [math.exp(float(F.cosine_similarity(view, other, 0)) / 0.3) for other in views]
        total -= math.log(likeness[(i + 5) % 10] / (sum(likeness) - likeness[i]))
    assert float(contrast(a, b, 0.3)) == pytest.approx(total / 10)


def test_the_head_takes_windows_of_any_length(trained):
    for w in (1, 5, 32):
        assert trained.network.project(torch.randn(3, w, 6)).shape == (3, 30)


# ---- any number of tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "halo"), [(1, 0), (5, 0), (5, 2), (8, 1), (64, 31)])
def test_stretches_keep_every_token_once_and_see_around_it(window, halo):
    for s in range(1, 3 * window + 5):
        kept = [at for _, stretch in stretches(s, window, halo) for at in stretch]
        assert kept == list(range(s))
        for seen, stretch in stretches(s, window, halo):
            assert len(seen) == min(s, window)
            assert set(range(max(stretch[0] - halo, 0), min(stretch[-1] + halo + 1, s))) <= set(seen) <= set(range(s))


@pytest.mark.parametrize(("window", "halo"), [(3, 1), (7, 0), (12, 5), (31, 8)])
def test_without_attention_the_windows_do_not_matter(nets, window, halo):
    of = tokens(nets.layout, 10)
    network = Autoencoder(10, 1, 12, 2, 0, 4)
    entries = of.entries(nets.weights)
    with torch.no_grad():
        z = encoded(network, of, entries, len(of), 0)
        torch.testing.assert_close(encoded(network, of, entries, window, halo), z)
        torch.testing.assert_close(decoded(network, of, z, window, halo), decoded(network, of, z, len(of), 0))


def test_longer_networks_are_seen_a_window_at_a_time(nets, trained):
    of, entries = trained.tokens, trained.standardised.encode(nets.weights)
    with torch.no_grad():
        whole = encoded(trained.network, of, entries, len(of), 0)
        parts = encoded(trained.network, of, entries, 14, 4)
        for seen, kept in stretches(len(of), 14, 4):
            window = of.window(seen.start, seen.stop)
            alone = trained.network.encode(entries[:, window.entries], window)
            inside = of.within(window.rows, kept)
            torch.testing.assert_close(parts[:, window.rows[inside]], alone[:, inside])
    torch.testing.assert_close(trained.embed(nets), whole)  # all tokens fit the window of 32
    assert not torch.allclose(parts, whole)


@pytest.mark.parametrize("name", ["resnet-8", "vit-tiny"])
def test_longer_networks_go_there_and_back(name):
    nets = made(name, 6)
    config = replace(SMALL, iterations=0, window=24, halo=4, z=201, width=200, permute=False, held_out=0.34)
    result = train(nets, config)
    z = result.embed(nets)
    assert z.shape == (6, len(result.tokens.rows), 201)
    back, learned = result.decode(z, nets), nets.layout.learned()
    torch.testing.assert_close(back.weights[:, learned], nets.weights[:, learned], atol=1e-3, rtol=0)
    assert back.facts["parent"].tolist() == nets.facts["model"].tolist()


# ---- views -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn-tiny", "resnet-8", "vit-tiny"])
def test_permuted_networks_keep_their_function(name):
    nets = made(name, 8)
    run = run_of(nets, held_out=0.25)
    rows = torch.arange(len(run.weights))
    torch.manual_seed(0)
    moved = nets.filter(rows.numpy()).derived(run.permuted(rows))
    kept = moved.derived(run.weights)
    x = networks.example(name)
    torch.testing.assert_close(evaluation.logits(moved, x), evaluation.logits(kept, x), atol=1e-3, rtol=1e-3)
    changed = (moved.weights != kept.weights).float().mean(1)
    assert changed.min() > 0.3
    assert len(torch.unique(moved.weights, dim=0)) == len(rows)


def test_augmentations_are_on(nets):
    run = run_of(nets, noise=0.1, erase=0.25)
    rows = torch.arange(len(run.weights)).repeat(40)
    window = run.standardised.tokens.window(0, len(run.standardised.tokens))
    torch.manual_seed(0)
    clean, views = run.views(rows, window)
    assert torch.equal(clean[: len(rows)], run.standardised.encode(run.weights[rows]))
    gone = views == 0
    for t in range(len(window.positions)):  # whole tokens
        assert torch.equal(gone[:, window.token == t].all(1), gone[:, window.token == t].any(1))
    assert float(gone.float().mean()) == pytest.approx(0.25, abs=0.02)
    factors = (views / clean)[~gone]
    assert float(factors.mean()) == pytest.approx(1, abs=2e-3)
    assert float(factors.std()) == pytest.approx(0.1, abs=2e-3)
    first, second = clean.chunk(2)
    assert float(((first - second).abs() > 0.5).float().mean()) > 0.2  # units elsewhere
    on, off = (run_of(nets, noise=0, permute=permute).views(rows, window) for permute in (True, False))
    assert torch.equal(on[0], on[1])  # no noise
    first, second = on[0].chunk(2)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sort(1).values, second.sort(1).values)  # the same numbers
    assert torch.equal(*off[0].chunk(2))


@pytest.mark.parametrize("target", ["clean", "noisy"])
@pytest.mark.parametrize("decode", ["first", "both"])
def test_the_loss_is_the_equations(nets, target, decode):
    run = run_of(nets, target=target, decode=decode, linear=False)
    window = run.standardised.tokens.window(2, 9)
    rows = torch.arange(10)
    clean, views = run.views(rows, window)
    reconstruction, contrasted, told = run.losses(clean, views, window, rows)
    network, targets = run.network, (clean if target == "clean" else views).split(10)
    z = [network.encode(view, window) for view in views.split(10)]
    errors = [(network.decode(own, window) - to).square().mean() for own, to in zip(z, targets, strict=True)]
    torch.testing.assert_close(reconstruction, errors[0] if decode == "first" else sum(errors) / 2)
    torch.testing.assert_close(contrasted, contrast(network.project(z[0]), network.project(z[1]), 0.1))
    facts = torch.stack([network.tell(own) for own in z]).detach()  # (2, 10, 7 layers)
    touched = torch.isin(torch.arange(facts.shape[2]) // 7, window.positions[:, 1])
    assert 0 < touched.sum() < len(touched)
    expected = (facts - run.facts[:10])[..., touched].square().mean()
    torch.testing.assert_close(told.detach(), expected)
    assert len(run_of(nets, gamma=0.0).views(torch.arange(10), window)[0]) == 10  # nothing needs the second


def test_what_is_told_is_the_statistics_of_each_layer_whitened(nets):
    run = run_of(nets)
    true = weight_statistics(nets.split((1 - run.config.held_out, run.config.held_out), run.config.seed)[0])
    for layer in range(true.shape[1] // 7):
        own, facts = true[:, 7 * layer : 7 * layer + 7], run.facts[:, 7 * layer : 7 * layer + 7].double().numpy()
        covariance = facts.T @ facts / len(facts)
        assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3
        assert 0.5 < np.diag(covariance).max() < 1.01
        ones = np.column_stack([own, np.ones(len(own))])
        left = facts - ones @ np.linalg.lstsq(ones, facts, rcond=None)[0]
        assert np.abs(left).max() < 1e-3, "a linear map of s(W)"


def test_without_a_contrast_the_loss_is_the_reconstruction(nets):
    run = run_of(nets, gamma=0.0, delta=0.0)
    window = run.standardised.tokens.window(0, 9)
    clean, views = run.views(torch.arange(10), window)
    reconstruction, contrasted, told = run.losses(clean, views, window, torch.arange(10))
    expected = (run.network.decode(run.network.encode(views, window), window) - clean).square().mean()
    torch.testing.assert_close(reconstruction, expected)
    assert contrasted == told == 0


def test_the_rate_warms_up_and_cools_down():
    rates = [one_cycle(i / 1000) for i in range(1001)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[300] == pytest.approx(1)
    assert rates[-1] == pytest.approx(1e-4)
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)


def test_long_gradients_are_cut(nets):
    run = run_of(nets, clip=1e-3, linear=False)
    run.step()
    assert float(run.vector.grad.norm()) == pytest.approx(1e-3, rel=1e-4)


# ---- training ----------------------------------------------------------------------------------------------------


def test_an_untrained_linear_path_is_per_layer_pca(nets):
    result = train(nets, replace(SMALL, iterations=0, delta=0.0))
    kept, held_out = nets.split((0.9, 0.1), SMALL.seed)
    pca = LayerPCA(result.standardised, *result.network.linear[:2])
    for own, whole in zip(pca.bases, layer_pca(kept, SMALL.z).bases, strict=True):
        torch.testing.assert_close(own[:, : SMALL.z - 1], whole[:, : SMALL.z - 1])
    torch.testing.assert_close(result.embed(nets), pca.embed(nets), atol=1e-5, rtol=1e-5)
    mine, theirs = (each.decode(each.embed(held_out), held_out).weights for each in (result, pca))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    entries = pca.standardised.encode
    error = (entries(theirs) - entries(held_out.weights)).square().mean()
    assert result.history["validation_loss"][0] == pytest.approx(float(error), rel=1e-4)


def test_moments_go_where_components_leave_room_and_the_mean_latent_has_them(nets):
    model = train(nets, replace(SMALL, z=48, iterations=0))
    of, (_, bases, told) = model.tokens, model.network.linear
    entries = model.standardised.encode(nets.weights)
    seen = []
    for block, basis, own in zip(of.blocks, bases, told, strict=True):
        assert ((basis != 0).any(0) & (own.basis != 0).any(0)).sum() == 0
        seen.append(moments(block.of(entries)).mean(1) @ own.basis)
    seen = torch.cat(seen, 1).double()
    seen = (seen - seen.mean(0))[:, seen.std(0) > 1e-6]
    z = model.mean(nets).double()
    z = torch.cat([z, torch.ones(len(z), 1)], 1)
    left = seen - z @ torch.linalg.lstsq(z, seen).solution
    pca = layer_pca(nets, 48).mean(nets).double()
    pca = torch.cat([pca, torch.ones(len(z), 1)], 1)
    without = seen - pca @ torch.linalg.lstsq(pca, seen).solution
    assert left.var() < 0.1 * seen.var()
    assert left.var() < 0.3 * without.var()


def test_training_comes_closer_than_where_it_started(nets, trained):
    assert trained.history["iteration"] == [0, 50, 100, 120]
    assert trained.history["validation_loss"][-1] < 0.95 * trained.history["validation_loss"][0]  # than per-layer PCA
    plain = train(nets, replace(SMALL, linear=False)).history["validation_loss"]
    assert plain[0] > 0.95  # as good as the layers' means
    assert plain[-1] < 0.95 * plain[0]


def test_every_row_leaves_latents_to_the_encoder(nets):
    run = run_of(nets, z=16, linear=True)
    of = run.standardised.tokens
    window = of.window(0, len(of))
    for block, basis in zip(of.blocks, run.network.linear[1], strict=True):
        numbers = block.columns // block.rows
        assert (basis.norm(dim=0) > 0).sum() == (numbers if numbers < 16 else 14)
    free = run.network._free(window)
    assert (free.sum(1) >= 2).all()
    torch.nn.init.normal_(run.network.to_z)
    entries = run.standardised.encode(run.weights)
    moved = run.network.encode(entries, window)
    straight = LayerPCA(run.standardised, *run.network.linear[:2]).embed(run.standardised.zoo(entries))
    straight = straight[:, window.rows]
    torch.testing.assert_close(moved * (1 - free), straight * (1 - free), atol=1e-4, rtol=1e-4)
    assert (moved - straight)[:, free.bool()].abs().min() > 0


def test_rows_shorter_than_their_latents_come_back_as_they_were(nets):
    result = train(nets, replace(SMALL, z=24, iterations=60))  # of rows of 25, 16 + 1, 10 and 13 numbers
    back = result.decode(result.embed(nets), nets).weights
    same = torch.isclose(back, nets.weights, atol=1e-4)
    learned_rows = {name: bool(own.all()) for name, own in nets.layout.unflatten(same).items()}
    lossy = {block.layer for block in result.tokens.blocks if block.columns // block.rows >= 24}
    assert lossy
    assert len(lossy) < len(result.tokens.layers)
    for layer, name in enumerate(result.tokens.layers):
        assert learned_rows[name] == (layer not in lossy)
    z, pca = result.embed(nets), layer_pca(nets.split((0.9, 0.1), SMALL.seed)[0], 24).embed(nets)
    for layer in range(len(result.tokens.layers)):  # and the encoder says something in every layer
        here = result.tokens.rows[:, 0] == layer
        assert (z[:, here] - pca[:, here]).abs().max() > 1e-3


def test_models_are_held_out_whole(nets):
    run = run_of(nets, held_out=0.2)
    assert len(run.weights) == 48
    kept, held_out = nets.split((0.8, 0.2), SMALL.seed)
    assert not set(kept.facts["model"]) & set(held_out.facts["model"])
    torch.testing.assert_close(run.standardised.decode(run.held_out), held_out.weights)
    assert torch.equal(run.weights, kept.weights)
    torch.testing.assert_close(run.standardised.mean, sane_training.standardise(kept, run.standardised.tokens).mean)


def test_latents_and_networks_have_their_shapes(nets, trained):
    z = trained.embed(nets)
    assert z.shape == (60, 32, 6)
    torch.testing.assert_close(trained.mean(nets), z.mean(1))
    born = trained.decode(z[:3])
    assert len(born) == 3
    assert (born.facts["parent"] == -1).all()
    assert evaluation.logits(born, networks.example("cnn-tiny")).shape == (3, 1, 10)


@pytest.mark.parametrize(
    "changes", [{}, {"linear": False, "pack": 2, "width": 60, "erase": 0.1, "window": 9, "halo": 2}]
)
def test_an_interrupted_run_goes_on_to_the_same_result(nets, monkeypatch, changes):
    config = replace(SMALL, **changes)
    whole = train(nets, config)
    chunk, calls = sane_training.Run.train_chunk, []

    def interrupted(run):
        calls.append(run.iteration)
        if len(calls) == 2:
            raise KeyboardInterrupt
        chunk(run)

    monkeypatch.setattr(training, "KEEP_EVERY", -1.0)
    monkeypatch.setattr(sane_training.Run, "train_chunk", interrupted)
    early = train(nets, config, keep=True)
    assert not early.finished
    assert early.history["iteration"] == [0, 50]
    assert early.embed(nets).isfinite().all()
    rest = train(nets, config, keep=True)
    assert rest.finished
    assert same(rest, whole)
    assert calls == [0, 50, 50, 100]
    for name in ("iteration", "loss", "reconstruction", "contrast", "validation_loss"):
        assert rest.history[name][1:] == whole.history[name][1:]
    assert same(train(nets, config, keep=True), whole)
    assert len(calls) == 4  # at once


def test_seeds_repeat(nets):
    one, two, other = (train(nets, replace(SMALL, iterations=10, seed=seed)) for seed in (0, 0, 1))
    assert same(one, two)
    assert not same(one, other)


def test_another_architecture_of_the_same_token_width():
    source, anchors = made("mlp-9-8-5"), made("mlp-9-8-8-5", 3)  # rows of 10 numbers at most
    result = train(source, replace(SMALL, window=64, iterations=20))
    moved = result.transferred(anchors)
    assert moved.tokens.layout == anchors.layout
    assert same(moved, result)
    z = moved.embed(anchors)
    assert z.shape == (3, 8 + 8 + 5, 6)
    assert len(moved.decode(z, anchors)) == 3
    assert result.embed(source).shape == (60, 8 + 5, 6)  # as before


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "x"}, "target='x'"),
        ({"decode": "second"}, "decode='second'"),
        ({"dim": 25}, "dim=25 is not a multiple of heads=2"),
        ({"window": 16, "halo": 8}, "window=16, halo=8: expected a window wider than both"),
        ({"erase": 1.0}, "erase=1.0"),
        ({"held_out": 0.0}, "held_out=0.0"),
        ({"batch": 1}, "batch=1"),
        ({"width": 0}, "width=0, pack=8: expected at least 1"),
        ({"lr": 1e30, "clip": 1e30, "iterations": 50}, "training diverged; use a lr below"),
    ],
)
def test_settings_that_cannot_be(nets, changes, message):
    with pytest.raises(ValueError, match=message):
        train(nets, replace(SMALL, **changes))


def test_zoos_that_cannot_be_trained_on(nets):
    with pytest.raises(ValueError, match="1 models are too few for 2 parts"):
        train(nets.filter([0]), SMALL)
    own = zoo.Zoo(nets.weights, nets.layout, nets.facts, "package.module:function", {})
    with pytest.raises(ValueError, match="pass an example x"):
        train(own, SMALL)


def test_networks_and_latents_that_do_not_fit(nets, trained):
    with pytest.raises(ValueError, match="another architecture"):
        trained.embed(made("mlp-9-8-5", 2))
    with pytest.raises(ValueError, match=r"z: shape \(2, 31, 6\), expected \(n, 32, 6\)"):
        trained.decode(torch.zeros(2, 31, 6))
    with pytest.raises(ValueError, match="like: 60 networks for 2"):
        trained.decode(torch.zeros(2, 32, 6), nets)


def test_presets(nets):
    paper = preset("paper", nets, lr=3e-4)
    assert (paper.dim, paper.z, paper.lr, paper.iterations) == (1024, 128, 3e-4, 150)
    assert preset("ours", nets, z=48) == Config(z=48)
    with pytest.raises(ValueError, match="preset='ous'"):
        preset("ous", nets)

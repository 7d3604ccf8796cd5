"""Laws of the pictures of latents: what is drawn are the layout's own rows, the walk's and the curves' own numbers."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_layer_pca import made

from wsnotebook import plots
from wsnotebook.methods.layer_pca import layer_pca
from wsnotebook.methods.tokens import tokens
from wsnotebook.plots import latent as pictures
from wsnotebook.plots.flow import filter_strip
from wsnotebook.plots.latent import PADDING, PAINTS, Landmarks, Walk
from wsnotebook.plots.zoo import Column


@pytest.fixture(scope="module")
def nets():
    return made(n=12)


def images(axes):
    return [image.get_array() for image in axes.images]


# ---- figure 1: tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pack": 8}, {"width": 10}, {"pack": 3, "width": 80}])
def test_each_cell_of_a_token_has_its_layers_colour_or_is_padding(nets, options):
    of = tokens(nets.layout, **options)
    figure = plots.token_layout(of)
    rows, cells = figure.axes
    (cut,) = images(cells)
    assert cut.shape == (len(of), of.width, 3)
    padded = (cut == to_rgb(PADDING)).all(2)
    np.testing.assert_array_equal(padded, ~of.mask.numpy())
    for token, (_, layer, _) in enumerate(of.positions.tolist()):
        row_of_weights = of.encode(nets.layout.tensor_index()[None].float())[0, token]
        own = nets.layout.names.index(of.layers[layer])
        real = cut[token][~padded[token]]
        assert int(row_of_weights[0]) == own
        strong, pale = PAINTS[layer % len(PAINTS)], 0.4 + 0.6 * PAINTS[layer % len(PAINTS)]
        assert (np.isclose(real, strong).all(1) | np.isclose(real, pale).all(1)).all()
    whole, stripe = images(rows)
    assert len(whole) == len(stripe) == len(of.rows)
    coloured = (whole != 1).any(2).sum(1)
    sizes = [block.columns // block.rows for block in of.blocks for _ in range(len(block.tokens) * block.rows)]
    assert sorted(coloured) == sorted(sizes)
    np.testing.assert_allclose(stripe[:, 0], PAINTS[of.rows[:, 0] % len(PAINTS)])
    for row, paint in zip(whole, stripe[:, 0], strict=True):
        assert (np.isclose(row, paint) | (row == 1)).all()
    real = 100 * int(of.mask.sum()) / of.mask.numel()
    assert f"{len(of)} tokens of {of.width}: {real:.0f} % weights" in figure.get_suptitle()


def test_rows_that_share_a_token_alternate(nets):
    of = tokens(nets.layout, pack=8)
    (cut,) = images(plots.token_layout(of).axes[1])
    block = max(of.blocks, key=lambda block: block.rows)
    own = cut[block.tokens[0], : block.columns].reshape(block.rows, -1, 3)
    assert block.rows > 1
    for row, after in zip(own, own[1:], strict=False):
        assert (row == row[0]).all()
        assert (row[0] != after[0]).any()


def test_an_embedders_network_goes_there_and_back(nets):
    def weights_of(embedder):
        rows, _, latents, decoded = plots.token_layout(embedder).axes
        return images(rows)[0], images(latents)[0], images(decoded)[0]

    exact, lossy = layer_pca(nets, 40), layer_pca(nets, 1)
    before, latents, after = weights_of(exact)
    np.testing.assert_allclose(before, after, atol=0.02)
    z = exact.embed(nets.filter([0]))[0].numpy()
    assert latents.shape == (*z.shape, 3)
    strong = np.abs(z) > 0.2 * np.abs(z).max()
    np.testing.assert_array_equal((latents[..., 0] > latents[..., 2])[strong], z[strong] > 0)
    before, _, after = weights_of(lossy)
    assert np.abs(before - after).max() > 0.2


def test_positions_are_named_as_far_as_there_is_room(nets):
    for options in ({}, {"pack": 8}):
        of = tokens(nets.layout, **options)
        ticks = plots.token_layout(of).axes[1].get_yticklabels()
        every = -(-len(of) // pictures.NAMED)
        assert [t.get_text() for t in ticks] == [", ".join(map(str, p)) for p in of.positions[::every].tolist()]


def test_many_layers_share_a_short_legend():
    (legend,) = plots.token_layout(tokens(made("resnet-20", 1).layout)).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == pictures.NAMED + 1
    assert names[-1] == "padding"
    assert names[-2].startswith("and ")


# ---- a place of a walk -----------------------------------------------------------------------------------------------


def walk(places=5, classes=3):
    generator = np.random.default_rng(0)
    confusion = generator.integers(0, 9, (places, classes, classes))
    return Walk(
        direction="axis 1",
        unit="standard deviations",
        far=np.linspace(-2, 2, places),
        places=generator.normal(size=(places, 2)),
        accuracy=100 * np.trace(confusion, axis1=1, axis2=2) / confusion.sum((1, 2)),
        own=55.0,
        predicted=np.zeros(places),
        confusion=confusion,
        distance=np.ones(places),
        nearest=np.zeros(places, int),
    )


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("many", [0, 3])
def test_a_frame_shows_the_walk_at_its_place(k, many):
    landmarks = Landmarks(
        np.random.default_rng(1).normal(size=(9, 2)), ("across", "up"), Column(np.arange(9.0), "fact")
    )
    strips = {f"picture {i}": filter_strip(np.ones((2, 3, 4)) * i, 2.0) for i in range(many)}
    figure = plots.latent_frame(walk(), k, landmarks, strips)
    plane, curve, matrix, *rest = figure.axes
    np.testing.assert_allclose(plane.collections[0].get_offsets(), landmarks.places)
    way, start, here = (line.get_xydata() for line in plane.lines)
    np.testing.assert_allclose(way, walk().places)
    np.testing.assert_allclose(start, walk().places[[2]])
    np.testing.assert_allclose(here, walk().places[[k]])
    own, accuracy, now = curve.lines
    assert set(own.get_ydata()) == {55.0}
    np.testing.assert_allclose(accuracy.get_xydata(), np.column_stack([walk().far, walk().accuracy]))
    np.testing.assert_allclose(now.get_xydata(), [[walk().far[k], walk().accuracy[k]]])
    numbers = {text.get_position(): int(text.get_text()) for text in matrix.texts}
    for label, row in enumerate(walk().confusion[k]):
        for prediction, count in enumerate(row):
            assert numbers.get((prediction, label), 0) == count
    assert [axes.get_title("left") for axes in rest if axes.images] == list(strips)
    assert (
        f"axis 1, {walk().far[k]:+.2g}: {walk().accuracy[k]:.1f} % (the start, decoded, {walk().accuracy[2]:.1f} %)"
        == (figure.get_suptitle())
    )


def test_no_numbers_on_a_large_confusion_matrix():
    landmarks = Landmarks(np.zeros((2, 2)), ("across", "up"), Column(np.arange(2.0), "fact"))
    figure = plots.latent_frame(walk(classes=20), 0, landmarks, {})
    assert not figure.axes[2].texts


def test_a_confusion_picture_is_darker_where_there_is_more():
    counts = np.array([[9, 1], [0, 4]])
    shade = np.asarray(pictures.confusion_picture(counts).convert("L")).astype(int)
    assert (np.argsort(shade.ravel()) == np.argsort(-counts.ravel())).all()
    empty = np.asarray(pictures.confusion_picture(np.zeros((2, 2), int)).convert("L"))
    assert (empty == shade.max()).all()


def test_large_layers_are_thinned_evenly():
    weights = np.linspace(-1, 1, 100 * 784).reshape(100, 784)
    image = pictures.weight_picture(weights, 1.0)
    assert image.size == (256, 64)
    shade = np.asarray(image.convert("RGB")).astype(int)
    assert shade[0, 0, 2] > shade[0, 0, 0], "the first is blue"
    assert shade[-1, -1, 0] > shade[-1, -1, 2], "the last red"
    small = pictures.weight_picture(weights[:5, :7], 1.0)
    assert small.size == (7, 5)


# ---- figure 3: samples fine-tuned ------------------------------------------------------------------------------------

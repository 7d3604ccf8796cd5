"""Laws of the pictures: what is drawn are the result's numbers, and the same result gives the same bytes."""

import functools
import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import StepPatch
from PIL import Image

from wsnotebook import datasets, networks, plots
from wsnotebook.methods import soft_weight_sharing as sws
from wsnotebook.plots import common, mixture

EPOCHS = 4


@functools.cache
def tiny_run():
    """A real retraining of a small network on the digits, a second long: its mixture moves, and its spike shrinks."""
    config = sws.Config(
        components=5, tau=0.03, init_sigma=0.1, lr_weights=2e-3, lr_means=1e-3, lr_log_variances=5e-2, epochs=EPOCHS,
        merge=0.15, assign="validation", train_rest=True,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="had not condensed"):  # it is too short for that
        return sws.compress(networks.build("mlp-64-32-10"), datasets.load("digits"), config)


@pytest.fixture(scope="module")
def result():
    return tiny_run()


def thinned(result, keep=7):
    """The result as if only every 7th weight of the first tensor had been followed."""
    first = result.sample_layer == 0
    chosen = ~first | (torch.arange(len(first)) % keep == 0)
    return replace(
        result, sample=result.sample[chosen], sample_layer=result.sample_layer[chosen], trace=result.trace[:, chosen]
    )


def save(figure, format="png"):
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, metadata={"Software": None} if format == "png" else {"Date": None})
    return buffer.getvalue()


# ---- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", range(EPOCHS + 1))
def test_every_weight_is_in_the_histogram(result, epoch):
    f = plots.frame(result, epoch)
    assert f.counts.sum() == result.layout.d
    middle = np.argmin(np.abs(f.edges[:-1] + f.edges[1:]))
    inside = (result.trace[epoch] >= f.edges[middle]) & (result.trace[epoch] < f.edges[middle + 1])
    assert f.counts[middle] == inside.sum()
    assert f.counts.max() <= plots.top(result)


def test_a_followed_weight_stands_for_those_that_are_not(result):
    few = thinned(result)
    f = plots.frame(few)
    assert len(f.after) < result.layout.d
    assert f.counts.sum() == pytest.approx(result.layout.d)
    assert plots.frame(few, layer=result.layout.names[0]).counts.sum() == pytest.approx(result.layout.sizes[0])
    assert f.spike_percent == pytest.approx(plots.frame(result).spike_percent, abs=5)


def test_a_layer_shows_its_own_weights(result):
    f = plots.frame(result, 2, result.layout.names[1])
    np.testing.assert_array_equal(f.after, result.trace[2][result.sample_layer == 1].double())
    np.testing.assert_array_equal(f.before, result.trace[0][result.sample_layer == 1].double())
    assert f.counts.sum() == result.layout.sizes[1]


def test_curves_are_the_density_averaged_over_a_bin(result):
    f = plots.frame(result, 0)  # components are wide: the average is close to the value in the middle
    density = result.mixtures[0].density(torch.from_numpy(f.grid)).numpy()
    np.testing.assert_allclose(f.components.sum(0), result.layout.d * f.width * density, rtol=0.01)
    single = f.pis[0] * np.exp(-0.5 * (f.grid / f.sigmas[0]) ** 2) / f.sigmas[0] / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(f.components[0], result.layout.d * f.width * single, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("sigma", [1e-1, 1e-3, 1e-5])
def test_curves_hold_all_weights_however_narrow_a_component_is(result, sigma):
    mixture = sws.Mixture(torch.tensor([0.0, 0.1]).double(), torch.full((2,), sigma).double(), torch.tensor([0.9, 0.1]))
    f = plots.frame(replace(result, mixtures=(*result.mixtures[:-1], mixture)))
    total = np.trapezoid(f.components.sum(0), f.grid) / f.width
    assert total == pytest.approx(result.layout.d, rel=0.02)
    assert f.components.max() <= result.layout.d


def test_axes_are_the_same_at_every_epoch(result):
    frames = [plots.frame(result, epoch) for epoch in range(EPOCHS + 1)]
    for f in frames:
        np.testing.assert_array_equal(f.edges, frames[0].edges)
        assert np.abs(f.after).max() < f.limit
        assert max(f.counts.max(), f.components.sum(0).max()) <= plots.top(result) * 1.001


def test_the_share_in_the_spike_is_that_of_its_band(result):
    sigma = float(result.mixtures[-1].sigmas[0])
    assert plots.frame(result).spike_percent == pytest.approx(
        100 * (result.trace[-1].abs() <= 2 * sigma).double().mean()
    )


@pytest.mark.parametrize("function", [plots.frame, plots.before_after, plots.histogram, plots.mixture_frame])
def test_an_epoch_or_a_layer_that_is_not_there(result, function):
    with pytest.raises(ValueError, match=rf"epoch={EPOCHS + 1}: the result has epochs 0 to {EPOCHS}"):
        function(result, EPOCHS + 1)
    with pytest.raises(ValueError, match=f"layer='fc9': the clustered tensors are {result.layout.names[0]}"):
        function(result, -1, "fc9")


# ---- soft weight-sharing -------------------------------------------------------------------------------------------


def test_dynamics_follow_the_means(result):
    axes = plots.mixture_dynamics(result).axes[0]
    lines = [part for part in axes.collections if isinstance(part, LineCollection)]
    assert len(lines) == len(result.mixtures[0].means)
    drawn = sorted(tuple(segment[1][1] for segment in line.get_segments()) for line in lines)
    means = torch.stack([mixture.means for mixture in result.mixtures[1:]])
    np.testing.assert_allclose(drawn, sorted(map(tuple, means.T.tolist())))
    ticks = [line.get_ydata()[0] for line in axes.lines]
    assert sorted(ticks) == sorted(result.mixture.means.tolist())


def test_a_layer_of_its_own_mixture_is_drawn_with_it(result):
    other = tuple(replace(m, means=m.means / 2) for m in result.mixtures)
    own = replace(result, layer_mixtures={"fc2.weight": other})
    np.testing.assert_array_equal(plots.frame(own, 1, "fc2.weight").means, other[1].means)
    np.testing.assert_array_equal(plots.frame(own, 1).means, result.mixtures[1].means)
    first, second = (plots.mixture_dynamics(own, layer).axes[0] for layer in (None, "fc2.weight"))
    ends = [axes.collections[-1].get_segments()[-1][-1][1] for axes in (first, second)]
    assert ends == pytest.approx([0, 0])  # the spike
    ends = [sum(abs(c.get_segments()[-1][-1][1]) for c in axes.collections[1::2]) for axes in (first, second)]
    assert ends[1] == pytest.approx(ends[0] / 2)
    with pytest.raises(ValueError, match="layer='conv'"):
        plots.mixture_dynamics(own, "conv")


def test_points_and_bands_of_before_and_after(result):
    axes = plots.before_after(result, 3).axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), result.trace[[0, 3]].T, rtol=1e-6)
    mixture = result.mixtures[3]
    bands = {band.get_label(): band for band in axes.patches}
    assert len(bands) == len(mixture.means)
    spike = bands["band 0"]
    assert (spike.get_y(), spike.get_height()) == pytest.approx(
        (-2 * float(mixture.sigmas[0]), 4 * float(mixture.sigmas[0]))
    )
    assert np.argmax(spike.get_facecolor()[:3]) == 2, "the spike is blue"
    assert axes.get_xlim() == axes.get_ylim()


def test_histogram_is_drawn_on_both_scales(result):
    left, right = plots.histogram(result, 2).axes
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    f = plots.frame(result, 2)
    for axes in (left, right):
        (bars,) = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        np.testing.assert_array_equal(bars.get_data().values, f.counts)
        curves = {line.get_label(): line for line in axes.lines}
        np.testing.assert_array_equal(curves["mixture"].get_ydata(), f.components.sum(0))
        np.testing.assert_array_equal(curves["component 0"].get_ydata(), f.components[0])
        assert curves["component 0"].get_color() == common.SPIKE
        assert curves["component 1"].get_color() == common.OTHER


def test_mixture_frame_is_histogram_and_scatter(result):
    left, right = plots.mixture_frame(result, 1, result.layout.names[0]).axes
    assert left.get_yscale() == "log"
    assert plots.mixture_frame(result, 1, log=False).axes[0].get_yscale() == "linear"
    assert left.patches[0].get_data().values.sum() == result.layout.sizes[0]
    assert len(right.collections[0].get_offsets()) == result.layout.sizes[0]


def test_layer_sizes_are_the_accounts(result):
    figure = plots.layer_sizes(result.compressed.sizes)
    left, right = figure.axes
    layers = result.compressed.sizes.layers
    assert [bar.get_width() for bar in left.patches] == pytest.approx([100 * l.nonzeros / l.weights for l in layers])
    widths = np.reshape([bar.get_width() for bar in right.patches], (4, len(layers)))
    np.testing.assert_allclose(widths.sum(0), [layer.bits / layer.weights for layer in layers])
    np.testing.assert_allclose(widths[2], [layer.value_bits / layer.weights for layer in layers])
    assert f"{result.compressed.sizes.ratio:.1f} times smaller" in figure.get_suptitle()


def test_the_movie_has_a_frame_an_epoch(result, tmp_path):
    path = plots.animate(result, tmp_path / "mixture.gif", fps=4)
    with Image.open(path) as movie:
        assert movie.n_frames == EPOCHS + 1
        durations = []
        for i in range(movie.n_frames):
            movie.seek(i)
            durations.append(movie.info["duration"])
        assert movie.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert durations == [250] * EPOCHS + [2000]
    assert path.stat().st_size < 2_000_000
    again = plots.animate(result, tmp_path / "again.gif", fps=4)
    assert again.read_bytes() == path.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"mixture.gif", "again.gif"}


def test_a_long_run_gives_a_short_movie(result, tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "GIF_FRAMES", 3)
    with Image.open(plots.animate(result, tmp_path / "mixture.gif")) as movie:
        assert movie.n_frames == 3


def test_a_movie_that_cannot_be_written(result, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        plots.animate(result, tmp_path / "file" / "mixture.gif")
    assert (tmp_path / "file").read_text() == "not a folder"


# ---- any network ---------------------------------------------------------------------------------------------------


def curves_of(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()), line.get_color()) for line in axes.lines}


def test_curves_of_one_run(result):
    history = result.history
    left, right = plots.training_curves(history).axes
    drawn = curves_of(left)
    assert drawn["training"][:2] == (history["epoch"], history["loss"])
    assert drawn["validation"][:2] == (history["epoch"], history["validation_loss"])
    assert right.lines[0].get_ydata().tolist() == history["validation_error"]
    assert {text.get_text() for text in left.texts} == {"training", "validation"}


def test_curves_of_several_runs_and_seeds(result):
    short = {name: values[:3] for name, values in result.history.items()}
    left, right = plots.training_curves({"one": result.history, "two": [short, result.history]}).axes
    assert [line.get_label() for line in left.lines] == ["one", "two", "two"]
    colours = [line.get_color() for line in right.lines]
    assert colours[0] != colours[1] == colours[2]
    assert right.lines[1].get_ydata().tolist() == short["validation_error"]
    assert {text.get_text() for text in right.texts} == {"one", "two"}


def test_curves_over_decades_are_logarithmic():
    history = {
        "epoch": [0, 1, 2],
        "loss": [2.3, 0.2, 0.02],
        "validation_loss": [2.3, 0.3, 0.2],
        "validation_error": [9, 4, 3],
    }
    left, right = plots.training_curves(history).axes
    assert (left.get_yscale(), right.get_yscale()) == ("log", "linear")
    assert plots.training_curves(history | {"loss": [2.3, 0.2, 0.0]}).axes[0].get_yscale() == "linear", (
        "zero has no log"
    )


def test_no_curves():
    with pytest.raises(ValueError, match="runs is empty: pass a history"):
        plots.training_curves({})


def images_of(figure, rows):
    axes = [axes for axes in figure.axes if axes.images and axes.get_xticks().size == 0]
    return np.array([np.asarray(part.images[0].get_array()) for part in axes]).reshape(
        rows, -1, *axes[0].images[0].get_array().shape
    )


def test_filters_of_a_matrix_are_its_rows_as_images(result):
    name = result.layout.names[0]
    figure = plots.filters({"before": result.before, "quantised": result.compressed.state}, name, image_shape=(8, 8))
    drawn = images_of(figure, rows=2)
    before, after = result.before[name], result.compressed.state[name]
    order = before.norm(dim=1).argsort(descending=True)[:10]
    np.testing.assert_array_equal(drawn[0], before[order].reshape(-1, 8, 8))
    np.testing.assert_array_equal(drawn[1], after[order].reshape(-1, 8, 8))
    limits = {axes.images[0].get_clim() for axes in figure.axes if axes.images}
    (limit,) = limits
    assert limit[1] == -limit[0] == max(before[order].abs().max(), after[order].abs().max())
    assert [axes.get_title(loc="center") for axes in figure.axes[:10]] == [str(int(unit)) for unit in order]


def test_filters_of_a_kernel_are_averaged_over_its_inputs():
    state = networks.build("lenet-5-caffe").state_dict()
    name = next(name for name, tensor in state.items() if tensor.ndim == 4 and tensor.shape[1] > 1)
    drawn = images_of(plots.filters({"now": state}, name), rows=1)
    kernels = state[name].mean(1)
    order = kernels.flatten(1).norm(dim=1).argsort(descending=True)[:10]
    np.testing.assert_allclose(drawn[0], kernels[order], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fc9", (8, 8), "state 'now' has no tensor 'fc9'; it has fc1"),
        ("fc1.weight", None, r"fc1.weight has shape \(32, 64\) and image_shape=None: expected a kernel"),
        ("fc1.weight", (7, 8), r"image_shape=\(7, 8\)"),
        ("fc1.bias", (8, 8), r"fc1.bias has shape \(32,\)"),
    ],
)
def test_filters_that_cannot_be_shown(result, name, shape, message):
    with pytest.raises(ValueError, match=message):
        plots.filters({"now": result.after}, name, shape)


# ---- all of them ---------------------------------------------------------------------------------------------------

FIGURES = {
    "mixture_dynamics": plots.mixture_dynamics,
    "before_after": plots.before_after,
    "histogram": plots.histogram,
    "mixture_frame": plots.mixture_frame,
    "layer_sizes": lambda result: plots.layer_sizes(result.compressed.sizes),
    "filters": lambda result: plots.filters({"now": result.after}, result.layout.names[0], (8, 8)),
    "training_curves": lambda result: plots.training_curves(result.history),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_result_gives_the_same_bytes(result, name):
    for format in ("png", "svg"):
        with matplotlib.style.context(plots.STYLE):
            assert save(FIGURES[name](result), format) == save(FIGURES[name](result), format)


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled_and_settings_left_alone(result, name):
    settings = dict(matplotlib.rcParams)
    figure = FIGURES[name](result)
    assert dict(matplotlib.rcParams) == settings
    assert figure.get_figwidth() <= 7
    for axes in figure.axes:
        if name != "filters":
            assert axes.get_xlabel()
            assert axes.get_ylabel() or name == "layer_sizes"


def test_front_draws_every_point_once_and_the_reference_as_a_line():
    groups = {"a": [(10.0, 2.0), (20.0, 2.5)], "b": [(15.0, 3.0)]}
    figure = plots.front(groups, reference=("trained", 1.9), split="test")
    axes = figure.axes[0]
    *drawn, line = axes.lines
    assert {d.get_label(): list(zip(*d.get_data(), strict=True)) for d in drawn} == groups
    assert len({d.get_marker() for d in drawn}) == 2  # told apart without colour, too
    assert set(line.get_ydata()) == {1.9}
    assert "test error (%)" in axes.get_ylabel()
    assert axes.get_xlim()[0] == 0
    known = {"Han 2015": (40.0, 1.6)}
    both = plots.front(groups, reference=("trained", 1.9), split="test", published=known)
    assert len(both.axes[0].lines) == len(axes.lines) + 2  # the point, and its entry in the legend
    assert [text.get_text() for text in both.axes[0].texts] == ["Han 2015"]
    assert both.axes[0].get_xlim()[1] == pytest.approx(44)


def test_file_sizes_are_stacked_bars_of_their_parts():
    sizes = {
        "count": {"ids of the weights": 800.0, "codebooks, biases and all else": 64},
        "file": {"ids of the weights": 700.0, "header": 9},
    }
    axes = plots.file_sizes(sizes).axes[0]
    widths = np.reshape([bar.get_width() for bar in axes.patches], (3, 2))
    np.testing.assert_array_equal(widths.sum(0), [864, 709])
    assert [text.get_text().strip() for text in axes.texts] == ["864", "709"]
    assert axes.get_xlabel() == "bytes"

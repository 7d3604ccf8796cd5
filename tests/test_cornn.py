"""Laws of `cornn`: the formulas against published values, known optima and reference fits; regression end to end."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wsnotebook import cornn, datasets, evaluation, networks, plots, training, zoo
from wsnotebook.evaluation.scores import data_loss
from wsnotebook.methods import baselines, soft_weight_sharing

SAMPLES = sorted((Path(os.environ.get("WSNOTEBOOK_DATA", "")) / "cornn").glob("*.csv"))

# test mean square error of the constant, affine and quadratic fit, measured apart from this code, rounded
CONTROLS = {
    "ackley": (0.0637, 0.0638, 0.0373),
    "ackley-2": (0.0399, 0.0399, 0.0285),
    "ackley-3": (0.0366, 0.0366, 0.0283),
    "ackley-4": (0.1364, 0.1368, 0.0217),
    "adjiman": (0.2629, 0.0280, 0.0154),
    "alpine-1": (0.1642, 0.0983, 0.0963),
    "alpine-2": (0.1050, 0.1049, 0.1038),
    "bartels-conn": (0.1520, 0.1522, 1e-12),
    "beale": (0.0586, 0.0588, 0.0276),
    "bird": (0.0815, 0.0811, 0.0320),
    "bohachevsky-1": (0.2023, 0.2035, 5e-10),
    "bohachevsky-2": (0.2023, 0.2035, 1e-10),
    "booth": (0.1369, 0.0798, 8e-31),
    "brent": (0.1822, 0.1832, 9e-08),
    "brown": (0.1270, 0.1279, 0.0047),
    "bukin-6": (0.1896, 0.1028, 0.0432),
    "cross-in-tray": (0.0947, 0.0948, 0.0557),
    "deckkers-aarts": (0.1727, 0.1737, 3e-05),
    "drop-wave": (0.1053, 0.1054, 0.0757),
    "easom": (0.0019, 0.0019, 0.0019),
    "egg-crate": (0.1386, 0.1393, 0.0623),
    "egg-holder": (0.0941, 0.0939, 0.0939),
    "exponential": (0.2216, 0.2227, 0.0029),
    "goldstein-price": (0.0702, 0.0638, 0.0275),
    "griewank": (0.1802, 0.1812, 3e-05),
    "himmelblau": (0.0835, 0.0824, 0.0338),
    "holder-table": (0.0937, 0.0938, 0.0576),
    "keane": (0.0498, 0.0431, 0.0385),
    "leon": (0.1896, 0.0780, 0.0158),
    "levi-13": (0.1220, 0.1089, 0.0126),
    "matyas": (0.1484, 0.1492, 5e-31),
    "mccormick": (0.1274, 0.1232, 0.0010),
    "michalewicz": (0.1229, 0.1178, 0.1071),
    "periodic": (0.2364, 0.2366, 0.2330),
    "qing": (0.1829, 0.1839, 5e-31),
    "rastrigin": (0.1355, 0.1358, 0.0668),
    "ridge": (0.1940, 0.0397, 0.0024),
    "rosenbrock": (0.1390, 0.0686, 0.0147),
    "salomon": (0.1500, 0.1505, 0.0155),
    "schaffer-2": (0.0181, 0.0181, 0.0181),
    "schaffer-3": (0.0196, 0.0196, 0.0190),
    "schwefel-2-20": (0.1743, 0.1749, 0.0109),
    "schwefel-2-22": (0.2041, 0.2046, 0.0396),
    "schwefel-2-23": (0.0834, 0.0839, 0.0332),
    "shubert": (0.0140, 0.0140, 0.0140),
    "shubert-3": (0.0778, 0.0778, 0.0779),
    "sphere": (0.1821, 0.1832, 6e-31),
    "styblinski-tang": (0.0723, 0.0500, 0.0266),
    "sum-squares": (0.2023, 0.2035, 8e-31),
    "three-hump-camel": (0.1869, 0.1882, 0.0470),
    "xin-she-yang-2": (0.0850, 0.0851, 0.0736),
    "xin-she-yang-3": (0.0189, 0.0189, 0.0179),
    "xin-she-yang-4": (0.0552, 0.0553, 0.0414),
    "zakharov": (0.0940, 0.0460, 0.0096),
}

OPTIMA = [  # of the functions for which the samples have no file: x, y, value, from the literature or by hand
    ("ackley", 0, 0, 0),
    ("ackley-3", 0, -0.4, -200 * np.exp(-0.08) + 5 * np.exp(1 - np.sin(1.2))),
    ("alpine-2", 7.917, 7.917, 7.8856),
    ("bird", 4.70104, 3.15294, -106.764537),
    ("booth", 1, 3, 0),
    ("cross-in-tray", 1.3491, 1.3491, -2.06261),
    ("egg-holder", 512, 404.2319, -959.6407),
    ("goldstein-price", 0, -1, 399),  # 3 with the literature's 48 y
    ("griewank", 0, 0, 0),
    ("levi-13", 1, 1, 0),
    ("mccormick", -0.54719, -1.54719, -1.91322),
    ("michalewicz", 2.2029, 1.5708, -1.8013),
    ("ridge", -5, 0, -5),
    ("salomon", 0, 0, 0),
    ("schaffer-2", 0, 0, 0),
    ("schwefel-2-20", -3, 4, 7),
    ("schwefel-2-22", -3, 4, 19),
    ("schwefel-2-23", -1, 2, 1025),
    ("sphere", -3, 4, 25),
    ("three-hump-camel", 0, 0, 0),
    ("xin-she-yang-2", 0, np.pi**0.5, np.pi**0.5),
    ("xin-she-yang-4", 0, 0, -1),
]


@pytest.fixture(scope="module")
def table():
    return cornn.table()


# ---- the formulas ----


@pytest.mark.skipif(not SAMPLES, reason="WSNOTEBOOK_DATA does not name a folder with samples of CORNN's files")
def test_values_are_the_published_ones():
    by_title = {function.title: name for name, function in cornn.FUNCTIONS.items()}
    for file in SAMPLES:
        x, y, f = np.loadtxt(file, delimiter=",", skiprows=1).T
        name = by_title[file.stem]
        places = (low + (high - low) * u for (low, high), u in zip(cornn.FUNCTIONS[name].domain, unit(), strict=True))
        for seen, wanted in zip((*places, cornn.values(name)), (x, y, f), strict=True):
            np.testing.assert_allclose(seen[: len(f)], wanted, rtol=1e-9, atol=1e-12, err_msg=name)


def unit():
    return (cornn.design().T + 1) / 2


@pytest.mark.parametrize(("name", "x", "y", "value"), OPTIMA)
def test_known_values_of_the_functions(name, x, y, value):
    assert cornn.FUNCTIONS[name].formula(np.float64(x), np.float64(y)) == pytest.approx(value, rel=3e-5, abs=1e-12)


def test_every_function_is_finite_on_its_domain_with_its_edges_and_its_middle():
    for name, function in cornn.FUNCTIONS.items():
        x, y = np.meshgrid(*(np.linspace(low, high, 101) for low, high in function.domain))
        assert np.isfinite(function.formula(x, y)).all(), name  # a warning is an error here


def test_least_squares_on_every_function_gives_the_reference_errors(table):
    found = cornn.controls(table)
    assert table.names == tuple(CONTROLS)
    for column, (degree, errors) in enumerate(found.items()):
        wanted = torch.tensor([row[column] for row in CONTROLS.values()], dtype=torch.float64)
        unit = torch.where(wanted > 1e-4, 1e-4, 10.0 ** wanted.log10().floor())  # of the last digit given
        off = (errors - wanted).abs() / (0.51 * unit).clamp(min=1e-14)  # float32 targets: no fit is better than that
        assert off.max() <= 1, f"{degree}: {table.names[off.argmax()]}"


def test_controls_are_the_fits_of_float64_normal_equations():
    table = cornn.table(["bird", "egg-holder"])
    x, y = (torch.cat(parts).double() for parts in zip(table.train, table.validation, strict=True))
    for j in range(2):
        features = torch.cat([torch.ones(len(x), 1), x], 1)
        w = torch.linalg.solve(features.T @ features, features.T @ y[:, j])
        error = (table.test[0].double() @ w[1:] + w[0] - table.test[1][:, j]).square().mean()
        assert cornn.controls(table)["affine"][j].item() == pytest.approx(error.item(), rel=1e-9)
        mean_error = (table.test[1][:, j].double() - y[:, j].mean()).square().mean()
        assert cornn.controls(table)["constant"][j].item() == pytest.approx(mean_error.item(), rel=1e-9)


# ---- the data ----


def test_the_table_has_all_rows_once_in_float32(table):
    assert len(table.names) == 54
    parts = (table.train, table.validation, table.test)
    assert [(*x.shape, *y.shape) for x, y in parts] == [(n, 2, n, 54) for n in (3000, 750, 1250)]
    assert {t.dtype for part in parts for t in part} == {torch.float32}
    x = torch.cat([x for x, _ in parts])
    assert torch.equal(x, torch.from_numpy(cornn.design().astype(np.float32)))
    assert len(x.unique(dim=0)) == 5000


def test_scaled_targets_reach_both_ends_on_the_official_training_rows(table):
    y = torch.cat([table.train[1], table.validation[1]])
    assert (y.amin(0) == -1).all()
    assert (y.amax(0) == 1).all()
    assert table.test[1].isfinite().all()
    assert table.test[1].abs().max() < 1.2
    assert table.test[1].abs().max() > 1  # a test row may leave the interval: they do not decide the scale


def test_scaling_is_affine_in_the_values(table):
    for j in (0, 21, 53):
        y = torch.cat([table.train[1], table.validation[1], table.test[1]])[:, j].double().numpy()
        slope, shift = np.polyfit(values := cornn.values(table.names[j]), y, 1)
        assert slope > 0
        np.testing.assert_allclose(y, slope * values + shift, atol=1e-6)


def test_a_part_of_the_table_is_the_table_of_a_part(table):
    few = cornn.table(["zakharov", "ackley"])
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(few, part)[1], getattr(table, part)[1][:, [53, 0]])


def test_a_data_set_is_a_column_of_the_table(table):
    data = datasets.load("cornn-holder-table")
    j = table.names.index("holder-table")
    for part in ("train", "validation", "test"):
        (x, y), (all_x, all_y) = getattr(data, part), getattr(table, part)
        assert torch.equal(x, all_x)
        assert torch.equal(y, all_y[:, j : j + 1])
    assert (data.regression, data.outputs, data.classes, data.label) == (True, 1, (), "cornn-holder-table")
    assert data.checksum == datasets.load("cornn-holder-table").checksum != datasets.load("cornn-ackley").checksum
    assert data.to("cpu").regression


def test_classes_are_no_regression(digits):
    assert (digits.regression, digits.outputs) == (False, 10)


def test_wrong_names_are_answered_with_the_nearest():
    for ask in (cornn.values, lambda name: cornn.table([name])):
        with pytest.raises(ValueError, match="unknown CORNN function 'akley-2' .did you mean 'ackley-2'.*zakharov"):
            ask("akley-2")
    with pytest.raises(ValueError, match="unknown data set 'cornn-holdertable' .did you mean 'cornn-holder-table'"):
        datasets.load("cornn-holdertable")
    with pytest.raises(ValueError, match="names: none given"):
        cornn.table([])


# ---- regression ----


class Constant(nn.Module):
    """Predicts one number a column, whatever the row."""

    def __init__(self, *values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.values.expand(len(x), -1)


def test_the_score_of_a_regression_is_its_mean_square_error():
    y = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    score = evaluation.score(Constant(0.5, -1.0), (torch.zeros(5000, 3), y), batch=700)
    assert score.error is None
    wanted = ((y.double() - torch.tensor([0.5, -1.0])) ** 2).mean().item()
    assert score.loss == pytest.approx(wanted, rel=1e-6)
    assert data_loss(torch.zeros_like(y), y).item() == pytest.approx(y.double().square().mean().item(), rel=1e-6)


def test_targets_of_another_shape_than_the_outputs_are_refused():
    with pytest.raises(ValueError, match=r"outputs \(4, 1\) for targets \(4, 3\)"):
        evaluation.score(Constant(0.5), (torch.zeros(4, 2), torch.zeros(4, 3)))
    with pytest.raises(ValueError, match=r"outputs \(4, 1\) for targets \(4,\)"):
        evaluation.score(Constant(0.5), (torch.zeros(4, 2), torch.zeros(4)))


def test_a_trained_network_beats_the_affine_fit_where_that_beats_a_constant():
    data = datasets.load("cornn-adjiman")
    network = networks.build_for(data, "cornn-1-tanh", seed=1)
    config = training.Config(epochs=15, batch=64, lr=1e-2, keep="best", seed=1)
    result = training.train(network, data, config)
    network.load_state_dict(result.state)
    controls = cornn.controls(cornn.table(["adjiman"]))
    assert evaluation.score(network, data.test).loss < 0.7 * controls["affine"].item()
    history = result.history
    assert history["validation_error"] == [None] * 16
    assert evaluation.score(network, data.validation).loss == min(history["validation_loss"])
    assert history["loss"][-1] < 0.1 * history["loss"][0]


def test_a_kept_regression_is_not_trained_again(monkeypatch):
    data = datasets.load("cornn-ridge")
    network = networks.build_for(data, "cornn-1-relu")
    config = training.Config(epochs=2, batch=256)
    first = training.train(network, data, config, keep=True)
    monkeypatch.setattr(training, "minibatches", lambda *_: pytest.fail("trained again"))
    assert training.train(network, data, config, keep=True).history == first.history


def test_patience_counts_epochs_without_a_lower_loss():
    data = datasets.load("cornn-sphere")
    config = training.Config(epochs=9, lr=0.0, patience=2)
    assert training.train(networks.build("cornn-1-relu"), data, config).history["epoch"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("use", "call"),
    [
        ("soft weight-sharing", lambda n, d: soft_weight_sharing.compress(n, d, soft_weight_sharing.Config())),
        ("pruning", lambda n, d: baselines.prune(n, d, baselines.Config())),
        ("a zoo", lambda n, d: zoo.train("mlp-2-4-1", d, 2)),
    ],
)
def test_what_needs_classes_says_so(use, call):
    with pytest.raises(ValueError, match=f"cornn-ridge has numbers for targets, but {use} needs classes"):
        call(networks.build("mlp-2-4-1"), datasets.load("cornn-ridge"))


def test_a_regressions_curves_are_of_its_loss():
    history = {"epoch": [1, 2], "loss": [1.0, 0.5], "validation_loss": [0.9, 0.6], "validation_error": [None, None]}
    figure = plots.training_curves({"one": history})
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.9, 0.6]
    assert figure.axes[1].get_ylabel() == "validation loss (MSE)"

"""Perceptrons drawn from SWAT-NN's latents and beside them: their errors and distances by a plainer way."""

import pytest
import torch

from wsnotebook import cornn
from wsnotebook.comparisons import perceptron_samples
from wsnotebook.methods import latent_search, swat_nn
from wsnotebook.methods.mlp_fitting import Config
from wsnotebook.methods.mlp_matrix import canonical, to_rows


@pytest.fixture(scope="module")
def searched():
    swat = swat_nn.train(swat_nn.preset("ours", iterations=0, dim=24, heads=2))
    table, short = cornn.table(["sphere", "mccormick"]), Config(steps=20, batch=64)
    how = {"depths": (1, 2), "restarts": 2, "steps": 10, "candidates": 32, "tuned": 2, "budgets": (30, 15)}
    asked = latent_search.Config(**how, training=short, tuning=short)
    return swat, latent_search.search(latent_search.direct(swat.config.form), table, asked), table


def test_errors_are_those_of_the_networks_as_modules(searched):
    swat, found, table = searched
    made = perceptron_samples.compare(swat, found, "mccormick", table, 8, Config(steps=0), seed=3)
    first = made[0]
    rows = found.rows("mccormick")
    rows = rows[found.parts.depth[rows] == found.parts.depth[rows].mode().values]
    x, y = table.test[0].double(), table.test[1][:, 1].double()
    for i, row in enumerate(rows):
        outputs = found.zoo(row[None]).module(0).double()(x)[:, 0].detach()
        assert float(first.fvu[i]) == pytest.approx(
            float((outputs - y).square().mean() / y.var(correction=0)), rel=1e-4
        )
    for each in made:
        assert torch.equal(each.fvu, each.fitted), "without steps nothing changes"
        assert len(each.fvu) == (len(rows) if each.method in ("as searched", "SWAT-NN, reconstructed") else 8)
    with pytest.raises(ValueError, match="not searched"):
        perceptron_samples.compare(swat, found, "himmelblau", table, 8, Config(steps=0))


def test_training_helps_and_distances_are_to_the_nearest_other(searched):
    swat, found, table = searched
    made = {
        e.method: e for e in perceptron_samples.compare(swat, found, "sphere", table, 8, Config(steps=60, batch=64))
    }
    for each in made.values():
        assert each.fitted.median() <= each.fvu.median()
    rows = found.rows("sphere")
    own = found.parts.take(rows[found.parts.depth[rows] == found.parts.depth[rows].mode().values])
    numbers = to_rows(found.form, canonical(found.form, own)).flatten(1).double()
    unit = numbers.norm(dim=1).median()
    for i, row in enumerate(numbers):
        others = torch.cat([numbers[:i], numbers[i + 1 :]])
        nearest = float((others - row).norm(dim=1).min() / unit)
        assert float(made["as searched"].nearest[i]) == pytest.approx(nearest, abs=1e-6)

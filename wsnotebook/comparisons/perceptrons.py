"""Small perceptrons of many architectures, trained on CORNN functions: the networks that SWAT-NN's encoder can read.

They are zoos of one padded architecture, for `representations.compare`. Raw: units as they were drawn; aligned: in the
canonical order of `mlp_matrix`, which needs no reference. Their twins have other signs too, where that changes nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsnotebook.comparisons.representations import Twins
from wsnotebook.comparisons.ways import Networks, Representation
from wsnotebook.cornn import Table
from wsnotebook.methods.mlp_fitting import Config, errors, fit
from wsnotebook.methods.mlp_matrix import Form, Parts, canonical, concat, permuted, random_orders, to_rows
from wsnotebook.methods.mlp_modules import from_zoo, to_zoo
from wsnotebook.methods.swat_nn import Swat
from wsnotebook.zoo.value import Zoo


def trained(form: Form, start: Parts, table: Table, steps: Sequence[int], config: Config) -> Networks:
    """n plain networks, each trained on the table's only function for each of these numbers of steps.

    Facts: model, step, and fvu, the share of the test targets' variance that is left unexplained. Raises ValueError for
    a table of several functions.
    """
    if len(table.names) != 1:
        raise ValueError(f"table: functions {', '.join(table.names)}; expected one, whose errors can be compared")
    n = len(start.depth)
    train, validation, test = (
        (x, y[..., None].expand(-1, n, -1)) for x, y in (table.train, table.validation, table.test)
    )
    found = [fit(form, start, train, validation, replace(config, steps=k)).parts for k in steps]
    fvu = torch.cat([errors(form, parts, test) for parts in found]) / table.test[1].var(correction=0)
    facts = {"model": np.tile(np.arange(n), len(steps)), "step": np.repeat(steps, n), "fvu": fvu.cpu().numpy()}
    zoo = to_zoo(form, concat(found), **facts)
    return Networks(zoo, ordered(zoo))


def ordered(zoo: Zoo) -> Zoo:
    """The same functions, their units in canonical order."""
    form, parts = from_zoo(zoo)
    return to_zoo(form, canonical(form, parts), **zoo.facts)


def twins(networks: Networks, seed: int = 0) -> Twins:
    """Networks with their units shuffled, those of odd activations with random signs; and in canonical order again."""

    def moved(zoo: Zoo) -> Zoo:
        form, parts = from_zoo(zoo)
        orders, signs = random_orders(form, len(zoo), torch.Generator().manual_seed(seed))
        there = (moves.to(zoo.weights.device) for moves in (orders, signs))
        return to_zoo(form, permuted(form, parts, *there), **zoo.facts)

    shuffled = Networks(*map(moved, networks))
    started = time.process_time()
    again = ordered(shuffled.aligned)
    return Twins(networks, shuffled, again, (time.process_time() - started) / len(again))


def of_swat(method: str, model: Swat, parts: Sequence[str] = ("mean", "sequence")) -> list[Representation]:
    """SWAT-NN's latents, their mean or all of them; its encoder sees the canonical order, whatever it is given."""
    ways = {"mean": lambda z: z.mean(1), "sequence": lambda z: z.flatten(1)}

    def latents(part: str, zoo: Zoo) -> Tensor:
        return ways[part](model.embed(from_zoo(zoo)[1]))

    return [Representation(f"{method}, {part}", partial(latents, part), aligned=False) for part in parts]


def rows(zoo: Zoo) -> Tensor:
    """What SWAT-NN's encoder is given: weights, biases, activations and masks of every unit, (n, rows * columns)."""
    return to_rows(*from_zoo(zoo)).flatten(1)

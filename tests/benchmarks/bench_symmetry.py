"""Alignment in lock-step against one model after the other, side by side, with the permutations compared.

    python tests/benchmarks/bench_symmetry.py [mlp-zoo.safetensors ..]

Without files: 100 random MLPs of two widths. Straightforward: coordinate descent for one model at a time in float32
NumPy, every product anew at every visit, the same order of groups. Then a pair of ResNet-20 and a pair of ViTs, against
a loop over the same specification (for the ViTs over the MLP units; lock-step's time has the heads besides).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from measured import Curve, Row, compared, cpu_ms, curve, told
from scipy.optimize import linear_sum_assignment

from wsnotebook import networks, symmetry, zoo
from wsnotebook.layout import Layout
from wsnotebook.symmetry import matching
from wsnotebook.symmetry.alignment import matched
from wsnotebook.symmetry.matching import places, similarity
from wsnotebook.zoo.value import Zoo

PROTOTYPE = (
    "; the promise was a prototype's on trained networks, "
    "beside a straightforward form that took twice as long as this one"
)


def random_zoo(name: str, n: int) -> Zoo:
    models = [networks.build(name, seed=i) for i in range(n)]
    layout = Layout.of(models[0])
    weights = torch.stack([layout.flatten(model.state_dict()) for model in models]).detach()
    return Zoo(weights, layout, {"model": np.arange(n)}, name, {})


def improve(A, now):
    """The assignment that maximises the total of A, and whether it is better than `now`."""
    best = linear_sum_assignment(A, maximize=True)[1]
    units = np.arange(len(now))
    gain = A[units, best].astype(np.float64).sum() - A[units, now].astype(np.float64).sum()
    return best, gain > 1e-12 * abs(A[units, now].sum())


def straightforward_mlp(V, c, W, b, seed: int = 0):
    """One MLP's permutations, from weights and biases of the reference (V, c) and of the model (W, b), by layers."""
    p = [np.arange(W[0].shape[1]), *(np.arange(len(w)) for w in W)]
    generator, improved = np.random.default_rng(seed), True
    while improved:
        improved = False
        for i in generator.permutation(len(W) - 1):
            A = V[i] @ W[i][:, p[i]].T + np.outer(c[i], b[i]) + V[i + 1].T @ W[i + 1][p[i + 2]]
            best, better = improve(A, p[i + 1])
            if better:
                p[i + 1], improved = best, True
    return p[1:-1]


def straightforward(spec, movable, reference, state, seed: int = 0):
    """One network's permutations by the same rule, for any specification; state: {tensor: (1, *shape)}."""
    spots = places(spec, movable, list(state))
    p = {group: torch.arange(spec.groups[group].size)[None] for group in spots}
    generator, improved = np.random.default_rng(seed), True
    while improved:
        improved = False
        for i in generator.permutation(len(spots)):
            group = list(spots)[i]
            others = {g: order for g, order in p.items() if g != group}
            touched = spec.apply({place.tensor: state[place.tensor] for place in spots[group]}, others)
            A = similarity(spots[group], reference, touched)[0].numpy()
            best, better = improve(A, p[group][0].numpy())
            if better:
                p[group], improved = torch.from_numpy(best)[None], True
    return p


def one_by_one(models: Zoo):
    """An action that gives the permutations of each MLP to the first."""
    layers = len(models.layout.names) // 2
    state = {name: t.numpy() for name, t in models.layout.unflatten(models.weights).items()}
    W, b = ([state[f"fc{i + 1}.{kind}"] for i in range(layers)] for kind in ("weight", "bias"))
    V, c = [w[0] for w in W], [v[0] for v in b]
    return lambda: [straightforward_mlp(V, c, [w[k] for w in W], [v[k] for v in b]) for k in range(len(models))]


def lock_step(models: Zoo):
    """An action that gives the permutations of all models to the first, {group: (n, size)}."""
    spec = symmetry.specification(models.template(), networks.example(models.network))
    return lambda: matched(models.layout, spec, models.weights[0], models.weights, 0)[0]


def assignments_ms(action) -> float:
    """CPU milliseconds of an action that SciPy's assignments take."""
    spent = []

    def timed(*args, **options):
        found = []
        spent.append(cpu_ms(lambda: found.append(linear_sum_assignment(*args, **options))))
        return found[0]

    with mock.patch.object(matching, "linear_sum_assignment", timed):
        action()
    return sum(spent)


def mlps(models: Zoo, why: str = "", **told) -> Row:
    plain, ours = one_by_one(models), lock_step(models)
    note = f"{assignments_ms(ours):.0f} ms of ours are SciPy's assignments, which both formulations need{why}"

    def differing() -> float:
        """Share of the models whose permutations differ."""
        pairs = zip(plain(), zip(*ours().values(), strict=True), strict=True)
        return np.mean([any((a != b.numpy()).any() for a, b in zip(p, found, strict=True)) for p, found in pairs])

    return compared(
        "alignment", f"{len(models)} x {models.network} to one", plain, ours, difference=differing, note=note, **told
    )


def pair(name: str) -> Row:
    models = random_zoo(name, 2)
    spec = symmetry.specification(models.template(), networks.example(name))
    names = [n for n, kind in zip(models.layout.names, models.layout.kinds, strict=True) if kind != "statistic"]
    first, second = models.weights[0], models.weights[1:]
    reference, state = ({n: models.layout.unflatten(w)[n] for n in names} for w in (first, second))
    movable = {n for n, group in spec.groups.items() if not group.attention} - spec.streams

    def plain():
        return straightforward(spec, movable, reference, state)

    def ours():
        return matched(models.layout, spec, first, second, 0)[0]

    def differing() -> float:
        """Share of the groups whose permutations differ."""
        found = ours()
        return np.mean([not torch.equal(found[group], order) for group, order in plain().items()])

    return compared("alignment", f"a pair of {name}", plain, ours, difference=differing, repeats=5)


def rows() -> Iterator[Row]:
    yield mlps(random_zoo("mlp-784-32-32-10", 100), PROTOTYPE, least=3)
    yield mlps(random_zoo("mlp-784-128-128-10", 100), least=1.4, repeats=3)
    yield pair("resnet-20")
    yield pair("vit-small")


def curves() -> Iterator[Curve]:
    makers = {"lock-step": lock_step, "one by one": one_by_one}
    by_models = {name: lambda n, make=make: make(random_zoo("mlp-784-32-32-10", n)) for name, make in makers.items()}
    yield curve("alignment", "networks (784-32-32-10)", [2**k for k in range(2, 9)], by_models)
    by_width = {name: lambda w, make=make: make(random_zoo(f"mlp-784-{w}-{w}-10", 16)) for name, make in makers.items()}
    yield curve("alignment", "width (16 of 784-width-width-10)", [2**k for k in range(3, 9)], by_width)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files
    told((mlps(zoo.load(file)) for file in files) if files else rows())

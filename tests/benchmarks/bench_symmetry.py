"""Alignment in lock-step against one model after the other, side by side, with the permutations compared.

    python tests/benchmarks/bench_symmetry.py [mlp-zoo.safetensors ..]

Without files: 100 random MLPs of two widths. Straightforward: coordinate descent for one model at a time in float32
NumPy, every product anew at every visit, the same order of groups. Then a pair of ResNet-20 and a pair of ViTs, against
a loop over the same specification (for the ViTs over the MLP units; lock-step's time has the heads besides). CPU time
of one thread, median of five.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from wsnotebook import networks, symmetry, zoo
from wsnotebook.layout import Layout
from wsnotebook.symmetry.alignment import matched
from wsnotebook.symmetry.matching import places, similarity
from wsnotebook.zoo.value import Zoo


def random_zoo(name: str, n: int) -> Zoo:
    models = [networks.build(name, seed=i) for i in range(n)]
    layout = Layout.of(models[0])
    weights = torch.stack([layout.flatten(model.state_dict()) for model in models]).detach()
    return Zoo(weights, layout, {"model": np.arange(n)}, name, {})


def cpu_ms(action, repeats: int = 5):
    """(median CPU milliseconds, the last result) of an action."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        result = action()
        times.append(1e3 * (time.process_time() - started))
    return statistics.median(times), result


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


def compare_mlps(title: str, models: Zoo) -> None:
    layers = len(models.layout.names) // 2
    state = {name: t.numpy() for name, t in models.layout.unflatten(models.weights).items()}
    W, b = ([state[f"fc{i + 1}.{kind}"] for i in range(layers)] for kind in ("weight", "bias"))

    def one_by_one():
        V, c = [w[0] for w in W], [v[0] for v in b]
        return [straightforward_mlp(V, c, [w[k] for w in W], [v[k] for v in b]) for k in range(len(models))]

    spec = symmetry.specification(models.template(), networks.example(models.network))
    slow, expected = cpu_ms(one_by_one)
    fast, (found, _) = cpu_ms(lambda: matched(models.layout, spec, models.weights[0], models.weights, 0))
    whole, _ = cpu_ms(lambda: symmetry.align(models))
    same = sum(
        all((found[g][k].numpy() == p[i]).all() for i, g in enumerate(spec.groups)) for k, p in enumerate(expected)
    )
    print(
        f"{title}: one by one {slow:.0f} ms, lock-step {fast:.0f} ms ({slow / fast:.1f} x); "
        f"align() with its checks and measures {whole:.0f} ms; identical {same}/{len(models)}"
    )
    if same < len(models):
        sys.exit("the permutations differ")


def compare_pair(name: str) -> None:
    pair = random_zoo(name, 2)
    model = pair.template()
    tracing, spec = cpu_ms(lambda: symmetry.specification(model, networks.example(name)))
    names = [n for n, kind in zip(pair.layout.names, pair.layout.kinds, strict=True) if kind != "statistic"]
    reference, state = ({n: pair.layout.unflatten(w)[n] for n in names} for w in (pair.weights[0], pair.weights[1:]))
    movable = {n for n, group in spec.groups.items() if not group.attention} - spec.streams
    slow, expected = cpu_ms(lambda: straightforward(spec, movable, reference, state))
    fast, (found, _) = cpu_ms(lambda: matched(pair.layout, spec, pair.weights[0], pair.weights[1:], 0))
    whole, aligned = cpu_ms(lambda: symmetry.align(pair), repeats=3)
    same = all(torch.equal(found[g], expected[g]) for g in expected)
    print(
        f"{name} pair: specification {tracing:.0f} ms; loop {slow:.0f} ms, lock-step {fast:.0f} ms "
        f"({slow / fast:.1f} x), identical: {same}; align() {whole:.0f} ms, distance "
        f"{aligned.distance_before[1]:.2f} -> {aligned.distance_after[1]:.2f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files
    for file in files:
        models = zoo.load(file)
        compare_mlps(f"{len(models)} x {models.network} ({file.stem})", models)
    if not files:
        for name in ("mlp-784-32-32-10", "mlp-784-128-128-10"):
            compare_mlps(f"100 random {name}", random_zoo(name, 100))
    for name in ("resnet-20", "vit-small"):
        compare_pair(name)

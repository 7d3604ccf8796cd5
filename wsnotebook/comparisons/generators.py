"""The ways of making networks from a zoo that notebook 08 compares, each {setting: fit}.

fit(seed) trains a generator, kept in the cache folder, and returns (draw, CPU-seconds of its training); draw(n, seed)
returns networks. Those that learn nothing take no time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from wsnotebook.datasets import Dataset
from wsnotebook.layout import Layout
from wsnotebook.methods import controls, latent_sampling, sane, weight_flow
from wsnotebook.methods.closed_form_flow import ClosedForm
from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.tokens import Embedder
from wsnotebook.training import finished
from wsnotebook.zoo.value import Zoo

Draw = Callable[[int, int], Zoo]
Fit = Callable[[int], tuple[Draw, float]]
Ways = dict[str, dict[str, Fit]]  # {method: {setting: fit}}

IMAGES = 2_000  # training images, the first, that batch norm's statistics are found again by
ANCHORS = 100  # networks of the zoo, the first, that SANE samples around


def without_training(nets: Zoo) -> Ways:
    """Noise, interpolation, averages, densities and Gaussians of a zoo, and the closed-form flow to it."""
    width, n = float(nets.weights.std(0).mean()), len(nets)
    exact = cache(lambda a: ClosedForm(nets, path_noise=a))
    directions = cache(lambda k: coordinates(nets, k))

    def dial(named: str, draw: Callable, settings: Iterable[tuple]) -> dict[str, Fit]:
        """{setting: fit} of draw(*setting, number, seed)."""
        return {named.format(*c): lambda _, c=c: (partial(draw, *c), 0.0) for c in settings}

    def density(a: float, number: int, seed: int) -> Zoo:
        return exact(a).sample(number, seed=seed)

    def noise(a: float, number: int, seed: int) -> Zoo:
        return controls.noise(nets, number, a * width, seed)

    def gauss(k: int | None, a: float, r: float, number: int, seed: int) -> Zoo:
        return controls.gaussian_of(directions(k), number, a, r, seed)

    few = [k for k in (8, 64) if k < n - 1]
    whole = [(k, a, 0.0) for k in (*few, None) for a in (0.25, 0.7, 0.85, 1.0)]
    with_rest = [(k, a, r) for k in few for a in (0.7, 1.0) for r in (0.6, 0.8, 1.0)]
    weight_by_weight, shape = [(a,) for a in (0.25, 0.5, 0.6, 0.7, 0.8, 1.0)], "{} components, {} as wide, remainder {}"
    ways = {
        "closed-form flow": dial("path noise {}", density, [(1e-3,)]),
        "noise, small": dial("{} of the spread", noise, [(0.1,)]),
        "noise, large": dial("{} of the spread", noise, [(0.3,), (0.6,), (0.9,), (1.2,)]),
        "interpolation": dial(
            "at {}", lambda t, m, s: controls.interpolations(nets, m, s, t), [(0.1,), (0.25,), (0.5,)]
        ),
        "averages": dial(
            "of {}", lambda k, m, s: controls.averages(nets, m, k, s), [(k,) for k in (2, 4, 16) if k <= n]
        ),
        "kernel density": dial("path noise {}", density, [(0.3,), (0.6,), (0.9,)]),
        "Gaussian, weight by weight": dial(
            "{} as wide", lambda a, m, s: controls.gaussian(nets, m, s, a), weight_by_weight
        ),
        "Gaussian of PCA": dial(shape, gauss, whole),
        "Gaussian of PCA, with remainder": dial(shape, gauss, with_rest),
    }
    return {method: dials for method, dials in ways.items() if dials}  # a small zoo has too few for some


def flows(nets: Zoo, configs: Mapping[str, weight_flow.Config], remainders: Sequence[float] = (0.0,)) -> dict[str, Fit]:
    """Weight flows by these configs, to whose seeds the generator's is added."""
    trained = cache(lambda name, seed: finished(weight_flow.train(nets, _seeded(configs[name], seed), keep=True)))

    def fit(name: str, r: float, seed: int) -> tuple[Draw, float]:
        flow = trained(name, seed)
        return lambda n, s: flow.sample(n, seed=s, remainder=r), flow.history["cpu_seconds"][-1]

    named = "{}" if len(remainders) == 1 else "{}, remainder {}"
    return {named.format(name, r): partial(fit, name, r) for name in configs for r in remainders}


def _seeded(config, seed: int):
    return replace(config, seed=config.seed + seed)


def of_sane(
    nets: Zoo,
    data: Dataset,
    config: sane.Config,
    configs: Mapping[str, weight_flow.Config],
    remainders: Sequence[float] = (0.0,),
) -> Ways:
    """SANE's samples in every mode, around the zoo's first hundred networks; weight flows on all latents, as `flows`.

    Subsampled: the best on validation images of four times as many; bootstrapped: of twice as many, three times.
    """
    x = data.train[0][:IMAGES].cpu()
    anchors = nets.filter(range(min(ANCHORS, len(nets))))
    model = cache(lambda seed: finished(sane.train(nets, _seeded(config, seed), x=x[:1], keep=True)))

    def dial(draw: Callable, settings: Sequence[float]) -> dict[str, Fit]:
        """{setting: fit} of draw(model, bandwidth, number, seed)."""

        def fit(h: float, seed: int) -> tuple[Draw, float]:
            return partial(draw, model(seed), h), model(seed).history["cpu_seconds"][-1]

        return {f"bandwidth {h}": partial(fit, h) for h in settings}

    def sample(mode: str, of: sane.Sane, h: float, number: int, seed: int) -> Zoo:
        return latent_sampling.sample(of, anchors, number, mode, bandwidth=h, x=x, seed=seed)

    def subsampled(of: sane.Sane, h: float, number: int, seed: int) -> Zoo:
        return latent_sampling.subsampled(sample("kde", of, h, 4 * number, seed), number, data.validation)

    def bootstrapped(of: sane.Sane, h: float, number: int, seed: int) -> Zoo:
        chosen = {"bandwidth": h, "x": x, "seed": seed}
        return latent_sampling.bootstrapped(of, anchors, 2 * number, number, data.validation, **chosen)

    in_latents = cache(lambda seed: flows(latents(model(seed), nets), configs, remainders))

    def on_latents(setting: str, seed: int) -> tuple[Draw, float]:
        of, (draw, seconds) = model(seed), in_latents(seed)[setting](seed)
        return lambda n, s: decoded(of, draw(n, s)), seconds + of.history["cpu_seconds"][-1]

    settings = {"kde": (0.1, 0.2, 0.5, 1.0), "public": (0.05, 0.1, 0.2), "tokens": (0.05,)}
    settings |= {"gaussian": (0.0,), "joint": (0.0,)}
    ways = {f"SANE, {mode}": dial(partial(sample, mode), hs) for mode, hs in settings.items()}
    ways |= {"SANE, subsampled": dial(subsampled, (0.2, 1.0)), "SANE, bootstrapped": dial(bootstrapped, (0.1, 0.2))}
    return ways | {
        "weight flow, in SANE's latents": {s: partial(on_latents, s) for s in flows(nets, configs, remainders)}
    }


def latents(embedder: Embedder, nets: Zoo) -> Zoo:
    """Networks' latents (n, r, z) as a zoo of n rows of r z numbers, which a weight flow can be trained on."""
    z = embedder.embed(nets)
    layout = Layout(("latents",), (tuple(z.shape[1:]),), ("weight",))
    facts = {name: nets.facts[name] for name in ("model",) if name in nets.facts}
    return Zoo(z.flatten(1), layout, facts, "latents", {})


def decoded(embedder: Embedder, rows: Zoo) -> Zoo:
    """The networks of latents that are rows of a zoo, as `latents` makes them."""
    return embedder.decode(rows.layout.unflatten(rows.weights)["latents"])

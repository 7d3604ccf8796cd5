"""What weights tell: properties of networks, read off features of their weights by small probes.

Features x are (n, f), a row a network. A probe is fitted to training models, its strength chosen on validation models,
and scored on test models; all snapshots of a model are in one part, and the parts are the same for all features.

    R2 = 1 - sum (y - y')^2 / sum (y - mean y)^2        tau: Kendall's, of the order of y' and y

Sources: s(W), Unterthiner et al. 2020, "Predicting neural network accuracy from weights"; probes of latents, Schuerholt
et al. 2024, "SANE". What we do differently from the public code: features are standardised, by training models alone;
quantiles are of weights, not of padded tokens; one decomposition serves every strength and target.
"""

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg, stats
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor

from wsnotebook.evaluation import interval, markdown, mean_and_half_width
from wsnotebook.layout import Layout
from wsnotebook.methods.tokens import Embedder, tokens
from wsnotebook.training import check_choice
from wsnotebook.zoo.value import Zoo

QUANTILES = (0, 0.25, 0.5, 0.75, 1)
STRENGTHS = np.logspace(6, -4, 31)  # of the ridge, on the sum of squares; where several do as well, the first
HIDDEN, EPOCHS, PATIENCE = 64, 200, 20  # of the MLP probe: units, passes over the data, and those without a gain
POOLED = ("mean", "layers", "all")  # of latents
SEEDS, SHARES = (0, 1, 2, 3, 4), (0.7, 0.15, 0.15)  # of the parts: training, validation, test


# ---- features ----------------------------------------------------------------------------------------------------


def features(zoo: Zoo, embedders: Mapping[str, Embedder] | None = None) -> dict[str, np.ndarray]:
    """All that a probe can look at, {name: (n, f)}: the weights W, s(W) in both ways, and what embedders make of them.

    Of each of embedders {name: embedder}: the mean latent, mean and deviation of every layer's, and all latents.
    Raises ValueError for networks of another architecture than the embedder's.
    """
    found = {"W": zoo.weights[:, zoo.layout.learned()].cpu().numpy()}
    found |= {"s(W)": weight_statistics(zoo), "s(W), tensors": weight_statistics(zoo, "tensor")}
    for name, embedder in (embedders or {}).items():
        z = embedder.embed(zoo)  # (n, r, z)
        found |= {f"{name}, {part}": pooled(embedder, z, part).cpu().numpy() for part in POOLED}
    return found


def pooled(embedder: Embedder, z: Tensor, part: str) -> Tensor:
    """Latents (n, r, z) as (n, f): their mean, the mean and deviation of every layer's, or all; part: of `POOLED`."""
    check_choice("part", part, POOLED)
    if part != "layers":
        return z.mean(1) if part == "mean" else z.flatten(1)
    layers = [z[:, rows] for rows in layer_rows(embedder)]
    return torch.cat([moment for own in layers for moment in (own.mean(1), own.std(1, correction=0))], 1)


def weight_statistics(zoo: Zoo, by: str = "layer") -> np.ndarray:
    """s(W), (n, 7 parts) float64: mean, variance and the QUANTILES of every part of the weights.

    by: layer (weights with their biases, as in SANE's table) | tensor (weights and biases apart, Unterthiner et al.).
    """
    check_choice("by", by, ("layer", "tensor"))
    return np.concatenate([_statistics(some, by) for some in zoo.blocks()])


def _statistics(zoo: Zoo, by: str) -> np.ndarray:
    zoo = zoo.to("cpu")  # numpy's quantiles
    if by == "layer":
        of = tokens(zoo.layout)  # whole rows, a block being a layer
        parts = np.split(of.entries(zoo.weights).numpy(), [block.first for block in of.blocks[1:]], axis=1)
    else:
        state = zoo.layout.unflatten(zoo.weights)
        learned = [name for name, kind in zip(zoo.layout.names, zoo.layout.kinds, strict=True) if kind != "statistic"]
        parts = [state[name].flatten(1).numpy() for name in learned]
    per_part = [(p.mean(1, dtype=float), p.var(1, dtype=float), *np.quantile(p, QUANTILES, axis=1)) for p in parts]
    return np.concatenate(per_part).T


def layer_rows(embedder: Embedder) -> list[Tensor]:
    """Which of the latents' rows are each layer's."""
    of = embedder.standardised.tokens
    return [torch.nonzero(of.rows[:, 0] == layer)[:, 0] for layer in range(len(of.layers))]


# ---- targets -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A fact that is to be predicted. Strings are categories."""

    fact: str
    log: bool = False  # its logarithm to base 10
    last: bool = False  # of each model the last snapshot alone: what differs within an epoch
    category: bool = False  # numbers are categories too

    def values(self, zoo: Zoo) -> np.ndarray:
        """(n,) float64 or strings. Raises ValueError when the zoo lacks the fact or it has no (logarithm's) value."""
        y = fact_of(zoo, self.fact)
        if y.dtype.kind not in "biuf" or self.category:
            return y.astype(str)
        y = y.astype(float)
        bad = ~np.isfinite(y) | (self.log & (y <= 0))
        if bad.any():
            wanted = "numbers above 0, to take their logarithm" if self.log else "finite numbers"
            raise ValueError(
                f"fact {self.fact!r} is {y[bad][0]:g} in {bad.sum()} of {len(y)} networks, expected {wanted}; leave "
                "these out of features and zoo (zoo.filter)"
            )
        return np.log10(y) if self.log else y


TARGETS = {
    "accuracy": Target("test_accuracy"),
    "accuracy, last snapshots": Target("test_accuracy", last=True),
    "gap": Target("gap"),
    "log step": Target("step", log=True),
    "log learning rate": Target("lr", log=True),
    "optimiser": Target("optimiser"),
    "activation": Target("activation"),
    "init": Target("init"),
}


def fact_of(zoo: Zoo, name: str) -> np.ndarray:
    """(n,) a fact. Raises ValueError when the zoo lacks it."""
    if name not in zoo.facts:
        raise ValueError(f"fact {name!r} is missing; this zoo has {', '.join(zoo.facts) or 'none'}")
    return zoo.facts[name]


def last_snapshots(zoo: Zoo) -> np.ndarray:
    """Rows of each model's last snapshot, unless it diverged later. Raises ValueError without fact "step"."""
    step = fact_of(zoo, "step").astype(float)
    number = zoo.facts.get("model", np.arange(len(zoo)))
    _, model = np.unique(number, return_inverse=True)
    last = np.full(len(zoo), -np.inf)  # of each model
    np.maximum.at(last, model, step)
    diverged = np.isin(number, zoo.provenance.get("diverged", []))  # by `zoo.train`: its rows end before its training
    return np.flatnonzero((step == last[model]) & ~diverged)


def split(zoo: Zoo, shares: Sequence[float] = SHARES, seed: int = 0) -> list[np.ndarray]:
    """The rows of the parts that `Zoo.split` makes. Raises ValueError as that does."""
    bare = _bare(zoo)
    return [part.facts["row"] for part in bare.derived(bare.weights, row=np.arange(len(zoo))).split(shares, seed)]


def _bare(zoo: Zoo) -> Zoo:
    """Its facts alone, so that no weights are copied."""
    return Zoo(zoo.weights[:, :0], Layout((), (), ()), zoo.facts, zoo.network, {})


# ---- probes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scaling:
    """Features of mean 0 and deviation 1, by training networks. A constant feature becomes 0 for these."""

    mean: np.ndarray  # (f,)
    deviation: np.ndarray  # (f,)

    @classmethod
    def of(cls, x: np.ndarray) -> "Scaling":
        mean, deviation = x.mean(0), x.std(0)
        return cls(mean, np.where(deviation > 1e-6 * np.abs(mean), deviation, 1))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.deviation


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear probe: of a number, or of k categories, the largest of k numbers."""

    coefficients: np.ndarray  # (f,) or (f, k): the gradient with respect to the features as they are given
    intercept: np.ndarray  # () or (k,)
    strength: float  # of the ridge, as scikit-learn's alpha on standardised features

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Features (n, f) -> numbers, or places of categories, (n,)."""
        y = x @ self.coefficients + self.intercept
        return y if y.ndim == 1 else y.argmax(1)


class Ridge:
    """Ridge regressions on the same features (n, f), whatever the target and the strength, by one decomposition.

    With s the standardised features, coefficients = basis diag(1 / (values + strength)) side y: basis is the
    eigenvectors of s^T s (f, f), or s^T times those of s s^T (n, n), whichever is smaller.
    """

    def __init__(self, x: np.ndarray, x_validation: np.ndarray):
        self.scaling = Scaling.of(x)
        s = self.scaling(x)
        if s.shape[1] <= len(s):
            self.values, self.basis = linalg.eigh(s.T @ s, driver="evd")
            self.side = (s @ self.basis).T  # (f, n)
        else:
            self.values, vectors = linalg.eigh(s @ s.T, driver="evd")
            self.basis, self.side = s.T @ vectors, vectors.T  # (f, n), (n, n)
        self.validation = self.scaling(x_validation) @ self.basis  # (m, min(n, f))

    def fit(self, y: np.ndarray, strength: float) -> Linear:
        """To a number (n,), or k numbers (n, k), of every network."""
        coefficients = self.basis @ ((self.side @ (y - y.mean(0))).T / (self.values + strength)).T
        coefficients = (coefficients.T / self.scaling.deviation).T
        return Linear(coefficients, y.mean(0) - self.scaling.mean @ coefficients, float(strength))

    def best(self, y: np.ndarray, y_validation: np.ndarray, k: int) -> Linear:
        """The one of STRENGTHS that does best on validation networks; k categories, or 0: a number."""
        aims = np.eye(k)[y] if k else y[:, None]  # (n, k) or (n, 1)
        side, errors = self.side @ (aims - aims.mean(0)), []
        for strength in STRENGTHS:
            predicted = self.validation @ (side / (self.values + strength)[:, None]) + aims.mean(0)
            errors.append(_error(y_validation, predicted.argmax(1) if k else predicted[:, 0], k))
        return self.fit(aims if k else y, STRENGTHS[np.argmin(errors)])


@dataclass(frozen=True, eq=False)
class Mlp:
    """A probe of one hidden layer."""

    scaling: Scaling
    network: MLPRegressor | MLPClassifier
    centre: float = 0.0  # mean of the number that is predicted
    unit: float = 1.0  # its deviation

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Features (n, f) -> numbers, or places of categories, (n,)."""
        y = self.network.predict(self.scaling(x))
        return y if y.dtype.kind == "i" else self.centre + self.unit * y


def mlp(x: np.ndarray, y: np.ndarray, x_validation: np.ndarray, y_validation: np.ndarray, k: int, seed: int) -> Mlp:
    """Trained by Adam, and kept as it was when it did best on validation networks; k categories, or 0: a number."""
    options = {"hidden_layer_sizes": HIDDEN, "learning_rate_init": 3e-3, "alpha": 1e-3, "random_state": seed}
    network = MLPClassifier(**options) if k else MLPRegressor(**options)
    unit = {} if k else {"centre": y.mean(), "unit": y.std()}
    probe = Mlp(Scaling.of(x), network, **unit)
    s, aims = probe.scaling(x), y if k else (y - unit["centre"]) / unit["unit"]
    step = functools.partial(network.partial_fit, classes=np.arange(k)) if k else network.partial_fit
    least, kept, since = np.inf, probe, 0
    for _ in range(EPOCHS):
        step(s, aims)
        error, since = _error(y_validation, probe.predict(x_validation), k), since + 1
        if error < least:
            least, kept, since = error, copy.deepcopy(probe), 0
        if since == PATIENCE:
            break
    return kept


def _error(y: np.ndarray, predicted: np.ndarray, k: int) -> float:
    """Share that is wrong of k categories, mean square error of a number."""
    return float(np.mean(y != predicted) if k else np.mean((y - predicted) ** 2))


@dataclass(frozen=True, eq=False)
class Probe:
    """How well features tell a target.

    scores, {measure: one number a split}: "r2" and "tau"; of categories "accuracy" and "majority" (%, the share in the
    test part of the training part's most frequent one). The same with "other " before: on the other zoo, if given.
    Splits share networks, so intervals over them are of this zoo, and somewhat too narrow for zoos in general.
    """

    target: Target
    classes: tuple[str, ...]  # the categories; none for a number
    scores: dict[str, list[float]]
    models: tuple[Linear | Mlp, ...]  # of each split; they predict places in `classes`, and logarithms if target.log

    @property
    def measure(self) -> str:
        """The score that comes first."""
        return "accuracy" if self.classes else "r2"

    def interval(self, measure: str | None = None) -> tuple[float, float]:
        """Mean over the splits and half-width of its 95 % interval (nan for one split)."""
        return interval(self.scores[measure or self.measure])

    def text(self, *, other: bool = False) -> str:
        """For a table: R2 with its half-width and tau behind it; of categories % right, and the majority's share."""
        names = ("accuracy", "majority") if self.classes else ("r2", "tau")
        first, second = (self.scores["other " * other + name] for name in names)
        digits = 1 if self.classes else 3
        behind = f"of {np.mean(second):.1f} %" if self.classes else f"{np.mean(second):.2f}"
        return f"{mean_and_half_width(first, digits)} ({behind})"


def probe(
    x: np.ndarray | Tensor,
    zoo: Zoo,
    targets: Mapping[str, Target],
    *,
    kind: str = "ridge",
    seeds: Iterable[int] = SEEDS,
    shares: Sequence[float] = SHARES,
    other: tuple[np.ndarray | Tensor, Zoo] | None = None,
) -> dict[str, Probe]:
    """Predict targets from the features x (n, f) of a zoo's networks; {name: Probe}.

    kind: ridge (of categories one against all) | mlp. seeds: of the splits, and of the MLP. other: features and zoo
    that the probes are scored on as well, all of it: of another kind, or models that the embedder has not seen either.
    Raises ValueError for features that do not fit the zoo or are not finite, a fact that is missing or constant, and a
    zoo of too few models.
    """
    check_choice("kind", kind, ("ridge", "mlp"))
    seeds = list(seeds)
    if not targets or not seeds:
        raise ValueError(f"{len(targets)} targets, {len(seeds)} seeds: expected at least one of each")
    sources = [(_checked("x", x, zoo), _bare(zoo))]
    if other is not None:
        sources.append((_checked("other", *other, sources[0][0].shape[1]), _bare(other[1])))
    found = {}
    for last in (False, True):
        alike = {name: target for name, target in targets.items() if target.last == last}
        if alike:
            rows = [last_snapshots(zoo) if last else np.arange(len(zoo)) for _, zoo in sources]
            parts = [(x[some], zoo.filter(some)) for (x, zoo), some in zip(sources, rows, strict=True)]
            found |= _probe(parts, alike, kind, seeds, shares)
    return {name: found[name] for name in targets}


def table(results: Mapping[str, Mapping[str, Probe]], *, other: bool = False) -> str:
    """Markdown: a row for the features, {features: `probe`'s answer}, a column a target. other: scores on that zoo."""
    columns = list(next(iter(results.values())))
    rows = [[name, *(probes[column].text(other=other) for column in columns)] for name, probes in results.items()]
    heads = [f"{c} (%)" if next(iter(results.values()))[c].classes else f"{c}: R2 (tau)" for c in columns]
    return markdown(heads, rows)


def _probe(sources: list[tuple[np.ndarray, Zoo]], targets: Mapping[str, Target], kind: str, seeds, shares) -> dict:
    """`probe` for targets of the same rows; sources: features and zoo, and perhaps the other ones."""
    x, zoo = sources[0]
    values = {name: [target.values(source) for _, source in sources] for name, target in targets.items()}
    classes = {name: np.unique(y) if y.dtype.kind == "U" else np.array([]) for name, (y, *_) in values.items()}
    scores, models = {name: {} for name in targets}, {name: [] for name in targets}
    for seed in seeds:
        train, validation, test = split(zoo, shares, seed)
        scored = [("", "test part", test), ("other ", "other zoo", slice(None))][: len(sources)]
        ridge = Ridge(x[train], x[validation]) if kind == "ridge" else None
        for name, target in targets.items():
            k = len(classes[name])
            codes = [_places(y, classes[name]) if k else y for y in values[name]]  # a source each
            y_train, y_validation = codes[0][train], codes[0][validation]
            _check_varied(target, "training part", y_train)
            if ridge:
                model = ridge.best(y_train, y_validation, k)
            else:
                model = mlp(x[train], y_train, x[validation], y_validation, k, seed)
            models[name].append(model)
            for (prefix, part, rows), (x_part, _), y in zip(scored, sources, codes, strict=True):
                if not k:
                    _check_varied(target, part, y[rows])
                for measure, value in _scores(y[rows], model.predict(x_part[rows]), y_train, k).items():
                    scores[name].setdefault(prefix + measure, []).append(value)
    return {
        name: Probe(target, tuple(map(str, classes[name])), scores[name], tuple(models[name]))
        for name, target in targets.items()
    }


def _scores(y: np.ndarray, predicted: np.ndarray, y_train: np.ndarray, k: int) -> dict[str, float]:
    if k:
        majority = np.bincount(y_train).argmax()
        return {"accuracy": 100 * float(np.mean(y == predicted)), "majority": 100 * float(np.mean(y == majority))}
    ordered = np.ptp(predicted) > 0  # tau of a constant is not defined: no order is told
    tau = float(stats.kendalltau(y, predicted).statistic) if ordered else 0.0
    return {"r2": 1 - _error(y, predicted, 0) / float(y.var()), "tau": tau}


def _places(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n,) each value's place among the classes, -1 for a value of another zoo that is none of them."""
    place = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    return np.where(classes[place] == y, place, -1)


def _checked(name: str, x: np.ndarray | Tensor, zoo: Zoo, f: int | None = None) -> np.ndarray:
    x = np.asarray(x.cpu() if torch.is_tensor(x) else x, dtype=float)
    if x.ndim != 2 or len(x) != len(zoo) or x.shape[1] != (f or x.shape[1]) or not x.size:
        raise ValueError(f"{name}: features of shape {x.shape}, expected ({len(zoo)}, {f or 'f'}), a row a network")
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{name}: {len(bad)} features are NaN or infinite, the first in row {row}, column {column}; leave such "
            "networks or columns out"
        )
    return x


def _check_varied(target: Target, part: str, y: np.ndarray) -> None:
    if np.ptp(y) == 0:
        raise ValueError(
            f"fact {target.fact!r} is the same for all {len(y)} networks of the {part}: nothing to predict; take "
            "another target, more models, or another seed"
        )

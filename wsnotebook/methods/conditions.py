"""What a conditional flow is told of a network: one of its facts, as numbers of unit scale."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsnotebook.zoo.value import Zoo


@dataclass(frozen=True, eq=False)
class Conditions:
    """A fact of a zoo's networks as features: a number standardised, a category as one of c places."""

    fact: str
    seen: np.ndarray  # (n,) the networks' values
    categories: tuple[str, ...]  # in order; empty for numbers

    def encode(self, values: np.ndarray) -> Tensor:
        """Values (m,) -> features (m, c). Raises ValueError for a category that no network had, or no finite number."""
        values = np.asarray(values)
        if self.categories:
            if unknown := set(values.tolist()) - set(self.categories):
                seen = ", ".join(map(repr, self.categories))
                raise ValueError(f"condition {self.fact}: unknown {sorted(unknown, key=str)}; the networks have {seen}")
            return torch.from_numpy((values[:, None] == np.array(self.categories)).astype(np.float32))
        if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            raise ValueError(f"condition {self.fact}: {values.tolist()[:3]}; expected finite numbers")
        standard = (values - self.seen.mean()) / self.seen.std()
        return torch.from_numpy(standard.astype(np.float32))[:, None]

    def values(self, n: int, asked: float | str | np.ndarray | None, seed: int) -> np.ndarray:
        """(n,) values: of one that is asked for, as given, or for None drawn from the networks'."""
        if asked is None:
            return np.random.default_rng(seed).choice(self.seen, n)
        if np.shape(asked) not in ((), (n,)):
            raise ValueError(f"condition: shape {np.shape(asked)}, expected one value or ({n},)")
        return np.broadcast_to(np.asarray(asked), (n,)).copy()


def conditions(zoo: Zoo, fact: str) -> Conditions:
    """The conditions that a fact of a zoo makes. Raises ValueError for a fact that is missing or always the same."""
    if fact not in zoo.facts:
        raise ValueError(f"condition={fact!r}: the zoo has no such fact; it has {', '.join(zoo.facts) or 'none'}")
    seen = np.asarray(zoo.facts[fact])
    if len(np.unique(seen)) < 2:
        raise ValueError(f"condition={fact!r}: all networks have {seen[0].item()!r}; expected at least two values")
    made = Conditions(fact, seen, tuple(np.unique(seen).tolist()) if seen.dtype.kind in "US" else ())
    made.encode(seen)
    return made

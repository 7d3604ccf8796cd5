"""How small can a network's file be at what error, by which method: every method on the same trained network and data.

A `Case` is a trained network with its data; a recipe (`compression_recipes`) makes an `Entry` of a case: a file, the
network that it decodes to, and what was measured of that. Every file is written by `codec`, and every entry is scored
as it comes out of its file. Settings are chosen on validation rows (`best`), then repeated on other seeds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from wsnotebook import evaluation, training
from wsnotebook.datasets import Dataset
from wsnotebook.evaluation import Score, score
from wsnotebook.methods import codebook, codec, low_rank
from wsnotebook.methods import soft_weight_sharing as sws
from wsnotebook.methods.superweight_plan import Plan
from wsnotebook.methods.superweights import Bank

PLAN = "plan"  # name of a bank's plan among the tensors of its file


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network, its data, how it was trained and what that took."""

    name: str  # of the network
    seed: int
    dataset: Dataset = field(repr=False)
    network: nn.Module = field(repr=False)
    training: training.Config
    cpu_seconds: float  # of that training


@dataclass(frozen=True, eq=False)
class Entry:
    """One compressed network: its file, what that decodes to, and what was measured of it."""

    case: str  # name of the network
    method: str  # as `plots.methods` knows it
    setting: str
    seed: int
    file: bytes = field(repr=False)
    share: float  # of the file that is this network's: below 1 where several are in it
    model: nn.Module = field(repr=False)  # what the file decodes to
    validation: Score
    test: Score  # chooses nothing
    cpu_seconds: float  # to make it from the trained network; of a method that starts from nothing, all its training
    macs: int  # products for one row of input
    nonzero_macs: int  # ... with weights that are not zero
    shown: sws.Result | codebook.Compressed | Bank | None = field(repr=False)  # what a picture of it needs
    recipe: Callable | None = field(default=None, repr=False)  # what made it, and makes the like of another case

    @property
    def bytes(self) -> int:
        """Of the file, or of its share of it."""
        return round(len(self.file) * self.share)


Recipe = Callable[[Case], Entry]


# ---- files -----------------------------------------------------------------------------------------------------------


def stored_bytes(model: nn.Module, rest: str = "float16") -> bytes:
    """The file of a network, one with low-rank factors, or a bank (with its plan); `restored` is the inverse.

    rest: precision of floating numbers that share no codebook. Raises ValueError as `codec.encode`.
    """
    state = dict(model.state_dict())
    if isinstance(model, Bank):
        plan = json.dumps(model.plan.to_dict(), separators=(",", ":")).encode()
        state[PLAN] = torch.tensor(list(plan), dtype=torch.uint8)
    return codec.encode(state, rest=rest)


def restored(file: bytes, like: nn.Module | Sequence[nn.Module]) -> nn.Module:
    """The network in a file, in evaluation mode; of a bank, the bank.

    like: a network of that architecture with any weights, which may have whole matrices where the file has factors;
    for a bank its members'. Raises CodecError for a damaged file, RuntimeError for another architecture.
    """
    state = codec.decode(file)
    if PLAN in state:
        plan = Plan.from_dict(json.loads(bytes(state.pop(PLAN).tolist())))
        model = Bank(like, plan)
        model.load_state_dict(state)
    else:
        model = low_rank.like(like, state)
    return model.eval()


def macs(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """Products of weights and inputs for one row x (1, ...): (all, those with a weight that is not zero)."""
    _, times = evaluation.uses(network, x)
    weights = {name: network.get_submodule(name).weight for name in times}
    every = sum(n * weights[name].numel() for name, n in times.items())
    return every, sum(n * int(weights[name].count_nonzero()) for name, n in times.items())


def measured(
    case: Case, method: str, setting: str, file: bytes, spent: float, *, like=None, model=None, shown=None, share=1.0
) -> Entry:
    """The entry of a file. like: as `restored`; None: the case's network. model: what is in the file, if known."""
    model = model or restored(file, like or case.network)
    every, used = macs(model, case.dataset.train[0][:1])
    return Entry(
        case=case.name,
        method=method,
        setting=setting,
        seed=case.seed,
        file=file,
        share=share,
        model=model,
        validation=score(model, case.dataset.validation),
        test=score(model, case.dataset.test),
        cpu_seconds=spent,
        macs=every,
        nonzero_macs=used,
        shown=shown,
    )


# ---- side by side ----------------------------------------------------------------------------------------------------


def compared(case: Case, recipes: Mapping[str, Sequence[Recipe]]) -> tuple[list[Entry], dict[str, str]]:
    """Entries of all recipes {method: some}, and for each method none of whose recipes applies the reason."""
    entries, refused = [], {}
    for method, some in recipes.items():
        made = []
        for recipe in some:
            try:
                made.append(replace(recipe(case), recipe=recipe))
            except ValueError as error:
                refused[method] = str(error).partition(";")[0]
        entries += made
        if made:
            refused.pop(method, None)
    return entries, refused


def best(entries: Sequence[Entry], allowance: float) -> dict[str, Entry]:
    """For each method the smallest file whose validation error is at most `allowance` points above the network's own.

    None so good: the one of lowest validation error. The network's own are the entries "as trained".
    """
    bound = max(e.validation.error for e in entries if e.method == "as trained") + allowance
    found = {}
    for method in dict.fromkeys(e.method for e in entries):
        own = [e for e in entries if e.method == method]
        good = [e for e in own if e.validation.error <= bound]
        found[method] = min(good, key=lambda e: e.bytes) if good else min(own, key=lambda e: e.validation.error)
    return found


COLUMNS = {
    "bytes": (lambda e: e.bytes, 0),
    "validation error (%)": (lambda e: e.validation.error, 2),
    "test error (%)": (lambda e: e.test.error, 2),
    "NLL (nats)": (lambda e: e.test.loss, 3),
    "CPU-seconds": (lambda e: e.cpu_seconds, 1),
    "products": (lambda e: e.nonzero_macs, 0),
    "... dense": (lambda e: e.macs, 0),
}  # heading: value of an entry, digits


def table(chosen: Mapping[str, Sequence[Entry]], refused: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) for `evaluation.markdown`: {method: its entries, one a seed}, then what does not apply."""
    rows = []
    for method, own in chosen.items():
        cells = [evaluation.mean_and_half_width([f(e) for e in own], digits) for f, digits in COLUMNS.values()]
        rows.append([method, own[0].setting, *cells])
    rows += [[method, f"does not apply: {reason}", *[""] * len(COLUMNS)] for method, reason in refused.items()]
    return ["setting", *COLUMNS], rows


def facts(chosen: Mapping[str, Sequence[Entry]]) -> dict[str, dict]:
    """{method: {setting, and a list over seeds of every measure}}, as JSON can hold it."""
    names = ("seed", "bytes", "cpu_seconds", "macs", "nonzero_macs")
    splits = [
        (f"{split}_{measure}", split, measure) for split in ("validation", "test") for measure in ("error", "loss")
    ]
    return {
        method: {"setting": own[0].setting}
        | {name: [getattr(e, name) for e in own] for name in names}
        | {name: [getattr(getattr(e, split), measure) for e in own] for name, split, measure in splits}
        for method, own in chosen.items()
    }

"""Search for the settings of a compression: the smallest file at an allowed loss, or the front of size and error.

Optuna's trials run in this process, or in several that share an SQLite file, and all start from one trained network:

    score = ratio - penalty * max(0, drop - allowance)^2

with the file's compression ratio and the drop, percentage points of validation error over the trained network's. A
search for the front has no score: it maximises the ratio and minimises the drop. A trial is judged while it runs, but
only once its spike has condensed, for before that its quantised network says nothing.
"""

import copy
import csv
import os
import platform
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

try:
    import optuna
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("a search for settings needs Optuna: pip install 'wsnotebook[tune]'") from error
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import TrialState
from torch import nn
from tqdm.auto import tqdm

from wsnotebook import datasets, training
from wsnotebook.ablation import configured, settings_of
from wsnotebook.datasets import Dataset
from wsnotebook.methods import codebook
from wsnotebook.methods import compression_study as study
from wsnotebook.methods import soft_weight_sharing as sws

SAMPLERS = {
    "tpe": partial(optuna.samplers.TPESampler, n_startup_trials=5, multivariate=True, constant_liar=True),
    "gp": partial(optuna.samplers.GPSampler, n_startup_trials=5, deterministic_objective=True),
    "nsga2": partial(optuna.samplers.NSGAIISampler, population_size=8),
    "random": optuna.samplers.RandomSampler,
}


@dataclass(frozen=True)
class Config:
    """How settings are searched for."""

    trials: int = 30  # in all, those of earlier calls on the same storage included
    front: bool = False  # search for the front of ratio and drop instead of the best score
    allowance: float = 0.5  # drop that costs nothing in the score, percentage points
    penalty: float = 250.0  # ... and what the square of a point beyond it costs, in units of the ratio
    sampler: str = "tpe"  # tpe | gp | nsga2 | random
    prune: bool = True  # end a trial that is worse than the median of earlier ones at its epoch
    every: int = 5  # epochs between two looks at a running trial; each costs an epoch of codebook training and a file
    warmup_epochs: int = 0  # no trial is ended before
    warmup_trials: int = 5  # complete ones, condensed at that epoch, that the median needs
    seed: int = 0  # of the network, its compression and the sampler

    def __post_init__(self):
        training.check_choice("sampler", self.sampler, SAMPLERS)
        training.check_at_least(self, trials=1, allowance=0, penalty=0, every=1, seed=0)
        training.check_at_least(self, warmup_epochs=0, warmup_trials=1)
        if self.sampler == "gp" and self.prune:
            raise ValueError("sampler='gp' learns nothing from pruned trials and proposes them again: use prune=False")


@dataclass(frozen=True)
class Range:
    """Where a setting is searched: between two numbers, both included; whole numbers if both are of type int."""

    low: float
    high: float
    log: bool = False  # evenly on a logarithmic scale

    def __post_init__(self):
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self}: expected low < high" + ", both above 0" * self.log)

    def __contains__(self, value) -> bool:
        return value is not None and self.low <= value <= self.high


@dataclass(frozen=True)
class Trial:
    """What came of one trial. Ratio and error are the file's; of a pruned trial those reported last."""

    number: int
    settings: dict  # the searched ones
    state: str  # complete | pruned | failed
    ratio: float | None  # times smaller; None: nothing was measured
    error: float | None  # of the quantised network on the validation rows, %
    drop: float | None  # by how much that is more than the trained network's, percentage points
    epochs: int  # of retraining that were run
    reason: str  # why it was pruned or failed
    reports: tuple[tuple[int, float, float], ...]  # what the pruner saw: (epoch, ratio, error)


SPACE = {  # ranges as multiples of a preset's own values. For the public code's defaults, (250, 0.1) and (5000, 2), ...
    "tau": (0.25, 4.0),
    "gamma.shape": (0.4, 2.0),  # ... these are the ranges that it was tuned in
    "gamma.rate": (0.5, 5.0),
    "gamma_zero.shape": (0.6, 1.2),
    "gamma_zero.rate": (0.5, 2.5),
}


def space_around(config: sws.Config) -> dict[str, Range]:
    """The default search space of a preset's Config: SPACE, logarithmic, without the hyper-priors it does not use."""
    names = [name for name in SPACE if getattr(config, name.partition(".")[0]) is not None]
    own = settings_of(config, names)
    return {name: Range(own[name] * SPACE[name][0], own[name] * SPACE[name][1], log=True) for name in names}


def score(ratio: float, drop: float, config: Config) -> float:
    """What a search maximises: the ratio, less a penalty for the drop (percentage points) beyond the allowance."""
    return ratio - config.penalty * max(0.0, drop - config.allowance) ** 2


# ---- the search ----------------------------------------------------------------------------------------------------


def search(
    preset: study.Preset,
    config: Config,
    *,
    space: Mapping[str, Range | Sequence] | None = None,
    first: Sequence[Mapping] | None = None,
    storage: str | Path | None = None,
    name: str = "",
    device="cpu",
    executor: Executor | None = None,
) -> optuna.Study:
    """Search until there are `config.trials` trials; `trials` reads them. Each is kept: the same search is instant.

    space: {setting: Range, or a tuple of choices}; None: `space_around` the preset's own settings. first: settings to
    try first; None: the preset's own, where they lie in the space. storage: an SQLite file, in which a later call goes
    on and several processes may work; None: in memory. name: of the study in it. executor: runs trials side by side,
    which needs a storage. An interrupt (Ctrl-C, the notebook's stop button) ends the search; the trial that it met is
    taken up again by the next call. A trial that raises is recorded as failed, and the search goes on.

    Raises ValueError for a setting that does not exist, and for a stored study that asked for something else.
    """
    if executor and storage is None:
        raise ValueError("executor: processes meet in a file, so give storage, such as 'search.db'")
    space = dict(space_around(preset.config) if space is None else space)
    for ends in zip(*((c.low, c.high) if isinstance(c, Range) else (c[0], c[-1]) for c in space.values()), strict=True):
        configured(preset.config, dict(zip(space, ends, strict=True)))  # raises now what every trial would
    if first is None:
        own = settings_of(preset.config, space)
        first = [own] if all(own[setting] in space[setting] for setting in space) else []
    for settings in first:
        if outside := {k: v for k, v in settings.items() if k not in space or v not in space[k]}:
            raise ValueError(f"first: {outside} is not in the search space {space}")
    storage = storage and str(Path(storage).expanduser().resolve())
    if storage:
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
    name = name or f"{preset.network} {preset.dataset} {'front' if config.front else 'score'}"
    asked = {
        "front": config.front,
        "score": None if config.front else [config.allowance, config.penalty],
        "seed": config.seed,
        "space": repr(space),
        "preset": repr([preset.dataset, preset.network, preset.checkpoint, preset.training, preset.config]),
    }
    with _quiet(), _alone(storage):
        opened = _open(storage, name, config)
        if not opened.user_attrs:
            opened.set_user_attr("asked", asked)
            for settings in first:
                opened.enqueue_trial(dict(settings))
    for part, before in opened.user_attrs["asked"].items():
        if asked[part] != before:
            raise ValueError(
                f"the study {name!r} in {storage} has {part}={before!r}, this search {part}={asked[part]!r}: they do "
                "not mix; give another name or storage"
            )
    prepared = _prepared(preset, config, device)
    task = partial(_in_another_process, preset, config, space, storage, name, device)
    done = len(trials(opened))
    with _quiet(), tqdm(total=max(done, config.trials), initial=done, desc="search", unit="trial", leave=False) as bar:
        futures = [executor.submit(task) for _ in range(done, config.trials)] if executor else []
        try:
            for future in futures:
                bar.update(future.result())
            while not executor and _trial(opened, preset, config, space, storage, *prepared):
                bar.update(1)
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
    return opened


def _prepared(preset: study.Preset, config: Config, device) -> tuple[nn.Module, Dataset, float]:
    """What all trials share: the trained network, the data, and the network's validation error, %."""
    dataset = datasets.load(preset.dataset).to(device)
    network, trained = study.trained_network(preset, dataset, config.seed)
    return network, dataset, trained.history["validation_error"][-1]


def _in_another_process(preset, config, space, storage, name, device) -> bool:
    with _quiet():
        prepared = _prepared(preset, config, device)
        return _trial(_open(storage, name, config), preset, config, space, storage, *prepared)


def _trial(opened, preset, config, space, storage, network, dataset, trained_error) -> bool:
    """Ask for a trial, run it and tell what came of it; False when there was none left to ask for."""
    with _alone(storage):
        trial = _ask(opened, config, space)
    if trial is None:
        return False
    settings = configured(study.seeded(preset.config, config.seed), trial.params)
    seen, ratio, error, values, reason = {}, None, None, None, ""  # seen: (ratio, error) by epoch
    try:
        result = _compressed(opened, trial, config, settings, network, dataset, trained_error, seen)
        ratio, error = result.compressed.ratio, result.compressed.error
        if not result.condensed:
            raise optuna.TrialPruned("the spike had not condensed")
        drop = error - trained_error
        state, values = TrialState.COMPLETE, [ratio, drop] if config.front else [score(ratio, drop, config)]
    except optuna.TrialPruned as why:
        state, reason = TrialState.PRUNED, str(why)
        if ratio is None:
            ratio, error = seen[max(seen)]
    except KeyboardInterrupt:
        _give_back(opened, trial)
        raise
    except Exception as failure:
        state, reason = TrialState.FAIL, f"{type(failure).__name__}: {failure}"
    outcome = {
        "state": "failed" if state == TrialState.FAIL else state.name.lower(),
        "ratio": ratio,
        "error": error,
        "drop": None if error is None else error - trained_error,
        "epochs": max(seen, default=0),
        "reason": reason,
        "reports": [(epoch, *report) for epoch, report in sorted(seen.items()) if report],
    }
    trial.set_user_attr("outcome", outcome)
    opened.tell(trial, values, state)
    return True


def _compressed(opened, trial, config, settings, network, dataset, trained_error, seen: dict) -> sws.Result:
    """The trial's compression, which fills `seen`; TrialPruned when the pruner ends it.

    What was seen is kept, so that a trial that is run again is judged as it was, without being trained again.
    """
    path, judged = training.kept_path("tuning", (settings, config.every), dataset, network), set()

    def judge(epoch: int) -> None:
        if not seen[epoch] or epoch in judged:
            return
        judged.add(epoch)
        ratio, error = seen[epoch]
        if config.front:
            behind = _behind(opened, config, epoch, ratio, error)
        else:
            trial.report(score(ratio, error - trained_error, config), epoch)
            behind = trial.should_prune()
        if config.prune and behind:
            raise optuna.TrialPruned(f"worse than the median at epoch {epoch}")

    def watch(result: sws.Result) -> None:
        epoch = result.history["epoch"][-1]
        look = result.condensed and epoch % config.every == 0 and epoch < settings.epochs
        seen[epoch] = _expected(result, network, dataset) if look else None
        training.save_kept(path, seen)
        judge(epoch)

    for epoch, report in (training.load_kept(path) or {}).items():
        seen[epoch] = report
        judge(epoch)
    result = training.finished(sws.compress(network, dataset, settings, keep=True, watch=watch))
    if len(seen) < len(result.trace):  # someone else's run: again, for what the pruner wants to see
        result = training.finished(sws.compress(network, dataset, settings, watch=watch))
    return result


def _expected(result: sws.Result, network: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """(ratio, error) of the file if the run ended now, with one epoch of codebook training if there is to be any."""
    network = copy.deepcopy(network)
    network.load_state_dict(result.after)
    _, clustered, _ = sws.assign(result, network, dataset)
    how = result.config.fine_tune
    packed = codebook.pack(network, dataset, clustered, replace(how, epochs=min(1, how.epochs)))
    return packed.ratio, packed.error


def _behind(opened, config: Config, epoch: int, ratio: float, error: float) -> bool:
    """The median rule of a search for the front, which Optuna does not have: worse than both of the medians."""
    complete = [trial for trial in trials(opened) if trial.state == "complete"]
    earlier = [report[1:] for trial in complete for report in trial.reports if report[0] == epoch]
    if epoch < config.warmup_epochs or len(earlier) < config.warmup_trials:
        return False
    ratios, errors = zip(*earlier, strict=True)
    return ratio < statistics.median(ratios) and error > statistics.median(errors)


# ---- the study, alone or with other processes ----------------------------------------------------------------------


def _open(storage: str | None, name: str, config: Config) -> optuna.Study:
    shared = storage and RDBStorage(f"sqlite:///{storage}", engine_kwargs={"connect_args": {"timeout": 60}})
    needed = config.warmup_trials
    pruner = optuna.pruners.MedianPruner(needed, config.warmup_epochs, n_min_trials=needed)
    if shared and name in optuna.get_all_study_names(shared):
        return optuna.load_study(study_name=name, storage=shared, pruner=pruner)
    directions = ["maximize", "minimize"] if config.front else ["maximize"]
    return optuna.create_study(study_name=name, storage=shared, pruner=pruner, directions=directions)


def _ask(opened, config: Config, space) -> optuna.Trial | None:
    """The next trial, or None when there are enough. The seed of its sampler depends on how many came before."""
    for trial in opened.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _alive(*trial.user_attrs.get("process", (platform.node(), None))):
            _give_back(opened, trial)
    known = opened.get_trials(deepcopy=False)
    taken = sum("outcome" in trial.user_attrs or trial.state == TrialState.RUNNING for trial in known)
    if taken >= config.trials:
        return None
    opened.sampler = SAMPLERS[config.sampler](seed=2_000 * config.seed + 1_000 * config.front + taken)
    trial = opened.ask({setting: _distribution(choice) for setting, choice in space.items()})
    trial.set_user_attr("process", (platform.node(), os.getpid()))
    return trial


def _distribution(choice: Range | Sequence):
    if not isinstance(choice, Range):
        return CategoricalDistribution(tuple(choice))
    whole = isinstance(choice.low, int) and isinstance(choice.high, int)
    return (IntDistribution if whole else FloatDistribution)(choice.low, choice.high, log=choice.log)


def _give_back(opened, trial) -> None:
    """A trial that did not come to its end: another one with the same settings waits in its place."""
    if "outcome" not in trial.user_attrs:
        opened.enqueue_trial(trial.params)
    opened.tell(trial.number, state=TrialState.FAIL)


def _alive(host: str, process: int | None) -> bool:
    """False only where this machine knows that the process has ended, or never came to begin."""
    if process is None or host != platform.node() or os.name != "posix":
        return process is not None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _alone(storage: str | None):
    """Nobody else opens the study or asks for a trial in the meantime."""
    if storage is None:
        yield
        return
    lock = JournalFileOpenLock(storage)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet():
    """Neither Optuna's log nor the warnings that a trial records itself."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "the spike had not condensed")
            yield
    finally:
        optuna.logging.set_verbosity(level)


# ---- what came of it -----------------------------------------------------------------------------------------------


def trials(opened: optuna.Study) -> list[Trial]:
    """The trials that came to an end, in their order; those that were interrupted or still run are left out."""
    ended = [trial for trial in opened.get_trials(deepcopy=False) if "outcome" in trial.user_attrs]
    outcomes = [
        t.user_attrs["outcome"] | {"reports": tuple(map(tuple, t.user_attrs["outcome"]["reports"]))} for t in ended
    ]
    return [Trial(t.number, dict(t.params), **outcome) for t, outcome in zip(ended, outcomes, strict=True)]


def front(found: Iterable[Trial]) -> list[Trial]:
    """The complete trials that none beats in ratio or error without losing in the other; smallest ratio first."""
    best = []
    for trial in sorted((t for t in found if t.state == "complete"), key=lambda t: (-t.ratio, t.error, t.number)):
        if not best or trial.error < best[-1].error:  # of equal ones the first
            best.append(trial)
    return best[::-1]


def best(found: Iterable[Trial], allowance: float = 0.5) -> Trial:
    """The complete trial of the largest ratio whose drop is within the allowance; if none is, the lowest error.

    Raises ValueError when no trial is complete.
    """
    complete = [trial for trial in found if trial.state == "complete"]
    if not complete:
        raise ValueError("trials: none is complete; their `reason` says why")
    good = [trial for trial in complete if trial.drop <= allowance]
    return max(good, key=lambda t: (t.ratio, -t.error)) if good else min(complete, key=lambda t: (t.error, -t.ratio))


def result_of(preset: study.Preset, trial: Trial, network: nn.Module, dataset: Dataset, seed: int = 0) -> sws.Result:
    """A complete trial's compression, from the cache. network: the trained one; seed: the search's.

    Raises ValueError for a trial that did not come to its end.
    """
    if trial.state != "complete":
        raise ValueError(f"trial {trial.number} is {trial.state} ({trial.reason}): only complete ones have a result")
    config = configured(study.seeded(preset.config, seed), trial.settings)
    return training.finished(sws.compress(network, dataset, config, keep=True))


def to_csv(rows: Iterable[Trial | Mapping], path: str | Path) -> Path:
    """Write trials, or the rows of a sweep, as a table; every setting has a column. Returns the path."""
    flat = []
    for row in rows:
        row = asdict(row) if isinstance(row, Trial) else dict(row)
        flat.append({k: v for k, v in row.items() if k not in ("reports", "settings")} | row["settings"])
    with datasets.replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return Path(path)

"""The loop for one network: tensors in memory, index gather, a schedule, validation, and a state that is kept.

An epoch's randomness (order, dropout, augmentation) depends on (seed, epoch) alone, so a run that was interrupted
and goes on gives the same numbers as one that was not.
"""

import contextlib
import copy
import hashlib
import inspect
import io
import math
import os
import re
import time
import types
import typing
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

import wsnotebook
from wsnotebook.datasets import Dataset, cache_folder, replacing
from wsnotebook.evaluation.scores import data_loss, score
from wsnotebook.layout import check_finite

KEEP_EVERY = 5.0  # seconds: a run that is kept stores where it is after the next part of its training


@dataclass(frozen=True)
class Config:
    """How a network is trained."""

    epochs: int = 20  # passes over the training rows
    batch: int = 128  # rows a step
    optimiser: str = "adam"  # adam | sgd (Nesterov momentum 0.9)
    lr: float = 1e-3  # learning rate at the start
    schedule: str = "cosine"  # constant | cosine (to 0) | step (x 0.1 at 50 % and 75 %)
    weight_decay: float = 0.0  # L2 coefficient
    shift: int = 0  # random shifts of the images by up to so many pixels
    flip: bool = False  # random horizontal flips
    keep: str = "last"  # last | best (lowest validation error; in a regression, lowest validation loss)
    patience: int = 0  # epochs without a lower one before stopping; 0: never
    seed: int = 0  # of order, augmentation and dropout

    def __post_init__(self):
        check_choice("optimiser", self.optimiser, ("adam", "sgd"))
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("keep", self.keep, ("last", "best"))
        check_at_least(self, epochs=0, batch=1, lr=0, weight_decay=0, patience=0, shift=0)


@dataclass(frozen=True)
class Result:
    """A trained network's state dict, and one history entry an epoch (entry 0: before training).

    history: epoch, loss (training, nats), validation_loss (nats), validation_error (%), cpu_seconds (so far). In a
    regression losses are mean square errors, and validation_error is None.
    """

    state: dict[str, Tensor]
    history: dict[str, list[float]]


def train(network: nn.Module, dataset: Dataset, config: Config, *, keep: bool = False) -> Result:
    """Train a copy of `network` on dataset.train, choosing nothing on dataset.test.

    keep: store the state in the cache folder after every epoch, under the hash of network, data and config; the same
    call later goes on from there, or returns at once. Raises ValueError for weights that are not finite.
    """
    check_finite(network.state_dict(), "network")
    network = copy.deepcopy(network)
    x, y = dataset.train
    optimiser = make_optimiser(config, network.parameters())
    history = {"epoch": [], "loss": [], "validation_loss": [], "validation_error": [], "cpu_seconds": []}
    best, spent = (math.inf, 0, network.state_dict()), 0.0
    path = kept_path("train", config, dataset, network) if keep else None

    if stored := load_kept(path):
        network.load_state_dict(stored["network"])
        optimiser.load_state_dict(stored["optimiser"])
        history, best, spent = stored["history"], stored["best"], stored["spent"]
    started = time.process_time() - spent

    progress = tqdm(range(len(history["epoch"]), config.epochs + 1), desc="training", unit="epoch", leave=False)
    for epoch in progress:
        if config.patience and epoch - 1 - best[1] >= config.patience:
            break
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        network.train()
        with epoch_randomness(config.seed, epoch, x.device):
            for t, rows in minibatches(len(x), config, epoch, x.device):
                set_lr(optimiser, config.lr, config.schedule, t)
                loss = data_loss(network(augmented(x[rows], config)), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.detach() * len(rows)
        validation = score(network, dataset.validation)
        history["epoch"].append(epoch)
        history["loss"].append(float(total) / len(x) if epoch > 0 else score(network, dataset.train).loss)
        history["validation_loss"].append(validation.loss)
        history["validation_error"].append(validation.error)
        history["cpu_seconds"].append(time.process_time() - started)
        criterion = validation.loss if dataset.regression else validation.error
        if criterion < best[0] or epoch == 0:
            best = (criterion, epoch, copy.deepcopy(network.state_dict()))
        unit = "loss {:.4g}" if dataset.regression else "error {:.2f} %"
        progress.set_postfix_str(f"validation {unit.format(criterion)}", refresh=False)
        parts = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "history": history}
        save_kept(path, parts | {"best": best, "spent": history["cpu_seconds"][-1]})

    if config.keep == "best":
        network.load_state_dict(best[2])
    state = network.state_dict()
    check_finite(state, "trained network")
    return Result(state={name: tensor.clone() for name, tensor in state.items()}, history=history)


# ---- one step's parts, shared by the methods' own loops ----------------------------------------------------------


def make_optimiser(config: Config, parameters) -> torch.optim.Optimizer:
    """The optimiser a Config asks for, fused: one kernel a step."""
    if config.optimiser == "sgd":
        options = {"momentum": 0.9, "nesterov": True}
        return torch.optim.SGD(parameters, config.lr, weight_decay=config.weight_decay, fused=True, **options)
    return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=True)


SCHEDULES = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "step": lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01,
}  # share of the first learning rate at time t in [0, 1]


def set_lr(optimiser: torch.optim.Optimizer, lr: float, schedule: str, t: float) -> None:
    """Set the learning rate of time t in [0, 1] of the run, `lr` being the first."""
    for group in optimiser.param_groups:
        group["lr"] = lr * SCHEDULES[schedule](t)


def minibatches(n: int, config, epoch: int, device: torch.device) -> Iterator[tuple[float, Tensor]]:
    """One epoch's steps: (time in [0, 1] of the whole run, row numbers), the n rows in random order; none in epoch 0.

    config: anything with `batch` and `epochs`.
    """
    if epoch > 0:
        for step, rows in enumerate(torch.randperm(n, device=device).split(config.batch)):
            yield (epoch - 1 + step * config.batch / n) / config.epochs, rows


@contextlib.contextmanager
def epoch_randomness(seed: int, epoch: int, device: torch.device):
    """PyTorch's random numbers depend on (seed, epoch) inside, and are as before outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:7], "big"))
        yield


def augmented(x: Tensor, config) -> Tensor:
    """Images (n, c, h, w), each shifted and flipped at random; what a shift brings in is zero.

    config: anything with `shift` (pixels, 0: none) and `flip`. Raises ValueError for rows that are no images.
    """
    if not config.shift and not config.flip:
        return x
    if x.ndim != 4:
        raise ValueError(f"shift={config.shift}, flip={config.flip}: rows of shape {tuple(x.shape[1:])} are no images")
    n, _, h, w = x.shape
    windows = F.pad(x, (config.shift,) * 4).unfold(2, h, 1).unfold(3, w, 1)  # (n, c, places, places, h, w)
    top, left = torch.randint(0, 2 * config.shift + 1, (2, n), device=x.device)
    shifted = windows[torch.arange(n, device=x.device), :, top, left]
    if config.flip:
        return torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, shifted.flip(3), shifted)
    return shifted


# ---- states that are kept between calls --------------------------------------------------------------------------


def kept_path(kind: str, config, dataset: Dataset, network: nn.Module) -> Path:
    """Where a run's state is kept: one file for each (kind, config, data, network as it starts, package version)."""
    return cache_folder() / "results" / f"{kind}-{fingerprint(config, dataset, network)}.pt"


def fingerprint(*parts) -> str:
    """24 hex digits that tell inputs apart, of this version of the package: what a kept result's file is named by.

    Tensors, and those of (name, tensor), count by their content, modules by their tensors and what they do with them,
    data sets by checksum, split and their first rows, which may have been transformed, the rest by repr.
    """
    digest = hashlib.sha256(wsnotebook.__version__.encode())
    parts = [p for part in parts for p in (_module_parts(part) if isinstance(part, nn.Module) else (part,))]
    for part in parts:
        named = isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], Tensor)
        name, part = part if named else ("", part)
        if isinstance(part, Tensor):
            digest.update(f"\0{name} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        elif isinstance(part, Dataset):
            digest.update(f"\0{part.name} {part.checksum}".encode())
            for rows in (part.train, part.validation, part.test):
                for values in rows:
                    first = values[:256].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
                    digest.update(f"\0{tuple(values.shape)}".encode() + first.tobytes())
        else:
            digest.update(f"\0{part!r}".encode())
    return digest.hexdigest()[:24]


def _module_parts(network: nn.Module) -> list:
    return [*network.state_dict().items(), architecture(network)]


def architecture(network: nn.Module) -> str:
    """What a network does with its tensors, as text: its form, its modules' attributes, and its own classes' code.

    Equal tensors do not make equal networks: activations have none, and a class of the user's may have any `forward`.
    Attributes count because repr leaves some out, as a number of heads. The package's own code counts by its version;
    functions that a user's class calls do not count.
    """
    inherited = vars(nn.Module())
    parts = [repr(network)]
    for name, module in network.named_modules():
        parts += [f"{name}.{key} = {_text(value)}" for key, value in vars(module).items() if key not in inherited]
    classes = {cls for module in network.modules() for cls in type(module).__mro__} - {object}
    for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
        if cls.__module__.partition(".")[0] not in ("wsnotebook", "torch"):
            parts += [f"{cls.__qualname__}.{key} = {_text(value)}" for key, value in vars(cls).items()]
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", "\n".join(parts))  # addresses differ between processes


def _text(value) -> str:
    """A function by what runs (its source may be absent, or edited since), anything else by repr."""
    function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
    if not isinstance(function, types.FunctionType):
        return repr(value)
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    return f"{_code(function.__code__)} {function.__defaults__} {function.__kwdefaults__} {closure}"


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else c for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def as_vector(network: nn.Module) -> nn.Parameter:
    """All parameters as one (p,), whose parts they are from now on, and their gradients parts of its gradient."""
    parameters = list(network.parameters())
    vector = nn.Parameter(nn.utils.parameters_to_vector(parameters).detach())
    vector.grad = torch.zeros_like(vector)
    sizes = [p.numel() for p in parameters]
    for p, value, grad in zip(parameters, vector.data.split(sizes), vector.grad.split(sizes), strict=True):
        p.data, p.grad = value.view_as(p), grad.view_as(p)
    return vector


def run_to_end(run, path: Path | None, description: str, shown: str = "loss") -> bool:
    """Train a run by chunks to its last iteration, with progress; False when it was interrupted (Ctrl-C, stop button).

    run: has `config.iterations`, `iteration`, `history`, `train_chunk()`, `state()` and `load(state)`. path: where its
    state is kept every few seconds, and taken up from; None: nowhere. shown: of the history, beside the progress.
    """
    if stored := load_kept(path):
        run.load(stored)
    kept, last = time.monotonic(), run.config.iterations
    try:
        with tqdm(total=last, initial=run.iteration, desc=description, unit="it", leave=False) as progress:
            while run.iteration < last:
                before = run.iteration
                run.train_chunk()
                progress.set_postfix_str(f"{shown.replace('_', ' ')} {run.history[shown][-1]:.3f}", refresh=False)
                progress.update(run.iteration - before)
                if path and (run.iteration == last or time.monotonic() - kept > KEEP_EVERY):
                    save_kept(path, run.state())
                    kept = time.monotonic()
    except KeyboardInterrupt:
        return False
    return True


def finished(result):
    """The result of a method that keeps what it has when it is interrupted, where only a finished one may count.

    Raises KeyboardInterrupt for one with `finished` False: the interrupt was meant for all that was to follow, too.
    """
    if not result.finished:
        raise KeyboardInterrupt("interrupted: run the same again, and it goes on from what was kept")
    return result


def save_kept(path: Path | None, state: dict) -> None:
    """Put a state where `load_kept` finds it, whole or not at all; None: nowhere.

    A file that cannot be written is told by a RuntimeWarning, and the work goes on.
    """
    if path is None:
        return
    content = io.BytesIO()  # what torch.save itself writes to, it says nothing clear about
    torch.save(state, content)
    try:
        with replacing(path) as part:
            part.write_bytes(content.getbuffer())
    except OSError as error:
        warnings.warn(f"not kept, the work goes on: {error}", RuntimeWarning, stacklevel=2)


def load_kept(path: Path | None) -> dict | None:
    """What `save_kept` put there, or None. A damaged file is set aside with a RuntimeWarning, and counts as none."""
    if path is None or not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as parts:  # torch.load does not look at its checksums
            if damaged := parts.testzip():
                raise ValueError(f"another checksum of {damaged}")
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # each reader has its own, for content of every kind
        set_aside(path, f"not a readable kept state ({str(error).partition(chr(10))[0]})")
        return None


def set_aside(path: Path, reason: str) -> None:
    """Rename a damaged file that is kept, to NAME.damaged, with a RuntimeWarning: its content is computed anew."""
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(OSError):  # another process was first, or nothing may be written here
        os.replace(path, aside)
    warnings.warn(f"{path}: {reason}; it is set aside as {aside.name}, and computed anew", RuntimeWarning, stacklevel=3)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a user's file: .safetensors, or a state dict in .pt / .pth, also as an entry "state_dict" or
    "model_state_dict" (never unpickled).

    Raises FileNotFoundError, or ValueError for a damaged file or one that holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file (looked for in {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as parts:
                    _check_size(sum(part.file_size for part in parts.infolist()), path, "what it holds")
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # each reader has its own, for content of every kind
        reason = str(error).partition("\n")[0]
        expected = "expected .safetensors, or a state dict saved by torch.save"
        raise ValueError(f"checkpoint {path}: not readable ({reason}); {expected}") from None
    for key in ("state_dict", "model_state_dict"):  # what training scripts wrap it in
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"checkpoint {path}: holds {type(state).__name__}, expected a state dict {{name: tensor}}")
    for name, tensor in state.items():
        _check_size(tensor.nbytes, path, f"checkpoint {path}: {name!r} of shape {tuple(tensor.shape)}")
    return state


def _check_size(size: int, path: Path, what: str) -> None:
    """Raise ValueError for parts of a file that take more than the file: packed, or one number for many."""
    if size > path.stat().st_size:
        raise ValueError(
            f"{what} takes {size:,} bytes, the file {path.stat().st_size:,}: save it by torch.save, unpacked, and a "
            "tensor that was expanded as its .clone()"
        )


def load_checkpoint(network: nn.Module, path: str | Path) -> None:
    """Put the weights of a user's file, as `read_state` takes it, into a network.

    Raises what `read_state` does, and ValueError for another architecture or weights that are not finite; the network
    is then as it was.
    """
    state = read_state(path)
    wanted = network.state_dict()
    for name in [*wanted, *(state.keys() - wanted.keys())]:
        seen, expected = (tuple(part[name].shape) if name in part else "nothing" for part in (state, wanted))
        if seen != expected:
            raise ValueError(
                f"checkpoint {path}: {name!r} is {seen}, the network has {expected} there: another architecture? "
                f"The network's tensors: {', '.join(wanted)}"
            )
    check_finite(state, f"checkpoint {path}")
    network.load_state_dict(state)


# ---- settings that teach -----------------------------------------------------------------------------------------


def check_choice(field: str, value, choices) -> None:
    """Raise ValueError when a setting is none of its choices."""
    if value not in choices:
        raise ValueError(f"{field}={value!r}: expected one of {', '.join(map(repr, choices))}")


def check_at_least(config, **bounds: float) -> None:
    """Raise ValueError naming the first field of `config` that is below its bound or no number of the field's type.

    Where the type has tuples, one is looked at value by value. NumPy's numbers become Python's: they are printed,
    hashed and written as JSON like these.
    """
    hints = typing.get_type_hints(type(config))
    for field, low in bounds.items():
        kinds, value = (hints[field], *typing.get_args(hints[field])), getattr(config, field)
        several = isinstance(value, tuple) and any(typing.get_origin(kind) is tuple for kind in kinds)
        numbers = tuple(v.item() if isinstance(v, np.generic) else v for v in (value if several else (value,)))
        allowed, expected = ((int,), "a whole number") if int in kinds else ((int, float), "a number")
        for number in numbers:
            if type(number) not in allowed or not low <= number < math.inf:  # a bool is an instance of int
                owner = type(config).__module__.rpartition(".")[2]
                raise ValueError(f"{owner}.Config: {field}={number!r}, expected {expected} >= {low}")
        object.__setattr__(config, field, numbers if several else numbers[0])

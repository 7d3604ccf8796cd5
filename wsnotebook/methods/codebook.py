"""Tensors that share few values: an id a weight and a codebook a tensor, and the training of those codebooks.

Whatever found the ids (the mixture of soft weight-sharing, k-means, a uniform grid), the step after it is the same:
with the assignments frozen and zero kept at zero, cross-entropy moves the codebooks' entries and the other parameters
(Han, Mao and Dally 2016, "Deep compression", section 3). The gradient of an entry is the sum over its weights'.
Then the network is packed into a file.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from wsnotebook import training
from wsnotebook.datasets import Dataset
from wsnotebook.evaluation import score
from wsnotebook.layout import Layout, check_finite
from wsnotebook.methods import accounting, codec

REST = ("float32", "float16")


@dataclass(frozen=True)
class Config:
    """How codebooks are trained, and how the numbers of the file are rounded."""

    epochs: int = 0  # of training; 0: the codebooks stay as they were found
    lr_codebook: float = 1e-3  # Adam's learning rate for the codebooks, cosine to 0
    lr_rest: float = 5e-4  # ... for biases, norms and tensors that are not clustered
    batch: int = 128  # rows a step
    shift: int = 0  # random shifts of the images by up to so many pixels
    flip: bool = False  # random horizontal flips
    rest: str = "float32"  # precision of codebooks and of what is not clustered, in the file: float32 | float16
    bias_step: float = 0.0  # biases are rounded to multiples of this, and coded like weights; 0: kept as in `rest`
    seed: int = 0  # of order and augmentation

    def __post_init__(self):
        training.check_choice("rest", self.rest, REST)
        training.check_at_least(self, epochs=0, lr_codebook=0, lr_rest=0, batch=1, bias_step=0, shift=0)


@dataclass(frozen=True)
class Clustered:
    """Tensors as ids into a codebook each; entry 0 of a codebook is zero."""

    ids: dict[str, Tensor]  # int64, each of its tensor's shape
    codebooks: dict[str, Tensor]  # float32 (k,)

    def values(self) -> dict[str, Tensor]:
        """The tensors themselves, float32."""
        return {name: self.codebooks[name][ids] for name, ids in self.ids.items()}


@dataclass(frozen=True)
class Compressed:
    """A network whose tensors share few values, and its file."""

    state: dict[str, Tensor]  # what the file holds: `codec.decode(file)` is equal to it, bit for bit
    clustered: Clustered
    file: bytes
    sizes: accounting.Sizes  # the paper's count of the same network
    parameters: int  # how many the network has, clustered or not
    assigned_error: float  # validation error before the codebooks were trained, %
    error: float  # ... and of `state`
    cpu_seconds: float  # of training the codebooks and writing the file; of a baseline, of all that it does

    @property
    def ratio(self) -> float:
        """Bytes of all parameters at float32 over the file's bytes."""
        return 4 * self.parameters / len(self.file)

    def stored(self) -> dict:
        """As tensors, text and numbers; `load` is the inverse."""
        return vars(self) | {
            "clustered": vars(self.clustered),
            "sizes": [astuple(layer) for layer in self.sizes.layers],
        }

    @classmethod
    def load(cls, stored: dict) -> "Compressed":
        sizes = accounting.Sizes(tuple(accounting.LayerSize(*layer) for layer in stored["sizes"]))
        return cls(**stored | {"clustered": Clustered(**stored["clustered"]), "sizes": sizes})


def smallest(candidates: Sequence[Compressed], bound: float) -> Compressed:
    """The smallest file with a validation error of at most `bound` %; if none is that good, the one with the lowest."""
    good = [one for one in candidates if one.error <= bound]
    return min(good, key=lambda one: len(one.file)) if good else min(candidates, key=lambda one: one.error)


def pack(network: nn.Module, dataset: Dataset, clustered: Clustered, config: Config) -> Compressed:
    """Put the clustered tensors into a copy of the network, train the codebooks, round, and write the file."""
    dataset.check_classes("training codebooks")
    started, network = time.process_time(), copy.deepcopy(network)
    network.load_state_dict(network.state_dict() | clustered.values())
    assigned_error = score(network, dataset.validation).error
    clustered = fine_tune(network, dataset, clustered, config)
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return Compressed(
        state=state,
        clustered=clustered,
        file=codec.encode(state),
        sizes=paper_sizes(network, clustered),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        assigned_error=assigned_error,
        error=score(network, dataset.validation).error,
        cpu_seconds=time.process_time() - started,
    )


def paper_sizes(network: nn.Module, clustered: Clustered) -> accounting.Sizes:
    """The paper's count over all weight tensors; those that are not clustered stay at 32 bits a weight."""
    every = Layout.of(network, kinds=("weight",))
    return accounting.Sizes(
        tuple(
            accounting.paper_size(name, clustered.ids[name], len(clustered.codebooks[name]) - 1)
            if name in clustered.ids
            else accounting.unquantised_size(name, size)
            for name, size in zip(every.names, every.sizes, strict=True)
        )
    )


def fine_tune(network: nn.Module, dataset: Dataset, clustered: Clustered, config: Config) -> Clustered:
    """Train the codebooks and the other parameters of `network`, in place; the new codebooks.

    At the end everything is rounded as `config` says, so that the network is what its file holds. Raises ValueError
    for numbers that are not finite, or that float16 cannot hold.
    """
    parameters = dict(network.named_parameters())
    weights = [parameters[name] for name in clustered.ids]
    rest = [parameter for name, parameter in parameters.items() if name not in clustered.ids]
    device = weights[0].device
    used = [ids.reshape(-1).nonzero()[:, 0].to(device) for ids in clustered.ids.values()]  # places that are not zero
    entries = [ids.reshape(-1).to(device)[at] for ids, at in zip(clustered.ids.values(), used, strict=True)]
    codebooks = [clustered.codebooks[name].float().to(device).clone() for name in clustered.ids]

    flat = [torch.zeros(weight.numel(), device=device, dtype=weight.dtype) for weight in weights]

    def write() -> None:
        for weight, row, at, ids, codebook in zip(weights, flat, used, entries, codebooks, strict=True):
            row[at] = codebook[ids]
            weight.copy_(row.view(weight.shape))  # whatever the weight's memory format

    groups = [{"params": codebooks, "first": config.lr_codebook}, {"params": rest, "first": config.lr_rest}]
    optimiser = torch.optim.Adam(groups, fused=True)
    x, y = dataset.train
    with torch.no_grad():
        write()
    for epoch in tqdm(range(1, config.epochs + 1), desc="codebooks", unit="epoch", leave=False):
        network.train()
        with training.epoch_randomness(config.seed, epoch, x.device):
            for t, rows in training.minibatches(len(x), config, epoch, x.device):
                for group in optimiser.param_groups:
                    group["lr"] = group["first"] * training.SCHEDULES["cosine"](t)
                network.zero_grad()
                F.cross_entropy(network(training.augmented(x[rows], config)), y[rows]).backward()
                with torch.no_grad():
                    for weight, at, ids, codebook in zip(weights, used, entries, codebooks, strict=True):
                        codebook.grad = torch.zeros_like(codebook).index_add_(0, ids, weight.grad.reshape(-1)[at])
                    optimiser.step()
                    write()
    with torch.no_grad():
        for codebook in codebooks:
            codebook.copy_(rounded(codebook, config.rest))
        write()
        network.load_state_dict(network.state_dict() | _rounded_rest(network, clustered, config))
    check_finite(network.state_dict(), "fine-tuned network")
    return Clustered(clustered.ids, {n: codebook.cpu() for n, codebook in zip(clustered.ids, codebooks, strict=True)})


def _rounded_rest(network: nn.Module, clustered: Clustered, config: Config) -> dict[str, Tensor]:
    """The floating tensors that are not clustered, rounded."""
    layout, state = Layout.of(network), network.state_dict()
    kinds = dict(zip(layout.names, layout.kinds, strict=True))
    left = [name for name in layout.names if name not in clustered.ids and state[name].is_floating_point()]
    steps = {name: config.bias_step if kinds[name] == "bias" else 0.0 for name in left}
    return {name: rounded(state[name], config.rest, step) for name, step in steps.items()}


def rounded(values: Tensor, precision: str, step: float = 0.0) -> Tensor:
    """Values at multiples of `step`, or with step 0 at the nearest number of the precision; in their own dtype."""
    if step:
        return (values / step).round() * step + 0.0  # no negative zeros
    narrow = values.to(getattr(torch, precision)).to(values.dtype)
    if not torch.equal(narrow.isfinite(), values.isfinite()):
        raise ValueError(f"rest={precision!r}: the largest value, {float(values.abs().max()):.3g}, does not fit it")
    return narrow

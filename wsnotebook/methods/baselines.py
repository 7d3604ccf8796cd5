"""The baselines every compressor must beat: magnitude pruning with k-means, and plain uniform quantisation.

Pruning after Han, Mao and Dally 2016, "Deep compression": weights are pruned gradually (cubic schedule of Zhu and Gupta
2017) to a chosen share of non-zeros, by one magnitude threshold over all layers, and fine-tuned; then each layer's
non-zeros share the centres of a k-means clustering. Uniform quantisation rounds each tensor to a grid, untrained.
Both end like soft weight-sharing: trained codebooks, and the same file format.
"""

import copy
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from wsnotebook import training
from wsnotebook.datasets import Dataset
from wsnotebook.layout import Layout, check_finite
from wsnotebook.methods import codebook
from wsnotebook.methods.codebook import Clustered, Compressed


@dataclass(frozen=True)
class Config:
    """How a network is pruned and clustered."""

    nonzero_percent: float = 4.0  # share of weights that stays, %
    centres: int = 16  # k-means centres a layer
    epochs: int = 20  # the first half prunes, all fine-tune
    batch: int = 128  # rows a step
    lr: float = 1e-3  # Adam's learning rate, cosine to 0
    shift: int = 0  # random shifts of the images by up to so many pixels
    flip: bool = False  # random horizontal flips
    fine_tune: codebook.Config = field(default=codebook.Config())  # after clustering, and how the file is rounded
    seed: int = 0  # of order and k-means

    def __post_init__(self):
        training.check_at_least(self, epochs=1, batch=1, lr=0, centres=1, shift=0)
        if not 0 < self.nonzero_percent <= 100:
            raise ValueError(f"nonzero_percent={self.nonzero_percent!r}: expected a share in (0, 100] %")


def prune(network: nn.Module, dataset: Dataset, config: Config, *, keep: bool = False) -> Compressed:
    """Prune, fine-tune and cluster the weights (matrices and kernels) of a copy of a trained network, and pack it.

    keep: store the result in the cache folder, where the same call later finds it.
    """
    dataset.check_classes("pruning")
    check_finite(network.state_dict(), "network")
    path = training.kept_path("pruning", config, dataset, network) if keep else None
    if stored := training.load_kept(path):
        return Compressed.load(stored)
    started, network = time.process_time(), copy.deepcopy(network)
    layout = Layout.of(network, kinds=("weight",))
    weights = [dict(network.named_parameters())[name] for name in layout.names]
    optimiser = torch.optim.Adam(network.parameters(), config.lr, fused=True)
    x, y = dataset.train
    masks = [torch.ones_like(w) for w in weights]
    steps = -(-len(x) // config.batch)
    for epoch in tqdm(range(1, config.epochs + 1), desc="magnitude pruning", unit="epoch", leave=False):
        network.train()
        with training.epoch_randomness(config.seed, epoch, x.device):
            for step, (t, rows) in enumerate(training.minibatches(len(x), config, epoch, x.device)):
                if step % max(1, steps // 10) == 0 and t <= 0.5:
                    masks = magnitude_masks(weights, share_left(2 * t, config.nonzero_percent / 100))
                training.set_lr(optimiser, config.lr, "cosine", t)
                loss = F.cross_entropy(network(training.augmented(x[rows], config)), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                with torch.no_grad():
                    torch._foreach_mul_(weights, masks)

    masks = magnitude_masks(weights, config.nonzero_percent / 100)
    clusters = [
        cluster((w * mask).detach().cpu(), config.centres, config.seed) for w, mask in zip(weights, masks, strict=True)
    ]
    ids, books = (dict(zip(layout.names, part, strict=True)) for part in zip(*clusters, strict=True))
    return _packed(network, dataset, Clustered(ids, books), config.fine_tune, started, path)


def uniform(
    network: nn.Module, dataset: Dataset, levels: int, fine_tune: codebook.Config, *, keep: bool = False
) -> Compressed:
    """Round each weight tensor to a symmetric uniform grid of so many levels, zero among them, and pack the network.

    levels: odd, at least 3; the grid's ends are at the tensor's largest magnitude. fine_tune: as for the other methods.
    keep: as in `prune`.
    """
    if levels < 3 or levels % 2 == 0:
        raise ValueError(f"levels={levels!r}: expected an odd number of at least 3, so that zero is a level")
    check_finite(network.state_dict(), "network")
    path = training.kept_path("uniform", (levels, fine_tune), dataset, network) if keep else None
    if stored := training.load_kept(path):
        return Compressed.load(stored)
    started, layout, state = time.process_time(), Layout.of(network, kinds=("weight",)), network.state_dict()
    half, ids, books = levels // 2, {}, {}
    grid = torch.arange(-half, half + 1)
    grid = torch.cat([grid[half:], grid[:half]])  # zero first: 0, 1 .. half, -half .. -1
    for name in layout.names:
        step = (state[name].abs().max() / half).clamp(min=torch.finfo(torch.float32).tiny).cpu()
        ids[name] = (state[name].cpu() / step).round().long() % levels
        books[name] = grid * step
    return _packed(network, dataset, Clustered(ids, books), fine_tune, started, path)


def _packed(
    network: nn.Module,
    dataset: Dataset,
    clustered: Clustered,
    fine_tune: codebook.Config,
    started: float,
    path: Path | None,
) -> Compressed:
    """The network's file, with the CPU-seconds since the baseline began, kept."""
    compressed = codebook.pack(network, dataset, clustered, fine_tune)
    compressed = replace(compressed, cpu_seconds=time.process_time() - started)
    training.save_kept(path, compressed.stored())
    return compressed


def share_left(t: float, final: float) -> float:
    """Share of weights left at time t in [0, 1] of the pruning: from 1 down to `final` along a cubic."""
    return final + (1 - final) * (1 - min(t, 1.0)) ** 3


def magnitude_masks(weights: list[Tensor], share: float) -> list[Tensor]:
    """Ones at the `share` largest magnitudes over all tensors together, zeros elsewhere."""
    magnitudes = torch.cat([w.detach().abs().reshape(-1) for w in weights])
    keep = max(1, round(share * len(magnitudes)))
    threshold = magnitudes.kthvalue(len(magnitudes) - keep + 1).values
    return [(w.detach().abs() >= threshold).float() for w in weights]


def cluster(w: Tensor, centres: int, seed: int) -> tuple[Tensor, Tensor]:
    """Non-zeros of w shared by k-means: (ids of w's shape, codebook (k,)); entry 0 is zero, 1.. are the centres."""
    ids, book = torch.zeros_like(w, dtype=torch.int64), torch.zeros(1)
    kept = w[w != 0].reshape(-1, 1)
    if len(kept):
        k = min(centres, len(kept.unique()))
        start = torch.linspace(float(kept.min()), float(kept.max()), k)[:, None]  # linear start, as in the paper
        means = KMeans(k, init=start.numpy(), n_init=1, random_state=seed).fit(kept.numpy())
        ids[w != 0] = torch.from_numpy(means.labels_).long() + 1
        book = torch.cat([book, torch.from_numpy(means.cluster_centers_[:, 0]).float()])
    return ids, book

"""The baseline every compressor must beat: magnitude pruning, fine-tuning, then k-means on what is left.

Han, Mao and Dally 2016, "Deep compression". Weights are pruned gradually (cubic schedule of Zhu and Gupta 2017) to a
chosen share of non-zeros, by one magnitude threshold over all layers, and fine-tuned; then each layer's non-zeros share
the centres of a k-means clustering. Counted by the same accounting as soft weight-sharing.
"""

import copy
from dataclasses import astuple, dataclass

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from wsnotebook import training
from wsnotebook.datasets import Dataset, replacing
from wsnotebook.evaluation import score
from wsnotebook.layout import Layout, check_finite
from wsnotebook.methods import codec


@dataclass(frozen=True)
class Config:
    """How a network is pruned and clustered."""

    nonzero_percent: float = 4.0  # share of weights that stays, %
    centres: int = 16  # k-means centres a layer
    epochs: int = 20  # the first half prunes, all fine-tune
    batch: int = 128  # rows a step
    lr: float = 1e-3  # Adam's learning rate, cosine to 0
    seed: int = 0  # of order and k-means

    def __post_init__(self):
        training.check_at_least(self, epochs=1, batch=1, lr=0, centres=1)
        if not 0 < self.nonzero_percent <= 100:
            raise ValueError(f"nonzero_percent={self.nonzero_percent!r}: expected a share in (0, 100] %")


@dataclass(frozen=True)
class Result:
    """A pruned and clustered network: its state, its size by the paper's accounting, validation error by epoch (%)."""

    config: Config
    quantised: dict[str, Tensor]
    sizes: codec.Sizes
    validation_errors: list[float]
    quantised_error: float  # validation error after clustering, %


def prune(network: nn.Module, dataset: Dataset, config: Config, *, keep: bool = False) -> Result:
    """Prune, fine-tune and cluster the weights (matrices and kernels) of a copy of a trained network.

    keep: store the result in the cache folder, where the same call later finds it.
    """
    check_finite(network.state_dict(), "network")
    path = training.kept_path("pruning", config, dataset, network) if keep else None
    if stored := training.load_kept(path):
        sizes = codec.Sizes(tuple(codec.LayerSize(*layer) for layer in stored["layers"]))
        return Result(config, stored["state"], sizes, stored["errors"], stored["quantised_error"])
    network = copy.deepcopy(network)
    layout = Layout.of(network, kinds=("weight",))
    weights = [dict(network.named_parameters())[name] for name in layout.names]
    optimiser = torch.optim.Adam(network.parameters(), config.lr, fused=True)
    x, y = dataset.train
    masks, errors = [torch.ones_like(w) for w in weights], []
    steps = -(-len(x) // config.batch)
    for epoch in tqdm(range(1, config.epochs + 1), desc="magnitude pruning", unit="epoch", leave=False):
        network.train()
        with training.epoch_randomness(config.seed, epoch, x.device):
            for step, (t, rows) in enumerate(training.minibatches(len(x), config, epoch, x.device)):
                if step % max(1, steps // 10) == 0 and t <= 0.5:
                    masks = magnitude_masks(weights, share_left(2 * t, config.nonzero_percent / 100))
                training.set_lr(optimiser, config.lr, "cosine", t)
                loss = F.cross_entropy(network(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                with torch.no_grad():
                    torch._foreach_mul_(weights, masks)
        errors.append(score(network, dataset.validation).error)

    layers = []
    with torch.no_grad():
        for name, w, mask in zip(
            layout.names, weights, magnitude_masks(weights, config.nonzero_percent / 100), strict=True
        ):
            values, ids = cluster(w.cpu() * mask.cpu(), config.centres, config.seed)
            w.copy_(values)
            layers.append(codec.paper_size(name, ids, codebook=config.centres))
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    error = score(network, dataset.validation).error
    if path:
        parts = {"state": state, "layers": [astuple(layer) for layer in layers], "errors": errors}
        with replacing(path) as file:
            torch.save(parts | {"quantised_error": error}, file)
    return Result(config, state, codec.Sizes(tuple(layers)), errors, error)


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
    """Non-zeros of w replaced by their k-means centre: (values, ids), ids 0 for zero and 1.. for the centres."""
    values, ids = w.clone(), torch.zeros_like(w, dtype=torch.int64)
    kept = w[w != 0].reshape(-1, 1)
    if len(kept):
        k = min(centres, len(kept.unique()))
        start = torch.linspace(float(kept.min()), float(kept.max()), k)[:, None]  # linear start, as in the paper
        means = KMeans(k, init=start.numpy(), n_init=1, random_state=seed).fit(kept.numpy())
        values[w != 0] = torch.from_numpy(means.cluster_centers_[means.labels_, 0]).to(w.dtype)
        ids[w != 0] = torch.from_numpy(means.labels_).long() + 1
    return values, ids

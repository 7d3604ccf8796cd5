"""Training and evaluating k networks of one architecture as one computation: the quickest engine that takes them.

lanes (numba, extra `fast`): small CNNs, compiled. stacked (torch): flat Sequentials. single (torch): any
module, one after another.
"""

import importlib.util

from torch import Tensor, nn

from wsnotebook.engines import stacked
from wsnotebook.engines.trainers import SingleEngine, StackedEngine

GROUP = 16  # networks of a computation: enough to share its cost, few enough for the caches


def choose(network: nn.Module, device: str = "cpu") -> str:
    """The quickest engine's name for a network: lanes, stacked or single. Without numba it is never lanes."""
    if device == "cpu" and importlib.util.find_spec("numba"):
        from wsnotebook.engines import lanes

        if lanes.supports(network):
            return "lanes"
    return "stacked" if stacked.supports(network) else "single"


def make(name: str, network: nn.Module, weights: Tensor, **settings):
    """The engine of this name over weights (k, d); settings as `StackedEngine` takes them."""
    if name == "lanes":
        from wsnotebook.engines.lanes import LaneEngine

        return LaneEngine(network, weights, **settings)
    return {"stacked": StackedEngine, "single": SingleEngine}[name](network, weights, **settings)

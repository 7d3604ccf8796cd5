"""The papers' target networks, by name, as plain `nn.Module`s.

lenet-300-100, lenet-5-caffe, tutorialnet and wrn-16-4 are the networks of Ullrich et al. 2017 (soft weight-sharing);
mlp-A-B-..-C is any multilayer perceptron and wrn-D-K any wide residual network (Zagoruyko and Komodakis 2016).
package.module:function is your own: the function is imported and called without arguments.
"""

import difflib
import importlib
import re
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.datasets import Dataset

NAMES = (
    "lenet-300-100",
    "lenet-5-caffe",
    "tutorialnet",
    "wrn-D-K (as wrn-16-4)",
    "mlp-A-B-..-C (as mlp-64-32-10)",
    "package.module:function (your own)",
)


def build(name: str, *, classes: int = 10, channels: int = 3, seed: int = 0) -> nn.Module:
    """A freshly initialised network. Takes images (n, c, h, w), or rows (n, A) for an MLP; returns logits (n, classes).

    classes: number of outputs; an MLP's own last number says it. channels: of a wide residual network's images. seed:
    of the initial weights (PyTorch's default initialisation; He normal for wide residual networks). Raises ValueError
    for an unknown name, an impossible size, or a function that does not give a module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in name:
            return _own(name)
        if name == "lenet-300-100":
            return mlp(784, 300, 100, classes)
        if name == "lenet-5-caffe":
            return lenet_5_caffe(classes)
        if name == "tutorialnet":
            return tutorialnet(classes)
        if re.fullmatch(r"mlp(-[1-9]\d*){2,}", name):
            return mlp(*map(int, name.split("-")[1:]))
        if re.fullmatch(r"wrn-\d+-[1-9]\d*", name):
            depth, width = map(int, name.split("-")[1:])
            return WideResNet(depth, width, classes, channels)
    close = difflib.get_close_matches(name, [n.split()[0] for n in NAMES], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown network {name!r}{hint} Known: {', '.join(NAMES)}")


def _own(name: str) -> nn.Module:
    """The network that a user's function makes."""
    module, _, function = name.partition(":")
    try:
        network = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"network {name!r}: {error}; expected package.module:function, importable from here (PYTHONPATH)"
        ) from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"network {name!r} gives {type(network).__name__}, expected a torch.nn.Module")
    return network


def build_for(dataset: Dataset, name: str, *, seed: int = 0) -> nn.Module:
    """`build` with an output a class of the dataset, on its device. Raises ValueError when the two do not fit."""
    x = dataset.train[0][:1]
    network = build(name, classes=len(dataset.classes), channels=x.shape[1], seed=seed).to(x.device).eval()
    try:
        with torch.no_grad():
            outputs = network(x).shape[1]
    except RuntimeError as error:
        shape = tuple(x.shape[1:])
        raise ValueError(f"network {name!r} does not take {dataset.name}'s rows of shape {shape}: {error}") from None
    if outputs != len(dataset.classes):
        raise ValueError(f"network {name!r} has {outputs} outputs; {dataset.name} has {len(dataset.classes)} classes")
    return network.train()


def mlp(*sizes: int) -> nn.Sequential:
    """Multilayer perceptron with ReLU between its layers; inputs of any shape are flattened to sizes[0] numbers."""
    layers = [("flatten", nn.Flatten())]
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
        layers += [(f"fc{i}", nn.Linear(a, b)), (f"relu{i}", nn.ReLU())]
    return nn.Sequential(OrderedDict(layers[:-1]))


def lenet_5_caffe(classes: int) -> nn.Sequential:
    """LeNet-5 in Caffe's form: two 5x5 convolutions with pooling, 800-500-classes. Takes (n, 1, 28, 28)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )


def tutorialnet(classes: int) -> nn.Sequential:
    """The strided network of the soft weight-sharing authors' tutorial. Takes (n, 1, 28, 28)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 25, 5, stride=2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(25, 50, 3, stride=2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(1250, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )


class WideResNet(nn.Module):
    """Wide residual network for small images: pre-activation blocks, widths 16K, 32K, 64K. Takes (n, channels, h, w).

    depth is 6 n + 4 with n blocks a group; width is K. Raises ValueError for another depth.
    """

    def __init__(self, depth: int, width: int, classes: int, channels: int = 3):
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"wrn-{depth}-{width}: depth must be 6 n + 4 (10, 16, 22, 28, ...), got {depth}")
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.groups = nn.Sequential(
            *(
                nn.Sequential(
                    *(Block(a if i == 0 else b, b, stride=2 if i == 0 and group > 0 else 1) for i in range(blocks))
                )
                for group, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
            )
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(self.conv(x))  # (n, 64 K, h/4, w/4)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class Block(nn.Module):
    """Pre-activation residual block; the 1x1 shortcut, where the shape changes, starts after the first BN and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(F.relu(self.bn2(self.conv1(h)))) + skip

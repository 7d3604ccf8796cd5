"""The papers' target networks, by name, as plain `nn.Module`s.

lenet-300-100, lenet-5-caffe, tutorialnet and wrn-16-4 are the networks of Ullrich et al. 2017 (soft weight-sharing);
cnn-small, cnn-medium and cnn-large those of the Model Zoos (Schuerholt et al. 2022), cnn-tiny their twin for 8 x 8
images; resnet-20 and resnet-18 (He et al. 2016) and vit-small (Dosovitskiy et al. 2021) in the form for 32 x 32 images
that DeepWeightFlow generates, vit-tiny its twin for 8 x 8. mlp-A-B-..-C is any multilayer perceptron, wrn-D-K any wide
residual network (Zagoruyko and Komodakis 2016), resnet-D any narrow one (D = 6 n + 2). cornn-H-A are the six of the
CORNN benchmark: two inputs, H = 1, 3 or 5 hidden layers of 10 with A = relu or tanh, one output.
mixed-A-B-..-C is a perceptron with an activation of its own for each unit (SWAT-NN, Huang et al. 2025).
package.module:function is your own: the function is imported and called without arguments. A file that brings such a
name is not believed: `zoo.load` takes it only from a caller who says it too.
"""

import difflib
import importlib
import math
import re
import sys
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsnotebook.datasets import Dataset

NAMES = (
    "lenet-300-100",
    "lenet-5-caffe",
    "tutorialnet",
    "cnn-small",
    "cnn-medium",
    "cnn-large",
    "cnn-tiny",
    "resnet-18",
    "resnet-D (as resnet-20)",
    "vit-small",
    "vit-tiny",
    "wrn-D-K (as wrn-16-4)",
    "mlp-A-B-..-C (as mlp-64-32-10)",
    "mixed-A-B-..-C (as mixed-2-7-1)",
    "cornn-H-A (as cornn-3-tanh)",
    "package.module:function (your own)",
)


def build(
    name: str,
    *,
    classes: int = 10,
    channels: int | None = None,
    seed: int = 0,
    activation: str | None = None,
    dropout: float = 0.0,
    init: str = "default",
) -> nn.Module:
    """A freshly initialised network. Takes images (n, c, h, w), or rows (n, A) for an MLP; returns logits (n, classes).

    classes: number of outputs; an MLP's own last number says it. channels: of the images; None is the published form's.
    seed: of the initial weights. activation, dropout (a probability): of the MLPs and of the Model Zoos' CNNs, None
    being the published one. init: one of `INITS`, "default" being the published one.
    Raises ValueError for an unknown name or choice, an impossible size, or a function that does not give a module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _named(name, classes, channels, activation, dropout)
        initialise(network, init)
    return network


def _named(name: str, classes: int, channels: int | None, activation: str | None, dropout: float) -> nn.Module:
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}: expected a probability from 0 up to, not including, 1")
    if name == "lenet-300-100":
        return mlp(784, 300, 100, classes, activation=activation, dropout=dropout)
    if re.fullmatch(r"mlp(-[1-9]\d*){2,}", name):
        return mlp(*map(int, name.split("-")[1:]), activation=activation, dropout=dropout)
    if name in _CNNS:
        return cnn(*_CNNS[name], classes=classes, channels=channels, activation=activation, dropout=dropout)
    if activation is not None or dropout:
        raise ValueError(f"network {name!r}: activation and dropout can be chosen for mlp-... and cnn-... alone")
    if re.fullmatch(r"mixed(-[1-9]\d*){2,}", name):
        return MixedMLP(*map(int, name.split("-")[1:]))
    if ":" in name:
        return _own(name)
    if re.fullmatch(r"cornn-[135]-(relu|tanh)", name):
        _, hidden, activation = name.split("-")
        return mlp(2, *[10] * int(hidden), 1, activation=activation)
    if name == "lenet-5-caffe":
        return lenet_5_caffe(classes)
    if name == "tutorialnet":
        return tutorialnet(classes)
    if name == "resnet-18":
        return ResNet((2, 2, 2, 2), 64, classes, channels or 3)
    if re.fullmatch(r"resnet-\d+", name):
        return narrow_resnet(int(name.split("-")[1]), classes, channels or 3)
    if name == "vit-small":
        return VisionTransformer(32, 4, 192, 6, 3, classes, channels or 3, dropout=0.1)
    if name == "vit-tiny":
        return VisionTransformer(8, 2, 32, 2, 2, classes, channels or 1, dropout=0.0)
    if re.fullmatch(r"wrn-\d+-[1-9]\d*", name):
        depth, width = map(int, name.split("-")[1:])
        return WideResNet(depth, width, classes, channels or 3)
    close = difflib.get_close_matches(name, [n.split()[0] for n in NAMES], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown network {name!r}{hint} Known: {', '.join(NAMES)}")


def example(name: str, *, channels: int | None = None) -> Tensor:
    """One random input (1, ...) of the shape that the network of this name takes: images, or the rows of an MLP.

    Raises ValueError for a user's own network: its function does not say what it takes.
    """
    if ":" in name:
        raise ValueError(f"network {name!r} is your own and its input's shape is not known: pass an example x (1, ...)")
    if name.startswith(("mlp-", "mixed-")):
        shape = (int(name.split("-")[1]),)
    elif name.startswith("cornn-"):
        shape = (2,)
    elif name in ("cnn-tiny", "vit-tiny"):
        shape = (channels or 1, 8, 8)
    elif name in _CNNS and name != "cnn-large" or name.startswith("lenet") or name == "tutorialnet":
        shape = (channels or 1, 28, 28)
    else:
        shape = (channels or 3, 32, 32)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


INITS = ("default", "he", "xavier", "uniform", "normal")


def initialise(network: nn.Module, init: str) -> None:
    """Draw the weights of linear and convolutional layers anew, their biases becoming zero; "default" changes nothing.

    he: uniform, variance 2 / fan-in; xavier: uniform, variance 2 / (fan-in + fan-out); uniform: in +-0.1; normal:
    standard deviation 0.02 (the five of DeepWeightFlow's iris zoo). Raises ValueError for another name.
    """
    if init not in INITS:
        raise ValueError(f"init={init!r}: expected one of {', '.join(INITS)}")
    draw = {
        "he": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
        "xavier": nn.init.xavier_uniform_,
        "uniform": lambda w: nn.init.uniform_(w, -0.1, 0.1),
        "normal": lambda w: nn.init.normal_(w, std=0.02),
    }
    for module in network.modules() if init != "default" else ():
        if isinstance(module, nn.Linear | nn.Conv2d):
            draw[init](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


_BUILT = set()  # names of users' functions that were called in this process


def is_safe(name: str) -> bool:
    """Whether building the network of this name calls nothing but the package, or a function that was called before."""
    return ":" not in name or name in _BUILT


def _own(name: str) -> nn.Module:
    """The network that a user's function makes."""
    module, _, function = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:  # which a module of yours would be hidden by
        raise ValueError(f"network {name!r}: {module} is Python's own; expected a module of yours, under another name")
    try:
        network = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"network {name!r}: {error}; expected package.module:function, importable from here (PYTHONPATH)"
        ) from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"network {name!r} gives {type(network).__name__}, expected a torch.nn.Module")
    _BUILT.add(name)
    return network


def build_for(dataset: Dataset, name: str, *, seed: int = 0, **options) -> nn.Module:
    """`build` with an output a class of the dataset, or a number that it asks for, on its device.

    Raises ValueError when the two do not fit.
    """
    x = dataset.train[0][:1]
    channels = x.shape[1] if x.ndim == 4 else None
    network = build(name, classes=dataset.outputs, channels=channels, seed=seed, **options).to(x.device).eval()
    try:
        with torch.no_grad():
            outputs = network(x).shape[1]
    except RuntimeError as error:
        shape = tuple(x.shape[1:])
        raise ValueError(f"network {name!r} does not take {dataset.name}'s rows of shape {shape}: {error}") from None
    if outputs != dataset.outputs:
        wanted = f"{dataset.outputs} {'target(s)' if dataset.regression else 'classes'}"
        raise ValueError(f"network {name!r} has {outputs} outputs; {dataset.name} has {wanted}")
    return network.train()


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}


def mlp(*sizes: int, activation: str | None = None, dropout: float = 0.0) -> nn.Sequential:
    """Multilayer perceptron; inputs of any shape are flattened to sizes[0] numbers. ReLU unless said otherwise."""
    activation = activation or "relu"
    layers = [("flatten", nn.Flatten())]
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
        layers += [(f"fc{i}", nn.Linear(a, b))]
        if i < len(sizes) - 1:
            layers += [(f"{activation}{i}", ACTIVATIONS[activation]())]
            layers += [(f"dropout{i}", nn.Dropout(dropout))] if dropout else []
    return nn.Sequential(OrderedDict(layers))


UNITS = {  # what a unit of a MixedMLP may compute; torch.sigmoid's and gelu's last bit depends on a number's place
    "sigmoid": lambda z: torch.tanh(z / 2) / 2 + 0.5,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
    "gelu": lambda z: z * (torch.erf(z / math.sqrt(2)) / 2 + 0.5),
    "sin": torch.sin,
    "identity": lambda z: z,
}
OFF = -1  # in the place of an activation: a unit that is off, and gives 0


class MixedMLP(nn.Module):
    """Multilayer perceptron with an activation for each hidden unit; inputs are flattened to sizes[0] numbers.

    Its buffers activation1 (sizes[1],), ... are positions in `UNITS`, or OFF. Sums go through the units in their order
    (`in_order`), so that one that is off, and one that is missing, are the same to the last bit.
    """

    def __init__(self, *sizes: int):
        super().__init__()
        self.hidden = len(sizes) - 2
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
            self.add_module(f"fc{i}", nn.Linear(a, b))
            if i <= self.hidden:
                self.register_buffer(f"activation{i}", torch.zeros(b, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1).mT  # (units, n)
        for i in range(1, self.hidden + 2):
            layer = self.get_submodule(f"fc{i}")
            h = in_order(layer.weight, h, layer.bias)
            if i <= self.hidden:
                h = self._activated(h, self.get_buffer(f"activation{i}")[:, None])
        return h.mT

    @staticmethod
    def _activated(z: Tensor, kinds: Tensor) -> Tensor:
        h = torch.zeros_like(z)
        for kind, function in enumerate(UNITS.values()):
            h = torch.where(kinds == kind, function(z), h)
        return h


def in_order(weights: Tensor, h: Tensor, biases: Tensor) -> Tensor:
    """weights (..., a, b) @ h (..., b, n) + biases (..., a), where every sum goes through the b numbers in their order.

    So does a BLAS if the matrix in front has four rows or more; fewer are therefore filled up.
    """
    rows = weights.shape[-2]
    return (F.pad(weights, (0, 0, 0, max(0, 4 - rows))) @ h)[..., :rows, :] + biases[..., None]


_CNNS = {  # image side, then (kernel, outputs, pooled) of each convolution, then the hidden layer's width
    "cnn-small": (28, ((5, 8, True), (5, 6, True), (2, 4, False)), 20),
    "cnn-medium": (28, ((5, 6, True), (5, 9, True), (2, 6, False)), 20),
    "cnn-large": (32, ((3, 16, True), (3, 32, True), (3, 15, True)), 20),
    "cnn-tiny": (8, ((3, 6, True), (2, 4, False)), 12),
}


def cnn(
    side: int,
    convolutions: tuple,
    hidden: int,
    *,
    classes: int,
    channels: int | None = None,
    activation: str | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A CNN of the Model Zoos: convolution, max pooling, activation (tanh unless said otherwise), two linear layers.

    Biases start at 0.01. Takes (n, channels, side, side); channels None: 1, or 3 where side is 32.
    """
    activation = activation or "tanh"
    a, layers = channels or (3 if side == 32 else 1), []
    for i, (kernel, b, pooled) in enumerate(convolutions, start=1):
        layers += [(f"conv{i}", nn.Conv2d(a, b, kernel))]
        layers += [(f"pool{i}", nn.MaxPool2d(2))] if pooled else []
        layers += [(f"{activation}{i}", ACTIVATIONS[activation]())]
        layers += [(f"dropout{i}", nn.Dropout(dropout))] if dropout and pooled and i < 3 else []
        side, a = (side - kernel + 1) // (2 if pooled else 1), b
    last = len(convolutions) + 1
    layers += [("flatten", nn.Flatten()), ("fc1", nn.Linear(a * side * side, hidden))]
    layers += [(f"{activation}{last}", ACTIVATIONS[activation]())]
    layers += [(f"dropout{last}", nn.Dropout(dropout))] if dropout else []
    layers += [("fc2", nn.Linear(hidden, classes))]
    network = nn.Sequential(OrderedDict(layers))
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.bias, 0.01)
    return network


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


def narrow_resnet(depth: int, classes: int, channels: int) -> "ResNet":
    """The residual network of He et al. for CIFAR: three stages of (depth - 2) / 6 blocks, widths 16, 32, 64."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"resnet-{depth}: depth must be 6 n + 2 (8, 14, 20, ...) or 18, got {depth}")
    return ResNet((blocks,) * 3, 16, classes, channels)


class ResNet(nn.Module):
    """Residual network for small images: 3x3 stem, stages that halve the side and double the width. Takes (n, c, h, w).

    stages: the number of blocks of each; width: of the first.
    """

    def __init__(self, stages: tuple[int, ...], width: int, classes: int, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage, number in enumerate(stages):
            for i in range(number):
                blocks.append(BasicBlock(inputs, width << stage, stride=2 if stage and i == 0 else 1))
                inputs = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))  # (n, width, h, w)
        return self.fc(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Residual block, ReLU after the sum; the shortcut is a 1x1 convolution with BN where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


class VisionTransformer(nn.Module):
    """Vision transformer with a class token and pre-norm blocks. Takes (n, channels, side, side)."""

    def __init__(
        self, side: int, patch: int, dim: int, depth: int, heads: int, classes: int, channels: int, dropout: float
    ):
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (side // patch) ** 2, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)  # (n, patches, dim)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)  # (n, tokens, dim)
        x = self.blocks(self.dropout(x + self.position))
        return self.head(self.norm(x)[:, 0])


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a norm and added to its input (n, tokens, dim).

    causal: a token does not see those after it (GPT-2's block).
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(dim, 4 * dim),
                gelu=nn.GELU(),
                dropout1=nn.Dropout(dropout),
                fc2=nn.Linear(4 * dim, dim),
                dropout2=nn.Dropout(dropout),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values; (n, tokens, dim) in and out."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        parts = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (n, heads, tokens, dim / heads)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).reshape(n, tokens, dim)
        return self.dropout(self.proj(h))

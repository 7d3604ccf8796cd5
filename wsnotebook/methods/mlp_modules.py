"""Plain perceptrons of one form (`mlp_matrix`) as modules of their own and as zoos, and back."""

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from wsnotebook.layout import Layout
from wsnotebook.methods.mlp_matrix import Form, Parts, check_parts, check_plain, empty, non_zeros, units, used
from wsnotebook.networks import OFF, UNITS, MixedMLP
from wsnotebook.zoo.value import Zoo

MODULES = {  # what a user's network may have between its linear layers
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.Identity: "identity",
}


def network(form: Form, parts: Parts, i: int) -> MixedMLP:
    """Network i as a module of its own, without the units that are off; a layer that has no other keeps one.

    Raises ValueError for one that `hardened` has not made plain.
    """
    one = parts.take(slice(i, i + 1) if i >= 0 else slice(i, i + 1 or None))
    check_parts(form, one)
    check_plain(one)
    weights, biases, activations, masks, depth = (part[0] for part in one)
    rows = torch.arange(form.rows, device=masks.device)
    kept = [rows[mask > 0] if mask.any() else rows[:1] for mask in masks[:depth]]
    kept = [rows[: form.inputs], *kept, rows[: form.outputs]]
    made = MixedMLP(*map(len, kept)).to(weights.dtype)
    state, kinds = {}, _kinds(form, activations, masks)  # (L, H)
    for layer, (before, here) in enumerate(zip(kept, kept[1:], strict=False)):
        place = layer if layer < depth else -1
        on = masks[layer - 1, before] if layer else weights.new_ones(form.inputs)  # what is off is not read
        state[f"fc{layer + 1}.weight"] = weights[place][here][:, before] * on
        state[f"fc{layer + 1}.bias"] = biases[place, here]
        if layer < depth:
            state[f"activation{layer + 1}"] = kinds[layer, here]
    made.load_state_dict(state)
    return made.eval()


def from_network(form: Form, module: nn.Module) -> Parts:
    """One network in this form: a MixedMLP, or a Sequential of linear layers with activations between them.

    Raises ValueError naming the layer that is none of these, too wide or too many.
    """
    layers = _mixed(module) if isinstance(module, MixedMLP) else _sequential(module)
    sizes = [layers[0][1].shape[1], *(len(weight) for _, weight, _, _ in layers)]
    if not 2 <= len(layers) <= form.depth + 1:
        raise ValueError(f"network: {len(layers) - 1} hidden layers, {form} has room for 1 to {form.depth}")
    if (sizes[0], sizes[-1]) != (form.inputs, form.outputs):
        raise ValueError(f"network: {sizes[0]} inputs and {sizes[-1]} outputs, expected those of {form}")
    parts = empty(form, torch.tensor([len(layers) - 1]), layers[0][1].dtype)
    for layer, (name, weight, bias, activations) in enumerate(layers):
        place = layer if activations else -1
        if activations and len(weight) > form.width:
            raise ValueError(f"layer {name!r}: {len(weight)} units, {form} has room for {form.width}")
        parts.weights[0, place, : weight.shape[0], : weight.shape[1]] = weight
        parts.biases[0, place, : len(bias)] = bias
        for unit, activation in enumerate(activations):
            if activation is None:  # off
                continue
            if activation not in form.activations:
                raise ValueError(f"layer {name!r}: activation {activation}, {form} has none such")
            parts.activations[0, layer, unit, form.activations.index(activation)] = 1
            parts.masks[0, layer, unit] = 1
    return parts


Layer = tuple[str, Tensor, Tensor, list]  # name, weight, bias, activation of each unit; none of the outputs


def _mixed(module: MixedMLP) -> list[Layer]:
    layers, names = [], [*UNITS]
    for i in range(1, module.hidden + 2):
        linear, kinds = module.get_submodule(f"fc{i}"), []
        if i <= module.hidden:
            kinds = [None if kind == OFF else names[kind] for kind in module.get_buffer(f"activation{i}").tolist()]
        layers.append((f"fc{i}", linear.weight.detach(), linear.bias.detach(), kinds))
    return layers


def _sequential(module: nn.Module) -> list[Layer]:
    if not isinstance(module, nn.Sequential):
        raise ValueError(f"network: {type(module).__name__}, expected nn.Sequential or MixedMLP")
    layers, pending = [], None  # the linear layer whose activation comes next
    for name, layer in module._modules.items():  # named_children leaves out an activation that is used again
        if isinstance(layer, nn.Linear):
            if pending:
                layers.append((*pending, ["identity"] * len(pending[1])))
            bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
            pending = (name, layer.weight.detach(), bias)
        elif pending and _activation(layer):
            layers.append((*pending, [_activation(layer)] * len(pending[1])))
            pending = None
        elif not isinstance(layer, nn.Flatten | nn.Dropout):
            raise ValueError(
                f"layer {name!r}: {layer} is not understood here; expected Linear, then one of "
                f"{', '.join(kind.__name__ for kind in MODULES)} (LeakyReLU of slope 0.01, GELU exact), and so on"
            )
    if not pending:
        raise ValueError("network: does not end with a linear layer, as the outputs of this form do")
    return [*layers, (*pending, [])]


def _activation(layer: nn.Module) -> str | None:
    if getattr(layer, "negative_slope", 0.01) != 0.01 or getattr(layer, "approximate", "none") != "none":
        return None
    return MODULES.get(type(layer))


def _kinds(form: Form, activations: Tensor, masks: Tensor) -> Tensor:
    """Each unit's place in `networks.UNITS`, or OFF: (..., H) of shares (..., H, A) and masks (..., H)."""
    places = torch.tensor([[*UNITS].index(name) for name in form.activations], device=masks.device)
    return torch.where(masks > 0, places[activations.argmax(-1)], OFF)


# ---- many plain networks as a zoo --------------------------------------------------------------------------------


def to_zoo(form: Form, parts: Parts, provenance: dict | None = None, **facts: np.ndarray) -> Zoo:
    """Plain networks as a Zoo of one padded architecture, with the facts model, depth, units, non_zeros and the given.

    Its hidden layers beyond a network's own hand on what they get. A zoo is float32.
    Raises ValueError for networks that `hardened` has not made plain.
    """
    check_parts(form, parts)
    check_plain(parts)
    weights, biases, activations, masks, depth = parts
    n, W, L = len(depth), form.width, form.depth
    beyond = torch.arange(L, device=depth.device) >= depth[:, None]  # (n, L)
    last = masks[torch.arange(n, device=depth.device), depth - 1, :W]  # (n, W) units that the outputs read
    kinds = _kinds(form, activations, masks)[..., :W]
    handing = torch.where(last > 0, [*UNITS].index("identity"), OFF)
    kinds = torch.where(beyond[..., None], handing[:, None], kinds)
    state = {}
    for layer in range(L + 1):
        inputs, outputs = form.inputs if layer == 0 else W, W if layer < L else form.outputs
        own, bias = weights[:, layer, :outputs, :inputs], biases[:, layer, :outputs]
        if 0 < layer < L:
            own = torch.where(beyond[:, layer, None, None], torch.diag_embed(last), own)
        state |= {f"fc{layer + 1}.weight": own, f"fc{layer + 1}.bias": bias}
    state |= {f"activation{layer + 1}": kinds[:, layer].to(weights) for layer in range(L)}
    sizes = form.inputs, *[W] * L, form.outputs
    name, layout = f"mixed-{'-'.join(map(str, sizes))}", Layout.of(MixedMLP(*sizes))
    facts = {
        "model": np.arange(n),
        "depth": depth.cpu().numpy(),
        "units": units(parts).sum(1).cpu().numpy(),
        "non_zeros": non_zeros(form, parts).cpu().numpy(),
    } | facts
    return Zoo(layout.flatten(state).float(), layout, facts, name, (provenance or {}) | {"form": asdict(form)})


def from_zoo(zoo: Zoo) -> tuple[Form, Parts]:
    """The form and plain networks that `to_zoo` made this zoo of. Raises ValueError for another zoo."""
    if "form" not in zoo.provenance or "depth" not in zoo.facts:
        raise ValueError(f"zoo: {zoo!r} has no form or fact depth; expected one made by mlp_modules.to_zoo")
    form = Form(**zoo.provenance["form"] | {"activations": tuple(zoo.provenance["form"]["activations"])})
    depth, state, W = torch.from_numpy(zoo.facts["depth"]), zoo.layout.unflatten(zoo.weights), form.width
    depth = depth.to(zoo.weights.device)
    parts, real = empty(form, depth), used(form, depth)
    places = torch.tensor([[*UNITS].index(name) for name in form.activations], device=depth.device)
    for layer in range(form.depth + 1):
        weight = state[f"fc{layer + 1}.weight"]
        parts.weights[:, layer, : weight.shape[1], : weight.shape[2]] = weight
        parts.biases[:, layer, : weight.shape[1]] = state[f"fc{layer + 1}.bias"]
        if layer < form.depth:
            parts.activations[:, layer, :W] = (state[f"activation{layer + 1}"][..., None] == places).float()
    parts = Parts(*(part * here for part, here in zip(parts[:4], real[:4], strict=True)), depth)
    return form, parts._replace(masks=parts.activations.sum(-1))

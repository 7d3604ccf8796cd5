"""The scales of ReLU networks: a unit's incoming weights times s and its outgoing ones by s give the same function.

Balanced, every unit's incoming row with its bias is as long as its outgoing column. That is the scale at which the
squared length of all weights is least, so two networks that differ by scales alone become the same one.
"""

import torch
from torch import Tensor

from wsnotebook.symmetry.axes import Specification
from wsnotebook.symmetry.matching import places

SWEEPS = 100  # at most
TOLERANCE = 1e-9  # of log s


def balance(spec: Specification, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state {tensor: (n, *shape)} of n networks with every homogeneous group balanced; computed in float64.

    s = sqrt(outgoing / incoming), group by group until all are balanced; units without incoming or outgoing weights
    are left as they are.
    """
    groups = {group.name for group in spec.groups.values() if group.homogeneous}
    found = places(spec, groups, list(state))
    state = {name: tensor.to(torch.float64, copy=True) for name, tensor in state.items()}
    for _ in range(SWEEPS):
        largest = 0.0
        for spots in found.values():
            squares = [
                torch.zeros(()),
                torch.zeros(()),
            ]  # outputs of a layer are on axis 0, inputs on axis 1; (n, size)
            for place in spots:
                squares[place.axis] = squares[place.axis] + place.unfold(state[place.tensor]).square().sum(2)
            incoming, outgoing = squares
            alive = (incoming > 0) & (outgoing > 0)
            log_s = torch.where(alive, (outgoing / incoming).log() / 4, 0)  # (n, size)
            for place in spots:
                factors = (log_s if place.axis == 0 else -log_s).exp().repeat_interleave(place.block, 1)
                part = state[place.tensor].narrow(1 + place.axis, place.start, factors.shape[1])
                part *= factors.view(len(factors), *[1] * place.axis, -1, *[1] * (part.ndim - 2 - place.axis))
            largest = max(largest, float(log_s.abs().max()))
        if largest < TOLERANCE:
            break
    return state

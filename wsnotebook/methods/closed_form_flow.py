"""The flow without training: the velocity that minimises the flow-matching loss exactly, known in closed form.

With x_t = (1 - t) x0 + t x1 + sigma eps, x0 ~ s N(0, I), x1 one of n networks, V = (1 - t)^2 s^2 + sigma^2:
w = softmax_i(-|x - t x1_i|^2 / 2 V), m = sum_i w_i x1_i, v = m - (1 - t) s^2 / V (x - t m).
As t -> 1, w is one-hot: every sample ends on a training network, up to the path noise. It is the control that a learned
flow must be compared with, because a perfectly trained one is this.
"""

from torch import Tensor

from wsnotebook.methods.coordinates import coordinates
from wsnotebook.methods.sampling import integrate, start, times
from wsnotebook.zoo.value import Zoo


class ClosedForm:
    """The exact flow to a zoo's networks; source, path_noise: in units of the coordinates' rms, as in a flow's Config.

    A path noise of the size of the networks' distances makes samples of a kernel density around them.
    components: as `coordinates`; None loses nothing, since outside the span the flow only shrinks, by (1 - t).
    Raises ValueError for a source or path noise that is not positive, and what `coordinates` does.
    """

    def __init__(self, zoo: Zoo, source: float = 1.0, path_noise: float = 1e-3, components: int | None = None):
        if not 0 < source < float("inf") or not 0 < path_noise < float("inf"):
            raise ValueError(f"source={source!r}, path_noise={path_noise!r}: expected two positive numbers")
        self.coordinates = coordinates(zoo, components)
        self.source, self.path_noise = source * self.coordinates.rms, path_noise * self.coordinates.rms  # absolute
        self.z = self.coordinates.encode(zoo.weights)  # (n, k)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """x (m, k), t () or (m,) in [0, 1] -> (m, k), in the floating-point type of x."""
        z, t = self.z.to(x.dtype), t.reshape(-1, 1)
        variance = (1 - t).square() * self.source**2 + self.path_noise**2  # V
        # |x - t z|^2 without |x|^2, which is the same for all networks and cancels
        log_w = (t * (x @ z.T) - t.square() * z.square().sum(1) / 2) / variance  # (m, n)
        m = log_w.softmax(1) @ z  # softmax subtracts the largest
        return m - (1 - t) * self.source**2 / variance * (x - t * m)

    def sample(
        self,
        n: int,
        *,
        steps: int = 50,
        solver: str = "rk4",
        power: float = 2.0,
        seed: int = 0,
        trajectory: bool = False,
    ) -> Zoo | Tensor:
        """n networks, as `Flow.sample`."""
        x = start(n, self.z.shape[1], self.source, seed, self.z.device)
        path = integrate(self.velocity, x, times(steps, power), solver, self.coordinates.rms)
        return path if trajectory else self.coordinates.zoo(path[-1])

"""A GPU that is only pretended: tensors that say they are on `cuda:0`, lie on the CPU, and mix with none that does.

It finds what a machine without a GPU cannot: tables left on the CPU, generators of the other device, arrays taken of
tensors that are not there. It says nothing about the kernels, speed, memory or numbers of a real one.
"""

import copy
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}  # from any device to any
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
STRICT = "cat stack index_select gather scatter scatter_ scatter_add scatter_add_ index_add index_add_ index_copy_"
STRICT += " embedding take mm bmm addmm baddbmm mv dot searchsorted bucketize"
STRICT = set(STRICT.split())  # these refuse a single number of the CPU too


class Far(torch.Tensor):
    """A CPU tensor that says it is on the GPU. To torch's own C++ it is a CPU tensor, so that autograd needs no GPU."""

    @staticmethod
    def __new__(cls, near):
        options = {"dtype": near.dtype, "device": CPU}
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), **options, requires_grad=False
        )

    def __init__(self, near):
        self.near = near

    def __repr__(self):
        return f"Far({self.near})"

    device, is_cuda, is_cpu = CUDA, True, False

    def __format__(self, form):
        return format(self.near, form)

    def __reduce_ex__(self, protocol):  # kept states are read to the CPU
        return self.near.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                memo[id(self)] = out = self.detach().clone()
            if hasattr(self, "_is_param"):
                out._is_param = True
            out.requires_grad_(self.requires_grad).grad = copy.deepcopy(self.grad, memo)
        return memo[id(self)]

    def __tensor_flatten__(self):  # nn.Module.to then swaps its tensors, instead of their data
        return ["near"], None

    @staticmethod
    def __tensor_unflatten__(inner, _, size, stride):
        return Far(inner["near"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if function is torch.Tensor.tolist:
            return args[0].near.tolist()
        if function is torch._C._nn.one_hot:  # it makes tensors of its own, on the device that C++ sees
            return Far(function(args[0].near, *args[1:], **kwargs))
        if function is torch.Tensor.new_tensor:
            return moved(torch.Tensor.to, torch.tensor(args[1], **{"dtype": args[0].dtype} | kwargs), CUDA)
        if function in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return moved(function, *args, **kwargs)
        if function == torch.Tensor.data.__set__:
            if isinstance(args[0], Far) and isinstance(args[1], Far):
                args[0].near = args[1].near
            else:
                return torch.utils.swap_tensors(args[0], torch.nn.Parameter(args[1], args[0].requires_grad))
        out = super().__torch_function__(function, types, args, kwargs)
        if function == torch.Tensor.grad.__get__ and out is not None and not isinstance(out, Far):
            args[0].grad = out = Far(out)  # made of autograd's own zeros alone
        return out

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def moved(function, tensor, *args, **kwargs):
    """`to`, `cpu` and `cuda` of a tensor that is far, or to go there."""
    device, dtype = CPU if function is torch.Tensor.cpu else CUDA, None
    if function is torch.Tensor.to:
        other = args[0] if args and isinstance(args[0], torch.Tensor) else kwargs.get("other")
        if other is not None:
            device, dtype = other.device, other.dtype
        else:
            known = {k: v for k, v in kwargs.items() if k in ("device", "dtype")}
            device, dtype, *_ = torch._C._nn._parse_to(*args, **known)
    device, dtype = device or tensor.device, dtype or tensor.dtype
    if device.type == tensor.device.type and dtype == tensor.dtype and not kwargs.get("copy"):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return aten._to_copy(tensor, dtype=dtype, device=device)


class Generator(torch.Generator):
    """A generator of the CPU that says it is where it was asked for."""

    def __new__(cls, device=CPU):
        return super().__new__(cls, CPU)

    def __init__(self, device=CPU):
        self.where = torch.device(device)

    device = property(lambda self: self.where)


NUMBERS = Generator(CUDA)  # the GPU's own random numbers


@contextmanager
def far_numbers():
    """The CPU's generator stands for the GPU's."""
    state = torch.default_generator.get_state()
    torch.default_generator.set_state(NUMBERS.get_state())
    try:
        yield
    finally:
        NUMBERS.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(state)


def unplaced(tensor):
    """Whether a tensor is autograd's own, zeros for what has no gradient: on the CPU, for want of a GPU in C++."""
    return hasattr(tensor, "of_a_gradient")


def refuse(function, args, kwargs):
    """RuntimeError for tensors of two devices where a GPU would raise one."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    if function in INDEXED and (isinstance(args[0], Far) or unplaced(args[0])):
        tensors = [args[0], *args[2:3]]  # indices may be on the CPU
    near = [t for t in tensors if not isinstance(t, Far) and not unplaced(t)]
    if function in COPIES or not near or not any(isinstance(t, Far) for t in tensors):
        return
    name = function._schema.name.split("::")[1]
    changed = function._schema.is_mutable and any(t is kwargs.get("out", args[0] if args else None) for t in near)
    if changed or name in STRICT or any(t.ndim for t in near):
        shapes = [f"{'cuda:0' if isinstance(t, Far) else 'cpu'} {tuple(t.shape)}" for t in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but {function} got {', '.join(shapes)}")


def run(function, args, kwargs):
    """The operation on the CPU, its results on the device that a GPU would have them on."""
    refuse(function, args, kwargs)
    inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    any_far, asked = any(isinstance(t, Far) for t in inputs), kwargs.get("device")
    backward = torch._C._current_graph_task_id() != -1
    far = any_far if asked is None else torch.device(asked).type == "cuda"
    if function is aten.new_zeros.default and backward:  # autograd's own: it takes a Far for a CPU tensor
        far = any_far
    if function is aten.copy_.default:
        far = isinstance(args[0], Far)
    generator = any(isinstance(a, Generator.__base__) for a in (*args, *kwargs.values()))
    if not far and not any_far:
        out = function(*args, **kwargs)
        if backward and (function is aten.zeros.default or inputs and all(map(unplaced, inputs))):
            tree_map_only(torch.Tensor, lambda t: setattr(t, "of_a_gradient", True), out)
        return out
    near_args, near_kwargs = tree_map_only(Far, lambda t: t.near, (args, kwargs))
    if asked is not None:
        near_kwargs["device"] = CPU
    seeded = far and not generator and torch.Tag.nondeterministic_seeded in function.tags
    with far_numbers() if seeded else nullcontext():
        out = function(*near_args, **near_kwargs)
    if function is aten._local_scalar_dense.default:
        return out
    if function is aten._to_copy.default and far != any_far and out is near_args[0]:
        out = out.clone()
    if function is aten.copy_.default and not far:
        return args[0]
    if not far:
        return out
    out = tree_map_only(torch.Tensor, Far, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if any_far else out


class Operations(TorchDispatchMode):
    """What is asked for on `cuda` is made there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class Functions(TorchFunctionMode):
    """`torch.tensor` and the like, which make their tensor before an operation sees it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        asked, generator = kwargs.get("device"), kwargs.get("generator")
        if generator is not None:
            where = args[0] if args and isinstance(args[0], torch.Tensor) else torch.empty(0, device=asked)
            if where.device.type != generator.device.type:
                raise RuntimeError(f"Expected a {where.device.type!r} generator but found {generator.device.type!r}")
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and torch.device(asked or CPU).type == "cuda":
            return moved(torch.Tensor.to, function(*args, **kwargs | {"device": CPU}), CUDA)
        if function in (torch.Tensor.to, torch.Tensor.cuda) and not isinstance(args[0], Far):
            return moved(function, *args, **kwargs)
        return function(*args, **kwargs)


def _load_file(path, device="cpu", load_file=safetensors.torch.load_file):
    return {name: tensor.to(device) for name, tensor in load_file(path).items()}


def _save_file(tensors, path, header=None, save_file=safetensors.torch.save_file):
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path, header)


def _no_grad(mode):  # Far cannot be made in inference mode
    return torch.no_grad()


@contextmanager
def pretended_gpu():
    """While it lasts, torch has the GPU `cuda:0`, in this thread; yields the device."""
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda index=0: "pretended",
        "manual_seed_all": NUMBERS.manual_seed,
        "get_rng_state": lambda device=None: NUMBERS.get_state(),
        "set_rng_state": lambda state, device=None: NUMBERS.set_state(state),
    }
    with ExitStack() as stack:
        for name, function in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch._C, "_InferenceMode", _no_grad))
        stack.enter_context(mock.patch.object(safetensors.torch, "load_file", _load_file))
        stack.enter_context(mock.patch.object(safetensors.torch, "save_file", _save_file))
        stack.enter_context(Operations())
        stack.enter_context(Functions())
        yield CUDA

"""A pretended accelerator: tensors that say they are elsewhere, and refuse company from the CPU.

Nothing is computed elsewhere. Within `Pretended()`, `.to("cuda")` marks a tensor, whatever is made
of marked tensors is marked, and an operation on both kinds fails as it does on a machine that has
such a device.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
CAPABILITY = (7, 0)  # of a device that is slow at bfloat16, so that numbers are the CPU's
BRINGS_HOME = (Tensor.cpu, Tensor.tolist, Tensor.item)
BRINGS_HOME += (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)
REFUSES = (Tensor.numpy, Tensor.__array__)
MIXES = (Tensor.__getitem__, Tensor.copy_, Tensor.to)  # indices may come from the CPU

OF_AUTOGRAD = (torch.autograd.grad, torch.autograd.backward, Tensor.requires_grad_)
KEPT_BY_AUTOGRAD = (
    "grad",
    "grad_fn",
    "is_leaf",
    "requires_grad",
)  # attributes of the tensor itself


class Elsewhere(Tensor):
    """A tensor that is on the accelerator."""

    device = property(lambda self: DEVICE)  # type: ignore[assignment]


class Pretended(TorchFunctionMode):
    """Within it there is an accelerator.

    Attributes:
        looks: how often something of a tensor that is there was asked for, which takes a wait.
    """

    looks = 0

    def __enter__(self) -> Self:
        self._before = torch.cuda.get_device_capability
        torch.cuda.get_device_capability = lambda device=None: CAPABILITY
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.cuda.get_device_capability = self._before
        super().__exit__(*error)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        away = [x for x in tensors if isinstance(x, Elsewhere)]
        if away and function in REFUSES:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        big = [x for x in tensors if not isinstance(x, Elsewhere) and _dim(x) > 0]
        if away and big and function not in MIXES:
            name = getattr(function, "__name__", function)
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        if function is Tensor.__getitem__ and not isinstance(args[0], Elsewhere) and away:
            raise RuntimeError("indices should be on the same device as the indexed tensor")
        if away and (function in BRINGS_HOME or function in (Tensor.nonzero, torch.nonzero)):
            self.looks += 1
        if function is Tensor.to:
            return _moved(args, kwargs)
        wanted = kwargs.pop("device", None)
        elsewhere = bool(away) and function not in BRINGS_HOME
        if wanted is not None:
            elsewhere = torch.device(wanted).type == DEVICE.type
        attribute = getattr(getattr(function, "__self__", None), "__name__", None)
        keep = function in OF_AUTOGRAD or attribute in KEPT_BY_AUTOGRAD
        plain_args, plain_kwargs = (args, kwargs) if keep else tree_map(_plain, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            found = function(*plain_args, **plain_kwargs)
        if elsewhere and args and found is plain_args[0]:  # in place
            return args[0]
        if isinstance(found, torch.Size):  # a tree would make it a tuple
            return found
        return tree_map(_marked, found) if elsewhere else found


def on_accelerator(module: nn.Module, learning: bool = False) -> nn.Module:
    """The module with all of its weights on the accelerator; `learning`: they get gradients."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(_marked(parameter.data), learning)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _marked(buffer)
    return module


def _moved(args: Any, kwargs: Any) -> Tensor:
    x, *rest = args
    device: Any = kwargs.pop("device", None)
    for i, value in enumerate(rest):
        if isinstance(value, Tensor):
            device, rest[i] = DEVICE if isinstance(value, Elsewhere) else "cpu", _plain(value)
        elif isinstance(value, str | torch.device):
            device = value
            rest[i] = torch.device("cpu")
    away = isinstance(x, Elsewhere) if device is None else torch.device(device).type == DEVICE.type
    with torch._C.DisableTorchFunctionSubclass():
        found = _plain(x).to(*rest, **kwargs) if rest or kwargs else _plain(x)
    return _marked(found) if away else found


def _dim(x: Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return x.dim()


def _plain(x: Any) -> Any:
    return x.as_subclass(Tensor) if isinstance(x, Elsewhere) else x


def _marked(x: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Elsewhere) if isinstance(x, Tensor) else x

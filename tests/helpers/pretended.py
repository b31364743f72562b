"""A pretended accelerator: tensors that say they are elsewhere, and refuse company from the CPU.

Nothing is computed elsewhere. Within `Pretended()`, `.to("cuda")` marks a tensor, whatever is made
of marked tensors is marked, and an operation on both kinds fails as it does on a machine that has
such a device. Torch says that it is there, what it is called and how much it holds.
"""

from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
APPLE = torch.device("mps", 0)
CAPABILITY = (7, 0)  # of a device that is slow at bfloat16, so that numbers are the CPU's
BRINGS_HOME = (Tensor.cpu, Tensor.tolist, Tensor.item)
BRINGS_HOME += (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)
REFUSES = (Tensor.numpy, Tensor.__array__)
MIXES = (Tensor.__getitem__, Tensor.copy_, Tensor.to)  # indices may come from the CPU

OF_AUTOGRAD = (torch.autograd.grad, torch.autograd.backward, Tensor.requires_grad_)
KEPT_BY_AUTOGRAD = ("grad", "grad_fn", "is_leaf", "requires_grad")  # of the tensor itself


class Elsewhere(Tensor):
    """A tensor that is on the accelerator."""

    device = property(lambda self: DEVICE)  # type: ignore[assignment]


class Further(Elsewhere):
    """A tensor that is on another one."""

    device = property(lambda self: SECOND)  # type: ignore[assignment]


class OfApple(Elsewhere):
    """A tensor that is where there is no float64."""

    device = property(lambda self: APPLE)  # type: ignore[assignment]


KINDS: dict[torch.device, type[Elsewhere]] = {DEVICE: Elsewhere, SECOND: Further, APPLE: OfApple}

MEMORY = 2**29
NAME = "Pretended GPU"


class Pretended(TorchFunctionMode):
    """Within it there is an accelerator.

    Attributes:
        looks: how often something of a tensor that is there was asked for, which takes a wait.
    """

    looks = 0

    def __enter__(self) -> Self:
        said = {
            "is_available": True,
            "device_count": 1,
            "get_device_name": NAME,
            "get_device_capability": CAPABILITY,
            "get_device_properties": SimpleNamespace(total_memory=MEMORY),
            "empty_cache": None,
        }
        apple = {"recommended_max_memory": MEMORY}
        with ExitStack() as stack:
            for place, told in ((torch.cuda, said), (torch.mps, apple)):
                for name, value in told.items():
                    stack.enter_context(mock.patch.object(place, name, return_value=value))
            there = mock.patch.object(torch.backends.mps, "is_available", return_value=True)
            stack.enter_context(there)
            self._told = stack.pop_all()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._told.close()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        away = [type(x) for x in tensors if isinstance(x, Elsewhere)]
        if away and function in REFUSES:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        kinds = {_kind(x) for x in tensors if isinstance(x, Elsewhere) or _dim(x) > 0}
        from_home = kinds - {Tensor} if function in MIXES else kinds
        if away and len(from_home) > 1 and function not in (Tensor.copy_, Tensor.to):
            name = getattr(function, "__name__", function)
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        if function is Tensor.__getitem__ and not isinstance(args[0], Elsewhere) and away:
            raise RuntimeError("indices should be on the same device as the indexed tensor")
        if away and (function in BRINGS_HOME or function in (Tensor.nonzero, torch.nonzero)):
            self.looks += 1
        if function is Tensor.to:
            return _moved(args, kwargs)
        wanted = kwargs.pop("device", None)
        kind = away[0] if away and function not in BRINGS_HOME else Tensor
        if wanted is not None:
            kind = _kind_of(wanted)
        attribute = getattr(getattr(function, "__self__", None), "__name__", None)
        keep = function in OF_AUTOGRAD or attribute in KEPT_BY_AUTOGRAD
        plain_args, plain_kwargs = (args, kwargs) if keep else tree_map(_plain, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            found = function(*plain_args, **plain_kwargs)
        if kind is not Tensor and args and found is plain_args[0]:  # in place
            return args[0]
        if isinstance(found, torch.Size):  # a tree would make it a tuple
            return found
        return found if kind is Tensor else tree_map(partial(_marked, kind), found)


def on_accelerator(
    module: nn.Module, learning: bool = False, device: torch.device = DEVICE
) -> nn.Module:
    """The module with all of its weights on the accelerator; `learning`: they get gradients."""
    kind = _kind_of(device)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                data = _marked(kind, parameter.data)
                part._parameters[name] = nn.Parameter(data, learning)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _marked(kind, buffer)
    return module


def _moved(args: Any, kwargs: Any) -> Tensor:
    x, *rest = args
    device: Any = kwargs.pop("device", None)
    for i, value in enumerate(rest):
        if isinstance(value, Tensor):
            device, rest[i] = value.device, _plain(value)
        elif isinstance(value, str | torch.device):
            device = value
            rest[i] = torch.device("cpu")
    kind = _kind(x) if device is None else _kind_of(device)
    with torch._C.DisableTorchFunctionSubclass():
        found = _plain(x).to(*rest, **kwargs) if rest or kwargs else _plain(x)
    return found if kind is Tensor else _marked(kind, found)


def _kind(x: Tensor) -> type[Tensor]:
    return type(x) if isinstance(x, Elsewhere) else Tensor


def _kind_of(device: torch.device | str) -> type[Tensor]:
    """The class of the tensors that are there."""
    place = torch.device(device)
    return KINDS.get(torch.device(place.type, place.index or 0), Tensor)


def _dim(x: Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return x.dim()


def _plain(x: Any) -> Any:
    return x.as_subclass(Tensor) if isinstance(x, Elsewhere) else x


def _marked(kind: type[Tensor], x: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        if not isinstance(x, Tensor):
            return x
        if kind is OfApple and x.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype; MPS has no float64")
        return x.as_subclass(kind)

"""Objects on their way to other processes, whose weights and data are not copied there.

The numbers of parameters and of NumPy arrays stand beside the pickled object, in buffers of their
own. Whoever holds these in shared memory, such as Ray's object store, unpacks objects that read
them where they lie: a model that ten workers of a machine use is there once.
"""

import pickle
import warnings
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Buffer = NDArray[np.uint8]


class Packed(NamedTuple):
    """An object, packed.

    Attributes:
        data: the object, pickled, without what stands in the buffers.
        buffers: [bytes] each. They must not be written to once they are unpacked.
    """

    data: bytes
    buffers: list[Buffer]


def pack(value: object, pickler: type[pickle.Pickler] = pickle.Pickler) -> Packed:
    """Pack an object; what can be pickled can be packed.

    Args:
        value: the object. Parameters lose their gradients.
        pickler: of the standard library, or one like it that takes more, as cloudpickle's does.
    """
    buffers: list[Buffer] = []

    class Packer(pickler):  # type: ignore[misc, valid-type]
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is nn.Parameter and obj.layout == torch.strided and not obj.is_meta:
                flat = obj.detach().cpu().contiguous().reshape(-1)
                values: Any = flat.view(torch.uint8).numpy()
                where = obj.dtype, tuple(obj.shape), obj.device.type, obj.requires_grad
                return _parameter, (pickle.PickleBuffer(values), *where)
            return (
                super().reducer_override(obj) if pickler is not pickle.Pickler else NotImplemented
            )

    def aside(buffer: pickle.PickleBuffer) -> None:
        buffers.append(np.frombuffer(buffer.raw(), np.uint8))

    file = BytesIO()
    Packer(file, protocol=5, buffer_callback=aside).dump(value)
    return Packed(file.getvalue(), buffers)


def unpack(packed: Packed) -> Any:
    """The object; parameters and arrays can only be read."""
    return pickle.loads(packed.data, buffers=packed.buffers)


def _parameter(
    buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], device: str, gradient: bool
) -> nn.Parameter:
    with warnings.catch_warnings(action="ignore"):  # that it is not writable
        flat = torch.frombuffer(buffer, dtype=dtype) if len(buffer) else torch.empty(0, dtype=dtype)
    values: Tensor = flat.reshape(shape)
    return nn.Parameter(values.to(device), requires_grad=gradient)

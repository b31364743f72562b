"""Reading and writing safetensors files with JSON values beside the tensors."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anamorph.errors import AnamorphError, RunFolderError
from anamorph.files import at_hand, replacing
from anamorph.store import Address

WHOLE = "anamorph"  # the entry of a file's metadata that holds all JSON values


def write_weights(
    path: Address | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors, and JSON values beside them, to a file that appears whole or not at all.

    The same values give the same bytes.
    """
    with replacing(path) as temporary:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={WHOLE: json.dumps(metadata)},  # one entry: the order of several may vary
        )


def read_weights(path: Address | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata that `write_weights` wrote.

    Raises:
        AnamorphError: if the file is missing or damaged.
    """
    try:
        with at_hand(path) as at, safe_open(at, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
    except RunFolderError:  # a store cannot be reached
        raise
    except FileNotFoundError as error:
        raise AnamorphError(f"There is no file {path}; give the path of saved weights.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise AnamorphError(
            f"Cannot read {path} as safetensors ({error}); the file is damaged or of another "
            "kind. Delete it to have it made again, or give another."
        ) from error
    return tensors, metadata.get(WHOLE, metadata)

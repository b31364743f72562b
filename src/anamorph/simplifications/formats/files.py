"""Reading what lies beside weights: settings, and tensors from files that cannot hold code."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anamorph.errors import AnamorphError


def read_settings(path: Path) -> dict[str, Any]:
    """What a JSON or YAML file says.

    Raises:
        AnamorphError: if it cannot be read, or holds something else than names with values.
    """
    try:
        text = path.read_text(encoding="utf-8")
        said = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AnamorphError(f"Cannot read the settings in {path}: {error}.") from error
    if not isinstance(said, dict):
        raise AnamorphError(f"{path} must hold names with values; it holds {said!r:.60}.")
    return said


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.npz` or `.pt` file; code in it is refused, never run.

    Raises:
        AnamorphError: if the file is missing or damaged, or holds anything but numbers.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise AnamorphError(f"There is no file {path}; give the folder that was saved.") from error
    except pickle.UnpicklingError as error:
        raise AnamorphError(
            f"{path} holds more than tensors and numbers, which would have to be run as code; "
            "anamorph does not do that. Save its state_dict as safetensors, or with torch.save."
        ) from error
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        EOFError,
        BadZipFile,
    ) as error:
        raise AnamorphError(
            f"Cannot read the weights in {path} ({error}); the file is damaged or of another kind. "
            "Fetch it again."
        ) from error
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        raise AnamorphError(f"{path} must hold tensors by name; it holds {type(held).__name__}.")
    return {name: torch.as_tensor(value) for name, value in held.items()}


class Weights:
    """The tensors of a file, taken out by name, so that nothing in it is overlooked.

    Args:
        path: see `read_tensors`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = read_tensors(path)

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, *names: str) -> Tensor:
        """The tensor of the first of these names that is there.

        Raises:
            AnamorphError: if none is.
        """
        found = self.maybe(*names)
        if found is None:
            raise AnamorphError(
                f"{self.path} has no {' or '.join(names)}; what is left in it is: "
                f"{', '.join(sorted(self.left)) or 'nothing'}."
            )
        return found

    def maybe(self, *names: str) -> Tensor | None:
        """The tensor of the first of these names that is there, or None."""
        for name in names:
            if name in self.left:
                return self.left.pop(name)
        return None

    def drop(self, *names: str) -> None:
        """Pass over what is needed in training alone."""
        for name in names:
            self.left.pop(name, None)

    def end(self) -> None:
        """Make sure that all has been taken.

        Raises:
            AnamorphError: if something is left: what it is for is not known.
        """
        if self.left:
            raise AnamorphError(
                f"{self.path} also holds {', '.join(sorted(self.left))}, which a coder of this "
                "kind does not have; without it the coder would be another."
            )

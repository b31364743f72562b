"""The file from which a stopped training goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from anamorph.errors import RunFolderError, in_run_folder
from anamorph.models.decoder import Decoder
from anamorph.models.weights import read_weights, write_weights
from anamorph.store import Address


@dataclass
class Reached:
    """How far a training has come.

    Attributes:
        step: how many steps are done.
        tokens: how many tokens they had, padding included.
        loss: float32 bits a token, averaged over the last steps.
        history: the rows of the curves.
    """

    step: int = 0
    tokens: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoint:
    """The checkpoint of a training.

    Args:
        folder: where it is.
        identity: what makes this training different from others.
    """

    def __init__(self, folder: Address, identity: Mapping[str, Any]) -> None:
        self.path = folder / "checkpoint.safetensors"
        self.identity = dict(identity)

    def write(self, model: Decoder, optimizers: Sequence[Optimizer], reached: Reached) -> None:
        """Write weights, the optimizers' state and how far the training has come."""
        tensors = {f"model.{name}": x for name, x in model.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{k}": x for k, x in values.items()}
        progress = vars(reached) | {"loss": float(reached.loss)}
        write_weights(self.path, tensors, {"identity": self.identity, "progress": progress})

    def restore(self, model: Decoder, optimizers: Sequence[Optimizer]) -> Reached:
        """Load what was written last; begin anew if nothing was.

        Raises:
            RunFolderError: if it is of another training, or damaged.
        """
        if not self.path.exists():
            return Reached()
        with in_run_folder():
            tensors, metadata = read_weights(self.path)
        if metadata.get("identity") != self.identity:
            raise RunFolderError(
                f"{self.path} is the checkpoint of another training. It was made with "
                f"{metadata.get('identity')}; asked for is {self.identity}. Delete it or use "
                "another folder."
            )
        try:
            model.load_state_dict(_below("model.", tensors))
            for number, optimizer in enumerate(optimizers):
                state: dict[int, dict[str, Tensor]] = {}
                for key, x in _below(f"optimizer.{number}.", tensors).items():
                    index, name = key.split(".", 1)
                    state.setdefault(int(index), {})[name] = x
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state, "param_groups": groups})
            progress = metadata["progress"]
            return Reached(**progress | {"loss": torch.tensor(progress["loss"])})
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{self.path} is damaged: it is not what a training writes ({error!r}). Delete it "
                "to train from the start."
            ) from error


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}

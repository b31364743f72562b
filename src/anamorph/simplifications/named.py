"""What a spec string names: what is put beside the model in an audit."""

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from os import fspath
from pathlib import Path
from typing import ClassVar

from anamorph.errors import AnamorphError
from anamorph.models.base import Model
from anamorph.simplifications.grammar import BARE


class ProxySpec(ABC):
    """What names and describes a proxy; `str(spec)` is its spec string, which `parse` reads."""

    @abstractmethod
    def __str__(self) -> str: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    @abstractmethod
    def method(self) -> str:
        """How it is made, in a word, such as `svd+kmeans`; `identity` for the model itself."""

    @property
    def family(self) -> str:
        """The spec string without the size: proxies that differ only in their size share it."""
        return str(self)

    @property
    def size_name(self) -> str | None:
        """What the size is called, such as `rank`; None where there is no size."""
        return None

    @property
    def size(self) -> float | None:
        """How large it is; None where there is no size."""
        return None

    @property
    def control(self) -> str | None:
        """What kind of control it is: "oracle", "half", "random"; None for a view."""
        return None

    @property
    def view(self) -> str:
        """The family that it would be of if it were fitted on the training split."""
        return self.family

    @property
    def on(self) -> tuple[str, ...]:
        """The splits that it names to be fitted on (`on=`), besides the training split, sorted."""
        return ()

    @property
    def sites(self) -> str:
        """The patterns of the sites that it edits, joined by `;`; empty if it edits none."""
        return ""


@dataclass(frozen=True, repr=False)
class AnotherModel(ProxySpec):
    """Another model with the same vocabulary, such as a later checkpoint: `model(PATH)`.

    Nothing of it is fitted. Its attention is compared too, if it has the same heads.

    Args:
        name: the path of a model: a `model.safetensors` that a run wrote, a folder as
            `save_pretrained` writes it, or a GGUF file. If `model` is given, any name.
        model: the model itself, if it need not be loaded.

    Raises:
        AnamorphError: if `model` is not one of anamorph's models.

    Examples:
        >>> str(AnotherModel("runs/a/seed-0/model.safetensors"))
        'model(runs/a/seed-0/model.safetensors)'
    """

    method: ClassVar[str] = "model"

    name: str
    model: Model | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str | Path) or not str(self.name).strip():
            raise AnamorphError(
                f"The name of another model is {self.name!r}; give the path where it is, or with "
                "the model itself any name."
            )
        object.__setattr__(self, "name", fspath(self.name))
        if self.model is not None and not isinstance(self.model, Model):
            raise AnamorphError(
                f"The model {self.name!r} is a {type(self.model).__name__}; give a Decoder, or a "
                "module as am.HuggingFace(module) or am.HookedModel(module, sites)."
            )

    def __str__(self) -> str:
        bare = re.fullmatch(BARE, self.name)
        return f"model({self.name if bare else json.dumps(self.name, ensure_ascii=False)})"

"""What a simplification is made of beside its spec text: arrays, files, code.

A spec string names a simplification, but what the name stands for may change: the file that it
reads, an array that it holds, its code. A digest of all that tells.
"""

from __future__ import annotations

import pickle
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import numpy as np
import torch
from torch import nn

MOST_FILES = 1_000  # of a folder that a parameter names
HOME = __name__.partition(".")[0]  # our own code is told by its version


def fingerprint_of(*parts: object) -> str:
    """32 hex digits of arrays, numbers, texts, functions, classes and objects that hold them.

    Of a class from elsewhere its code counts, with the constants, arrays and functions of its
    module that this names; of text that is the path of a file, the file's content.
    """
    digest = _Digest()
    digest.take(parts)
    return digest.hash.hexdigest()


class _Digest:
    """Takes in values of every kind, functions and classes once each."""

    def __init__(self) -> None:
        self.hash = blake2b(digest_size=16)
        self.seen: set[CodeType] = set()
        self.known: set[type] = set()
        self.inside: set[int] = set()

    def take(self, value: object) -> None:
        self.say(type(value).__name__)
        if isinstance(value, torch.Tensor):
            self.take(value.detach().cpu().to(torch.float64).numpy())
        elif isinstance(value, np.ndarray):
            self.say(f"{value.shape} {value.dtype}")
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, str | Path):
            self.say(str(value))
            self.take_file(value)
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                self.say(str(key))
                self.take(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                self.take(item)
        elif isinstance(value, type):
            self.take_class(value)
        elif isinstance(value, FunctionType):
            self.take_function(value)
        elif isinstance(value, bool | int | float | complex | bytes | np.generic | None):
            self.say(repr(value))
        elif isinstance(value, set | frozenset):
            self.take(sorted(value, key=repr))
        elif isinstance(value, nn.Module):
            self.take(value.state_dict())
            self.say(str(value))
            self.take_class(type(value))
        elif isinstance(value, cached_property | partial):
            self.take((value.func, *getattr(value, "args", ()), getattr(value, "keywords", {})))
        elif id(value) not in self.inside:
            self.inside.add(id(value))  # it may hold itself
            self.take_object(value)

    def take_object(self, value: object) -> None:
        self.take_class(type(value))
        if hasattr(value, "__dict__"):
            self.take(vars(value))
        else:
            with suppress(Exception):  # what cannot be pickled holds nothing that can be compared
                self.hash.update(pickle.dumps(value))

    def say(self, text: str) -> None:
        self.hash.update(f"{len(text)} {text} ".encode("utf-8", "surrogatepass"))

    def take_file(self, name: str | Path) -> None:
        try:
            if str(name) not in ("", ".") and Path(name).is_dir():
                for file_ in sorted(islice(Path(name).rglob("*"), MOST_FILES)):
                    self.say(str(file_.relative_to(name)))
                    if file_.is_file():
                        self.take_file(file_)
                return
            with Path(name).open("rb") as file:
                while block := file.read(1 << 22):
                    self.hash.update(block)
        except (OSError, ValueError):  # it is no path
            return

    def take_class(self, kind: type) -> None:
        for part in kind.__mro__:
            if part in self.known:
                continue
            self.known.add(part)
            if part.__module__.partition(".")[0] in (HOME, "torch", "abc", "builtins"):
                continue
            for name in sorted(vars(part)):
                value = vars(part)[name]
                if name in ("name", "size_name") and isinstance(value, str):  # no path, but a word
                    self.say(repr(value))
                    continue
                if isinstance(value, classmethod | staticmethod):
                    value = value.__func__
                if isinstance(value, property):
                    value = value.fget
                if not name.startswith("__") or isinstance(value, FunctionType):
                    self.say(name)
                    self.take(value)

    def take_function(self, function: FunctionType) -> None:
        """Its code, and what of its own module it names."""
        if function.__module__.partition(".")[0] == HOME or function.__code__ in self.seen:
            return
        self.seen.add(function.__code__)
        self.take_code(function.__code__)
        self.take((function.__defaults__, function.__kwdefaults__))
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            self.say(name)
            self.take(_content(cell))
        for name in sorted(set(_names(function.__code__)) & set(function.__globals__)):
            value = function.__globals__[name]
            module = value if isinstance(value, ModuleType) else _module(value, function)
            if module is not None and _installed(module):  # their version tells
                continue
            self.say(name)
            if isinstance(value, ModuleType):
                self.take_file(_file(value) or "")
            else:
                self.take(value)

    def take_code(self, code: CodeType) -> None:
        self.hash.update(code.co_code)
        self.say(" ".join(code.co_names))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.take_code(constant)
            else:
                self.take(constant)


def _names(code: CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _module(value: object, function: FunctionType) -> ModuleType | None:
    """Where a function or class is from; None if it is of the same module, or anything else."""
    if not isinstance(value, type | FunctionType) or value.__module__ == function.__module__:
        return None
    return sys.modules.get(value.__module__)


def _installed(module: ModuleType) -> bool:
    """Whether a module is ours, of Python or of an installed package."""
    file = _file(module)
    if module.__name__.partition(".")[0] == HOME:
        return True
    if file is None:  # built in, or made by hand, as a notebook's
        return module.__spec__ is not None
    folders = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return not Path(file).exists() or file.startswith(folders)


def _file(module: ModuleType) -> str | None:
    """The file that a module is from, if there is one."""
    if module.__spec__ is not None:
        return module.__spec__.origin
    return vars(module).get("__file__")


def _content(cell: object) -> object:
    try:
        return cell.cell_contents  # type: ignore[attr-defined]
    except ValueError:  # nothing is in it yet
        return None

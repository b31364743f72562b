"""With what a run is made: versions of packages, commit and machine."""

import os
import platform
import subprocess
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from anamorph.runs.folder import Run
from anamorph.simplifications.grammar import read_stages
from anamorph.simplifications.registry import SIMPLIFICATIONS

PACKAGES = (
    *("torch", "numpy", "polars", "scikit-learn", "safetensors"),
    *("transformers", "tokenizers", "gguf", "tree-sitter"),
)


def environment() -> dict[str, Any]:
    """Versions, commit and machine, as `spec.json` has them."""
    return {
        "python": platform.python_version(),
        **{name: _installed(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def warn_of_versions(run: Run) -> None:
    """Warn if a run goes on with other versions than it was begun with."""
    before, now = run.spec.get("environment") or {}, environment()
    different = [
        f"{name} {before.get(name)}, now {now[name]}"
        for name in ("python", *PACKAGES, "commit", "processor")
        if name in before and before[name] != now[name]
    ]
    if different:
        warnings.warn(
            f"The run in {run.path} was begun with {'; '.join(different)}. Its numbers may differ "
            "from those of one version alone, by rounding or more.",
            stacklevel=4,
        )


def warn_of_untold(run: Run) -> None:
    """Warn if a complete run of an earlier version cannot tell what simplifications were made of.

    Its digests were made in another way. Of our own simplifications the text says everything; what
    others read or hold, and their code, may have changed.
    """
    said = (run.spec.get("fingerprints") or {}).get("simplifications") or {}
    others = [
        text
        for text in said
        if any(not isinstance(SIMPLIFICATIONS.get(s.name), str) for s in read_stages(text))
    ]
    if run.spec.get("layout") is None and others:
        warnings.warn(
            f"The run in {run.path} is of an earlier version of anamorph. Whether what "
            f"{', '.join(others)} read or hold, or their code, has changed since cannot be told.",
            stacklevel=4,
        )


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this code runs from; None if it is not one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

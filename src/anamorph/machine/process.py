"""The user's process, in which anamorph runs: what it may use, and what it restores."""

import math
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np


@contextmanager
def as_found() -> Iterator[None]:
    """Restore environment, warnings filters and random state, which some libraries change.

    They do so on import or when they are first used. Hold it briefly: what other threads change
    meanwhile is undone too.
    """
    before = dict(os.environ)
    python, numpy = random.getstate(), np.random.get_state()
    with warnings.catch_warnings(), _torch_as_found():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(
                {name: value for name, value in before.items() if os.environ.get(name) != value}
            )


def _torch_as_found() -> AbstractContextManager[None]:
    """Restore torch's random state, unless nobody has imported it yet: that takes a second."""
    if "torch" not in sys.modules:
        return nullcontext()
    import torch

    return torch.random.fork_rng(devices=[])


@contextmanager
def usual_tensors() -> Iterator[None]:
    """New tensors are float32 on the CPU, whatever the user's process makes by default."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def processors(root: Path = Path("/")) -> int:
    """How many processors this process may use.

    Those of the machine, as far as its affinity (`taskset`, a batch system) and the quotas of its
    control groups (a container, systemd) allow; a part of a processor counts as one.

    Args:
        root: where `/proc` and `/sys` are.
    """
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        found = os.cpu_count() or 1
    return min([found, *_quotas(root)])


def _quotas(root: Path) -> Iterator[int]:
    """The quotas of the control groups that this process is in, of version 2 and of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct"):
            continue
        top = mount / controllers
        group = top / path.lstrip("/")
        # Each group is limited by those above it; in a container, the path may be the host's.
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (limit := _quota(folder)) is not None:
                yield max(1, math.ceil(limit))


def _quota(folder: Path) -> float | None:
    """How many processors a control group may use at a time; None if there is no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):  # a group without this controller
        return None

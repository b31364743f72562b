"""What a test has done in other processes."""

from collections.abc import Sequence
from typing import Any

from anamorph.auditing.fit_parts import FitPart, see_on_task
from anamorph.models.base import Model
from anamorph.simplifications import ProxySpec
from anamorph.simplifications.seen_part import SeenPart
from anamorph.tasks import Task


def seen_part(
    model: Model,
    proxies: Sequence[ProxySpec],
    task: Task,
    sequences: int,
    part: FitPart,
    watch: Any,
) -> tuple[FitPart, SeenPart]:
    """A part and what is seen of it."""
    return part, see_on_task(model, proxies, task, sequences, part)

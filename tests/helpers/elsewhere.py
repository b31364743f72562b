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
    units: Sequence[Sequence[ProxySpec]],
    task: Task,
    sequences: int,
    part: FitPart,
    watch: Any,
) -> tuple[FitPart, list[SeenPart]]:
    """A part and what is seen of it for each unit."""
    return part, see_on_task(model, units, task, sequences, part)

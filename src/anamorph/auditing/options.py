"""The options of an audit, in one place: `am.audit`, `am.audit_given` and every study have them."""

from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np

from anamorph.auditing.engine import Settings
from anamorph.auditing.sizes import BATCHES, usual_batch_tokens, usual_memory
from anamorph.errors import AnamorphError, require
from anamorph.faithfulness.confidence import PRIOR_CORRELATION
from anamorph.faithfulness.estimates import Stopping
from anamorph.faithfulness.gaps import Thresholds
from anamorph.models.base import Model
from anamorph.simplifications import Sweep
from anamorph.tasks import Task


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How much is audited, in which way, and how it is judged.

    Attributes:
        by: what a spec that names several sites stands for: `all` of them edited at once, one
            proxy a `layer`, or one a `head`.
        sequences: scored sequences of each split, at most.
        fit_sequences: sequences of `train` that simplifications are fitted on, at most.
        until: stop each cell when a confidence sequence of its `same_prediction` is so narrow; the
            order of the sequences must be random. None for all sequences.
        correlation: of the positions of a sequence, assumed with `until` before any disagreement
            shows what it is; see `anamorph.faithfulness.confidence`.
        learnt: accuracy on the reference that the model must be above for verdicts on it to mean
            anything; None for what the task says (`learnt_of`).
        batch_tokens: tokens a batch, padding included; None for what suits the model, or fills its
            device. Numbers differ by rounding alone.
        stack_memory: bytes for the widest tensor of proxies that run together; None likewise.
        thresholds: where the lines between verdicts are drawn.

    Raises:
        AnamorphError: if a value lies out of its range; names it.
    """

    by: Sweep = "all"
    sequences: int = 1000
    fit_sequences: int = 1000
    until: float | None = None
    correlation: float = PRIOR_CORRELATION
    learnt: float | None = None
    batch_tokens: int | None = None
    stack_memory: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        require("by", self.by, among=get_args(Sweep))
        whole = {"sequences": (self.sequences, 2), "fit_sequences": (self.fit_sequences, 1)}
        sizes = {"batch_tokens": self.batch_tokens, "stack_memory": self.stack_memory}
        whole |= {name: (size, 1) for name, size in sizes.items() if size is not None}
        for name, (value, least) in whole.items():
            value = value.item() if isinstance(value, np.integer) else value  # NumPy's are not JSON
            require(name, value, whole=True, least=least)
            object.__setattr__(self, name, value)
        if self.until is not None:
            require("until", self.until, above=0, below=1)
        require("correlation", self.correlation, above=0, most=1)
        if self.learnt is not None:
            require("learnt", self.learnt, least=0, most=1)
        for name in ("until", "correlation", "learnt"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))

    def resolved(self, task: Task, model: Model) -> "AuditOptions":
        """With what task and model decide where the options leave it to them.

        Raises:
            AnamorphError: if one of the two is of another kind.
        """
        if not isinstance(model, Model):
            raise AnamorphError(
                f"The model must be one of anamorph's; got {type(model).__name__}. Wrap a model of "
                "transformers as am.HuggingFace(model, tokenizer), and any other module as "
                "am.HookedModel(module, {'*.residual': 'blocks.*'}) with the paths of its blocks."
            )
        if not isinstance(task, Task):
            raise AnamorphError(
                f"The task must be an anamorph.tasks.Task; got {type(task).__name__}. "
                "am.load_task and am.text_task make one."
            )
        return replace(
            self,
            learnt=learnt_of(task) if self.learnt is None else self.learnt,
            batch_tokens=self.batch_tokens or usual_batch_tokens(model),
            stack_memory=self.stack_memory or usual_memory(model),
        )

    def settings(self, batches: int = BATCHES, threads: int | None = None) -> Settings:
        """How the engine is to compute sums, once the options are resolved.

        Args:
            batches: as in `Settings`.
            threads: likewise.
        """
        assert self.batch_tokens is not None and self.stack_memory is not None
        return Settings(self.batch_tokens, self.stack_memory, batches, threads, self.stopping)

    @property
    def stopping(self) -> Stopping | None:
        """When a cell stops; None if it takes all sequences."""
        return None if self.until is None else Stopping(self.until, self.correlation)


def learnt_of(task: Task) -> float:
    """The accuracy on the reference that a model must be above for verdicts on it to mean anything.

    What the task says; or else the share of its most frequent target, which needs no model.
    """
    if task.learnt is not None:
        return task.learnt
    targets = task.reference.tokens[task.reference.scored]
    return float(np.unique(targets, return_counts=True)[1].max() / len(targets))

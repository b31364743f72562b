"""Whether a task fits a model that was not made for it."""

from anamorph.errors import AnamorphError
from anamorph.tasks.base import Task


def check_vocabulary(task: Task, model_vocabulary: int) -> None:
    """Whether the model has an embedding for every token, and an output for every candidate.

    Args:
        task: of any kind.
        model_vocabulary: token ids that the model knows, the rows of its embedding.

    Raises:
        AnamorphError: if it has not.
    """
    for split in task.splits.values():
        most = int(split.tokens.max(initial=0))
        if most >= model_vocabulary:
            raise AnamorphError(
                f"Split {split.name!r} has the token id {most} ({task.vocabulary[most]!r}), but "
                f"the model's embedding has {model_vocabulary} rows, for ids up to "
                f"{model_vocabulary - 1}: tokenizer and model do not belong together. Give the "
                "model's own tokenizer."
            )
    most = int(task.candidates.max(initial=0))
    if most >= model_vocabulary:
        raise AnamorphError(
            f"The task's candidates go up to the token id {most}, but the model's embedding has "
            f"{model_vocabulary} rows, for ids up to {model_vocabulary - 1}. No sequence holds "
            f"such a token: make the task with vocabulary={model_vocabulary}."
        )


def check_context(task: Task, context: int) -> None:
    """Whether no sequence is longer than the model's context.

    Args:
        task: of any kind.
        context: the most tokens that the model takes.

    Raises:
        AnamorphError: if one is.
    """
    for split in task.splits.values():
        longest = int(split.lengths.max(initial=0))
        if longest > context:
            raise AnamorphError(
                f"Split {split.name!r} has a sequence of {longest} tokens, but the model's "
                f"context is {context}; make the task with sequences of at most {context} tokens."
            )

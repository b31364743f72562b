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
        most = int(max(split.tokens.max(initial=0), split.given.max(initial=0)))
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


def check_direction(task: Task, causal: bool) -> None:
    """Whether the model can make the task's kind of predictions, and does not see their answers.

    Args:
        task: of any kind.
        causal: whether no position of the model sees those behind it.

    Raises:
        AnamorphError: if it sees the next token, which the task asks for; or sees nothing behind a
            hidden token, which it was then not made to predict.
    """
    masked = task.reference.masked is not None
    if not masked and not causal:
        raise AnamorphError(
            "The model sees the tokens that it is asked to predict, as its positions see those "
            "behind them. For a masked language model, hide what is predicted: masked=0.15."
        )
    if masked and causal:
        raise AnamorphError(
            "The task hides tokens to be predicted from both sides, but no position of the model "
            "sees those behind it: it predicts the next token. Leave out masked."
        )

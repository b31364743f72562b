"""Another model as a proxy: where it lies, and whether it can be compared with the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from anamorph.auditing.samples import few_sequences
from anamorph.errors import AnamorphError
from anamorph.models.base import Model
from anamorph.models.decoder import Decoder
from anamorph.models.huggingface.load import Dtype, load_model, load_pretrained
from anamorph.simplifications import AnotherModel, ProxySpec
from anamorph.tasks import Task
from anamorph.tasks.checks import check_context, check_direction
from anamorph.tasks.text.tokenizer import Tokenizer, token_names

DTYPES = get_args(Dtype)

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a folder with a tokenizer has at least one."""


class Loaded(NamedTuple):
    """Another model, in inference mode, and its tokenizer if that lies beside it."""

    model: Model
    tokenizer: Tokenizer | None


def load(spec: AnotherModel, model: Model) -> Loaded:
    """The model that a spec names, on the device of the one that it is compared with.

    It has the number format of that model, too, if it can be loaded in that (else float32), unless
    it was given in Python.

    Raises:
        AnamorphError: if there is none, or it cannot be loaded.
    """
    if spec.model is not None:
        return Loaded(spec.model, None)
    path = Path(spec.name).expanduser()
    if not path.exists() or (path / "spec.json").exists():
        what = "is a run folder" if path.exists() else "is neither a file nor a folder"
        raise AnamorphError(
            f"{spec}: {spec.name} {what}; give a model.safetensors in a run folder, such as "
            "RUN/seed-0/model.safetensors, a folder as save_pretrained writes it, or a GGUF file."
        )
    try:
        if path.suffix == ".safetensors":
            return Loaded(Decoder.load(path).eval().to(model.device, model.dtype), None)
        dtype = str(model.dtype).removeprefix("torch.")
        like: Any = {"device": model.device, "dtype": dtype if dtype in DTYPES else "float32"}
        if path.is_file() or any((path / name).exists() for name in TOKENIZER):
            return Loaded(*load_pretrained(path, **like))
        return Loaded(load_model(path, **like), None)
    except AnamorphError as error:
        raise AnamorphError(f"{spec}: {error}") from error


def check_models(
    proxies: Sequence[ProxySpec], model: Model, task: Task
) -> dict[str, dict[str, str]]:
    """Load every other model once, and see whether it can be compared with the model.

    Args:
        proxies: of which those that are other models are checked.
        model: that they are compared with; its weights do not matter.
        task: on whose data.

    Returns:
        for each spec string the fingerprint of its model.

    Raises:
        AnamorphError: if one has another vocabulary, tokenizer or direction, a context that is too
            short, or does not run as by itself; says what is given, expected and to be done.
    """
    found = {}
    for spec in proxies:
        if isinstance(spec, AnotherModel):
            other = load(spec, model)
            try:
                _check(other, model, task)
            except AnamorphError as error:
                raise AnamorphError(f"{spec}: {error}") from error
            found[str(spec)] = other.model.fingerprint()
    return found


def _check(other: Loaded, model: Model, task: Task) -> None:
    if other.model.vocabulary != model.vocabulary:
        raise AnamorphError(
            f"it has a vocabulary of {other.model.vocabulary} tokens, and the model that it is "
            f"compared with one of {model.vocabulary}. Give a model with the same vocabulary, such "
            "as another checkpoint of the same training."
        )
    if other.tokenizer is not None and "tokenizer" in task.spec:
        _check_tokens(token_names(other.tokenizer, model.vocabulary), task.vocabulary)
    check_direction(task, other.model.causal)
    if other.model.context is not None:
        check_context(task, other.model.context)
    other.model.check(few_sequences(task, other.model))


def _check_tokens(theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Whether token ids stand for the same tokens, as far as both tokenizers have them."""
    for number, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if their != our and f"<{number}>" not in (their, our):
            raise AnamorphError(
                f"its tokenizer is another: token {number} is {their!r}, and {our!r} in the data. "
                "Give a model with the tokenizer that the data were made with."
            )

"""Pretrained models from where they lie: a folder, a GGUF file, or, if asked, the hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.models.huggingface import HuggingFace


def load_pretrained(source: Path | str, *, hub: bool = False) -> tuple[HuggingFace, Any]:
    """A causal or masked language model and its tokenizer, by transformers' own loaders.

    No code that comes with a model is run. Weights become float32, however they are stored.

    Args:
        source: a folder as `save_pretrained` writes it, a `.gguf` file, or a name on the hub.
        hub: whether a name may be fetched; the environment's `HF_HUB_OFFLINE` is respected.

    Returns:
        the model, ready to be audited, and the tokenizer.

    Raises:
        AnamorphError: if there is no such folder or file, or transformers cannot load it.
    """
    with _loading(source, hub) as (transformers, where, options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        model = _model(transformers, where, options)
    return HuggingFace(model), tokenizer


def load_model(source: Path | str, *, hub: bool = False) -> HuggingFace:
    """The same without a tokenizer, which need not be there."""
    with _loading(source, hub) as (transformers, where, options):
        model = _model(transformers, where, options)
    return HuggingFace(model)


def _model(transformers: Any, where: str | Path, options: dict[str, Any]) -> Any:
    auto = transformers.AutoModelForCausalLM
    if "gguf_file" not in options:  # those are causal
        config = transformers.AutoConfig.from_pretrained(where, **options)
        if any(name.endswith("ForMaskedLM") for name in config.architectures or ()):
            auto = transformers.AutoModelForMaskedLM
    model = auto.from_pretrained(where, dtype="float32", **options)
    return model.train(False)


@contextmanager
def _loading(source: Path | str, hub: bool) -> Iterator[tuple[Any, str | Path, dict[str, Any]]]:
    """Transformers, keeping quiet, and what its loaders take; their errors as ours."""
    try:
        import transformers
    except ImportError as error:
        raise AnamorphError(
            "Models of Hugging Face need transformers; install it with: pip install 'anamorph[hf]'"
        ) from error
    path = Path(source)
    if not path.exists() and not hub:
        raise AnamorphError(
            f"There is no model folder or GGUF file {str(source)!r}. Give a folder as "
            "save_pretrained writes it; for a name on the hub, add --hub."
        )
    options: dict[str, Any] = {"local_files_only": not hub, "trust_remote_code": False}
    where: str | Path = source if not path.exists() else path
    if path.is_file():
        where, options["gguf_file"] = path.parent, path.name
    messages: Any = transformers.logging
    before = messages.get_verbosity()
    shown = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    messages.set_verbosity(logging.ERROR)
    try:
        yield transformers, where, options
    except Exception as error:  # every kind that loaders of files of every kind raise
        reason = str(error).strip().split("\n")[0]
        raise AnamorphError(
            f"Cannot load a causal or masked language model from {source}: {reason}"
        ) from error
    finally:
        messages.set_verbosity(before)
        if shown:
            messages.enable_progress_bar()

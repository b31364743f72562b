"""What is needed of a Hugging Face tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from anamorph.errors import AnamorphError

SEPARATORS = ("eos_token_id", "sep_token_id", "bos_token_id")  # the first that there is
PROBES = ("a", "0", ".", "the", "\n")  # texts of which any tokenizer knows one


class Tokenizer(Protocol):
    """Such as `transformers.PreTrainedTokenizerFast`."""

    @property
    def is_fast(self) -> bool:
        """Whether it can tell which characters a token stands for."""
        ...

    def __call__(self, text: Any, *, add_special_tokens: bool, **options: Any) -> Mapping[str, Any]:
        """For a list of texts, a list of token ids each under `input_ids`."""
        ...

    def __len__(self) -> int: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The names of token ids."""
        ...


def to_tokenizer(tokenizer: object, spans_field: str | None = None) -> Tokenizer:
    """A tokenizer, loaded by transformers if a folder or a name is given.

    Nothing in the folder is executed, and nothing is downloaded when `HF_HUB_OFFLINE=1` is set.

    Raises:
        AnamorphError: if it cannot be loaded, is not a Hugging Face tokenizer, or cannot tell the
            characters of each token, which spans need.
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = _load(str(tokenizer))
    if not (callable(tokenizer) and hasattr(tokenizer, "convert_ids_to_tokens")):
        raise AnamorphError(
            f"The tokenizer is a {type(tokenizer).__name__}; expected a Hugging Face tokenizer, a "
            "folder or a name. Wrap one of the tokenizers library as "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=...)."
        )
    found = cast(Tokenizer, tokenizer)
    if spans_field is not None and not found.is_fast:
        raise AnamorphError(
            f"spans_field={spans_field!r} needs a fast tokenizer, which tells the characters of "
            f"each token; {tokenizer_name(found)} is a slow one. Load it with use_fast=True, or "
            "leave spans_field out."
        )
    return found


def tokenizer_name(tokenizer: object) -> str:
    """The folder or name that it is loaded from; its class where it has none."""
    if isinstance(tokenizer, (str, Path)):
        return str(tokenizer)
    return str(getattr(tokenizer, "name_or_path", "")) or type(tokenizer).__name__


def _load(name: str) -> object:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise AnamorphError(
            f"Loading the tokenizer {name!r} needs transformers: pip install 'anamorph[hf]'."
        ) from error
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers lets through whatever a damaged file brings about
        raise AnamorphError(
            f"Cannot load the tokenizer {name!r}: {error} Give a folder with a tokenizer, or the "
            "name of one that can be downloaded or is in the cache."
        ) from error


def token_names(tokenizer: Tokenizer, size: int) -> tuple[str, ...]:
    """The name of every token id below `size`; `<7>` for an id that the tokenizer does not have."""
    known = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    names = [*known, *[None] * (size - len(known))]
    return tuple(f"<{i}>" if name is None else str(name) for i, name in enumerate(names))


def special_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The token ids that a tokenizer puts in front of a text, such as BOS, and behind it.

    Raises:
        AnamorphError: if they cannot be found out.
    """
    for probe in PROBES:
        bare = _ids(tokenizer, probe, special=False)
        whole = _ids(tokenizer, probe, special=True)
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    raise AnamorphError(
        "Cannot find out which tokens the tokenizer puts in front of a text and behind it; give "
        "packing='truncate', where it adds them itself."
    )


def special_ids(tokenizer: Tokenizer) -> list[int]:
    """The token ids of all special tokens but the one for what is unknown."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {*getattr(tokenizer, "all_special_ids", ())}
    ids |= {i for i, token in added.items() if token.special}
    return sorted(ids - {getattr(tokenizer, "unk_token_id", None)})


def separator(tokenizer: Tokenizer) -> int:
    """The token id to put between documents: EOS, or SEP or BOS where there is no EOS.

    Raises:
        AnamorphError: if the tokenizer has none of them.
    """
    for name in SEPARATORS:
        if (found := getattr(tokenizer, name, None)) is not None:
            return int(found)
    raise AnamorphError(
        "packing='pack' joins documents with EOS, SEP or BOS, and the tokenizer has none of them; "
        "give it an eos_token, or packing='window'."
    )


def _ids(tokenizer: Tokenizer, text: str, *, special: bool) -> Sequence[int]:
    return list(tokenizer([text], add_special_tokens=special)["input_ids"][0])

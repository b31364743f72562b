"""Tokenizers made on the spot, of the kinds that models have."""

import functools
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SENTENCES = [
    "the cat sat on the mat and the dog sat on the log",
    "a quick brown fox jumps over the lazy dog, again and again.",
    "def add(first, second):\n    return first + second\n",
    "naïve café: 12 € for two, 日本語 and 😀 as well",
]


@functools.cache
def byte_level(*, bos: bool = False, eos: bool = True, behind: bool = False) -> Any:
    """Byte-level BPE like GPT-2's; with `bos` it puts BOS in front as Llama's does.

    `behind` puts EOS behind each text too; without `eos` there is no such token.
    """
    special = (["<s>"] if bos else []) + (["</s>"] if eos else [])
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 3, trainer)
    if bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>" if behind else "<s> $A",
            special_tokens=[(token, inner.token_to_id(token)) for token in special],
        )
    names = ({"bos_token": "<s>"} if bos else {}) | ({"eos_token": "</s>"} if eos else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@functools.cache
def letters() -> Any:
    """A token for each of a to z, in which tests can count; `.` is EOS, anything else `?`."""
    words = {letter: place for place, letter in enumerate("?.abcdefghijklmnopqrstuvwxyz")}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="?", eos_token="."
    )


@functools.cache
def masking() -> Any:
    """Like `letters`, with BERT's special tokens around each text, and a mask token."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "?", *"abcdefghijklmnopqrstuvwxyz"]
    words = {name: place for place, name in enumerate(names)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="?",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )

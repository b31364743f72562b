"""Pretrained models from where they lie: a folder, a GGUF file, or, if asked, the hub."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from anamorph.errors import AnamorphError, require
from anamorph.machine.devices import find_device
from anamorph.models.huggingface.checkpoint import damage, require_whole
from anamorph.models.huggingface.gguf_file import require_gguf_read
from anamorph.models.huggingface.model import HuggingFace

OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
)


Dtype = Literal["float32", "bfloat16", "float16"]


def load_pretrained(
    source: Path | str,
    *,
    hub: bool = False,
    device: str | torch.device = "auto",
    dtype: Dtype = "float32",
) -> tuple[HuggingFace, Any]:
    """A causal or masked language model and its tokenizer, by transformers' own loaders.

    No code that comes with a model is run. Every weight of the model must be in the checkpoint, and
    none that belongs to it may be left.

    Args:
        source: a folder as `save_pretrained` writes it, a `.gguf` file, or a name on the hub.
        hub: whether a name may be fetched; the environment's `HF_HUB_OFFLINE` is respected.
        device: where it is to compute; see `anamorph.machine.devices.find_device`. A model over
            several devices is loaded by transformers (`device_map`) and given to `HuggingFace`.
        dtype: the number format that weights become, however they are stored.

    Returns:
        the model, ready to be audited, and the tokenizer.

    Raises:
        AnamorphError: if there is no such folder or file; if transformers cannot load it; if it is
            not a causal or masked language model; if weights are missing, left over or not numbers;
            if an adapter lies beside them.
    """
    require("dtype", dtype, among=get_args(Dtype))
    place = find_device(device)
    with _loading(source, hub) as (transformers, where, options):
        config = _config(transformers, where, options)
        tokenizer = _tokenizer(transformers, where, options)
        model = _model(transformers, where, config, options | {"dtype": dtype})
    return HuggingFace(model.to(place)), tokenizer


def load_model(
    source: Path | str,
    *,
    hub: bool = False,
    device: str | torch.device = "auto",
    dtype: Dtype = "float32",
) -> HuggingFace:
    """The same without a tokenizer, which need not be there."""
    require("dtype", dtype, among=get_args(Dtype))
    place = find_device(device)
    with _loading(source, hub) as (transformers, where, options):
        config = _config(transformers, where, options)
        model = _model(transformers, where, config, options | {"dtype": dtype})
    return HuggingFace(model.to(place))


def _model(transformers: Any, where: str | Path, config: Any, options: dict[str, Any]) -> Any:
    dense = {}
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, found = _class_for(transformers, config).from_pretrained(
        where,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # require_whole names them
        **dense,
        **options,
    )
    require_whole(model, found)
    if "gguf_file" in options:
        require_gguf_read(model, Path(where) / options["gguf_file"])
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(config, "tie_word_embeddings", False)
    if tied and None not in ends and ends[0].weight is not ends[1].weight:
        warnings.warn(
            "config.json says that the embedding and the head are one matrix, but the weights hold "
            "two that differ; both are used as they are.",
            stacklevel=4,
        )
    return model.train(False)


def _tokenizer(transformers: Any, where: str | Path, options: dict[str, Any]) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # of every kind
        raise AnamorphError(
            f"There is no tokenizer in {where} that transformers can load "
            f"({_reason(error)}). Save it beside the model, with tokenizer.save_pretrained."
        ) from error


def _config(transformers: Any, where: str | Path, options: dict[str, Any]) -> Any:
    """The configuration of a language model that transformers knows, with no adapter beside it."""
    find = transformers.utils.find_adapter_config_file
    adapters = [file.name for file in sorted(Path(where).glob("adapter_model.*"))]
    if find(str(where), local_files_only=options["local_files_only"]) is not None:
        adapters = ["adapter_config.json"]
    if adapters:
        raise AnamorphError(
            f"An adapter ({adapters[0]}) lies in {where}, and would be ignored or added "
            "unasked. To audit the model with it, merge it into its base model with peft "
            "(model.merge_and_unload(), then save_pretrained) and give that folder; to audit the "
            "base model, give a folder without the adapter."
        )
    if "gguf_file" not in options:
        given, _ = transformers.PreTrainedConfig.get_config_dict(where, **options)
        kind = given.get("model_type")
        if kind is not None and kind not in transformers.CONFIG_MAPPING:
            what_to_do = (
                "It brings its own code, and code that comes with a model is not run: load it "
                "yourself and give the module to am.HookedModel."
                if "auto_map" in given
                else "A newer version may."
            )
            raise AnamorphError(
                f"{where} is a model of type {kind!r}, which transformers "
                f"{transformers.__version__} does not have. {what_to_do}"
            )
    return transformers.AutoConfig.from_pretrained(where, **options)


def _class_for(transformers: Any, config: Any) -> Any:
    """The class that loads a configuration's model: the one it names, if that will do."""
    names = transformers.models.auto.modeling_auto
    causal = names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = names.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    kind, architectures = config.model_type, config.architectures or []
    what = f"{architectures[0]} ({kind})" if architectures else kind
    if any(name.endswith(OTHER_HEADS) for name in architectures):
        raise AnamorphError(
            f"The checkpoint is of {what}, which has no language-model head. Give the "
            "causal or masked language model that it was made of."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise AnamorphError(
            f"The checkpoint is of {what}, an encoder with a decoder. Causal and masked language "
            "models can be audited, which have one stack of blocks."
        )
    for auto, mapping in (
        (transformers.AutoModelForCausalLM, causal),
        (transformers.AutoModelForMaskedLM, masked),
    ):
        for name in set(architectures) & set(mapping.values()):
            return auto if kind in mapping else getattr(transformers, name)
    if kind not in {**causal, **masked}:
        raise AnamorphError(
            f"The checkpoint is of {what}, which is not a causal or masked language model of text. "
            "If it has a language model inside, save that by itself; am.HookedModel takes any "
            "module."
        )
    if kind in causal and (kind not in masked or getattr(config, "is_decoder", False)):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForMaskedLM


@contextmanager
def _loading(source: Path | str, hub: bool) -> Iterator[tuple[Any, str | Path, dict[str, Any]]]:
    """Transformers without its messages, and what its loaders take; errors of theirs are ours."""
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
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise AnamorphError(
                    f"{source} is not a GGUF file. Give one, or the folder in which config.json "
                    "and the weights are."
                )
        where, options["gguf_file"] = path.parent, path.name
    try:
        with torch.random.fork_rng(devices=[]), _quiet(transformers, downloads=hub):
            yield transformers, where, options
    except AnamorphError:
        raise
    except Exception as error:  # of every kind that loaders raise
        reason = (damage(path) if path.is_dir() else None) or _reason(error)
        raise AnamorphError(
            f"Cannot load a causal or masked language model from {source}: {reason}"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, without a colon for what would follow."""
    if "CONVERSION" in str(error):  # it points to a table in a log
        return (
            "weights that transformers joins into one, such as the experts of a layer, do not fit "
            "together: a part is missing or has another shape. Give a folder that one "
            "save_pretrained wrote."
        )
    return (str(error).strip() or type(error).__name__).split("\n")[0].strip().rstrip(":")


@contextmanager
def _quiet(transformers: Any, downloads: bool) -> Iterator[None]:
    """No progress bars, except of downloads at a terminal, and no messages except errors."""
    import huggingface_hub
    import transformers.modeling_gguf_pytorch_utils as gguf

    messages: Any = transformers.logging
    hub: Any = huggingface_hub.utils
    verbosity, shown = messages.get_verbosity(), messages.is_progress_bar_enabled()
    hidden = hub.are_progress_bars_disabled()
    bars = vars(gguf).get("tqdm")
    if not (downloads and sys.stderr is not None and sys.stderr.isatty()):
        messages.disable_progress_bar()
    if bars is not None:  # bars of GGUF files heed no setting
        vars(gguf)["tqdm"] = partial(bars, disable=True)
    messages.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        messages.set_verbosity(verbosity)
        if bars is not None:
            vars(gguf)["tqdm"] = bars
        if shown:
            messages.enable_progress_bar()
        if hidden:
            hub.disable_progress_bars()

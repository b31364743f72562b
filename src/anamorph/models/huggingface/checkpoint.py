"""Whether a checkpoint is the whole model.

Transformers fills what is missing with random numbers and leaves what it has no place for.
"""

import json
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
}
"""What the weights of a wrapped model are called within, and the wrapper that does so."""

MASKS = re.compile(r"(^|\.)((attn|attention)\.bias|masked_bias|causal_mask|position_ids|inv_freq)$")
"""Constants that older versions of transformers saved beside the weights."""

POOLERS = re.compile(r"(^|\.)(pooler|seq_relationship)\.")
"""Parts of BERT and its like that no token's prediction depends on."""

STATES = ("state_dict", "model_state_dict", "model", "module")
"""Where training programs put the weights in a file that holds more."""

SHOWN = 4  # names in a message


def require_whole(model: nn.Module, found: Mapping[str, Any]) -> None:
    """Make sure that every weight of a model came from its checkpoint, and that none was left over.

    Parts that a language model does not use may be left: poolers, other heads, towers for images.

    Args:
        model: as transformers loaded it.
        found: what its `from_pretrained` reports with `output_loading_info`.

    Raises:
        AnamorphError: if weights are missing, left, or of other shapes, with their names and the
            likely cause; or if they are not finite numbers, or all zero.

    Warns:
        UserWarning: if other parts are left.
    """
    missing = sorted(found["missing_keys"])
    wrong = sorted(found["mismatched_keys"])
    left = sorted(key for key in found["unexpected_keys"] if _needed(model, key))
    if wrong:
        shapes = [f"{name} ({list(given)} for {list(own)})" for name, given, own in wrong]
        raise AnamorphError(
            f"{_some(shapes)} in the weights {_has(wrong)} another shape than config.json says. "
            "Configuration and weights belong to different models, or one was changed without the "
            "other: give a folder that one save_pretrained wrote."
        )
    if missing:
        raise AnamorphError(
            f"{_some(missing)} {_is(missing)} not in the weights, so {_it(missing)} would hold "
            f"random numbers. {_cause(model, missing, found['unexpected_keys'])}"
        )
    if left:
        raise AnamorphError(
            f"{_some(left)} in the weights {_has(left)} no place in the model that config.json "
            f"describes, so {_it(left)} would be left out. {_cause(model, [], left)}"
        )
    _require_numbers(model)
    beside = sorted(
        key for key in found["unexpected_keys"] if not MASKS.search(key) and not POOLERS.search(key)
    )
    if beside:
        warnings.warn(
            f"{_some(beside)} in the weights {_is(beside)} left out, as the model that config.json "
            "describes has no such part. If it should count, as a soft prompt or a norm of your "
            "own would, the numbers are not those of your model.",
            stacklevel=2,
        )


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a folder that could not be loaded, if that can be seen."""
    if not (folder / "config.json").is_file():
        return "There is no config.json in it. Give a folder as save_pretrained writes it."
    for index in folder.glob("*.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        lost = sorted(name for name in named if not (folder / name).is_file())
        if lost:
            return (
                f"{_some(lost)}, which {index.name} names, {_is(lost)} not there. Copy or download "
                "every file."
            )
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            if file.read(11) == b"version htt":
                return f"{path.name} is a pointer of Git LFS. Fetch the file itself: git lfs pull"
        try:
            if path.suffix == ".safetensors":
                safetensors.safe_open(path, "pt")
            else:
                torch.load(path, map_location="meta", weights_only=True)
        except pickle.UnpicklingError:
            return (
                f"{path.name} holds more than tensors, and Python objects are not run. Save the "
                "weights alone: model.save_pretrained(folder)"
            )
        except Exception as error:  # of every kind
            reason = str(error).split("\n")[0]
            return f"{path.name} is damaged or cut off ({reason}). Copy or download it again."
    return None


def _cause(model: nn.Module, missing: Collection[str], left: Collection[str]) -> str:
    """The likely reason, and what to do."""
    if any(".lora_" in key or key.startswith("base_model.model.") for key in left):
        return (
            "The weights are those of an adapter or hold one: merge it into its base model with "
            "peft (model.merge_and_unload(), then save_pretrained), and give that folder."
        )
    within = [key for key in left if key in STATES]
    if within:
        return (
            f"The file is a checkpoint of a training run, which holds the weights in "
            f"{within[0]!r}: load them into the model and save that with save_pretrained."
        )
    extra = _extra(missing, left)
    if extra:
        wrapper = next((w for part, w in WRAPPERS.items() if part in extra.split(".")), None)
        by = "" if wrapper is None else f", as those of a model that {wrapper} wraps"
        return (
            f"The names in the file have {extra!r} in addition{by}: save the model that is inside "
            f"with save_pretrained, or take {extra!r} out of the names."
        )
    base = f"{cast(Any, model).base_model_prefix}."
    if missing and not any(name.startswith(base) for name in missing):
        return (
            "The language-model head is not there: the checkpoint was saved from a model without "
            "one (AutoModel, a classifier). Give one that was saved with its head."
        )
    return (
        "A part of the checkpoint is lost, or its configuration is another model's: give it as "
        "save_pretrained wrote it."
    )


def _extra(missing: Collection[str], left: Collection[str]) -> str | None:
    """What most of the names left over have in addition to names that are missing."""
    wanted, found = {tuple(name.split(".")) for name in missing}, Counter[str]()
    for name in left:
        parts = tuple(name.split("."))
        ways = [  # to take one to three parts that follow each other out, the front first
            (parts[start : start + length], parts[:start] + parts[start + length :])
            for length in (1, 2, 3)
            for start in range(len(parts) - length)
        ]
        wrappers = tuple(part for part in parts if part in WRAPPERS)
        ways.append((wrappers[:1], tuple(part for part in parts if part not in WRAPPERS)))
        extra = next((extra for extra, rest in ways if extra and rest in wanted), None)
        if extra is not None:
            found[".".join(extra) + "."] += 1
    return found.most_common(1)[0][0] if found else None


def _needed(model: nn.Module, key: str) -> bool:
    """Whether a name that is left belongs to a part that the model has.

    That is so inside its lists of blocks, and beside weights of one module. Where a checkpoint has
    several parts side by side, such as heads, the model needs only its own.
    """
    if MASKS.search(key):
        return False
    config: Any = model.config
    more = getattr(config.get_text_config(), "num_nextn_predict_layers", 0) or 0
    module, inside = model, False
    for part in key.split(".")[:-1]:
        if isinstance(module, nn.ModuleList):
            inside = True
            if part.isdigit() and len(module) <= int(part) < len(module) + more:
                return False  # layers that predict tokens further ahead
        if part not in module._modules:
            break
        module = getattr(module, part)
    own = any(True for _ in module.parameters(recurse=False))
    return inside or isinstance(module, nn.ModuleList) or own


def _require_numbers(model: nn.Module) -> None:
    """Refuse weights that are not there, not finite, or all zero."""
    weights = dict(model.named_parameters())
    if lost := [name for name, weight in weights.items() if weight.is_meta]:
        raise AnamorphError(f"{_some(lost)} {_has(lost)} no numbers: nothing was loaded into them.")
    largest = {name: _largest(weight) for name, weight in weights.items()}
    if bad := [name for name, size in largest.items() if not size < torch.inf]:
        raise AnamorphError(
            f"{_some(bad)} {_has(bad)} NaN or infinite numbers, so every logit would be NaN. The "
            "training diverged, or the file is damaged: give an earlier checkpoint."
        )
    if not any(largest[name] for name, weight in weights.items() if weight.dim() > 1):
        raise AnamorphError(
            "All weights are zero: the file was written before the weights were in it (as sharded "
            "training does). Gather the weights, then save."
        )


def _largest(weight: Tensor) -> float:
    """The largest magnitude, NaN if there is one."""
    if not weight.numel():
        return 0.0
    low, high = weight.detach().aminmax()
    return float(torch.maximum(-low, high))


def _some(names: Collection[str]) -> str:
    """A few names, and how many more."""
    shown = list(names)[:SHOWN]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _is(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _has(names: Collection[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _it(names: Collection[str]) -> str:
    return "it" if len(names) == 1 else "they"

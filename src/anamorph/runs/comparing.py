"""Whether a run folder holds what is asked for.

A number in it belongs to the weights, the data and the version in its `spec.json`. So nothing of it
is used before all of these are compared with what there is now.
"""

from collections.abc import Mapping
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.models.fingerprint import close_logits, differing
from anamorph.runs.folder import Run
from anamorph.tasks import FOUND, Task
from anamorph.tasks.base import CANDIDATES

FREE = ("about", "choices", "environment", "paper_steps", "source", "layout")
"""What may differ. Choices, what is said of the task, and how long the preset `paper` trains follow
from the rest, in words that may be mended; versions of other packages are warned of; where a model
or data came from is not what they are; the layout of files matters only to a run that goes on."""
PLACES = {"task": ("data", "tokenizer"), "model": ("name",)}
"""Names and places of models and files: what these are, their fingerprints say."""
PRINTS = "fingerprints"
UNSAID = {"by": "all", "until": None, "correlation": 0.5, "batch_tokens": 4096}
"""What was always so of a trained study, before its `audit` said it."""


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What of two specifications does not agree, in words.

    Args:
        there: the content of a `spec.json`.
        asked: what it would be now.
    """
    # Training is split over threads. An audit is not; where a model is, the run's number is used.
    free = FREE if asked.get("training") else (*FREE, "threads")
    there = {**there, "audit": UNSAID | (there.get("audit") or {})}
    found = []
    for key in asked:
        if key in free or there.get(key) == asked[key]:
            continue
        if key == "anamorph":
            found.append(f"it was made by anamorph {there.get(key)}, and this is {asked[key]}")
        elif key == PRINTS:
            now = asked[key]
            if there.get("layout") is None:  # whose digests of simplifications were made otherwise
                now = {**now, "simplifications": (there.get(key) or {}).get("simplifications")}
            found += _of_fingerprints(there.get(key) or {}, now)
        else:
            before, now = (_unnamed(key, spec.get(key)) for spec in (there, asked))
            if key == "task" and _changed(there.get(PRINTS) or {}, asked.get(PRINTS) or {}, "data"):
                # Their fingerprints say it in fewer words.
                before, now = (
                    {k: v for k, v in x.items() if k not in FOUND} for x in (before, now)
                )
            found += _of_values(key, before, now)
    return found


def check_same(run: Run, weights: Mapping[str, str] | None, task: Task) -> None:
    """Make sure that data, and a model if its weights are given, are still those of a run.

    Raises:
        AnamorphError: if they are not; names what differs.
    """
    there = run.spec.get("fingerprints") or {}
    now = {**there, "data": task.fingerprints()}
    found = _of_fingerprints(there, now if weights is None else {**now, "weights": weights})
    if found:
        raise AnamorphError(
            f"The model and data of {run.path} are not what they were ({'; '.join(found)}). Bring "
            "the old ones back, or begin a new audit of what there is now."
        )


def _unnamed(key: str, value: Any) -> Any:
    """A part of a specification without `PLACES`."""
    if not isinstance(value, dict):
        return value
    value = {k: v for k, v in value.items() if k not in PLACES.get(key, ())}
    if isinstance(value.get("files"), dict):
        value["files"] = list(value["files"].values())
    return value


def _of_values(name: str, there: Any, asked: Any) -> list[str]:
    """Where two parts of a specification differ, as `training.steps: there 60, asked 7`."""
    if there == asked:
        return []
    if isinstance(there, dict) and isinstance(asked, dict):
        return [
            found
            for key in dict.fromkeys([*there, *asked])
            for found in _of_values(f"{name}.{key}", there.get(key), asked.get(key))
        ]
    return [f"{name}: there {there}, asked {asked}"]


def _of_fingerprints(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    found = []
    data = _changed(there, asked, "data")
    if weights := _changed(there, asked, "weights"):
        found.append(differing(weights))
    elif "logits" in asked and not data and not close_logits(there.get("logits"), asked["logits"]):
        found.append(
            "the weights are the same, but the model gives other logits than it did: a hook, an "
            "adapter, its configuration or its code differs"
        )
    for name in data:
        if name not in (there.get("data") or {}):
            found.append(f"the split {name!r} is not there")
        elif name not in asked["data"]:
            found.append(f"the split {name!r} is not asked for")
        else:
            found.append(
                "the data of candidates differ" if name == CANDIDATES else f"{name!r} differs"
            )
    for name in _changed(there, asked, "models"):
        parts = _changed(there.get("models") or {}, asked.get("models") or {}, name)
        found.append(f"of {name}, {differing(parts)}")
    for name in _changed(there, asked, "metrics"):
        found.append(f"the metric {name}, or its code, differs")
    for name in _changed(there, asked, "simplifications"):
        if name not in (there.get("simplifications") or {}) or name not in asked["simplifications"]:
            continue  # it is not asked for in both, which their specs say
        found.append(f"what {name} reads or holds, or its code, differs")
    return found


def _changed(there: Mapping[str, Any], asked: Mapping[str, Any], kind: str) -> list[str]:
    before, now = there.get(kind) or {}, asked.get(kind) or {}
    return [name for name in {**now, **before} if before.get(name) != now.get(name)]

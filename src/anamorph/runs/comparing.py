"""Whether a run folder holds what is asked for.

A number in it belongs to the weights, the data and the version in its `spec.json`. So nothing of it
is used before all of these are compared with what there is now.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from anamorph.errors import RunFolderError
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
PLUGINS = "plugins"
UNSAID = {
    "by": "all",
    "until": None,
    "correlation": 0.5,
    "batch_tokens": 4096,
    "stack_memory": 8 * 2**20,
}
"""What was always so of a trained study, before its `audit` said it."""


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What of two specifications does not agree, in words.

    Args:
        there: the content of a `spec.json`.
        asked: what it would be now.
    """
    there = {**there, "audit": UNSAID | (there.get("audit") or {})}
    before, now = there.get(PRINTS) or {}, asked.get(PRINTS) or {}
    if there.get("layout") is None:  # its digests of simplifications were made otherwise
        before = {**before, "simplifications": None}
    # Training is split over threads. An audit is not; where a model is, the run's number is used.
    free = FREE if asked.get("training") else (*FREE, "threads")
    places = dict(PLACES)
    if changed(before.get("data"), now.get("data")):  # which says it in fewer words
        places["task"] += FOUND
    found = []
    for key in asked:
        if key in free or there.get(key) == asked[key]:
            continue
        if key == "anamorph":
            found.append(f"it was made by anamorph {there.get(key)}, and this is {asked[key]}")
        elif key == PRINTS:
            found += _of_fingerprints(before, now)
        elif key == PLUGINS:
            found += _of_plugins(there.get(key) or [], asked[key])
        else:
            values = [_without(places.get(key, ()), spec.get(key)) for spec in (there, asked)]
            found += _of_values(key, *values)
    return found


def changed_plugins(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether two specifications name other plugins; arguments as of `differences`."""
    return bool(_of_plugins(there.get(PLUGINS) or [], asked.get(PLUGINS) or []))


def with_plugins(there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A specification with the plugins of another, and with what is theirs; data is not.

    Args:
        there: the content of a `spec.json`.
        asked: what it would be now.
    """
    before, now = there.get(PRINTS) or {}, asked.get(PRINTS) or {}
    theirs = {name: now[name] for name in ("simplifications", "metrics") if name in now}
    return {**there, PLUGINS: asked.get(PLUGINS) or [], PRINTS: {**before, **theirs}}


def check_same(run: Run, weights: Mapping[str, str] | None, task: Task) -> None:
    """Make sure that data, and a model if its weights are given, are still those of a run.

    Raises:
        RunFolderError: if they are not; names what differs.
    """
    there = run.spec.get(PRINTS) or {}
    now = {**there, "data": task.fingerprints()}
    found = _of_fingerprints(there, now if weights is None else {**now, "weights": weights})
    if found:
        raise RunFolderError(
            f"The model and data of {run.path} are not what they were ({'; '.join(found)}). Bring "
            "the old ones back, or begin a new audit of what there is now."
        )


def changed(
    before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """What differs between two mappings: by name what it was and what it is, None where missing."""
    before, now = before or {}, now or {}
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _of_plugins(
    there: Sequence[Mapping[str, str]], asked: Sequence[Mapping[str, str]]
) -> list[str]:
    """Which plugins differ. Where one lies does not matter, and nor does their order."""
    before, now = ({p["fingerprint"]: Path(p["path"]) for p in some} for some in (there, asked))
    gone = {path.name: path for digest, path in before.items() if digest not in now}
    new = {path.name: path for digest, path in now.items() if digest not in before}
    return [
        *(f"the plugin {name} differs from what it was" for name in gone if name in new),
        *(f"--plugin {path} is not given" for name, path in gone.items() if name not in new),
        *(f"the plugin {name} was not there" for name in new if name not in gone),
    ]


def _without(places: Collection[str], value: Any) -> Any:
    """A part of a specification without some of its keys, and without the names of files."""
    if not isinstance(value, dict):
        return value
    value = {k: v for k, v in value.items() if k not in places}
    if isinstance(value.get("files"), dict):
        value["files"] = list(value["files"].values())
    return value


def _of_values(name: str, there: Any, asked: Any) -> list[str]:
    """Where two parts of a specification differ, as `training.steps: there 60, asked 7`."""
    if isinstance(there, dict) and isinstance(asked, dict):
        pairs = changed(there, asked).items()
        return [said for key, pair in pairs for said in _of_values(f"{name}.{key}", *pair)]
    return [f"{name}: there {there}, asked {asked}"]


def _of_fingerprints(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    kinds = ("weights", "data", "models", "metrics", "simplifications")
    weights, data, models, metrics, simplifications = (
        changed(there.get(kind), asked.get(kind)) for kind in kinds
    )
    found = []
    if weights:
        found.append(differing([*weights]))
    elif "logits" in asked and not data and not close_logits(there.get("logits"), asked["logits"]):
        found.append(
            "the weights are the same, but the model gives other logits than it did: a hook, an "
            "adapter, its configuration or its code differs"
        )
    for name, (before, now) in data.items():
        if before is None or now is None:
            what = "there" if before is None else "asked for"
            found.append(f"the split {name!r} is not {what}")
        else:
            differs = "the data of candidates differ"
            found.append(differs if name == CANDIDATES else f"{name!r} differs")
    for name, pair in models.items():
        found.append(f"of {name}, {differing([*changed(*pair)])}")
    for name, (before, now) in metrics.items():
        differs = "differs" if before and now else "was not there" if now else "is not there"
        found.append(f"the metric {name}, or its code, {differs}")
    for name, pair in simplifications.items():
        if None not in pair:  # else it is not asked for in both, which their specs say
            found.append(f"what {name} reads or holds, or its code, differs")
    return found

"""What was chosen, and why: said in every run, and never called the paper's where it is ours."""

from collections.abc import Mapping
from typing import Any

from anamorph.simplifications import Simplified, expand
from anamorph.tasks.about import Choice

Row = tuple[str, str, str]  # what, choice, why

# By task what is known of the paper's models.
KNOWN = {
    "dyck": "Known of the paper: small, two layers. Widths and heads are not.",
    "code": "Not known of the paper.",
}


def choices(spec: Mapping[str, Any]) -> list[Choice]:
    """The choices behind a study, besides those of its task.

    Args:
        spec: as `spec.json` has it.
    """
    of_models = _of_given_model if spec["training"] is None else _of_training
    rows = [*of_models(spec), *_of_every_audit(spec)]
    return [Choice(what=what, choice=choice, why=why) for what, choice, why in rows]


def _follows_paper(spec: Mapping[str, Any]) -> bool:
    """Whether there is a model of the paper to follow."""
    return spec["training"] is not None and spec["task"]["name"] in KNOWN


def _of_training(spec: Mapping[str, Any]) -> list[Row]:
    model, training = spec["model"], spec["training"]
    of_paper = "Known of the paper: about 1,000 training sequences."
    of_any = "What is fitted on must not be judged on."
    return [
        (
            "Size of the model",
            f"{model['layers']} layers, {model['heads']} head(s) each, width {model['width']}, MLP "
            f"{model['mlp']}, {model['positions']} positions, pre-norm",
            KNOWN.get(spec["task"]["name"], "As the study asks for."),
        ),
        (
            "Optimization",
            f"{training['steps']} steps of {training['batch_tokens']} tokens, "
            f"{training['optimizer']}, learning rates {training['muon_learning_rate']} (Muon) and "
            f"{training['learning_rate']} (AdamW)",
            "Chosen among what was tried, by test accuracy too; see docs/training.md.",
        ),
        (
            "Data for the simplifications",
            f"the first {spec['audit']['fit_sequences']} training sequences, every position, START "
            f"included{_other_splits(spec)}",
            of_paper if _follows_paper(spec) else of_any,
        ),
    ]


def _of_given_model(spec: Mapping[str, Any]) -> list[Row]:
    task, audit = spec["task"], spec["audit"]
    fit = task.get("fit", f"the first {audit['fit_sequences']} training sequences")
    stand = {
        "head": "one query head at a time, with the keys and values that it reads",
        "layer": "all named heads of one layer at a time",
        "all": "at all named sites at once",
    }
    return [
        (
            "Data for the simplifications",
            f"{fit}{_other_splits(spec)}",
            "What is fitted on must not be judged on.",
        ),
        (
            "How proxies stand",
            stand[audit["by"]],
            "Errors of many edits add up; one at a time is another question than all at once.",
        ),
    ]


def _of_every_audit(spec: Mapping[str, Any]) -> list[Row]:
    audit = spec["audit"]
    unknown = "No thresholds of the paper are known. " if _follows_paper(spec) else ""
    made = [
        (
            "What is fitted to",
            "activations of the model itself, at every site at once, never of a proxy",
            "A simplification is a view of the model; fitting on a proxy would adapt it.",
        ),
        (
            "Verdicts",
            ", ".join(f"{name} {value:.3g}" for name, value in audit["thresholds"].items()),
            f"{unknown}These are ours; the numbers stand by.",
        ),
        (
            "Same attention",
            "keys within 0.01 % of the largest probability tie and share the agreement",
            "Keys in one cluster tie but for rounding, which would decide an arg-max.",
        ),
        (
            "Intervals",
            "95 %, over sequences: binomial on effective positions for shares, Student's t on the "
            "logarithm for other means; of several models, Student's t over them as well",
            "Tokens of a sequence are not independent; near 1 a bootstrap is too short.",
        ),
        (
            "Learnt",
            "verdicts and claims are only given of a model whose accuracy on the reference is "
            f"above {audit['learnt']:.3g}",
            "What is left of a view of a model that does nothing is nothing.",
        ),
    ]
    if audit["until"] is not None:
        made.append(
            (
                "When a cell stops",
                f"when a 95 % confidence sequence of its same_prediction is at most "
                f"{audit['until']} wide, assuming a correlation of {audit['correlation']} within "
                "sequences before disagreement shows it",
                "Valid at every look (docs/confidence.md); each cell by itself.",
            )
        )
    return made


def _other_splits(spec: Mapping[str, Any]) -> str:
    """What simplifications are fitted on besides all of the training split."""
    texts = [text for key in ("simplify", "each_layer", "each_head") for text in spec.get(key, ())]
    named = [proxy for proxy in expand(texts) if isinstance(proxy, Simplified)]
    on = sorted({a.on for proxy in named for a in proxy.attachments if a.on is not None})
    if not on:
        return ""
    return (
        f"; with on=, as many of what is named ({', '.join(on)}), which is every second sequence "
        "of another split than train, or a slice of it; no proxy is scored on these"
    )

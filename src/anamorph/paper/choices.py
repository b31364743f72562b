"""What was chosen, and why: said in every run, and never called the paper's where it is ours."""

from collections.abc import Mapping
from typing import Any

from anamorph.simplifications import expand
from anamorph.tasks.about import Choice


def choices(spec: Mapping[str, Any]) -> list[Choice]:
    """The choices behind a study, besides those of its task.

    Args:
        spec: as `spec.json` has it.
    """
    of_models = _of_given_model if spec["training"] is None else _of_training
    return [*of_models(spec), *_of_every_audit(spec)]


def _of_training(spec: Mapping[str, Any]) -> list[Choice]:
    return [
        Choice(
            what="Size of the model",
            choice=(
                f"{spec['model']['layers']} layers, {spec['model']['heads']} head(s) each, width "
                f"{spec['model']['width']}, MLP {spec['model']['mlp']}, "
                f"{spec['model']['positions']} positions, pre-norm"
            ),
            why=(
                "Known of the paper: small, two layers. Widths and heads are not."
                if spec["task"]["name"] == "dyck"
                else "Not known of the paper."
            ),
        ),
        Choice(
            what="Optimization",
            choice=(
                f"{spec['training']['steps']} steps of {spec['training']['batch_tokens']} tokens, "
                f"{spec['training']['optimizer']}, learning rates "
                f"{spec['training']['muon_learning_rate']} (Muon) and "
                f"{spec['training']['learning_rate']} (AdamW)"
            ),
            why="Chosen among what was tried, by test accuracy too; see docs/training.md.",
        ),
        Choice(
            what="Data for the simplifications",
            choice=(
                f"the first {spec['audit']['fit_sequences']} training sequences, every position, "
                f"START included{_other_splits(spec)}"
            ),
            why="Known of the paper: about 1,000 training sequences.",
        ),
    ]


def _of_given_model(spec: Mapping[str, Any]) -> list[Choice]:
    task, audit = spec["task"], spec["audit"]
    return [
        Choice(
            what="Data for the simplifications",
            choice=str(task.get("fit", f"the first {audit['fit_sequences']} training sequences"))
            + _other_splits(spec),
            why="What is fitted on must not be judged on.",
        ),
        Choice(
            what="How proxies stand",
            choice={
                "head": "one query head at a time, with the keys and values that it reads",
                "layer": "all named heads of one layer at a time",
                "all": "at all named sites at once",
            }[audit["by"]],
            why="Errors of many edits add up; one at a time is another question than all at once.",
        ),
    ]


def _of_every_audit(spec: Mapping[str, Any]) -> list[Choice]:
    given, audit = spec["training"] is None, spec["audit"]  # without a paper to follow
    made = [
        Choice(
            what="What is fitted to",
            choice="activations of the model itself, at every site at once, never of a proxy",
            why="A simplification is a view of the model; fitting on a proxy would adapt it.",
        ),
        Choice(
            what="Verdicts",
            choice=", ".join(f"{k} {v:.3g}" for k, v in audit["thresholds"].items()),
            why=(
                ("" if given else "No thresholds of the paper are known. ")
                + "These are ours; the numbers stand by."
            ),
        ),
        Choice(
            what="Same attention",
            choice="keys within 0.01 % of the largest probability tie and share the agreement",
            why="Keys in one cluster tie but for rounding, which would decide an arg-max.",
        ),
        Choice(
            what="Intervals",
            choice=(
                "95 %, over sequences: binomial on effective positions for shares, Student's t on "
                "the logarithm for other means; of several models, Student's t over them as well"
            ),
            why="Tokens of a sequence are not independent; near 1 a bootstrap is too short.",
        ),
        Choice(
            what="Learnt",
            choice=(
                "verdicts and claims are only given of a model whose accuracy on the reference is "
                f"above {audit['learnt']:.3g}"
            ),
            why="What is left of a view of a model that does nothing is nothing.",
        ),
    ]
    if audit["until"] is not None:
        made.append(
            Choice(
                what="When a cell stops",
                choice=(
                    f"when a 95 % confidence sequence of its same_prediction is at most "
                    f"{audit['until']} wide, assuming a correlation of {audit['correlation']} "
                    "within sequences before disagreement shows it"
                ),
                why="Valid at every look (docs/confidence.md); each cell by itself.",
            )
        )
    return made


def _other_splits(spec: Mapping[str, Any]) -> str:
    """Which simplifications are fitted on other splits than the training split."""
    texts = [text for key in ("simplify", "each_layer", "each_head") for text in spec.get(key, ())]
    on = sorted({name for proxy in expand(texts) for name in proxy.on})
    return f"; with on=, as many of the split that is named ({', '.join(on)})" if on else ""

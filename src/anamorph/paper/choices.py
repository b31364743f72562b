"""What was chosen, and why: said in every run, and never called the paper's where it is ours."""

from collections.abc import Mapping
from typing import Any

Choice = dict[str, str]


def choices(spec: Mapping[str, Any]) -> list[Choice]:
    """The choices behind a specification: `what`, `choice` and `why` of each."""
    made = [
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
                "START included"
            ),
            why="Known of the paper: about 1,000 training sequences.",
        ),
        *_of_every_audit(spec),
    ]
    of_task = {"dyck": _dyck, "code": _code}.get(spec["task"]["name"])
    return made + (of_task(spec["task"]) if of_task else [])


def choices_of_given(spec: Mapping[str, Any]) -> list[Choice]:
    """The choices behind the audit of a model that was given, as `choices`."""
    task, audit = spec["task"], spec["audit"]
    made = [
        Choice(
            what="Data for the simplifications",
            choice=str(task.get("fit", f"the first {audit['fit_sequences']} training sequences")),
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
        *_of_every_audit(spec),
    ]
    if "made" in task:
        made.append(
            Choice(
                what="Sequences",
                choice=str(task["made"]),
                why="Windows and packs of one document are not independent; intervals assume it.",
            )
        )
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


def _of_every_audit(spec: Mapping[str, Any]) -> list[Choice]:
    given = spec["training"] is None  # then there is no paper to follow
    return [
        Choice(
            what="What is fitted to",
            choice="activations of the model itself, at every site at once, never of a proxy",
            why="A simplification is a view of the model; fitting on a proxy would adapt it.",
        ),
        Choice(
            what="Verdicts",
            choice=", ".join(f"{k} {v:.3g}" for k, v in spec["audit"]["thresholds"].items()),
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
                f"above {spec['audit']['learnt']:.3g}"
            ),
            why="What is left of a view of a model that does nothing is nothing.",
        ),
    ]


def _code(task: Mapping[str, Any]) -> list[Choice]:
    corpus = task["corpus"]
    if not isinstance(corpus, str):
        corpus = "folders: " + ", ".join(f"{path} ({name})" for name, path in corpus.items())
    return [
        Choice(
            what="Training language and corpus",
            choice=f"{task['language']}, {corpus} (checksum {task['made'][:16]})",
            why="Not known of the paper, which names CodeSearchNet.",
        ),
        Choice(
            what="Sequences",
            choice=(
                f"START and a function's first {task['context'] - 1} {task['unit']}; every split "
                "has the lengths of iid, function by function, as far as there are some"
            ),
            why="Longer functions are not longer sequences, and lengths do not make the gaps.",
        ),
        Choice(
            what="In distribution",
            choice="functions held out of every repository that is trained on",
            why="CodeSearchNet's own partitions share no repository, so its test is another split.",
        ),
        Choice(
            what="Duplicates",
            choice=(
                "test functions that train has, but for white space, or for names and literals, "
                "are left out"
            ),
            why="A fifth and more of the functions of another Java repository are such clones.",
        ),
        Choice(
            what="Rare characters",
            choice="those that train has fewer than 20 times are one token, which is scored too",
            why="Other languages have characters that the model has hardly seen; a facet tells.",
        ),
    ]


def _dyck(task: Mapping[str, Any]) -> list[Choice]:
    return [
        Choice(
            what="Longest sentence",
            choice=f"{task['max_length']} brackets, in every split; longer ones are drawn again",
            why=(
                "Attention is quadratic in length. At k=20, m=10 and 510 brackets this drops 0.3 % "
                "of the training sample, but 27 % of the sentences deeper than 10: unseen depths "
                "are those of the shorter deep sentences."
            ),
        ),
        Choice(
            what="Seen structure",
            choice=(
                "fresh sentences whose skeleton "
                + (
                    "occurs in train"
                    if task["structure"] == "sentence"
                    else "is made of top-level segments that occur in train"
                )
                + "; mostly short ones, as long skeletons hardly repeat"
            ),
            why=(
                "The paper follows Murty et al. 2023; the rule is an option (task.structure). With "
                "structure=segment and scored=closers, the split seen_structure is their "
                "in-distribution set."
            ),
        ),
        Choice(
            what="Test sentences",
            choice="only those with a scored position, in every split but train",
            why=(
                "The others say nothing about any metric. Those left are longer: at k=20, m=10 and "
                "far closers 88 brackets in the mean of iid, against 49 in train."
            ),
        ),
        Choice(
            what="Unseen depth",
            choice=(
                f"depth {task['m'] + 1} to {2 * task['m']}, from a sampler of twice the depth; a "
                "second split has the lengths of unseen_long, sentence by sentence"
            ),
            why="Deeper sentences are longer; the matched split tells depth from length.",
        ),
    ]

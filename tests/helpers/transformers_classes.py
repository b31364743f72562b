"""Every causal and masked language-model class of transformers, compared with itself.

    python tests/helpers/transformers_classes.py   # all of them, as docs/transformers.md
    python tests/helpers/transformers_classes.py BertForMaskedLM  # some, to the terminal

Each class gets a tiny random model (`transformers_tiny`) in a process of its own. What it gives
through anamorph is compared with the untouched model, run by transformers alone
(`transformers_checks`).
"""

import argparse
import multiprocessing
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import anamorph as am
import transformers_tiny as tiny
from transformers_checks import CHECKS, Differs, Plain

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
LIMIT = 60  # seconds a class
AGREES, REFUSED, DIFFERS = "agrees", "refused", "differs"
TRACEBACK, NOT_BUILT = "traceback", "not built"
KINDS = AGREES, REFUSED, DIFFERS, TRACEBACK, NOT_BUILT
BAD = DIFFERS, TRACEBACK


@dataclass(frozen=True)
class Outcome:
    """What came of one class.

    Attributes:
        name: the class.
        outcome: agrees, refused, differs, traceback or not built.
        why: the refusal, the difference or the error.
        sites: the kinds of sites there are.
        checked: which edits were made a second time by plain hooks.
        causal: whether no position sees those behind it.
        seconds: how long it took.
    """

    name: str
    outcome: str
    why: str = ""
    sites: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    causal: bool | None = None
    seconds: float = 0.0


def look(name: str) -> Outcome:
    """Compare one class with itself."""
    began = time.monotonic()
    try:
        module = tiny.make(name, tiny.classes()[name])
    except Exception as error:
        return Outcome(name, NOT_BUILT, f"{type(error).__name__}: {_line(error)}")
    try:
        outcome = _compare(name, module)
    except am.AnamorphError as error:
        outcome = Outcome(name, REFUSED, str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        outcome = Outcome(name, TRACEBACK, f"{type(error).__name__} at {where}: {_line(error)}")
    return replace(outcome, seconds=time.monotonic() - began)


def _compare(name: str, module: nn.Module) -> Outcome:
    try:
        plain = Plain(module)
    except Exception as error:  # it takes something else than text, so it has to be refused
        am.HuggingFace(module)
        return Outcome(name, NOT_BUILT, f"transformers gives no logits: {_line(error)}")
    model = am.HuggingFace(module)
    checked: list[str] = []
    outcome, why = AGREES, ""
    try:
        for check in CHECKS:
            checked += check(model, plain)
        if not torch.equal(plain.together, Plain(module).together):
            raise Differs("the model is not as it was before")
    except Differs as error:
        outcome, why = DIFFERS, str(error)
    sites = tuple(dict.fromkeys(site.kind for site in model.sites))
    return Outcome(name, outcome, why, sites, tuple(dict.fromkeys(checked)), model.causal)


def sweep(names: Sequence[str], jobs: int = 1, limit: float = LIMIT) -> Iterator[Outcome]:
    """Each in a process of its own, so that a crash or a hang is one class's alone."""
    context = multiprocessing.get_context("fork")  # nothing is imported twice
    waiting, running = list(reversed(names)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name, (ours, theirs) = waiting.pop(), context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(name, theirs), daemon=True)
            process.start()
            theirs.close()
            running[ours] = name, process, time.monotonic() + limit
        first = min(end for _, _, end in running.values())
        ready = wait(list(running), max(0.0, first - time.monotonic()))
        for ours, (name, process, end) in list(running.items()):
            if ours in ready or time.monotonic() >= end:
                yield _result(name, ours if ours in ready else None, limit)
                process.kill()
                process.join()
                del running[ours]


def _result(name: str, ours: Any, limit: float) -> Outcome:
    if ours is None:
        return Outcome(name, TRACEBACK, f"not done after {limit:.0f} seconds", seconds=limit)
    try:
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        return Outcome(name, TRACEBACK, "the process died")


def _child(name: str, to: Any) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    to.send(look(name))


def page(outcomes: Sequence[Outcome]) -> str:
    """The table as Markdown."""
    counts = Counter(outcome.outcome for outcome in outcomes)
    lines = [
        "# Which classes of transformers work",
        "",
        "Every causal and masked language-model class of transformers",
        f"{transformers.__version__}, with tiny random weights, held against the untouched model:",
        "logits and cross entropy of one and many sequences, padded and not, and in two threads;",
        "the laws of `am.check_model` at every site; and half of a site, where a plain hook can",
        "halve it, too (*by hooks*). Made by `make sweep`.",
        "",
        *(f"- {kind}: {counts[kind]}" for kind in KINDS if counts[kind]),
        "",
        "| class | outcome | sites | by hooks |",
        "| --- | --- | --- | --- |",
    ]
    for outcome in sorted(outcomes, key=lambda o: (KINDS.index(o.outcome), o.name)):
        why = outcome.why.replace("|", "\\|").replace("\n", " ")
        told = f"{outcome.outcome}: {why}" if why else outcome.outcome
        sites = ", ".join(outcome.sites) if outcome.outcome == AGREES else ""
        lines.append(f"| {outcome.name} | {told} | {sites} | {', '.join(outcome.checked)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="classes; without any, all, into docs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a class")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    names = options.names or list(tiny.classes())
    outcomes = []
    for outcome in sweep(names, options.jobs, options.limit):
        outcomes.append(outcome)
        told = f"{outcome.seconds:5.1f} s  {outcome.outcome:9}  {outcome.name}"
        print(f"{told}  {outcome.why or ' '.join(outcome.checked)}", flush=True)
    print(dict(Counter(outcome.outcome for outcome in outcomes)))
    if not options.names:
        options.out.write_text(page(outcomes), encoding="utf-8")


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


if __name__ == "__main__":
    main()

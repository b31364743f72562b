"""Classes of transformers give through anamorph what they give alone, or are refused."""

from collections import Counter

import pytest

pytest.importorskip("transformers")

import transformers_classes as classes
import transformers_tiny as tiny
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS, NORM_KINDS

EVERY_SITE = {*HEAD_KINDS, *LAYER_KINDS}


@pytest.mark.parametrize(
    "name",
    [
        "BertForMaskedLM",
        "BertLMHeadModel",
        "Cohere2ForCausalLM",
        "GPT2LMHeadModel",
        "Gemma3ForCausalLM",
        "GptOssForCausalLM",
        "MixtralForCausalLM",
        "LlamaForCausalLM",
        "ModernBertForMaskedLM",
        "OPTForCausalLM",
        "Olmo2ForCausalLM",
        "Qwen3ForCausalLM",
    ],
)
def test_a_class_agrees_with_itself(name: str) -> None:
    outcome = classes.look(name)
    assert (outcome.outcome, outcome.why) == (classes.AGREES, "")
    missing = {"middle"} if name == "Cohere2ForCausalLM" else set()  # its MLP is beside attention
    assert set(outcome.sites) - set(NORM_KINDS) == EVERY_SITE - missing
    assert ("norm_1" in outcome.sites) == (name != "ModernBertForMaskedLM")  # its first has none
    unseen = {"middle"} if name == "OPTForCausalLM" else missing  # where its norm takes a flat one
    by_hooks = {"residual", "output", "value", "pattern", "heads", "attention", "middle"}
    assert set(outcome.checked) >= by_hooks - unseen


def test_a_class_that_takes_something_else_is_refused() -> None:
    outcome = classes.look("PerceiverForMaskedLM")  # [position] bytes, [64] logits
    assert outcome.outcome == classes.REFUSED
    assert "PerceiverForMaskedLM" in outcome.why


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of fault that the sweep is for, put into a model that has none."""
    from anamorph.models.huggingface.attention import Attention

    pattern = Attention.pattern
    monkeypatch.setattr(Attention, "pattern", lambda self, q, k, *a: pattern(self, q, k * 1.01, *a))
    outcome = classes.look("LlamaForCausalLM")
    assert outcome.outcome == classes.DIFFERS
    assert "pattern" in outcome.why


def test_a_crash_is_one_classs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import time

    def look(name: str) -> classes.Outcome:
        if name == "crashes":
            os._exit(1)
        if name == "hangs":
            time.sleep(60)
        return classes.Outcome(name, classes.AGREES)

    monkeypatch.setattr(classes, "look", look)
    names = ["first", "crashes", "hangs", "last"]
    found = {o.name: o for o in classes.sweep(names, jobs=2, limit=2)}
    assert [found[name].outcome for name in names] == ["agrees", "traceback", "traceback", "agrees"]
    assert (found["crashes"].why, found["hangs"].why) == (
        "the process died",
        "not done after 2 seconds",
    )


@pytest.mark.slow
@pytest.mark.sweep
def test_every_class_agrees_or_is_refused() -> None:
    names = list(tiny.classes())
    outcomes = list(classes.sweep(names, jobs=2, limit=120))
    bad = {o.name: f"{o.outcome}: {o.why}" for o in outcomes if o.outcome in classes.BAD}
    assert not bad
    counts = Counter(outcome.outcome for outcome in outcomes)
    assert counts[classes.AGREES] >= 150
    assert counts[classes.NOT_BUILT] <= 5

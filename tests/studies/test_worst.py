"""Worst examples against a plain loop: a sequence at a time, without padding, batch or stack."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import scipy.spatial.distance
import scipy.special
import torch
import transformers

import anamorph as am
from anamorph.analysis import examples
from anamorph.models.base import Batch, LayerKind
from anamorph.simplifications import FittedProxies
from anamorph.tasks import Split, Task
from huggingface_models import SIZES, make, wide
from plain import small_model
from plain_modules import CONTEXT, VOCABULARY, Transformer, large
from running import run as run_plainly
from sources import write_sources
from tiny_tokenizers import byte_level, masking

pytestmark = pytest.mark.usefixtures("quick_report")

Plain = Callable[[torch.Tensor], tuple[Any, Any]]  # [token] to logits of model and proxy
EXACT = 1e-5


class Case(NamedTuple):
    """A run, its task, its proxy, and what model and proxy say of a sequence, plainly."""

    run: am.OpenedRun
    task: Task
    proxy: str
    plain: Plain


def test_dyck(task: Task, tmp_path: Path) -> None:
    few = with_fewer(task)
    case = of_decoder(small_model(few), few, tmp_path)
    assert_plain(case)
    row = case.run.worst(case.proxy, "iid", 1).row(0, named=True)
    tokens = list(few.splits["iid"])[row["number"]]
    assert row["text"] == " ".join(few.vocabulary[t] for t in tokens)
    assert row["id"] is None
    positions = case.run.positions(row["sequence"], case.proxy, "iid").filter("scored")
    closers = set(few.vocabulary[t] for t in few.candidates)
    assert {name for each in positions["model"] for name in each} <= closers


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_code(tmp_path: Path, unit: str) -> None:
    corpus = write_sources(tmp_path / "sources", functions=60)
    task = am.load_task(
        "code", corpus=corpus, language="c", test=12, context=40, unit=unit, cache=str(tmp_path)
    )
    case = of_decoder(small_model(task, positions="sinusoidal"), task, tmp_path)
    assert_plain(case)
    texts = case.run.pictures["worst"].filter(split="python", simplification=case.proxy)
    assert sorted(texts["sequence"]) == list(range(12)), "the first ones are kept as they come"
    source = (tmp_path / "sources" / "py" / "a.py").read_text("utf-8")
    for row in case.run.worst(case.proxy, "python", 4).iter_rows(named=True):
        name = row["id"].removeprefix("py/a.py/")
        begin = source[source.index(f"def {name}(") :][:20]
        known = {c for c in begin if c in task.vocabulary or unit == "bytes"}
        begin = "".join(c if c in known else "⟨UNKNOWN⟩" for c in begin)
        assert row["text"].removeprefix("⟨START⟩").startswith(begin), row["id"]


def test_a_causal_model_of_hugging_face(tmp_path: Path) -> None:
    tokenizer = byte_level()
    sizes = {**SIZES, "vocab_size": len(tokenizer), "eos_token_id": 0}
    module = wide(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)))
    data = {}
    for key, words in (("iid", "the cat naïve 日本語 😀 dog"), ("ood:b", "a fox\n\tjumps €")):
        path = tmp_path / f"{key[-1]}.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in sentences(words)))
        data[key] = path
    task = am.text_task(data, tokenizer, length=16, fit_on="iid", fit_sequences=20)
    model = am.HuggingFace(module)
    run = am.audit_given(model, task, ["zero@1.mlp"], tmp_path / "run")
    case = Case(run, task, "zero@1.mlp", hooked_plain(module, module.model.layers[1].mlp))
    assert_plain(case)
    documents = [json.loads(x)["text"] for x in (tmp_path / "b.jsonl").read_text().splitlines()]
    for row in run.worst("zero@1.mlp", "b", 5).iter_rows(named=True):
        file, line = row["id"].split(":")
        assert file == "b.jsonl"
        assert documents[int(line) - 1].startswith(row["text"].replace("⟨82⟩⟨ac⟩", "")[:6])


def test_a_masked_model(tmp_path: Path) -> None:
    tokenizer = masking()
    module = make("bert")
    letters = ["".join(random.Random(i).choices("abcdefgh", k=12)) for i in range(160)]
    data = {"iid": letters[:80], "ood:b": [x[::-1] for x in letters[80:]]}
    task = am.text_task(
        data, tokenizer, length=16, masked=0.3, fit_on="iid", fit_sequences=20, vocabulary=61
    )
    run = am.audit_given(am.HuggingFace(module), task, ["zero@1.mlp"], tmp_path / "run")
    plain = hooked_plain(module, module.bert.encoder.layer[1].output.dense)
    case = Case(run, task, "zero@1.mlp", plain)
    assert_plain(case)
    first = run.worst("zero@1.mlp", "b", 1).row(0, named=True)
    positions = run.positions(first["sequence"], "zero@1.mlp", "b")
    assert positions["model"].is_null().to_list() == (~positions["scored"]).to_list()
    assert "[MASK]" not in first["text"], "the hidden tokens are shown"
    assert first["id"].startswith("row ")


def test_any_module(tmp_path: Path) -> None:
    module = large(Transformer()).eval()
    model = am.HookedModel(module, {"*.residual": "blocks.*", "*.mlp": "blocks.*.mlp"}, context=16)
    rng = np.random.default_rng(0)

    def split(name: str, role: Any) -> Split:
        offsets = np.concatenate([[0], np.cumsum(rng.integers(4, CONTEXT, 30))])
        scored = rng.random(offsets[-1]) < 0.5
        scored[offsets[:-1]] = False
        tokens = rng.integers(0, VOCABULARY, offsets[-1]).astype(np.int32)
        return Split(name, role, tokens, offsets, scored)

    splits = [split("train", "train"), split("iid", "iid"), split("far", "ood")]
    names = tuple(map(str, range(VOCABULARY)))
    task = Task("random", {}, names, np.arange(VOCABULARY), {s.name: s for s in splits})
    run = am.audit_given(model, task, ["zero@1.mlp"], tmp_path / "run")
    case = Case(run, task, "zero@1.mlp", hooked_plain(module, module.blocks[1].mlp))
    assert_plain(case)
    with pytest.raises(am.AnamorphError, match=r"no text of sequence 999.*worst sequences alone"):
        run.positions(999)


def test_long_sequences_are_cut_around_their_worst_position(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = with_fewer(task)
    whole = of_decoder(small_model(few), few, tmp_path / "whole")
    monkeypatch.setattr(examples, "LONGEST", 7)
    cut = of_decoder(small_model(few), few, tmp_path / "cut")
    starts = set()
    for row in cut.run.worst(cut.proxy, "iid", 5).iter_rows(named=True):
        every = whole.run.positions(row["sequence"], whole.proxy, "iid")
        some = cut.run.positions(row["sequence"], cut.proxy, "iid")
        assert len(some) == 7
        peak = every.filter("scored").sort("jsd", descending=True)["position"][0]
        assert peak in some["position"]
        assert some.equals(every.filter(pl.col("position").is_in(some["position"].to_list())))
        first, last = some["position"][0], some["position"][-1]
        starts.add(first)
        assert row["text"].startswith("… ") is (first > 0)
        assert row["text"].endswith(" …") is (last < row["length"] - 1)
    assert starts != {0}


def assert_plain(case: Case) -> None:
    """Ranking, values and predictions are those of a plain loop over every sequence."""
    task = case.task
    seen = 0
    for split in task.evaluated:
        before = 0 if split.masked is not None else 1
        logits, means = {}, {}
        for number, start in enumerate(split.offsets[:-1]):
            stop = split.offsets[number + 1]
            if split.scored[start:stop].any():
                given = torch.from_numpy(split.given[start:stop].astype(np.int64))
                logits[number] = case.plain(given)
                at = np.flatnonzero(split.scored[start:stop]) - before
                means[number] = jsd(*logits[number])[at].mean()
        table = case.run.worst(case.proxy, split.name, len(split))
        assert table["value"].to_list() == sorted(table["value"], reverse=True)
        assert dict(table.select("number", "value").iter_rows()) == pytest.approx(means, abs=EXACT)
        texts = case.run.pictures["worst"].filter(
            pl.col("rank").is_not_null(), split=split.name, simplification=case.proxy
        )
        assert texts["rank"].to_list() == list(range(len(texts))) and len(texts) >= 5
        assert texts["sequence"].to_list() == table["sequence"][: len(texts)].to_list()
        for row in table.head(len(texts)).iter_rows(named=True):
            positions = case.run.positions(row["sequence"], case.proxy, split.name)
            start, stop = split.offsets[row["number"] :][:2]
            scored = split.scored[start:stop]
            assert positions["scored"].to_list() == scored.tolist()
            assert positions["position"].to_list() == list(range(stop - start))
            told = scored if split.masked is not None else np.arange(stop - start) > 0
            at = np.flatnonzero(told)
            own, other = (x[at - before] for x in logits[row["number"]])
            here = positions.filter(pl.Series(told))
            assert positions.filter(pl.Series(~told))["jsd"].null_count() == (~told).sum()
            np.testing.assert_allclose(here["jsd"], jsd(own, other), atol=EXACT)
            assert_predictions(here, task, own, other, split.tokens[start:stop][at])
            seen += 1
    assert seen >= 10


def assert_predictions(here: pl.DataFrame, task: Task, own: Any, other: Any, target: Any) -> None:
    """Likeliest tokens, and who is right; where tokens tie within rounding either may stand."""
    best = {}
    for who, logits in (("model", own), ("proxy", other)):
        shares = scipy.special.softmax(logits, -1)
        allowed = np.ones_like(shares, bool)
        allowed[here["scored"].to_numpy()] = np.isin(np.arange(shares.shape[1]), task.candidates)
        kept = np.where(allowed, shares, -1)
        top = np.sort(kept, -1)[:, ::-1][:, :3]
        np.testing.assert_allclose(np.stack(here[f"{who}_p"].to_list()), top, atol=EXACT)
        best[who] = kept.argmax(-1), top[:, 0] - top[:, 1] > EXACT
    clear = best["model"][1] & best["proxy"][1] & here["scored"].to_numpy()
    assert clear.any()
    same = best["model"][0] == best["proxy"][0]
    assert here["same"].to_numpy()[clear].tolist() == same[clear].tolist()
    for who in ("model", "proxy"):
        right = best[who][0] == target
        assert here[f"{who}_right"].to_numpy()[clear].tolist() == right[clear].tolist()
    assert here.filter(~pl.col("scored"))["same"].is_null().all()


def jsd(own: Any, other: Any) -> Any:
    p, q = (scipy.special.softmax(np.asarray(x, np.float64), -1) for x in (own, other))
    found = scipy.spatial.distance.jensenshannon(p, q, base=2, axis=-1) ** 2
    return np.nan_to_num(found)  # SciPy's root of what is 0 but for rounding


def of_decoder(model: am.Decoder, task: Task, folder: Path) -> Case:
    """A run of a rank of queries and keys, and the same by a function in place of an edit."""
    proxy = "svd(rank=1)@*.*.{query,key}"
    run = am.audit_given(model, task, [proxy], folder / "run")
    fitted = FittedProxies.load(run.path / "seed-0" / "simplifications.safetensors")
    (found,) = (f for p, f in fitted.items() if str(p) == proxy)
    edits: dict[LayerKind, Any] = {}
    for site in found.by_site:
        edits.setdefault(LayerKind(site.layer, site.kind), projections(found.by_site, site))

    def plain(tokens: torch.Tensor) -> tuple[Any, Any]:
        batch = Batch.whole(tokens[None])
        logits = (run_plainly(model, batch, some)[0, 0].numpy() for some in ({}, edits))
        return tuple(logits)  # type: ignore[return-value]

    return Case(run, task, proxy, plain)


def projections(by_site: Any, like: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Every head's own projection of [copy, batch, head, position, dim]."""
    heads = sorted(s for s in by_site if (s.layer, s.kind) == (like.layer, like.kind))
    rows = [by_site[site].components_.float() for site in heads]
    each = [x.T @ x for x in rows]
    return lambda x: torch.stack([x[:, :, i] @ m for i, m in enumerate(each)], dim=2)


def hooked_plain(module: Any, part: Any) -> Plain:
    """A module by itself, and with zeros in place of what a part of it gives."""

    @torch.no_grad()
    def said(tokens: torch.Tensor) -> Any:
        found = module(tokens[None])
        return (found if torch.is_tensor(found) else found.logits)[0].numpy()

    def plain(tokens: torch.Tensor) -> tuple[Any, Any]:
        own = said(tokens)
        hook = part.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
        try:
            return own, said(tokens)
        finally:
            hook.remove()

    return plain


def with_fewer(task: Task) -> Task:
    """A task with few sequences in two splits, some of them not scored."""
    kept = {name: task.splits[name].take(np.arange(20)) for name in ("iid", "unseen_depth")}
    marks = kept["iid"].scored.copy()
    marks[: kept["iid"].offsets[2]] = False
    kept["iid"] = Split(**{**vars(kept["iid"]), "scored": marks, "numbers": None})
    return Task("few", {}, task.vocabulary, task.candidates, {"train": task.train, **kept})


def sentences(words: str) -> list[str]:
    return [" ".join(random.Random(i).choices(words.split(" "), k=9)) for i in range(60)]

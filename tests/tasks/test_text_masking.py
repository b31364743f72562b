"""Masked models: what is hidden from them, and audits of them."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import anamorph as am
from anamorph.auditing.samples import scored_sequences
from anamorph.cli import main
from anamorph.models.huggingface.load import load_model
from anamorph.tasks import Split, Task, export
from anamorph.tasks.batches import collate, targets
from anamorph.tasks.checks import check_vocabulary
from huggingface_models import make
from tiny_tokenizers import letters, masking

CLS, SEP, MASK, A = 1, 2, 3, 5


def texts(words: str, number: int = 60) -> list[str]:
    rng = random.Random(words)
    return ["".join(rng.choices(words, k=rng.randint(3, 20))) for _ in range(number)]


def masked_task(share: float = 0.25, **more: Any) -> Task:
    data = {"train": texts("abcd"), "iid": texts("dcba"), "ood:far": texts("wxyz")}
    return am.text_task(data, masking(), masked=share, length=18, **more)


def test_the_share_is_hidden_and_scored() -> None:
    task = masked_task()
    for split in task.splits.values():
        assert split.masked is not None
        bounds = list(zip(split.offsets[:-1], split.offsets[1:], strict=True))
        for start, stop in bounds:
            tokens, given = split.tokens[start:stop], split.masked[start:stop]
            scored = split.scored[start:stop]
            plain = (tokens != CLS) & (tokens != SEP)
            assert scored.sum() == max(1, round(0.25 * plain.sum()))
            assert plain[scored].all()
            assert (given[scored] == MASK).all()
            assert (given[~scored] == tokens[~scored]).all()
        places = np.concatenate([np.flatnonzero(split.scored[a:b]) for a, b in bounds])
        assert set(range(1, 8)) <= set(places.tolist())  # anywhere
        assert set(split.facets) == {"position", "frequency"}
    assert task.spec["masked"] == 0.25
    assert "25% of the tokens" in task.spec["made"] and "[MASK]" in task.spec["made"]


def test_the_same_is_hidden_every_time() -> None:
    first, again, other = masked_task(), masked_task(), masked_task(seed=1)
    assert np.array_equal(first.splits["far"].scored, again.splits["far"].scored)
    assert not np.array_equal(first.splits["far"].scored, other.splits["far"].scored)


def test_predictions_are_made_where_the_token_stands() -> None:
    split = masked_task().splits["far"]
    sequences = np.array([4, 0, 7])
    batch, wanted = collate(split, sequences), targets(split, sequences)
    for row, sequence in enumerate(sequences):
        tokens = split.take(np.array([sequence])).tokens
        for at, token, valid in zip(
            wanted.at[row], wanted.token[row], wanted.valid[row], strict=True
        ):
            if valid:
                assert batch.tokens[row, at] == MASK
                assert token == tokens[at] >= A
        assert wanted.valid[row].sum() == (batch.tokens[row] == MASK).sum()


def test_special_tokens_alone_leave_nothing_to_hide() -> None:
    data = {"iid": ["abc", "!", "b"], "train": ["ab", "cd"]}
    task = am.text_task(data, masking(), masked=0.5, length=8)
    split = task.splits["iid"]
    assert sorted(split.lengths) == [3, 3, 5]
    assert sorted(np.add.reduceat(split.scored.astype(int), split.offsets[:-1])) == [0, 1, 2]
    assert len(scored_sequences(split)) == 2


def test_what_cannot_be() -> None:
    data = {"iid": ["abc", "abc"], "train": ["ab", "cd"]}
    with pytest.raises(am.AnamorphError, match="it has none"):
        am.text_task(data, letters(), masked=0.1)
    for share in (0, 1, -0.5):
        with pytest.raises(am.AnamorphError, match="masked must be a number above 0 and below 1"):
            am.text_task(data, masking(), masked=share)
    tokens, offsets = np.array([4, 5]), np.array([0, 2])
    scored = np.array([False, True])
    with pytest.raises(am.AnamorphError, match="a scored token is not hidden"):
        Split("x", "iid", tokens, offsets, scored, masked=tokens)
    with pytest.raises(am.AnamorphError, match="masked has 1 entries for 2 tokens"):
        Split("x", "iid", tokens, offsets, scored, masked=tokens[:1])


def test_the_vocabulary_must_hold_the_mask(tmp_path: Path) -> None:
    tokens, offsets = np.array([4, 5]), np.array([0, 2])
    hidden = np.array([4, 9])
    split = Split("iid", "iid", tokens, offsets, np.array([False, True]), masked=hidden)
    names = tuple("0123456789")
    task = Task("x", {}, names, np.arange(6), {"iid": split})
    check_vocabulary(task, 10)
    with pytest.raises(am.AnamorphError, match="token id 9"):
        check_vocabulary(task, 9)
    export.export(task, tmp_path)
    assert pl.read_parquet(tmp_path / "iid.parquet")["masked"].to_list() == [[4, 9]]


# --- audits ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_report")
def test_numbers_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """Agreement and accuracy of BERT and a proxy of one head, by a hook at its values."""
    task = masked_task(vocabulary=61)
    model: Any = make("bert")
    run = am.audit_given(
        am.HuggingFace(model), task, ["svd(rank=2)@1.2.value"], tmp_path / "run", by="all"
    )
    values = model.bert.encoder.layer[1].attention.self.value
    kept: list[torch.Tensor] = []

    def keep(module: Any, given: Any, out: torch.Tensor) -> None:
        kept.append(out[0, :, 16:24])

    def predictions(split: Split) -> torch.Tensor:
        with torch.inference_mode():
            logits = [
                model(input_ids=torch.from_numpy(given.astype(np.int64))[None]).logits[0]
                for given in np.split(split.masked, split.offsets[1:-1])  # type: ignore[arg-type]
            ]
        return torch.cat(logits)[torch.from_numpy(split.scored)].argmax(-1)

    handle = values.register_forward_hook(keep)
    predictions(task.train)
    handle.remove()
    axes = torch.linalg.svd(torch.cat(kept).double(), full_matrices=False)[2][:2]

    def project(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[..., 16:24] = (out[..., 16:24].double() @ axes.T @ axes).float()
        return out

    for split in task.evaluated:
        usual = predictions(split)
        handle = values.register_forward_hook(project)
        proxy = predictions(split)
        handle.remove()
        truth = torch.from_numpy(split.tokens[split.scored].astype(np.int64))
        rows = run.results.filter(
            pl.col("facet").is_null() & pl.col("seed").is_null(),
            split=split.name,
            simplification="svd(rank=2)@1.2.value",
        )
        found = dict(zip(rows["metric"], rows["value"], strict=True))
        assert found["same_prediction"] == pytest.approx((usual == proxy).double().mean().item())
        assert found["model_accuracy"] == pytest.approx((usual == truth).double().mean().item())
        assert rows["tokens"].unique().to_list() == [len(truth)]


def test_model_and_task_must_look_the_same_way() -> None:
    data = {"train": texts("abcd"), "iid": texts("dcba")}
    onward = am.text_task(data, masking(), length=18, vocabulary=61)
    with pytest.raises(am.AnamorphError, match=r"sees the tokens.*masked=0\.15"):
        am.audit_given(am.HuggingFace(make("bert")), onward, ["svd(rank=1)@0.0.key"], "nowhere")
    with pytest.raises(am.AnamorphError, match=r"Leave out masked"):
        am.audit_given(
            am.HuggingFace(make("gpt2")),
            masked_task(vocabulary=61),
            ["svd(rank=1)@0.0.key"],
            "nowhere",
        )
    assert not Path("nowhere").exists()


@pytest.mark.usefixtures("quick_report")
def test_on_the_command_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    make("bert").save_pretrained(tmp_path / "model")  # type: ignore[operator]
    masking().save_pretrained(tmp_path / "model")
    for name, words in (("a", "abcd"), ("b", "wxyz")):
        lines = [json.dumps({"text": text}) for text in texts(words)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    arguments = [
        *("audit", "--model", tmp_path / "model", "--masked", 0.2, "--fit-on", "iid"),
        *("--data", f"iid={tmp_path}/a.jsonl", "--data", f"ood:b={tmp_path}/b.jsonl"),
        *("--fit-sequences", 20, "--length", 16, "--simplify", "svd(rank=[1,8])@1.*.{query,key}"),
        *("--out", tmp_path / "run"),
    ]
    monkeypatch.setattr(sys, "argv", ["anamorph", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err
    run = am.load_run(tmp_path / "run")
    assert run.spec["model"]["class"] == "BertForMaskedLM"
    assert run.spec["task"]["masked"] == 0.2
    same = run.results.filter(
        pl.col("facet").is_null() & pl.col("seed").is_null(),
        pl.col("simplification").str.contains("rank=8"),
        metric="same_prediction",
    )
    assert same["value"].min() == 1  # full rank


def test_masked_models_are_told_by_their_configuration(tmp_path: Path) -> None:
    for name in ("bert", "gpt2"):
        make(name).save_pretrained(tmp_path / name)  # type: ignore[operator]
        loaded = load_model(tmp_path / name)
        assert type(loaded.model) is type(make(name))
        assert loaded.causal == (name == "gpt2")

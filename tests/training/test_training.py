"""Training: resuming to the bit, refusing what is not its own, and learning at all."""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from anamorph.errors import AnamorphError
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.progress import Event, Watch
from anamorph.tasks import Facet, Split, Task
from anamorph.tasks.batches import collate, plan, shuffled
from anamorph.training.gradient import gradient_in_pieces, set_gradient
from anamorph.training.train import (
    TrainingConfig,
    _optimizers,
    _rates,
    accuracy,
    default_model,
    train,
)

SHORT = TrainingConfig(
    steps=30, batch_tokens=128, evaluate_every=10, checkpoint_every=10, learning_rate=0.01
)
SHAPE = {"width": 8, "mlp": 16, "layers": 2, "heads": 2}


def repetition(sequences: int, seed: int, name: str, role: Any) -> Split:
    """0, a word of three letters, and the word once more, which is what can be learnt; scored."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(sequences):
        word = rng.integers(1, 6, 3).tolist()
        parts.append([0, *word, *word][: rng.integers(5, 8)])
    tokens = np.array([t for part in parts for t in part], dtype=np.int16)
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
    scored = np.array([place >= 4 for part in parts for place in range(len(part))])
    codes = np.zeros(len(tokens), dtype=np.int16)
    return Split(name, role, tokens, offsets, scored, {"all": Facet(codes, ("all",))})


@pytest.fixture(scope="module")
def words() -> Task:
    splits = {
        "train": repetition(400, 0, "train", "train"),
        "iid": repetition(60, 1, "iid", "iid"),
        "other": repetition(40, 2, "other", "ood"),
    }
    return Task("words", {"name": "words"}, tuple("^abcde"), np.arange(1, 6), splits)


class Stopped(Exception):
    """What a killed process would not even raise."""


def stop_at(step: int) -> Watch:
    def watch(event: Event) -> None:
        if event.done == step:
            raise Stopped

    return watch


def same(first: Decoder, second: Decoder) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_training_ends_as_if_it_had_not_been(
    words: Task, optimizer: Any, tmp_path: Path
) -> None:
    config = replace(SHORT, optimizer=optimizer)
    shape = default_model(words, **SHAPE)
    whole, curves = train(words, config=config, model=shape, seed=3)
    steps: list[int] = []
    for stop in (7, 14, 29):  # before the first checkpoint, behind it, and far behind the second
        with pytest.raises(Stopped):
            train(words, config=config, model=shape, seed=3, out=tmp_path, watch=stop_at(stop))
        assert (tmp_path / "checkpoint.safetensors").exists() == (stop > 10)
    resumed, again = train(
        words,
        config=config,
        model=shape,
        seed=3,
        out=tmp_path,
        watch=lambda event: steps.append(event.done),
    )
    assert steps == list(range(21, 31)), "it goes on from the last checkpoint"
    assert same(resumed, whole)
    assert again.equals(curves), "the curves too, every digit"
    assert same(Decoder.load(tmp_path / "model.safetensors"), whole)
    assert pl.read_parquet(tmp_path / "history.parquet").equals(curves)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.fixture(scope="module")
def interrupted(words: Task, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint at step 10."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Stopped):
        train(
            words,
            config=SHORT,
            model=default_model(words, **SHAPE),
            out=folder,
            watch=stop_at(15),
        )
    return (folder / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize("changed", ["seed", "steps", "width", "task"])
def test_the_checkpoint_of_another_training_is_refused(
    changed: str, words: Task, interrupted: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(interrupted)
    task = replace(words, spec={"name": "words", "seed": 1}) if changed == "task" else words
    config = replace(SHORT, steps=31) if changed == "steps" else SHORT
    shape = default_model(words, **SHAPE | ({"width": 16} if changed == "width" else {}))
    seed = 1 if changed == "seed" else 0
    with pytest.raises(AnamorphError, match="checkpoint of another training"):
        train(task, config=config, model=shape, seed=seed, out=tmp_path)
    assert path.read_bytes() == interrupted
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def without_progress(whole: bytes) -> bytes:
    """The same file, its metadata cut: safetensors is a length, a JSON header and the tensors."""
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    metadata = json.loads(header["__metadata__"]["anamorph"])
    del metadata["progress"]
    header["__metadata__"]["anamorph"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + size :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"\xff" * len(whole),
        lambda whole: whole[8:],
        without_progress,
        lambda whole: whole.replace(b"model.norm.weight", b"model.norm.height"),
    ],
    ids=["empty", "half", "one byte", "noise", "no length", "no progress", "other names"],
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[bytes], bytes], words: Task, interrupted: bytes, tmp_path: Path
) -> None:
    broken = damage(interrupted)
    assert broken != interrupted
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(broken)
    with pytest.raises(AnamorphError, match=r"checkpoint\.safetensors"):
        train(words, config=SHORT, model=default_model(words, **SHAPE), out=tmp_path)
    assert path.read_bytes() == broken


def test_what_can_be_learnt_is_learnt_and_no_more(words: Task) -> None:
    config = TrainingConfig(
        steps=300, batch_tokens=512, evaluate_every=300, learning_rate=0.01, muon_learning_rate=0.02
    )
    told: list[Event] = []
    shape = default_model(words, **SHAPE | {"width": 32, "mlp": 64})
    _, curves = train(words, config=config, model=shape, watch=told.append)
    losses = [event.numbers["loss"] for event in told]
    assert abs(losses[0] - math.log2(6)) < 1, "it starts near guessing"
    # Three letters of five cannot be known: (3 log2 5 + 0) / tokens, of 4 to 6 a sequence, bits.
    lengths = words.train.lengths - 1
    floor = 3 * math.log2(5) * len(lengths) / lengths.sum()
    assert floor - 0.1 < losses[-1] < floor + 0.25
    last = curves.filter(pl.col("step") == 300)
    assert last["split"].to_list() == ["iid", "other"]
    assert last["accuracy"].min() > 0.95  # type: ignore[operator]
    assert last["cross_entropy"].max() < 0.3  # type: ignore[operator]


def test_the_curves_have_a_row_a_split_and_evaluation(words: Task) -> None:
    shape = default_model(words, **SHAPE)
    model, curves = train(words, config=replace(SHORT, steps=25), model=shape, seed=5)
    assert curves.columns == ["step", "tokens", "loss", "split", "accuracy", "cross_entropy"]
    assert curves["step"].to_list() == [10, 10, 20, 20, 25, 25]
    # tokens, padding included: the batches of the epoch by hand
    lengths = words.train.lengths
    batches = shuffled(lengths, 128, 5)
    sizes = [int(lengths[b].max()) * len(b) for b in (next(batches) for _ in range(25))]
    assert curves["tokens"].unique().sort().to_list() == [sum(sizes[:n]) for n in (10, 20, 25)]
    assert len(plan(np.sort(lengths), 128)) < 25, "the test should reach a second epoch"
    for split in words.evaluated:
        row = curves.filter((pl.col("step") == 25) & (pl.col("split") == split.name))
        right, bits = plain_accuracy(model, split)
        assert row["accuracy"].item() == pytest.approx(right)
        assert row["cross_entropy"].item() == pytest.approx(bits, rel=1e-5)


@torch.inference_mode()
def plain_accuracy(model: Decoder, split: Split) -> tuple[float, float]:
    right, bits = [], []
    for number, sequence in enumerate(split):
        logits = model(torch.from_numpy(sequence.astype(np.int64))[None])[0].double().numpy()
        for place in range(1, len(sequence)):
            if split.scored[split.offsets[number] + place]:
                row, token = logits[place - 1], int(sequence[place])
                right.append(1 + int(np.argmax(row[1:6])) == token)
                bits.append(math.log2(np.exp(row - row[token]).sum()))
    return float(np.mean(right)), float(np.mean(bits))


def test_accuracy_is_over_candidates_only(words: Task) -> None:
    torch.manual_seed(0)
    model = Decoder(default_model(words, **SHAPE))
    with torch.no_grad():  # the model now says START everywhere, which is no candidate
        model.norm.bias.fill_(1.0)
        model.unembedding.weight[0].fill_(50.0)
    right, bits = accuracy(model, words.reference, torch.arange(1, 6))
    expected = plain_accuracy(model, words.reference)
    assert right == pytest.approx(expected[0]) and right > 0.05
    assert bits == pytest.approx(expected[1], rel=1e-5) and bits > 50


def test_a_split_without_scored_positions_has_no_accuracy(words: Task) -> None:
    silent = replace(words.reference, scored=np.zeros_like(words.reference.scored))
    model = Decoder(default_model(words, **SHAPE))
    assert all(map(math.isnan, accuracy(model, silent, torch.arange(1, 6))))


def test_everything_comes_from_the_seed(words: Task) -> None:
    config, shape = replace(SHORT, steps=5), default_model(words, **SHAPE)
    torch.manual_seed(1)
    first, _ = train(words, config=config, model=shape, seed=7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "training leaves the global generator alone"
    torch.manual_seed(2)
    second, _ = train(words, config=config, model=shape, seed=7)
    other, _ = train(words, config=config, model=shape, seed=8)
    assert same(first, second) and not same(first, other)


def test_one_step_is_the_gradient_of_every_real_token(words: Task) -> None:
    config = replace(SHORT, steps=1, batch_tokens=10_000, warmup=0.0, decay=0.0, clip=1e9)
    shape = default_model(words, **SHAPE)
    one, _ = train(words, config=config, model=shape)
    torch.manual_seed(0)
    start = Decoder(shape)
    # One batch holds all of train, padded; here sequences go one by one, without padding.
    total, count = torch.zeros(()), 0
    for sequence in words.train:
        tokens = torch.from_numpy(sequence.astype(np.int64))[None]
        logits = start(tokens[:, :-1])[0]
        total = total + torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
        count += tokens.shape[1] - 1
    (total / count).backward()
    gradient = start.unembedding.weight.grad
    assert gradient is not None
    moved = one.unembedding.weight - start.unembedding.weight * (1 - 0.01 * 0.01)
    strong = gradient.abs() > 1e-3
    # The first step of Adam is the sign of the gradient times the rate.
    torch.testing.assert_close(moved[strong], -0.01 * gradient[strong].sign(), atol=1e-4, rtol=0)
    assert strong.float().mean() > 0.3


def test_threads_with_a_part_of_the_batch_each_take_the_same_step(words: Task) -> None:
    config = replace(SHORT, steps=2, batch_tokens=500)
    before = torch.get_num_threads()
    models = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            models.append(train(words, config=config, model=default_model(words, **SHAPE))[0])
    finally:
        torch.set_num_threads(before)
    one, three = (model.state_dict() for model in models)
    for name, weights in one.items():
        torch.testing.assert_close(weights, three[name], atol=1e-4, rtol=1e-3)


def test_a_gradient_that_is_not_finite_is_an_error(words: Task, tmp_path: Path) -> None:
    config = replace(SHORT, optimizer="adamw", learning_rate=1e30, warmup=0.0, checkpoint_every=1)
    with pytest.raises(AnamorphError, match=r"gradient is not finite.*Lower the learning rates"):
        train(words, config=config, model=default_model(words, **SHAPE), out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = Decoder(DecoderConfig(vocabulary=6, context=7, positions="learned", **SHAPE))  # type: ignore[arg-type]
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = (
        {names[id(p)] for group in o.param_groups for p in group["params"]}
        for o in _optimizers(model, TrainingConfig())
    )
    inside = ("query", "key", "value", "output", "up", "down")
    assert muon == {f"blocks.{i}.{name}.weight" for i in range(2) for name in inside}
    assert adamw == set(names.values()) - muon
    assert {"embedding.weight", "position.weight", "unembedding.weight"} <= adamw
    assert all(len(o.param_groups) == 1 for o in _optimizers(model, TrainingConfig()))
    (only,) = _optimizers(model, TrainingConfig(optimizer="adamw"))
    assert {names[id(p)] for p in only.param_groups[0]["params"]} == set(names.values())


def test_learning_rates_by_hand() -> None:
    config = TrainingConfig(
        steps=10, warmup=0.2, decay=0.5, learning_rate=0.1, muon_learning_rate=1.0
    )
    scales = [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    for step, scale in enumerate(scales):
        assert _rates(step, config) == pytest.approx([scale, 0.1 * scale])
        assert _rates(step, replace(config, optimizer="adamw")) == pytest.approx([0.1 * scale])
    level = replace(config, warmup=0.0, decay=0.0)
    assert [_rates(step, level)[0] for step in range(10)] == [1.0] * 10
    overlapping = replace(config, warmup=1.0, decay=1.0)
    peaks = [_rates(step, overlapping)[0] for step in range(10)]
    assert peaks == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_progress_is_told_after_every_step(words: Task) -> None:
    told: list[Event] = []
    train(words, config=SHORT, model=default_model(words, **SHAPE), watch=told.append)
    assert [event.done for event in told] == list(range(1, 31))
    assert {(event.step, event.total) for event in told} == {("training", 30)}
    for event in told:
        assert event.numbers["tokens_per_second"] > 0 and math.isfinite(event.numbers["loss"])
        assert event.note.endswith(f", loss {event.numbers['loss']:.3f} bits")


def test_the_default_model_fits_the_task(words: Task) -> None:
    shape = default_model(words, width=16)
    assert (shape.vocabulary, shape.context, shape.width) == (6, 7, 16)
    assert default_model(words, context=20).context == 20
    with pytest.raises(AnamorphError, match="context of at least 7; got 6"):
        default_model(words, context=6)
    with pytest.raises(AnamorphError, match="vocabulary of at least 6; got 5"):
        default_model(words, vocabulary=5)
    with pytest.raises(AnamorphError, match="takes no depth; it takes: vocabulary"):
        default_model(words, depth=2)


def test_an_unwritable_folder_is_an_error(words: Task, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AnamorphError, match="Cannot write"):
        train(words, config=SHORT, model=default_model(words, **SHAPE), out=tmp_path / "file" / "x")


@pytest.mark.parametrize("precision", ["auto", "bf16-mixed"])
def test_other_precisions_learn_too(words: Task, precision: Any) -> None:
    config = replace(SHORT, precision=precision)
    model, curves = train(words, config=config, model=default_model(words, **SHAPE))
    first, last = curves["loss"][0], curves["loss"][-1]
    assert last < first < 3
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_fast_gradient_is_the_plain_one(words: Task, threads: int, bfloat16: bool) -> None:
    torch.manual_seed(0)
    model = Decoder(default_model(words, **SHAPE))
    batch = collate(words.train, np.arange(400))  # more than one piece
    loss = set_gradient(model, bfloat16, batch.tokens, batch.mask)
    plain = [p.grad for p in model.parameters()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with gradient_in_pieces(model, bfloat16) as gradient:
            again = gradient(batch.tokens, batch.mask)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    rounding = 2e-3 if bfloat16 else 1e-6
    torch.testing.assert_close(again, loss, atol=rounding, rtol=0)
    for parameter, expected in zip(model.parameters(), plain, strict=True):
        assert parameter.grad is not None and parameter.grad is not expected
        torch.testing.assert_close(parameter.grad, expected, atol=rounding, rtol=0)

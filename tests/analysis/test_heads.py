"""Which head a proxy edits, and what heads look like, against loops over single sequences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.spatial.distance
import torch

from anamorph.analysis.edited_heads import EditedHead, edited_head
from anamorph.analysis.head_scores import LONGEST, Places, head_scores
from anamorph.analysis.heads import SCORES, _method
from anamorph.auditing.options import AuditOptions
from anamorph.auditing.samples import scored_sequences
from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, LayerKind, Model, Ran, State
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.progress import ignore
from anamorph.runs.folder import Run
from anamorph.simplifications import FittedProxies, sweep
from anamorph.studies.sources import GivenStudy
from anamorph.studies.steps import SeedAudit
from anamorph.tasks import Split, Task
from huggingface_models import VOCABULARY, make
from plain import forward, small_model

Pattern = np.ndarray  # [query, key] of one sequence


def plain_scores(
    patterns: list[Pattern], tokens: list[list[int]], pairs: list[tuple[int, int]]
) -> dict[str, float | None]:
    """The scores of one head, by loops over positions."""
    previous, induction, copying, alike = [], [], [], []
    for pattern, sequence in zip(patterns, tokens, strict=True):
        for t in range(1, len(sequence)):
            previous.append(pattern[t, t - 1])
        for t in range(len(sequence)):
            keys = [k for k in range(1, t) if sequence[k - 1] == sequence[t]]
            if keys:
                induction.append(sum(pattern[t, k] for k in keys))
        for t in range(len(sequence) - 1):
            keys = [k for k in range(t + 1) if sequence[k] == sequence[t + 1]]
            if keys:
                copying.append(sum(pattern[t, k] for k in keys))
    for one, other in pairs:
        for t in range(1, min(len(tokens[one]), len(tokens[other]))):
            a, b = np.zeros(200), np.zeros(200)
            a[: len(patterns[one])] = patterns[one][t]
            b[: len(patterns[other])] = patterns[other][t]
            a[-1], b[-1] = max(0, 1 - a.sum()), max(0, 1 - b.sum())  # what a sink takes
            alike.append(1 - scipy.spatial.distance.jensenshannon(a, b, base=2) ** 2)
    found = (previous, induction, copying, alike)
    return {n: float(np.mean(v)) if v else None for n, v in zip(SCORES, found, strict=True)}


def evenly(length: int) -> Pattern:
    return np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]


def test_scores_of_a_decoder_are_those_of_plain_loops(task: Task) -> None:
    model, iid = small_model(task), scored_sequences(task.reference, 9)
    frame = head_scores(model, task.reference, sequences=9, batch_tokens=120)
    order = np.argsort(iid.lengths, kind="stable")[1:]  # the shortest of nine has no partner
    tokens = [list(iid)[i].tolist() for i in order]
    assert len({len(t) for t in tokens}) > 4  # or padding would not be tested
    sites = [forward(model, t, {}) for t in tokens]
    pairs = [(i, i + 1) for i in range(0, 8, 2)]
    for layer, head in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        patterns = [s[Site(layer, head, "pattern")] for s in sites]
        expected = plain_scores(patterns, tokens, pairs)
        row = frame.filter(layer=layer, head=head).row(0, named=True)
        assert {n: row[n] for n in SCORES} == pytest.approx(expected, abs=1e-5)
        assert row["sequences"] == 8
    even = frame.filter(pl.col("layer").is_null()).row(0, named=True)
    expected = plain_scores([evenly(len(t)) for t in tokens], tokens, pairs)
    assert {n: even[n] for n in SCORES} == pytest.approx(expected, abs=1e-5)
    assert even["positional"] == pytest.approx(1, abs=1e-6) and len(frame) == 5


def test_scores_do_not_depend_on_batches(task: Task) -> None:
    model = small_model(task)
    one, many = (head_scores(model, task.reference, batch_tokens=n) for n in (60, 5000))
    assert one["sequences"][0] == 30
    for name in SCORES:
        assert one[name].to_list() == pytest.approx(many[name].to_list(), abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2", "bert"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_may_stand_on_either_side(name: str, side: str) -> None:
    model = HuggingFace(make(name))
    lengths = (9, 12, 5, 7)
    chosen = torch.randint(3, 9, (4, 12), generator=torch.Generator().manual_seed(2))
    tokens = [row[:n].tolist() for row, n in zip(chosen, lengths, strict=True)]
    padded = torch.full((4, 12), VOCABULARY - 1)
    mask = torch.zeros(4, 12).bool()
    for row, sequence in enumerate(tokens):
        at = slice(len(sequence)) if side == "right" else slice(12 - len(sequence), 12)
        padded[row, at], mask[row, at] = torch.tensor(sequence), True
    batch = Batch(padded, mask)
    places = Places.of(batch)
    together = [places.moved(p) for p in patterns_of(model, batch)]
    alone = [
        patterns_of(model, Batch(torch.tensor([t]), torch.ones(1, len(t)).bool())) for t in tokens
    ]
    for layer in range(model.layers):
        means = (places.sums(together[layer]) / places.counts()).numpy()
        for head in range(model.layout[layer].heads):
            patterns = [of[layer][0, head].double().numpy() for of in alone]
            expected = plain_scores(patterns, tokens, [(0, 1), (2, 3)])
            found = dict(zip(SCORES, means[head], strict=True))
            assert found == pytest.approx(expected, abs=2e-4)


def patterns_of(model: HuggingFace, batch: Batch) -> list[torch.Tensor]:
    record = [LayerKind(layer, "pattern") for layer in range(model.layers)]
    with torch.inference_mode():
        recorded = model.run(batch, record=record).recorded
    return [recorded[key][0] for key in record]


class Scripted(Model):
    """A model of one layer whose heads attend where a rule says: (tokens, position) -> key."""

    layers, vocabulary = 1, 100
    sites: list[Site] = []  # noqa: RUF012
    parallel = False  # it keeps its batch

    def __init__(self, *rules: Callable[[list[int], int], int]) -> None:
        self.rules = rules
        self.sites = [Site(0, head, "pattern") for head in range(len(rules))]

    def start(self, batch: Batch) -> State:
        self.batch = batch
        return State(torch.zeros(1, *batch.tokens.shape, 1), batch.tokens, batch.mask)

    def layer(self, index: int, state: State, *_: Any, **__: Any) -> Ran:
        rows, length = self.batch.tokens.shape
        pattern = torch.zeros(1, rows, len(self.rules), length, length)
        for row, tokens in enumerate(self.batch.tokens.tolist()):
            for (head, rule), t in (
                ((h, r), t) for h, r in enumerate(self.rules) for t in range(length)
            ):
                pattern[0, row, head, t, rule(tokens, t)] = 1
        return Ran(state, {LayerKind(0, "pattern"): pattern})

    def logits(self, state: State, at: Any = None) -> torch.Tensor:
        raise AssertionError("scores of heads need no logits")


def split_of(*sequences: list[int]) -> Split:
    lengths = [len(s) for s in sequences]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate(sequences).astype(np.int32)
    scored = np.ones(len(tokens), dtype=bool)
    scored[offsets[:-1]] = False
    return Split("iid", "iid", tokens, offsets, scored)


def after_same(tokens: list[int], t: int) -> int:
    return next((k for k in range(1, t) if tokens[k - 1] == tokens[t]), 0)


def test_heads_that_are_what_a_score_is_named_after() -> None:
    model = Scripted(lambda _, t: max(0, t - 1), after_same, lambda _, t: 0)
    #                 positions with a past occurrence that something followed: 2; 3 and 4
    frame = head_scores(model, split_of([7, 8, 7, 9, 5], [7, 8, 9, 8, 7]))  # type: ignore[arg-type]
    found = {row["head"]: row for row in frame.iter_rows(named=True)}
    assert found[0]["previous_token"] == 1 and found[0]["positional"] == 1
    assert found[1]["induction"] == 1
    # At 2 one attends to 1, the other to 0; at 3 to 0 and 2; at 4 to 0 and 1; at 1 both to 0.
    assert found[1]["positional"] == pytest.approx(1 / 4)
    assert found[2] | {"layer": 0} == {
        "layer": 0, "head": 2, "previous_token": 0.25, "induction": 0, "copying": 2 / 3,
        "positional": 1,
        "sequences": 2,
    }  # fmt: skip
    # Three positions are followed by a token that was there: 7 at 1 of the first; 8 at 2 and 7 at 3
    # of the second. The first token is it at the first and the last of these.
    # Three positions have a token to copy. The one before is it at 2 of the first (8 followed 7)
    # and at 3 of the second (9 followed 8), not at 4 of the second.
    assert found[0]["induction"] == pytest.approx(2 / 3)
    # Evenly: 1/3 at 2 of the first; 1/4 at 3 and 1/5 at 4 of the second.
    assert found[None]["induction"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)


def test_no_score_where_no_position_has_one() -> None:
    model = Scripted(lambda _, t: 0)
    frame = head_scores(model, split_of([1, 2, 3], [4, 4, 5]))  # type: ignore[arg-type]
    assert frame["induction"].to_list() == [None, None]
    assert frame["previous_token"].to_list() == [0.5, pytest.approx((1 / 2 + 1 / 3) / 2)]
    assert head_scores(model, split_of([1, 2, 3])).is_empty()  # type: ignore[arg-type]
    model.sites = [Site(0, None, "mlp")]
    assert head_scores(model, split_of([1, 2], [1, 2])).is_empty()  # type: ignore[arg-type]


def test_looks_at_the_beginning_of_long_sequences_only() -> None:
    model = Scripted(lambda _, t: 0)
    long = list(range(LONGEST + 40))
    frame = head_scores(model, split_of(long, long))  # type: ignore[arg-type]
    assert frame["previous_token"][0] == pytest.approx(1 / (LONGEST - 1))


def test_a_broken_pattern_is_an_error() -> None:
    class Broken(Scripted):
        def layer(self, *args: Any, **kwargs: Any) -> Ran:
            ran = super().layer(*args, **kwargs)
            ran.recorded[LayerKind(0, "pattern")][0, 1, 1, 2, 0] = torch.nan
            return ran

    model = Broken(lambda _, t: 0, lambda _, t: 0)
    with pytest.raises(AnamorphError, match=r"attention of 0\.1 on split 'iid' is not a number"):
        head_scores(model, split_of([1, 2, 3], [1, 2, 3]))  # type: ignore[arg-type]


def sites_of(layers: int, heads: int, key_heads: int) -> list[Site]:
    return [
        Site(layer, head, kind)
        for kind in HEAD_KINDS
        for layer in range(layers)
        for head in range(key_heads if kind in ("key", "value") else heads)
    ] + [Site(layer, None, "mlp") for layer in range(layers)]


@pytest.mark.parametrize(
    ("sites", "layer", "head", "kinds", "shared"),
    [
        ("1.5.query", 1, 5, "query", False),
        ("1.5.query;1.2.key", 1, 5, "query key", False),
        ("1.2.key", 1, 2, "key", True),
        ("1.2.{value,key}", 1, 2, "key value", True),
        ("0.0.{key,query}", 0, 0, "query key", False),
        ("0.4-4.{pattern,output}", 0, 4, "pattern output", False),
    ],
)
def test_edited_head(sites: str, layer: int, head: int, kinds: str, shared: bool) -> None:
    expected = EditedHead(layer, head, tuple(kinds.split()), shared)
    assert edited_head(sites, sites_of(2, 6, 3)) == expected


@pytest.mark.parametrize(
    "sites",
    ["", "1.mlp", "1.5.query;1.mlp", "*.5.query", "1.*.query", "1.5.query;0.2.key",
     "1.5.query;1.1.key", "1.4-5.query;1.2.key", "1.{0,1}.key"],
)  # fmt: skip
def test_proxies_of_more_than_a_head(sites: str) -> None:
    assert edited_head(sites, sites_of(2, 6, 3)) is None


def test_edited_head_without_shared_keys() -> None:
    assert edited_head("1.5.key", sites_of(2, 6, 6)) == EditedHead(1, 5, ("key",), False)
    assert edited_head("1.*.{query,key}", sites_of(2, 1, 1)) is None  # a layer's only head


def test_every_proxy_of_a_sweep_by_head_edits_one() -> None:
    sites = sites_of(3, 6, 3)
    proxies = sweep(["svd(rank=2)@*.*.{query,key}", "svd(rank=2)@*.*.value"], sites)
    found = [edited_head(p.sites, sites) for p in proxies]
    assert len(set(found)) == len(proxies) == 18 + 9
    assert sum(h.shared for h in found if h) == 9


def test_the_step_is_passed_over_if_its_file_is_there(task: Task, tmp_path: Path) -> None:
    model, run = small_model(task), Run(tmp_path, {"threads": 1})

    def score(spec: str) -> None:
        study = GivenStudy(model, task, spec, AuditOptions())
        audit = SeedAudit(run, study, model, 3, ignore)
        if "heads.parquet" in [path.name for path in audit.looks()]:
            audit.look("heads.parquet", FittedProxies({}, model.layers))

    score("svd(rank=2)@1.*.query")
    assert not run.seed(3).exists()  # no proxy edits a single head
    score("svd(rank=2)@1.0.query")
    path = run.seed(3) / "heads.parquet"
    assert pl.read_parquet(path)["seed"].to_list() == [3] * 5
    path.write_text("kept")
    score("svd(rank=2)@1.0.query")
    assert path.read_text() == "kept"


def test_a_semicolon_in_quotes_is_part_of_a_label() -> None:
    head = EditedHead(0, 0, ("key",), False)
    assert _method('given(path="my maps;v2@1")@0.0.key', head) == 'given(path="my maps;v2@1") · key'
    assert _method("svd@0.0.query;svd@0.0.key", head) == "SVD · query, key"

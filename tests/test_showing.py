"""What objects show of themselves in a notebook and in a terminal."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import anamorph as am
from anamorph.faithfulness.gaps import NOT_TESTABLE, SIGNS, VERDICTS
from anamorph.faithfulness.matrix import MODEL, TINTS, Matrix
from anamorph.report.opened import OpenedRun
from anamorph.showing import MOST, WIDTH, Card, Cell
from anamorph.showing import TINTS as STYLES
from anamorph.tasks import Split, Task
from judged_run import WORSE_BUT_UNCLEAR, write

NASTY = "<script>alert('x')</script>"


class Parsed(HTMLParser):
    """Rows of cells, each (tag, scope, style, text); all tags must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str | None, str, str]]] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        known = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append((tag, known.get("scope"), known["style"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            *front, text = self.rows[-1][-1]
            self.rows[-1][-1] = (*front, text + data)  # type: ignore[assignment]


@pytest.fixture(scope="module")
def audit(task: Task) -> am.Audit:
    torch.manual_seed(0)
    model = am.Decoder(am.DecoderConfig(vocabulary=len(task.vocabulary), context=60)).eval()
    specs = ["svd(rank=[1,2])@1.*.{query,key}", "random(rank=1)@1.*.{query,key}"]
    return am.audit(model, task, specs, learnt=0.0)


def test_an_audit_shows_its_verdicts_first(audit: am.Audit, task: Task) -> None:
    parsed = Parsed(audit._repr_html_())
    head, model, *views = parsed.rows
    names = [split.name.replace("_", " ") for split in task.evaluated]
    assert [text for *_, text in head] == ["proxy", *names]
    assert {(tag, scope) for tag, scope, *_ in head} == {("th", "col")}
    assert [row[0][3] for row in views] == [f"svd(rank={r})@1.*.{{query,key}}" for r in (1, 2)]
    assert all(row[0][:2] == ("th", "row") for row in (model, *views))
    same = audit.results.filter(pl.col("facet").is_null(), metric="same_prediction")
    for row in views:
        for split, (_, _, style, text) in zip(task.evaluated, row[1:], strict=True):
            where = {"simplification": row[0][3], "split": split.name}
            value = same.filter(pl.col("seed").is_null(), **where)["value"].item()
            assert text.split(" ")[-1] == f"{value:.3f}"
            if split.role == "ood":
                gaps = audit.gaps.filter(seed=0, metric="same_prediction", **where)
                verdict = gaps["verdict"].item()
                assert text == f"{SIGNS[verdict]} {value:.3f}".strip()
                assert style.endswith(STYLES[TINTS[verdict]])
    text = re.sub("<[^>]+>", "", audit._repr_html_())
    assert "Audit: 2 views (and 1 control) on 6 splits" in text and "10 cells: " in text
    assert f".gaps ({len(audit.gaps):,} rows)" in text


def test_its_counts_are_those_of_the_table(audit: am.Audit) -> None:
    matrix = Matrix.of(audit.results, audit.gaps)
    views = audit.gaps.filter(pl.col("control").is_null(), seed=0, metric="same_prediction")
    counts = dict(views["verdict"].value_counts().iter_rows())
    assert matrix.verdicts == {v: counts[v] for v in VERDICTS if v in counts}
    assert sum(matrix.verdicts.values()) == 10 == int(matrix.counted.split(" ")[0])


def test_a_terminal_has_one_screen_of_it(audit: am.Audit) -> None:
    lines = repr(audit).splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= WIDTH
    (header,) = [number for number, line in enumerate(lines) if line.startswith("proxy ")]
    assert lines[header].split()[1] == "iid" and lines[header].endswith("matched")
    assert lines[header + 1].startswith(MODEL)
    assert [line.split("  ")[0] for line in lines[header + 2 : header + 4]] == [
        "svd(rank=1)@1.*.{query,key}",
        "svd(rank=2)@1.*.{query,key}",
    ]


def test_of_many_views_those_with_the_largest_gaps_are_shown(tmp_path: Path) -> None:
    cells = {f"svd(rank={r})@0.*.key": {"near": "faithful"} for r in range(1, 60)}
    cells["svd(rank=7)@0.*.key"] = {"near": WORSE_BUT_UNCLEAR}
    run = OpenedRun(write(tmp_path / "run", cells), {})
    rows = Parsed(run._repr_html_()).rows
    assert len(rows) == 1 + MOST, "the head, the model, and views"
    assert rows[2][0][3] == "svd(rank=7)@0.*.key" and rows[2][1][3] == "? 0.910"
    assert "Shown are 40 of 59 views, those with the largest gaps" in run._repr_html_()


def test_a_run_says_what_was_found(smoke_run: Path) -> None:
    run = am.load_run(smoke_run)
    text = re.sub("<[^>]+>", "", run._repr_html_())
    assert "Nothing can be said of 7 simplified views here: the model has not learnt" in text
    assert f"35 cells: 35 {SIGNS[NOT_TESTABLE]} {NOT_TESTABLE}." in text
    assert str(run.report) in text and ".plot has its charts" in text
    assert repr(run).startswith(f"Run {smoke_run} (dyck): 7 views on 6 splits")


def test_a_run_that_is_not_finished_or_damaged_is_shown_even_so(tmp_path: Path) -> None:
    path = write(tmp_path / "run", {"svd(rank=1)@0.*.key": {"near": "faithful"}})
    (path / "gaps.parquet").write_bytes(b"nothing")
    assert "Its tables cannot be read. " in repr(OpenedRun(path, {}))
    (path / "gaps.parquet").unlink()
    assert "Not finished: 0 works done." in repr(OpenedRun(path, {}))


def test_a_task_and_its_splits(task: Task) -> None:
    rows = {row[0][3]: [text for *_, text in row[1:]] for row in Parsed(task._repr_html_()).rows}
    for split in task.splits.values():
        counts = [split.role, *(f"{n:,}" for n in (len(split), len(split.tokens)))]
        assert rows[split.name][:3] == counts
        assert rows[split.name][3] == f"{int(split.scored.sum()):,}"
    first = next(iter(task.reference))
    said = repr(task).split("in brackets:")[1].split()
    names = [task.vocabulary[token] for token in first]
    assert [name.strip("[]") for name in said] == names
    scored = task.reference.scored[: len(first)]
    assert [name.startswith("[") for name in said] == scored.tolist()
    assert repr(task.train) == (
        f"Split train: role train, sequences 300, lengths {task.train.lengths.min()} to "
        f"{task.train.lengths.max()} tokens, tokens {len(task.train.tokens):,}, scored "
        f"{task.train.scored.sum():,}, facets "
        + ", ".join(f"{n} ({len(f.names)} levels)" for n, f in task.train.facets.items())
    )
    assert "\n" not in repr(task.splits)


def test_a_split_without_sequences_is_shown() -> None:
    none = np.zeros(0, int)
    assert repr(Split("x", "iid", none, np.zeros(1, int), none.astype(bool))) == (
        "Split x: role iid, sequences 0, lengths none, tokens 0, scored 0"
    )


def test_models_say_what_they_are() -> None:
    config = am.DecoderConfig(vocabulary=10, context=8, layers=2, heads=4)
    decoder = am.Decoder(config)
    rows = {row[0][3]: row[1][3] for row in Parsed(decoder._repr_html_()).rows}
    assert rows["parameters"] == f"{sum(p.numel() for p in decoder.parameters()):,}"
    assert rows["layers"] == "2" and rows["heads a layer"] == "4" and rows["width"] == "32"
    assert rows["computes"] == "in float32 on cpu" and rows["predicts"] == "the next token"
    assert rows["sites"].startswith("0-1.0-3.{query,key,value,pattern,output}, 0-1.{residual,")
    assert repr(decoder).startswith("Decoder(\n"), "its modules, which fingerprints depend on"
    module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50))
    hooked = am.HookedModel(module, {"0.residual": "1"})
    lines = repr(hooked).splitlines()
    assert lines[0] == "HookedModel · Sequential"
    facts = dict(re.split("  +", line.strip()) for line in lines[1:])
    assert facts["sites"] == "0.residual" and facts["parameters"] == "922"
    assert "heads a layer" not in facts and "context" not in facts


def test_fits_say_what_was_learnt(audit: am.Audit) -> None:
    rows = {r[0][3]: [text for *_, text in r[1:]] for r in Parsed(audit.proxies._repr_html_()).rows}
    assert rows["svd(rank=2)@1.*.{query,key}"] == ["2", "2 × components_ [2, 32]"]
    assert rows["identity"] == ["0", "nothing"]
    # SVD of ranks 1 and 2 at two sites, and a random direction with a mean at two
    assert repr(audit.proxies).startswith("4 fitted proxies: 6 fits, 320 numbers\n")


@pytest.mark.parametrize("part", ["title", "facts", "lines", "heads", "rows", "notes"])
def test_nothing_from_outside_becomes_markup(part: str) -> None:
    given: dict[str, Any] = {
        "title": NASTY,
        "facts": [(NASTY, NASTY)],
        "lines": [NASTY],
        "heads": ["", NASTY],
        "rows": [(NASTY, [Cell(NASTY)])],
        "notes": [NASTY],
    }
    card = Card(
        **{"title": "x", "heads": ["", "y"], "rows": [("z", [Cell("1")])], part: given[part]}
    )
    parsed = Parsed(card.html)
    assert "script" not in parsed.tags and "&lt;script&gt;" in card.html
    assert NASTY in card.text.replace("\n", " ")


def test_text_in_cells_can_be_read_on_light_and_dark() -> None:
    """WCAG's contrast of at least 4.5, with the text's own colour on what is behind the tint."""

    def luminance(rgb: list[float]) -> float:
        parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    pages = {"light": ([1.0] * 3, [0.13] * 3), "dark": ([0.07] * 3, [0.87] * 3)}
    for tint, style in STYLES.items():
        for name, (page, ink) in pages.items():
            behind, text = page, ink
            if found := re.search(r"rgba\((\d+),(\d+),(\d+),([.\d]+)\)", style):
                *rgb, alpha = map(float, found.groups())
                behind = [alpha * c / 255 + (1 - alpha) * p for c, p in zip(rgb, page, strict=True)]
            elif found := re.search("#(..)(..)(..);color:#fff", style):
                behind, text = [int(c, 16) / 255 for c in found.groups()], [1.0] * 3
            low, high = sorted([luminance(behind), luminance(text)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (tint, name)

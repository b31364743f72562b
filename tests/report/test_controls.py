"""What controls say of their views."""

from io import StringIO
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from anamorph.analysis.controls import beside_views, controls, said
from anamorph.analysis.findings import Findings, read
from anamorph.analysis.reported import lines
from anamorph.analysis.words import percent
from anamorph.cli.markdown import markdown
from anamorph.cli.tables import print_run
from anamorph.report.charts.results import against_size
from anamorph.report.charts.verdicts import gap_lines, matrix
from anamorph.report.page import _facts
from controlled_run import DEEP, EXPLAINED, LEFT, PROXY, RANDOM, make_controlled
from synthetic_run import LAYER_1, SPLITS

TITLE = "SVD · layer 1 query, key · joint"
VIEW = PROXY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_controlled(tmp_path_factory.mktemp("controlled"))


@pytest.fixture
def found(folder: Path) -> Findings:
    return read(folder)


def changed(found: Findings, tmp_path: Path, kind: str, **columns: pl.Expr) -> str:
    """What is said where a control has other numbers."""
    results = pl.read_parquet(found.path / "results.parquet").with_columns(
        pl.when(pl.col("control") == kind).then(new).otherwise(pl.col(name)).alias(name)
        for name, new in columns.items()
    )
    results.write_parquet(tmp_path / "results.parquet")
    for name in ("gaps.parquet", "spec.json"):
        (tmp_path / name).write_bytes((found.path / name).read_bytes())
    return said(read(tmp_path)).get(TITLE, "")


def lost(found: Findings, simplification: str = VIEW) -> tuple[float, float]:
    """A view's same prediction on iid and on unseen depth."""
    (row,) = (r for r in found.cells[simplification] if r["split"] == DEEP)
    return row["iid"], row["ood"]


def test_controls_stand_beside_their_views_and_are_no_views(found: Findings) -> None:
    assert len(found.proxies) == 14 and len(found.families) == 4
    assert not found.results["simplification"].str.contains(r"on=|random").any()
    beside = [c for c in controls(found) if c.view.simplification == VIEW]
    assert {(c.simplification, c.kind, c.on, c.split) for c in beside} == {
        (f"svd(rank=8, joint=true, on={DEEP})@{LAYER_1}", "oracle", DEEP, DEEP),
        (f"svd(rank=8, joint=true, on=train[0::2])@{LAYER_1}", "half", "train[0::2]", None),
        (f"random(rank=8, joint=true)@{LAYER_1}", "random", "train", None),
    }
    assert len(controls(found)) == 3 * 6


def test_what_is_learnt_elsewhere(found: Findings) -> None:
    iid, ood = lost(found)
    left = 100 * (iid - (1 - LEFT * (1 - ood)))
    assert left < 0
    assert said(found) == {
        TITLE: f"On unseen depth, it loses {100 * (iid - ood):.1f} points at rank 8; fitted "
        "there it loses nothing: the directions exist, training data did not show them."
    }


@pytest.mark.parametrize(
    ("low", "high", "meaning"),
    [
        (0.52, 0.9, "the directions exist, training data did not show them"),
        (-0.9, -0.4, "there is too little to fit on there"),
        (-0.02, 0.48, "the view is too small"),
        (0.1, 0.48, "the view is too small"),
        (0.45, 0.55, "whether it is too small, or fitted in the wrong place, is open"),
        (None, None, "whether it is too small, or fitted in the wrong place, is open"),
    ],
)
def test_more_than_half_of_a_fall_comes_back_or_less(
    found: Findings, tmp_path: Path, low: float | None, high: float | None, meaning: str
) -> None:
    """`low` and `high` are the ends of what comes back, as a share of the fall."""
    iid, ood = lost(found)
    value = ood + (iid - ood) * (0.5 if low is None or high is None else (low + high) / 2)
    ends = {
        name: pl.lit(None if share is None else ood + share * (iid - ood), pl.Float64)
        for name, share in {"low": low, "high": high}.items()
    }
    text = changed(found, tmp_path, "oracle", value=pl.lit(value), **ends)
    assert text == (
        f"On unseen depth, it loses {100 * (iid - ood):.1f} points at rank 8; fitted there it "
        f"loses {100 * (iid - value):.1f}: {meaning}."
    )


def test_random_ones_that_are_as_good(found: Findings, tmp_path: Path) -> None:
    same = {name: pl.col(name) / RANDOM for name in ("value", "low", "high")}
    iid, ood = lost(found)
    open_ = same | {"low": pl.col("value") / RANDOM - 0.021}
    assert "learnt" not in changed(found, tmp_path, "random", **open_)  # they may be worse
    close = same | {"low": pl.col("value") / RANDOM - 0.019}
    fall = f"{100 * (iid - ood):.1f}"
    assert changed(found, tmp_path, "random", **close).endswith(
        f"; random ones lose {fall}: nothing that counts there was learnt."
    )


def test_half_of_the_data_that_says_something_else(found: Findings, tmp_path: Path) -> None:
    iid, ood = lost(found)
    less = {name: pl.col(name) - 0.1 for name in ("value", "low", "high")}
    assert changed(found, tmp_path, "half", **less).endswith(
        f"; fitted on train[0::2] it loses {100 * (iid - ood + 0.1):.1f}: it depends on the "
        "sequences that it is fitted on."
    )


def test_the_report_draws_them_behind_their_views(found: Findings) -> None:
    thin = beside_views(found).filter(metric="same_prediction")
    assert set(thin.filter(kind="oracle")["split"]) == {DEEP}  # an oracle on its own split alone
    lines, gaps, cells = against_size(found), gap_lines(found), matrix(found)
    assert lines is not None and gaps is not None and cells is not None
    drawn = lines.data.filter(
        pl.col("kind") != "view", pl.col("value").is_not_null(), metric="same_prediction"
    )
    assert set(drawn["family"]) == {TITLE}
    assert len(drawn) == len(thin) == 6 * (1 + 6 + 6)
    assert "dashed where it is fitted on the split itself, dash-dotted" in lines.caption
    iid, ood = lost(found)
    (tick,) = gaps.data.filter(
        pl.col("proxy") == f"{TITLE} · rank 8",
        pl.col("split") == "unseen depth",
        kind="oracle",
        metric="same_prediction",
    )["gap"]
    assert tick == pytest.approx(iid - (1 - LEFT * (1 - ood)))
    assert not cells.data["proxy"].str.contains(r"on=|random").any()
    for figure in (lines, gaps):
        assert figure.drawn.to_dict(validate=True)


def test_the_terminal_and_documents_say_it_in_a_line(found: Findings) -> None:
    console = Console(file=StringIO(), width=400)
    print_run(found, console)
    assert isinstance(console.file, StringIO)
    for text in (console.file.getvalue(), markdown(found)):
        (line,) = (x for x in text.splitlines() if "fitted there" in x)
        assert line.strip() == f"{TITLE}: {said(found)[TITLE]}"
        assert "on=" not in text
    assert "Not shown: 18 controls (with --csv)" in console.file.getvalue()


def test_the_page_has_explained_variance_beside_same_predictions(found: Findings) -> None:
    (told,) = lines(found)
    assert found.label(told.simplification) == f"{TITLE} · rank 8"
    same = told.lines.pop("same prediction")
    worst = [f"{min(EXPLAINED):.2f}"] * len(SPLITS)  # of its sites
    assert told.lines == {"explained variance": worst}
    at = found.splits.index(DEEP)
    assert (same[0], same[at]) == tuple(map(percent, lost(found)))
    assert dict(_facts(found))["Proxies"] == "14 in 4 families, and 18 controls"

import json
import re
import shutil
from itertools import chain
from pathlib import Path

import polars as pl
import pytest

from anamorph.analysis.findings import read
from anamorph.errors import AnamorphError
from anamorph.report import page as page_module
from anamorph.report import render
from anamorph.report.charts.facets import _ordered
from anamorph.report.charts.kinds import _cut, gap_by_kind
from anamorph.report.charts.sections import draw
from anamorph.report.theme import in_light
from synthetic_run import NASTY, SPLITS, make_run

FIGURES = {
    "verdicts",
    "faithfulness",
    "gaps",
    "gap_by_kind",
    "accuracy",
    "who_is_right",
    "facets",
    "attended_depth",
    "key_query",
    "attention",
    "training",
}


@pytest.fixture
def no_stills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages only; drawing files is tested once."""
    monkeypatch.setattr(page_module, "write_stills", lambda figures, folder, names: None)


def specs(run: Path) -> dict[str, dict]:
    text = (run / "report.html").read_text()
    found = re.findall(r'<script type="application/json" id="spec-(\w+)">(.*?)</script>', text)
    return {name: json.loads(content) for name, content in found}


def test_says_where_numbers_were_computed(copied: Path, no_stills: None) -> None:
    spec, checks = (
        json.loads((copied / name).read_text()) for name in ("spec.json", "checks.json")
    )
    assert "<dt>Computed</dt>" not in (copied / "report.html").read_text()  # it did not say
    spec |= {"device": "cuda", "accelerator": "NVIDIA H100", "matmul_precision": "high"}
    (copied / "spec.json").write_text(json.dumps(spec))
    (copied / "checks.json").write_text(json.dumps(checks | {"halved": 3}))
    render(copied)
    page = (copied / "report.html").read_text()
    assert "<dd>in float32, matrix products high, on NVIDIA H100</dd>" in page
    assert "had no room for all of 3 cells at once" in page


def test_writes_page_and_every_figure_in_three_formats(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    assert set(re.findall(r'data-spec="spec-(\w+)"', page)) == set(specs(rendered)) >= FIGURES
    written = {path.name for path in (rendered / "figures").iterdir()}
    assert written >= {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert "faithfulness_attention_jsd.svg" in written
    for name in written:
        content = (rendered / "figures" / name).read_bytes()
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG") and int.from_bytes(content[16:20]) > 500
        elif name.endswith(".pdf"):
            assert content.startswith(b"%PDF-") and len(content) > 5000
        else:
            assert content.startswith(b"<svg") and b"var(--" not in content
    assert len(page) < 8_000_000
    assert not list(rendered.rglob("*.tmp"))


def test_every_chart_is_valid_vega_lite(rendered: Path) -> None:
    for figure in chain(*draw(read(rendered)).values()):
        # Validation raises; when rendering it is left out, as it takes a second.
        assert figure.drawn.to_dict(validate=True) == figure.drawn.to_dict(validate=False)


def test_page_names_nothing_outside_itself(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'<[^>]+\b(src|href)="(?!#|data:)', markup)
    assert "@import" not in page and "url(" not in page.split("</style>")[0]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and policy[1].startswith("default-src 'none'")
    assert "unsafe-eval" not in policy[1]
    assert re.search(r"script-src( 'sha256-[^']+'){2};", policy[1])


def test_text_from_data_cannot_become_markup(copied: Path, no_stills: None) -> None:
    for name in ("spec.json", "claims.json"):
        file = copied / name
        file.write_text(file.read_text().replace("0.998 seen.", NASTY.replace('"', "'")))
    spec = json.loads((copied / "spec.json").read_text())
    spec["study"] = spec["choices"][0]["why"] = f"</script>{NASTY}"
    (copied / "spec.json").write_text(json.dumps(spec))
    page = render(copied).read_text()
    scripts = re.findall(r"<script[^>]*>", page)
    assert len(scripts) == len(specs(copied)) + 3  # and configuration, bundle, ours
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    tokens = specs(copied)["key_query"]["columns"]["token"]["levels"]
    assert NASTY in tokens


def test_claims_stand_with_their_rules(rendered: Path) -> None:
    page = (rendered / "report.html").read_text()
    table = page[page.index('<table class="claims">') :]
    rows = re.findall(r"<tr><td>(.*?)</tr>", table[: table.index("</table>")])
    rule = '<span class="rule">Rule: Its accuracy is at least .98.</span>'
    assert rows[0].startswith(f"<b>C1</b> The model generalizes.{rule}</td>")
    assert "rule" not in rows[1] and 'class="status does-not-hold"' in rows[1]
    assert 'class="status not-testable-here">not testable here<' in rows[2]
    assert "Claims that this study does not test: C9" in page


def test_attention_by_key_depth_can_be_chosen(rendered: Path) -> None:
    (figure,) = (f for f in draw(read(rendered))["where"] if f.name == "facets")
    menus = {choice.name: dict(choice.options) for choice in figure.choices}
    depth = next(value for value, text in menus["facet"].items() if "key depth" in text)
    assert menus["lines"]["attention"] == "same attention target"
    drawn = figure.still(facet=depth, lines="attention")["datasets"]["table"]
    assert {row["line"] for row in drawn} == {"same attention target"}
    first = figure.still()["datasets"]["table"]
    assert {row["line"] for row in first} == {"same prediction", "model accuracy", "proxy accuracy"}


def test_data_survive_packing(rendered: Path) -> None:
    columns = specs(rendered)["gaps"]["columns"]
    unpacked = pl.DataFrame(
        {
            name: [c["levels"][i] for i in c["codes"]] if isinstance(c, dict) else c
            for name, c in columns.items()
        }
    )
    gaps = pl.read_parquet(rendered / "gaps.parquet").filter(pl.col("seed").is_null())
    one = gaps.filter(
        simplification="svd(rank=8, joint=true)@1.*.{query,key}",
        split="unseen_depth",
        metric="same_prediction",
    )
    row = unpacked.filter(
        proxy="SVD · layer 1 query, key · joint · rank 8",
        split="unseen depth",
        metric="same_prediction",
    )
    assert row["gap"].item() == pytest.approx(one["gap"].item(), rel=1e-4)
    assert row["low"].item() == pytest.approx(one["low"].item(), rel=1e-4)


def test_a_split_has_one_colour_in_all_figures(rendered: Path) -> None:
    found: dict[str, set[str]] = {}

    def visit(node: object) -> None:
        if isinstance(node, dict):
            scale = node.get("scale")
            if node.get("field") == "split" and isinstance(scale, dict) and "range" in scale:
                for split, colour in zip(scale["domain"], scale["range"], strict=True):
                    if colour.startswith("var"):
                        found.setdefault(split, set()).add(colour)
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit([entry["spec"] for entry in specs(rendered).values()])
    assert set(found) == {name.replace("_", " ") for name in SPLITS}
    assert all(len(colours) == 1 for colours in found.values())
    assert len(set.union(*found.values())) == len(SPLITS)


def test_same_run_gives_the_same_page(rendered: Path, copied: Path, no_stills: None) -> None:
    assert render(copied).read_bytes() == (rendered / "report.html").read_bytes()


def test_leaves_out_what_a_run_does_not_hold(copied: Path, no_stills: None) -> None:
    for name in ("claims.json", "checks.json"):
        (copied / name).unlink()
    for folder in copied.glob("seed-*"):
        shutil.rmtree(folder)
    results = pl.read_parquet(copied / "results.parquet")
    lean = results.filter(
        pl.col("facet").is_null(), ~pl.col("metric").str.contains("attention|per_sequence")
    )
    lean.write_parquet(copied / "results.parquet")
    (copied / "spec.json").write_text("{}")
    page = render(copied).read_text()
    left = {"verdicts", "faithfulness", "gaps", "accuracy", "who_is_right"}
    assert set(specs(copied)) & FIGURES == left
    empty = [part for part, figures in draw(read(copied)).items() if not figures]
    assert {"inside", "training"} <= set(empty)
    for anchor in ("claims", *({"where", "inside", "training"} & set(empty))):
        assert f'href="#{anchor}"' not in page and f'id="{anchor}"' not in page


def test_a_view_may_be_empty(copied: Path, no_stills: None) -> None:
    for folder in copied.glob("seed-*"):
        pl.DataFrame().write_parquet(folder / "views" / "attended.parquet")
    render(copied)
    assert set(specs(copied)) & FIGURES == FIGURES - {"attended_depth"}


def test_one_seed_has_no_thin_lines(tmp_path: Path, no_stills: None) -> None:
    run = make_run(tmp_path / "run", seeds=(3,), nasty=False)
    page = render(run).read_text()
    assert "Thin lines are single seeds" not in page and "1 model" in page
    assert specs(run)["faithfulness"]["columns"]["seed"]["levels"] == ["all"]


def break_parquet(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", ["results.parquet", "gaps.parquet", "seed-0/history.parquet"])
def test_truncated_table_is_an_error_and_leaves_the_page(copied: Path, name: str) -> None:
    before = (copied / "report.html").read_bytes()
    break_parquet(copied / name)
    with pytest.raises(AnamorphError, match=f"{name}.*not a whole Parquet file"):
        render(copied)
    assert (copied / "report.html").read_bytes() == before


def test_bad_input_says_what_is_wrong(copied: Path) -> None:
    results = pl.read_parquet(copied / "results.parquet")
    results.drop("level").write_parquet(copied / "results.parquet")
    with pytest.raises(AnamorphError, match="no column level"):
        render(copied)
    results.with_columns(value=pl.lit(float("nan"))).write_parquet(copied / "results.parquet")
    with pytest.raises(AnamorphError, match="NaN or an infinity in value"):
        render(copied)
    results.filter(method="identity").write_parquet(copied / "results.parquet")
    with pytest.raises(AnamorphError, match="without a proxy"):
        render(copied)
    (copied / "spec.json").write_text("{")
    with pytest.raises(AnamorphError, match="Expected JSON"):
        read(copied)
    (copied / "spec.json").write_text("[]")
    with pytest.raises(AnamorphError, match="holds a list; expected a dict"):
        read(copied)
    (copied / "spec.json").unlink()
    with pytest.raises(AnamorphError, match=r"has no spec\.json"):
        render(copied)


def test_a_facet_of_numbers_has_an_order_and_one_of_kinds_has_none() -> None:
    assert _ordered(["1", "2", "10+", "–"])
    assert not _ordered(["keyword", "string", "utf8"])


def test_without_another_split_nothing_is_judged(copied: Path) -> None:
    results = pl.read_parquet(copied / "results.parquet")
    results.filter(pl.col("role") == "iid").write_parquet(copied / "results.parquet")
    pl.read_parquet(copied / "gaps.parquet").head(0).write_parquet(copied / "gaps.parquet")
    for folder in copied.glob("seed-*"):
        shutil.rmtree(folder)
    page = render(copied).read_text()
    assert "no split beside iid" in page and "spec-verdicts" not in page
    assert 'class="standings"' not in page and "spec-accuracy" in page


def test_intervals_of_rare_kinds_are_cut_where_the_others_end() -> None:
    keys = {"facet": ["kind"] * 4, "simplification": ["a", "a", "a", "b"]}
    numbers = {
        "gap": [0.1, 0.2, 0.5, 0.0],
        "low": [0.0, 0.1, -0.9, -0.5],
        "high": [0.2, 0.4, 0.95, 0.5],
        "share": [0.5, 0.4, 0.001, 0.02],
    }
    cut = _cut(pl.DataFrame(keys | numbers))
    assert cut["near"].to_list() == [0.0, 0.1, 0.0, -0.5]
    assert cut["far"].to_list() == [0.2, 0.4, 0.5, 0.5]  # a point stays on its line


def test_what_has_no_gap_is_told(rendered: Path) -> None:
    """Levels that the reference lacks, with their share of a split's positions."""
    run = read(rendered)
    rows = run.results.filter(pl.col("seed").is_null(), metric="same_prediction")
    tokens = {
        (split, facet, level): n
        for split, facet, level, n in rows.filter(simplification="identity")
        .select("split", "facet", "level", "tokens")
        .iter_rows()
    }
    told = 0
    for split in run.ood:
        for facet in {f for s, f, _ in tokens if s == split and f is not None}:
            levels = {level for s, f, level in tokens if (s, f) == (split, facet)}
            lacking = levels - {level for s, f, level in tokens if (s, f) == ("iid", facet)}
            share = sum(tokens[split, facet, level] for level in lacking)
            share /= tokens[split, None, None]
            if share > 0.01:
                told += 1
                text = f"{100 * share:.1f}\N{NO-BREAK SPACE}% of {split.replace('_', ' ')} by"
                assert text in gap_by_kind(run).caption
    assert told


def test_only_our_own_colours_are_put_in_place() -> None:
    """A token of a style sheet may look like one of them."""
    assert in_light('"var(--ink)" "var(--theirs)"') == '"#1b1b1a" "var(--theirs)"'

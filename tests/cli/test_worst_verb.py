"""`anamorph worst`, and what it says where there is nothing to show."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import anamorph as am

SVD = "svd(rank=1, joint=true)@1.*.{query,key}"


@pytest.fixture
def changed(smoke_run: Path, tmp_path: Path) -> Path:
    """A copy of the smoke run, to be changed."""
    return Path(shutil.copytree(smoke_run, tmp_path / "run", ignore=_without_figures))


def _without_figures(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("figures", "report.html")]


def test_ranks_are_those_of_the_works(smoke_run: Path) -> None:
    """By hand from the sums: means and sums, of divergences and of agreement."""
    run = am.load_run(smoke_run)
    works = smoke_run / "seed-0" / "works" / "unseen_depth-0000.parquet"
    about = pl.read_parquet(run.sequences("unseen_depth"))
    sums = pl.read_parquet(works).filter(proxy=SVD).head(len(about))
    scored = about["scored"].to_numpy()
    for metric, by, sign in (
        ("output_jsd", "mean", -1),
        ("output_kl", "sum", -1),
        ("same_prediction", "mean", 1),
        ("proxy_only_right", "sum", -1),
    ):
        values = sums[metric].to_numpy() / (scored if by == "mean" else 1)
        order = np.argsort(sign * values, kind="stable")[:7]
        found = run.worst(SVD, "unseen_depth", 7, metric, by=by)
        assert found["sequence"].to_list() == order.tolist(), metric
        assert found["value"].to_list() == pytest.approx(values[order].tolist())
    same = (sums["same_prediction"] / about["scored"])[order.tolist()]
    assert found["same_prediction"].to_list() == pytest.approx(same.to_list())
    assert found["scored"].to_list() == scored[order].tolist()


def test_without_arguments_it_is_what_parts_from_the_model(smoke_run: Path) -> None:
    run = am.load_run(smoke_run)
    assert run.worst()["value"][0] > 0.1
    assert run.worst()["text"].null_count() < 10
    assert set(run.pictures["worst"]["simplification"]) <= set(run.results["simplification"])
    assert "identity" not in set(run.pictures["worst"]["simplification"])


def test_prints_texts_with_their_worst_positions_marked(smoke_run: Path, anamorph: Any) -> None:
    done = anamorph("worst", smoke_run, "--proxy", SVD, "--split", "unseen_depth", "-n", 3)
    assert done.code == 0, done.error
    run = am.load_run(smoke_run)
    table = run.worst(SVD, "unseen_depth", 3)
    said = " ".join(done.out.split())
    for row in table.iter_rows(named=True):
        assert f"sequence {row['number']}: {row['value']:.4f}" in said
        positions = run.positions(row["sequence"], SVD, "unseen_depth").filter("scored")
        peak = positions.sort("jsd", descending=True).row(0, named=True)
        assert f"«{peak['token']}»" in said
        best = f'"{peak["model"][0]}" {peak["model_p"][0]:.1%}'
        assert f'token {peak["position"]} "{peak["token"]}": {peak["jsd"]:.3f} bits' in said
        assert best in said
        unmarked = said.replace("«", "").replace("»", "")
        assert row["text"] in unmarked


def test_json(smoke_run: Path, anamorph: Any) -> None:
    given = ("--proxy", SVD, "--split", "iid", "-n", 30, "--metric", "flips", "--by", "sum")
    found = json.loads(anamorph("worst", smoke_run, *given, "--json").out)
    table = am.load_run(smoke_run).worst(SVD, "iid", 30, "flips", by="sum")
    assert [x["sequence"] for x in found["sequences"]] == table["sequence"].to_list()
    assert (found["metric"], found["by"], found["seed"]) == ("flips", "sum", 0)
    with_texts = [x for x in found["sequences"] if x["text"] is not None]
    assert 0 < len(with_texts) < 30
    assert all(x["positions"] for x in with_texts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--split", "unseen_dept"), r"no split 'unseen_dept' .* there are: unseen_depth; "),
        (("--proxy", "svd(rank=3)@1.*.{query,key}"), "there are: svd(rank="),
        (("--metric", "jsd"), "no metric 'jsd' of .*there are: same_prediction, "),
        (("--seed", "3"), "no model with seed 3 .* its seeds are: 0"),
        (("--by", "max"), "by must be one of mean, sum; got 'max'"),
        (("-n", "0"), "n must be"),
    ],
)
def test_bad_input(smoke_run: Path, anamorph: Any, given: tuple[str, ...], message: str) -> None:
    done = anamorph("worst", smoke_run, *given)
    assert done.code == 2
    pattern = message if ".*" in message else re.escape(message)
    assert re.search(pattern, " ".join(done.error.split())), done.error


def test_a_proxy_without_texts_has_numbers(changed: Path, anamorph: Any) -> None:
    path = changed / "seed-0" / "views" / "worst.parquet"
    table = pl.read_parquet(path)
    table.filter(pl.col("simplification") != SVD).write_parquet(path)
    done = anamorph("worst", changed, "--proxy", SVD, "--split", "iid", "-n", 1)
    assert done.code == 0
    said = " ".join(done.out.split())
    others = set(table["simplification"]) - {SVD}
    assert all(name in said for name in others)
    assert f"anamorph audit {changed} --simplify '{SVD}' --out OTHER" in said
    with pytest.raises(am.AnamorphError, match="holds texts of seed 0 and of these proxies"):
        am.load_run(changed).positions(0, SVD, "iid")


def test_runs_of_earlier_versions(changed: Path, anamorph: Any) -> None:
    (changed / "seed-0" / "views" / "worst.parquet").unlink()
    run = am.load_run(changed)
    assert run.worst(SVD, "iid", 5)["text"].null_count() == 5
    done = anamorph("worst", changed, "--proxy", SVD, "--split", "iid", "-n", 1)
    assert done.code == 0 and "holds no texts" in done.out
    for file in (changed / "sequences").iterdir():
        table = pl.read_parquet(file).drop("number", "id")
        table.write_parquet(file)
    assert am.load_run(changed).worst(SVD, "iid", 1)["number"].to_list() == [None]
    shutil.rmtree(changed / "sequences")
    done = anamorph("worst", changed)
    assert done.code == 3
    assert "did not write down which sequences it scored" in " ".join(done.error.split())


def test_sums_that_are_missing_or_cut(changed: Path) -> None:
    (work,) = (changed / "seed-0" / "works").glob("iid-*.parquet")
    whole = pl.read_parquet(work)
    whole.filter(pl.col("proxy") != SVD).write_parquet(work)
    with pytest.raises(am.AnamorphError, match=r"works has no sums of svd.* on 'iid'"):
        am.load_run(changed).worst(SVD, "iid")
    whole.filter(proxy=SVD).head(7).write_parquet(work)
    with pytest.raises(am.AnamorphError, match=r"has not \d+ rows of svd"):
        am.load_run(changed).worst(SVD, "iid")
    work.write_bytes(b"none")
    with pytest.raises(am.AnamorphError, match="Cannot read the sums"):
        am.load_run(changed).worst(SVD, "iid")


def test_a_run_without_the_file_is_complete(changed: Path, smoke_run: Path) -> None:
    assert am.load_run(smoke_run).complete
    (changed / "report.html").write_text("a report")
    (changed / "seed-0" / "views" / "worst.parquet").unlink()
    assert am.load_run(changed).complete


def test_worst_short_sentences_have_their_attention_drawn(smoke_run: Path) -> None:
    run = am.load_run(smoke_run)
    sentences = run.pictures["sentences"]
    drawn = set(run.pictures["patterns"]["simplification"]) - {"identity"}
    for split in run.findings.splits:
        rows = sentences.filter("worst", split=split)
        if rows.is_empty():
            continue
        every = [run.worst(name, split, 1000) for name in drawn]
        means = (
            pl.concat(every)
            .filter(pl.col("length") <= 40)
            .group_by("sequence", "length")
            .agg(pl.col("value").mean())
            .sort("value", descending=True)
        )
        assert len(rows) == means["length"][0]
    assert len(sentences.filter("worst")["split"].unique()) >= 3

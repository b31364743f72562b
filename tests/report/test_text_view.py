"""What reaches the page of a text."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from anamorph.analysis.findings import Findings
from anamorph.report import text_view
from anamorph.report.frame import embedded
from synthetic_run import SPLITS, VIEWED, make_run, make_texts


def found(run: Path) -> Findings:
    return Findings(run, json.loads((run / "spec.json").read_text("utf-8")))


def unpacked(packed: str, kind: str) -> Any:
    return np.frombuffer(b64decode(packed), kind)


def test_what_is_packed_is_the_table(tmp_path: Path) -> None:
    run = found(make_texts(make_run(tmp_path / "run"), sequences=12, length=30))
    view = text_view.text_view(run)
    assert view is not None
    table = run.pictures["worst"]
    proxies = table["simplification"].unique(maintain_order=True).to_list()
    assert view["proxies"] == [run.label(name) for name in proxies]
    seen = 0
    for key, cell in view["cells"].items():
        split, proxy = map(int, key.split(","))
        rows = table.filter(simplification=proxies[proxy], split=run.splits[split]).sort("rank")
        assert [view["texts"][x["text"]]["sequence"] for x in cell] == rows["sequence"].to_list()
        for entry, row in zip(cell, rows.iter_rows(named=True), strict=True):
            text = view["texts"][entry["text"]]
            pieces = [view["pieces"][i] for i in unpacked(text["tokens"], "<u4")]
            if row["sequence"] != 0:
                assert pieces == row["token"]
            bits = unpacked(entry["bits"], "<u2") / text_view.BITS
            np.testing.assert_allclose(bits, row["jsd"], atol=1e-4)
            flags = unpacked(entry["flags"], "u1")
            assert ((flags & 2) > 0).tolist() == row["same"]
            for who, place in (("model", text), ("proxy", entry)):
                names = [view["pieces"][i] for i in unpacked(place[who], "<u4")]
                assert names == [name for best in row[who] for name in best]
                shares = unpacked(place[f"{who}_p"], "u1")
                assert shares.tolist() == pytest.approx(
                    [100 * p for best in row[f"{who}_p"] for p in best], abs=0.51
                )
            seen += 1
    assert seen == len(table) == 24


def test_the_worst_have_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_view, "MOST_POSITIONS", 30 * 10)
    view = text_view.text_view(found(make_texts(make_run(tmp_path / "run"), 12, 30)))
    assert view is not None
    assert [len(cell) for cell in view["cells"].values()] == [3, 2, 2, 2]
    assert {entry["rank"] for cell in view["cells"].values() for entry in cell} == {0, 1, 2}


def test_no_text_can_end_the_script_that_holds_it(tmp_path: Path) -> None:
    run = make_texts(make_run(tmp_path / "run"), sequences=2, length=5)
    view = text_view.text_view(found(run))
    page = str(embedded(view))
    assert not set("<>&\u202e\x00") & set(page)
    assert "</script><script>alert(1)</script>" in json.loads(page)["pieces"]


def test_functions_of_earlier_versions(tmp_path: Path) -> None:
    """Two characters, each with two predictions."""
    run = make_run(tmp_path / "run")
    old = {
        "simplification": [VIEWED[1]],
        "split": [next(iter(SPLITS))],
        "sequence": [4],
        "text": ["ab"],
        "jsd": [[0.0, 0.25]],
        "model": ["axbx"],
        "proxy": ["axyb"],
        "model_p": [[90, 5, 50, 20]],
        "proxy_p": [[90, 5, 40, 30]],
    }
    pl.DataFrame(old).write_parquet(run / "seed-0" / "views" / "functions.parquet")
    view = text_view.text_view(found(run))
    assert view is not None
    ((entry,),) = view["cells"].values()
    (text,) = view["texts"]
    assert [view["pieces"][i] for i in unpacked(text["tokens"], "<u4")] == ["a", "b"]
    assert (text["name"], text["start"], text["length"]) == ("sequence 4", 1, 3)
    assert (entry["rank"], entry["value"], entry["same"]) == (None, 0.125, 0.5)
    assert unpacked(entry["bits"], "<u2").tolist() == [0, 2500]
    assert unpacked(entry["flags"], "u1").tolist() == [15, 5]  # scored, same, model, proxy right
    assert [view["pieces"][i] for i in unpacked(entry["proxy"], "<u4")] == [*"ax", "", *"yb", ""]


def test_a_run_without_texts_has_no_view(tmp_path: Path) -> None:
    assert text_view.text_view(found(make_run(tmp_path / "run"))) is None

"""Tables as CSV, LaTeX and Markdown: read back, and in good form whatever names hold."""

import io
import json
import re

import polars as pl
import pytest

from anamorph.analysis.formats import FORMATS, for_latex, markdown_of

NASTY = ["a_b", "50 %", "a&b", "#1", r"C:\x", "{a}^~$", "naïve 中", "[red]", "*", "x|y", "a\nb"]
TABLE = pl.DataFrame(
    {
        "na_me": NASTY,
        "value": [0.1 + n / 3 for n in range(len(NASTY))],
        "count": [None, *range(1, len(NASTY))],
    }
)


def test_csv_is_read_back_as_it_was() -> None:
    assert pl.read_csv(io.StringIO(FORMATS["csv"](TABLE))).equals(TABLE)


def test_json_is_read_back_as_it_was() -> None:
    assert json.loads(FORMATS["json"](TABLE)) == TABLE.to_dicts()
    with pytest.raises(ValueError, match="not JSON compliant"):
        FORMATS["json"](pl.DataFrame({"value": [float("nan")]}))


def test_latex_is_in_form() -> None:
    lines = FORMATS["latex"](TABLE).splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}" and lines[-1] == r"\end{tabular}"
    assert (lines[1], lines[3], lines[-2]) == (r"\toprule", r"\midrule", r"\bottomrule")
    assert lines[2] == r"na\_me & value & count \\"
    rows = lines[4:-2]
    assert len(rows) == len(NASTY)
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == 2  # three cells
        assert not re.search(r"(?<!\\)[%#_]", row)
        bare = re.sub(r"\\[{}]", "", row)
        assert bare.count("{") == bare.count("}")
        assert row[0] not in "[*"  # an argument of the line break before it
    assert rows[0] == r"a\_b & 0.1000 & -- \\"
    assert rows[4].startswith(r"C:\textbackslash{}x & ")
    assert rows[5].startswith(r"\{a\}\textasciicircum{}\textasciitilde{}\$ & ")


def test_signs_of_verdicts_are_those_of_amssymb() -> None:
    assert for_latex("0.9 ▼ –") == r"0.9 $\blacktriangledown$ --"
    assert for_latex("84.4\N{NO-BREAK SPACE}%") == r"84.4~\%"
    assert for_latex("") == ""


def test_bars_and_breaks_do_not_end_a_cell_of_markdown() -> None:
    text = markdown_of(["a|b", "c"], [["d\ne", "f|g"]])
    assert text.splitlines() == [r"| a\|b | c |", "| --- | --- |", r"| d e | f\|g |"]
    for line in FORMATS["markdown"](TABLE).splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 4

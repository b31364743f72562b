"""Tables and texts of the terminal at many widths: nothing that one searches for is broken."""

import re
from io import StringIO

import pytest
from rich.console import Console

from anamorph.cli.layout import Sheet, wrapped
from anamorph.faithfulness.gaps import MIXED, OVER, UNDER

WIDTHS = (60, 80, 100, 150, 400)
SPECS = [
    "svd(rank=8, joint=true)@1.*.{query,key};kmeans(clusters=64, seed=3)@0.*.{query,key}",
    "one[red]hot@0.*.pattern",
    'sae("a folder/with spaces", keep=1)@8.residual',
    "short@1.*.key",
]
SPLITS = [f"an unseen split that has number {n}" for n in range(12)]


def printed(sheet: Sheet, width: int) -> str:
    file = StringIO()
    sheet.print(Console(file=file, width=width, force_terminal=False))
    return file.getvalue()


def number(row: int, column: int) -> str:
    return f"0.{row}{column:02d} ▼"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("splits", [1, 3, 12])
def test_rows_columns_and_numbers_stay_whole(width: int, splits: int) -> None:
    heads = ["proxy", *SPLITS[:splits]]
    rows = [
        [spec.replace("[", r"\["), *(number(at, column) for column in range(splits))]
        for at, spec in enumerate(SPECS)
    ]
    lines = printed(Sheet("The title", heads, rows, "the caption"), width).splitlines()
    assert lines[0] == "The title" and lines[-1] == "the caption"
    places = [next(n for n, line in enumerate(lines) if spec in line) for spec in SPECS]
    assert places == sorted(places)
    for at, (first, last) in enumerate(zip(places, [*places[1:], len(lines)], strict=True)):
        found = re.findall(r"0\.\d{3} ▼", "\n".join(lines[first:last]))
        assert found == [number(at, column) for column in range(splits)]  # in their order
    for name in heads[1:]:
        assert any(name in line for line in lines)


def test_columns_stand_below_each_other_where_they_fit() -> None:
    heads = ["proxy", "iid", "far away", "near", "farther"]
    rows = [["a" * 30, "0.1", "0.25", "1", "0.5"], ["b" * 30, "0.3", "0.75", "22", "0.125"]]
    assert printed(Sheet("", heads, rows), 30).splitlines()[1:] == [
        "a" * 30,
        "  iid 0.1   far away 0.25",
        "  near  1   farther   0.5",
        "b" * 30,
        "  iid 0.3   far away 0.75",
        "  near 22   farther 0.125",
    ]


def test_a_table_that_fits_exactly_is_one() -> None:
    sheet = Sheet("", ["proxy", "iid"], [["abc", "0.500"]])
    wide = len("│ proxy │   iid │")
    assert "│ abc   │ 0.500 │" in printed(sheet, wide)
    assert "abc\n  iid 0.500" in printed(sheet, wide - 1)


def test_a_second_column_of_words_is_a_line_of_its_own() -> None:
    heads = ["proxy", "", "iid"]
    rows = [["a" * 40, "L0", "1.0"], ["", "dead features", "25.0"]]
    text = printed(Sheet("", heads, rows, words=heads[:2]), 30)
    assert text.splitlines()[1:] == [
        "a" * 40,
        "  L0",
        "  iid  1.0",
        "  dead features",
        "  iid 25.0",
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_sentences_are_broken_between_words_alone(width: int) -> None:
    said = [f"{UNDER}: {SPECS[0]} on {split}" for split in SPLITS[:3]]
    rows = [["a view", "\n".join(said), "–"], [SPECS[0], "0.125", "none"]]
    sheet = Sheet("Which hold", ["view", "trust", "needs"], rows, texts=True, lined=True)
    lines = printed(sheet, width).splitlines()
    for whole, count in ((SPECS[0], 4), (UNDER, 3), ("0.125", 1)):
        assert sum(line.count(whole) for line in lines) == count, whole


def test_texts_are_as_wide_as_asked_but_for_what_is_kept() -> None:
    text = f"Of all ▲ {OVER}, ◆ {MIXED}: " + "and so on " * 30 + SPECS[0]
    for width in range(10, 120):
        lines = wrapped(text, width, "  ").split("\n")
        assert " ".join(line.strip() for line in lines) == text
        for line in lines:
            kept = line.strip(" ,:") in (SPECS[0], f"▲ {OVER}", f"◆ {MIXED}")
            assert len(line) <= width or kept, line
    assert wrapped("", 10) == "" and wrapped("a\n\nb", 10) == "a\n\nb"

"""The page of runs along an axis: its links, its text, and how it is drawn in a browser."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import anamorph as am
from along_runs import write_run
from anamorph.errors import AnamorphError
from chromium import NEEDED, Opened
from commands import environment
from synthetic_run import NASTY


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 40 runs beside each other."""
    folder = tmp_path_factory.mktemp("along")
    runs = [
        write_run(
            folder / f"run {place}",
            {"training": {"steps": round(100 * 1.2**place)}},
            {(rank, "far"): place * rank / 400 for rank in (1, 2)} | {(1, "near"): 0.0},
        )
        for place in range(40)
    ]
    am.along(runs, out=folder / "pages/along.html")
    return folder / "pages/along.html"


def test_it_links_to_the_reports_from_where_it_lies(page: Path) -> None:
    text = page.read_text("utf-8")
    for place in range(40):
        assert f'<a href="../run%20{place}/report.html">../run {place}</a>' in text
    assert "All 40 as a table" in text


def hostile(folder: Path) -> Path:
    runs = [
        write_run(
            folder / f"r{place}",
            {"training": None, "source": {"model": f"{NASTY}{place}"}, "study": NASTY},
            {(1, NASTY): place / 10, (1, "near"): 0.0},
        )
        for place in range(3)
    ]
    am.along(runs, out=folder / "along.html")
    return folder / "along.html"


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    text = hostile(tmp_path).read_text("utf-8")
    assert NASTY not in text and "&lt;script&gt;alert" in text


def test_a_page_is_html(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", {}, {(1, "far"): 0.0}, seeds=(0, 1))
    with pytest.raises(AnamorphError, match=r"The page is an HTML file; got .*x\.pdf"):
        am.along(run, out=tmp_path / "x.pdf")


def test_it_is_drawn_without_torch() -> None:
    code = "import sys, anamorph.report.along; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.fixture
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(offline=True, viewport={"width": 400, "height": 900})
    yield lambda file: Opened(context.new_page(), file.as_uri())
    context.close()


@NEEDED[0]
@NEEDED[1]
def test_every_figure_is_drawn_without_a_complaint(opened: Any, page: Path, tmp_path: Path) -> None:
    for file, figures in ((page, 4), (hostile(tmp_path), 4)):
        seen = opened(file)
        drawn = seen.page.query_selector_all("figure .chart svg")
        assert len(drawn) == figures
        assert all(len(svg.query_selector_all("path, text")) > 10 for svg in drawn)
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        seen.still_clean()

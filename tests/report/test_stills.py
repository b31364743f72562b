"""Which figures are written as files."""

from pathlib import Path

import pytest

from anamorph import report
from anamorph.analysis.findings import read
from anamorph.cli.options import chosen_figures
from anamorph.errors import AnamorphError
from anamorph.report.charts.sections import MAKERS, draw
from synthetic_run import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def files(run: Path) -> set[str]:
    return {path.name for path in run.glob("figures/*")}


def test_none_are_written(run: Path) -> None:
    page = report.render(run, [])
    assert not (run / "figures").exists()
    assert 'data-spec="spec-verdicts"' in page.read_text(), "the charts are there"


def test_those_that_are_named_in_three_formats(run: Path) -> None:
    report.render(run, ["verdicts", "gap_by_kind", "attended"])
    stems = {name.rpartition(".")[0] for name in files(run)}
    assert {"verdicts", "attended_depth", "gap_by_kind"} <= stems
    assert {stem.split("_")[0] for stem in stems} == {"verdicts", "gap", "attended"}
    assert "gaps" not in stems, "gap_by_kind is another figure"
    assert files(run) == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")}
    assert (run / "figures" / "verdicts.pdf").read_bytes().startswith(b"%PDF-")


def test_a_pattern_stands_for_several(run: Path) -> None:
    report.render(run, ["*ccur*", "acc?racy"])
    assert files(run) == {f"accuracy.{kind}" for kind in ("png", "svg", "pdf")}


def test_a_name_that_no_figure_has_is_refused_before_anything_is_written(run: Path) -> None:
    with pytest.raises(AnamorphError, match=r"no figure 'verdict'; there are: verdicts, .*gaps"):
        report.render(run, ["verdicts", "verdict"])
    with pytest.raises(AnamorphError, match=r"list of names; got 'gaps'. Give \[\"gaps\"\]"):
        report.check_figures("gaps")
    assert not (run / "report.html").exists() and not files(run)


def test_a_figure_that_this_run_has_no_data_for_is_a_warning(run: Path) -> None:
    with pytest.warns(UserWarning, match="no data for the figure 'heads_gap'; it has: verdicts"):
        page = report.render(run, ["heads_gap"])
    assert page.exists() and not files(run)


def test_every_figure_goes_by_a_known_name(run: Path) -> None:
    for figures in draw(read(run)).values():
        for figure in figures:
            known = [n for n in MAKERS if figure.name == n or figure.name.startswith(f"{n}_")]
            assert len(known) == 1, figure.name


def test_the_command_line_takes_names_or_none() -> None:
    assert chosen_figures(None, False) is None
    assert chosen_figures(None, True) == [] and chosen_figures(["gap*"], False) == ["gap*"]
    with pytest.raises(AnamorphError, match="--no-figures writes none, --figures gaps some"):
        chosen_figures(["gaps"], True)
    with pytest.raises(AnamorphError, match="no figure 'gapz'"):
        chosen_figures(["gapz"], False)

"""The report: one self-contained page, and its figures as PNG, SVG and PDF, from a run folder."""

from collections.abc import Sequence

from anamorph.store import Address


def render(run: Address | str, figures: Sequence[str] | None = None) -> Address:
    """Write `report.html`, and figures to `figures/` as PNG, SVG and PDF.

    Reads the run folder only. What a run does not hold (pictures of a task without them, training
    curves) is left out of the page.

    Args:
        run: a run folder with results.
        figures: which still figures to write, by name, such as `verdicts` or `gap*`; all by
            default, none of an empty list. The page has all charts in any case, and links to the
            files that there are.

    Returns:
        The address of the page.

    Raises:
        AnamorphError: if results are missing or cannot be read, there is no figure of a name, or
            the folder cannot be written.

    Warns:
        UserWarning: if the run has no data for a figure that is named.
    """
    from anamorph.report import page  # here: what draws takes half a second to import

    return page.render(run, figures)


def check_figures(figures: Sequence[str] | None) -> None:
    """Whether there are figures of these names, before any time is spent.

    Raises:
        AnamorphError: if not; lists those there are.
    """
    if figures is not None:
        from anamorph.report import stills

        stills.check_names(figures)

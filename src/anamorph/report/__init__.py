"""The report: one self-contained page, and every figure as PNG and SVG, from a run folder alone."""

from pathlib import Path


def render(run: Path) -> Path:
    """Write `report.html`, and every figure to `figures/` as PNG and SVG.

    Reads the run folder only. What a run does not hold (pictures of a task without them, training
    curves) is left out of the page.

    Args:
        run: a run folder with results.

    Returns:
        The path of the page.

    Raises:
        AnamorphError: if results are missing or cannot be read, or the folder cannot be written.
    """
    from anamorph.report import page  # here: what draws takes half a second to import

    return page.render(run)

"""The report: one self-contained page, and every figure as PNG and SVG, from a run folder alone."""

from anamorph.report.page import render

__all__ = ["render"]

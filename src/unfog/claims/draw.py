"""A plot of a claim as an SVG file of its own."""

from __future__ import annotations

from unfog.claims.claim import Plot
from unfog.page import Series, standalone
from unfog.page.plot import line_plot


def draw(plot: Plot) -> str:
    """The file's text; the same data give the same bytes, and none an empty picture."""
    lines = [
        Series(line.name, line.x, line.y, colour=i % 6, dashed=line.dashed, low=line.low, high=line.high, dots=line.dots)
        for i, line in enumerate(plot.lines)
    ]
    drawn = line_plot(plot.title, lines, plot.y_name, x_name=plot.x_name, log=plot.log_y, x_log=plot.log_x)
    return standalone(drawn or '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>')

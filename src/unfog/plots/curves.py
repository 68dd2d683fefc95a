"""Curves by matplotlib, with the colours of the pages; the same curves give the same bytes."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

from unfog.errors import UserError
from unfog.page import Lines
from unfog.page.plot import label, log_ticks
from unfog.page.style import COLOURS, SHADES

SIZE, DPI = (7.2, 4.2), 150  # inches, dots in each
GRID, DIM, INK = (SHADES[name][0] for name in ("grid", "dim", "ink"))


def check_matplotlib(suffix: str) -> None:
    """UserError naming the extra where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        way = "pip install 'unfog[plot]', or give an .svg file, which needs nothing"
        raise UserError(f"--out: {suffix} needs matplotlib; {way}") from None


def draw(lines: Lines, kind: str, mark: str, facts: dict[str, Any]) -> bytes:
    """The file of a plot, kind "png" or "pdf", with the numbers behind it inside a PNG. Raises UserError without matplotlib."""
    check_matplotlib(f".{kind}")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({}, None):
        matplotlib.rcdefaults()  # a user's own settings would change the file
        matplotlib.rcParams.update({"font.size": 9, "axes.edgecolor": DIM, "axes.labelcolor": INK, "xtick.color": DIM,
                                    "ytick.color": DIM, "text.color": INK, "axes.spines.top": False,
                                    "axes.spines.right": False, "pdf.compression": 6})  # fmt: skip
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _fill(axes, lines)
        file = BytesIO()
        inside: dict[str, Any] = {"Creator": mark, "Producer": None, "CreationDate": None}
        if kind == "png":
            inside = {"Software": None, "unfog": json.dumps({"made": mark, **facts}, sort_keys=True, allow_nan=False)}
        figure.savefig(file, format=kind, metadata=inside)
    return file.getvalue()


def _fill(axes: Any, lines: Lines) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_title(_plain(lines.title), loc="left", fontweight="bold", fontsize=10)
    axes.set_xlabel(_plain(lines.x_name))
    axes.set_ylabel(_plain(lines.y_name))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if lines.log:
        axes.set_yscale("log")
    if lines.x_log:
        axes.set_xscale("log")
    for line in lines.series:
        colour = COLOURS[line.colour % len(COLOURS)][0]
        keep = [k for k, y in enumerate(line.y) if y is not None and (y > 0 or not lines.log)]
        x, y = [line.x[k] for k in keep], [line.y[k] for k in keep]
        style = ("--" if line.dashed else "-") if line.joined else "none"
        axes.plot(x, y, linestyle=style, marker="o" if line.dots else None, markersize=4.5, color=colour, linewidth=1.6,
                  alpha=0.35 if line.faint else 1.0, label=_plain(line.name) or None)  # fmt: skip
        found = line.intervals(lines.log)
        if found and line.dots:
            for a, low, high in found:
                axes.plot([a, a], [low, high], color=colour, linewidth=1.2)
        elif found:
            there, lows, highs = zip(*found, strict=True)
            axes.fill_between(there, lows, highs, color=colour, alpha=0.16, linewidth=0)
        for k, word in zip(range(len(line.x)), line.labels, strict=False):
            if word and k in keep:
                axes.annotate(_plain(word), (line.x[k], line.y[k]), (4, 4), textcoords="offset points", fontsize=8)
    for value, words in lines.levels:
        axes.axhline(value, color=DIM, linewidth=1, linestyle=":")
        across = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
        axes.annotate(_plain(words), (1, value), (-2, 3), fontsize=8, color=DIM, **across)
    for mark in lines.marks:
        axes.axvline(mark, color=DIM, linewidth=1, linestyle=":")
    if lines.zero and not lines.log:
        axes.set_ylim(bottom=0)
    for axis, log, ends in ((axes.yaxis, lines.log, axes.get_ylim()), (axes.xaxis, lines.x_log, axes.get_xlim())):
        if log:  # 0.05, not 5 × 10⁻²
            axis.set_major_locator(FixedLocator(log_ticks(*ends)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
            axis.set_minor_locator(NullLocator())
    if any(line.name for line in lines.series):
        axes.legend(frameon=False, fontsize=8)


def _plain(text: str) -> str:
    """Words as they are: $ begins a formula in matplotlib."""
    return text.replace("$", r"\$")

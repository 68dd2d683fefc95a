"""A plot as a small SVG file of its own: lines with their intervals, dots, logarithmic axes, readable on light and dark pages."""

from __future__ import annotations

import math
from html import escape

from unfog.claims.claim import Line, Plot
from unfog.training.report.plot import Scale, label, linear_ticks, log_ticks

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, BOTTOM, ROW, LETTER = 64, 14, 40, 16, 7.0
COLOURS = ("#2f6fb5", "#d1622b", "#2e9160", "#a04fa8", "#b8860b", "#c23b53", "#4a9aa8", "#7a7a7a")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.t{font-weight:600;font-size:13px}.y{text-anchor:end}.x{text-anchor:middle}"
    ".g{stroke:#e3e3e3}.a{stroke:#888}"
)


def draw(plot: Plot) -> str:
    """The <svg> document. Points that a logarithmic axis cannot show are left out; nothing to draw gives an empty frame."""
    kept = [(line, _points(line, plot)) for line in plot.lines]
    ends = [v for _, points in kept for _, y, low, high in points for v in (y, low, high) if v > 0 or not plot.log_y]
    places = [x for _, points in kept for x, *_ in points]
    x_low, x_high = (min(places), max(places)) if places else (0.1, 1.0)
    y_low, y_high = (min(ends), max(ends)) if ends else (0.1, 1.0)
    if x_high <= x_low:
        x_low, x_high = (x_low / 2, x_high * 2) if plot.log_x else (x_low - 1, x_high + 1)
    if plot.log_y:
        y_low, y_high = y_low / 1.15, y_high * 1.15
    else:
        room = 0.06 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
        y_low, y_high = (y_low if y_low == 0.0 else y_low - room), y_high + room
    legend, rows = _legend(plot.lines)
    top, height = 30 + ROW * rows, HEIGHT + ROW * rows
    across = Scale(x_low, x_high, LEFT + 6, WIDTH - RIGHT - 6, plot.log_x)
    up = Scale(y_low, y_high, height - BOTTOM, top, plot.log_y)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
           f'aria-label="{escape(plot.title, quote=True)}">', f"<style>{STYLE}</style>",
           f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>',
           f'<text x="{LEFT}" y="18" class="t">{escape(plot.title)}</text>', *legend]  # fmt: skip
    for value in log_ticks(y_low, y_high) if plot.log_y else linear_ticks(y_low, y_high, 5):
        y = up(value)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="g"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="y">{label(value)}</text>')
    for value in _across_ticks(x_low, x_high, plot):
        x = across(value)
        out.append(f'<path d="M{x:.1f} {height - BOTTOM}v4" class="a"/>')
        out.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" class="x">{label(value)}</text>')
    out.append(f'<path d="M{LEFT} {top}V{height - BOTTOM}H{WIDTH - RIGHT}" fill="none" class="a"/>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 6}" class="x">{escape(plot.x_name)}</text>')
    middle = (top + height - BOTTOM) / 2
    out.append(f'<text x="14" y="{middle}" transform="rotate(-90 14 {middle})" class="x">{escape(plot.y_name)}</text>')
    floor = y_low if plot.log_y else -math.inf
    for i, (line, points) in enumerate(kept):
        colour = COLOURS[i % len(COLOURS)]
        for x, _, low, high in points:
            if high > low:
                out.append(f'<path d="M{across(x):.1f} {up(max(low, floor)):.1f}V{up(high):.1f}" stroke="{colour}" '
                           'stroke-width="5" opacity=".25"/>')  # fmt: skip
        spots = [(across(x), up(y)) for x, y, _, _ in points]
        if not line.dots and len(spots) > 1:
            dash = ' stroke-dasharray="5 4"' if line.dashed else ""
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        if line.dots or len(spots) <= 12:
            out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>' for a, b in spots]
    return "\n".join([*out, "</svg>"]) + "\n"


def _points(line: Line, plot: Plot) -> list[tuple[float, float, float, float]]:
    """(x, y, low, high) of what the axes can show."""
    rows = zip(line.x, line.y, line.low or line.y, line.high or line.y, strict=True)
    return [
        row for row in rows if all(map(math.isfinite, row)) and (row[0] > 0 or not plot.log_x) and (row[1] > 0 or not plot.log_y)
    ]


def _across_ticks(low: float, high: float, plot: Plot) -> list[float]:
    """Where the points are few, they are their own ticks."""
    own = sorted({x for line in plot.lines for x in line.x if low <= x <= high})
    if plot.log_x:
        return own if len(own) <= 9 and all(b / a > 1.25 for a, b in zip(own, own[1:], strict=False)) else log_ticks(low, high)
    return linear_ticks(low, high)


def _legend(lines: list[Line]) -> tuple[list[str], int]:
    out, x, row = [], float(LEFT), 0
    for i, line in enumerate(lines):
        width = 30 + LETTER * len(line.name) + 12
        if x + width > WIDTH - RIGHT and x > LEFT:
            x, row = float(LEFT), row + 1
        y, colour = 34 + ROW * row, COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        mark = f'<circle cx="{x + 11:.1f}" cy="{y}" r="3" fill="{colour}"/>' if line.dots else (
            f'<path d="M{x:.1f} {y}h22" stroke="{colour}" stroke-width="2"{dash}/>')  # fmt: skip
        out += [mark, f'<text x="{x + 27:.1f}" y="{y + 4}">{escape(line.name)}</text>']
        x += width
    return out, row + 1 if out else 0

"""A line plot as SVG: axes, round ticks, a legend, a logarithmic scale. Colours are CSS classes c0 ... c5 of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, BOTTOM, LINE = 62, 14, 36, 16  # pixels around the axes, and from legend line to legend line
LETTER = 6.3  # pixels that a letter of the legend takes, about
MOST = 500  # points a line; where there are more, neighbours become their mean


@dataclass(frozen=True)
class Series:
    """One line. y that is None or no finite number leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Scale:
    """Where a value stands, in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def round_step(span: float, most: int) -> float:
    """The least of 1, 2, 5 × 10ⁿ that cuts a span into at most `most` parts."""
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values from low to high."""
    step = round_step(high - low, most)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 times those where there are few of them."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = {m: [m * 10.0**n for n in tens for m in range(1, 10) if low * 0.999 <= m * 10.0**n <= high * 1.001 and m in wanted]
              for m, wanted in ((1, (1,)), (2, (1, 2, 5)), (9, range(1, 10)))}  # fmt: skip
    return within[1] if len(within[1]) > 3 else within[2] if len(within[2]) > 2 else within[9]


def label(value: float) -> str:
    """A tick's value, short."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[unit]:g}{unit}"
    return f"{value:.4g}"


def thinned(x: Sequence[float], y: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Pieces of a line without gaps, of at most about MOST points in all."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x, y, strict=True):
        if b is None or not math.isfinite(b):
            pieces.append([])
        else:
            pieces[-1].append((a, b))
    every = max(1, math.ceil(len(x) / MOST))
    chunks = [[piece[i : i + every] for i in range(0, len(piece), every)] for piece in pieces if piece]
    return [[(sum(a for a, _ in c) / len(c), sum(b for _, b in c) / len(c)) for c in chunk] for chunk in chunks]


def line_plot(title: str, lines: Sequence[Series], y_name: str = "", *, log: bool = False, zero: bool = False,
              marks: Sequence[float] = (), x_name: str = "step") -> str:  # fmt: skip
    """An <svg> element. log: y is logarithmic and values of 0 or less are gaps. zero: y begins at 0. marks: upright lines at
    these x. Nothing to draw gives "".
    """
    pieces = [(line, thinned(line.x, [v if v is None or not log or v > 0 else None for v in line.y])) for line in lines]
    pieces = [(line, parts) for line, parts in pieces if parts]
    points = [point for _, parts in pieces for part in parts for point in part]
    if not points:
        return ""
    x_low, x_high = min(a for a, _ in points), max(a for a, _ in points)
    y_low, y_high = (0.0 if zero and not log else min(b for _, b in points)), max(b for _, b in points)
    if x_high <= x_low:
        x_low, x_high = x_low - 1, x_high + 1
    if log:
        y_low, y_high = y_low / 1.1, y_high * 1.1
    else:
        room = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
        y_low, y_high = (y_low if zero else y_low - room), y_high + room
    legend, rows = _legend([line for line, _ in pieces])
    top = 26 + LINE * rows
    height = HEIGHT + LINE * rows
    across, up = Scale(x_low, x_high, LEFT, WIDTH - RIGHT), Scale(y_low, y_high, height - BOTTOM, top, log)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" class="plot" role="img" '
           f'aria-label="{escape(title, quote=True)}">',
           f'<text x="{LEFT}" y="15" class="title">{escape(title)}</text>', *legend]  # fmt: skip
    for value in log_ticks(y_low, y_high) if log else linear_ticks(y_low, y_high, 5):
        y = f"{up(value):.2f}"
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        out.append(f'<text x="{LEFT - 6}" y="{up(value) + 4:.2f}" class="tick y">{label(value)}</text>')
    for value in linear_ticks(x_low, x_high):
        x = f"{across(value):.2f}"
        out.append(f'<line x1="{x}" x2="{x}" y1="{height - BOTTOM}" y2="{height - BOTTOM + 4}" class="axis"/>')
        out.append(f'<text x="{x}" y="{height - BOTTOM + 16}" class="tick x">{label(value)}</text>')
    out.append(f'<path d="M{LEFT} {top}V{height - BOTTOM}H{WIDTH - RIGHT}" fill="none" class="axis"/>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 4}" class="tick x">{escape(x_name)}</text>')
    if y_name:
        out.append(f'<text x="12" y="{(top + height - BOTTOM) / 2}" transform="rotate(-90 12 {(top + height - BOTTOM) / 2})" '
                   f'class="tick x">{escape(y_name)}</text>')  # fmt: skip
    for mark in marks:
        if x_low <= mark <= x_high:
            x = f"{across(mark):.2f}"
            out.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{height - BOTTOM}" class="mark">'
                       f"<title>taken up again at {label(mark)}</title></line>")  # fmt: skip
    for line, parts in pieces:
        for part in parts:
            if len(part) == 1:  # alone between gaps
                (x0, y0), kind = part[0], _kind(line)
                out.append(f'<circle cx="{across(x0):.2f}" cy="{up(y0):.2f}" r="2.5" class="{kind}"/>')
                continue
            spots = " ".join(f"{across(a):.2f},{up(b):.2f}" for a, b in part)
            kind, title = _kind(line), escape(line.name)
            out.append(f'<polyline points="{spots}" fill="none" class="{kind}"><title>{title}</title></polyline>')
    return "\n".join([*out, "</svg>"])


def _kind(line: Series) -> str:
    return f"line c{line.colour}{' dashed' if line.dashed else ''}{' faint' if line.faint else ''}"


def _legend(lines: Sequence[Series]) -> tuple[list[str], int]:
    """Elements of the legend, and how many lines it takes; a single unnamed line needs none."""
    out, x, row = [], float(LEFT), 0
    for line in lines:
        if not line.name:
            continue
        width = 30 + LETTER * len(line.name) + 12
        if x + width > WIDTH - RIGHT and x > LEFT:
            x, row = float(LEFT), row + 1
        y = 26 + LINE * row + 4
        out.append(f'<path d="M{x:.1f} {y}h22" class="{_kind(line)}"/>')
        out.append(f'<text x="{x + 27:.1f}" y="{y + 4}" class="key">{escape(line.name)}</text>')
        x += width
    return out, row + 1 if out else 0

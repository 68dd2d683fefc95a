"""Lines, points and bars as SVG: axes, round ticks, intervals, a legend, logarithmic scales.

Colours are CSS classes c0 ... c5 of the page; `standalone` gives a plot a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, BOTTOM, LINE = 62, 14, 36, 16  # pixels around the axes, and from legend line to legend line
LETTER = 6.8  # pixels that a letter of the legend takes, about
MOST = 500  # points a line; where there are more, neighbours become their mean
HUES = 6  # colours there are; a higher number begins again


@dataclass(frozen=True)
class Series:
    """One line. y that is None or no finite number leaves a gap.

    low, high: the interval of each y, a band about a line and a whisker at a dot. dots: a circle at each point. joined: False
    for dots alone. labels: words beside each dot.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dashed: bool = False
    faint: bool = False
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    dots: bool = False
    joined: bool = True
    labels: Sequence[str] = ()

    def intervals(self, log: bool = False) -> list[tuple[float, float, float]]:
        """x, low and high of each point that has both, and a y."""
        if self.low is None or self.high is None:
            return []
        rows = zip(self.x, self.y, self.low, self.high, strict=True)
        whole = [(x, low, high) for x, y, low, high in rows if _known(y, log) and low is not None and high is not None]
        return [(x, low, high) for x, low, high in whole if math.isfinite(low) and _known(high, log)]


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


def _known(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


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
              marks: Sequence[float] = (), x_name: str = "step", x_log: bool = False, marked: str = "taken up again at",
              levels: Sequence[tuple[float, str]] = ()) -> str:  # fmt: skip
    """An <svg> element. log: y is logarithmic and values of 0 or less are gaps; x_log: the same of x. zero: y begins at 0.
    marks: upright lines at these x; marked: what they say before it. levels: lines across at these y, with words.
    Nothing to draw gives "".
    """
    pieces = []
    for line in lines:
        keep = [b if (not log or _known(b, True)) and (not x_log or a > 0) else None for a, b in zip(line.x, line.y, strict=True)]
        if parts := thinned(line.x, keep):
            pieces.append((line, parts))
    points = [point for _, parts in pieces for part in parts for point in part]
    if not points:
        return ""
    x_low, x_high = min(a for a, _ in points), max(a for a, _ in points)
    ends = [end for line, _ in pieces for _, low, high in line.intervals(log) for end in (low, high) if _known(end, log)]
    ends += [b for _, b in points] + [value for value, _ in levels if _known(value, log)]
    y_low, y_high = (0.0 if zero and not log else min(ends)), max(ends)
    if x_high <= x_low:
        x_low, x_high = (x_low / 2, x_high * 2) if x_log else (x_low - 1, x_high + 1)
    elif any(line.dots for line, _ in pieces):  # a dot on the axis is hard to see
        if x_log:
            x_low, x_high = x_low / (x_high / x_low) ** 0.03, x_high * (x_high / x_low) ** 0.03
        else:
            x_low, x_high = x_low - 0.03 * (x_high - x_low), x_high + 0.03 * (x_high - x_low)
    if log:
        y_low, y_high = y_low / 1.1, y_high * 1.1
    else:
        room = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
        y_low, y_high = (y_low if zero else y_low - room), y_high + room
    frame = _Frame(title, [line for line, _ in pieces], y_low, y_high, log, y_name, x_name)
    across, up, out = Scale(x_low, x_high, LEFT, WIDTH - RIGHT, x_log), frame.up, frame.out
    for value in log_ticks(x_low, x_high) if x_log else linear_ticks(x_low, x_high):
        x = f"{across(value):.2f}"
        out.append(f'<line x1="{x}" x2="{x}" y1="{frame.foot}" y2="{frame.foot + 4}" class="axis"/>')
        out.append(f'<text x="{x}" y="{frame.foot + 16}" class="tick x">{label(value)}</text>')
    for mark in marks:
        if x_low <= mark <= x_high:
            x = f"{across(mark):.2f}"
            out.append(f'<line x1="{x}" x2="{x}" y1="{frame.top}" y2="{frame.foot}" class="mark">'
                       f"<title>{escape(marked)} {label(mark)}</title></line>")  # fmt: skip
    for value, words in levels:
        if _known(value, log):
            y = up(value)
            out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}" class="mark"/>')
            out.append(f'<text x="{WIDTH - RIGHT - 2}" y="{y - 4:.2f}" class="tick y">{escape(words)}</text>')
    for line, parts in pieces:
        out += _drawn(line, parts, across, up, log)
    return frame.whole()


def _drawn(line: Series, parts: list[list[tuple[float, float]]], across: Scale, up: Scale, log: bool) -> list[str]:
    """The interval, the line and the dots of a series."""
    out = []
    kind, title = _kind(line), escape(line.name)
    band = [(across(a), up(max(low, up.low)), up(high)) for a, low, high in line.intervals(log) if a > 0 or not across.log]
    if line.dots:
        out += [f'<path d="M{a:.2f} {b:.2f}V{c:.2f}M{a - 3:.2f} {b:.2f}h6M{a - 3:.2f} {c:.2f}h6" class="{kind}"/>'
                for a, b, c in band]  # fmt: skip
    elif len(band) > 1:
        there = " ".join(f"{a:.2f},{b:.2f}" for a, b, _ in band)
        back = " ".join(f"{a:.2f},{c:.2f}" for a, _, c in reversed(band))
        out.append(f'<polygon points="{there} {back}" class="band f{line.colour % HUES}"/>')
    for part in parts if line.joined else ():
        if len(part) == 1:  # alone between gaps
            x, y = across(part[0][0]), up(part[0][1])
            out.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2.5" class="{kind}"/>')
            continue
        spots = " ".join(f"{across(a):.2f},{up(b):.2f}" for a, b in part)
        out.append(f'<polyline points="{spots}" fill="none" class="{kind}"><title>{title}</title></polyline>')
    if line.dots:
        words = line.labels or [""] * len(line.x)
        for a, b, word in zip(line.x, line.y, words, strict=True):
            if _known(b, log) and b is not None and (a > 0 or not across.log):
                x, y = across(a), up(b)
                said = escape(f"{line.name}: {word}".strip(": ") or f"{label(a)}, {label(b)}")
                out.append(
                    f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3.2" class="dot f{line.colour % HUES}"><title>{said}</title></circle>'
                )
                if word:
                    turn = x + 6 + LETTER * len(word) > WIDTH  # there is no room to the right
                    place = f'x="{x + (-6 if turn else 6):.2f}" y="{y - 5:.2f}"'
                    out.append(f'<text {place} class="key{" y" if turn else ""}">{escape(word)}</text>')
    return out


def bar_plot(title: str, names: Sequence[str], groups: Sequence[Series], y_name: str = "", *,
             levels: Sequence[tuple[float, str]] = ()) -> str:  # fmt: skip
    """An <svg> element of upright bars from 0: beside each name one bar of each group, whose x are numbers of names (0, 1, ...),
    with whiskers where it has intervals. levels: as in `line_plot`. Nothing to draw gives "".
    """
    shown = [(k, group) for k, group in enumerate(groups) if any(_known(y, False) for y in group.y)]
    if not shown or not names:
        return ""
    ends = [end for _, group in shown for _, low, high in group.intervals() for end in (low, high)]
    ends += [y for _, group in shown for y in group.y if y is not None and math.isfinite(y)] + [value for value, _ in levels]
    y_low, y_high = min(0.0, *ends), max(0.0, *ends)
    room = 0.06 * (y_high - y_low) or 1.0
    y_low, y_high = (y_low - room if y_low < 0 else 0.0), (y_high + room if y_high > 0 else 0.0)
    frame = _Frame(title, [group for _, group in shown], y_low, y_high, False, y_name, "", blocks=True)
    each = (WIDTH - RIGHT - LEFT) / len(names)
    width = min(60.0, 0.8 * each / len(shown))
    for i, name in enumerate(names):
        words = name if LETTER * len(name) <= each else name[: max(1, int(each / LETTER) - 1)] + "…"
        middle = LEFT + each * (i + 0.5)
        said = f"{escape(words)}<title>{escape(name)}</title>"
        frame.out.append(f'<text x="{middle:.2f}" y="{frame.foot + 16}" class="tick x">{said}</text>')
    for place, (_, group) in enumerate(shown):
        for x, y in zip(group.x, group.y, strict=True):
            if y is None or not math.isfinite(y):
                continue
            left = LEFT + each * (x + 0.5) + width * (place - len(shown) / 2)
            top, foot = sorted((frame.up(y), frame.up(0.0)))
            said = escape(f"{names[int(x)]}, {group.name}: {y:.4g}" if group.name else f"{names[int(x)]}: {y:.4g}")
            frame.out.append(f'<rect x="{left + 1:.2f}" y="{top:.2f}" width="{width - 2:.2f}" height="{foot - top:.2f}" '
                             f'class="bar f{group.colour % HUES}"><title>{said}</title></rect>')  # fmt: skip
        for x, low, high in group.intervals():
            a = LEFT + each * (x + 0.5) + width * (place - len(shown) / 2 + 0.5)
            b, c = frame.up(low), frame.up(high)
            frame.out.append(f'<path d="M{a:.2f} {b:.2f}V{c:.2f}M{a - 4:.2f} {b:.2f}h8M{a - 4:.2f} {c:.2f}h8" class="whisker"/>')
    for value, words in levels:
        y = frame.up(value)
        frame.out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}" class="mark"/>')
        frame.out.append(f'<text x="{WIDTH - RIGHT - 2}" y="{y - 4:.2f}" class="tick y">{escape(words)}</text>')
    return frame.whole()


class _Frame:
    """What every plot has: title, legend, upright axis with its lines across, names of the axes."""

    def __init__(self, title: str, lines: Sequence[Series], y_low: float, y_high: float, log: bool, y_name: str, x_name: str,
                 blocks: bool = False) -> None:  # fmt: skip
        legend, rows = _legend(lines, blocks)
        self.top, height = 26 + LINE * rows, HEIGHT + LINE * rows
        self.foot = height - BOTTOM
        self.up = Scale(y_low, y_high, self.foot, self.top, log)
        self.out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" class="plot" role="img" '
                    f'aria-label="{escape(title, quote=True)}">',
                    f'<text x="{LEFT}" y="15" class="title">{escape(_cut(title, WIDTH - LEFT))}</text>', *legend]  # fmt: skip
        for value in log_ticks(y_low, y_high) if log else linear_ticks(y_low, y_high, 5):
            y = f"{self.up(value):.2f}"
            self.out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
            self.out.append(f'<text x="{LEFT - 6}" y="{self.up(value) + 4:.2f}" class="tick y">{label(value)}</text>')
        self.out.append(f'<path d="M{LEFT} {self.top}V{self.foot}H{WIDTH - RIGHT}" fill="none" class="axis"/>')
        if x_name:
            self.out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 4}" class="tick x">{escape(x_name)}</text>')
        if y_name:
            middle = (self.top + self.foot) / 2
            self.out.append(
                f'<text x="12" y="{middle}" transform="rotate(-90 12 {middle})" class="tick x">{escape(y_name)}</text>'
            )

    def whole(self) -> str:
        return "\n".join([*self.out, "</svg>"])


def _cut(text: str, room: float, letter: float = 1.2 * LETTER) -> str:
    """Text that fits, of bold letters."""
    most = int(room / letter)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _kind(line: Series) -> str:
    return f"line c{line.colour % HUES}{' dashed' if line.dashed else ''}{' faint' if line.faint else ''}"


def _legend(lines: Sequence[Series], blocks: bool = False) -> tuple[list[str], int]:
    """Elements of the legend, and how many lines it takes; a single unnamed line needs none."""
    out, x, row = [], float(LEFT), 0
    for line in lines:
        if not line.name:
            continue
        width = 30 + LETTER * len(line.name) + 12
        if x + width > WIDTH - RIGHT and x > LEFT:
            x, row = float(LEFT), row + 1
        y = 26 + LINE * row + 4
        if blocks:
            out.append(f'<rect x="{x + 6:.1f}" y="{y - 5}" width="11" height="11" class="bar f{line.colour % HUES}"/>')
        elif line.joined:
            out.append(f'<path d="M{x:.1f} {y}h22" class="{_kind(line)}"/>')
        if line.dots and not blocks:
            out.append(f'<circle cx="{x + 11:.1f}" cy="{y}" r="3.2" class="dot f{line.colour % HUES}"/>')
        out.append(f'<text x="{x + 27:.1f}" y="{y + 4}" class="key">{escape(line.name)}</text>')
        x += width
    return out, row + 1 if out else 0

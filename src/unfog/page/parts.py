"""What a section of a page may hold, as plain data; `html` draws any of them.

Facts      what and how: settings, each a name and a value
Measure    one measured figure: value, interval, sample size, noise floor, unit, note
Measures   figures under each other, each with its interval drawn against its floor
Table      rows of words, numbers and figures
Pictures   arrays or PIL images, with captions
Lines      lines or points with intervals; Bars: upright bars with intervals
Words      a paragraph; Alarm: sentences that must not be overlooked; Folded: parts that open on demand
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

from unfog.page.plot import Series, bar_plot, line_plot

if TYPE_CHECKING:
    from PIL.Image import Image

NONE = "—"
COMPRESSION = 6  # pinned, for the level decides the bytes


@dataclass(frozen=True)
class Facts:
    """Names and values, such as settings."""

    rows: Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Measure:
    """One figure. None: there is none (then the note says why). low, high: its interval; n: items behind it; floor: what it
    would be by chance or with perfect data, below which it says nothing.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    floor: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Measures:
    """Figures under each other; each is also drawn, as an interval against its floor, on a scale of its own from 0."""

    rows: Sequence[Measure]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of words, numbers, None and figures (whose names are not shown); the first cell of a row is its name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | float | Measure | None]]
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """pixels: uint8 (H, W, 4) straight RGBA, (H, W, 3) or (H, W), or a PIL image; scale: pixels on the page to one of its own."""

    pixels: Any
    caption: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Pictures:
    """Pictures beside each other, on white where they are transparent."""

    items: Sequence[Picture]
    title: str = ""


@dataclass(frozen=True)
class Lines:
    """A plot of lines, or of points (`Series.dots`, `joined=False`); the fields are those of `plot.line_plot`."""

    title: str
    series: Sequence[Series]
    x_name: str = ""
    y_name: str = ""
    log: bool = False
    x_log: bool = False
    zero: bool = False
    levels: Sequence[tuple[float, str]] = ()
    marks: Sequence[float] = ()
    marked: str = ""


@dataclass(frozen=True)
class Bars:
    """Bars: beside each name one of each series, whose x are numbers of names (0, 1, ...)."""

    title: str
    names: Sequence[str]
    series: Sequence[Series]
    y_name: str = ""
    levels: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Alarm:
    """Sentences that must not be overlooked."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Folded:
    """Parts that are out of sight until they are asked for (on paper: as the reader left them)."""

    summary: str
    parts: Sequence[Part]


Part = Facts | Measures | Table | Pictures | Lines | Bars | Words | Alarm | Folded


def html(part: Part) -> str:
    """A part as well-formed HTML, all text escaped; "" where there is nothing to draw. Raises TypeError for anything else."""
    return _DRAWN[type(part)](part) if type(part) in _DRAWN else _refused(part)


def svg(part: Lines | Bars) -> str:
    """A plot as an <svg> element; "" where there is nothing to draw."""
    if isinstance(part, Bars):
        return bar_plot(part.title, part.names, part.series, part.y_name, levels=part.levels)
    return line_plot(part.title, part.series, part.y_name, log=part.log, zero=part.zero, x_name=part.x_name, x_log=part.x_log,
                     levels=part.levels, marks=part.marks, marked=part.marked)  # fmt: skip


def decimals(value: float, low: float | None = None, high: float | None = None) -> int:
    """Digits behind the point: two of an interval's width, else four of the value; at most 6."""
    width = high - low if low is not None and high is not None else 0.0
    if width > 0 and math.isfinite(width):
        return min(6, max(0, 1 - math.floor(math.log10(width))))
    return min(6, max(0, 3 - math.floor(math.log10(abs(value))))) if value else 0


def figure(measure: Measure) -> str:
    """A figure in words: 12.3 [11.8, 12.9] unit."""
    if not _finite(measure.value):
        return NONE
    assert measure.value is not None
    places = decimals(measure.value, measure.low, measure.high)
    text = f"{measure.value:,.{places}f}"
    if measure.low is not None and measure.high is not None:
        ends = (f"{end:,.{places}f}" if math.isfinite(end) else "∞" if end > 0 else "−∞" for end in (measure.low, measure.high))
        text += f" [{', '.join(ends)}]"
    return f"{text} {measure.unit}".rstrip()


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _refused(part: object) -> str:
    raise TypeError(f"a page holds {', '.join(kind.__name__ for kind in _DRAWN)}, not {type(part).__name__}")


def _facts(part: Facts) -> str:
    cells = (f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in part.rows)
    return f'<table class="facts"><tbody>{"".join(cells)}</tbody></table>'


def _tabled(title: str, header: str, rows: str) -> str:
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return (f'<div class="scroll"><table class="figures">{caption}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>'
            "</div>")  # fmt: skip


def _measures(part: Measures) -> str:
    if not part.rows:
        return ""
    columns = {"n": any(m.n is not None for m in part.rows), "floor": any(m.floor is not None for m in part.rows),
               "note": any(m.note for m in part.rows)}  # fmt: skip
    header = '<th>measure</th><th class="number">value [interval]</th><th></th>'
    header += '<th class="number">n</th>' if columns["n"] else ""
    header += '<th class="number">noise floor</th>' if columns["floor"] else ""
    header += "<th>note</th>" if columns["note"] else ""
    rows = []
    for m in part.rows:
        cells = f'<th>{escape(m.name)}</th><td class="number">{escape(figure(m))}</td><td>{_strip(m)}</td>'
        if columns["n"]:
            cells += f'<td class="number">{NONE if m.n is None else format(m.n, ",")}</td>'
        if columns["floor"]:
            shown = NONE if not _finite(m.floor) else f"{m.floor:,.{decimals(m.floor or 0.0, m.low, m.high)}f}"
            cells += f'<td class="number">{shown}</td>'
        cells += f'<td class="dim">{escape(m.note)}</td>' if columns["note"] else ""
        rows.append(f"<tr>{cells}</tr>")
    return _tabled(part.title, header, "".join(rows))


def _strip(m: Measure) -> str:
    """The interval drawn from 0 on: what lies below the noise floor is grey."""
    known = [v for v in (m.value, m.low, m.high, m.floor) if v is not None and math.isfinite(v)]
    if not _finite(m.value) or m.value is None or min(known) < 0 or max(known) == 0 or len(known) < 2:
        return ""
    unit = 126 / max(known)
    out = ['<svg viewBox="0 0 130 14" class="plot" role="img" aria-hidden="true">']
    if m.floor is not None and math.isfinite(m.floor):
        out.append(f'<rect x="2" y="1" width="{unit * m.floor:.2f}" height="12" class="floor"/>')
        out.append(f'<path d="M{2 + unit * m.floor:.2f} 1v12" class="axis"/>')
    if m.low is not None and m.high is not None and _finite(m.low) and _finite(m.high):
        a, b = 2 + unit * m.low, 2 + unit * m.high
        out.append(f'<path d="M{a:.2f} 7H{b:.2f}M{a:.2f} 3v8M{b:.2f} 3v8" class="line c1"/>')
    out.append(f'<circle cx="{2 + unit * m.value:.2f}" cy="7" r="3" class="dot f1"/></svg>')
    return "".join(out)


def _cell(cell: object) -> str:
    if isinstance(cell, Measure):
        text = figure(cell) + (f" n={cell.n:,}" if cell.n is not None else "")
        note = f'<div class="note">{escape(cell.note)}</div>' if cell.note else ""
        return f'<td class="number">{escape(text)}{note}</td>'
    if cell is None:
        return f'<td class="number">{NONE}</td>'
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        shown = f"{cell:,}" if isinstance(cell, int) else _short(cell) if math.isfinite(cell) else NONE
        return f'<td class="number">{shown}</td>'
    return f"<td>{escape(str(cell))}</td>"


def _short(value: float) -> str:
    shown = f"{value:,.{decimals(value)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def _table(part: Table) -> str:
    if not part.rows:
        return ""
    right = [all(not isinstance(row[i], str) for row in part.rows if i < len(row)) for i in range(len(part.header))]
    header = "".join(f'<th{" class=" + chr(34) + "number" + chr(34) if end and i else ""}>{escape(str(name))}</th>'
                     for i, (name, end) in enumerate(zip(part.header, right, strict=True)))  # fmt: skip
    rows = ("<tr>" + f"<th>{escape(str(row[0]))}</th>" + "".join(map(_cell, row[1:])) + "</tr>" for row in part.rows)
    return _tabled(part.title, header, "".join(rows))


def inline(pixels: Any) -> tuple[str, int, int]:
    """A picture as a data: URI of a PNG, with its width and height; equal pixels give equal text.

    Raises: ValueError where it is neither a PIL image nor a uint8 array (H, W), (H, W, 3) or (H, W, 4).
    """
    image = _image(pixels)
    file = BytesIO()
    image.save(file, "PNG", compress_level=COMPRESSION)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), image.width, image.height


def _image(pixels: Any) -> Image:
    import numpy as np
    from PIL import Image

    if isinstance(pixels, Image.Image):
        plain = pixels if pixels.mode in ("L", "RGB", "RGBA") else pixels.convert("RGBA")
        return Image.frombytes(plain.mode, plain.size, plain.tobytes())  # without what else a file may have brought along
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f"a picture is uint8 (H, W), (H, W, 3) or (H, W, 4), got {array.dtype} {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _pictures(part: Pictures) -> str:
    if not part.items:
        return ""
    out = []
    for item in part.items:
        uri, width, height = inline(item.pixels)
        wide = max(1, round(width * item.scale))
        caption = f'<figcaption style="max-width: {max(wide, 90)}px">{escape(item.caption)}</figcaption>' if item.caption else ""
        out.append(f'<figure><img alt="{escape(item.caption, quote=True)}" width="{wide}" '
                   f'height="{max(1, round(height * item.scale))}" src="{uri}"/>{caption}</figure>')  # fmt: skip
    title = f"<h3>{escape(part.title)}</h3>" if part.title else ""
    return f'{title}<div class="pictures">{"".join(out)}</div>'


def _folded(part: Folded) -> str:
    inner = "\n".join(filter(None, map(html, part.parts)))
    return f"<details><summary>{escape(part.summary)}</summary>{inner}</details>"


def _alarm(part: Alarm) -> str:
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in part.sentences)
    return f'<ul class="warn">{said}</ul>' if said else ""


def _plot(part: Lines | Bars) -> str:
    drawn = svg(part)
    return f"<div>{drawn}</div>" if drawn else ""


_DRAWN: dict[type, Callable[[Any], str]] = {
    Facts: _facts,
    Measures: _measures,
    Table: _table,
    Pictures: _pictures,
    Lines: _plot,
    Bars: _plot,
    Words: lambda part: f"<p>{escape(part.text)}</p>",
    Alarm: _alarm,
    Folded: _folded,
}

"""Reports as one HTML file that needs neither a network nor scripts, in light and dark and on paper.

    page("emoji-64 against emoji-64", [Section("Distances", [Measures([Measure("FD-lite0", 21.4, 20.6, 22.3, n=5000)])])])

All text is escaped; the page is well-formed as XML too, so that any parser can check it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from unfog.page.parts import (
    Alarm,
    Bars,
    Facts,
    Folded,
    Lines,
    Measure,
    Measures,
    Part,
    Picture,
    Pictures,
    Table,
    Words,
    figure,
    html,
    svg,
)
from unfog.page.plot import Series
from unfog.page.style import sheet, standalone


@dataclass(frozen=True)
class Section:
    """A heading ("" for none) and what stands under it; plots that follow each other stand side by side."""

    title: str
    parts: Sequence[Part]


def page(title: str, sections: Sequence[Section], *, settings: Sequence[tuple[str, Any]] = (), sub: str = "",
         alarms: Sequence[str] = ()) -> str:  # fmt: skip
    """The whole HTML file: title, a line under it, alarms, a table of settings, then the sections that have something to show."""
    opening: list[Part] = [Alarm(alarms), *([Facts(settings)] if settings else [])]
    body = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(sub)}</p>' if sub else "", *map(html, opening)]
    for section in sections:
        drawn = _flowing(section.parts)
        if drawn:
            body.append((f"<h2>{escape(section.title)}</h2>\n" if section.title else "") + drawn)
    return whole(title, "\n".join(filter(None, body)))


def _flowing(parts: Sequence[Part]) -> str:
    out: list[str] = []
    beside: list[str] = []
    for part in [*parts, None]:
        if isinstance(part, Lines | Bars):
            beside.append(html(part))
            continue
        if any(beside):
            out.append(f'<div class="plots">{"".join(beside)}</div>')
        beside = []
        if part is not None:
            out.append(html(part))
    return "\n".join(filter(None, out))


def whole(title: str, body: str) -> str:
    """The HTML file around a body that is escaped already."""
    return clean(f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escape(title)}</title><style>{sheet()}</style></head><body>
{body}
</body></html>
""")


def clean(text: str) -> str:
    """Without the control characters that XML forbids; a caption or a file name may hold some."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and c not in "\ufffe\uffff"))


__all__ = [
    "Alarm",
    "Bars",
    "Facts",
    "Folded",
    "Lines",
    "Measure",
    "Measures",
    "Part",
    "Picture",
    "Pictures",
    "Section",
    "Series",
    "Table",
    "Words",
    "clean",
    "figure",
    "html",
    "page",
    "standalone",
    "svg",
    "whole",
]

"""Series drawn, written as CSV and read back, and what of them is kept when they are changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError, shown
from unfog.files import recipe_from
from unfog.modalities.series.data import read_tables
from unfog.modalities.series.table import FREQUENCIES, Table
from unfog.modalities.series.window import LENGTH, PAST, VARIATES

if TYPE_CHECKING:
    from PIL.Image import Image

    from unfog.modalities.series.space import SeriesSpace

WIDE, HIGH, INKS = 240, 120, ("#1f5fbf", "#c8452f", "#2f8f4e", "#8a4fb0", "#b07a1f", "#3b8ea5", "#7a7a7a", "#d06ba5")
MARK = "# "


def number(value: float) -> str:
    """A value as a file holds it: nothing where it is missing."""
    return "" if not np.isfinite(value) else f"{value:.10g}"


def csv_of(table: Table) -> str:
    """The table as wide CSV: time, and a column a variate."""
    head = ",".join(["time", *(_quoted(c) for c in table.columns)])
    lines = (",".join([time, *map(number, row)]) for time, row in zip(table.times(), table.values, strict=True))
    return "\n".join([head, *lines]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',";\n\t') else text


def to_bytes(raw: Table, recipe: Mapping[str, Any]) -> bytes:
    """The table as CSV; behind it, as comments, what its times do not say, and the recipe."""
    told = {"ahead": raw.ahead, "frequency": raw.frequency, "seasons": list(raw.seasons), "covariates": list(raw.covariates)}
    said = {"ahead": 0, "frequency": raw.clock.frequency, "seasons": list(raw.clock.seasons), "covariates": []}
    more = [{"table": told}] if told != said else []
    return (csv_of(raw) + "".join(MARK + json.dumps(row, sort_keys=True) + "\n" for row in (*more, recipe))).encode()


def from_bytes(data: bytes, name: str) -> tuple[Table, dict[str, Any]]:
    """A table and its recipe ({} without one). Raises UserError naming the file."""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    marked: list[dict[str, Any]] = []
    while lines and lines[-1].startswith(MARK) and len(marked) < 2:
        marked.append(recipe_from(lines.pop()[len(MARK) :].strip()) or {})
    found = read_tables("".join(lines).encode(), name)
    if len(found) != 1:
        raise UserError(f"{name}: holds {len(found)} series; give one")
    own = next((row["table"] for row in marked if set(row) == {"table"}), None)
    recipe = next((row for row in marked if set(row) != {"table"}), {})
    return (_told(found[0], own) if isinstance(own, dict) else found[0]), recipe


def _told(table: Table, own: Mapping[str, Any]) -> Table:
    """The table with what its file says beside its times; what makes no sense there is passed over."""
    ahead, frequency, seasons, covered = (own.get(key) for key in ("ahead", "frequency", "seasons", "covariates"))
    if isinstance(ahead, int) and 0 <= ahead < 10_000:
        table = replace(table, ahead=ahead)
    if frequency in FREQUENCIES:
        table = replace(table, frequency=frequency)
    if isinstance(seasons, list) and seasons and all(isinstance(m, int) and 1 <= m <= 400 for m in seasons):
        table = replace(table, seasons=tuple(seasons))
    if isinstance(covered, list):
        table = replace(table, covariates=tuple(c for c in table.columns if c in covered))
    return table


def render(raw: Sequence[Table], labels: Sequence[str]) -> Image:
    """A small plot of each, in rows of about as many as there are rows."""
    from PIL import Image, ImageDraw

    columns = max(1, int(np.ceil((len(raw) / 2) ** 0.5)))
    rows = max(1, -(-len(raw) // columns))
    sheet = Image.new("RGB", (columns * WIDE, rows * HIGH), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (table, label) in enumerate(zip(raw, labels, strict=True)):
        left, top = i % columns * WIDE, i // columns * HIGH
        draw.text((left + 4, top + 2), label[:36], fill="#444444")
        draw.rectangle((left, top, left + WIDE - 1, top + HIGH - 1), outline="#dddddd")
        for v in range(min(table.values.shape[1], len(INKS))):
            y = table.values[:, v]
            good = np.flatnonzero(np.isfinite(y))
            if len(good) < 2:
                continue
            low, high = y[good].min(), y[good].max()
            at_x = left + 5 + (WIDE - 10) * good / max(len(y) - 1, 1)
            at_y = top + HIGH - 6 - (HIGH - 26) * (y[good] - low) / (high - low if high > low else 1.0)
            draw.line(list(zip(at_x.tolist(), at_y.tolist(), strict=True)), fill=INKS[v], width=1)
    return sheet


def _rows(raw: Table, spec: str) -> NDArray[np.bool_]:
    """(T, V) True where the table stays: known values of the rows, and all before its last window."""
    if raw.values.shape[1] > VARIATES:
        raise UserError(f"keep: the table has {raw.values.shape[1]} columns, a window {VARIATES}; use `unfog forecast --fill`")
    known = np.isfinite(raw.values)
    if spec.strip().lower() == "known":
        if not known[: max(len(raw) - LENGTH, 0)].all():
            raise UserError(f"keep: values lack before the last {LENGTH} rows; use `unfog forecast --fill`")
        return known
    if raw.values.shape[1] > 1 and not raw.ahead and known.all():
        raise UserError("keep: rows are kept of one column; give a table of one, or `known`")
    stays = np.zeros(len(raw), bool)
    for part in spec.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < len(raw)):
            raise UserError(f"keep: {shown(spec)} is no rows of the table; give `known`, or rows from 0 to {len(raw) - 1} "
                            "such as 0-39")  # fmt: skip
        stays[int(first) : int(last) + 1] = True
    stays[: max(len(raw) - LENGTH, 0)] = True
    return stays[:, None] & known


def keep(space: SeriesSpace, raw: Table, spec: str) -> NDArray[np.bool_]:
    """spec: `known` (what is missing is filled), or rows that stay, counted from 0, such as 0-39,60-79; rows before the last
    LENGTH stay too."""
    from unfog.modalities.series.space import as_it_stands

    stays = _rows(raw, spec)
    first = PAST - as_it_stands(raw).origin  # of the window's steps, the table's first
    out = np.zeros((VARIATES, LENGTH), bool)
    out[: stays.shape[1], max(first, 0) : first + len(stays)] = stays[max(-first, 0) :].T
    return out


def paste(space: SeriesSpace, made: Table, raw: Table, spec: str) -> Table:
    """The file's own table, and what was made where it was to change."""
    values = np.full_like(raw.values, np.nan)
    count = min(len(made), len(raw))
    values[len(raw) - count :, : made.values.shape[1]] = made.values[len(made) - count :]
    stays = _rows(raw, spec) | (np.arange(len(raw)) < len(raw) - count)[:, None]
    return replace(raw, values=np.where(stays, raw.values, values))

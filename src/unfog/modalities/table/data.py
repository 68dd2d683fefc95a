"""Rows in files (a CSV with a head), drawn and measured."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from unfog.errors import UserError
from unfog.files import recipe_from
from unfog.modalities.contract import ANY, Items, Measured, Options
from unfog.modalities.table.space import Row, fit, is_number


def _rows(text: str, name: object) -> list[Row]:
    """{} for a row that is not as wide as the head. A missing cell is "", however it was written. Raises UserError."""
    try:
        head, *lines = [line for line in csv.reader(io.StringIO(text.lstrip("\ufeff"))) if line] or [[]]
    except csv.Error as error:
        raise UserError(f"{name}: not readable as CSV ({error}); give a .csv file") from None
    cells = [["" if c.strip().lower() in ("na", "n/a", "nan", "null") else c.strip() for c in line] for line in lines]
    rows = [dict(zip(head, row, strict=True)) if len(row) == len({*head}) == len(head) else {} for row in cells]
    if not any(rows):
        raise UserError(f"{name}: no row under a head of different names; give a .csv file with the columns' names first")
    return rows


def open_table(path: Path, options: Options) -> Items:
    """Rows that hold anything; a column `split` may say what is held out. An item is asked for by its first category."""
    try:
        rows = _rows(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as CSV ({getattr(error, 'strerror', None) or error}); give a .csv file") from None
    splits = [row.pop("split", "") or "train" for row in rows]
    raw = [row for row in rows if any(row.values())]
    if not raw:
        raise UserError(f"{path}: no row holds anything; give a .csv file with cells under the columns' names")
    first = next((name for name in raw[0] if not is_number([row[name] for row in raw])), "")
    return Items(path, raw, [f"{first}={row[first]}" if row.get(first) else ANY for row in raw],
                 [split for split, row in zip(splits, rows, strict=True) if any(row.values())],
                 [f"row {i + 2}" for i, row in enumerate(rows) if any(row.values())],
                 {"empty, or not as wide as the head": len(rows) - len(raw)} if len(raw) < len(rows) else {})  # fmt: skip


def row_bytes(raw: Row, recipe: Mapping[str, Any]) -> bytes:
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows([raw.keys(), raw.values()])
    return f"{text.getvalue()}# {json.dumps(recipe, sort_keys=True)}\n".encode()


def read_row(data: bytes, name: str) -> tuple[Row, dict[str, Any]]:
    text, _, told = data.decode("utf-8", "replace").rpartition("\n# ")
    return _rows(text or told, name)[0], recipe_from(told) or {}


def render(raw: Sequence[Row], labels: Sequence[str]) -> Image.Image:
    sheet = Image.new("RGB", (96 * len(raw[0]), 18 * len(raw) + 18), "white")
    for i, row in enumerate([dict(zip(raw[0], raw[0], strict=True)), *raw]):
        for k, text in enumerate(row.values()):
            ImageDraw.Draw(sheet).text((96 * k + 4, 18 * i + 3), text[:15], "black" if i else "#1f5fbf")
    return sheet


def measure(made: Sequence[Row], prompts: Sequence[str], real: Items, seed: int) -> list[Measured]:
    """Of 20 draws of as many rows each (few lie further off): how far columns and correlations lie from the training rows'.
    Of each row: numbers beyond all of training, and whether two of its categories never met there."""
    own, rng = fit(real, Options()), np.random.default_rng(seed)
    groups = [[real.raw[i] for i in real.split("train")], [*made], [real.raw[i] for i in real.split("heldout")] or [*made]]
    train, *others = [own.encode(rows)[0].double().numpy() for rows in groups]
    draws = [[x[rng.permutation(len(x))[: min(map(len, others))]] for _ in range(20)] for x in others]
    starts, names = np.cumsum([0, *own.widths])[:-1], [c["name"] for c in own.columns if not c["values"]]
    pairs = [[{(a, b, row.get(a), row.get(b)) for a in names for b in names if a < b} for row in rows] for rows in groups]
    met, ranked = set().union(*pairs[0]), [at for at, c in zip(starts, own.columns, strict=True) if c["values"]]

    def far(x: np.ndarray) -> np.ndarray:
        """Kolmogorov-Smirnov distance of each column: of categories the largest difference of shares."""
        both = [(np.sort(a), np.sort(b), np.concatenate([a, b])) for a, b in zip(x.T, train.T, strict=True)]
        below = [[np.searchsorted(y, at, "right") / len(y) for y in pair] for *pair, at in both]
        return np.maximum.reduceat([np.abs(a - b).max() for a, b in below], starts)

    def tied(x: np.ndarray) -> np.ndarray:
        z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
        return z.T @ z / len(z)

    columns = np.mean([[far(x) for x in part] for part in draws], 1)
    ties = [float(np.mean([np.abs(tied(x) - tied(train)).mean() for x in part])) for part in draws]
    beyond = [((x < train.min(0)) | (x > train.max(0)))[:, ranked].any(1).astype(float) for x in others]
    strange = [np.array([float(bool(pair - met)) for pair in part]) for part in pairs[1:]]
    rows: list[tuple[str, Any, str]] = [("columns' Kolmogorov-Smirnov distance, mean", columns.mean(1).tolist(), "")]
    rows += [(f"Kolmogorov-Smirnov distance of {name}", columns[:, k].tolist(), "") for k, name in enumerate(own.names)]
    rows += [("correlations' mean difference", ties, ""), ("rows with numbers beyond those of training", beyond, "%"),
             ("rows of categories that never met in training", strange, "%")]  # fmt: skip
    held = bool(real.split("heldout"))
    return [Measured("fidelity", name, a, b if held else None, unit=unit, better="lower") for name, (a, b), unit in rows]

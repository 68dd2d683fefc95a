"""Points in files: a CSV with the columns x, y and, if there are classes, label and split."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.files import recipe_from
from unfog.modalities.contract import ANY, Items, Options


def open_points(path: Path, options: Options) -> Items:
    """Every row with two finite numbers; others are left out with a count. Raises UserError where none remains."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV ({getattr(error, 'strerror', None) or error}); give a .csv file") from None
    points, lines, skipped = [], [], Counter[str]()
    for i, row in enumerate(rows):
        point = _numbers(row)
        if point is None:
            skipped["without two finite numbers x and y"] += 1
        else:
            points.append(point)
            lines.append(i)
    if not points:
        raise UserError(f"{path}: no row with finite numbers in columns x and y; give a .csv file with that head")
    return Items(path, points, [rows[i].get("label") or ANY for i in lines], [rows[i].get("split") or "train" for i in lines],
                 [f"row {i + 2}" for i in lines], skipped)  # fmt: skip


def _numbers(row: Mapping[str, Any]) -> NDArray[np.float64] | None:
    try:
        point = np.array([float(row["x"]), float(row["y"])])
    except (KeyError, TypeError, ValueError):
        return None
    return point if np.isfinite(point).all() else None


def point_bytes(raw: NDArray[np.float64], recipe: Mapping[str, Any]) -> bytes:
    """A CSV of one row; the recipe is a comment behind it."""
    return f"x,y\n{raw[0]:.6g},{raw[1]:.6g}\n# {json.dumps(recipe, sort_keys=True)}\n".encode()


def read_point(data: bytes, name: str) -> tuple[NDArray[np.float64], dict[str, Any]]:
    lines = data.decode("utf-8", "replace").splitlines()
    point = _numbers(dict(zip(("x", "y"), lines[1].split(","), strict=False))) if len(lines) > 1 else None
    if point is None:
        raise UserError(f"{name}: holds no point; give a .csv file with the head x,y and one row of numbers")
    told = recipe_from(lines[2][2:]) if len(lines) > 2 and lines[2].startswith("# ") else None
    return point, told or {}

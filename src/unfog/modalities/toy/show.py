"""Points drawn and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.contract import Items, Measured

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, INKS = 256, ("#1f5fbf", "#c8452f", "#2f8f4e", "#8a4fb0", "#b07a1f")
Point = NDArray[np.float64]


def render(raw: Sequence[Point], labels: Sequence[str]) -> Image:
    """All points in one square, a colour a label."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    draw, kinds = ImageDraw.Draw(sheet), sorted(set(labels))
    points = np.stack(list(raw))
    centre, reach = points.mean(0), max(float(np.abs(points - points.mean(0)).max()), 1e-9)
    for (x, y), label in zip((points - centre) / reach * 0.45 + 0.5, labels, strict=True):
        at = (x * SIDE, (1 - y) * SIDE)
        draw.ellipse((at[0] - 2, at[1] - 2, at[0] + 2, at[1] + 2), fill=INKS[kinds.index(label) % len(INKS)])
    return sheet


def measure(made: Sequence[Point], prompts: Sequence[str], real: Items, seed: int) -> list[Measured]:
    """The distance to the nearest real point of what was asked for, beside the same of held-out points to the others."""
    held = real.split("heldout") or list(range(len(real)))
    apart = [_nearest(point, [real.raw[i] for i in held if prompt in ("any", real.prompts[i])])
             for point, prompt in zip(made, prompts, strict=True)]  # fmt: skip
    own = [_nearest(real.raw[i], [real.raw[j] for j in held if j != i and real.prompts[j] == real.prompts[i]]) for i in held]
    return [Measured("condition", "distance to the nearest point of its class", np.array(apart), np.array(own), better="lower")]


def _nearest(point: Point, others: Sequence[Point]) -> float:
    return float(np.linalg.norm(np.stack(list(others)) - point, axis=1).min()) if len(others) else float("inf")

"""A picture of any size where a model can work on it: shrunk or enlarged into the model's frame, or on a larger canvas.

    picture (H, W) and the sides that a canvas adds  ->  work (h, w): the whole at the model's scale, clear where it is padded
    made (h, w)  ->  the whole's own size, and what stays of the picture put back over it, bit by bit

A work pixel stays only where all pixels under it do, so what was free is never held, and what stays is never taken from the
model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfog.errors import UserError

if TYPE_CHECKING:
    from unfog.modalities.image.space import PictureSpace

MOST = 4096  # pixels a side of a canvas
MOST_WORK = 1024  # at the model's scale, where each 32 of them are a window more


def stays(raw: NDArray[np.uint8], spec: str) -> NDArray[np.bool_]:
    """(H, W): where a mask, white where the picture may change, keeps it. Raises UserError where it does not fit."""
    try:
        with Image.open(spec) as opened:
            mask = np.asarray(opened.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not a readable picture"
        raise UserError(f"{spec}: cannot be read ({reason}); give a picture, white where it may change") from None
    if mask.shape != raw.shape[:2]:
        raise UserError(f"{spec}: is {mask.shape[1]}x{mask.shape[0]}, the picture {raw.shape[1]}x{raw.shape[0]}; make them alike")
    return mask < 128


class Placed:
    """raw (h, w, 4): at the model's scale. kept (h, w): where it stays as it is; None: nowhere. frame: height and width that
    the model makes. padded: whether raw holds more than the picture. note: what a person should know."""

    def __init__(
        self,
        space: PictureSpace,
        raw: NDArray[np.uint8],
        spec: str | None = None,
        canvas: tuple[int, int, int, int] | None = None,
    ) -> None:
        high, wide = raw.shape[:2]
        width, height = min(space.buckets, key=lambda pair: abs(math.log(pair[0] / pair[1] * high / wide)))
        self.frame, self.note = (height, width), ""
        held = None if spec is None else stays(raw, spec)
        scale = min(width / wide, height / high)
        self.whole, self.held = raw, held
        if canvas is not None:
            left, top, right, bottom = canvas
            if max(wide + left + right, high + top + bottom) > MOST:
                raise UserError(f"canvas: would be {wide + left + right}x{high + top + bottom}; keep it within {MOST} a side")
            around = ((top, bottom), (left, right))
            self.whole = np.pad(raw, (*around, (0, 0)))
            self.held = np.pad(np.ones((high, wide), bool) if held is None else held, around)
        rows, columns = (max(round(side * scale), 1) for side in self.whole.shape[:2])
        most = max(MOST_WORK, 2 * max(width, height))
        if max(rows, columns) > most:
            raise UserError(f"canvas: would be {columns}x{rows} at the model's scale; keep it within {most} a side")
        self.size = (rows, columns)
        unit = max(space.buckets[0][1] // space.shape[-2], 1)  # pixels a side that the codec makes one of
        work = (-(-max(rows, height) // unit) * unit, -(-max(columns, width) // unit) * unit)
        self.corner = ((work[0] - rows) // 2, (work[1] - columns) // 2)
        pad = [(c, w - s - c) for c, s, w in zip(self.corner, self.size, work, strict=True)]
        self.padded = work != self.size
        self.raw = np.pad(_resized(self.whole, self.size), (*pad, (0, 0)))
        kept = np.zeros(self.size, bool) if self.held is None else _all(self.held, self.size)
        kept = np.pad(kept, pad, constant_values=True)  # beside the picture nothing is to be drawn
        self.kept = kept if kept.any() else None
        if self.size != self.whole.shape[:2]:
            from_, to = f"{self.whole.shape[1]}x{self.whole.shape[0]}", f"{columns}x{rows}"
            self.note = f"the picture is {from_}, the model works on it at {to}: what changes is resized"

    def back(self, made: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The whole picture, of what the model made of `raw`."""
        top, left = self.corner
        inner = _resized(made[top : top + self.size[0], left : left + self.size[1]], self.whole.shape[:2])
        return inner if self.held is None else np.where(self.held[..., None], self.whole, inner)


def _resized(raw: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pillow resizes RGBA through premultiplied alpha, so what is clear lends no colour to its neighbours."""
    if raw.shape[:2] == size:
        return raw
    return np.asarray(Image.fromarray(raw).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _all(held: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where everything that a pixel of another size stands for is held."""
    if held.shape == size:
        return held
    free = Image.fromarray((~held).astype(np.float32))
    return np.asarray(free.resize((size[1], size[0]), Image.Resampling.BOX)) <= 0.0

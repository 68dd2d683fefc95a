"""Copies made on purpose, to see which of them a detector finds: one function a kind of change, strength drawn anew each time.

The ranges are what users do to a picture without meaning to hide it. The detector was not fitted on these functions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # (H, W, 4) straight RGBA
Change = Callable[[Picture, np.random.Generator], Picture]
HUE = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # RGB to YIQ


def _opaque(x: Picture) -> bool:
    return bool((x[..., 3] == 255).all())


def _warped(x: Picture, matrix: Sequence[float]) -> Picture:
    """By Pillow's affine map, through premultiplied colour; an opaque picture's edges go on."""
    edge = 16
    wide = (
        np.pad(x, ((edge, edge), (edge, edge), (0, 0)), mode="edge") if _opaque(x) else np.pad(x, ((edge,) * 2,) * 2 + ((0, 0),))
    )
    a, b, c, d, e, f = matrix
    cy, cx = (wide.shape[0] - 1) / 2, (wide.shape[1] - 1) / 2
    about = (a, b, cx - a * cx - b * cy + c, d, e, cy - d * cx - e * cy + f)
    image = Image.fromarray(wide).convert("RGBa")
    moved = image.transform(image.size, Image.Transform.AFFINE, about, Image.Resampling.BILINEAR).convert("RGBA")
    return np.asarray(moved)[edge:-edge, edge:-edge]


def shifted(x: Picture, rng: np.random.Generator) -> Picture:
    """By up to 6 % of its width each way, not by whole pixels."""
    dy, dx = rng.uniform(-0.06, 0.06, 2) * x.shape[:2]
    return _warped(x, (1, 0, -dx, 0, 1, -dy))


def resized(x: Picture, rng: np.random.Generator) -> Picture:
    """Down to 45 to 80 % and up again."""
    high, wide = x.shape[:2]
    share = rng.uniform(0.45, 0.8)
    ways = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
    small = Image.fromarray(x).resize((round(wide * share), round(high * share)), ways[rng.integers(3)])
    return np.asarray(small.resize((wide, high), ways[rng.integers(3)]))


def softened(x: Picture, rng: np.random.Generator) -> Picture:
    """Under a Gaussian of 1 to 2.2 % of its width."""
    from PIL import ImageFilter

    blurred = Image.fromarray(x).convert("RGBa").filter(ImageFilter.GaussianBlur(rng.uniform(0.01, 0.022) * x.shape[1]))
    return np.asarray(blurred.convert("RGBA"))


def recoloured(x: Picture, rng: np.random.Generator) -> Picture:
    """Hue turned by up to 12°, saturation, contrast and brightness by up to 12 %."""
    turn, rich = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.88, 1.12)
    gain, lift = rng.uniform(0.88, 1.12), rng.uniform(-0.05, 0.05)
    spin = np.array([[1, 0, 0], [0, rich * np.cos(turn), -rich * np.sin(turn)], [0, rich * np.sin(turn), rich * np.cos(turn)]])
    matrix = np.linalg.inv(HUE) @ spin @ HUE
    colours = (x[..., :3] / 255) @ matrix.T
    made = np.clip(((colours - 0.5) * gain + 0.5 + lift) * 255, 0, 255)
    return np.concatenate([np.rint(made).astype(np.uint8), x[..., 3:]], -1)


def on_background(x: Picture, rng: np.random.Generator) -> Picture:
    """Over one opaque colour; a picture that has a background stays as it is."""
    alpha = x[..., 3:] / 255
    made = x[..., :3] * alpha + rng.integers(0, 256, 3) * (1 - alpha)
    return np.concatenate([np.rint(made).astype(np.uint8), np.full_like(x[..., 3:], 255)], -1)


def encoded(x: Picture, rng: np.random.Generator) -> Picture:
    """As a JPEG of quality 50 to 95, on white."""
    alpha = x[..., 3:] / 255
    flat = np.rint(x[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    handle = io.BytesIO()
    Image.fromarray(flat).save(handle, "JPEG", quality=int(rng.integers(50, 96)))
    made = np.asarray(Image.open(io.BytesIO(handle.getvalue())).convert("RGB"))
    return np.concatenate([made, np.full_like(x[..., 3:], 255)], -1)


def noisy(x: Picture, rng: np.random.Generator) -> Picture:
    """With noise of 8 to 16 of 255 where it is visible."""
    made = x + rng.normal(0, rng.uniform(8, 16), x.shape) * (x[..., 3:] > 8)
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def several(x: Picture, rng: np.random.Generator) -> Picture:
    """Shifted, recoloured and encoded."""
    return encoded(recoloured(shifted(x, rng), rng), rng)


KINDS: dict[str, Change] = {
    "shifted": shifted,
    "recoloured": recoloured,
    "encoded": encoded,
    "resized": resized,
    "softened": softened,
    "on background": on_background,
    "noisy": noisy,
    "several": several,
}

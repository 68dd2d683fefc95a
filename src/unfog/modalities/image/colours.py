"""Names of a picture's main colours, for captions that a person would write."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

# Main colours are named by the nearest of these (sRGB); several shades share a name.
COLOURS = {
    "black": [(20, 20, 25), (45, 45, 50)],
    "gray": [(110, 110, 115), (150, 155, 160), (90, 95, 105)],
    "light gray": [(200, 205, 210)],
    "white": [(250, 250, 250), (235, 238, 240)],
    "red": [(220, 40, 50), (190, 25, 40), (240, 60, 60)],
    "dark red": [(120, 20, 30)],
    "orange": [(250, 140, 30), (240, 110, 40)],
    "yellow": [(255, 205, 70), (255, 225, 80), (250, 190, 40)],
    "cream": [(255, 235, 190), (245, 225, 170)],
    "green": [(60, 170, 70), (90, 190, 80), (30, 140, 60)],
    "dark green": [(20, 85, 45)],
    "lime": [(170, 210, 70)],
    "teal": [(30, 150, 150), (50, 180, 170)],
    "light blue": [(130, 200, 245), (170, 220, 250)],
    "blue": [(50, 120, 220), (30, 90, 200), (60, 150, 230)],
    "dark blue": [(25, 45, 110)],
    "purple": [(140, 80, 190), (110, 60, 160)],
    "pink": [(245, 130, 180), (250, 170, 200), (230, 80, 150)],
    "brown": [(140, 90, 60), (110, 70, 45), (165, 110, 70)],
    "tan": [(210, 165, 120)],
}


def main_colours(picture: np.ndarray) -> list[str]:
    """Names of the colours that fill at least an eighth of the drawn area, the largest first, at most three."""
    names = [n for n, shades in COLOURS.items() for _ in shades]
    table = np.array([s for shades in COLOURS.values() for s in shades], np.float32)
    drawn = picture[picture[..., 3] > 128][:, :3].astype(np.float32)
    if not len(drawn):
        return []
    # "redmean": a cheap distance close to perceived difference
    mean = (drawn[:, None, 0] + table[None, :, 0]) / 2
    d = (drawn[:, None] - table[None]) ** 2
    distance = (2 + mean / 256) * d[..., 0] + 4 * d[..., 1] + (2 + (255 - mean) / 256) * d[..., 2]
    share: dict[str, float] = defaultdict(float)
    for index, count in zip(*np.unique(distance.argmin(1), return_counts=True), strict=True):
        share[names[index]] += count / len(drawn)
    return [n for n, s in sorted(share.items(), key=lambda x: -x[1]) if s >= 0.125][:3]


def turn_hue(picture: np.ndarray, angle: float) -> np.ndarray:
    """Rotate the hue of a straight RGBA picture (H, W, 4) uint8 by `angle` in turns, grey kept, alpha untouched.

    A rotation about the grey axis of the RGB cube (luma changes a little, which is what another colour does too).
    """
    c, s = np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)
    third, root = (1 - c) / 3, s / np.sqrt(3)
    matrix = np.array([[c + third, third - root, third + root], [third + root, c + third, third - root],
                       [third - root, third + root, c + third]])  # fmt: skip
    turned = picture.copy()
    turned[..., :3] = np.clip(np.round(picture[..., :3] @ matrix.T), 0, 255)
    turned[picture[..., 3] == 0] = 0
    return turned

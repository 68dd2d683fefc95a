"""Does a picture follow its hint? What a control sees of the picture made, against the hint that it was given.

lineart      F1 of lines: precision = share of the output's line pixels with one of the sketch's within 2 pixels, recall the
             reverse; F1 their harmonic mean
silhouette   |A ∩ B| / |A ∪ B| of what is there by more than half
others       Pearson's correlation of the two hints, all channels together
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unfog.modalities.image.controls import CONTROLS

TOLERANCE = 2  # pixels, in rows and columns


def line_f1(made: Tensor, sketch: Tensor, tolerance: int = TOLERANCE) -> NDArray[np.float64]:
    """F1 of lines (B, 1, H, W), those above 0.5; 1 where neither has any, 0 where one has none: (B,)."""
    a, b = (made > 0.5).float(), (sketch > 0.5).float()
    size = 2 * tolerance + 1
    near_a, near_b = (F.max_pool2d(x, size, 1, tolerance) for x in (a, b))
    count_a, count_b = a.sum((1, 2, 3)), b.sum((1, 2, 3))
    precision = (a * near_b).sum((1, 2, 3)) / count_a.clamp(min=1)
    recall = (b * near_a).sum((1, 2, 3)) / count_b.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    return torch.where(count_a + count_b == 0, 1.0, f1).double().numpy()


def overlap(made: Tensor, hint: Tensor) -> NDArray[np.float64]:
    """Intersection over union of what is above 0.5 in (B, 1, H, W); 1 where there is nothing in both: (B,)."""
    a, b = made > 0.5, hint > 0.5
    whole = (a | b).sum((1, 2, 3))
    return torch.where(whole > 0, (a & b).sum((1, 2, 3)) / whole.clamp(min=1), 1.0).double().numpy()


def correlation(made: Tensor, hint: Tensor) -> NDArray[np.float64]:
    """Pearson's correlation over all channels and pixels of (B, C, H, W); 0 where one is flat: (B,)."""
    a, b = (x.double().flatten(1) - x.double().flatten(1).mean(1, keepdim=True) for x in (made, hint))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9)).numpy()


Measure = Callable[[Tensor, Tensor], NDArray[np.float64]]
AGREEMENTS: dict[str, tuple[str, Measure]] = {
    "lineart": ("F1 of lines within 2 px", line_f1),
    "silhouette": ("intersection over union", overlap),
}


def agreement(kind: str, pictures: NDArray[np.uint8], hints: Tensor) -> NDArray[np.float64]:
    """How far pictures (B, H, W, 4) follow hints (B, c, H, W) of a control, 1 = wholly: (B,)."""
    measure = AGREEMENTS.get(kind, ("", correlation))[1]
    return measure(CONTROLS[kind].draw(torch.from_numpy(np.ascontiguousarray(pictures))), hints)

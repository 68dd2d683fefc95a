"""How near samples come to the training data, for any kind: the least distance in model space, beside that of unseen items.

    d(x) = min_i sqrt(mean_j (x_j − known_ij)²)

A sample is called a copy where it is nearer than all but a small share of real unseen items are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 512


def nearest(x: Tensor, known: Tensor, itself: bool = False) -> NDArray[np.float64]:
    """(B,) root mean square distance of x (B, *D) to the nearest of known (N, *D); itself: item i is not held against known i."""
    x, known = x.flatten(1).double(), known.flatten(1).double()
    found = []
    for first in range(0, len(x), BLOCK):
        apart = torch.cdist(x[first : first + BLOCK], known)
        if itself:
            rows = torch.arange(len(apart))
            apart[rows, first + rows] = torch.inf
        found.append(apart.min(1).values)
    return (torch.cat(found) / max(x.shape[1], 1) ** 0.5).numpy()


@dataclass(frozen=True)
class Near:
    """Training items known (N, *D), and the distances of real unseen items to them."""

    known: Tensor
    real: NDArray[np.float64]
    quantile: float

    @classmethod
    def of(cls, known: Tensor, unseen: Tensor | None, quantile: float = 0.05) -> Near:
        """unseen: held-out items; None: known items, each held against all others."""
        real = nearest(known[:2048], known, itself=True) if unseen is None else nearest(unseen, known)
        return cls(known, real, quantile)

    @property
    def threshold(self) -> float:
        return float(np.quantile(self.real, self.quantile))

    def copied(self, made: Tensor) -> NDArray[np.bool_]:
        """Which samples are nearer than all but the quantile of unseen items."""
        found: NDArray[np.bool_] = nearest(made, self.known) < self.threshold
        return found

    def __call__(self, made: Tensor) -> dict[str, float]:
        """copies, nearest, the same of real unseen items, and the number of samples."""
        found = nearest(made, self.known)
        copies, real = (float((apart < self.threshold).mean()) for apart in (found, self.real))
        return {"samples": len(found), "copies": copies, "nearest": float(np.median(found)), "copies_real": real,
                "nearest_real": float(np.median(self.real))}  # fmt: skip

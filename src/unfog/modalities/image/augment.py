"""Augmentation that does not leak: pictures are moved, and the network is told how, so that samples are like the data.

Each picture is mirrored, scaled, turned and moved, each with probability p. What was done is a condition of six numbers, all
zero for a picture as it was found, which is what sampling asks for.
Source: Karras et al. 2022 (EDM), arXiv:2206.00364, appendix F.2 and table 6 (its geometric part, with smaller steps).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 6  # mirrored, log2 of scale, cos − 1 and sin of the turn, moved across and down
SCALE, TURN, MOVE = 0.2, math.pi / 12, 0.08  # deviations: of log2, in radians, in picture widths


def drawn(rng: np.random.Generator, count: int, p: float) -> np.ndarray:
    """How to change each of `count` pictures: (count, 5) mirrored, log2 of scale, turn, across, down; zeros change nothing."""
    done = rng.random((count, 4)) < p
    z = rng.standard_normal((count, 4))
    mirrored = done[:, :1] & (z[:, :1] > 0)  # half of those chosen, as a mirror has two states
    amount = np.concatenate([SCALE * z[:, :1], TURN * z[:, 1:2], MOVE * z[:, 2:]], axis=1)
    return np.concatenate([mirrored, np.where(done[:, [1, 2, 3, 3]], amount, 0.0)], axis=1)


def labels(changes: np.ndarray) -> Tensor:
    """The condition that tells the network of them, (B, NUMBERS) float32."""
    mirrored, scale, turn, across, down = changes.T
    columns = [mirrored, scale / SCALE, (np.cos(turn) - 1) / TURN**2, np.sin(turn) / TURN, across / MOVE, down / MOVE]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def moved(x0: Tensor, changes: np.ndarray, empty: Tensor) -> Tensor:
    """x0 (B, C, H, W) changed as drawn; what comes in from outside is `empty` (C,). Pictures not changed keep their bits."""
    which = np.flatnonzero(np.abs(changes).sum(axis=1))
    if not len(which):
        return x0
    mirrored, scale, turn, across, down = torch.from_numpy(changes[which]).T
    # where each pixel of the new picture lies in the old one: undo the move, the turn, the scale, then the mirror
    cos, sin, size = turn.cos(), turn.sin(), torch.exp2(-scale)
    side = torch.where(mirrored > 0, -1.0, 1.0)
    left, right = -2 * across, -2 * down  # grid_sample's widths are from −1 to 1
    rows = [[side * size * cos, side * size * sin, side * size * (cos * left + sin * right)],
            [-size * sin, size * cos, size * (-sin * left + cos * right)]]  # fmt: skip
    theta = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1).to(x0.device, x0.dtype)
    index, pad = torch.from_numpy(which).to(x0.device), empty.to(x0.device, x0.dtype)[:, None, None]
    few = x0[index] - pad
    grid = F.affine_grid(theta, list(few.shape), align_corners=False)
    out = x0.clone()
    out[index] = F.grid_sample(few, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + pad
    return out

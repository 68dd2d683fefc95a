"""Rotary positions on a grid: a query and a key turn by angles of their place, so that their product knows the distance.

    (R_p q)·(R_r k) = q·R_(r−p) k,   R_p turns channel pair j by (row or column of p)·ω_j

The first half of the channel pairs turns with the row, the second with the column.
Sources: Su et al. 2021, arXiv:2104.09864; Heo et al. 2024, arXiv:2403.13298 (axial).
"""

from __future__ import annotations

import torch
from torch import Tensor

SLOWEST = 0.2  # radians over one side; what base 100 of Heo et al. gives on their 14 to 16 patches


def grid_angles(rows: int, columns: int, dim: int, side: int, device: torch.device | None = None) -> Tensor:
    """Angles (rows·columns, dim/2) float32 of the places of a grid, row by row, the origin in its centre.

    Args: `dim` channels of a head, divisible by 4; `side` places along one side in training. Frequencies fall
    geometrically from 1 radian a place to SLOWEST/side, so that the slow ones hardly turn and carry content.
    """
    rate = torch.logspace(0.0, 1.0, dim // 4, base=SLOWEST / side, device=device)
    y = torch.arange(rows, device=device) - (rows - 1) / 2
    x = torch.arange(columns, device=device) - (columns - 1) / 2
    vertical = (y[:, None] * rate)[:, None].expand(rows, columns, -1)
    horizontal = (x[:, None] * rate)[None].expand(rows, columns, -1)
    return torch.cat([vertical, horizontal], dim=-1).flatten(0, 1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channel pairs (j, j + D/2) of x (B, H, L, D) by angles (L, D/2), in float32."""
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)

"""The noise levels of a grid as numbers, and the one exact first-order step between two of them.

    x_j = A·x_i + B·D + C·z      r = (σ_j/α_j)/(σ_i/α_i)
    A = (σ_j/σ_i)·√(1 − η²(1 − r²)),   B = α_j − α_i·A,   C = η·σ_j·√(1 − r²)

It needs no α_i > 0 and no σ_j > 0, so it starts from pure noise and lands on clean data without a special
case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unfog.diffusion.grids import check_grid
from unfog.diffusion.plan import Row
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError


@dataclass(frozen=True)
class Nodes:
    """t, α, σ and half log-SNR (±inf at the ends) along a grid, each (steps + 1,) float64."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    half: np.ndarray

    @staticmethod
    def of(schedule: Schedule, grid: np.ndarray) -> Nodes:
        """The nodes of a strictly falling grid, or, for an inversion, of a strictly rising one that starts above σ = 0."""
        grid = np.asarray(grid, dtype=np.float64)
        rising = grid.ndim == 1 and len(grid) > 1 and bool(grid[-1] > grid[0])
        t = check_grid(grid[::-1])[::-1].copy() if rising else check_grid(grid)
        nodes = Nodes(t, schedule.alpha(t), schedule.sigma(t), 0.5 * schedule.logsnr(t))
        climbs = np.diff(nodes.half) < 0.0 if rising else np.diff(nodes.half) > 0.0
        if not climbs.all() or not (nodes.sigma[:-1] > 0.0).all():
            raise UserError("grid: two neighbouring times have the same noise level; use fewer steps or another grid")
        return nodes

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    def ratio(self, i: int) -> float:
        """r = (σ/α at i + 1)/(σ/α at i): in [0, 1), or above 1 (∞ at pure noise) on a rising grid."""
        if self.alpha[i + 1] == 0.0:
            return math.inf
        return float(self.sigma[i + 1] * self.alpha[i] / (self.alpha[i + 1] * self.sigma[i]))

    def first_order(self, i: int, eta: float = 0.0) -> tuple[float, float, float]:
        """A, B, C of the step from node i to i + 1: DDIM with this eta; 0 is Euler, 1 is ancestral sampling.

        Source: Song et al. 2021 (DDIM), arXiv:2010.02502, eq. 12 and 16, for any α and σ.
        """
        loss = 1.0 - self.ratio(i) ** 2 if eta else 0.0
        if loss < 0.0:
            raise UserError("grid: it rises (an inversion), so no noise can be drawn; set eta to 0")
        keep = float(self.sigma[i + 1] / self.sigma[i]) * math.sqrt(1.0 - eta * eta * loss)
        new = eta * float(self.sigma[i + 1]) * math.sqrt(loss)
        return keep, float(self.alpha[i + 1] - self.alpha[i] * keep), new


def raised(row: Row, schedule: Schedule, low: float, high: float, noise: float = 1.0) -> Row:
    """The row that landed at time `low`, landing with fresh noise at time `high` instead: what it drew counts on."""
    lift = float(schedule.alpha(high) / schedule.alpha(low))
    spread = float(schedule.sigma(high)) ** 2 - (lift * float(schedule.sigma(low))) ** 2
    fresh = math.hypot(lift * row.c, noise * math.sqrt(max(spread, 0.0)))  # two independent draws are one
    return row._replace(a=lift * row.a, b=[lift * w for w in row.b], c=fresh)

"""Restart: Heun, and between two noise levels it goes up again by one large draw of noise, `repeats` times.

    … → low;   repeats × [ x ← (α_high/α_low)·x + √(σ_high² − (α_high·σ_low/α_low)²)·z at high;  Heun back to low ]; → …

order 2 between the draws, 1 in law · 2 NFE a step · stochastic · also known as: EDM restart
· not to be confused with: EDM's churn (a little noise at every step), RePaint's resampling
· source: Xu et al. 2023, arXiv:2306.14878, Alg. 1. low and high are levels of σ/α, each moved to the nearest node of the
grid, and the way back walks the grid's own nodes. Where the grid has none between, nothing is repeated.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.checks import check_whole
from unfog.diffusion.nodes import Nodes, raised
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.samplers import heun
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError


def plan(
    schedule: Schedule, grid: np.ndarray, low: float = 0.06, high: float = 0.6, repeats: int = 1, s_noise: float = 1.0
) -> Plan:
    """0 < low < high in σ/α; repeats at least 0; s_noise at least 0 scales the draws."""
    if not (0.0 < low < high < math.inf and s_noise >= 0.0):
        raise UserError(f"sampler 'restart': need 0 < low < high and s_noise >= 0, got {low}, {high}, {s_noise}")
    check_whole("sampler 'restart'", "repeats", repeats, 0)
    nodes = Nodes.of(schedule, grid)
    half = np.where(np.isfinite(nodes.half), nodes.half, np.copysign(1e9, nodes.half))
    top, bottom = (int(np.argmin(np.abs(half + math.log(level)))) for level in (high, low))
    rows: list[Row] = []
    for i in range(nodes.steps):
        rows += heun.step(nodes, i)
        if i + 1 == bottom and top < bottom and nodes.sigma[bottom] > 0.0 and nodes.alpha[top] > 0.0:
            for _ in range(repeats):
                rows[-1] = raised(rows[-1], schedule, float(nodes.t[bottom]), float(nodes.t[top]), s_noise)
                for back in range(top, bottom):
                    rows += heun.step(nodes, back)
    return Plan.of("restart", rows, float(nodes.t[-1]))

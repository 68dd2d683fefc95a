"""Heun: an Euler step, corrected by the slope found at its end; with churn, noise before each step.

    y_j = y_i + (σ̂_j − σ̂_i)/2·[(y_i − D_i)/σ̂_i + (y′_j − D′_j)/σ̂_j],   y = x/α, σ̂ = σ/α, y′ the Euler step
    churn: σ̂_i is first raised to (1 + γ)·σ̂_i by noise of variance s²·(σ̂_raised² − σ̂_i²), γ = min(churn/steps, √2 − 1)

order 2 · 2 NFE a step, 1 for the step that lands on clean data (2n − 1) · stochastic if churn > 0
· also known as: EDM's sampler, k-Heun; flow Heun · not to be confused with: DPM-Solver++'s "heun" kind
· source: Karras et al. 2022, arXiv:2206.00364, Alg. 1 and 2. Deviation: a step with r = σ̂_j/σ̂_i < 0.01 (from pure
noise r = 0) takes the trapezoid in α/σ, where d(x/σ)/d(α/σ) = D: the paper's weights grow as 1/r. Both are
second order. Nothing is raised above the schedule's own noise, so a start at t = 1 is not churned.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.diffusion.nodes import Nodes, raised
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError

_SMALL_RATIO = 0.01


def step(nodes: Nodes, i: int) -> list[Row]:
    """The rows of one step: two, or one to σ = 0."""
    a, b, _ = nodes.first_order(i)
    if nodes.sigma[i + 1] == 0.0:
        return [Row(float(nodes.t[i]), a, (b,))]
    r = nodes.ratio(i)
    # The weight on the new slope's D′; the two D share what Euler gives to one.
    share = 0.5 if r < _SMALL_RATIO else 0.5 / r
    return [Row(float(nodes.t[i]), A=a, B=(b,)), Row(float(nodes.t[i + 1]), a, (share * b, (1.0 - share) * b))]


def plan(
    schedule: Schedule, grid: np.ndarray, churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Plan:
    """A Heun plan. churn at least 0: noise over all steps, where s_min ≤ σ/α ≤ s_max; s_noise at least 0 scales it."""
    if not (churn >= 0.0 and 0.0 <= s_min <= s_max and s_noise >= 0.0):
        raise UserError("sampler 'heun': need churn >= 0, 0 <= s_min <= s_max and s_noise >= 0")
    nodes = Nodes.of(schedule, grid)
    gamma = min(churn / nodes.steps, math.sqrt(2.0) - 1.0)
    rows: list[Row] = []
    for i in range(nodes.steps):
        here = nodes
        level = math.exp(-nodes.half[i]) if math.isfinite(nodes.half[i]) else math.inf
        higher = nodes.half[i] - math.log1p(gamma)
        if rows and gamma and s_min <= level <= s_max and 2.0 * higher > schedule.logsnr(1.0):
            top = float(schedule.time(2.0 * higher))
            rows[-1] = raised(rows[-1], schedule, float(nodes.t[i]), top, s_noise)
            here = Nodes.of(schedule, np.array([top, nodes.t[i + 1]]))
        rows += step(here, 0 if here is not nodes else i)
    return Plan.of("heun", rows, float(nodes.t[-1]))

"""Heun: an Euler step, corrected by the slope found at its end.

    y_j = y_i + (σ̂_j − σ̂_i)/2·[(y_i − D_i)/σ̂_i + (y′_j − D′_j)/σ̂_j],   y = x/α, σ̂ = σ/α, y′ the Euler step

order 2 · 2 NFE a step, 1 for the step that lands on clean data (2n − 1) · deterministic
· also known as: EDM's deterministic sampler, k-Heun · not to be confused with: DPM-Solver++'s "heun" kind
· source: Karras et al. 2022, arXiv:2206.00364, Alg. 1. Deviation: a step with r = σ̂_j/σ̂_i < 0.01 (from pure
noise r = 0) takes the trapezoid in α/σ, where d(x/σ)/d(α/σ) = D: the paper's weights grow as 1/r. Both are
second order.
"""

from __future__ import annotations

import numpy as np

from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule

_SMALL_RATIO = 0.01


def plan(schedule: Schedule, grid: np.ndarray) -> Plan:
    """A Heun plan: two rows a step, one for a last step to σ = 0."""
    nodes = Nodes.of(schedule, grid)
    rows = []
    for i in range(nodes.steps):
        a, b, _ = nodes.first_order(i)
        if nodes.sigma[i + 1] == 0.0:
            rows.append(Row(float(nodes.t[i]), a, (b,)))
            continue
        r = nodes.ratio(i)
        # The weight on the new slope's D′; the two D share what Euler gives to one.
        share = 0.5 if r < _SMALL_RATIO else 0.5 / r
        rows.append(Row(float(nodes.t[i]), A=a, B=(b,)))
        rows.append(Row(float(nodes.t[i + 1]), a, (share * b, (1.0 - share) * b)))
    return Plan.of("heun", rows, float(nodes.t[-1]))

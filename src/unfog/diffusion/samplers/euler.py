"""Euler: one explicit Euler step of dy/dσ̂ = (y − D)/σ̂ with y = x/α, σ̂ = σ/α.

    x_j = (σ_j/σ_i)·x_i + (α_j − α_i·σ_j/σ_i)·D

In exact arithmetic this is DDIM with eta = 0, and Euler's method on the flow-matching ODE dx/dt = (x − D)/t.
order 1 · 1 NFE a step · deterministic · also known as: flow Euler, rectified-flow Euler, k-Euler
· not to be confused with: Euler ancestral (that is "ddpm")
· source: Karras et al. 2022, arXiv:2206.00364, Alg. 1 without its correction.
"""

from __future__ import annotations

import numpy as np

from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def plan(schedule: Schedule, grid: np.ndarray) -> Plan:
    """An Euler plan."""
    nodes = Nodes.of(schedule, grid)
    rows = []
    for i in range(nodes.steps):
        a, b, _ = nodes.first_order(i)
        rows.append(Row(float(nodes.t[i]), a, (b,)))
    return Plan.of("euler", rows, float(nodes.t[-1]))

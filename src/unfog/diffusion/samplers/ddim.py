"""DDIM: the probability-flow ODE at first order, or with fresh noise for eta > 0.

    x_j = α_j·D + √(σ_j² − C²)·ε̂ + C·z,   ε̂ = (x_i − α_i·D)/σ_i,   C = η·σ_j·√(1 − r²)

order 1 · 1 NFE a step · stochastic only if eta > 0 · also known as: DPM-Solver++(1), UniP-1; eta = 1 is DDPM
· not to be confused with: a shorter DDPM
· source: Song et al. 2021, arXiv:2010.02502, eq. 12. Deviation: the step always goes to the next time of the
grid.
"""

from __future__ import annotations

import numpy as np

from unfog.checks import check_eta
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def plan(schedule: Schedule, grid: np.ndarray, eta: float = 0.0) -> Plan:
    """A DDIM plan; eta in [0, 1] is the share of fresh noise (0 none, 1 ancestral)."""
    check_eta("ddim", eta)
    nodes = Nodes.of(schedule, grid)
    rows = []
    for i in range(nodes.steps):
        a, b, c = nodes.first_order(i, eta)
        rows.append(Row(float(nodes.t[i]), a, (b,), c))
    return Plan.of("ddim", rows, float(nodes.t[-1]))

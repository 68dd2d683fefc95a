"""DDPM: ancestral sampling, the exact posterior q(x_j | x_i, x0 = D) of every step.

    x_j ~ N((σ_j/σ_i)·r·x_i + (α_j − α_i·r·σ_j/σ_i)·D,  σ_j²·(1 − r²)),   r = (σ_j/α_j)/(σ_i/α_i)

order 1 · 1 NFE a step · stochastic · also known as: DDIM with eta = 1, Euler ancestral, SDE-DPM-Solver++(1)
· not to be confused with: DDPM with the larger variance β (here: the posterior variance β̃)
· source: Ho et al. 2020, arXiv:2006.11239, Alg. 2 and eq. 7, for any α, σ and any grid.
"""

from __future__ import annotations

import numpy as np

from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def plan(schedule: Schedule, grid: np.ndarray) -> Plan:
    """An ancestral plan; the step that lands on clean data draws no noise."""
    nodes = Nodes.of(schedule, grid)
    rows = []
    for i in range(nodes.steps):
        a, b, c = nodes.first_order(i, eta=1.0)
        rows.append(Row(float(nodes.t[i]), a, (b,), c))
    return Plan.of("ddpm", rows, float(nodes.t[-1]))

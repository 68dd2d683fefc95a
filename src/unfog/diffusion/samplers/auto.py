"""Auto: grid and weights by the number of evaluations alone, learned once over many targets.

    x_j = (σ_j/σ_i)·x_i + (α_j − α_i·σ_j/σ_i)·Σ_k w_k·D_{i−k},   Σ_k w_k = 1

order 3 (exponential Adams) on any grid but its own; on grid "auto" with as many steps as tuned.json has, the learned weights ·
1 NFE a step · deterministic · also known as: — · not to be confused with: a sampler fitted to one model (fit.py)
· source: tuned.json, made by tools/tune_auto.py. Only log-SNR enters, so one table serves every schedule.
"""

from __future__ import annotations

import numpy as np

from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.samplers import adams
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.tuned import TUNED, Tuned


def plan(schedule: Schedule, grid: np.ndarray) -> Plan:
    """The default: few steps, any schedule and data of standard deviation near 1."""
    nodes = Nodes.of(schedule, grid)
    entry = next(
        (table[nodes.steps] for table in TUNED.values() if nodes.steps in table and _fits(nodes, table[nodes.steps])), None
    )
    if entry is None or nodes.sigma[-1] > 0.0:
        return adams.adams("auto", schedule, grid, 3, "x0", "logsnr")
    rows = []
    for i in range(nodes.steps):
        a, b, _ = nodes.first_order(i)
        rows.append(Row(float(nodes.t[i]), a, [b * weight for weight in (1.0 - sum(entry.weights[i]), *entry.weights[i])]))
    return Plan.of("auto", rows, float(nodes.t[-1]))


def _fits(nodes: Nodes, entry: Tuned) -> bool:
    return np.allclose(-nodes.half[1:-1], np.log(entry.levels), rtol=0.0, atol=1e-4)

"""RePaint: ancestral steps, each `jump` of them taken back by forward noise and walked again, `repeats` times.

    repeats × [ jump × x ← ancestral step;  x ← (α_i/α_j)·x + √(σ_i² − (α_i·σ_j/α_j)²)·z ],  then once more without the rest

order 1 in law · 1 + repeats NFE a step, 1 in the part that lands on clean data · stochastic · also known as: resampling,
time travel · not to be confused with: restart (one pair of levels), DDPM (repeats 0)
· source: Lugmayr et al. 2022, arXiv:2201.09865, Alg. 1. For infill: the unknown part sees what is known again and again,
at each noise level, until the two fit. For an unguided model it changes nothing but the cost.
"""

from __future__ import annotations

import numpy as np

from unfog.checks import check_whole
from unfog.diffusion.nodes import Nodes, raised
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def plan(schedule: Schedule, grid: np.ndarray, repeats: int = 4, jump: int = 1) -> Plan:
    """repeats at least 0; jump at least 1, in grid steps."""
    check_whole("sampler 'repaint'", "repeats", repeats, 0)
    check_whole("sampler 'repaint'", "jump", jump, 1)
    nodes = Nodes.of(schedule, grid)
    rows: list[Row] = []
    for first in range(0, nodes.steps, jump):
        last = min(first + jump, nodes.steps)
        again = repeats if nodes.sigma[last] > 0.0 else 0
        for turn in range(again + 1):
            for i in range(first, last):
                a, b, c = nodes.first_order(i, eta=1.0)
                rows.append(Row(float(nodes.t[i]), a, (b,), c))
            if turn < again:
                rows[-1] = raised(rows[-1], schedule, float(nodes.t[last]), float(nodes.t[first]))
    return Plan.of("repaint", rows, float(nodes.t[-1]))

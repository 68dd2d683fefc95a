"""DPM-Solver++ SDE: the midpoint method with Langevin noise, both draws on one path of the SDE.

    middle  u = A·x_i + M₀·D_i + C·z₁             half way in λ
    end     x_j = A′·x_i + M₀′·D(u) + A″C·z₁ + C″·z₂      A′ = A″·A, so z₁ is carried as the SDE carries it

order 1 in law (eta 0: 2) · 2 NFE a step, 1 for a step from α = 0 or to σ = 0 · stochastic · also known as: DPM++ SDE
· not to be confused with: the ancestral dpmpp_2s_a, which draws once a step
· source: Lu et al. 2022, arXiv:2211.01095, Alg. 1, with the SDE's integrals (multistep.py, eta); k-diffusion's
sample_dpmpp_sde. Deviation: others take both draws from a Brownian path in σ, which correlates u with the end a little
differently; each draw's variance is the same.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.checks import check_eta
from unfog.diffusion.multistep import keep, moment
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def plan(schedule: Schedule, grid: np.ndarray, eta: float = 1.0) -> Plan:
    """eta in [0, 1] scales the noise; 0 is 2S."""
    check_eta("dpmpp_sde", eta)
    nodes = Nodes.of(schedule, grid)
    rows: list[Row] = []
    for i in range(nodes.steps):
        begin, end = float(nodes.t[i]), float(nodes.t[i + 1])
        if not (math.isfinite(nodes.half[i]) and math.isfinite(nodes.half[i + 1])):
            kept, only, drawn = nodes.first_order(i, 1.0 if eta else 0.0)
            rows.append(Row(begin, kept, (only,), drawn))
            continue
        middle = float(schedule.time(nodes.half[i] + nodes.half[i + 1]))
        part = Nodes.of(schedule, np.array([begin, middle, end]))
        (there, early), (kept, _), (_, late) = (keep(part, k, "x0", eta, j) for k, j in ((0, 1), (0, 2), (1, 2)))
        rows.append(Row(begin, c=early / there, A=there, B=(moment(part, 0, 0, "x0", eta, 1),)))
        rows.append(Row(middle, kept, (moment(part, 0, 0, "x0", eta, 2),), late))
    return Plan.of("dpmpp_sde", rows, float(nodes.t[-1]))

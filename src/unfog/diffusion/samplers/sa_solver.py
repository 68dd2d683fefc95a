"""SA-Solver: stochastic Adams predictor and corrector; one draw of noise serves both.

    predict  x_j = A·x̄_i + Σ_k W_k·D_{i−k} + C·z,   A = (σ_j/σ_i)·e^{−τ²h},  C = σ_j·√(1 − e^{−2τ²h})
    correct  x̄_j = A·x̄_i + W′·D_j + Σ_k W′_k·D_{i−k} + C·z        W, W′: multistep.py with eta = τ²
    so       x̄_j = x_j + W′·D_j + Σ_k (W′_k − W_k)·D_{i−k}, which enters the next prediction, as in UniPC

order 1 in law at τ > 0 (τ = 0: the larger of `order` and `corrector`, at most `order` + 1) · 1 NFE a step · stochastic
· also known as: SASolver; τ = 0: UniPC with exact weights · not to be confused with: SDE-DPM++ (no corrector)
· source: Xue et al. 2023, arXiv:2309.05019, Alg. 1. τ is constant. Others change the order-2 predictor's weights a
little; here the integrals are exact. A step from α = 0 is deterministic, one to σ = 0 is D.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.checks import check_whole
from unfog.diffusion.multistep import added, keep, weights
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError


def plan(schedule: Schedule, grid: np.ndarray, tau: float = 1.0, order: int = 2, corrector: int = 2) -> Plan:
    """tau in [0, 2]: noise; order 1 to 6: results that the predictor uses; corrector 0 (none) to 6: the
    corrector, the new one among them.
    """
    if not 0.0 <= tau <= 2.0:
        raise UserError(f"sampler 'sa_solver': tau must lie in [0, 2], got {tau}")
    check_whole("sampler 'sa_solver'", "order", order, 1, 6)
    check_whole("sampler 'sa_solver'", "corrector", corrector, 0, 6)
    nodes, eta = Nodes.of(schedule, grid), tau * tau
    rows: list[Row] = []
    known: list[int] = []
    change: list[float] = []  # x̄ − x at the node, on the results, newest first
    for i in range(nodes.steps):
        time = float(nodes.t[i])
        if not (math.isfinite(nodes.half[i]) and math.isfinite(nodes.half[i + 1])):
            scale, only, _ = nodes.first_order(i)
            rows.append(Row(time, scale, added([only], change, scale)))
            known, change = [], []
            continue
        known = [i, *known][: max(order, corrector)]
        scale, new = keep(nodes, i, "x0", eta)
        look = weights(nodes, i, known[:order], "x0", eta=eta)
        rows.append(Row(time, scale, added(look, change, scale), new))
        if corrector:
            better = weights(nodes, i, [i + 1, *known][:corrector], "x0", eta=eta)
            change = added(better, [0.0, *look], -1.0)
    return Plan.of("sa_solver", rows, float(nodes.t[-1]))

"""Single-step DPM-Solvers: evaluations between two nodes instead of a memory of earlier ones.

    s = λ_i + r·h        u = A_s·x_i + M₀(s)·H_i
    order 2   x_j = A·x_i + M₀·[(1 − 1/(2r))·H_i + 1/(2r)·H_s]                         r = ½
    order 3   u₂ from H_i, H_s (r = ⅓);   x_j = A·x_i + M₀·H_i + M₁·(H_{s₂} − H_i)/(r₂h)     r₂ = ⅔
    M_m = ∫ κ(u)·u^m/m! du,  H = D or ε (multistep.py)

order `order` at eta 0, else 1 in law · `order` NFE a step, 1 for a step from α = 0 or to σ = 0
· stochastic if eta > 0 · also known as: dpm_2: KDPM2, DPM-Solver-2; dpm_3: DPM-Solver-3; dpmpp_2s, dpmpp_3s: DPM++ 2S,
3S; the _a kinds: ancestral, eta 1 · not to be confused with: the multistep 2M, 3M
· source: Lu et al. 2022, arXiv:2206.00927, Alg. 1 and 2; 2211.01095, Alg. 1; k-diffusion (ancestral kinds).
With eta the step goes to σ_down/α = (σ_j/α_j)·√(1 − η²(1 − r_ij²)), then noise lifts it to node j.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.checks import check_eta
from unfog.diffusion.multistep import keep, moment, slope, weights, width
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def _plan(name: str, order: int, form: str, schedule: Schedule, grid: np.ndarray, eta: float) -> Plan:
    check_eta(name, eta)
    nodes = Nodes.of(schedule, grid)
    rows: list[Row] = []
    for i in range(nodes.steps):
        time = float(nodes.t[i])
        if not (math.isfinite(nodes.half[i]) and math.isfinite(nodes.half[i + 1])):
            kept, only, drawn = nodes.first_order(i, eta)
            rows.append(Row(time, kept, (only,), drawn))
            continue
        down = 2.0 * nodes.half[i + 1] - math.log1p(-eta * eta * (1.0 - nodes.ratio(i) ** 2))
        inside = [nodes.half[i] + (down / 2.0 - nodes.half[i]) * k / order for k in range(1, order)]
        times = [time, *(float(schedule.time(2.0 * half)) for half in inside), float(schedule.time(down))]
        part = Nodes.of(schedule, np.array(times if eta else [*times[:-1], nodes.t[i + 1]]))
        lift = float(nodes.alpha[i + 1] / part.alpha[-1])
        spread = float(nodes.sigma[i + 1]) ** 2 - (lift * float(part.sigma[-1])) ** 2
        stages = _stages(part, order, form)
        *looks, (a, b) = stages
        for k, (scale, look) in enumerate(looks):
            p, q = slope(part, k, form)
            rows.append(Row(times[k], A=scale, B=look, p=p, q=q))
        p, q = slope(part, order - 1, form)
        rows.append(Row(times[order - 1], lift * a, [lift * w for w in b], math.sqrt(max(spread, 0.0)) if eta else 0.0, p=p, q=q))
    return Plan.of(name, rows, float(nodes.t[-1]))


def _stages(part: Nodes, order: int, form: str) -> list[tuple[float, list[float]]]:
    """What is kept of x_i, and the weights on the results so far (newest first), for each stage and for the end."""
    out = [(keep(part, 0, form, j=1)[0], [moment(part, 0, 0, form, j=1)])]
    if order == 3:
        out.append((keep(part, 0, form, j=2)[0], weights(part, 0, [1, 0], form, j=2)))
    first = moment(part, 0, 0, form, j=order)
    reach = width(part, 0, order - 1)
    second = moment(part, 0, 1, form, j=order) if order == 3 else 0.5 * width(part, 0, order) * first
    last = [second / reach, *[0.0] * (order - 2), first - second / reach]
    return [*out, (keep(part, 0, form, j=order)[0], last)]


def dpm_2(schedule: Schedule, grid: np.ndarray, eta: float = 0.0) -> Plan:
    """DPM-Solver-2 in ε; eta in [0, 1]."""
    return _plan("dpm_2", 2, "eps", schedule, grid, eta)


def dpm_2_a(schedule: Schedule, grid: np.ndarray, eta: float = 1.0) -> Plan:
    """The same, ancestral."""
    return _plan("dpm_2_a", 2, "eps", schedule, grid, eta)


def dpm_3(schedule: Schedule, grid: np.ndarray) -> Plan:
    """DPM-Solver-3 in ε."""
    return _plan("dpm_3", 3, "eps", schedule, grid, 0.0)


def dpmpp_2s(schedule: Schedule, grid: np.ndarray, eta: float = 0.0) -> Plan:
    """DPM-Solver++ 2S; eta in [0, 1]."""
    return _plan("dpmpp_2s", 2, "x0", schedule, grid, eta)


def dpmpp_2s_a(schedule: Schedule, grid: np.ndarray, eta: float = 1.0) -> Plan:
    """The same, ancestral."""
    return _plan("dpmpp_2s_a", 2, "x0", schedule, grid, eta)


def dpmpp_3s(schedule: Schedule, grid: np.ndarray) -> Plan:
    """DPM-Solver++ 3S."""
    return _plan("dpmpp_3s", 3, "x0", schedule, grid, 0.0)

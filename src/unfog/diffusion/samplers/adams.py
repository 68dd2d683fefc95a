"""Adams–Bashforth: a polynomial through the last `order` slopes, integrated exactly.

    x_j = (g_j/g_i)·x_i + Σ_k W_k·H_{i−k},   W_k = g_j·∫ L_k dτ        (multistep.py: forms and variables)

order `order` (ipndm: 2, as textbook coefficients ignore uneven steps) · 1 NFE a step · deterministic
· also known as: exp_adams: exponential Adams, x0 and λ: DPM++ 2M "heun" kind at order 2; deis: tAB-DEIS, log-ρ:
eps and λ; lms: eps and σ/α, k-diffusion's LMS; ipndm: eps, constant coefficients, PLMS; flow_adams: velocity and
flow time · not to be confused with: PNDM's Runge–Kutta start
· source: Zhang & Chen 2022 (DEIS), arXiv:2204.13902, eq. 15; Liu et al. 2022 (PNDM), arXiv:2202.09778, eq. 12.
The first steps have as many slopes as there are. Where a variable is infinite (λ at both ends, σ/α at pure noise)
the step is of first order.
"""

from __future__ import annotations

import numpy as np

from unfog.checks import check_choice, check_whole
from unfog.diffusion import multistep
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def plan(schedule: Schedule, grid: np.ndarray, order: int = 3, form: str = "x0", variable: str = "logsnr") -> Plan:
    """form: "x0", "eps" or "flow"; variable of the polynomial: "logsnr", "own" (τ) or "step"; order from 1 to 8."""
    return adams("exp_adams", schedule, grid, order, form, variable)


def adams(name: str, schedule: Schedule, grid: np.ndarray, order: int, form: str, variable: str) -> Plan:
    """What this family shares: a plan under `name`."""
    check_choice("form", form, multistep.FORMS)
    check_choice("variable", variable, multistep.VARIABLES)
    check_whole(f"sampler {name!r}", "order", order, 1, 8)
    nodes = Nodes.of(schedule, grid)
    rows: list[Row] = []
    known: list[int] = []  # nodes whose slope is remembered without a gap, newest first
    for i in range(nodes.steps):
        time = float(nodes.t[i])
        if not all(multistep.usable(nodes, n, form, variable) for n in (i, i + 1)):
            a, b, _ = nodes.first_order(i)
            rows.append(Row(time, a, (b,)))
            known = []
            continue
        known = [i, *known][:order]
        p, q = multistep.slope(nodes, i, form)
        a, _ = multistep.keep(nodes, i, form)
        rows.append(Row(time, a, multistep.weights(nodes, i, known, form, variable), p=p, q=q))
    return Plan.of(name, rows, float(nodes.t[-1]))


def deis(schedule: Schedule, grid: np.ndarray, order: int = 3) -> Plan:
    """tAB-DEIS of any order, in float64 (closed forms in float32 lose it at many steps)."""
    return adams("deis", schedule, grid, order, "eps", "logsnr")


def lms(schedule: Schedule, grid: np.ndarray, order: int = 3) -> Plan:
    """Linear multistep in σ/α, exact down to σ = 0. At order 4 (others' default) the first steps leave about 3.6."""
    return adams("lms", schedule, grid, order, "eps", "own")


def ipndm(schedule: Schedule, grid: np.ndarray, order: int = 4) -> Plan:
    """The textbook's coefficients for even steps."""
    return adams("ipndm", schedule, grid, order, "eps", "step")


def flow_adams(schedule: Schedule, grid: np.ndarray, order: int = 3) -> Plan:
    """Adams–Bashforth on the velocity of flow matching, for any schedule; exact ends, no special step."""
    return adams("flow_adams", schedule, grid, order, "flow", "own")

"""DPM-Solver and DPM-Solver++ multistep: exponential integrators in Taylor form, and their SDE kinds.

    x_j = A·x_i + M₀·H_i + M₁·H′ + M₂·H″ + C·z,   M_m = ∫ κ(u)·u^m/m! du        H = D ("++") or ε
    H′ = (H_i − H_{i−1})/h₀ at order 2, with M₁ = ½·h·M₀ ("midpoint") or exact

order 2 (3M: see below) · 1 NFE a step · stochastic in the SDE kinds (eta > 0) · also known as: DPM++ 2M; midpoint
= UniP-2 (bh2), exact = second-order exponential Adams ("heun" kind elsewhere); dpm_2m: the same in ε, DPM-Solver-2M;
dpmpp_2m_sde, dpmpp_3m_sde: eta 1 · not to be confused with: DPM-Solver-2 (single-step), DPM++ 2S
· source: Lu et al. 2022, arXiv:2211.01095, Alg. 2 and appendix B; k-diffusion (SDE kinds).
The published 3M takes h²·[H_i, H_{i−1}, H_{i−2}] for h²·H″, half of it, which leaves it at order 2: kind "published"
repeats that for comparisons, "exact" (the default) is of order 3. The first steps have lower order, and so have a step
from α = 0 and one to σ = 0, where h is infinite. ramp_down: also the last but one of 3M, as others do below 15 steps.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.checks import check_choice, check_eta
from unfog.diffusion.multistep import keep, moment, slope, width
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def _plan(
    name: str, order: int, form: str, schedule: Schedule, grid: np.ndarray, kind: str, eta: float = 0.0, ramp_down: bool = False
) -> Plan:
    check_choice("kind", kind, ("midpoint", "exact") if order == 2 else ("exact", "published"))
    check_eta(name, eta)
    nodes = Nodes.of(schedule, grid)
    rows: list[Row] = []
    past: list[float] = []  # the steps h before this one, newest first
    for i in range(nodes.steps):
        time, h = float(nodes.t[i]), width(nodes, i)
        if not math.isfinite(h):
            a, b, c = nodes.first_order(i, 1.0 if eta else 0.0)
            rows.append(Row(time, a, (b,), c))
            past = []
            continue
        a, c = keep(nodes, i, form, eta)
        first = moment(nodes, i, 0, form, eta)
        second = 0.5 * h * first if kind == "midpoint" else moment(nodes, i, 1, form, eta)
        third = moment(nodes, i, 2, form, eta) * (0.5 if kind == "published" else 1.0)
        most = min(order, nodes.steps - i) if ramp_down else order
        terms = _taylor(past[: most - 1], first, second, third)
        p, q = slope(nodes, i, form)
        rows.append(Row(time, a, terms, c, p=p, q=q))
        past = [h, *past][:2]
    return Plan.of(name, rows, float(nodes.t[-1]))


def _taylor(past: list[float], first: float, second: float, third: float) -> tuple[float, ...]:
    """Weights on H_i, H_{i−1}, H_{i−2} of first·H + second·H′ + third·H″, derivatives by divided differences."""
    if not past:
        return (first,)
    if len(past) == 1:
        return first + second / past[0], -second / past[0]
    one, two = past
    # H′ = f[0,1] + one·f[0,1,2], H″ = 2·f[0,1,2], f[0,1,2] = (f[0,1] − f[1,2])/(one + two)
    double = (second * one + 2.0 * third) / (one + two)
    return first + (second + double) / one, -(second + double) / one - double / two, double / two


def plan(schedule: Schedule, grid: np.ndarray, kind: str = "midpoint") -> Plan:
    """DPM-Solver++ 2M; kind "midpoint" (what most tools mean) or "exact" (the exact integral)."""
    return _plan("dpmpp_2m", 2, "x0", schedule, grid, kind)


def third(schedule: Schedule, grid: np.ndarray, kind: str = "exact", ramp_down: bool = False) -> Plan:
    """DPM-Solver++ 3M; kind "exact" (order 3) or "published" (what other tools run, order 2)."""
    return _plan("dpmpp_3m", 3, "x0", schedule, grid, kind, ramp_down=ramp_down)


def noise_form(schedule: Schedule, grid: np.ndarray, kind: str = "midpoint") -> Plan:
    """DPM-Solver 2M: the same in ε; kind as in 2M."""
    return _plan("dpm_2m", 2, "eps", schedule, grid, kind)


def sde(schedule: Schedule, grid: np.ndarray, kind: str = "midpoint", eta: float = 1.0) -> Plan:
    """SDE-DPM-Solver++ 2M; eta in [0, 1] scales the noise, 0 is 2M."""
    return _plan("dpmpp_2m_sde", 2, "x0", schedule, grid, kind, eta)


def sde_third(schedule: Schedule, grid: np.ndarray, kind: str = "exact", eta: float = 1.0, ramp_down: bool = False) -> Plan:
    """SDE-DPM-Solver++ 3M; kind as in 3M, eta in [0, 1]."""
    return _plan("dpmpp_3m_sde", 3, "x0", schedule, grid, kind, eta, ramp_down)

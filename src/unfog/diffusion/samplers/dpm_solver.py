"""DPM-Solver++ 2M: the exponential integrator that extrapolates D from the last two results.

    x_j = (σ_j/σ_i)·x_i + α_j·[φ·D_i + w·(D_i − D_{i−1})],   h = λ_j − λ_i, h₀ = λ_i − λ_{i−1}, φ = 1 − e^{−h}
    w = φ·h/(2h₀)  "midpoint",    w = (h − φ)/h₀  "exact"      λ = ln(α/σ)

order 2 · 1 NFE a step · deterministic · also known as: DPM++ 2M; midpoint = UniP-2 (bh2), exact =
second-order exponential Adams–Bashforth ("heun" kind elsewhere) · not to be confused with: DPM-Solver-2
(single-step, in eps), DPM++ 2S, SDE-DPM++ 2M · source: Lu et al. 2022, arXiv:2211.01095, Alg. 2. The first
step, the one after a start at α = 0, and a last step to σ = 0 are of first order: there h or h₀ is infinite.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError


def plan(schedule: Schedule, grid: np.ndarray, kind: str = "midpoint") -> Plan:
    """A DPM-Solver++ 2M plan; kind "midpoint" (what most tools mean) or "exact" (the exact integral)."""
    if kind not in ("midpoint", "exact"):
        raise UserError(f"sampler 'dpmpp_2m': kind must be 'midpoint' or 'exact', got {kind!r}")
    nodes = Nodes.of(schedule, grid)
    rows = []
    for i in range(nodes.steps):
        a, b, _ = nodes.first_order(i)
        row = Row(float(nodes.t[i]), a, (b,))
        h = float(nodes.half[i + 1] - nodes.half[i])
        before = float(nodes.half[i] - nodes.half[i - 1]) if i > 0 else math.inf
        if math.isfinite(h) and math.isfinite(before):
            phi = -math.expm1(-h)
            weight = 0.5 * phi * h / before if kind == "midpoint" else (h - phi) / before
            extra = float(nodes.alpha[i + 1]) * weight
            row = row._replace(b=(b + extra, -extra))
        rows.append(row)
    return Plan.of("dpmpp_2m", rows, float(nodes.t[-1]))

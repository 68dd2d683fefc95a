"""UniPC: a multistep predictor, and a corrector that reuses the evaluation made at the predicted place.

    predict  x_j = (σ_j/σ_i)·x̄_i + Σ_k W_k·D_{i−k}            polynomial through `order` results
    correct  x̄_j = (σ_j/σ_i)·x̄_i + W′·D_j + Σ_k W′_k·D_{i−k}    and one more, at λ_j itself
    so       x̄_j = x_j + W′·D_j + Σ_k (W′_k − W_k)·D_{i−k}     which enters the next prediction: one map a step

order `order` + 1 (the corrector's; 3 by default), in x0 form · 1 NFE a step · deterministic · also known as: UniPC-p, bh1, bh2;
without the corrector UniP-p · not to be confused with: PECE methods, which evaluate again after correcting
· source: Zhao et al. 2023, arXiv:2302.04867, Alg. 1 and 2. From order 3 on (corrector: 2) their equations determine the
weights; below that they fix one at ½·B(h), B = h ("bh1") or 1 − e^{−h} ("bh2"), which we keep. The first steps have
lower order; so has a step from α = 0. A step to σ = 0 is D itself. Deviation: nothing is NaN there with bh1.
"""

from __future__ import annotations

import math

import numpy as np

from unfog.checks import check_choice, check_whole
from unfog.diffusion.multistep import added, keep, moment, weights, width
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def _fixed(nodes: Nodes, i: int, other: int, kind: str) -> list[float]:
    """Weights on D_i and D at node `other` where the slope's is ½·B(h)·α_j instead of the exact integral."""
    h, reach = width(nodes, i), width(nodes, i, other)
    slope = 0.5 * float(nodes.alpha[i + 1]) * (h if kind == "bh1" else -math.expm1(-h)) * h / reach
    return [moment(nodes, i, 0, "x0") - slope, slope]


def plan(
    schedule: Schedule, grid: np.ndarray, order: int = 2, kind: str = "bh2", corrector: bool = True, ramp_down: bool = False
) -> Plan:
    """order 1 to 6; kind "bh1" or "bh2" (matters while two results are known); ramp_down: no more results than steps left."""
    check_choice("kind", kind, ("bh1", "bh2"))
    check_whole("sampler 'unipc'", "order", order, 1, 6)
    nodes = Nodes.of(schedule, grid)
    rows: list[Row] = []
    known: list[int] = []  # nodes whose D is remembered and finite in λ, newest first
    change: list[float] = []  # x̄ − x at the node, on the results, newest first
    for i in range(nodes.steps):
        time = float(nodes.t[i])
        if not (math.isfinite(nodes.half[i]) and math.isfinite(nodes.half[i + 1])):
            scale, only, _ = nodes.first_order(i)
            rows.append(Row(time, scale, added([only], change, scale)))
            known, change = [], []
            continue
        known = [i, *known][:order]
        used = known[: nodes.steps - i] if ramp_down else known
        scale, _ = keep(nodes, i, "x0")
        look = _fixed(nodes, i, used[1], kind) if len(used) == 2 else weights(nodes, i, used, "x0")
        rows.append(Row(time, scale, added(look, change, scale)))
        if corrector:
            better = _fixed(nodes, i, i + 1, kind)[::-1] if len(used) == 1 else weights(nodes, i, [i + 1, *used], "x0")
            change = added(better, [0.0, *look], -1.0)
    return Plan.of("unipc", rows, float(nodes.t[-1]))

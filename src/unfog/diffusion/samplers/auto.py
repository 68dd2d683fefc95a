"""Auto: grid and weights by the number of evaluations alone, learned once over many targets.

    x_j = (σ_j/σ_i)·x_i + (α_j − α_i·σ_j/σ_i)·Σ_k w_k·D_{i−k},   Σ_k w_k = 1

order 3 (exponential Adams of order 2, past the last table entry 3, plus what was learned: a table's weights less Adams' at
the same place of the run; between entries of both, past the last × (its steps/steps)², which keeps the order) · 1 NFE a step
· deterministic · also known as: — · not to be confused with: a sampler fitted to one model (fit.py) · source: tuned.json, made
by tools/tune_auto.py. Only log-SNR enters, so one table serves every schedule. Other grids: order 3.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan
from unfog.diffusion.samplers import adams
from unfog.diffusion.schedules import EDM, Schedule
from unfog.diffusion.tuned import TOP, TUNED, Tuned, neighbours, tuned_levels

WIDTH = 4  # results that a row may use


def plan(schedule: Schedule, grid: np.ndarray) -> Plan:
    """The default: few steps, any schedule and data of standard deviation near 1."""
    nodes = Nodes.of(schedule, grid)
    learned = next((t for t in TUNED.values() if nodes.sigma[-1] == 0.0 and _own(nodes, t)), {})
    order = 2 if nodes.steps < max(learned, default=0) else 3
    made = adams.adams("auto", schedule, grid, order, "x0", "logsnr")
    a, b = made.a.copy(), np.pad(made.b, ((0, 0), (0, WIDTH - made.b.shape[1])))
    for count, share in neighbours(learned, nodes.steps):
        rows = _correction(learned[count], order)
        place, of = np.linspace(0.0, 1.0, nodes.steps), np.linspace(0.0, 1.0, count)
        change = share * np.stack([np.interp(place, of, column) for column in rows.T], 1)
        for i in range(WIDTH - 1):  # results that a run's first rows do not have yet: the newest takes their part
            change[i, 0] += change[i, i + 1 :].sum()
            change[i, i + 1 :] = 0.0
        b += made.b.sum(1, keepdims=True) * change
    if np.isclose(nodes.half[0], -math.log(TOP)) and schedule.logsnr(1.0) < 2.0 * nodes.half[0] - 1e-3:
        # The start is a draw from the prior, α·E[x0] short of x_t; taken as pure noise, x/σ is right and D brings the mean.
        a[0], b[0, 0] = nodes.sigma[1] / nodes.sigma[0], nodes.alpha[1]
    return replace(made, a=a, b=b, B=np.zeros_like(b))


def _correction(entry: Tuned, order: int) -> np.ndarray:
    """(steps, WIDTH): learned weights less exponential Adams' on the same levels; each row sums to 0."""
    schedule = EDM(sigma_max=TOP)
    times = np.asarray(schedule.time(-2.0 * np.log([TOP, *entry.levels])))
    usual = adams.plan(schedule, np.array([1.0, *times[1:], 0.0]), order).b
    out = np.pad(-usual / usual.sum(1, keepdims=True), ((0, 0), (0, WIDTH - usual.shape[1])))
    for i, older in enumerate(entry.weights):
        out[i, : len(older) + 1] += [1.0 - sum(older), *older]
    return out


def _own(nodes: Nodes, learned: dict[int, Tuned]) -> bool:
    return np.allclose(-nodes.half[1:-1], tuned_levels(learned, nodes.steps)[1:], rtol=0.0, atol=1e-4)

"""Where the peers differ from ours, why, and how parity.py shows it: DIFFERENCES, CHANGES."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from parity_pairs import CHURN
from parity_peers import Change

from unfog.diffusion import multistep
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.samplers import dpm_solver, heun, make_plan

# How a difference is shown, for each case:
NEARER = "nearer"  # errors of both against a fine solution of the ODE
ROUNDING = "rounding"  # gone (1e-6) once the peer's tables are float64; what each side's float32 moves its own result by
NAN = "nan"  # the peer's result is not a number
CHANGED = "changed"  # gone (1e-6 in float64) with the peer's rule in our plan: CHANGES

CANCELS = "σ_down = √(σ_to² − σ_up²), or the same in ᾱ, cancels in the peer's float32 where a step removes most of the noise"
# By peer, peer @ schedule, or peer @ schedule @ steps.
DIFFERENCES: dict[str, tuple[str, str]] = {
    "diffusers DDIM eta 1 @ cosine": (ROUNDING, CANCELS),
    "diffusers Euler ancestral @ cosine": (ROUNDING, CANCELS),
    "diffusers KDPM2 ancestral @ linear": (ROUNDING, "five wide steps magnify float32's rounding, on both sides"),
    "k-diffusion dpm_2_ancestral @ vp": (ROUNDING, "five wide steps magnify float32's rounding, on both sides"),
    "diffusers DDIM, steps that do not divide 1000": (
        NEARER, "the peer steps by ⌊1000/steps⌋ indices, not to where it evaluates next; ours go there"),
    "diffusers IPNDM from pure noise": (
        NEARER, "at α = 0 the peer leaves x0 out of its first step and keeps ε for the next; ours takes D and starts anew"),
    "diffusers PNDM (PLMS)": (CHANGED, "the peer's first step is Heun's, with one evaluation more; ours is of first order"),
    "diffusers PNDM (PLMS) of v": (NEARER, "the peer extrapolates the network's v and then turns it into ε; ours extrapolates ε"),
    "diffusers flow Heun": (CHANGED, "the peer's trapezoid is in flow time, ours (EDM's) in σ/α; both are of second order"),
    "diffusers Heun, a ratio below 0.01": (CHANGED, "below 0.01 ours takes the trapezoid in α/σ: EDM's weights grow as σ̂_i/σ̂_j"),
    "k-diffusion heun with churn @ vp @ 5": (CHANGED, "as in Heun: churn raises the last σ̂_i until the ratio is below 0.01"),
    "diffusers DPM-Solver++ 3M, midpoint start": (
        CHANGED, "where it lowers the order to 2 the peer takes midpoint weights, ours exact ones (the peer's solver_type heun)"),
    "diffusers DPM-Solver 3M": (CHANGED, "the peer takes half the second derivative; ours in ε, deis, all of it"),
    "diffusers SDE-DPM-Solver++ 3M": (CHANGED, "the peer has −½ for +½ in the weight of D2; k-diffusion agrees with ours"),
    "diffusers DPM-Solver++ 3S": (CHANGED, "the peer's second stage has midpoint weights, ours the published exact ones"),
    "diffusers DPM-Solver 2S": (ROUNDING, "in ε form e^h multiplies the rounding of λ and x, from pure noise by up to 1e4"),
    "diffusers UniPC 2 bh1 to sigma 0": (NAN, "the peer multiplies B(h) = −∞ by 0"),
    "diffusers DEIS 1 @ flow": (ROUNDING, "α = 1 − f and λ rounded in the peer's float32 near pure noise"),
    "diffusers DEIS 2 @ flow": (ROUNDING, "as DEIS 1, and closed forms that cancel"),
    "diffusers DEIS 3": (ROUNDING, "its closed forms cancel in float32, the more the steps; on flow as DEIS 1"),
    "diffusers SA-Solver 2, 2 tau 0": (CHANGED, "the peer weighs the slope with h²/2, not with its exact integral"),
    "diffusers SA-Solver 2, 2 tau 1": (CHANGED, "the peer weighs the slope with h²/2, not with its exact integral"),
}  # fmt: skip
NOT_COMPARED = {
    "k-diffusion dpmpp_sde with noise, diffusers DPMSolverSDE": "their noise is a Brownian path in σ, ours the path of the SDE",
    "k-diffusion dpm_fast, dpm_adaptive": "their levels are chosen by error or mix orders",
    "diffusers DPMSolverSinglestep on uneven levels": "its stages are where the list has them; ours are even in log-SNR",
    "diffusers PNDM with its Runge–Kutta start": "not a plan of ours",
}


def sa_slope(tau: float) -> Change:
    """The slope weighted with (1 + τ²)·α_j·h²/2, in predictor and corrector."""

    def change(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
        b = plan.b.copy()
        before = after = np.zeros(plan.b.shape[1])  # what changes in the last prediction and in its correction
        for i in range(nodes.steps):
            h = multistep.width(nodes, i)
            look, better = np.zeros_like(before), np.zeros_like(before)
            if math.isfinite(h):
                more = (1.0 + tau**2) * nodes.alpha[i + 1] * h * h / 2.0 - multistep.moment(nodes, i, 1, "x0", tau**2)
                better[:2] = np.array([more, -more]) / h
                if i:
                    look[:2] = np.array([more, -more]) / multistep.width(nodes, i - 1)
            b[i] += look + plan.a[i] * (after - np.append(0.0, before[:-1]))
            before, after = look, better
        return replace(plan, b=b)

    return change


def plms_start(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    """The second time evaluated twice: the step to it by the mean of two slopes, the first of which is not used again."""
    total = plan.b.sum(axis=1).tolist()
    many = [[], [0.5, 0.5], [1.5, 0.0, -0.5], [23 / 12, -16 / 12, 0.0, 5 / 12], [55 / 24, -59 / 24, 37 / 24, 0.0, -9 / 24]]
    rows = [Row(plan.t[0], A=plan.a[0], B=(total[0],), p=plan.p[0], q=plan.q[0])]
    for k in range(1, plan.nfe + 1):
        at, step = min(k, max(k - 1, 1)), k - 1  # where row k evaluates, and the step that it takes
        weights = many[k] if k < len(many) else [55 / 24, -59 / 24, 37 / 24, -9 / 24]
        rows.append(Row(plan.t[at], plan.a[step], [w * total[step] for w in weights], p=plan.p[at], q=plan.q[at]))
    return Plan.of("plms", rows, plan.end)


def flow_trapezoid(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    b = plan.b.copy()
    for i in range(nodes.steps - 1):
        share = 0.5 * nodes.sigma[i] / nodes.sigma[i + 1]
        b[2 * i + 1, :2] = b[2 * i + 1].sum() * np.array([share, 1.0 - share])
    return replace(plan, b=b)


def any_ratio(options: Callable[[Nodes], dict[str, Any]]) -> Change:
    """Heun without our rule for small ratios."""

    def change(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
        before, heun._SMALL_RATIO = heun._SMALL_RATIO, 0.0
        try:
            return make_plan("heun", schedule, nodes.t, **options(nodes))
        finally:
            heun._SMALL_RATIO = before

    return change


def midpoint_start(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    second, b = dpm_solver.plan(schedule, nodes.t).b, plan.b.copy()
    for i in {1, nodes.steps - 2} if nodes.steps < 15 else {1}:
        b[i] = 0.0
        b[i, :2] = second[i]
    return replace(plan, b=b)


def wrong_sign(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    """D2 counted α_j less, where the order is 3."""
    b = plan.b.copy()
    for i in range(2, nodes.steps - (2 if nodes.steps < 15 else 1)):
        h, one, two = (multistep.width(nodes, i - back) for back in range(3))
        first, second = np.array([1.0, -1.0, 0.0]) * h / one, np.array([0.0, 1.0, -1.0]) * h / two
        b[i, :3] -= nodes.alpha[i + 1] * (first - second) * h / (one + two)
    return replace(plan, b=b)


def midpoint_stage(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    look = plan.B.copy()
    look[1::3, 0], look[1::3, 1] = look[1::3].sum(axis=1), 0.0
    return replace(plan, B=look)


CHANGES: dict[str, Change] = {
    "diffusers PNDM (PLMS)": plms_start,
    "diffusers flow Heun": flow_trapezoid,
    "diffusers Heun, a ratio below 0.01": any_ratio(lambda nodes: {}),
    "k-diffusion heun with churn": any_ratio(
        lambda nodes: {"churn": CHURN * nodes.steps, "s_noise": 1.003, "s_max": 0.99 * nodes.sigma[0]}
    ),
    "diffusers DPM-Solver++ 3M, midpoint start": midpoint_start,
    "diffusers DPM-Solver 3M": lambda plan, nodes, schedule: dpm_solver._plan("3M", 3, "eps", schedule, nodes.t, "published"),
    "diffusers SDE-DPM-Solver++ 3M": wrong_sign,
    "diffusers DPM-Solver++ 3S": midpoint_stage,
    "diffusers SA-Solver 2, 2 tau 0": sa_slope(0.0),
    "diffusers SA-Solver 2, 2 tau 1": sa_slope(1.0),
}


def third_order_weight(h: float) -> tuple[float, float]:
    """Weight of D2, over α, in a third-order SDE step of length h in λ: diffusers', and the integral's (kind "published")."""
    import diffusers

    peer = diffusers.DPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++")
    peer.sigmas, peer._step_index = torch.exp(h * torch.arange(3.0, -1.0, -1.0, dtype=torch.float64)), 2
    zero = torch.zeros(1, 1, dtype=torch.float64)
    # Results 4, 1, 0 at even steps: D0 = 0, D1 = −1 + ½·(−1 + 3) = 0, D2 = ½·(−1 + 3) = 1. α = σ = √½ at the end.
    got = peer.multistep_dpm_solver_third_order_update([zero + 4.0, zero + 1.0, zero], sample=zero, noise=zero)
    return float(got) * math.sqrt(2.0), 0.5 - 0.5 / h - math.expm1(-2.0 * h) / (4.0 * h * h)

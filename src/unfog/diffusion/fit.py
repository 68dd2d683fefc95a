"""A plan learned for one model: few evaluations that end where a fine trajectory ends.

    min over θ of  mean_b |x(θ)_b − x_fine_b|,    θ = (grid, corrections δ of the sampler's coefficients)

Levenberg–Marquardt on the final samples, with weights 1/|error_b| so that the mean distance is what falls and no few items
rule. A derivative is a difference of two runs, each continued from the row that it changes: networks need no gradient,
and a half of the evaluations is saved. Sources: Watson et al. 2021, arXiv:2106.03802 (fitting the grid); Frankel et al.
2024 (S4S), arXiv:2502.17423 (coefficients and grid against a teacher's samples); Marquardt 1963, doi:10.1137/0111030.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.checks import check_choice
from unfog.diffusion.plan import Denoise, Plan, State, advance, begin, run, sample
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError

FREE = ("grid", "consistent", "all")


@dataclass(frozen=True)
class Problem:
    """What a plan is matched to: denoise, x (B, *D) at the plan's start, fine (B, *D): where its exact trajectory ends.

    scale: the error's unit, usually the data's standard deviation.
    """

    denoise: Denoise
    x: Tensor
    fine: Tensor
    scale: float = 1.0

    def errors(self, x: Tensor) -> Tensor:
        """|x − fine|/(scale·√dimension) an item, (B,) float64; not finite counts as 1e6."""
        gap = (x.double() - self.fine.double()).flatten(1)
        return (gap.norm(dim=1) / (self.scale * math.sqrt(gap.shape[1]))).nan_to_num(1e6, 1e6, 1e6)


@dataclass(frozen=True)
class Fitted:
    """plan; error: mean |x − fine| on the seeds fitted to; rounds, evaluations (of a batch) and seconds it took."""

    plan: Plan
    error: float
    rounds: int
    evaluations: int
    seconds: float


def error(plan: Plan, problems: Sequence[Problem]) -> float:
    """Mean distance to the fine samples over all items, in units of the data's standard deviation."""
    return float(np.mean([problem.errors(sample(plan, problem.denoise, problem.x)).mean().item() for problem in problems]))


@dataclass(frozen=True)
class _Form:
    """θ ↔ plan: half log-SNR of the first inner node, logarithms of the gaps that follow, then δ row by row."""

    schedule: Schedule
    start: float
    sampler: str
    options: dict[str, Any]
    nfe: int
    memory: int
    free: str

    @property
    def gaps(self) -> int:
        return self.nfe - 1

    def slots(self) -> list[tuple[int, int]]:
        """(row, k) of each δ: k −1 is a, else b_k. A consistent row keeps a and the sum of its b."""
        if self.free == "grid":
            return []
        first = -1 if self.free == "all" else 1
        return [(i, k) for i in range(self.nfe) for k in range(first, min(i + 1, self.memory))]

    def rows(self) -> list[int]:
        """The first row that each θ touches: a moved node changes the step that leads to it."""
        return [*range(self.gaps), *(i for i, _ in self.slots())]

    def initial(self, grid: np.ndarray) -> np.ndarray:
        half = 0.5 * np.asarray(self.schedule.logsnr(grid[1:-1]))
        return np.concatenate([half[:1], np.log(np.diff(half)), np.zeros(len(self.slots()))])

    def grid(self, theta: np.ndarray) -> np.ndarray:
        half = np.cumsum(np.concatenate([theta[:1], np.exp(theta[1 : self.gaps])]))
        return np.concatenate([[self.start], np.asarray(self.schedule.time(2.0 * half[: self.gaps])), [0.0]])

    def plan(self, theta: np.ndarray) -> Plan:
        """Raises UserError where θ makes no falling grid."""
        plan = make_plan(self.sampler, self.schedule, self.grid(theta), **self.options)
        if self.free == "grid":
            return plan
        a, b = plan.a.copy(), np.zeros((self.nfe, max(self.memory, plan.b.shape[1])))
        b[:, : plan.b.shape[1]] = plan.b
        for (i, k), value in zip(self.slots(), theta[self.gaps :], strict=True):
            if k < 0:
                a[i] += value
            else:
                b[i, k] += value
                if self.free == "consistent":
                    b[i, 0] -= value
        return replace(plan, a=a, b=b, B=np.zeros_like(b))

    def begin(self, theta: np.ndarray, base: Plan, start: Plan) -> np.ndarray:
        """θ with the δ that lead from `base` to `start`."""
        kept = (base.p == start.p).all() and (base.q == start.q).all()
        if start.nfe != base.nfe or not np.allclose(start.t, base.t, atol=1e-9) or start.B.any() or not kept:
            raise UserError(f"fit: start must be a plan on the same grid that keeps what {self.sampler!r} keeps")

        def of(plan: Plan, i: int, k: int) -> float:
            return float(plan.a[i]) if k < 0 else float(plan.b[i, k]) if k < plan.b.shape[1] else 0.0

        out = theta.copy()
        out[self.gaps :] = [of(start, i, k) - of(base, i, k) for i, k in self.slots()]
        return out


def _trace(plan: Plan, problem: Problem) -> list[State]:
    state = begin(plan, problem.x)
    return [state, *run(plan, problem.denoise, state)]


def _again(plan: Plan, problem: Problem, trace: Sequence[State], row: int) -> Tensor:
    """The end of `plan`, which differs from the traced one from `row` on, where x is still the same."""
    with torch.no_grad():
        return sample(plan, problem.denoise, advance(plan, trace[row], trace[row + 1].x0))


def _columns(form: _Form, theta: np.ndarray, problem: Problem, trace: Sequence[State], step: float) -> Iterator[Tensor]:
    last = trace[-1].x.double()
    for index, row in enumerate(form.rows()):
        moved = theta.copy()
        moved[index] += step
        yield (_again(form.plan(moved), problem, trace, row).double() - last).flatten() / step


def fit(
    problems: Sequence[Problem],
    schedule: Schedule,
    grid: np.ndarray,
    *,
    sampler: str = "exp_adams",
    free: str = "all",
    memory: int = 4,
    minutes: float = 5.0,
    rounds: int = 60,
    each: Callable[[int, float], None] | None = None,
    start: Plan | None = None,
    **options: Any,
) -> Fitted:
    """Learn a plan of len(grid) − 1 evaluations, from `sampler` (one evaluation a step) on `grid` (start … 0) onwards.

    free: "grid" moves the nodes alone, so the sampler keeps its order; "consistent" also corrects the weights of up to
    `memory` results but keeps first order; "all" corrects every coefficient. minutes: wall clock, after which the best plan
    so far is returned; each(round, error) reports. The error never rises above the starting plan's. start: a plan on the
    same grid, one evaluation a row and results kept as `sampler` keeps them, whose coefficients to begin with.
    """
    check_choice("free", free, FREE)
    if not problems or len(grid) < 4 or float(grid[-1]) != 0.0:
        raise UserError("fit: need at least one problem and a grid of at least three steps that ends at 0")
    if not minutes > 0.0 or rounds < 1 or not 1 <= memory <= 8:
        raise UserError("fit: minutes must be greater than 0, rounds at least 1, memory from 1 to 8")
    form = _Form(schedule, float(grid[0]), sampler, options, len(grid) - 1, memory, free)
    theta = form.initial(np.asarray(grid, dtype=np.float64))
    plan = make_plan(sampler, schedule, grid, **options)
    if plan.nfe != form.nfe or plan.stochastic or (free != "grid" and plan.B.any()):
        raise UserError(f"fit: sampler {sampler!r} must be deterministic with one evaluation a step")
    if start is not None and free != "grid":
        theta = form.begin(theta, plan, start)
    double = all(problem.x.dtype == torch.float64 for problem in problems)
    step = 1e-6 if double else 2e-3
    began, evaluations, damping, done = time.monotonic(), form.nfe, 1e-2, 0

    def trial(value: np.ndarray) -> tuple[Plan, list[list[State]], float]:
        made = form.plan(value)
        traces = [_trace(made, problem) for problem in problems]
        each_error = [p.errors(trace[-1].x).mean().item() for p, trace in zip(problems, traces, strict=True)]
        return made, traces, float(np.mean(each_error))

    plan, traces, best = trial(theta)
    while done < rounds and time.monotonic() - began < 60.0 * minutes:
        normal, right = np.zeros((len(theta), len(theta))), np.zeros(len(theta))
        for problem, trace in zip(problems, traces, strict=True):
            columns = torch.stack(list(_columns(form, theta, problem, trace, step)), 1)
            gap = (trace[-1].x.double() - problem.fine.double()).flatten()
            errors = problem.errors(trace[-1].x)
            count, dimension = len(errors), gap.numel() // len(errors)
            unit = problem.scale * math.sqrt(dimension)
            # Σ|e| is minimised through squares weighted by 1/|e|; a floor keeps met items from ruling.
            share = 1.0 / errors.clamp_min(0.1 * float(errors.median()) + 1e-9) / (count * unit * unit)
            weight = share.repeat_interleave(dimension)
            normal += (columns.T @ (weight[:, None] * columns)).cpu().numpy()
            right -= (columns.T @ (weight * gap)).cpu().numpy()
            evaluations += sum(form.nfe - 1 - row for row in form.rows())
        better = False
        for _ in range(8):
            scaled = normal + damping * np.diag(np.diag(normal) + 1e-12 * np.trace(normal) + 1e-30)
            try:
                moved = theta + np.linalg.solve(scaled, right)
                tried = trial(moved)
            except (UserError, np.linalg.LinAlgError, OverflowError):
                tried = (plan, traces, math.inf)
            evaluations += form.nfe
            if tried[2] < best:
                better = True
                break
            damping *= 4.0
        if not better:
            break
        gain = 1.0 - tried[2] / best
        theta, (plan, traces, best) = moved, tried
        damping, done = max(damping / 4.0, 1e-9), done + 1
        if each is not None:
            each(done, best)
        if gain < 1e-4:
            break
    return Fitted(replace(plan, sampler="fitted"), best, done, evaluations, time.monotonic() - began)

"""Adaptive steps: as many evaluations as a tolerance needs, item by item.

    x′ = (σ_j/σ_i)·x_i + α_j·(1 − e^{−h})·D_i            h = λ_j − λ_i, λ = ln(α/σ)
    x″ = x′ + α_j·(1 − (1 − e^{−h})/h)·(D′_j − D_i)       the exponential trapezoid, D′_j = denoise(x′, t_j)
    e  = rms(x″ − x′)/(tolerance·prior_std(t_j))          accepted if e ≤ 1;  h ← h·clamp(0.9·e^{−1/2}, ⅕, 5)

order 2 (the error of the first-order x′ is held to the tolerance) · 2 NFE a step, 1 more a rejection · deterministic
· also known as: DPM-Solver-12, k-diffusion's dpm_adaptive of order 2 · source: Lu et al. 2022, arXiv:2206.00927, app. C,
in x0 form. Deviations: every item has its own steps, so that it does not depend on its batch; the error's unit is
the width of x_t, so that the schedule changes nothing; D_i survives a rejection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.processes import Process, expand
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError


@dataclass(frozen=True)
class Adaptive:
    """Where each item stands: x, x0 (B, *D), t (B,) float64; evaluations and rejected steps so far (B,) int."""

    x: Tensor
    x0: Tensor
    t: np.ndarray
    nfe: np.ndarray
    rejected: np.ndarray
    done: bool


def _check(tolerance: float, first: float, max_nfe: int, low: float, high: float) -> None:
    if not 0.0 < tolerance < 1.0:
        raise UserError(f"adaptive: tolerance must lie between 0 and 1, got {tolerance}")
    if not first > 0.0 or isinstance(max_nfe, bool) or max_nfe < 3:
        raise UserError("adaptive: first (step in log-SNR/2) must be greater than 0, max_nfe at least 3")
    if not low < high:
        raise UserError("adaptive: need logsnr_min < logsnr_max inside the schedule's range")


def run_adaptive(
    process: Process,
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    tolerance: float = 0.01,
    first: float = 0.5,
    max_nfe: int = 1000,
    start: float = 1.0,
    logsnr_min: float = -10.0,
    logsnr_max: float = 10.0,
) -> Iterator[Adaptive]:
    """Denoise x (B, *D) from `start` to clean data, yielding after each round of steps; no gradients.

    denoise(x_t (n, *D), t (n,) float64) -> x0 (n, *D) is asked for the items still under way. tolerance: of one step, as a
    share of the width of x_t. first: the first h tried. The steps up to logsnr_min and after logsnr_max are of first order.
    UserError if an item needs more than max_nfe evaluations, or the denoiser returns a value that is not finite.
    """
    schedule = process.schedule
    low, high = (
        0.5 * min(max(schedule.logsnr(start), logsnr_min), 1e3), 0.5 * min(schedule.logsnr(0.0), logsnr_max)
    )  # fmt: skip
    _check(tolerance, first, max_nfe, low, high)
    batch = x.shape[0]
    nfe, rejected = np.zeros(batch, dtype=np.int64), np.zeros(batch, dtype=np.int64)

    def ask(items: np.ndarray, given: Tensor, times: np.ndarray) -> Tensor:
        nfe[items] += 1
        with torch.no_grad():
            out = denoise(given, torch.from_numpy(times).to(given.device))
        finite = out.flatten(1).isfinite().all(1).cpu().numpy()
        if not finite.all():
            bad = int(items[~finite][0])
            raise UserError(
                f"adaptive: the denoiser returned a value that is not finite at t = {times[~finite][0]:.4g}, item {bad}"
            )
        if nfe.max() > max_nfe:
            raise UserError(f"adaptive: more than {max_nfe} evaluations; raise tolerance or max_nfe")
        return out

    def levels(half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        times = np.asarray(schedule.time(2.0 * half))
        return times, np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))

    def on(values: np.ndarray, like: Tensor) -> Tensor:
        return expand(torch.from_numpy(values), like)

    everyone = np.arange(batch)
    half, width = np.full(batch, low), np.full(batch, first)
    times = np.full(batch, float(start))
    x0 = ask(everyone, x, times)
    entry = float(schedule.time(2.0 * low))
    if entry < start:  # from pure noise: λ is infinite there, one exact first-order step leads to a finite one
        x = _jump(schedule, x, x0, start, entry)
        times = np.full(batch, entry)
        x0 = ask(everyone, x, times)
    going = everyone
    while len(going):
        yield Adaptive(x, x0, times.copy(), nfe.copy(), rejected.copy(), False)
        here, h = half[going], np.minimum(width[going], high - half[going])
        h = np.where(high - here - h < 1e-9, high - here, h)  # no last sliver
        there = here + h
        _, _, sigma = levels(here)
        next_times, next_alpha, next_sigma = levels(there)
        known, at = x0[going], x[going]
        guess = at * on(next_sigma / sigma, at) + known * on(-next_alpha * np.expm1(-h), at)
        end = ask(going, guess, next_times)
        change = (end - known) * on(next_alpha * (1.0 + np.expm1(-h) / h), at)
        unit = np.array([process.prior_std(float(time)) for time in next_times])
        size = change.double().flatten(1).square().mean(1).sqrt().cpu().numpy() / (tolerance * unit)
        accepted = size <= 1.0
        width[going] = h * np.clip(0.9 / np.sqrt(np.maximum(size, 1e-12)), 0.2, 5.0)
        rejected[going[~accepted]] += 1
        moved = going[accepted]
        if len(moved):
            pick = torch.from_numpy(np.flatnonzero(accepted)).to(x.device)
            x, x0 = x.clone(), x0.clone()
            x[moved] = (guess + change)[pick]
            half[moved], times[moved] = there[accepted], next_times[accepted]
            x0[moved] = ask(moved, x[moved], times[moved])
        going = everyone[half < high - 1e-12]
    # σ is small: to clean data in one exact first-order step.
    x = _jump(schedule, x, x0, float(schedule.time(2.0 * high)), 0.0)
    yield Adaptive(x, x0, np.zeros(batch), nfe.copy(), rejected.copy(), True)


def _jump(schedule: Schedule, x: Tensor, x0: Tensor, t: float, to: float) -> Tensor:
    """The exact step for a D that stays."""
    keep = float(schedule.sigma(to)) / float(schedule.sigma(t))
    return x * keep + x0 * (float(schedule.alpha(to)) - float(schedule.alpha(t)) * keep)


def sample_adaptive(
    process: Process, denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, **options: float
) -> tuple[Tensor, np.ndarray]:
    """The final x (B, *D) of `run_adaptive` and the evaluations of each item (B,)."""
    *_, last = run_adaptive(process, denoise, x, **options)  # type: ignore[arg-type]
    return last.x, last.nfe

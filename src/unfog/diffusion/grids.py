"""Grids: which noise levels a sampler visits.

    1 ≥ t_0 > t_1 > … > t_steps ≥ 0        float64; steps intervals

Every grid takes (schedule, steps, start, end) and its own named options, and returns t of length steps + 1
whose last entry is exactly `end`. The first is exactly `start`, except for grids of table indices: they round
it to an index, and "leading" starts below it. A grid in log-SNR cannot contain an infinite end: the range is
clipped to stated bounds, and the outermost intervals reach to `start` and to `end`. Multistep samplers like
"logsnr", single-step ones "karras".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unfog.diffusion.lookup import call, lookup
from unfog.diffusion.schedules import Schedule, Shifted, Table
from unfog.errors import UserError


def check_grid(times: Sequence[float] | np.ndarray) -> np.ndarray:
    """`times` as float64 (steps + 1,), strictly falling inside [0, 1]; raises UserError if it is not."""
    grid = np.array(times, dtype=np.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise UserError("grid: need a list of at least two times")
    if not np.isfinite(grid).all() or grid[0] > 1.0 or grid[-1] < 0.0:
        raise UserError("grid: times must lie in [0, 1]")
    if not (np.diff(grid) < 0.0).all():
        raise UserError(
            "grid: times must fall strictly from noise (1) to data (0); use fewer steps or another grid"
        )
    return grid


def _check(steps: int, start: float, end: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise UserError(f"steps: expected an integer of at least 1, got {steps!r}")
    if not 0.0 <= end < start <= 1.0:
        raise UserError(f"grid: need 0 <= end < start <= 1, got start {start}, end {end}")


def _close(grid: np.ndarray, start: float, end: float) -> np.ndarray:
    grid[0], grid[-1] = start, end
    return check_grid(grid)


def uniform(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0) -> np.ndarray:
    """Equal steps in t."""
    _check(steps, start, end)
    return _close(np.linspace(start, end, steps + 1), start, end)


def logsnr(
    schedule: Schedule,
    steps: int,
    start: float = 1.0,
    end: float = 0.0,
    logsnr_min: float = -10.0,
    logsnr_max: float = 10.0,
) -> np.ndarray:
    """Equal steps in log-SNR between its values at start and end, clipped to [logsnr_min, logsnr_max]."""
    _check(steps, start, end)
    low, high = max(schedule.logsnr(start), logsnr_min), min(schedule.logsnr(end), logsnr_max)
    if not low < high:
        raise UserError(
            f"grid 'logsnr': nothing between log-SNR {low:.3g} and {high:.3g}; widen logsnr_min, logsnr_max"
        )
    return _close(schedule.time(np.linspace(low, high, steps + 1)), start, end)


def karras(
    schedule: Schedule,
    steps: int,
    start: float = 1.0,
    end: float = 0.0,
    rho: float = 7.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> np.ndarray:
    """(σ/α)^{1/ρ} in equal steps from sigma_max to sigma_min, then `end`.

    sigma_min and sigma_max are levels of σ/α, clipped to what lies between start and end. When end is 0 the
    last interval goes from sigma_min to 0. Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    _check(steps, start, end)
    high = min(sigma_max, math.exp(min(-0.5 * schedule.logsnr(start), 700.0)))
    low = max(sigma_min, math.exp(-0.5 * schedule.logsnr(end)))
    if not (0.0 < low < high and rho > 0.0):
        raise UserError(
            f"grid 'karras': need rho > 0 and sigma_min < sigma_max inside the schedule, got {low}, {high}"
        )
    landing = end == 0.0
    levels = np.linspace(high ** (1.0 / rho), low ** (1.0 / rho), steps if landing else steps + 1) ** rho
    times = schedule.time(-2.0 * np.log(levels))
    return _close(np.append(times, 0.0) if landing else times, start, end)


def _table(schedule: Schedule, name: str) -> Table:
    while isinstance(schedule, Shifted):
        schedule = schedule.base
    if not isinstance(schedule, Table):
        raise UserError(
            f"grid {name!r} counts table indices; this schedule has none, use 'uniform' or 'logsnr'"
        )
    return schedule


def _indices(schedule: Schedule, name: str, places: np.ndarray, end: float) -> np.ndarray:
    count = _table(schedule, name).count
    return check_grid(np.append((np.rint(places) + 1.0) / count, end))


def trailing(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0) -> np.ndarray:
    """Table indices N − 1, N − 1 − N/steps, …: always contains the last index.

    Source: Lin et al. 2023, arXiv:2305.08891, table 2.
    """
    _check(steps, start, end)
    count = _table(schedule, "trailing").index(start) + 1
    return _indices(schedule, "trailing", count - np.arange(steps) * (count / steps) - 1.0, end)


def leading(
    schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, offset: int = 0
) -> np.ndarray:
    """Table indices offset + (steps − 1)·⌊N/steps⌋, …, offset: starts below the last index.

    Source: the spacing of Ho et al. 2020 and Song et al. 2021 (DDIM); Lin et al. 2023, arXiv:2305.08891,
    table 2.
    """
    _check(steps, start, end)
    count = _table(schedule, "leading").index(start) + 1
    return _indices(schedule, "leading", np.arange(steps)[::-1] * (count // steps) + float(offset), end)


def linspace(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0) -> np.ndarray:
    """Table indices in equal steps from N − 1 to 0, rounded.

    Source: Nichol & Dhariwal 2021; 2305.08891, table 2.
    """
    _check(steps, start, end)
    count = _table(schedule, "linspace").index(start) + 1
    return _indices(schedule, "linspace", np.linspace(count - 1.0, 0.0, steps), end)


def custom(
    schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, times: Sequence[float] = ()
) -> np.ndarray:
    """The user's own times: steps + 1 of them, strictly falling from start to end."""
    _check(steps, start, end)
    grid = check_grid(times)
    if len(grid) != steps + 1 or grid[0] != start or grid[-1] != end:
        raise UserError(
            f"grid 'custom': expected {steps + 1} times from {start} to {end}, got {len(grid)} from {grid[0]}"
        )
    return grid


GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "logsnr": logsnr,
    "karras": karras,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "custom": custom,
}


def make_grid(name: str, schedule: Schedule, steps: int, **options: Any) -> np.ndarray:
    """The grid of GRIDS under `name`; an unknown name or option is a UserError.

    Options: start, end, the grid's own.
    """
    return call(lookup(GRIDS, name, "grid"), f"grid {name!r}", 2, schedule, steps, **options)

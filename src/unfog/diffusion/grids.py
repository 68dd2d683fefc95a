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

from unfog.checks import call, check_whole, lookup
from unfog.diffusion.schedules import Schedule, Shifted, Table
from unfog.diffusion.tuned import TOP, table, tuned_levels
from unfog.errors import UserError


def check_grid(times: Sequence[float] | np.ndarray) -> np.ndarray:
    """`times` as float64 (steps + 1,), strictly falling inside [0, 1]; raises UserError if it is not."""
    try:
        grid = np.array(times, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"grid: need a list of times, got {str(times)[:40]!r}") from None
    if grid.ndim != 1 or len(grid) < 2:
        raise UserError("grid: need a list of at least two times")
    if not np.isfinite(grid).all() or grid[0] > 1.0 or grid[-1] < 0.0:
        raise UserError("grid: times must lie in [0, 1]")
    if not (np.diff(grid) < 0.0).all():
        raise UserError("grid: times must fall strictly from noise (1) to data (0); use fewer steps or another grid")
    return grid


def _check(steps: int, start: float, end: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= 1_000_000:
        raise UserError(f"steps: expected an integer of at least 1 (and at most a million), got {steps!r}")
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
    schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, logsnr_min: float = -10.0, logsnr_max: float = 10.0
) -> np.ndarray:
    """Equal steps in log-SNR between its values at start and end, clipped to [logsnr_min, logsnr_max]."""
    _check(steps, start, end)
    low, high = max(schedule.logsnr(start), logsnr_min), min(schedule.logsnr(end), logsnr_max)
    if not low < high:
        raise UserError(f"grid 'logsnr': nothing between log-SNR {low:.3g} and {high:.3g}; widen logsnr_min, logsnr_max")
    return _close(schedule.time(np.linspace(low, high, steps + 1)), start, end)


def _levels(schedule: Schedule, levels: np.ndarray, start: float, end: float) -> np.ndarray:
    """The grid through falling levels of σ/α: one an interval and then `end` 0, or one a node."""
    times = schedule.time(-2.0 * np.log(levels))
    return _close(np.append(times, 0.0) if end == 0.0 else times, start, end)


def _span(schedule: Schedule, name: str, start: float, end: float, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """The highest and the lowest σ/α between start and end, clipped to [sigma_min, sigma_max]."""
    high = min(sigma_max, math.exp(min(-0.5 * schedule.logsnr(start), 700.0)))
    low = max(sigma_min, math.exp(max(-0.5 * schedule.logsnr(end), -700.0)))
    if not 0.0 < low < high:
        raise UserError(f"grid {name!r}: need 0 < sigma_min < sigma_max inside the schedule, got {low:.3g}, {high:.3g}")
    return high, low


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
    if not rho > 0.0:
        raise UserError(f"grid 'karras': rho must be greater than 0, got {rho}")
    high, low = _span(schedule, "karras", start, end, sigma_min, sigma_max)
    count = steps if end == 0.0 else steps + 1
    return _levels(schedule, np.linspace(high ** (1.0 / rho), low ** (1.0 / rho), count) ** rho, start, end)


def exponential(
    schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> np.ndarray:
    """ln(σ/α) in equal steps from sigma_max to sigma_min, then `end`: Karras with ρ → ∞; also "lu lambdas".

    Unlike "logsnr", it has its first node at sigma_max and its last but one at sigma_min.
    """
    _check(steps, start, end)
    high, low = _span(schedule, "exponential", start, end, sigma_min, sigma_max)
    return _levels(schedule, np.geomspace(high, low, steps if end == 0.0 else steps + 1), start, end)


def flow(
    schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, shift: float = 1.0, tokens: int | None = None
) -> np.ndarray:
    """Equal steps in flow time f = σ/(α + σ), then f ← shift·f/(1 + (shift − 1)·f), for any schedule.

    shift > 0: 3 in SD3, 1 none. tokens: instead, the number of tokens of the picture, from which Flux's rule takes
    shift = e^μ, μ from 0.5 at 256 tokens to 1.15 at 4096 on a line. Sources: Esser et al. 2024, arXiv:2403.03206, eq. 23;
    Black Forest Labs 2024 (the line).
    """
    _check(steps, start, end)
    if tokens is not None:
        check_whole("grid 'flow'", "tokens", tokens, 1)
        shift = math.exp(0.5 + 0.65 * (tokens - 256) / (4096 - 256))
    if not 0.0 < shift < math.inf:
        raise UserError(f"grid 'flow': shift must be greater than 0, got {shift}")
    ends = []
    for t in (start, end):
        place = schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))
        ends.append(place / (shift - (shift - 1.0) * place))
    places = np.linspace(ends[0], ends[1], steps + 1)
    inner = places[1:-1]
    inner = shift * inner / (1.0 + (shift - 1.0) * inner)
    return _close(np.array([start, *schedule.time(2.0 * np.log1p(-inner) - 2.0 * np.log(inner)), end]), start, end)


def beta(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """t at equal steps of the quantile of the Beta(a, b) distribution: for a, b < 1 dense at both ends.

    a, b > 0. Source: Lee et al. 2024, arXiv:2407.12173, §4 (0.6, 0.6).
    """
    _check(steps, start, end)
    if not (0.0 < a < math.inf and 0.0 < b < math.inf):
        raise UserError(f"grid 'beta': a and b must be greater than 0, got {a}, {b}")
    # With t = sin²θ the density is sin^{2a−1}θ·cos^{2b−1}θ, tame enough for a fine sum (to about 1e-5).
    theta = (np.arange(200_000) + 0.5) * (0.5 * math.pi / 200_000)
    mass = np.cumsum(np.sin(theta) ** (2.0 * a - 1.0) * np.cos(theta) ** (2.0 * b - 1.0))
    edges = np.concatenate([[0.0], mass / mass[-1]])
    angles = np.interp(np.linspace(1.0, 0.0, steps + 1), edges, np.linspace(0.0, 0.5 * math.pi, len(edges)))
    return _close(end + (start - end) * np.sin(angles) ** 2, start, end)


AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def ays(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, model: str = "sd15") -> np.ndarray:
    """Levels of σ/α optimised for a published model ("sd15", "sdxl", "svd"), then `end`.

    Other numbers of steps than the table's ten, and parts of it, are read off it linearly in ln(σ/α).
    Source: Sabour et al. 2024 (Align Your Steps), arXiv:2404.14507.
    """
    _check(steps, start, end)
    table = np.log(np.array(lookup(AYS, model, "model of grid 'ays'")))
    high, low = _span(schedule, "ays", start, end, math.exp(table[-1]), math.exp(table[0]))
    places = np.interp(np.log([high, low]), table[::-1], np.arange(len(table))[::-1])
    chosen = np.linspace(places[0], places[1], steps if end == 0.0 else steps + 1)
    return _levels(schedule, np.exp(np.interp(chosen, np.arange(len(table)), table)), start, end)


def auto(schedule: Schedule, steps: int, start: float | None = None, end: float = 0.0, dimension: int = 0) -> np.ndarray:
    """Levels of σ/α learned for this number of steps (tuned.json), for data of standard deviation near 1.

    dimension: numbers in an item: below 48, below 1,024 (also 0, not known) and above have levels of their own. start: by
    default where σ/α = 157, if the schedule begins above: nothing is decided there yet, and networks are seldom trained there.
    Numbers of steps between the tabulated ones are read off the nearest two; beyond the last, its curve is refined and σ_min
    falls as steps⁻². Levels outside start and end are left out and the rest is refined to `steps`.
    """
    if start is None:
        start = float(schedule.time(max(-2.0 * math.log(TOP), float(schedule.logsnr(1.0)))))
    _check(steps, start, end)
    check_whole("grid 'auto'", "dimension", dimension, 0)
    logs = tuned_levels(table(dimension), steps)
    high, low = -0.5 * schedule.logsnr(start), -0.5 * schedule.logsnr(end)
    if not high > logs[min(1, steps - 1)] or not low < logs[-1]:  # inside the table: its spacing on what is left
        places = np.interp([high, low], logs[::-1], np.arange(len(logs))[::-1])
        count = steps if end == 0.0 else steps + 1
        logs = np.interp(np.linspace(places[0], places[1], count), np.arange(len(logs)), logs)
    elif end > 0.0:
        logs = np.append(logs, low)
    return _levels(schedule, np.exp(logs), start, end)


def _table(schedule: Schedule, name: str) -> Table:
    while isinstance(schedule, Shifted):
        schedule = schedule.base
    if not isinstance(schedule, Table):
        raise UserError(f"grid {name!r} counts table indices; this schedule has none, use 'uniform' or 'logsnr'")
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


def leading(schedule: Schedule, steps: int, start: float = 1.0, end: float = 0.0, offset: int = 0) -> np.ndarray:
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
    schedule: Schedule,
    steps: int,
    start: float = 1.0,
    end: float = 0.0,
    times: Sequence[float] = (),
    levels: Sequence[float] = (),
) -> np.ndarray:
    """The user's own times, or levels of σ/α: steps + 1 of them, strictly falling from start to end."""
    _check(steps, start, end)
    if bool(len(times)) == bool(len(levels)):
        raise UserError("grid 'custom': give either times or levels")
    asked = np.array(times, dtype=np.float64)
    if len(levels):
        given = np.array(levels, dtype=np.float64)
        if given.ndim != 1 or not (given >= 0.0).all():
            raise UserError("grid 'custom': levels are σ/α, numbers of at least 0")
        with np.errstate(divide="ignore"):
            asked = schedule.time(-2.0 * np.log(given))
        start, end = float(asked[0]), float(asked[-1])
    grid = check_grid(asked)
    if len(grid) != steps + 1 or grid[0] != start or grid[-1] != end:
        raise UserError(f"grid 'custom': expected {steps + 1} times from {start} to {end}, got {len(grid)} from {grid[0]}")
    return grid


GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "auto": auto,
    "uniform": uniform,
    "logsnr": logsnr,
    "karras": karras,
    "exponential": exponential,
    "flow": flow,
    "beta": beta,
    "ays": ays,
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

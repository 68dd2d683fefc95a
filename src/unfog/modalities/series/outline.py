"""The outline of a series: what classical methods say of its unknown values. A network learns the distribution around it.

    y = z·S (or z + S),   S seasonal indices, shrunk;   ẑ = mean of Theta and damped trend ahead, a bridge of levels in gaps
    scale_h = s·√(1 + α²·(h − 1)),   s the spread of one-step errors of simple smoothing, α its weight

Sources: Assimakopoulos & Nikolopoulos 2000, doi:10.1016/S0169-2070(00)00066-2, and Hyndman & Billah 2003 (Theta as smoothing with
drift); Gardner & McKenzie 1985 (damped trend); Hyndman et al. 2008 (the error's growth); Miller & Williams 2003 (shrunk indices).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ALPHAS = np.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.97])
_HOLT = np.array([(a, b, phi) for a in (0.1, 0.3, 0.6, 0.9) for b in (0.03, 0.12, 0.3) for phi in (0.8, 0.95)])
RECENT = 256  # steps that smoothing looks back
LONGEST = 1536  # steps that anything looks back
MEMORY = (3.0, 6.0)  # seasons after which the weight of a short, of a long season's value has fallen to 1/e


@dataclass(frozen=True)
class Seasonal:
    """index (T,): S at each step. times: whether it multiplies. strength: how much of each season's indices was kept, 0 to 1."""

    index: Floats
    times: bool
    strength: tuple[float, float]


def _filled(y: Floats) -> Floats:
    """Missing values by straight lines between their neighbours."""
    known = np.flatnonzero(np.isfinite(y))
    return np.interp(np.arange(len(y)), known, y[known])


def _moving(y: Floats, m: int) -> Floats:
    """Centred moving average over one season; the ends keep the nearest one with a straight line's slope of none."""
    half = m // 2
    weights = np.full(m + 1 - m % 2, 1.0 / m)
    if m % 2 == 0:
        weights[[0, -1]] = 0.5 / m
    inner = np.convolve(y, weights, "valid")
    return np.concatenate([np.full(half, np.nan), inner, np.full(half, np.nan)])


def _phases(r: Floats, phase: NDArray[np.int64], m: int, neutral: float, weight: Floats | None = None) -> tuple[Floats, float]:
    """Indices of m phases, shrunk to their mean as far as they may be chance, and how much of them was kept."""
    good = np.isfinite(r)
    w = np.ones(good.sum()) if weight is None else weight[good]
    total = np.bincount(phase[good], weights=w, minlength=m)
    mean = np.bincount(phase[good], weights=w * r[good], minlength=m) / np.maximum(total, 1e-12)
    mean[total == 0] = neutral
    mean += neutral - mean.mean()
    left = r[good] - mean[phase[good]]
    count = w.sum() ** 2 / max(float(w @ w), 1e-12) / m  # as many equal values to a phase
    noise = float(w @ left**2 / w.sum()) * count / max(count - 1, 1 / m) / max(count, 1e-9)
    spread = float(((mean - neutral) ** 2).sum()) / max(m - 1, 1)
    kept = max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
    return neutral + kept * (mean - neutral), kept


def seasonal(y: Floats, seasons: tuple[int, ...], length: int) -> Seasonal:
    """Seasonal indices for `length` steps, of y (n,) with NaN where unknown, n ≤ length; 1 (or 0) where there is no season."""
    known = np.isfinite(y)
    usable = [m for m in seasons if m > 1 and known.sum() >= 2 * m]
    if not usable or known.sum() < 8:
        return Seasonal(np.ones(length), True, (0.0, 0.0))
    first, last = (int(f) for f in np.flatnonzero(known)[[0, -1]])
    filled = np.full(len(y), np.nan)
    filled[first : last + 1] = _filled(y[first : last + 1])
    if len(usable) > 1 and last + 1 - first >= 3 * usable[1]:
        return _two_seasons(y, filled[first : last + 1], first, (usable[0], usable[1]), length)
    found: dict[bool, tuple[float, Floats, list[float]]] = {}
    steps = np.arange(length)
    trend = _moving(filled[first : last + 1], usable[-1] if len(usable) == 1 or last + 1 - first >= 3 * usable[-1] else usable[0])
    trend = np.concatenate([np.full(first, np.nan), trend, np.full(len(y) - last - 1, np.nan)])
    for times in (False, True):
        if times and (np.nanmin(y) <= 0 or np.nanmin(trend) <= 0):
            continue
        r = np.where(known, y / trend if times else y - trend, np.nan)
        if not np.isfinite(r).any():
            continue
        neutral, index, kept = float(times), np.full(length, float(times)), [0.0, 0.0]
        for place, m in enumerate(usable[:2]):
            part = r / index[: len(y)] if times else r - index[: len(y)]
            own, kept[place] = _phases(part, steps[: len(y)] % m, m, neutral)
            index = index * own[steps % m] if times else index + own[steps % m]
        fit = trend * index[: len(y)] if times else trend + index[: len(y)]
        found[times] = float(np.nanmean(np.abs(y - fit))), index, kept
    if not found:
        return Seasonal(np.ones(length), True, (0.0, 0.0))
    times = min(found, key=lambda t: found[t][0])
    _, index, kept = found[times]
    return Seasonal(np.maximum(index, 0.02) if times else index, times, (kept[0], kept[1]))


def _two_seasons(y: Floats, filled: Floats, first: int, seasons: tuple[int, int], length: int) -> Seasonal:
    """Indices of a short and a long season by turns, each of what the other and the level leave. The short one's fade fast, so
    that they follow the last few days; the long one's slowly. They add or multiply by what fits the last days better.
    filled: y from `first` on to its last known value."""
    inner = slice(first, first + len(filled))
    steps, every = np.arange(inner.start, inner.stop), np.arange(length)
    fading = [np.exp((steps - inner.stop) / (m * memory)) for m, memory in zip(seasons, MEMORY, strict=True)]
    half = seasons[1] // 2
    found: dict[bool, tuple[float, Floats, list[float]]] = {}
    for times in (False, True):
        if times and filled.min() <= 0:
            continue
        z, index, kept = np.log(filled) if times else filled, [np.zeros(m) for m in seasons], [0.0, 0.0]
        for _ in range(4):
            parts = [own[steps % m] for own, m in zip(index, seasons, strict=True)]
            level = _moving(np.pad(z - parts[0] - parts[1], half, mode="edge"), seasons[1])[half:-half]
            left = np.where(np.isfinite(y[inner]), z - level, np.nan)
            for place in (1, 0):
                phase = steps % seasons[place]
                own, kept[place] = _phases(left - parts[1 - place], phase, seasons[place], 0.0, fading[place])
                if place == 0 and kept[0] > 0:
                    own = own / kept[0]  # what the last days have in common is no chance
                index[place], parts[place] = own, own[phase]
        whole = index[0][every % seasons[0]] + index[1][every % seasons[1]]
        fit = level + whole[inner]
        error = float(np.nanmean(fading[0] * np.abs(y[inner] - (np.exp(fit) if times else fit))))
        found[times] = error, np.exp(whole) if times else whole, kept
    times = min(found, key=lambda t: found[t][0])
    _, index_, kept = found[times]
    return Seasonal(np.maximum(index_, 0.02) if times else index_, times, (kept[0], kept[1]))


@dataclass(frozen=True)
class Smooth:
    """Simple smoothing of rows z (R, T) with the weight that erred least: level (R, T) after each step, error (R, T) of each
    step's forecast by the level before (NaN where unknown), alpha (R,), start (R,): the first known step."""

    level: Floats
    error: Floats
    alpha: Floats


def smooth(z: Floats) -> Smooth:
    """z (R, T), NaN where unknown; each row knows at least one value."""
    rows, length = z.shape
    known = np.isfinite(z)
    first = known.argmax(1)
    begin = z[np.arange(rows), first]
    early = np.where(known & (np.arange(length) < first[:, None] + 4), z, np.nan)
    level = np.where(np.isfinite(begin), np.nanmean(early, 1, where=True), 0.0)[:, None].repeat(len(ALPHAS), 1)
    levels, errors = np.empty((rows, length, len(ALPHAS))), np.full((rows, length, len(ALPHAS)), np.nan)
    values = np.where(known, z, 0.0)
    for t in range(length):
        error = np.where(known[:, t, None], values[:, t, None] - level, 0.0)
        errors[:, t] = error
        level = level + ALPHAS * error
        levels[:, t] = level
    count = np.arange(length) > first[:, None]
    weigh = (known & count)[..., None] * 1.0
    cost = (weigh * errors**2).sum(1)
    best = cost.argmin(1)
    pick = np.arange(rows)
    error = np.where(known & count, errors[pick, :, best], np.nan)
    return Smooth(levels[pick, :, best], error, ALPHAS[best])


def damped(z: Floats) -> tuple[Floats, Floats, Floats]:
    """Damped trend: level, slope and damping (R,) at the last known step of rows z (R, T), with the weights that erred least."""
    rows, length = z.shape
    known = np.isfinite(z)
    first = known.argmax(1)
    newest = length - 1 - known[:, ::-1].argmax(1)
    a, b, phi = _HOLT.T
    level = np.where(known[:, 0], z[:, 0], z[np.arange(rows), first])[:, None].repeat(len(a), 1)
    slope, cost = np.zeros_like(level), np.zeros_like(level)
    values = np.where(known, z, 0.0)
    for t in range(length):
        ahead = phi * slope
        error = np.where(known[:, t, None], values[:, t, None] - level - ahead, 0.0)
        started = ((t > first) & (t <= newest))[:, None]
        cost += np.where(started, error**2, 0.0)
        moved = np.where(started, 1.0, 0.0)
        level = level + moved * (ahead + a * error)
        slope = np.where(started, ahead + a * b * error, slope)
    best, pick = cost.argmin(1), np.arange(rows)
    return level[pick, best], slope[pick, best], phi[best]


def drift(z: Floats) -> Floats:
    """Slope (R,) of the straight line through each row's known values."""
    known = np.isfinite(z)
    t = np.arange(z.shape[1], dtype=float)
    count = np.maximum(known.sum(1), 1)
    mean_t = (known * t).sum(1) / count
    mean_z = np.where(known, z, 0).sum(1) / count
    off = np.where(known, t - mean_t[:, None], 0.0)
    return (off * np.where(known, z - mean_z[:, None], 0.0)).sum(1) / np.maximum((off**2).sum(1), 1e-9)


def spread(error: Floats, season: NDArray[np.int64]) -> Floats:
    """Root mean square (R,) of a row's last errors, three seasons or 24 of them, but not below a quarter of that of all."""
    known = np.isfinite(error)
    age = np.cumsum(known[:, ::-1], 1)[:, ::-1]
    near = known & (age <= np.maximum(24, 3 * season)[:, None])
    square = np.where(known, error, 0.0) ** 2

    def root(where: Bools) -> Floats:
        return np.sqrt((square * where).sum(1) / np.maximum(where.sum(1), 1))

    return np.maximum(root(near), 0.25 * root(known))


def since(known: Bools) -> NDArray[np.int64]:
    """Steps (R, T) since the last known value: 0 where known, 1 just after one; T + 1 before the first."""
    length = known.shape[1]
    place = np.where(known, np.arange(length), -length - 1)
    last = np.maximum.accumulate(place, 1)
    return np.minimum(np.arange(length) - last, length + 1)

"""How good forecasts are: CRPS of samples or quantiles, MASE of medians, coverage of intervals.

    CRPS = E|X − y| − ½·E|X − X′|      (of S samples sorted: both terms in one pass)

Sources: Gneiting & Raftery 2007, doi:10.1198/016214506000001437, eq. 21; Hyndman & Koehler 2006 (MASE).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = (0.8, 0.95)


def crps(samples: Floats, truth: Floats) -> Floats:
    """CRPS (*D) of samples (S, *D) as equally likely values, in the data's unit."""
    ordered = np.sort(samples, axis=0)
    count = len(ordered)
    rank = (2 * np.arange(1, count + 1) - count - 1).reshape(-1, *(1,) * truth.ndim)
    apart = (rank * ordered).sum(0) / count**2  # ½·E|X − X′|
    return np.abs(samples - truth).mean(0) - apart


def quantile_crps(quantiles: Floats, levels: Floats, truth: Floats) -> Floats:
    """Twice the mean pinball loss (*D) of quantiles (Q, *D) at evenly spread levels (Q,): CRPS as Q grows."""
    levels = levels.reshape(-1, *(1,) * truth.ndim)
    off = truth - quantiles
    return 2 * np.maximum(levels * off, (levels - 1) * off).mean(0)


def inside(samples: Floats, truth: Floats, level: float) -> NDArray[np.bool_]:
    """Whether truth (*D) lies between the quantiles of samples (S, *D) that hold `level` of them in their middle."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (low <= truth) & (truth <= high)


def usual_step(past: Floats, season: int) -> float:
    """Mean absolute error of the seasonal naive forecast within `past` (T,): the unit of MASE; NaN where there is none."""
    season = season if len(past) > season else 1
    steps = np.abs(past[season:] - past[:-season])
    steps = steps[np.isfinite(steps)]
    return float(steps.mean()) if len(steps) and steps.mean() > 0 else float("nan")


def seasonal_naive(past: Floats, season: int, ahead: int, samples: int, rng: np.random.Generator) -> Floats:
    """Samples (S, ahead) around the value one season ago: past residuals of the same forecast, as often as it is repeated."""
    season = season if len(past) > season else 1
    filled = np.interp(np.arange(len(past)), *_known(past))
    center = np.resize(filled[-season:], ahead)
    residuals = filled[season:] - filled[:-season]
    residuals = residuals if len(residuals) else np.zeros(1)
    out = np.tile(center, (samples, 1))
    for cycle in range(-(-ahead // season)):
        out[:, cycle * season :] += rng.choice(residuals, (samples, ahead))[:, cycle * season :]
    return out


def _known(past: Floats) -> tuple[Floats, Floats]:
    at = np.flatnonzero(np.isfinite(past))
    return at.astype(float), past[at]

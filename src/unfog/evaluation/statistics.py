"""How far a figure may be from the truth: bootstrap intervals over clusters, for means and for shares.

    resample the C clusters with replacement; mean* = Σ_c n_c·(sum of c) / Σ_c n_c·(size of c); take quantiles

Pictures of one concept succeed and fail together, so whole concepts are drawn, never single pictures.
Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13 (percentile interval); Davison and Hinkley 1997,
section 3.8 (clusters).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2_000
LEVEL = 0.95


def bootstrap_interval(
    values: ArrayLike, clusters: Sequence[object] | None = None, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean of `values` (N,), whole clusters resampled.

    Args: clusters, N labels (None: each value is its own); level, in (0, 1).
    Raises: ValueError where there are no values or the counts differ.
    """
    return _interval(_means(values, clusters, resamples, seed), level)


def share_interval(
    part: ArrayLike,
    whole: ArrayLike,
    part_clusters: Sequence[object],
    whole_clusters: Sequence[object],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of mean(part) / mean(whole).

    Both are drawn with the same clusters where their clusters are the same, item by item (pairs), else apart.
    A draw whose reference is 0 counts as an infinite share.
    """
    paired = list(part_clusters) == list(whole_clusters)
    above = _means(part, part_clusters, resamples, seed)
    below = _means(whole, whole_clusters, resamples, seed if paired else seed + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(np.where(below > 0, above / below, np.inf), level)


def _means(values: ArrayLike, clusters: Sequence[object] | None, resamples: int, seed: int) -> NDArray[np.float64]:
    """The mean of each resample (resamples,)."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"bootstrap needs one row of values, got shape {x.shape}")
    if clusters is not None and len(clusters) != len(x):
        raise ValueError(f"bootstrap got {len(clusters)} clusters for {len(x)} values")
    codes: dict[object, int] = {}
    labels: Sequence[object] = range(len(x)) if clusters is None else clusters
    of = np.array([codes.setdefault(label, len(codes)) for label in labels])
    sums, sizes = np.bincount(of, x), np.bincount(of)
    draws = np.random.default_rng(seed).multinomial(len(codes), np.full(len(codes), 1 / len(codes)), resamples)
    return (draws @ sums) / (draws @ sizes)


def _interval(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    # Order statistics, not interpolation: an infinite share must not turn its neighbours into NaN.
    low, high = np.quantile(draws, (tail, 1 - tail), method="nearest")
    return float(low), float(high)

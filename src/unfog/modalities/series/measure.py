"""What is measured of synthesised series: whether they are as rough, as periodic and as spread as real held-out ones.

Forecasts are scored apart (`scores.py`, `unfog forecast --score`, benchmarks/forecast.py): they need a past, which prompts lack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.contract import Items, Measured
from unfog.modalities.series.table import Table
from unfog.modalities.series.window import LENGTH

Floats = NDArray[np.float64]
FEWEST = 8


def standard(y: Floats) -> Floats:
    """y without its mean, in its own standard deviations; missing values by straight lines."""
    at = np.flatnonzero(np.isfinite(y))
    y = np.interp(np.arange(len(y)), at, y[at])
    return (y - y.mean()) / max(float(y.std()), 1e-12)


def correlation(y: Floats, lag: int) -> float:
    """Autocorrelation of standardised y (T,) at a lag; 0 where it is too short."""
    return float((y[lag:] * y[:-lag]).sum() / len(y)) if 0 < lag < len(y) else 0.0


def roughness(y: Floats, season: int) -> float:
    """Mean absolute step, in standard deviations."""
    return float(np.abs(np.diff(y)).mean())


def neighbour(y: Floats, season: int) -> float:
    return correlation(y, 1)


def periodic(y: Floats, season: int) -> float:
    return correlation(y, season)


def jump(y: Floats, season: int) -> float:
    """The largest step beside the mean one."""
    steps = np.abs(np.diff(y))
    return float(steps.max() / max(float(steps.mean()), 1e-12))


STATISTICS: dict[str, Callable[[Floats, int], float]] = {
    "autocorrelation at lag 1": neighbour, "autocorrelation at one season": periodic, "mean absolute step": roughness,
    "largest step beside the mean": jump,
}  # fmt: skip


def distance(a: Floats, b: Floats) -> float:
    """Wasserstein-1 distance of two samples of numbers: the mean distance of their quantiles."""
    levels = (np.arange(512) + 0.5) / 512
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).mean())


def _usable(tables: Sequence[Table]) -> list[tuple[Floats, int]]:
    found = []
    for table in tables:
        for y in table.values[-LENGTH:].T:
            if np.isfinite(y).sum() >= FEWEST:
                found.append((standard(y), min((m for m in table.seasons if m > 1), default=1)))
    return found


def measure(made: Sequence[Table], prompts: Sequence[str], real: Items, seed: int) -> list[Measured]:
    """Distances of the distributions of simple statistics, beside those of one half of the held-out series to the other."""
    wanted = {p for p in prompts if p in set(real.prompts)} or set(real.prompts)
    held = [i for i in real.split("heldout") if real.prompts[i] in wanted] or list(range(len(real)))
    order = np.random.default_rng(seed).permutation(len(held))[:2000]
    others = [real.raw[held[i]] for i in order]
    own, first, second = _usable(made), _usable(others[0::2]), _usable(others[1::2])
    if not (own and first):
        return []
    second, rows = second or first, []
    for name, statistic in STATISTICS.items():
        values, one, two = (np.array([statistic(y, m) for y, m in part]) for part in (own, first, second))
        rows.append(Measured("fidelity", f"distance of {name}", distance(values, np.concatenate([one, two])),
                             distance(one, two), better="lower"))  # fmt: skip
    values, one, two = (np.concatenate([y for y, _ in part]) for part in (own, first, second))
    rows.append(Measured("fidelity", "distance of standardised values", distance(values, np.concatenate([one, two])),
                         distance(one, two), better="lower"))  # fmt: skip
    return rows

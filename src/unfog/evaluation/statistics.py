"""How far a figure may be from the truth: bootstrap intervals of means and shares, jackknife intervals of distances.

    bootstrap   resample the C clusters with replacement; mean* = Σ_c n_c·(sum of c) / Σ_c n_c·(size of c); take quantiles
    jackknife   leave each of G groups out of both sets; pseudo-value p_g = G·T − (G − 1)·T₋g; mean p ± t_{G−1}·s/√G

Pictures of one concept succeed and fail together, so whole concepts are drawn, never single pictures.
A bootstrap of a Fréchet distance, a kernel distance or anything of nearest neighbours is wrong by more than it is wide:
drawn twice, an item is its own neighbour, and a bias of 1/n is counted twice. Leaving groups out keeps the items apart,
takes the bias off instead, and costs G + 5 distances, not thousands.
Sources: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 11 and 13; Davison and Hinkley 1997, section 3.8
(clusters); Chong and Forsyth 2020, arXiv:1911.07023 (extrapolating a Fréchet distance to infinitely many samples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unfog.errors import UserError

RESAMPLES = 2_000
LEVEL = 0.95
GROUPS = 10  # left out one after another; more narrow an interval by at most a tenth and cost a distance each
# The two-sided 95 % quantile of Student's t with 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)  # fmt: skip


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


def difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    first_clusters: Sequence[object],
    second_clusters: Sequence[object],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of mean(first) − mean(second), drawn together where their clusters are the same, item by item."""
    paired = list(first_clusters) == list(second_clusters)
    ours = _means(first, first_clusters, resamples, seed)
    return _interval(ours - _means(second, second_clusters, resamples, seed if paired else seed + 1), level)


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


@dataclass(frozen=True)
class Estimate:
    """A figure of two sets with its 95 % interval for the value that it estimates."""

    name: str
    value: float  # as defined, on all samples: what other tools print
    corrected: float  # with the bias of finite samples taken off; the interval is of this
    low: float
    high: float
    n: int  # real samples
    m: int  # made samples
    pseudo: tuple[float, ...] = field(repr=False)  # one value for each group left out
    slack: float = field(default=0.0, repr=False)  # bias that may be left, signed


@dataclass(frozen=True)
class Difference:
    """One model's figure minus another's, with its 95 % interval; `real` where that excludes 0."""

    name: str
    value: float
    low: float
    high: float
    real: bool

    def __str__(self) -> str:
        said = "a real difference" if self.real else "no difference that these samples can show"
        return f"{self.name}: {self.value:+.4g} [{self.low:+.4g}, {self.high:+.4g}]: {said}"


@dataclass(frozen=True)
class Floor:
    """What a measure gives between two sets that are alike: its mean and range over repeated random splits."""

    mean: float
    low: float
    high: float
    n: int  # samples on each side
    repeats: int


def student(groups: int) -> float:
    """The 95 % quantile of Student's t for a mean of `groups` values."""
    return STUDENT[groups - 2] if groups <= len(STUDENT) + 1 else 1.96 + 2.4 / (groups - 1)


def grouped(
    n: int, m: int, groups: int = GROUPS, clusters: tuple[Sequence[object], Sequence[object]] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group, from 0, of each of n real and m made items: at random, but the same whenever the counts are the same.

    So row i of two models that were given the same captions and seeds in the same order is left out together.
    Args: clusters, a label for every real and every made item: items of one label stay together.
    Raises: UserError where there are too few items or labels for two groups.
    """
    draw = np.random.default_rng(0)
    if clusters is None:
        groups = min(groups, n // 2, m // 2)
        if groups < 2:
            raise UserError(f"interval: {min(n, m)} samples are too few for one; give 4 or more")
        found = [draw.permutation(count) % groups for count in (n, m)]
        return found[0], found[1]
    if (len(clusters[0]), len(clusters[1])) != (n, m):
        raise UserError(f"interval: {len(clusters[0])} and {len(clusters[1])} labels for {n} and {m} samples; label each one")
    sizes: dict[object, int] = {}
    for label in (*clusters[0], *clusters[1]):
        sizes[label] = sizes.get(label, 0) + 1
    groups = min(groups, len(sizes))
    if groups < 2:
        raise UserError("interval: all samples have one label; leave the labels out or give different ones")
    order = [list(sizes)[i] for i in draw.permutation(len(sizes))]
    full, group = np.zeros(groups, np.int64), {}
    for label in sorted(order, key=lambda label: -sizes[label]):  # the largest first, each into the emptiest group
        group[label] = int(full.argmin())
        full[group[label]] += sizes[label]
    found = [np.array([group[label] for label in labels], np.int64) for labels in clusters]
    for labels, whose in zip(found, ("real", "made"), strict=True):
        if np.bincount(labels, minlength=groups).max() > len(labels) - 2:
            raise UserError(f"interval: nearly all {whose} samples have one label; leave the labels out or give different ones")
    return found[0], found[1]


def jackknifed(
    name: str,
    value: float,
    left_out: ArrayLike,
    n: int,
    m: int,
    *,
    halves: Sequence[float] = (),
    biased: bool = True,
    bounds: tuple[float, float] = (0.0, math.inf),
    square: bool = False,
    variance: float = 0.0,
    answers: int | None = None,
) -> Estimate:
    """The estimate from a figure on all samples and on all but each group.

    Args: left_out (G,); halves, the figure on random halves of both sets: how far they are from a bias of 1/n is how much
        of it may be left; biased, whether to take a bias of 1/n off; bounds, what the true value may be; square, whether
        it is a squared distance; variance, more of it that leaving out cannot show; answers, for a share, how many yes or
        no answers it is made of.
    """
    t = np.asarray(left_out, np.float64)
    groups = len(t)
    centre = groups * value - (groups - 1) * float(t.mean()) if biased else value
    pseudo = centre - (groups - 1) * (t - t.mean())
    error = math.sqrt(float(pseudo.var(ddof=1)) / groups + variance)
    slack = 0.0
    if halves:
        kept = 1 - 1 / groups
        # With a bias b/n + c/n², extrapolating from a share f leaves −c/(f·n²): the two differ by a known part of it.
        slack = (2 * value - float(np.mean(halves)) - centre) / kept / (2 - 1 / kept)
    reach = student(groups) * error
    low, high = centre - reach - abs(slack), max(centre, bounds[0]) + reach + abs(slack)
    if square and centre > 0 and reach > 0:
        # Sets that happen to give a small distance show a small spread too: the upper end is that of the logarithm, to
        # second order, where the distance is clear of 0, and fades to the plain one where it is not.
        high += reach / 2 * min(reach / centre, centre / reach)
    if answers:
        # Where all answers are alike, leaving groups out shows no spread; Wilson's interval does.
        z2 = 1.96**2
        middle = (value + z2 / (2 * answers)) / (1 + z2 / answers)
        side = math.sqrt(z2 * (value * (1 - value) / answers + z2 / (4 * answers**2))) / (1 + z2 / answers)
        low, high = min(low, middle - side), max(high, middle + side)
    low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(name, value, centre, low, high, n, m, tuple(pseudo.tolist()), slack)


def differ(a: Estimate, b: Estimate) -> Difference:
    """Whether two models' figures differ, a − b, held against the same real set (or sets as large, drawn alike).

    Group by group, so that what both share cancels: the real set always, captions and seeds where the made sets have
    them row by row in the same order.
    Raises: UserError where the figures are not of one kind or not of as many groups.
    """
    if a.name != b.name or len(a.pseudo) != len(b.pseudo):
        raise UserError(f"differ: {a.name} and {b.name} are not the same figure of as many groups; estimate both alike")
    if a.m != b.m and a.corrected == a.value and a.name in SIZED:
        raise UserError(f"differ: {a.name} changes with the sample size, here {a.m} and {b.m}; make as many of both")
    d = np.array(a.pseudo) - np.array(b.pseudo)
    reach = student(len(d)) * math.sqrt(float(d.var(ddof=1)) / len(d)) + abs(a.slack - b.slack)
    value = float(d.mean())
    return Difference(a.name, value, value - reach, value + reach, abs(value) > reach)


SIZED = ("precision", "recall", "density", "coverage")  # figures that have a meaning only at their sample size


def noise_floor(
    measure: Callable[[Any, Any], float],
    x: NDArray[Any],
    y: NDArray[Any] | None = None,
    *,
    size: int | None = None,
    repeats: int = 10,
    seed: int = 0,
) -> Floor:
    """What a measure gives where nothing differs: half of x against its other half, or x against y, repeated at random.

    Args: x (N, D); y (M, D), e.g. held-out items (None: the other half of x); size, samples on each side: that of the
        figure which the floor is for, as most figures change with it (at most what there is, which is the default).
    Raises: UserError where there are fewer than 2 samples a side.
    """
    most = len(x) // 2 if y is None else min(len(x), len(y))
    count = min(size or most, most)
    if count < 2:
        raise UserError(f"noise floor: {len(x)} samples are too few; give 4 or more")
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        rows = draw.permutation(len(x))
        other = x[rows[count : 2 * count]] if y is None else y[draw.permutation(len(y))[:count]]
        found.append(measure(x[rows[:count]], other))
    return Floor(float(np.mean(found)), float(np.min(found)), float(np.max(found)), count, repeats)

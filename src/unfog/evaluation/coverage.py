"""Does every made item look real, and is every real item covered? Precision, recall, density, coverage; and diversity.

    ball(x) = points nearer to x than its k-th neighbour within its own set
    precision  share of made items in some real ball           recall    share of real items in some made ball
    density    mean number of real balls around a made item, over k      coverage  share of real balls with a made item in them

All four change with the sample size (balls shrink as sets grow): compare figures of one size only. A point lies in its
own ball even where more than k duplicates make that ball's radius 0. Sources: Kynkäänniemi et al. 2019, arXiv:1904.06991
(precision, recall); Naeem et al. 2020, arXiv:2002.09797 (density, coverage).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unfog.errors import UserError
from unfog.evaluation.distances import checked, checked_pair

Array = NDArray[np.float64]
NEIGHBOURS = 5
BLOCK = 512  # rows of distances at once; bounds the memory
SAME = 1e-12  # squared distance over squared lengths below which float32 features are the same point


@dataclass(frozen=True)
class PRDC:
    """Precision, recall and coverage in [0, 1]; density from 0, about 1 where the sets are alike."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: ArrayLike, made: ArrayLike, k: int = NEIGHBOURS) -> PRDC:
    """Precision, recall, density and coverage of made features (M, D) against real ones (N, D), distances in blocks.

    Raises: UserError where a set has no more than k rows, is not finite, or has another width.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UserError(f"neighbours: k must be a whole number of at least 1, got {k!r}")
    x, y = centred(*checked_pair(real, made, least=k + 1, names=("real set", "made set")))
    real_radius, made_radius = radii(x, k), radii(y, k)
    inside, covered, recalled = np.zeros(len(y), np.int64), 0, 0
    for rows, squares in blocks(x, y):
        held = within(squares, real_radius[rows, None])
        inside += held.sum(0)
        covered += int(held.any(1).sum())
        recalled += int(within(squares, made_radius[None]).any(1).sum())
    return PRDC(float((inside > 0).mean()), recalled / len(x), float(inside.mean() / k), covered / len(x))


def diversity(features: ArrayLike) -> float:
    """The mean Euclidean distance between two different items (N, D); made over real says how much variety was kept.

    Chosen over the Vendi score, which grows with the sample size and with the choice of a kernel: this mean has no bias at
    any size, so that a made and a real set may differ in size.
    Raises: UserError where there are fewer than 2 rows or one is not finite.
    """
    x = checked(features)
    if len(x) < 2:
        raise UserError("diversity: 1 sample has no variety; give 2 or more")
    (x,) = centred(x)
    total = sum(float(np.sqrt(squares).sum()) for _, squares in blocks(x, x))
    return total / (len(x) * (len(x) - 1))


def centred(*sets: NDArray[np.floating]) -> tuple[Array, ...]:
    """The sets in float64 around the first one's mean: squared distances by products lose less to rounding there."""
    middle = sets[0].mean(0, dtype=np.float64)
    return tuple(x - middle for x in sets)


def blocks(x: Array, y: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of x and their squared distances (B, M) to all of y; 0 where two rows are the same point."""
    of_x, of_y = (np.einsum("nd,nd->n", z, z) for z in (x, y))
    for i in range(0, len(x), BLOCK):
        rows = slice(i, min(i + BLOCK, len(x)))
        lengths = of_x[rows, None] + of_y
        squares = lengths - 2 * (x[rows] @ y.T)
        squares[squares <= SAME * lengths] = 0
        yield rows, squares


def radii(x: Array, k: int) -> Array:
    """The squared distance (N,) of each row to its k-th nearest other row."""
    found = np.empty(len(x))
    for rows, squares in blocks(x, x):
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = -1  # itself comes first, whatever its copies do
        found[rows] = np.partition(squares, k, axis=1)[:, k]
    return found


def within(squares: Array, radius: Array) -> NDArray[np.bool_]:
    """Which squared distances lie inside a ball; a tie with its edge does not, however it was rounded."""
    return (squares < radius * (1 - SAME)) | (squares == 0)

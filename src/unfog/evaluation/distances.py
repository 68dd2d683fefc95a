"""How far one set of features lies from another: Fréchet, kernel (KID) and sliced Wasserstein (MIND) distances, in float64.

    Fréchet   |μa − μb|² + tr A + tr B − 2·tr √(AB)                        A, B covariances over n − 1
    kernel    mean k(x, x') + mean k(y, y') − 2·mean k(x, y)               k(x, y) = (x·y / D + 1)³, no point with itself
    MIND      3D · mean over directions u of W₂²(u·x, u·y)                 u uniform on the sphere

Every one is 0 between equal distributions, and every one but the kernel distance is too high by about 1/n on samples;
`statistics.py` takes that off and gives the interval. Sources: Heusel et al. 2017, arXiv:1706.08500 (FID); Bińkowski et
al. 2018, arXiv:1801.01401 (KID); Berthet et al. 2026, arXiv:2605.06797 (MIND, "Monge Inception Distance").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unfog.errors import UserError

Array = NDArray[np.float64]
BLOCK = 1024  # rows at once; bounds the memory
PROJECTIONS = 1_000  # of MIND, as in its paper
DIRECTIONS = 100  # projected and sorted at once
SEED = 2020  # torch-fidelity's, so that subsets and directions are the same


def checked(features: ArrayLike, where: str = "features") -> NDArray[np.floating]:
    """Features (N, D) of at least one row, all finite, as float32 or float64. Raises UserError in one line."""
    try:
        x = np.asarray(features)
        x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: not numbers in rows (N, D); give one vector of features for each item") from None
    if x.ndim != 2 or x.shape[1] == 0:
        raise UserError(f"{where}: must be rows (N, D), got shape {x.shape}; give one vector of features for each item")
    if len(x) == 0:
        raise UserError(f"{where}: the set is empty; there is nothing to compare")
    bad = sum(int((~np.isfinite(x[i : i + BLOCK])).any(1).sum()) for i in range(0, len(x), BLOCK))
    if bad:
        raise UserError(f"{where}: {bad} of {len(x)} rows have NaN or infinite features; mend or leave out those items")
    return x


def checked_pair(
    x: ArrayLike, y: ArrayLike, least: int = 1, names: tuple[str, str] = ("first set", "second set")
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Two feature sets of one width, each of at least `least` rows. Raises UserError in one line."""
    a, b = (checked(features, name) for features, name in zip((x, y), names, strict=True))
    _same_width(a.shape[1], b.shape[1])
    for features, name in zip((a, b), names, strict=True):
        if len(features) < least:
            raise UserError(f"{name}: {len(features)} samples are too few here; give {least} or more")
    return a, b


def _same_width(a: int, b: int) -> None:
    if a != b:
        raise UserError(f"features: the sets have {a} and {b} numbers a sample; make both with the same reader")


@dataclass(frozen=True, eq=False)
class Moments:
    """How many, their mean (D,) and covariance (D, D) over n − 1, in float64: all that a Fréchet distance asks of a set."""

    n: int
    mean: Array
    cov: Array

    @classmethod
    def of(cls, blocks: NDArray[Any] | Iterable[ArrayLike]) -> Moments:
        """Of one array (N, D), or of any number of arrays (B, D) that come one after another; only one is held at a time.

        Raises: UserError where there are fewer than 2 rows, widths differ, or a feature is not finite.
        Source: Chan, Golub and LeVeque 1983 (merging of sums of squares without cancellation).
        """
        n, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
        for part in [blocks] if isinstance(blocks, np.ndarray) else blocks:
            whole = checked(part)
            for i in range(0, len(whole), BLOCK):
                x = whole[i : i + BLOCK].astype(np.float64)
                if n == 0:
                    mean, scatter = np.zeros(x.shape[1]), np.zeros((x.shape[1],) * 2)
                _same_width(len(mean), x.shape[1])
                middle = x.mean(0)
                x -= middle
                step, total = middle - mean, n + len(x)
                scatter += x.T @ x
                scatter += np.outer(step, step) * (n * len(x) / total)
                mean = mean + step * (len(x) / total)
                n = total
        if n == 0:
            raise UserError("features: the set is empty; there is nothing to compare")
        if n < 2:
            raise UserError("features: 1 sample has no covariance; give 2 or more")
        return cls(n, mean, scatter / (n - 1))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        _same_width(len(self.mean), len(other.mean))
        n, step = self.n + other.n, other.mean - self.mean
        scatter = self.cov * (self.n - 1) + other.cov * (other.n - 1) + np.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), scatter / (n - 1))


def shortage(samples: int, dim: int) -> str | None:
    """Why `samples` are too few for a covariance of `dim` features, in one line; None where they are enough."""
    if samples > dim:
        return None
    return f"{samples} samples are too few for {dim} dimensions: their covariance is singular; take {dim + 1} or more"


def frechet(a: Moments, b: Moments, force: bool = False) -> float:
    """The Fréchet distance of two Gaussians with these moments (squared, as FID is reported), ≥ 0.

    Exact for singular covariances too: tr √(AB) is the sum of the singular values of Fᵀ·G with A = F·Fᵀ, B = G·Gᵀ, so no
    root of a rounding error is ever taken.
    Args: force, compute it although a set has no more samples than dimensions (the figure then means little).
    Raises: UserError where widths differ, a moment is not finite, or there are too few samples and `force` is not set.
    """
    _same_width(len(a.mean), len(b.mean))
    if not all(np.isfinite(part).all() for m in (a, b) for part in (m.mean, m.cov)):
        raise UserError("features: a mean or a covariance is not finite; mend or leave out those items")
    short = shortage(min(a.n, b.n), len(a.mean))
    if short and not force:
        raise UserError(f"Fréchet distance: {short}, or force it")
    step = a.mean - b.mean
    shared = np.linalg.svd(factor(a.cov, a.n).T @ factor(b.cov, b.n), compute_uv=False).sum()
    return max(0.0, float(step @ step + np.trace(a.cov) + np.trace(b.cov) - 2 * shared))


def factor(cov: Array, n: int | None = None) -> Array:
    """F (D, r) with cov = F·Fᵀ: Cholesky's where the matrix has full rank, else from its eigenvectors without the null space."""
    d = len(cov)
    floor = d * np.finfo(np.float64).eps * max(float(np.trace(cov)), 0.0)
    if n is None or n > d:
        try:
            lower = np.linalg.cholesky(cov)
            if np.diagonal(lower).min() ** 2 > floor:
                return np.asarray(lower)
        except np.linalg.LinAlgError:
            pass
    values, vectors = np.linalg.eigh(cov)
    keep = values > floor
    return np.asarray(vectors[:, keep] * np.sqrt(values[keep]))


def kernel(x: Array, y: Array) -> Array:
    """KID's cubic polynomial kernel of rows (N, D) and (M, D): (N, M)."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """KID: the unbiased estimate of the squared maximum mean discrepancy under `kernel`; below 0 by chance near equality.

    Args: x (N, D), y (M, D), each of 2 rows or more; computed in blocks.
    Raises: UserError where a set is too small, not finite, or of another width.
    """
    a, b = checked_pair(x, y, least=2)
    n, m = len(a), len(b)
    within = [(_kernel_sum(s, s) - _diagonal_sum(s)) / (len(s) * (len(s) - 1)) for s in (a, b)]
    return float(within[0] + within[1] - 2 * _kernel_sum(a, b) / (n * m))


def kernel_blocks(x: ArrayLike, y: ArrayLike, subsets: int = 100, size: int = 1000, seed: int = SEED) -> tuple[float, float]:
    """KID as torch-fidelity reports it: mean and spread of `kernel_distance` over random subsets, the same for its seed.

    Args: x (N, D), y (M, D); size, rows of each subset, drawn without replacement, at most N and M.
    Raises: UserError where a set has fewer than `size` rows.
    """
    a, b = checked_pair(x, y, least=max(size, 2))
    draw = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        rows = draw.choice(len(a), size, replace=False)
        found.append(kernel_distance(a[rows], b[draw.choice(len(b), size, replace=False)]))
    return float(np.mean(found)), float(np.std(found))


def _kernel_sum(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    total = 0.0
    for i in range(0, len(x), BLOCK):
        rows = x[i : i + BLOCK].astype(np.float64)
        for j in range(0, len(y), BLOCK):
            total += float(kernel(rows, y[j : j + BLOCK].astype(np.float64)).sum())
    return total


def _diagonal_sum(x: NDArray[np.floating]) -> float:
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return float(((squares / x.shape[1] + 1) ** 3).sum())


def mind(x: ArrayLike, y: ArrayLike, projections: int = PROJECTIONS, seed: int = SEED) -> float:
    """MIND: 3D times the mean squared 2-Wasserstein distance of the sets' projections on random directions, ≥ 0.

    The Monge Inception Distance where the features are Inception's; of other features it is the same sum under another
    name. Unlike in the paper the sets may differ in size: each direction's distance is between whole quantile functions.
    Args: x (N, D), y (M, D); projections, how many directions; seed, of the directions.
    Raises: UserError where a set is empty, not finite, or of another width.
    """
    a, b = checked_pair(x, y)
    total = 0.0
    for u in directions(a.shape[1], projections, seed):
        total += float(wasserstein(np.sort(a @ u, axis=0), np.sort(b @ u, axis=0)).sum())
    return 3 * a.shape[1] * total / projections


def directions(dim: int, projections: int, seed: int) -> Iterable[Array]:
    """Unit vectors (dim, some) in parts, uniform on the sphere, `projections` in all: torch-fidelity's for the same seed."""
    import torch

    drawn = torch.randn(projections, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    for i in range(0, projections, DIRECTIONS):
        u = drawn[i : i + DIRECTIONS].T.numpy().astype(np.float64)
        yield u / np.linalg.norm(u, axis=0)


def wasserstein(x: Array, y: Array) -> Array:
    """The squared 2-Wasserstein distance of each column of sorted x (N, P) and sorted y (M, P): (P,)."""
    n, m = len(x), len(y)
    if n == m:
        return ((x - y) ** 2).mean(0)
    # Both quantile functions are steps; between two jumps of either, the difference is constant.
    jumps = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
    widths = np.diff(jumps, prepend=0) / (n * m)
    return np.asarray(widths @ (x[(jumps - 1) // m] - y[(jumps - 1) // n]) ** 2)

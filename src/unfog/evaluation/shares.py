"""A share with its exact interval."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from unfog.schema import Part

LEVEL = 0.95


class Share(Part):
    """A share with its exact 95 % interval (Clopper and Pearson 1934) and the number it is taken over."""

    value: float
    low: float
    high: float
    n: int = Field(ge=1)

    @classmethod
    def of(cls, hits: ArrayLike) -> Share:
        """The share of True among `hits` (N,)."""
        x = np.asarray(hits, bool)
        low, high = exact_interval(int(x.sum()), len(x))
        return cls(value=float(x.mean()), low=low, high=high, n=len(x))

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}"


def exact_interval(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The shares under which `hits` of `n` or fewer, or or more, still happen with (1 − level)/2 (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2

    def at_most(k: int, p: float) -> float:
        if p <= 0:
            return 1.0
        if p >= 1:
            return float(k >= n)
        terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
                 for i in range(k + 1)]  # fmt: skip
        top = max(terms)
        return math.exp(top) * math.fsum(math.exp(t - top) for t in terms)

    def solve(share_is_low: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if share_is_low(middle) else (low, middle)
        return (low + high) / 2

    lower = 0.0 if hits == 0 else solve(lambda p: 1 - at_most(hits - 1, p) < tail)
    upper = 1.0 if hits == n else solve(lambda p: at_most(hits, p) > tail)
    return lower, upper

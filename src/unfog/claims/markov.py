"""The forward process is a Markov chain, and its steps add up to the direct law.

    x_t = (α_t/α_s)·x_s + √(σ_t² − (α_t/α_s)²·σ_s²)·z      ⇒      x_t ~ N(α_t·x0, σ_t²),   x_t ⟂ x0 | x_s

Sources: Sohl-Dickstein et al. 2015, arXiv:1503.03585, §2.1; Ho et al. 2020, arXiv:2006.11239, eq. 4; Song et al. 2021,
arXiv:2010.02502, §3 (processes with the same marginals that are no Markov chains: the control here).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unfog.claims import emoji
from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.mixtures import MIXTURES, end, over_runs, sliced
from unfog.diffusion.schedules import Cosine, Schedule, Table

STEPS = 1000

STATEMENT = Statement(
    title="The forward process is Markov, and a thousand steps are one",
    says="Each noisy state depends on the one before it alone, and any number of small steps gives the same law as one jump "
         "x_t = α·x0 + σ·ε.",
    source="Ho et al. 2020, arXiv:2006.11239, eq. 2 and 4",
    how="Covariances of 1,000 steps by exact algebra on Gaussian data; on pixels of real pictures and on a mixture the steps are "
        "simulated and the partial correlation of x_t and x0 given x_s is measured, beside a control with one noise for all "
        "times (DDIM's other process), which the same measure must find. Steps and jump are compared as clouds of points.",
    tests=(
        Test(key="exact", says="Gaussian data: largest |partial correlation| of x_t and x0 given x_s", op="<=", bound=1e-9),
        Test(key="law", says="Gaussian data: largest gap of the steps' covariances to the direct law's", op="<=", bound=1e-9),
        Test(key="pixels", says="pixels: |partial correlation|, least value in its interval", op="<=", bound=0.0),
        Test(key="control", says="the control, one noise for all times: |partial correlation|", op=">=", bound=0.5),
        Test(key="cloud", says="mixture after 1,000 steps less one jump: distance, in noise floors, lower end", op="<=",
             bound=0.0),
    ),
)  # fmt: skip


def move(schedule: Schedule, s: float, t: float) -> tuple[float, float]:
    """(factor, noise's standard deviation) of the step from time s to t > s."""
    a_s, a_t, s_s, s_t = (float(f(u)) for f in (schedule.alpha, schedule.sigma) for u in (s, t))
    factor = a_t / a_s
    return factor, math.sqrt(max(s_t**2 - (factor * s_s) ** 2, 0.0))


def times(steps: int) -> np.ndarray:
    """Evenly spaced from 0, without the very end, where α may be 0 and nothing is left to divide."""
    return np.linspace(0.0, 1.0, steps + 1)[:-1]


def exact(schedule: Schedule, spread: float, steps: int) -> tuple[float, float]:
    """Largest |partial correlation| of (x0, x_t) given x_s, and largest gap of variances and covariances to the direct law.

    x0 ~ N(0, spread²); the covariance of (x0, x_s, x_t) is carried through the steps.
    """
    grid = times(steps)
    variance, with_x0 = spread**2, spread**2  # of x at the current time, and its covariance with x0
    worst = gap = 0.0
    for s, t in zip(grid[:-1], grid[1:], strict=True):
        factor, noise = move(schedule, s, t)
        across = factor * variance  # cov(x_s, x_t)
        later, later_x0 = factor**2 * variance + noise**2, factor * with_x0
        top = later_x0 - across * with_x0 / variance
        rest = (later - across**2 / variance) * (spread**2 - with_x0**2 / variance)
        worst = max(worst, abs(top) / math.sqrt(rest) if rest > 1e-20 else 0.0)
        variance, with_x0 = later, later_x0
        a, b = float(schedule.alpha(t)), float(schedule.sigma(t))
        gap = max(gap, abs(variance - (a * a * spread**2 + b * b)), abs(with_x0 - a * spread**2))
    return worst, gap


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Partial correlation of x and y (n,) given `given` (n,)."""
    left, right = (v - v.mean() - np.cov(v, given)[0, 1] / given.var(ddof=1) * (given - given.mean()) for v in (x, y))
    return float((left * right).sum() / math.sqrt((left**2).sum() * (right**2).sum()))


def walked(x0: Tensor, schedule: Schedule, grid: Sequence[float], seed: int) -> list[Tensor]:
    """x at each time of the grid, reached by steps."""
    rng = np.random.default_rng([seed, 59])
    x, out = x0, [x0]
    for s, t in zip(grid[:-1], grid[1:], strict=True):
        factor, noise = move(schedule, float(s), float(t))
        x = factor * x + noise * torch.from_numpy(rng.standard_normal(x0.shape))
        out.append(x)
    return out


def measure(settings: Settings, say: Say) -> Found:
    """Exact algebra, pixels with a control, and clouds."""
    say("exact algebra")
    found = [exact(schedule, spread, STEPS) for schedule in (Cosine(), Table.linear()) for spread in (0.3, 1.0, 2.0)]
    say("pixels of real pictures")
    pictures = emoji.encoded(emoji.rows("train", 100 if settings.quick else 600, settings.seed)).double()
    # one number a picture: neighbours are not independent, and an interval that takes them so would be too narrow
    rng = np.random.default_rng([settings.seed, 61])
    places = rng.integers(0, pictures[0].numel(), (40 if settings.quick else 200, len(pictures)))
    schedule, repeats = Cosine(), []
    control = []
    for k, place in enumerate(places):
        x0 = pictures.flatten(1)[torch.arange(len(pictures)), torch.from_numpy(place)]
        _, x_s, x_t = walked(x0, schedule, (0.0, 0.3, 0.6), settings.seed + k)
        repeats.append(partial(x0.numpy(), x_t.numpy(), x_s.numpy()))
        eps = torch.from_numpy(rng.standard_normal(x0.shape))
        one_s, one_t = (float(schedule.alpha(t)) * x0 + float(schedule.sigma(t)) * eps for t in (0.3, 0.6))
        control.append(abs(partial(x0.numpy(), one_t.numpy(), one_s.numpy())))
    of = f"{len(pictures)} pixels, one a picture"
    seen, other = over_runs("pixels: partial correlation of x_0.6 and x0 given x_0.3", repeats, of), over_runs(
        "control, one noise for all times: |partial correlation|", control, of)  # fmt: skip
    say("clouds")
    ring, n = MIXTURES["ring"](), 1_000 if settings.quick else 4_000
    runs, where = 5 if settings.quick else 20, (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
    grid = times(STEPS)
    lines: dict[str, list[list[float]]] = {"1,000 steps": [], "one jump (noise floor)": []}
    for k in range(runs):
        path = walked(ring.draw(n, settings.seed + 10 * k), schedule, grid.tolist(), settings.seed + 10 * k)
        gaps, floors = [], []
        for t in where:
            i = int(np.argmin(np.abs(grid - t)))
            jumps = []
            for j in (1, 2):
                rng = np.random.default_rng([settings.seed, 67, k, j, i])
                eps = torch.from_numpy(rng.standard_normal((n, 2)))
                jumps.append(float(schedule.alpha(grid[i])) * ring.draw(n, settings.seed + 10 * k + j)
                             + float(schedule.sigma(grid[i])) * eps)  # fmt: skip
            gaps.append(sliced(path[i], jumps[0]))
            floors.append(sliced(jumps[1], jumps[0]))
        lines["1,000 steps"].append(gaps)
        lines["one jump (noise floor)"].append(floors)
    gaps_of, floors_of = (np.mean(rows, 1) for rows in lines.values())
    more = ((gaps_of - floors_of) / floors_of.mean()).tolist()
    ratio = over_runs("ring: 1,000 steps' distance from one jump less that of two jumps, over the latter", more, f"{n:,} points")
    low, high = end(seen.low), end(seen.high)
    most, gap = (max(values) for values in zip(*found, strict=True))
    return Found(
        (Figure(what="Gaussian data: largest |partial correlation|, two schedules, three widths", value=most, n=0),
         Figure(what="Gaussian data: largest gap of covariances", value=gap, n=0), seen, other, ratio),
        {"exact": most, "law": gap,
         "pixels": 0.0 if low <= 0.0 <= high else min(abs(low), abs(high)),
         "control": end(other.low), "cloud": end(ratio.low)},
        (Plot(name="clouds", title="Steps against one jump: sliced Wasserstein distance", x_name="t", y_name="distance",
              lines=[Line(name=name, x=list(where), y=np.mean(values, 0).tolist()) for name, values in lines.items()]),),
    )  # fmt: skip

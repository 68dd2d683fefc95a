"""Ten to fifty evaluations of a modern sampler against DDPM's thousand, on mixtures whose exact draws are known."""

from __future__ import annotations

import math

import numpy as np

from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.mixtures import MIXTURES, Mixture, end, floor, over_runs
from unfog.claims.steps import distance, planned
from unfog.diffusion.grids import make_grid
from unfog.diffusion.plan import Plan
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import Cosine

FEW = (10, 20, 50)
MANY = 1000
MODERN = ("auto", "dpmpp_2m", "unipc")
OURS = "auto"  # what is used unless asked otherwise, and what the tests are of
DDPM = (50, 100, 250, MANY)
SLACK = 0.5  # of the noise floor
SAYS = "Modern samplers reach in 10 to 50 evaluations the quality for which DDPM's ancestral sampling takes 1,000."
SOURCE = "Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095; Song et al. 2021, arXiv:2010.02502"

STATEMENT = Statement(
    title="Ten to fifty steps match a thousand",
    says=SAYS,
    source=SOURCE,
    how=f"On two exact mixtures: sliced Wasserstein distance to exact draws, `{OURS}` against DDPM of {MANY:,} evenly spaced "
    "steps, in units of the noise floor (the distance of two exact clouds).",
    tests=tuple(
        Test(key=f"mixture{k}", op="<=", bound=SLACK,
             says=f"distance of {k} evaluations less that of {MANY:,}, over the noise floor; upper end")
        for k in FEW
    ),
)  # fmt: skip


def ddpm(steps: int) -> Plan:
    """As in the paper: evenly spaced times, the posterior's noise at each."""
    return make_plan("ddpm", Cosine(), make_grid("uniform", Cosine(), steps))


def on_mixture(mixture: Mixture, settings: Settings, n: int, say: Say) -> dict[str, dict[int, list[float]]]:
    """Distances of runs, by sampler and evaluations; the same exact clouds for all."""
    runs, size = 8, mixture.means.shape[1]
    seeds = [settings.seed + 100 * k for k in range(runs)]
    plans = {name: {k: planned(name, k, size) for k in FEW} for name in MODERN}
    plans["ddpm"] = {k: ddpm(k) for k in (DDPM[::3] if settings.quick else DDPM)}
    found: dict[str, dict[int, list[float]]] = {}
    for name, table in plans.items():
        found[name] = {}
        for k, plan in table.items():
            say(f"{name}, {k} evaluations")
            found[name][k] = [distance(mixture, plan, n, seed) for seed in seeds]
    return found


def measure(settings: Settings, say: Say) -> Found:
    """Each mixture."""
    figures: list[Figure] = []
    plots, values = [], {f"mixture{k}": -math.inf for k in FEW}
    for name in ("ring",) if settings.quick else ("ring", "curve"):
        n = 2_000 if settings.quick else 4_000 if name == "ring" else 1_000
        mixture = MIXTURES[name]()
        table = on_mixture(mixture, settings, n, lambda line, name=name: say(f"{name}, {line}"))  # type: ignore[misc]
        floors = floor(mixture, n, settings.seed, 10)
        low = float(np.mean(floors))
        figures.append(over_runs(f"{name}: noise floor", floors, f"two exact clouds of {n:,}"))
        for sampler, row in table.items():
            figures += [over_runs(f"{name}: {sampler}, {k:,} evaluations", d, f"{n:,} points") for k, d in row.items()]
        for k in FEW:
            gaps = (np.array(table[OURS][k]) - np.array(table["ddpm"][MANY])) / low
            gap = over_runs(f"{name}: {OURS} {k} less ddpm {MANY:,}, over the floor", gaps.tolist(), f"{n:,} points")
            figures.append(gap)
            values[f"mixture{k}"] = max(values[f"mixture{k}"], end(gap.high))
        lines = [Line(name=s, x=[float(k) for k in row], y=[float(np.mean(d)) for d in row.values()]) for s, row in table.items()]
        lines.append(Line(name="noise floor", x=[float(FEW[0]), float(MANY)], y=[low, low], dashed=True))
        plots.append(Plot(name=name, title=f"{name}: distance to the data", lines=lines, x_name="evaluations",
                          y_name="sliced Wasserstein", log_x=True, log_y=True))  # fmt: skip
    return Found(tuple(figures), values, tuple(plots))
